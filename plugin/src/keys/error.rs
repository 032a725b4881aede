//! Why a data key cannot be served.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use data_files::usage::{Unclear, UnclearFile};
use key_files::check_value::CheckValue;
use key_files::key_directory::FileError;
use key_files::key_name::KeyName;
use key_files::manifest::WrongKey;

use crate::kms::client::KmsError;

/// Why a data key cannot be served. The messages go to the client of the statement or to the error log.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// KMS did not decrypt the key of a file.
    #[error("cannot decrypt key file '{}': {source}", path.display())]
    Decrypt {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: KmsError,
    },
    /// The key server did not give a key.
    #[error("cannot get {name} from the key server: {source}")]
    KeyServer {
        /// The key version.
        name: KeyName,
        /// Why.
        source: KmsError,
    },
    /// The key server does not have a version that existed. A new key must not replace it.
    #[error("the key server does not have {name}, although '{}' lists it: its key store is in an older state, or it is not the key store of this server. Restore the key store, and never give another key its name", manifest.display())]
    NotOnKeyServer {
        /// The key version.
        name: KeyName,
        /// The manifest.
        manifest: PathBuf,
    },
    /// KMS did not generate a key.
    #[error("cannot make key {id}{}: {source}", with_master_key(master_key_id))]
    Generate {
        /// Key id.
        id: u32,
        /// The master key.
        master_key_id: String,
        /// Why.
        source: KmsError,
    },
    /// The key file, its directory or the manifest.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key that the manifest does not list, and that would be lost unnoticed.
    #[error(
        "{name} is not used for new data, because it cannot be added to the key manifest: {source}"
    )]
    NotListed {
        /// The key version.
        name: KeyName,
        /// Why not.
        source: FileError,
    },
    /// The key store, or the broker that is asked for it.
    #[error("cannot look up {what}: {source}")]
    KeyStore {
        /// The key.
        what: String,
        /// Why not.
        source: KmsError,
    },
    /// The key store has another key under a name than the manifest.
    #[error(
        "{name} is another key here (check value {listed} in the manifest) than in the key store {key_store} (check value {stored}): the key store belongs to another server, or servers that made keys of their own share it. Correct key_store in the broker's configuration: restored data needs the key store of its origin, or a new one. A node that is to join a cluster must have no data of its own"
    )]
    OtherInKeyStore {
        /// The key version.
        name: KeyName,
        /// The check value in the key store.
        stored: CheckValue,
        /// The check value in the manifest.
        listed: CheckValue,
        /// Where the key store is.
        key_store: String,
    },
    /// A key of the key store is not what its check value says.
    #[error(
        "{name} of the key store is another key than its check value says, so it is not used; find out who has put it there"
    )]
    WrongInKeyStore {
        /// The key version.
        name: KeyName,
    },
    /// No memory for the key.
    #[error("not enough memory for a key: {0}")]
    Memory(io::Error),
    /// No master key is set, so no key can be made.
    #[error(
        "cannot make a version of key {id}: aws_key_management_master_key_id is empty; set it to the id, ARN or alias of the master key"
    )]
    NoMasterKey {
        /// Key id.
        id: u32,
    },
    /// Loading stopped before this key, because KMS or the broker failed for others.
    #[error("not tried at the start, because loading other keys failed")]
    NotTried,
    /// Another process made a version at the same moment.
    #[error("another process is making versions of key {id} in the same directory; try again")]
    MadeElsewhere {
        /// Key id.
        id: u32,
    },
    /// The key does not exist, and mariadb-backup makes none.
    #[error("key {id} has no key file in '{}', and mariadb-backup makes no keys; copy the key files there", path.display())]
    NotInBackup {
        /// Key id.
        id: u32,
        /// The directory.
        path: PathBuf,
    },
    /// A key that the key server does not have, and whether data is encrypted with it.
    #[error("the key server has no {what} for this host{}; check its key store, and the name_space of this host's section", of_data(proof.as_deref()))]
    NotServed {
        /// The key or the version.
        what: String,
        /// The encrypted file.
        proof: Option<PathBuf>,
    },
    /// A version that has no file and that the manifest does not list.
    #[error("key {id} has no version {version} in '{}'; restore aws-kms-key.{id}.{version} or aws-kms-key.{id}.{version}.ctr from a backup of the key files", path.display())]
    NoSuchVersion {
        /// Key id.
        id: u32,
        /// Version.
        version: u32,
        /// The directory.
        path: PathBuf,
    },
    /// A version that existed and whose file is gone. A new key must not replace it: data encrypted with the new
    /// one would be lost when the file is restored.
    #[error("{name} is missing in '{}' although '{}' lists it; restore it from a backup of the key files, and never give another key its name", path.display(), manifest.display())]
    FileMissing {
        /// The key file.
        name: KeyName,
        /// Where it should be.
        path: PathBuf,
        /// The manifest.
        manifest: PathBuf,
    },
    /// Keys existed, and there is no key file at all. A disk that is not mounted looks like that.
    #[error("there is no key file in '{}', but '{}' lists {versions}: see that it is mounted, and that aws_key_management_keyfile_dir is right; else restore the key files from a backup", path.display(), manifest.display())]
    NoKeyFiles {
        /// Where the key files should be.
        path: PathBuf,
        /// The manifest.
        manifest: PathBuf,
        /// How many key versions it lists.
        versions: usize,
    },
    /// A key that has no file and no entry in the manifest although data is encrypted with it.
    #[error("key {id} has no key file in '{}', but '{}' is encrypted with it; restore aws-kms-key.{id}.* from a backup of the key files", path.display(), proof.display())]
    AllFilesMissing {
        /// Key id.
        id: u32,
        /// The directory.
        path: PathBuf,
        /// The encrypted file.
        proof: PathBuf,
    },
    /// The files of the server do not show whether the key is new.
    #[error(
        "cannot make the first version of key {id} because the key may have existed before: {source}"
    )]
    Unclear {
        /// Key id.
        id: u32,
        /// Why not, and what to do.
        source: Unclear,
    },
    /// The server's files cannot be searched.
    #[error(
        "cannot make the first version of key {id}, because the server's files cannot be searched for data encrypted with it: {source}"
    )]
    CannotLook {
        /// Key id.
        id: u32,
        /// Why.
        source: io::Error,
    },
    /// A binary or relay log does not tell which version of key 1 it needs.
    #[error(
        "cannot make a version of key 1, because a log may need a version whose number must not be used again: {0}; repair that file, or remove the log as 'A damaged binary or relay log' in the documentation says"
    )]
    UnclearLog(UnclearFile),
    /// A binary or relay log needs a version that is far above all others.
    #[error(
        "cannot make a version of key 1: '{}' needs version {version}, and the highest one that is known is {known}, so the log is damaged or another server's; repair it, or remove it as 'A damaged binary or relay log' in the documentation says", log.display()
    )]
    UnlikelyLog {
        /// The log.
        log: PathBuf,
        /// The version that it needs.
        version: u32,
        /// The highest version known otherwise.
        known: u32,
    },
    /// A file holds a different key than the manifest lists for its name.
    #[error("key file '{}' {source}", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// How the keys differ.
        source: WrongKey,
    },
    /// The server has been told that a key does not exist. If the key appeared now, InnoDB would abort the
    /// server.
    #[error(
        "InnoDB can use key {id} only after a restart of the server, because the key could not be loaded before: {reason}"
    )]
    NeedsRestart {
        /// Key id.
        id: u32,
        /// Why it was not available.
        reason: String,
    },
    /// A copied data directory must not continue to use the AES_CTR keys of the original.
    #[error(
        "key {id} uses AES_CTR and this data directory is a copy (kms-data-keys fork), so the key needs a new version before it encrypts anything, and none could be made: {reason}"
    )]
    Forked {
        /// Key id.
        id: u32,
        /// Why no version could be made.
        reason: String,
    },
    /// Encrypted data cannot be read because its key cannot be served. The server itself reports corruption and
    /// gives dangerous advice.
    #[error(
        "cannot decrypt data encrypted with key {id}. The data is not corrupted: do not drop the table. {source}; then restart the server"
    )]
    Unreadable {
        /// Key id.
        id: u32,
        /// Why.
        source: Box<KeyError>,
    },
    /// The offline keys do not include a key.
    #[error("{what} is not in '{}' (aws_key_management_offline_keys), and no keys are made without KMS; export the keys again with kms-data-keys, or start the server with a broker and without that variable", path.display())]
    NotOffline {
        /// The key, or its version.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// A new version is wanted while offline keys are served.
    #[error("the keys come from '{}' (aws_key_management_offline_keys), which is only read; to make keys, start the server with a broker and without that variable", path.display())]
    OnlyRead {
        /// The file.
        path: PathBuf,
    },
    /// Another thread is waiting for an MFA code to get the same key.
    #[error("the server is waiting for an MFA code to load key {id}; enter the code and try again")]
    AwaitsCode {
        /// Key id.
        id: u32,
    },
    /// The statement was killed.
    #[error(
        "stopped waiting for key {id}: the statement was killed or the server is shutting down"
    )]
    Killed {
        /// Key id.
        id: u32,
    },
    /// A number that is not a key id or version.
    #[error("{0} is not a key id or version")]
    InvalidNumber(u32),
}

