//! From a password to the key and IV of AES-256-CBC, in all the ways that file_key_management and
//! `openssl enc` have.
//!
//! Sources: EVP_BytesToKey(3), openssl-enc(1), RFC 8018 (PBKDF2).

use hmac::digest::{Digest, FixedOutput, FixedOutputReset, Output as Hash, OutputSizeUser};
use hmac::{EagerHash, Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::password::Password;

/// Length of the salt in bytes.
pub const SALT_BYTES: usize = 8;
/// Length of the AES-256 key in bytes.
pub const KEY_BYTES: usize = 32;
/// Length of the IV in bytes.
pub const IV_BYTES: usize = 16;
/// More iterations of PBKDF2 are not looked for: with a wrong password, a server that starts comes by
/// all of them, in a second or several.
pub const MAX_ITERATIONS: u32 = 200_000;

/// A salt.
pub type Salt = [u8; SALT_BYTES];
/// Key and IV, one after the other.
pub type KeyAndIv = Zeroizing<[u8; KEY_BYTES + IV_BYTES]>;

/// How a file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Derivation {
    /// EVP_BytesToKey with SHA-1 and one iteration: `openssl enc -md sha1`. Every
    /// file_key_management reads it. A weak password is soon found out.
    Sha1,
    /// PBKDF2 with HMAC-SHA-256: `openssl enc -pbkdf2 -iter`. file_key_management reads it since
    /// MariaDB 12.0.
    Pbkdf2 {
        /// How often, 1 to [`MAX_ITERATIONS`].
        iterations: u32,
    },
}

/// Derives key and IV. `None` never happens: HMAC takes a password of any length.
pub fn derive(derivation: Derivation, password: &Password, salt: &Salt) -> Option<KeyAndIv> {
    match derivation {
        Derivation::Sha1 => Some(bytes_to_key::<Sha1>(password, salt)),
        Derivation::Pbkdf2 { iterations } => {
            let mut pbkdf2 = pbkdf2::<Sha256>(password, salt)?;
            for _ in 1..iterations {
                pbkdf2.iterate();
            }
            Some(pbkdf2.key_and_iv())
        }
    }
}

/// Derives in every way until one suits: nothing in a file tells which it is. PBKDF2 comes by each
/// number of iterations on its way to the next, so that this need not be known either.
pub fn search<T>(
    password: &Password,
    salt: &Salt,
    max_iterations: u32,
    mut suits: impl FnMut(&KeyAndIv) -> Option<T>,
) -> Option<T> {
    let once = [
        bytes_to_key::<Sha1>,
        bytes_to_key::<Sha224>,
        bytes_to_key::<Sha256>,
        bytes_to_key::<Sha384>,
        bytes_to_key::<Sha512>,
    ];
    let found = once
        .iter()
        .find_map(|derive| suits(&derive(password, salt)));
    if found.is_some() {
        return found;
    }
    let mut iterated = [
        pbkdf2::<Sha1>(password, salt)?,
        pbkdf2::<Sha224>(password, salt)?,
        pbkdf2::<Sha256>(password, salt)?,
        pbkdf2::<Sha384>(password, salt)?,
        pbkdf2::<Sha512>(password, salt)?,
    ];
    (0..max_iterations).find_map(|_| {
        iterated.iter_mut().find_map(|pbkdf2| {
            let found = suits(&pbkdf2.key_and_iv());
            pbkdf2.iterate();
            found
        })
    })
}

/// What hashes give, one after the other, until there is enough of it.
struct Derived {
    bytes: KeyAndIv,
    filled: usize,
}

impl Derived {
    fn new() -> Self {
        Self {
            bytes: Zeroizing::new([0; KEY_BYTES + IV_BYTES]),
            filled: 0,
        }
    }

    fn push(&mut self, hash: &[u8]) {
        let room = self.bytes.iter_mut().skip(self.filled);
        room.zip(hash).for_each(|(to, from)| *to = *from);
        self.filled += hash.len();
    }

