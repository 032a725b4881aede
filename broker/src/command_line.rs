//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Holds the AWS session and calls KMS for MariaDB's aws_key_management plugin.
#[derive(Debug, Parser)]
#[command(
    name = "iam-kms-broker",
    version,
    override_usage = "iam-kms-broker --config=FILE",
    after_help = "\
With handoff = broker in its configuration, iam-kms-wrapper starts the broker.
Started with --config, the broker runs as a service of its own: it prompts for
an MFA code at its start and after the end of each session. To enter the code:
  iam-kms-wrapper code

Exit status: 0 after SIGTERM, SIGINT or SIGHUP, or after the end of its server;
125 after a failure. More in iam-kms-broker(8)."
)]
pub struct CommandLine {
    /// The configuration file of iam-kms-wrapper
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "handover",
        conflicts_with = "handover"
    )]
    pub config: Option<PathBuf>,

    /// Take over from iam-kms-wrapper, through standard input
    #[arg(long, hide = true)]
    pub handover: bool,
}
