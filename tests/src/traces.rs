//! Looks for secrets where a process of some user could find them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use nix::{
    errno::Errno,
    unistd::{Pid, Uid},
};

use crate::{
    contains_bytes,
    inspection::{self, is_dumpable},
};

const CHUNK_BYTES: usize = 1024 * 1024;

/// Of the places that a process of `user` could look into, with `/proc` and a debugger, those that
/// hold one of the `secrets`, by name: all command lines of `processes`; and of those that run as the
/// user and may be looked into, environment, files behind descriptors, and memory, which is what a
/// core would have.
pub fn traces(processes: &[Pid], user: Uid, secrets: &[(&str, &[u8])]) -> Vec<String> {
    let mut found = Vec::new();
    for &pid in processes {
        let mut look = |place: &str, bytes: &[u8]| {
            for (what, secret) in secrets {
                if contains_bytes(bytes, secret) {
                    found.push(format!("{what} in {place} of {}", name(pid)));
                }
            }
        };
        look("the command line", &inspection::command_line(pid));
        let uid = inspection::status(pid, "Uid");
        if uid.split_whitespace().next() != Some(&user.to_string()) || !is_dumpable(pid) {
            continue;
        }
        let directory = format!("/proc/{pid}");
        look(
            "the environment",
            &fs::read(format!("{directory}/environ")).unwrap(),
        );
        for entry in fs::read_dir(format!("{directory}/fd")).unwrap() {
            let path = entry.unwrap().path();
            // Closed meanwhile, or no file.
            if fs::metadata(&path).is_ok_and(|file| file.is_file()) {
                look("a descriptor", &beginning(&path));
            }
        }
        for_each_piece_of_memory(Path::new(&directory), |bytes| look("the memory", bytes));
    }
    found.sort();
    found.dedup();
    found
}

fn name(pid: Pid) -> String {
    inspection::status(pid, "Name")
}

fn beginning(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let length = File::open(path).unwrap().read_at(&mut bytes, 0).unwrap();
    bytes.truncate(length);
    bytes
}

/// Pieces overlap by more than a secret has.
fn for_each_piece_of_memory(process: &Path, mut look: impl FnMut(&[u8])) {
    const OVERLAP_BYTES: u64 = 4096;
    let memory = File::open(process.join("mem")).unwrap();
    let mut bytes = vec![0; CHUNK_BYTES];
    for map in fs::read_to_string(process.join("maps")).unwrap().lines() {
        let (range, rest) = map.split_once(' ').unwrap();
        if !rest.starts_with('r') {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        while at < end {
            let length = usize::try_from(end - at).unwrap().min(CHUNK_BYTES);
            match memory.read_at(&mut bytes[..length], at) {
                Ok(read) => look(&bytes[..read]),
                // Special pages of the kernel's, or unmapped meanwhile.
                Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::EIO as i32)),
            }
            at += (length as u64)
                .saturating_sub(OVERLAP_BYTES)
                .max(1)
                .min(end - at);
            if length < CHUNK_BYTES {
                break;
            }
        }
    }
}
