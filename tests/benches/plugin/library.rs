//! Loads and calls the built plugin as the server does.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;
use std::ffi::CString;
use std::path::Path;

use aws_key_management::abi::{
    AES_OK, EncryptionPlugin, FLAG_ENCRYPT, FLAG_NOPAD, PluginDeclaration, StringVariable,
    VARIABLE_STRING, VariableHeader,
};

/// The functions of a plugin that stays loaded until the process ends.
#[derive(Clone, Copy)]
pub struct Library(&'static EncryptionPlugin);

/// A key version.
#[derive(Clone, Copy)]
pub struct Version {
    /// Key id.
    pub id: c_uint,
    /// Key version.
    pub version: c_uint,
}

/// Room for a context, more than the plugin needs.
const CONTEXT_BYTES: usize = 4096;

impl Library {
    /// Loads the library and starts the plugin with these string variables.
    pub fn start(path: &Path, variables: &[(&CStr, &str)]) -> Self {
        // SAFETY: the plugin has no constructors.
        let library = Box::leak(Box::new(unsafe { libloading::Library::new(path) }.unwrap()));
        // SAFETY: the symbol is an array of this structure, which lives as long as the library.
        let declaration = unsafe {
            let symbol = library
                .get::<*mut PluginDeclaration>(c"_maria_plugin_declarations_")
                .unwrap();
            &**symbol
        };
        // SAFETY: as in the server, the variables are set before init, which is called once. The list ends with null.
        unsafe {
            let mut variable = declaration.system_variables;
            while !(*variable).is_null() {
                set((*variable).cast(), variables);
                variable = variable.add(1);
            }
            assert_eq!(declaration.init.unwrap()(null_mut()), 0, "init");
            Self(&*declaration.info.cast())
        }
    }

    /// Encrypts or decrypts like `encryption_crypt` of `service_encryption.h`, but with one update for each of
    /// `lengths`. Returns the number of bytes written.
    #[inline]
    pub fn crypt(
        self,
        key: &[u8],
        iv: &[u8; 16],
        of: Version,
        encrypt: bool,
        (source, destination): (&[u8], &mut [u8]),
        lengths: &[usize],
    ) -> usize {
        let mut context = [const { core::mem::MaybeUninit::<u8>::uninit() }; CONTEXT_BYTES];
        let context: *mut c_void = context.as_mut_ptr().cast();
        let flags = FLAG_NOPAD | if encrypt { FLAG_ENCRYPT } else { 0 };
        assert!(lengths.iter().sum::<usize>() <= source.len().min(destination.len()));
        let (mut read, mut written): (usize, usize) = (0, 0);
        let mut length: c_uint = 0;
        // SAFETY: the context is large enough and the lengths of key and IV are correct. Without padding, as many
        // bytes are written as are read, and both buffers are long enough, as checked above.
        unsafe {
            let (klen, ivlen) = (key.len() as c_uint, iv.len() as c_uint);
            let started = (self.0.crypt_ctx_init)(
                context,
                key.as_ptr(),
                klen,
                iv.as_ptr(),
                ivlen,
                flags,
                of.id,
                of.version,
            );
            assert_eq!(started, AES_OK);
            for &bytes in lengths {
                let updated = (self.0.crypt_ctx_update)(
                    context,
                    source.as_ptr().add(read),
                    bytes as c_uint,
                    destination.as_mut_ptr().add(written),
                    &raw mut length,
                );
                assert_eq!(updated, AES_OK);
                read += bytes;
                written += length as usize;
            }
            let end = destination.as_mut_ptr().add(written);
            let finished = (self.0.crypt_ctx_finish)(context, end, &raw mut length);
            assert_eq!(finished, AES_OK);
        }
        written + length as usize
    }

    /// `get_latest_key_version`.
    #[inline]
    pub fn latest_version(self, id: c_uint) -> c_uint {
        // SAFETY: the function accepts any number.
        unsafe { (self.0.get_latest_key_version)(id) }
    }

    /// `get_key`; returns the length of the key.
    #[inline]
    pub fn key(self, of: Version, key: &mut [u8; 32]) -> c_uint {
        let mut length = key.len() as c_uint;
        // SAFETY: the length is that of the buffer.
        let result =
            unsafe { (self.0.get_key)(of.id, of.version, key.as_mut_ptr(), &raw mut length) };
        assert_eq!(result, 0);
        length
    }
}

/// Sets a variable as the server does when it loads a plugin.
///
/// # Safety
/// `variable` is a variable of the plugin.
unsafe fn set(variable: *mut VariableHeader, values: &[(&CStr, &str)]) {
    const KIND: c_int = 0x7f;
    // SAFETY: every variable begins with this header, whose kind says what follows. The value's text is leaked, so it
    // stays valid.
    unsafe {
        if (*variable).flags & KIND != VARIABLE_STRING {
            return; // the plugin's storage already contains the default: the first value, or 0
        }
        let name = CStr::from_ptr((*variable).name);
        let variable: *mut StringVariable = variable.cast();
        let value = values.iter().find(|(wanted, _)| *wanted == name);
        *(*variable).storage = match value {
            Some((_, value)) => CString::new(*value).unwrap().into_raw(),
            None => (*variable).default as *mut c_char,
        };
    }
}
