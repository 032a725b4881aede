//! `fork`: marks a copied or restored data directory whose keys encrypt elsewhere too, or have done so.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

use clap::Args;
use key_files::{key_directory::KeyDirectory, manifest::ManifestFile};
use nix::unistd::geteuid;

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
    let cannot_open = |source| DataKeysError::DataDirectory {
        path: datadir.clone(),
        source,
    };
    let owner = datadir.metadata().map_err(cannot_open)?.uid();
    let mut is_of_a_server = false;
    for name in OF_A_SERVER {
        is_of_a_server |= datadir.join(name).try_exists().map_err(cannot_open)?;
    }
    if !is_of_a_server {
        return Err(DataKeysError::NotADataDirectory(datadir.clone()));
    }
    if !(geteuid().is_root() || geteuid().as_raw() == owner) {
        return Err(DataKeysError::NotOwner(datadir.clone()));
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
