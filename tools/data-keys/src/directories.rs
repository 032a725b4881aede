//! Where the key files and the key manifest are, for the subcommands that compare them.

use std::path::PathBuf;

use clap::Args;
use key_files::{
    key_directory::{FileError, KeyDirectory},
    manifest::ManifestFile,
};

use crate::DataKeysError;

/// Which directories.
#[derive(Debug, Args)]
pub(crate) struct Directories {
    /// The directory with the key manifest, if not DIR
    #[arg(long, value_name = "DATADIR")]
    datadir: Option<PathBuf>,

    /// The data directory, or aws_key_management_keyfile_dir if that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Directories {
    /// Opens the directory with the key files.
    pub fn key_files(&self) -> Result<KeyDirectory, DataKeysError> {
        Ok(KeyDirectory::open(&self.directory)?)
    }

    /// Reads the key manifest; it is empty if there is none.
    pub fn manifest(&self) -> Result<ManifestFile, DataKeysError> {
        let datadir = self.datadir.as_ref().unwrap_or(&self.directory);
        ManifestFile::open(datadir).map_err(|error| match error {
            FileError::Directory { path, source, .. } => {
                DataKeysError::DataDirectory { path, source }
            }
            error => error.into(),
        })
    }
}
