//! What proves which data key is which, without giving anything of the key away.

use core::fmt;
use core::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::PlaintextKey;

/// Length of a check value in bytes.
pub const CHECK_VALUE_BYTES: usize = 16;

const INFO: &[u8] = b"aws-kms-key check v1";

/// The check value of a data key: the first 16 bytes of HKDF-Expand with SHA-256 (RFC 5869,
/// section 2.3), with the data key as its pseudorandom key. It may be published.
///
/// It is no output of AES under the data key: MariaDB's page keys are such outputs, and so is the hash
/// key of GCM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckValue([u8; CHECK_VALUE_BYTES]);

/// A text that is no check value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a check value has 32 hexadecimal digits, in lower case")]
pub struct InvalidCheckValue;

impl CheckValue {
    /// Computes the check value of `key`.
    pub fn of(key: &PlaintextKey) -> Self {
        // The one block of HKDF-Expand that 16 bytes take: HMAC(key, info || 1). The crate `hkdf` refuses
        // keys that are shorter than the hash, as AES's are.
        let mut check = [0; CHECK_VALUE_BYTES];
        // HMAC takes a key of any length.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose()) {
            mac.update(INFO);
            mac.update(&[1]);
            let block = mac.finalize().into_bytes();
            for (to, from) in check.iter_mut().zip(block) {
                *to = from;
            }
        }
        Self(check)
    }

    /// Takes the bytes that [`Self::to_bytes`] gave.
    pub const fn from_bytes(bytes: [u8; CHECK_VALUE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn to_bytes(self) -> [u8; CHECK_VALUE_BYTES] {
        self.0
    }
}

impl fmt::Display for CheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for CheckValue {
    type Err = InvalidCheckValue;

    fn from_str(text: &str) -> Result<Self, InvalidCheckValue> {
        let is_plain = text.len() == 2 * CHECK_VALUE_BYTES
            && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(number) if is_plain => Ok(Self(number.to_be_bytes())),
            _ => Err(InvalidCheckValue),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of keys with the bytes 100, 101, 102 and so on, from OpenSSL 3.0:
    /// `openssl kdf -keylen 16 -kdfopt digest:SHA256 -kdfopt mode:EXPAND_ONLY -kdfopt hexkey:646566…
    /// -kdfopt 'info:aws-kms-key check v1' HKDF`.
    #[test]
    fn a_check_value_is_what_openssl_computes() {
        for (length, expected) in [
            (16, "ec295944088bb48a2b72e199fc731604"),
            (24, "c4f4aa3908362b0718f2f74deacc9611"),
            (32, "3f70a4dc543818dfde56a8c82639f6f6"),
        ] {
            let bytes: Vec<u8> = (100..100 + length).collect();
            let check = CheckValue::of(&PlaintextKey::new(&bytes).unwrap());
            assert_eq!(check.to_string(), expected, "{length}");
        }
    }

    #[test]
    fn only_32_lower_case_digits_are_read_back() {
        let text = "00112233445566778899aabbccddeeff";
        let check = text.parse::<CheckValue>().unwrap();
        assert_eq!(check.to_string(), text);
        assert_eq!(check.to_bytes(), core::array::from_fn(|i| i as u8 * 0x11));
        assert_eq!(CheckValue::from_bytes(check.to_bytes()), check);
        for wrong in [
            "",
            "0",
            &text[1..],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replace('0', "g"),
        ] {
            assert_eq!(
                wrong.parse::<CheckValue>(),
                Err(InvalidCheckValue),
                "{wrong}"
            );
        }
    }
}
