//! The PEM files of one side.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aws_session::{
    config::TlsFiles,
    input_file::{self, InputFileError},
};
use rustls::{Error, RootCertStore, crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use zeroize::Zeroizing;

use crate::certificate::Certificate;

/// Longest file, in bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// Most certificates in a file.
const MAX_CERTIFICATES: usize = 100;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InputFileError,
    },
    /// Everybody can read the private key.
    #[error(
        "the private key {} can be read by every user of this host; run: chmod 0640 {}", path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It does not contain what it should.
    #[error("{} {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl TlsFilesError {
    fn content(path: &Path, why: impl Into<String>) -> Self {
        Self::Content {
            path: path.into(),
            why: why.into(),
        }
    }

    pub(crate) fn authorities(files: &TlsFiles, error: &dyn ToString) -> Self {
        let why = format!("cannot be used: {}", error.to_string());
        Self::content(&files.authorities, why)
    }

    pub(crate) fn identity(files: &TlsFiles, error: &Error) -> Self {
        let certificate = files.certificate.display();
        let why = match error {
            Error::InconsistentKeys(_) => {
                format!("is not the key of the certificate {certificate}")
            }
            error => format!("and {certificate} cannot be used: {error}"),
        };
        Self::content(&files.key, why)
    }
}

/// The content of the three files. Two of them are equal if nothing has changed.
#[derive(PartialEq, Eq)]
pub struct Content {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    authorities: Vec<u8>,
}

impl Content {
    /// Reads the files.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsFilesError> {
        let read = |path: &Path| {
            input_file::read(path, MAX_BYTES).map_err(|source| TlsFilesError::Read {
                path: path.into(),
                source,
            })
        };
        let mode = fs::metadata(&files.key).map(|metadata| metadata.mode());
        match mode {
            Ok(mode) if mode & 0o007 != 0 => {
                return Err(TlsFilesError::Exposed {
                    path: files.key.clone(),
                });
            }
            // Reading it names the reason.
            Ok(_) | Err(_) => {}
        }
        Ok(Self {
            certificate: read(&files.certificate)?.to_vec(),
            key: read(&files.key)?,
            authorities: read(&files.authorities)?.to_vec(),
        })
    }

    /// The certificates and the key of this side.
    pub(crate) fn identity(
        &self,
        files: &TlsFiles,
        provider: &CryptoProvider,
    ) -> Result<
        (
            Vec<CertificateDer<'static>>,
            PrivateKeyDer<'static>,
            Certificate,
        ),
        TlsFilesError,
    > {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| {
            let why = match error {
                pem::Error::NoItemsFound => "contains no private key in PEM form".into(),
                _ => "contains a damaged private key".to_owned(),
            };
            TlsFilesError::content(&files.key, why)
        })?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), provider)
            .map_err(|error| TlsFilesError::identity(files, &error))?;
        let certificate = Certificate::with_chain(&chain).map_err(|error| {
            TlsFilesError::content(&files.certificate, format!("is invalid: {error}"))
        })?;
        let certificate = certificate.ok_or_else(|| none(&files.certificate))?;
        Ok((chain, key, certificate))
    }

    /// The authorities of the other side.
    pub(crate) fn authorities(&self, files: &TlsFiles) -> Result<RootCertStore, TlsFilesError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.authorities, &self.authorities)? {
            roots
                .add(certificate)
                .map_err(|error| TlsFilesError::authorities(files, &error))?;
        }
        Ok(roots)
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem)
        .take(MAX_CERTIFICATES + 1)
        .collect();
    match found {
        Ok(found) if found.len() > MAX_CERTIFICATES => Err(TlsFilesError::content(
            path,
            format!("contains more than {MAX_CERTIFICATES} certificates"),
        )),
        Ok(found) if found.is_empty() => Err(none(path)),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsFilesError::content(path, format!("is damaged: {error}"))),
    }
}

fn none(path: &Path) -> TlsFilesError {
    TlsFilesError::content(path, "contains no certificate in PEM form")
}
