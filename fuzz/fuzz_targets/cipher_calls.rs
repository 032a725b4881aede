//! Makes the calls of the cipher contract in any order, with any lengths and flags. Each must return a result or an
//! error, and must write no more bytes than the contract reserves room for.

#![no_main]

mod plugin;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use plugin::{BLOCK_BYTES, CBC, CTR, Context};

#[derive(Debug, Arbitrary)]
enum Call {
    Init {
        key: Vec<u8>,
        iv: Vec<u8>,
        flags: i32,
        ctr: bool,
    },
    InitAsTheServer {
        key: [u8; 16],
        iv: [u8; 16],
        flags: u8,
        ctr: bool,
    },
    Update(Vec<u8>),
    UpdateInPlace(Vec<u8>),
    Finish,
}

fn version(ctr: bool) -> u32 {
    if ctr { CTR } else { CBC }
}

fuzz_target!(|calls: (u8, Vec<Call>)| {
    let (misalignment, calls) = calls;
    let mut context = Context::new(CBC, misalignment.into());
    let mut is_live = false;
    for call in calls {
        match call {
            Call::Init {
                key,
                iv,
                flags,
                ctr,
            } => {
                let code = context.init(&key, &iv, flags, version(ctr));
                is_live = code == 0;
                assert_eq!(is_live, [16, 24, 32].contains(&key.len()) && iv.len() == 16);
            }
            Call::InitAsTheServer {
                key,
                iv,
                flags,
                ctr,
            } => {
                assert_eq!(
                    context.init(&key, &iv, i32::from(flags & 3), version(ctr)),
                    0
                );
                is_live = true;
            }
            Call::Update(data) => {
                let room = data.len() + BLOCK_BYTES;
                let source = data.into_boxed_slice();
                let mut destination = vec![0; room].into_boxed_slice();
                // SAFETY: there is as much room as the contract demands.
                let result = unsafe {
                    context.update(source.as_ptr(), source.len(), destination.as_mut_ptr())
                };
                assert!(result.is_err() || is_live);
                assert!(result.is_ok_and(|written| written <= room) || result.is_err());
            }
            Call::UpdateInPlace(mut data) => {
                let bytes = data.len();
                data.resize(bytes + BLOCK_BYTES, 0);
                let mut region = data.into_boxed_slice();
                let start = region.as_mut_ptr();
                // SAFETY: there is as much room as the contract demands; source and destination start together.
                let result = unsafe { context.update(start, bytes, start) };
                assert!(result.is_err() || is_live);
            }
            Call::Finish => {
                let mut destination = Box::new([0; BLOCK_BYTES]);
                // SAFETY: there is room for one block.
                let result = unsafe { context.finish(destination.as_mut_ptr()) };
                assert!(result.is_err() || is_live);
                is_live = false;
            }
        }
    }
});
