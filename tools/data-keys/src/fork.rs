//! `fork`: marks a copied or restored data directory whose keys encrypt elsewhere too, or have done so.

use std::path::PathBuf;

use clap::Args;
use key_files::{key_directory::KeyDirectory, manifest::ManifestFile};

use crate::{DataKeysError, Outcome, check::Stopped, print_summary};

/// Mark a copied or restored data directory
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on a copy of a data directory (a restored backup, a snapshot, a clone)
if its original stays in use, if anything of what it replaces remains, or if
the same backup was restored before. At its next start, before it writes
anything, the server makes a new version of each key that encrypts with
AES_CTR. Otherwise both would have encrypted different pages with the same
keystream, and anyone with both could read them. AES_CBC keys stay.
The server waits for an MFA code if it has no session.

It is not needed where aws_key_management_encryption_algorithm has always been
AES_CBC.")]
pub(crate) struct Arguments {
    /// The data directory, of a stopped server
    #[arg(value_name = "DATADIR")]
    datadir: PathBuf,
}

/// What each data directory has at least one of.
const OF_A_SERVER: [&str; 4] = ["ibdata1", "aria_log_control", "mysql", "aws-kms-keys.list"];

/// Writes the mark into the manifest.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let datadir = &arguments.datadir;
    if !OF_A_SERVER.iter().any(|name| datadir.join(name).exists()) {
        return Err(DataKeysError::NotADataDirectory(datadir.clone()));
    }
    let _stopped = Stopped::lock(datadir, &[], &KeyDirectory::open(datadir)?)?;
    let manifest = ManifestFile::open(datadir)?;
    manifest.set_forked(true)?;
    let printed = print_summary(&format!(
        "'{}' is marked as a copy: at its next start the server makes a new version of each AES_CTR key before it writes\n",
        datadir.display()
    ));
    Outcome::Good.despite(printed)
}
