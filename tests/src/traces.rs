//! Looks for secrets where a process of some user could find them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{Pid, Uid},
};

use crate::contains_bytes;

const CHUNK_BYTES: usize = 1024 * 1024;

/// Of the places that a process of `user` could look into, with `/proc` and a debugger, those that
/// hold one of the `secrets`, by name: all command lines of `processes`; and of those that run as the
/// user and may be looked into, environment, files behind descriptors, and memory, which is what a
/// core would have.
pub fn traces(processes: &[Pid], user: Uid, secrets: &[(&str, &[u8])]) -> Vec<String> {
    let mut found = Vec::new();
    for &pid in processes {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let look = |place: &str, bytes: &[u8]| {
            for (what, secret) in secrets {
                if contains_bytes(bytes, secret) {
                    found.push(format!("{what} in {place} of {}", name.trim()));
                }
            }
        };
        if let Err(error) = look_into(Path::new(&format!("/proc/{pid}")), user, look) {
            let ended = !Path::new(&format!("/proc/{pid}/environ")).exists();
            assert!(ended, "{name}: {error}");
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Those of the `secrets`, by name, that the memory of a process holds, whoever may look into it.
pub fn traces_in_memory(pid: Pid, secrets: &[(&str, &[u8])]) -> Vec<String> {
    let mut found = Vec::new();
    let process = PathBuf::from(format!("/proc/{pid}"));
    for_each_piece_of_memory(&process, |bytes| {
        for (what, secret) in secrets {
            if contains_bytes(bytes, secret) {
                found.push((*what).to_owned());
            }
        }
    })
    .unwrap();
    found.sort();
    found.dedup();
    found
}

fn look_into(process: &Path, user: Uid, mut look: impl FnMut(&str, &[u8])) -> io::Result<()> {
    look("the command line", &fs::read(process.join("cmdline"))?);
    // Both are the user only where others of that user may look into the process: see `is_dumpable`.
    let owners = [process.metadata()?, process.join("environ").metadata()?];
    if owners.iter().any(|file| file.uid() != user.as_raw()) {
        return Ok(());
    }
    look("the environment", &fs::read(process.join("environ"))?);
    for entry in fs::read_dir(process.join("fd"))? {
        let path = entry?.path();
        // Closed meanwhile, or no file.
        if fs::metadata(&path).is_ok_and(|file| file.is_file()) {
            look("a descriptor", &beginning(&path)?);
        }
    }
    for_each_piece_of_memory(process, |bytes| look("the memory", bytes))
}

fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let length = File::open(path)?.read_at(&mut bytes, 0)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Pieces overlap by more than a secret has.
fn for_each_piece_of_memory(process: &Path, mut look: impl FnMut(&[u8])) -> io::Result<()> {
    const OVERLAP_BYTES: u64 = 4096;
    let memory = File::open(process.join("mem"))?;
    let mut bytes = vec![0; CHUNK_BYTES];
    for map in fs::read_to_string(process.join("maps"))?.lines() {
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
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => {}
                Err(error) => return Err(error),
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
    Ok(())
}
