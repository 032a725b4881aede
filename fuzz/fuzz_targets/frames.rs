//! Frames between plugin and broker: whatever comes, it is refused or a message that goes out and
//! comes back the same.

#![no_main]

use broker_api::{
    MAX_FRAME_BYTES, PROTOCOL_VERSION, Reply, Request, read_frame_of, version1, write_frame_of,
};
use libfuzzer_sys::fuzz_target;

/// The header that belongs to `body`, and the body.
fn framed(version: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&[version], &length.to_le_bytes()[..], body].concat()
}

macro_rules! check {
    ($version:expr, $message:ty, $wire:expr) => {
        let mut wire: &[u8] = $wire;
        if let Ok(message) = read_frame_of::<$message>($version, &mut wire) {
            let mut again = Vec::new();
            write_frame_of($version, &mut again, &message).unwrap();
            assert!(again.len() <= 5 + MAX_FRAME_BYTES);
            assert_eq!(
                read_frame_of::<$message>($version, &mut again.as_slice()).unwrap(),
                message
            );
        }
    };
}

fuzz_target!(|data: &[u8]| {
    check!(PROTOCOL_VERSION, Request, data);
    check!(PROTOCOL_VERSION, Reply, data);
    let current = framed(PROTOCOL_VERSION, data);
    check!(PROTOCOL_VERSION, Request, &current);
    check!(PROTOCOL_VERSION, Reply, &current);
    let old = framed(version1::PROTOCOL_VERSION, data);
    check!(version1::PROTOCOL_VERSION, version1::Request, &old);
    check!(version1::PROTOCOL_VERSION, version1::Reply, &old);
});
