//! Link options of the launcher and of `kms-manage-key`.

use std::{env, fs, path::Path, process::Command};

/// The first glibc that reads packed relocations: 2.36.
const PACKED_RELOCATIONS: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // 40 KB in place of 430, all of which the loader would read into memory at every start. On an
    // older system the program would not start, and is linked without.
    if glibc_version().is_some_and(|version| version >= PACKED_RELOCATIONS) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    link_unwinder_statically();
}

/// Has the linker take gcc's unwinder, which std asks for by the name of its shared library, from
/// the static one: a library less to load, 0.1 MiB of memory, for what runs in a panic only.
fn link_unwinder_statically() {
    let Some(directory) = env::var_os("OUT_DIR") else {
        return;
    };
    let in_its_place = Path::new(&directory).join("libgcc_s.so");
    if has_static_unwinder() && fs::write(in_its_place, "GROUP(-lgcc_eh -lgcc)\n").is_ok() {
        let directory = Path::new(&directory).display();
        println!("cargo:rustc-link-arg-bins=-L{directory}");
    }
}

/// Whether the C compiler, by which Rust links, knows it: then it answers with its path.
fn has_static_unwinder() -> bool {
    output_of("cc", "-print-file-name=libgcc_eh.a").is_some_and(|path| path.starts_with('/'))
}

/// Version of the C library that is built against; `None` where it is another one.
fn glibc_version() -> Option<(u32, u32)> {
    let text = output_of("getconf", "GNU_LIBC_VERSION")?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn output_of(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    String::from_utf8(output.stdout).ok()
}
