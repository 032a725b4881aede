//! The key manifest: what is read is written back the same, whatever a file holds.

#![no_main]

use key_files::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::parse(data);
    // The checksum would keep most inputs from getting any further.
    let lines = [b"aws-kms-keys 1\n", data, b"\n"].concat();
    if let Ok(lines) = String::from_utf8(lines)
        && let Ok(manifest) = Manifest::parse(Manifest::with_checksum(&lines).as_bytes())
    {
        assert_eq!(Manifest::parse(manifest.format().as_bytes()), Ok(manifest));
    }
});
