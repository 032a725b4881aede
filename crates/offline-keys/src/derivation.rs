//! Derives the key and IV of AES-256-CBC from a password, as file_key_management and `openssl enc` do.
//!
//! Sources: EVP_BytesToKey(3), openssl-enc(1), RFC 8018 (PBKDF2), MariaDB's manual on
//! `file_key_management_digest` and `file_key_management_use_pbkdf2`.

use std::fmt;

use pbkdf2::pbkdf2_hmac;
use sha1::Sha1;
use sha2::digest::{self, FixedOutputReset};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::password::Password;

/// Length of the salt in bytes.
pub const SALT_BYTES: usize = 8;
/// Length of the AES-256 key in bytes.
pub const KEY_BYTES: usize = 32;
/// Length of the IV in bytes.
pub const IV_BYTES: usize = 16;

/// A salt.
pub type Salt = [u8; SALT_BYTES];
/// The key, followed by the IV.
pub type KeyAndIv = Zeroizing<[u8; KEY_BYTES + IV_BYTES]>;

/// A hash function: the values of `file_key_management_digest`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Digest {
    #[default]
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Digest {
    /// The server's name of each, in the order of its enumeration.
    pub const NAMED: [(&str, Self); 5] = [
        ("sha1", Self::Sha1),
        ("sha224", Self::Sha224),
        ("sha256", Self::Sha256),
        ("sha384", Self::Sha384),
        ("sha512", Self::Sha512),
    ];
}

impl fmt::Display for Digest {
    /// Writes the server's name of the digest.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, digest)| digest == self);
        formatter.write_str(named.map_or("", |(name, _)| name))
    }
}

/// How the key of a file is derived from its password. The default is the server's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Derivation {
    /// `file_key_management_digest`, `openssl enc -md`.
    pub digest: Digest,
    /// `file_key_management_use_pbkdf2`, `openssl enc -pbkdf2 -iter`: number of iterations of
    /// PBKDF2. 0 means EVP_BytesToKey with one iteration, which makes a weak password easy to guess. Before
    /// MariaDB 12.0.1, file_key_management supports nothing else, and only with SHA-1.
    pub pbkdf2_iterations: u32,
}

impl Derivation {
    /// Derives key and IV. The time is proportional to the iterations: a million take about half a second.
    pub fn derive(self, password: &Password, salt: &Salt) -> KeyAndIv {
        let derive = match self.digest {
            Digest::Sha1 => derive::<Sha1>,
            Digest::Sha224 => derive::<Sha224>,
            Digest::Sha256 => derive::<Sha256>,
            Digest::Sha384 => derive::<Sha384>,
            Digest::Sha512 => derive::<Sha512>,
        };
        derive(password, salt, self.pbkdf2_iterations)
    }
}

fn derive<D>(password: &Password, salt: &Salt, pbkdf2_iterations: u32) -> KeyAndIv
where
    D: hmac::EagerHash + digest::Digest + FixedOutputReset,
{
    let mut derived = Zeroizing::new([0; KEY_BYTES + IV_BYTES]);
    match pbkdf2_iterations {
        0 => bytes_to_key::<D>(password, salt, &mut *derived),
        iterations => pbkdf2_hmac::<D>(password.expose(), salt, iterations, &mut *derived),
    }
    derived
}

/// EVP_BytesToKey with one iteration: hashes the previous hash, the password and the salt until there are enough
/// bytes.
fn bytes_to_key<D>(password: &Password, salt: &Salt, derived: &mut [u8])
where
    D: digest::Digest + FixedOutputReset,
{
    let mut hash = digest::Output::<D>::default();
    let mut digest = D::new();
    for chunk in derived.chunks_mut(hash.len()) {
        digest::Digest::update(&mut digest, password.expose());
        digest::Digest::update(&mut digest, salt);
        digest::Digest::finalize_into_reset(&mut digest, &mut hash);
        chunk
            .iter_mut()
            .zip(&hash)
            .for_each(|(to, from)| *to = *from);
        digest::Digest::update(&mut digest, &hash);
    }
    hash.zeroize();
}
