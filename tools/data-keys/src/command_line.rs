//! The command line.

use clap::{
    Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};

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

/// Takes one of these names, for what it stands for.
pub(crate) fn one_of<T, const N: usize>(
    named: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(named.map(|(name, _)| name)).try_map(move |given| {
        let found = named.iter().find(|(name, _)| *name == given);
        found.map(|(_, meant)| *meant).ok_or("unknown name")
    })
}
