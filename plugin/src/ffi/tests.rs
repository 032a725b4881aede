//! Calls the functions as the server does, on a plugin that is started once for all these tests.

use core::cell::RefCell;
use core::ffi::{c_int, c_longlong, c_uint, c_void};
use core::mem::MaybeUninit;
use core::ptr::{null, null_mut};
use std::fs;
use std::sync::Once;

use key_files::key_name::Algorithm;
use proptest::prelude::*;

use super::crypt::*;
use super::keys::*;
use crate::abi::*;
use crate::plugin;
use crate::settings::GLOBAL_SETTINGS;
use crate::test_broker::{honest, settings, wrapped};

/// Starts the plugin with AES_CBC as version 1 of key 1, AES_CTR as version 2, and 32 bytes as key 3.
fn start() {
    static STARTED: Once = Once::new();
    // Once the plugin has started, it needs neither socket nor key files.
    STARTED.call_once(|| {
        let (broker, directory) = (honest(), tempfile::tempdir().unwrap());
        for (name, key) in [
            ("1.1", [1; 16].as_slice()),
            ("1.2.ctr", &[2; 16]),
            ("3.1", &[3; 32]),
        ] {
            fs::write(
                directory.path().join(format!("aws-kms-key.{name}")),
                wrapped(key),
            )
            .unwrap();
        }
        assert!(plugin::start(settings(&broker, directory.path())));
    });
}

const IV: [u8; 16] = [9; 16];
const CBC: c_uint = 1;
const CTR: c_uint = 2;

/// Does what `encryption_crypt` of `service_encryption.h` does: lengths start uninitialised, and the context lies
/// at any address.
fn server_crypt(
    source: &[u8],
    destination: *mut u8,
    flags: c_int,
    version: c_uint,
    misalignment: usize,
) -> Result<usize, c_int> {
    let mut memory = vec![0xa5u8; crypt_ctx_size(1, version) as usize + misalignment];
    let context: *mut c_void = memory[misalignment..].as_mut_ptr().cast();
    let (mut d1, mut d2) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the context and both buffers are as long as the functions demand.
    unsafe {
        let key = [version as u8; 16];
        let (key, iv) = (key.as_ptr(), IV.as_ptr());
        match crypt_ctx_init(context, key, 16, iv, 16, flags, 1, version) {
            AES_OK => {}
            code => return Err(code),
        }
        let length = source.len() as c_uint;
        let updated = crypt_ctx_update(
            context,
            source.as_ptr(),
            length,
            destination,
            d1.as_mut_ptr(),
        );
        let end = destination.wrapping_add(d1.assume_init() as usize);
        let finished = crypt_ctx_finish(context, end, d2.as_mut_ptr());
        match (updated, finished) {
            (AES_OK, AES_OK) => Ok((d1.assume_init() + d2.assume_init()) as usize),
            (AES_OK, code) | (code, _) => Err(code),
        }
    }
}

fn crypt(
    source: &[u8],
    flags: c_int,
    version: c_uint,
    misalignment: usize,
) -> Result<Vec<u8>, c_int> {
    let mut result = vec![0; source.len() + 16];
    let length = server_crypt(source, result.as_mut_ptr(), flags, version, misalignment)?;
    result.truncate(length);
    Ok(result)
}

