//! Link options of the plugin.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,aws_key_management.so");
    // The server unloads the library on UNINSTALL and at shutdown, when threads may still run the destructors
    // of its thread-local variables.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
