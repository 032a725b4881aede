//! The command line of `kms-manage-key`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Parser, Subcommand};

use aws_session::master_key_id::MasterKeyId;
use code_channel::note::check_reason;

/// Enables, disables or shows the KMS master key, with an MFA code.
#[derive(Debug, Parser)]
#[command(
    name = "kms-manage-key",
    version,
    disable_help_subcommand = true,
    override_usage = "kms-manage-key [OPTIONS] enable|disable|status [CODE]\n       \
kms-manage-key [OPTIONS] unlock [--] COMMAND [ARG…]",
    after_help = "\
Prompts for the code at the terminal, or reads one line of standard input.
A CODE in the arguments is visible in ps. FILE is as for iam-kms-wrapper.

Exit status: 0 success, 3 disabled, 4 neither, else see kms-manage-key(8)."
)]
pub struct CommandLine {
    /// The configuration file; default /etc/iam-kms-wrapper/kms-manage-key.config
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/etc/iam-kms-wrapper/kms-manage-key.config",
        hide_default_value = true
    )]
    pub config: PathBuf,

    /// The master key by id, ARN or alias
    #[arg(long, global = true, value_name = "KEY")]
    pub key: Option<MasterKeyId>,

    /// How long to wait for the new state; default 300
    #[arg(
        long,
        global = true,
        value_name = "N",
        default_value = "300",
        hide_default_value = true,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub timeout_seconds: u64,

    /// Why, for the audit; not a secret
    #[arg(long, global = true, value_name = "TEXT", value_parser = check_reason)]
    pub reason: Option<String>,

    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with the key.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Enable the key
    #[command(visible_alias = "e")]
    Enable {
        /// The MFA code; visible in ps
        code: Option<String>,
    },
    /// Disable the key
    #[command(visible_alias = "d")]
    Disable {
        /// The MFA code; visible in ps
        code: Option<String>,
    },
    /// Print the key's state and ARN
    Status {
        /// The MFA code; visible in ps
        code: Option<String>,
    },
    /// Enable the key, run COMMAND, and disable the key again in any case
    #[command(after_help = "\
One code serves for both steps. COMMAND inherits the standard streams, but not
the AWS credentials of the environment. Signals are passed on to it. The key is
disabled at the end even if it was enabled before.")]
    Unlock {
        /// The command to run and its arguments
        #[arg(
            value_name = "COMMAND",
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        command: Vec<OsString>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_commands_of_the_manual_are_accepted() {
        for line in ["kms-manage-key e 111676", "kms-manage-key enable 111676"] {
            let Action::Enable { code } = parse(line).unwrap().action else {
                panic!("{line}");
            };
            assert_eq!(code.as_deref(), Some("111676"));
        }
        for line in ["kms-manage-key d", "kms-manage-key disable"] {
            let action = parse(line).unwrap().action;
            assert!(matches!(action, Action::Disable { code: None }), "{line}");
        }
    }

    #[test]
    fn options_are_accepted_before_and_after_the_action_but_not_after_the_command() {
        for line in [
            "kms-manage-key --config=f --key=alias/a unlock -- sh -c x --config=g",
            "kms-manage-key unlock --config f --key alias/a sh -c x --config=g",
        ] {
            let parsed = parse(line).unwrap();
            assert_eq!(parsed.config, PathBuf::from("f"), "{line}");
            assert_eq!(parsed.key.unwrap().as_str(), "alias/a");
            let Action::Unlock { command } = parsed.action else {
                panic!("{line}");
            };
            assert_eq!(command, ["sh", "-c", "x", "--config=g"]);
        }
    }

    #[test]
    fn invalid_command_lines_are_refused() {
        for line in [
            "kms-manage-key",
            "kms-manage-key unlock",
            "kms-manage-key destroy",
            "kms-manage-key enable --timeout-seconds=0",
            "kms-manage-key enable --key=key/1",
            "kms-manage-key enable 111676 alias/a",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
