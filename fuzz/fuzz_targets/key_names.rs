//! Names of files in the key file directory: one that is a key file's is written back the same, and
//! no file in the making looks like one.

#![no_main]

use key_files::key_name::{KeyName, ParsedName, is_valid_number};
use libfuzzer_sys::fuzz_target;

fn check(name: &[u8]) {
    match KeyName::parse(name) {
        ParsedName::Key(key) => {
            assert!(is_valid_number(key.id) && is_valid_number(key.version));
            assert_eq!(key.to_string().as_bytes(), name);
            assert_eq!(KeyName::parse(format!(".{key}.0.new").as_bytes()), ParsedName::Temporary);
        }
        ParsedName::Malformed => assert!(name.starts_with(b"aws-kms-key.")),
        ParsedName::Temporary => assert!(!name.starts_with(b"aws-kms-key")),
        ParsedName::Other => assert!(!name.starts_with(b"aws-kms-key.")),
    }
}

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&[b"aws-kms-key.", data].concat());
});
