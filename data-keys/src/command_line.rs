//! The command line.

use clap::{Parser, Subcommand};

use crate::{check, export, import, list, rewrap, verify};

/// Looks after the wrapped data keys of MariaDB's aws_key_management plugin.
#[derive(Debug, Parser)]
#[command(
    name = "kms-data-keys",
    version,
    after_help = "\
A data key lies in the file aws-kms-key.ID.VERSION (with .ctr for AES_CTR) in the server's data
directory, or in aws_key_management_keyfile_dir where that is set, wrapped by a master key of KMS.

KMS is called with the credentials that the AWS CLI would find, so also with those of a session:
  iam-kms-wrapper --config=FILE kms-data-keys verify DIR

Exit status: 0 if all is well, 1 if something is not, 125 if it could not be done.",
    max_term_width = 92
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do; the module of the same name does it.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    List(list::Arguments),
    Verify(verify::Arguments),
    Rewrap(rewrap::Arguments),
    Check(check::Arguments),
    Export(export::Arguments),
    Import(import::Arguments),
}
