//! A data key in the clear.

use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// A data key in the clear: 16, 24 or 32 bytes for AES. Wiped when dropped, never printed.
///
/// It lies on the heap from the first moment, because whoever moves a value leaves its bytes behind
/// on the stack.
#[derive(Clone, PartialEq, Eq)]
pub struct PlaintextKey(Zeroizing<Vec<u8>>);

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
        match bytes.len() {
            16 | 24 | 32 => Ok(Self(Zeroizing::new(bytes.to_vec()))),
            other => Err(InvalidKeyLength(other)),
        }
    }

    /// The key itself: 16, 24 or 32 bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Its length: 128, 192 or 256.
    pub fn bits(&self) -> u16 {
        u16::try_from(self.0.len() * 8).unwrap_or_default()
    }
}

impl fmt::Debug for PlaintextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlaintextKey({} bytes)", self.0.len())
    }
}

impl Serialize for PlaintextKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.expose())
    }
}

impl<'de> Deserialize<'de> for PlaintextKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        Self::new(bytes).map_err(de::Error::custom)
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
        let key = PlaintextKey::new(&[1; 32]).unwrap();
        let wire = postcard::to_allocvec(&key).unwrap();
        assert_eq!(postcard::from_bytes(&wire), Ok(key));
        for length in [0, 15, 33, 255] {
            let wire = postcard::to_allocvec(&vec![1_u8; length]).unwrap();
            assert!(
                postcard::from_bytes::<PlaintextKey>(&wire).is_err(),
                "{length}"
            );
        }
    }
}