proptest! {
    #[test]
    fn decryption_reverses_encryption(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        version in CBC..=CTR,
        flags in prop_oneof![Just(0), Just(FLAG_NOPAD)],
        misalignment in 0usize..32,
    ) {
        start();
        let encrypted = crypt(&data, flags | FLAG_ENCRYPT, version, misalignment).unwrap();
        let expected = if flags == FLAG_NOPAD {
            data.len()
        } else {
            encrypted_length(data.len() as c_uint, 1, version) as usize
        };
        prop_assert_eq!(encrypted.len(), expected);
        prop_assert_eq!(crypt(&encrypted, flags, version, misalignment).unwrap(), data);
    }

    #[test]
    fn the_same_buffer_may_be_source_and_destination(
        data in proptest::collection::vec(any::<u8>(), 1..300), version in CBC..=CTR,
    ) {
        start();
        let flags = FLAG_NOPAD | FLAG_ENCRYPT;
        let expected = crypt(&data, flags, version, 0).unwrap();
        let mut buffer = data.clone();
        let pointer = buffer.as_mut_ptr();
        // SAFETY: the slice is the buffer's memory, which only the functions use during the call.
        let source = unsafe { core::slice::from_raw_parts(pointer, data.len()) };
        let length = server_crypt(source, pointer, flags, version, 0).unwrap();
        prop_assert_eq!(length, data.len());
        prop_assert_eq!(buffer, expected);
    }
}

#[test]
fn updates_in_place_like_those_of_the_redo_log_give_the_same_result_as_the_whole() {
    start();
    let data: Vec<u8> = (0..=255).collect();
    let whole = crypt(&data, FLAG_NOPAD | FLAG_ENCRYPT, CTR, 0).unwrap();
    let mut buffer = data;
    let mut context = vec![0u8; CONTEXT_BYTES];
    let context: *mut c_void = context.as_mut_ptr().cast();
    // SAFETY: the context is long enough; each piece lies in the buffer.
    unsafe {
        let flags = FLAG_NOPAD | FLAG_ENCRYPT;
        assert_eq!(
            crypt_ctx_init(
                context,
                [2; 16].as_ptr(),
                16,
                IV.as_ptr(),
                16,
                flags,
                1,
                CTR
            ),
            AES_OK
        );
        let mut start = 0;
        for length in [1, 15, 16, 17, 31, 0, 100, 76] {
            let piece = buffer.as_mut_ptr().add(start);
            let mut written = 99;
            assert_eq!(
                crypt_ctx_update(context, piece, length, piece, &mut written),
                AES_OK
            );
            assert_eq!(written, length);
            start += length as usize;
        }
        let mut written = 99;
        assert_eq!(crypt_ctx_finish(context, null_mut(), &mut written), AES_OK);
        assert_eq!(written, 0);
    }
    assert_eq!(buffer, whole);
}

#[test]
fn wrong_arguments_are_errors() {
    start();
    let mut memory = vec![0u8; CONTEXT_BYTES];
    let context: *mut c_void = memory.as_mut_ptr().cast();
    let (key, iv) = ([1u8; 64], [1u8; 64]);
    let init = |context, key: *const u8, klen, iv: *const u8, ivlen, version| {
        // SAFETY: no length exceeds its array.
        unsafe { crypt_ctx_init(context, key, klen, iv, ivlen, FLAG_ENCRYPT, 1, version) }
    };
    assert_eq!(
        init(null_mut(), key.as_ptr(), 16, iv.as_ptr(), 16, CBC),
        AES_ERROR
    );
    assert_eq!(init(context, null(), 16, iv.as_ptr(), 16, CBC), AES_ERROR);
    assert_eq!(init(context, key.as_ptr(), 16, null(), 16, CBC), AES_ERROR);
    assert_eq!(
        init(context, key.as_ptr(), 15, iv.as_ptr(), 16, CBC),
        AES_BAD_KEYSIZE
    );
    assert_eq!(
        init(context, key.as_ptr(), 16, iv.as_ptr(), 12, CBC),
        AES_ERROR
    );
    assert_eq!(
        init(context, key.as_ptr(), 16, iv.as_ptr(), 16, 99),
        AES_ERROR,
        "no such version"
    );

    let mut length = 99;
    // SAFETY: the context is long enough and not live, so nothing else in it is read.
    unsafe {
        let (source, mut destination) = ([0; 16], [0; 32]);
        let destination = destination.as_mut_ptr();
        assert_eq!(
            crypt_ctx_update(context, source.as_ptr(), 16, destination, &mut length),
            AES_ERROR
        );
        assert_eq!(length, 0, "the length is always set");
        length = 99;
        assert_eq!(
            crypt_ctx_finish(context, destination, &mut length),
            AES_ERROR
        );
        assert_eq!(length, 0);
        assert_eq!(
            crypt_ctx_finish(null_mut(), destination, &mut length),
            AES_ERROR
        );
        assert_eq!(
            crypt_ctx_finish(context, destination, null_mut()),
            AES_ERROR
        );
    }
}

