//! The command line.

use clap::{Parser, Subcommand};

use crate::{
    check, export, fork, import, list, rewrap, rotation,
    stored::{pull, push},
    verify,
};

/// Manages the wrapped data keys of MariaDB's aws_key_management plugin.
#[derive(Debug, Parser)]
#[command(
    name = "kms-data-keys",
    version,
    disable_help_subcommand = true,
    after_help = "\
Key files are in the data directory or aws_key_management_keyfile_dir. AWS is
called as the AWS CLI would call it, or after an MFA code (--config=FILE).

Exit status: 0 all is well, 1 something is wrong, 125 it could not be done."
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands; each has a module of the same name.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    List(list::Arguments),
    Verify(verify::Arguments),
    Rewrap(rewrap::Arguments),
    Rotation(rotation::Arguments),
    Check(check::Arguments),
    Export(export::Arguments),
    Fork(fork::Arguments),
    Import(import::Arguments),
    Push(push::Arguments),
    Pull(pull::Arguments),
}
