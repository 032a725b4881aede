//! What the programs of the packages ask of the systems that they are installed on.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::Sandbox;

use super::run;

/// The oldest C library that is supported: that of Red Hat Enterprise Linux 8 and Debian 10.
const OLDEST: (u32, u32) = (2, 28);

/// What a supported system has without another package.
const LIBRARIES: [&str; 6] = [
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

/// All packages that were made: of one architecture or of both.
fn packages() -> Vec<PathBuf> {
    let folder = env::var_os("IAM_KMS_PACKAGES").expect("run these tests with `make test-package`");
    let files = fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// The files of a package that the dynamic loader reads.
fn programs(package: &Path, folder: &Path) -> Vec<PathBuf> {
    fs::create_dir(folder).unwrap();
    let unpack = if package.extension().is_some_and(|ending| ending == "deb") {
        "dpkg-deb --extract \"$1\" \"$2\""
    } else {
        "rpm2archive - < \"$1\" | tar --extract --gzip --directory \"$2\""
    };
    let list = "find \"$2\" -type f -exec sh -c 'head -c 4 \"$1\" | grep -q ELF' - {} ';' -print";
    let script = format!("{unpack}; {list}");
    let (package, folder) = (package.to_string_lossy(), folder.to_string_lossy());
    let found = run("sh", &["-ec", &script, "sh", &package, &folder]);
    found.lines().map(Into::into).collect()
}

fn readelf(option: &str, file: &Path) -> String {
    run("readelf", &["--wide", option, &file.to_string_lossy()])
}

/// The symbol versions of the C library that a program asks for and that the oldest one does not have.
fn too_new(file: &Path) -> Vec<String> {
    let versions = readelf("--version-info", file);
    let names = versions.split_whitespace();
    let names = names.filter_map(|word| word.strip_prefix("GLIBC_"));
    let is_old = |name: &str| {
        let (major, minor) = name.split_once('.').unwrap_or((name, ""));
        let minor = minor.split('.').next().unwrap_or_default();
        let numbers = major.parse().ok().zip(minor.parse().ok());
        numbers.is_some_and(|version: (u32, u32)| version <= OLDEST)
    };
    let mut found: Vec<_> = names
        .filter(|name| !is_old(name))
        .map(str::to_owned)
        .collect();
    found.dedup();
    found
}

#[test]
fn each_program_runs_with_the_oldest_c_library_and_needs_no_other_library() {
    let sandbox = Sandbox::new();
    let packages = packages();
    assert!(packages.len() >= 3, "{packages:?}");
    for package in packages {
        let name = package.file_name().unwrap().to_string_lossy().into_owned();
        let files = programs(&package, &sandbox.path(&name));
        if name.ends_with(".noarch.rpm") {
            assert!(files.is_empty(), "{files:?}");
            continue;
        }
        // Red Hat's servers have two places for plugins.
        let plugins = if name.ends_with(".rpm") { 2 } else { 1 };
        let is_plugin = |file: &&PathBuf| file.ends_with("plugin/aws_key_management.so");
        assert_eq!(files.iter().filter(is_plugin).count(), plugins, "{files:?}");
        assert!(files.len() >= plugins + 4, "{files:?}");
        let machine = if name.contains("aarch64") || name.contains("arm64") {
            "AArch64"
        } else {
            "X86-64"
        };
        for file in files {
            let shown = file.display();
            assert_eq!(too_new(&file), [""; 0], "{shown}");
            let header = readelf("--file-header", &file);
            assert!(header.contains(machine), "{shown}: {header}");
            let dynamic = readelf("--dynamic", &file);
            for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
                let (_, library) = line.split_once('[').unwrap();
                assert!(
                    LIBRARIES.contains(&library.trim_end_matches(']')),
                    "{shown}: {line}"
                );
            }
            assert!(
                dynamic.contains("BIND_NOW") || dynamic.contains("NOW"),
                "{shown}: {dynamic}"
            );
            let segments = readelf("--program-headers", &file);
            assert!(segments.contains("GNU_RELRO"), "{shown}: {segments}");
        }
    }
}

/// Without this one the test above would prove nothing.
#[test]
fn a_program_of_this_system_asks_for_a_newer_c_library() {
    let program = Command::new("sh")
        .args(["-c", "command -v mariadbd || echo /usr/sbin/mariadbd"])
        .output()
        .unwrap();
    let program = String::from_utf8(program.stdout).unwrap();
    assert_ne!(too_new(Path::new(program.trim())), [""; 0], "{program}");
}