    fn is_full(&self) -> bool {
        self.filled >= self.bytes.len()
    }
}

/// EVP_BytesToKey with one iteration: hashes of the hash before, the password and the salt.
fn bytes_to_key<D: Digest + FixedOutputReset>(password: &Password, salt: &Salt) -> KeyAndIv {
    let mut derived = Derived::new();
    let mut hash = Hash::<D>::default();
    let mut digest = D::new();
    while !derived.is_full() {
        Digest::update(&mut digest, password.expose());
        Digest::update(&mut digest, salt);
        Digest::finalize_into_reset(&mut digest, &mut hash);
        derived.push(&hash);
        Digest::update(&mut digest, &hash);
    }
    hash.zeroize();
    derived.bytes
}

/// PBKDF2 on its way through the iterations.
trait Iterated {
    fn iterate(&mut self);
    /// What it gives with the iterations so far.
    fn key_and_iv(&self) -> KeyAndIv;
}

struct Pbkdf2<D: Mac> {
    /// HMAC with the password.
    mac: D,
    blocks: Vec<Block<D>>,
}

/// Names as in RFC 8018.
struct Block<D: Mac> {
    /// The last U.
    last: Hash<D>,
    /// T so far.
    sum: Hash<D>,
}

/// After the first iteration.
fn pbkdf2<D>(password: &Password, salt: &Salt) -> Option<Box<dyn Iterated>>
where
    D: EagerHash,
    Hmac<D>: Mac + FixedOutput + Clone + KeyInit + 'static,
{
    let mac = <Hmac<D> as KeyInit>::new_from_slice(password.expose()).ok()?;
    let count = (KEY_BYTES + IV_BYTES).div_ceil(<Hmac<D> as OutputSizeUser>::output_size());
    let blocks = (1_u32..).take(count).map(|number| {
        let mut mac = mac.clone();
        Mac::update(&mut mac, salt);
        Mac::update(&mut mac, &number.to_be_bytes());
        let first = mac.finalize_fixed();
        Block {
            last: first.clone(),
            sum: first,
        }
    });
    Some(Box::new(Pbkdf2 {
        blocks: blocks.collect(),
        mac,
    }))
}

impl<D: Mac + FixedOutput + Clone> Iterated for Pbkdf2<D> {
    fn iterate(&mut self) {
        for Block { last, sum } in &mut self.blocks {
            let mut mac = self.mac.clone();
            Mac::update(&mut mac, last);
            FixedOutput::finalize_into(mac, last);
            sum.iter_mut()
                .zip(last.iter())
                .for_each(|(sum, last)| *sum ^= last);
        }
    }

    fn key_and_iv(&self) -> KeyAndIv {
        let mut derived = Derived::new();
        for block in &self.blocks {
            derived.push(&block.sum);
        }
        derived.bytes
    }
}

impl<D: Mac> Drop for Block<D> {
    fn drop(&mut self) {
        self.last.zeroize();
        self.sum.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password() -> Password {
        Password::new(Zeroizing::new(b"secret".to_vec())).unwrap()
    }

    #[test]
    fn every_way_is_found_with_its_number_of_iterations() {
        let salt = [7; SALT_BYTES];
        for derivation in [
            Derivation::Sha1,
            Derivation::Pbkdf2 { iterations: 1 },
            Derivation::Pbkdf2 { iterations: 1000 },
        ] {
            let wanted = derive(derivation, &password(), &salt).unwrap();
            let suits = |found: &KeyAndIv| (*found == wanted).then_some(());
            assert!(search(&password(), &salt, 1000, suits).is_some());
        }
        let wanted = derive(Derivation::Pbkdf2 { iterations: 11 }, &password(), &salt).unwrap();
        let suits = |found: &KeyAndIv| (*found == wanted).then_some(());
        assert!(search(&password(), &salt, 10, suits).is_none());
    }
}