#[test]
fn a_finished_context_is_wiped_and_not_live() {
    start();
    let mut memory = vec![0u8; CONTEXT_BYTES];
    let context: *mut c_void = memory.as_mut_ptr().cast();
    let mut length = 0;
    // SAFETY: the context and the destination are long enough.
    unsafe {
        let mut destination = [0u8; 16];
        let destination = destination.as_mut_ptr();
        assert_eq!(
            crypt_ctx_init(context, [1; 16].as_ptr(), 16, IV.as_ptr(), 16, 1, 1, CBC),
            AES_OK
        );
        assert_eq!(crypt_ctx_finish(context, destination, &mut length), AES_OK);
        assert_eq!(length, 16);
        assert_eq!(
            crypt_ctx_finish(context, destination, &mut length),
            AES_ERROR
        );
    }
    assert!(memory.iter().all(|&byte| byte == 0));
}

#[test]
fn ciphertext_of_another_key_is_bad_data() {
    start();
    let mut encrypted = crypt(b"some data", FLAG_ENCRYPT, CTR, 0).unwrap();
    encrypted[0] ^= 1;
    assert_eq!(crypt(&encrypted, 0, CTR, 0), Err(AES_BAD_DATA));
    assert_eq!(crypt(&[0; 15], 0, CBC, 0), Err(AES_BAD_DATA));
}

#[test]
fn get_key_returns_the_length_and_the_key() {
    start();
    let mut length = 0;
    let mut buffer = [0xeeu8; 40];
    // SAFETY: the buffer has at least as many bytes as `length` says.
    unsafe {
        assert_eq!(get_key(3, 1, null_mut(), &mut length), 0);
        assert_eq!(length, 32);
        length = 31;
        assert_eq!(
            get_key(3, 1, buffer.as_mut_ptr(), &mut length),
            KEY_BUFFER_TOO_SMALL
        );
        assert_eq!((length, buffer), (32, [0xee; 40]));
        length = 40;
        assert_eq!(get_key(3, 1, buffer.as_mut_ptr(), &mut length), 0);
        assert_eq!(length, 32);
        assert_eq!(
            (&buffer[..32], &buffer[32..]),
            (&[3; 32][..], &[0xee; 8][..])
        );
        assert_eq!(
            get_key(3, 9, buffer.as_mut_ptr(), &mut length),
            KEY_VERSION_INVALID
        );
        assert_eq!(get_key(0, 1, null_mut(), &mut length), KEY_VERSION_INVALID);
        assert_eq!(get_key(3, 1, null_mut(), null_mut()), KEY_BUFFER_TOO_SMALL);
    }
}

#[test]
fn the_latest_version_is_the_highest_and_invalid_ids_have_none() {
    start();
    assert_eq!(get_latest_key_version(1), 2);
    assert_eq!(get_latest_key_version(3), 1);
    assert_eq!(get_latest_key_version(0), KEY_VERSION_INVALID);
    assert_eq!(get_latest_key_version(u32::MAX), KEY_VERSION_INVALID);
}

#[test]
fn the_encrypted_length_beyond_32_bits_is_an_error() {
    start();
    assert_eq!(encrypted_length(u32::MAX, 1, CBC), 0);
    assert_eq!(encrypted_length(16, 1, CBC), 32);
    assert_eq!(encrypted_length(17, 1, CTR), 33);
}

#[test]
fn a_panic_becomes_the_error_value() {
    assert_eq!(super::guard(7, || -> i32 { panic!("a bug") }), 7);
}

