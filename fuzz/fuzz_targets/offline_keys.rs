//! Key files as `file_key_management` has them: what is read is written back the same, whatever the
//! keys encrypt with that do not say it; and nothing that looks encrypted does harm.

#![no_main]

use key_files::key_name::Algorithm;
use libfuzzer_sys::fuzz_target;
use offline_keys::derivation::{Derivation, Digest};
use offline_keys::envelope::Envelope;
use offline_keys::password::Password;
use offline_keys::text::{Form, format, parse};

fuzz_target!(|data: &[u8]| {
    if let Ok(keys) = parse(data, Algorithm::AesCtr) {
        let text = format(&keys, Form::Community);
        assert!(parse(text.as_bytes(), Algorithm::AesCbc).as_ref() == Ok(&keys));
    }
    if let Ok(password) = Password::new(b"secret".to_vec().into()) {
        let content = [b"Salted__", data].concat();
        if let Ok(envelope) = Envelope::parse(&content) {
            for ((_, digest), pbkdf2_iterations) in Digest::NAMED.into_iter().zip(0..) {
                let derivation = Derivation {
                    digest,
                    pbkdf2_iterations,
                };
                let _ = envelope.open(&password, derivation);
            }
        }
    }
});
