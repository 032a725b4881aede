//! Frames between plugin and broker: whatever comes, it is refused or a message that goes out and
//! comes back the same.

#![no_main]

use broker_api::{MAX_FRAME_BYTES, Reply, Request, read_frame, write_frame};
use libfuzzer_sys::fuzz_target;

/// The header that belongs to `body`, and the body.
fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&[1], &length.to_le_bytes()[..], body].concat()
}

macro_rules! check {
    ($message:ty, $wire:expr) => {
        let mut wire: &[u8] = $wire;
        if let Ok(message) = read_frame::<$message>(&mut wire) {
            let mut again = Vec::new();
            write_frame(&mut again, &message).unwrap();
            assert!(again.len() <= 5 + MAX_FRAME_BYTES);
            assert_eq!(
                read_frame::<$message>(&mut again.as_slice()).unwrap(),
                message
            );
        }
    };
}

fuzz_target!(|data: &[u8]| {
    check!(Request, data);
    check!(Reply, data);
    let framed = framed(data);
    check!(Request, &framed);
    check!(Reply, &framed);
});
