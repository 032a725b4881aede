//! Key files as `file_key_management` has them: what is read is written back the same, whatever the
//! keys encrypt with that do not say it; and nothing that looks encrypted does harm.

#![no_main]

use key_store::key_name::Algorithm;
use libfuzzer_sys::fuzz_target;
use offline_keys::envelope;
use offline_keys::password::Password;
use offline_keys::text::{format, parse};

const ITERATIONS: u32 = 3;

fuzz_target!(|data: &[u8]| {
    if let Ok(keys) = parse(data, Algorithm::AesCtr) {
        let text = format(&keys);
        assert!(parse(text.as_bytes(), Algorithm::AesCbc).as_ref() == Ok(&keys));
    }
    if let Ok(password) = Password::new(b"secret".to_vec().into()) {
        let _ = envelope::open(&[b"Salted__", data].concat(), &password, ITERATIONS);
    }
});
