//! Checks the shared library as the server's dynamic loader sees it.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

/// Returns the library that cargo built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join("libaws_key_management.so")
}

fn readelf(options: &[&str]) -> String {
    let output = Command::new("readelf")
        .args(options)
        .arg(library())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

struct Symbol {
    name: String,
    address: u64,
    bytes: u64,
    is_local: bool,
}

/// Returns the symbols that are defined in this table of the library.
fn symbols(table: &str) -> Vec<Symbol> {
    readelf(&[table, "--wide"])
        .lines()
        .filter_map(|line| {
            let [_, address, size, _, binding, _, section, name] =
                line.split_whitespace().collect::<Vec<_>>()[..]
            else {
                return None;
            };
            let is_defined = section != "UND" && section != "Ndx";
            is_defined.then(|| Symbol {
                name: name.to_owned(),
                address: u64::from_str_radix(address, 16).unwrap(),
                bytes: size.parse().unwrap(),
                is_local: binding == "LOCAL",
            })
        })
        .collect()
}

fn exported() -> impl Iterator<Item = Symbol> {
    let symbols = symbols("--dyn-syms").into_iter();
    symbols.filter(|symbol| !symbol.is_local)
}

#[test]
fn only_the_declarations_of_the_plugin_are_exported() {
    let mut names: Vec<_> = exported().map(|symbol| symbol.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "_maria_plugin_declarations_",
            "_maria_plugin_interface_version_",
            "_maria_sizeof_struct_st_plugin_"
        ]
    );
}

#[test]
fn variables_that_the_server_writes_to_are_not_read_only() {
    let relro = readelf(&["--program-headers", "--wide"]);
    let relro = relro
        .lines()
        .find(|line| line.trim_start().starts_with("GNU_RELRO"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .unwrap();
    let number = |field: &str| u64::from_str_radix(field.trim_start_matches("0x"), 16).unwrap();
    // The loader protects whole pages.
    let (start, end) = (number(relro[2]), number(relro[2]) + number(relro[5]));
    let (start, end) = (start & !0xfff, (end + 0xfff) & !0xfff);
    // The server keeps the values of the system variables there.
    let storage = symbols("--syms").into_iter();
    let storage = storage.filter(|symbol| symbol.name.contains("3ffi7storage"));
    let written: Vec<_> = storage.chain(exported()).collect();
    assert!(written.len() > 10, "{}", written.len());
    for Symbol {
        name,
        address,
        bytes,
        ..
    } in written
    {
        assert!(
            address >= end || address + bytes <= start,
            "{name} lies in RELRO"
        );
    }
}

#[test]
fn the_library_stays_loaded_and_needs_only_the_c_library() {
    let dynamic = readelf(&["--dynamic", "--wide"]);
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    assert!(dynamic.contains("[aws_key_management.so]"), "{dynamic}");
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let known = [
            "libc.so.6",
            "libgcc_s.so.1",
            "ld-linux-x86-64.so.2",
            "ld-linux-aarch64.so.1",
        ];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
}
