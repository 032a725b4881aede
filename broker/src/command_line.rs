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
iam-kms-wrapper starts it where its configuration says handoff = broker; there
is nothing to do by hand then. Started with --config it runs alone: it asks for
an MFA code when it starts and whenever the session has ended. To enter the code:
  iam-kms-wrapper code

Exit status: 0 when ended by SIGTERM, SIGINT or SIGHUP, or with its server; 125
otherwise. More in iam-kms-broker(8)."
)]
pub struct CommandLine {
    /// The configuration of iam-kms-wrapper.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "handover",
        conflicts_with = "handover"
    )]
    pub config: Option<PathBuf>,

    /// Take everything over from iam-kms-wrapper, on standard input.
    #[arg(long, hide = true)]
    pub handover: bool,
}