#[test]
fn set_global_copies_strings_and_indices() {
    let mut shown: *const core::ffi::c_char = null();
    let mut chosen: core::ffi::c_ulong = 0;
    for text in [c"alias/one", c"alias/two"] {
        let value = text.as_ptr();
        // SAFETY: storage and saved value have the variable's type.
        unsafe {
            let storage = (&raw mut shown).cast();
            super::system_variables::update_master_key_id(
                null_mut(),
                null_mut(),
                storage,
                (&raw const value).cast(),
            );
            assert_eq!(core::ffi::CStr::from_ptr(shown), text);
        }
        assert_ne!(shown, value, "the statement's own copy does not last");
        assert_eq!(GLOBAL_SETTINGS.master_key_id(), text.to_str().unwrap());
    }
    let (index, nothing): (core::ffi::c_ulong, *const core::ffi::c_char) = (1, null());
    // SAFETY: storage and saved values are of the variables' types, and NULL is a null pointer.
    unsafe {
        let storage = (&raw mut chosen).cast();
        super::system_variables::update_encryption_algorithm(
            null_mut(),
            null_mut(),
            storage,
            (&raw const index).cast(),
        );
        super::system_variables::update_master_key_id(
            null_mut(),
            null_mut(),
            (&raw mut shown).cast(),
            (&raw const nothing).cast(),
        );
    }
    assert_eq!(chosen, 1);
    assert_eq!(GLOBAL_SETTINGS.algorithm(), Algorithm::AesCtr);
    assert_eq!(GLOBAL_SETTINGS.master_key_id(), "");
}

/// The right side of a SET with one number.
#[repr(C)]
struct Number {
    value: Value,
    kind: c_int,
    number: c_longlong,
}

unsafe extern "C" fn number_kind(value: *mut Value) -> c_int {
    // SAFETY: the tests pass a Number, whose first field is the Value.
    unsafe { (*value.cast::<Number>()).kind }
}

unsafe extern "C" fn number_is_signed(_: *mut Value) -> c_int {
    0
}

unsafe extern "C" fn number_of(value: *mut Value, number: *mut c_longlong) -> c_int {
    // SAFETY: the tests pass a Number, whose first field is the Value, and room for the number.
    unsafe { number.write((*value.cast::<Number>()).number) };
    0
}

unsafe extern "C" fn no_text(
    _: *mut Value,
    _: *mut core::ffi::c_char,
    _: *mut c_int,
) -> *const core::ffi::c_char {
    null()
}

unsafe extern "C" fn no_real(_: *mut Value, _: *mut f64) -> c_int {
    1
}

fn set_rotate_key(kind: c_int, number: c_longlong) -> (c_int, c_int) {
    let mut value = Number {
        value: Value {
            value_type: number_kind,
            val_str: no_text,
            val_real: no_real,
            val_int: number_of,
            is_unsigned: number_is_signed,
        },
        kind,
        number,
    };
    let mut save = [7, 7];
    // SAFETY: a Value as the header declares it, and room for a double.
    let result = unsafe {
        super::system_variables::check_rotate_key(
            null_mut(),
            null_mut(),
            (&raw mut save).cast(),
            (&raw mut value).cast(),
        )
    };
    (result, save[0])
}

#[test]
fn rotate_key_takes_only_ids_and_minus_one_and_shows_0() {
    start();
    for (kind, number) in [
        (0, 1),
        (1, 1),
        (VALUE_TYPE_INT, -2),
        (VALUE_TYPE_INT, u32::MAX.into()),
        (VALUE_TYPE_INT, 1 << 32),
    ] {
        assert_eq!(set_rotate_key(kind, number).0, 1, "{kind} {number}");
    }
    assert_eq!(set_rotate_key(VALUE_TYPE_INT, 0), (0, 0));
    for id in [77, (u32::MAX - 1).into()] {
        assert_eq!(
            set_rotate_key(VALUE_TYPE_INT, id),
            (0, 0),
            "a warning does not fail the statement"
        );
    }
}

