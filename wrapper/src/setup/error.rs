//! What keeps `iam-kms-wrapper setup` from doing its work.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why the host is not set up. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Only root may write the files.
    #[error("run this as root, or with --dry-run to see what it would write")]
    NotRoot,
    /// The services are systemd's.
    #[error(
        "systemd does not run this host, and setup configures services of systemd\nConfigure it by hand: 'Containers and Kubernetes' and 'Install' in the documentation say how. --dry-run shows the files that setup would write."
    )]
    NoSystemd,
    /// systemd is too old for `LoadCredential=` in this service.
    #[error(
        "systemd {version} cannot load the credential of {service}: that takes systemd {needed}\nConfigure this host by hand, with the access key in the service's environment: 'Source credentials' in the documentation says how."
    )]
    OldSystemd {
        /// The version that runs this host.
        version: u32,
        /// The service.
        service: &'static str,
        /// The first version that can.
        needed: u32,
    },
    /// There is no MariaDB to configure.
    #[error("cannot find {0}\nInstall MariaDB's server, then run this again.")]
    NoServer(&'static str),
    /// The server's data may be encrypted under keys of another plugin.
    #[error(
        "the server's option files load {0}, and a server cannot use two encryption plugins\nTo move its data to AWS KMS, follow examples/migration in the documentation."
    )]
    OtherPlugin(&'static str),
    /// The other way to hand over the session is in use.
    #[error(
        "{0} is enabled, and the launcher cannot run beside it\nRun systemctl disable --now {0}, then run this again."
    )]
    BrokerEnabled(&'static str),
    /// Answers are missing and nobody can be asked.
    #[error(
        "missing: {}\nGive what is missing as options, or run this at a terminal to be asked.",
        .0.join(", ")
    )]
    Missing(Vec<&'static str>),
    /// An answer is not what it should be.
    #[error("{0}")]
    Answer(String),
    /// The person said no.
    #[error("nothing was changed")]
    Declined,
    /// Files that setup may not overwrite or remove.
    #[error("{0}")]
    NotOurs(String),
    /// Without the plugin, the server takes encrypted tables for corrupted.
    #[error(
        "{} holds data keys, so the server may have encrypted data, which it cannot read without the plugin\nDecrypt its data first, as examples/migration in the documentation says. Or add --even-if-encrypted.",
        .0.display()
    )]
    Encrypted(PathBuf),
    /// An administrator's drop-in comes after that of setup.
    #[error(
        "the files are written, but the command (ExecStart=) in {0} replaces that of setup, so the server would start without iam-kms-wrapper\nPut iam-kms-wrapper in front of the command there, as iam-kms-wrapper.conf beside it does, or remove ExecStart= there. Then run this again."
    )]
    Overridden(String),
    /// Two at once would get in each other's way.
    #[error("another iam-kms-wrapper setup is running")]
    Busy,
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program of the system failed.
    #[error("{program} failed: {why}")]
    Program {
        /// With its arguments.
        program: String,
        /// What it said.
        why: String,
    },
    /// The terminal or standard input cannot be read or written.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    /// The files are in place, but the server would not start.
    #[error(
        "the files are written, but the preflight check FAILED\nFix what it reports, then run this again."
    )]
    Preflight,
}

impl SetupError {
    /// For `map_err`.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
