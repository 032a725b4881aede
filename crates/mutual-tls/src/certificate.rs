//! What a certificate says that rustls does not tell.

use rustls_pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// Most names of a certificate that are read.
const MAX_NAMES: usize = 100;

/// The names in a certificate, and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The DNS names, in lower case, and the URIs among its subject alternative names. Nothing else in it is a name of a
    /// host, above all not its subject. A name here has a colon exactly if it is a URI.
    pub names: Vec<String>,
    /// The e-mail addresses among its subject alternative names, which name persons. Each has an `@`, and no colon.
    pub email_addresses: Vec<String>,
    /// Its end, in seconds since 1970-01-01 UTC.
    pub not_after_unix_seconds: i64,
}

/// The data is not an X.509 certificate.
#[derive(Debug, thiserror::Error)]
#[error("the certificate cannot be read: {0}")]
pub struct CertificateFormatError(String);

impl Certificate {
    /// Reads the first of these certificates, which is that of this side, and lets it end with its chain: the other side
    /// refuses it as soon as an authority has expired that it needs. Which of them it knows itself is not known here.
    pub(crate) fn with_chain(
        chain: &[CertificateDer<'_>],
    ) -> Result<Option<Self>, CertificateFormatError> {
        let Some((leaf, others)) = chain.split_first() else {
            return Ok(None);
        };
        let mut certificate = Self::parse(leaf)?;
        // The other side takes an authority that has issued its own certificate from its own file only.
        let links = others.iter().filter_map(Link::parse);
        let mut links: Vec<_> = links.filter(|it| it.subject != it.issuer).collect();
        let mut issuer = Link::parse(leaf).map(|it| it.issuer);
        // A name may have several certificates, such as an old one and a new one.
        while let Some((index, link)) = links
            .iter()
            .enumerate()
            .filter(|(_, it)| Some(&it.subject) == issuer.as_ref())
            .max_by_key(|(_, it)| it.not_after_unix_seconds)
        {
            let end = &mut certificate.not_after_unix_seconds;
            *end = link.not_after_unix_seconds.min(*end);
            issuer = Some(links.swap_remove(index).issuer);
        }
        Ok(Some(certificate))
    }

    /// Reads a certificate, whatever its signature.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateFormatError> {
        let failed = |error: &dyn ToString| CertificateFormatError(error.to_string());
        let (_, certificate) = parse_x509_certificate(der).map_err(|error| failed(&error))?;
        let extension = certificate
            .subject_alternative_name()
            .map_err(|error| failed(&error))?;
        let (mut names, mut email_addresses) = (Vec::new(), Vec::new());
        let general_names = extension
            .iter()
            .flat_map(|extension| &extension.value.general_names);
        for name in general_names.take(MAX_NAMES) {
            // What looks like a name of another kind is none: an authority may be allowed to issue names of some kinds
            // only, and the names are compared without their kinds.
            match name {
                GeneralName::DNSName(name) if !name.contains([':', '@']) => {
                    names.push(name.to_ascii_lowercase());
                }
                GeneralName::URI(uri) if uri.contains(':') => names.push((*uri).to_owned()),
                GeneralName::RFC822Name(address)
                    if address.contains('@') && !address.contains(':') =>
                {
                    email_addresses.push((*address).to_owned());
                }
                _ => {}
            }
        }
        Ok(Self {
            names,
            email_addresses,
            not_after_unix_seconds: certificate.validity().not_after.timestamp(),
        })
    }
}

/// A certificate as part of a chain, with its names in DER.
struct Link {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    not_after_unix_seconds: i64,
}

impl Link {
    /// `None`: it cannot be read, and is left to rustls.
    fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(der).ok()?;
        Some(Self {
            subject: certificate.subject().as_raw().into(),
            issuer: certificate.issuer().as_raw().into(),
            not_after_unix_seconds: certificate.validity().not_after.timestamp(),
        })
    }
}
