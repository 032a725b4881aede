//! The command line, as clap reads it and as Go's flag package did.

use std::{ffi::OsString, path::PathBuf};

use clap::Parser;

/// Starts a command with an AWS session that somebody has opened with an MFA code.
#[derive(Debug, Parser)]
#[command(
    name = "iam-kms-wrapper",
    version,
    override_usage = "iam-kms-wrapper --config=FILE [--] COMMAND [ARG…]\n       \
iam-kms-wrapper --check --config=FILE [[--] COMMAND [ARG…]]\n       \
iam-kms-wrapper code|setup|audit [OPTIONS]",
    after_help = "\
The log says how to enter the code: with `iam-kms-wrapper code`, or at the
terminal. FILE holds at least `[kms]` and `kms_mfa_id = ARN-OF-THE-MFA-DEVICE`.
Exit status: COMMAND's own; before that 125 if there is no session, 126 if
COMMAND cannot be executed, 127 if it is not found. More in iam-kms-wrapper(8)."
)]
pub struct CommandLine {
    /// Configuration: INI, or TOML if its name ends in .toml.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Run the preflight check; this uses up no code.
    #[arg(long)]
    pub check: bool,

    /// The command to execute with the session, and its arguments.
    #[arg(
        value_name = "COMMAND",
        required_unless_present = "check",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<OsString>,
}

impl CommandLine {
    /// Parses the program's arguments, the program's own name first.
    pub fn parse_arguments(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(accept_go_flags(arguments))
    }
}

/// Go's flag package takes `-config` for `--config`. Only before COMMAND: its own flags may look
/// the same.
fn accept_go_flags(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut accepted = Vec::new();
    let mut is_ours = true;
    let mut is_value = true; // the program's own name
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        if !is_ours || is_value {
            is_value = false;
            accepted.push(argument);
            continue;
        }
        is_ours = text.starts_with('-') && text != "--";
        is_value = matches!(text, "-config" | "--config");
        if text == "-config" || text.starts_with("-config=") {
            accepted.push(format!("-{text}").into());
        } else {
            accepted.push(argument);
        }
    }
    accepted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        let arguments = line.split_whitespace().map(OsString::from);
        CommandLine::parse_arguments(std::iter::once("iam-kms-wrapper".into()).chain(arguments))
    }

    #[test]
    fn every_way_to_name_the_configuration_works() {
        for line in [
            "--config=/etc/f mysqld --a -b",
            "--config /etc/f mysqld --a -b",
            "-config=/etc/f mysqld --a -b",
            "-config /etc/f mysqld --a -b",
            "--config=/etc/f -- mysqld --a -b",
            "-config /etc/f -- mysqld --a -b",
        ] {
            let parsed = parse(line).unwrap();
            assert_eq!(parsed.config, PathBuf::from("/etc/f"), "{line}");
            assert_eq!(parsed.command, ["mysqld", "--a", "-b"], "{line}");
        }
    }

    #[test]
    fn flags_of_the_command_are_its_own() {
        let parsed = parse("--config=f mysqld -config=x --config y -- --help").unwrap();
        assert_eq!(
            parsed.command,
            ["mysqld", "-config=x", "--config", "y", "--", "--help"]
        );
    }

    #[test]
    fn a_check_takes_a_command_or_none() {
        for (line, command) in [
            ("--check --config=f", &[][..]),
            (
                "--config=f --check -- mysqld --check",
                &["mysqld", "--check"],
            ),
        ] {
            let parsed = parse(line).unwrap();
            assert!(parsed.check, "{line}");
            assert_eq!(parsed.command, command, "{line}");
        }
        assert!(!parse("--config=f mysqld --check").unwrap().check);
    }

    #[test]
    fn a_command_and_a_configuration_are_required() {
        assert!(parse("--config=f").is_err());
        assert!(parse("mysqld").is_err());
        assert!(parse("--check mysqld").is_err());
        assert!(parse("--confg=f mysqld").is_err());
    }
}
