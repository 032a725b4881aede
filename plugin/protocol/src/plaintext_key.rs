//! A data key in the clear.

use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use zeroize::{Zeroize, ZeroizeOnDrop};

const MAX_KEY_BYTES: usize = 32;

/// A data key in the clear: 16, 24 or 32 bytes for AES. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Zeroize, ZeroizeOnDrop)]
pub struct PlaintextKey {
    length_bytes: u8,
    padded: [u8; MAX_KEY_BYTES],
}

/// A key length that AES does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data key of {0} bytes: AES takes 16, 24 or 32")]
pub struct InvalidKeyLength(
    /// The length in bytes.
    pub usize,
);

impl PlaintextKey {
    /// Copies `bytes` (16, 24 or 32 of them). Wiping the original is the caller's part.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidKeyLength> {
        let length_bytes = match bytes.len() {
            16 => 16,
            24 => 24,
            32 => 32,
            other => return Err(InvalidKeyLength(other)),
        };
        let mut key = Self {
            length_bytes,
            padded: [0; MAX_KEY_BYTES],
        };
        for (to, from) in key.padded.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(key)
    }

    /// The key itself: 16, 24 or 32 bytes.
    pub fn expose(&self) -> &[u8] {
        self.padded
            .get(..usize::from(self.length_bytes))
            .unwrap_or(&self.padded)
    }
}

impl fmt::Debug for PlaintextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlaintextKey({} bytes)", self.length_bytes)
    }
}

impl<'de> Deserialize<'de> for PlaintextKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
        struct Wire {
            length_bytes: u8,
            padded: [u8; MAX_KEY_BYTES],
        }
        let wire = Wire::deserialize(deserializer)?;
        wire.padded
            .get(..usize::from(wire.length_bytes))
            .ok_or(InvalidKeyLength(usize::from(wire.length_bytes)))
            .and_then(Self::new)
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_aes_lengths_are_keys() {
        for length in 0..=64 {
            let made = PlaintextKey::new(&vec![7; length]);
            assert_eq!(made.is_ok(), [16, 24, 32].contains(&length), "{length}");
        }
    }

    #[test]
    fn debug_shows_the_length_and_nothing_else() {
        let key = PlaintextKey::new(&[0xab; 16]).unwrap();
        assert_eq!(format!("{key:?}"), "PlaintextKey(16 bytes)");
    }

    #[test]
    fn a_wrong_length_on_the_wire_is_an_error() {
        let mut wire = postcard::to_allocvec(&PlaintextKey::new(&[1; 32]).unwrap()).unwrap();
        assert!(postcard::from_bytes::<PlaintextKey>(&wire).is_ok());
        for length in [0, 15, 33, 255] {
            wire[0] = length;
            assert!(
                postcard::from_bytes::<PlaintextKey>(&wire).is_err(),
                "{length}"
            );
        }
    }
}