#[test]
fn every_status_variable_is_shown_in_the_servers_buffer() {
    start();
    let shown: Vec<_> = super::status_variables::FUNCTIONS
        .iter()
        .map(|function| {
            let mut variable = StatusVariable {
                name: null(),
                value: null_mut(),
                kind: -1,
            };
            let mut buffer = [0xeeu8; SHOW_BUFFER_BYTES];
            let address: *mut c_void = buffer.as_mut_ptr().cast();
            // SAFETY: the buffer is as long as the shortest one of a server.
            let result = unsafe { function(null_mut(), &raw mut variable, address, null_mut(), 0) };
            assert_eq!((result, variable.value), (0, address));
            match variable.kind {
                SHOW_ULONGLONG => u64::from_ne_bytes(buffer[..8].try_into().unwrap()).to_string(),
                SHOW_CHAR => {
                    let text = core::ffi::CStr::from_bytes_until_nul(&buffer).unwrap();
                    text.to_str().unwrap().to_owned()
                }
                other => panic!("kind {other}"),
            }
        })
        .collect();
    let value = |name: &str| {
        let full = format!("Aws_key_management_{name}");
        let is_it = |(it, _): &crate::status::Variable| it.to_str() == Ok(&full);
        let index = crate::status::VARIABLES.iter().position(is_it).unwrap();
        shown[index].as_str()
    };
    for (name, expected) in [
        ("session_state", "open"),
        ("session_open", "ON"),
        ("session_expiration", "2023-11-14 22:13:20"),
        ("session_seconds_left", "0"),
        ("code_awaited", "OFF"),
        ("broker_missing", "OFF"),
        ("keys_loaded", "2"),
        ("keys_on_older_version", "0"),
        ("key_versions_loaded", "3"),
        ("key_versions_aes_cbc", "2"),
        ("key_versions_aes_ctr", "1"),
        ("key_versions_not_in_store", "0"),
        ("key_store_compared_unix_seconds", "0"),
        ("kms_failures_key_unusable", "0"),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
}

/// This program has no `thd_alloc`.
#[test]
fn without_memory_of_the_statement_there_are_no_variables_of_single_keys() {
    start();
    let mut variable = StatusVariable {
        kind: -1,
        ..StatusVariable::END
    };
    let show_keys = super::status_variables::show_keys;
    // SAFETY: a variable to fill in, and an array with an end.
    unsafe {
        let result = show_keys(null_mut(), &raw mut variable, null_mut(), null_mut(), 0);
        assert_eq!((result, variable.kind), (0, SHOW_ARRAY));
        let rows: *const StatusVariable = variable.value.cast();
        assert!((*rows).name.is_null());
    }
}

#[test]
fn the_variables_of_single_keys_are_an_array_that_ends() {
    start();
    let kept = RefCell::new(Vec::new());
    let allocate = |bytes: usize| -> *mut c_void {
        let mut memory = vec![u64::MAX; bytes.div_ceil(8)];
        let address = memory.as_mut_ptr().cast();
        kept.borrow_mut().push(memory);
        address
    };
    let mut shown = Vec::new();
    // SAFETY: the memory is long enough, aligned, and kept while it is read.
    unsafe {
        let rows = super::status_variables::lay_out(crate::status::of_keys(), allocate);
        let mut row: *const StatusVariable = rows.unwrap().cast();
        while !(*row).name.is_null() {
            let name = core::ffi::CStr::from_ptr((*row).name).to_str().unwrap();
            let value = match (*row).kind {
                SHOW_ULONGLONG => (*row).value.cast::<u64>().read().to_string(),
                _ => core::ffi::CStr::from_ptr((*row).value.cast())
                    .to_str()
                    .unwrap()
                    .to_owned(),
            };
            shown.push(format!("{name} {value}"));
            row = row.add(1);
        }
    }
    assert_eq!(
        shown[..2],
        ["1_latest_version 2", "1_versions 2"].map(str::to_owned)
    );
    assert_eq!(shown.len(), 6);
}