fn of_data(proof: Option<&Path>) -> String {
    proof.map_or_else(String::new, |proof| {
        format!(", but '{}' is encrypted with it", proof.display())
    })
}

/// Where the keys come from a key server, it chooses the master key, and none is configured here.
fn with_master_key(id: &str) -> String {
    match id {
        "" => String::new(),
        id => format!(" with master key '{id}'"),
    }
}

impl KeyError {
    /// Whether another attempt costs nothing because no request leaves this host.
    pub fn is_cheap(&self) -> bool {
        match self {
            Self::Decrypt { source, .. }
            | Self::KeyServer { source, .. }
            | Self::Generate { source, .. }
            | Self::KeyStore { source, .. } => source.is_local(),
            Self::Memory(_) => false,
            Self::Unreadable { source, .. } => source.is_cheap(),
            _ => true,
        }
    }

    /// Whether every key fails like this until somebody fixes the session or the broker.
    pub fn is_for_all_keys(&self) -> bool {
        matches!(self, Self::Decrypt { source, .. } | Self::KeyServer { source, .. } | Self::Generate { source, .. } if source.is_local())
    }

    /// Whether the key store does not answer now, for this key or any other.
    pub fn is_of_silent_store(&self) -> bool {
        matches!(self, Self::KeyStore { source, .. } if source.is_local() || source.is_retryable())
    }

    /// Whether KMS refuses every key of the same master key, as when that is disabled.
    pub fn is_of_master_key(&self) -> bool {
        matches!(self, Self::Decrypt { source, .. } if source.refuses_master_key())
    }

    /// Whether the same key may become available without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Decrypt { source, .. } | Self::KeyServer { source, .. } | Self::KeyStore { source, .. }
            if source.is_local() || source.is_retryable())
    }

    /// Wraps the error for a server that wants the key in order to read data.
    pub fn for_reading(self, id: u32) -> Self {
        let source = self.into();
        Self::Unreadable { id, source }
    }
}
