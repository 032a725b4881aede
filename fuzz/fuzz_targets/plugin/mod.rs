//! Calls the plugin as the server does, through its declarations, with the mock as KMS.

use std::{
    ffi::{CStr, CString, c_int, c_uint},
    fs,
    path::Path,
    ptr::null_mut,
    sync::OnceLock,
};

use aws_key_management::abi::{
    BoolVariable, EncryptionPlugin, PluginDeclaration, StringVariable, VariableHeader,
};

/// The version of key 1 that uses AES_CBC.
pub const CBC: c_uint = 1;
/// The version of key 1 that uses AES_CTR.
pub const CTR: c_uint = 2;

pub const BLOCK_BYTES: usize = 16;

unsafe extern "C" {
    static _maria_plugin_declarations_: [PluginDeclaration; 2];
}

/// Returns the functions of the plugin, which is started on the first call.
pub fn functions() -> &'static EncryptionPlugin {
    static FUNCTIONS: OnceLock<&EncryptionPlugin> = OnceLock::new();
    FUNCTIONS.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1.1", "1.2.ctr"] {
            let file = directory.path().join(format!("aws-kms-key.{name}"));
            fs::write(file, [1; 16]).unwrap();
        }
        // SAFETY: the declarations of the library live for ever, and nothing else writes to them.
        unsafe {
            let [plugin, _] = &_maria_plugin_declarations_;
            set_variables(plugin, directory.path());
            assert_eq!(plugin.init.unwrap()(null_mut()), 0);
            &*plugin.info.cast()
        }
    })
}

/// # Safety
/// The plugin has not been started.
unsafe fn set_variables(plugin: &PluginDeclaration, keyfile_dir: &Path) {
    let keyfile_dir = CString::new(keyfile_dir.to_str().unwrap()).unwrap();
    let mut variables = plugin.system_variables;
    // SAFETY: the list ends with null, and the name of each variable determines its type.
    unsafe {
        while !(*variables).is_null() {
            let header = (*variables).cast::<VariableHeader>();
            match CStr::from_ptr((*header).name).to_bytes() {
                b"mock" => (*header.cast::<BoolVariable>()).storage.write(1),
                b"keyfile_dir" => (*header.cast::<StringVariable>())
                    .storage
                    .write(keyfile_dir.clone().into_raw()),
                _ => {}
            }
            variables = variables.add(1);
        }
    }
}

/// A context in memory of any alignment, with no byte after it.
pub struct Context {
    memory: Box<[u8]>,
    misalignment: usize,
}

impl Context {
    pub fn new(version: c_uint, misalignment: usize) -> Self {
        // SAFETY: the function only takes numbers.
        let bytes = unsafe { (functions().crypt_ctx_size)(1, version) } as usize;
        Self {
            memory: vec![0; bytes + misalignment].into(),
            misalignment,
        }
    }

    pub fn init(&mut self, key: &[u8], iv: &[u8], flags: c_int, version: c_uint) -> c_int {
        let context = self.memory[self.misalignment..].as_mut_ptr().cast();
        let (key, klen) = (key.as_ptr(), key.len() as c_uint);
        let (iv, ivlen) = (iv.as_ptr(), iv.len() as c_uint);
        // SAFETY: the lengths are those of the slices, and the context is as long as the plugin asked for.
        unsafe { (functions().crypt_ctx_init)(context, key, klen, iv, ivlen, flags, 1, version) }
    }

    /// # Safety
    /// There are `bytes` bytes at `source`, and room for the result at `destination`.
    pub unsafe fn update(
        &mut self,
        source: *const u8,
        bytes: usize,
        destination: *mut u8,
    ) -> Result<usize, c_int> {
        let context = self.memory[self.misalignment..].as_mut_ptr().cast();
        let mut written = c_uint::MAX;
        // SAFETY: the context is as long as the plugin asked for, and the caller passes enough room.
        let code = unsafe {
            (functions().crypt_ctx_update)(
                context,
                source,
                bytes as c_uint,
                destination,
                &mut written,
            )
        };
        result(code, written)
    }

    /// # Safety
    /// There is room for the rest of the result at `destination`.
    pub unsafe fn finish(&mut self, destination: *mut u8) -> Result<usize, c_int> {
        let context = self.memory[self.misalignment..].as_mut_ptr().cast();
        let mut written = c_uint::MAX;
        // SAFETY: the context is as long as the plugin asked for, and the caller passes enough room.
        let code = unsafe { (functions().crypt_ctx_finish)(context, destination, &mut written) };
        result(code, written)
    }
}

fn result(code: c_int, written: c_uint) -> Result<usize, c_int> {
    match code {
        0 => Ok(written as usize),
        code => {
            assert_eq!(written, 0, "nothing is written with an error");
            Err(code)
        }
    }
}
