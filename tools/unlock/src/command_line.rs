//! The command line of `iam-kms-unlock`.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};

use aws_session::{config, region::is_region};
use code_channel::note::check_reason;

/// Opens one AWS session and hands it to every host that waits for one.
#[derive(Debug, Parser)]
#[command(
    name = "iam-kms-unlock",
    version,
    override_usage = "iam-kms-unlock [OPTIONS] [HOST…]",
    // With headings, it would not fit a screen.
    help_template = "{about}\n{usage-heading} {usage}\n\n{options}{after-help}",
    after_help = "One of the first three, or --dry-run, is required. Without a HOST: this host.\n\
Exit status: first of 125, 1 refused, 3 unknown, 2 unreachable, 4 not waiting, 0",
    group = ArgGroup::new("from").args(["profile", "mfa_serial", "session", "dry_run"]).required(true).multiple(true),
    hide_possible_values = true
)]
pub struct CommandLine {
    /// Hosts, as ssh takes them
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,

    /// MFA device whose code opens the session
    #[arg(long, value_name = "ARN", value_parser = config::serial_number)]
    pub mfa_serial: Option<String>,

    /// Profile of the access key; alone: a signed-in one
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// Read a session document from standard input
    #[arg(long, value_name = "-", value_parser = ["-"], conflicts_with_all = ["profile", "mfa_serial"])]
    pub session: Option<String>,

    /// Role to assume with the code
    #[arg(long, value_name = "ARN", requires = "mfa_serial", value_parser = role_arn)]
    pub role_arn: Option<String>,

    /// Region of STS
    #[arg(long, value_name = "REGION", requires = "mfa_serial", value_parser = region)]
    pub region: Option<String>,

    /// How long the session lasts; default 900
    #[arg(long, value_name = "N", requires = "mfa_serial", value_parser = clap::value_parser!(i32).range(900..=129_600))]
    pub duration_seconds: Option<i32>,

    /// File with one host per line
    #[arg(long = "hosts", value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,

    /// Hosts from this Ansible inventory
    #[arg(long, value_name = "PATH")]
    pub inventory: Option<PathBuf>,

    /// Only this group of the inventory
    #[arg(
        long,
        value_name = "NAME",
        requires = "inventory",
        default_value = "all",
        hide_default_value = true
    )]
    pub group: String,

    /// Why, for the audit of each host
    #[arg(long, value_name = "TEXT", value_parser = check_reason, conflicts_with = "dry_run")]
    pub reason: Option<String>,

    /// Run sudo -n on the hosts
    #[arg(long)]
    pub sudo: bool,

    /// The FIFO on the hosts, unless the default
    #[arg(long, value_name = "PATH", value_parser = fifo)]
    pub fifo: Option<PathBuf>,

    // Each takes four descriptors, of the 1,024 that a process usually has.
    /// Connections at once, up to 200; default 16
    #[arg(long, value_name = "N", default_value = "16", hide_default_value = true, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub jobs: u16,

    /// Time for one host; default 30
    #[arg(long, value_name = "N", default_value = "30", hide_default_value = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout_seconds: u64,

    /// Only show which hosts wait; opens no session
    #[arg(long, conflicts_with_all = ["profile", "mfa_serial", "session"])]
    pub dry_run: bool,

    /// Print a JSON object for each host
    #[arg(long)]
    pub json: bool,
}

fn role_arn(text: &str) -> Result<String, &'static str> {
    match config::is_role_arn(text) {
        true => Ok(text.into()),
        false => Err("must be the ARN of a role, such as arn:aws:iam::123456789012:role/NAME"),
    }
}

fn region(text: &str) -> Result<String, &'static str> {
    match is_region(text) {
        true => Ok(text.into()),
        false => Err("must be an AWS region, such as us-east-1"),
    }
}

/// It is part of a command line for a shell.
fn fifo(text: &str) -> Result<PathBuf, &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/._-@+".contains(c);
    match text.starts_with('/') && text.chars().all(allowed) {
        true => Ok(text.into()),
        false => Err("must be an absolute path of letters, digits and /._-@+"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "--mfa-serial=arn:aws:iam::123456789012:mfa/dba";

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(["iam-kms-unlock"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn there_is_one_way_to_a_session() {
        for line in [
            DEVICE,
            "--profile=dba db1",
            &format!("{DEVICE} --profile=dba db1"),
            "--session=- db1",
            "--session - db1",
            "--dry-run db1",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in [
            "db1",
            "--session=file db1",
            "--session=- --profile=dba db1",
            "--dry-run --profile=dba db1",
            "--profile=dba --region=eu-west-1 db1",
            "--mfa-serial=arn:aws:iam::123456789012:user/dba db1",
            &format!("{DEVICE} --duration-seconds=60"),
            &format!("{DEVICE} --role-arn=dba"),
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_fifo_is_a_path_that_no_shell_changes() {
        assert!(parse("--dry-run --fifo=/run/iam-kms-wrapper/mfa").is_ok());
        for path in ["mfa", "/run/$HOME", "/run/a'b", "/run/a;b", "/run/a\nb"] {
            assert!(
                parse(&format!("--dry-run --fifo={path}")).is_err(),
                "{path}"
            );
        }
    }
}
