//! The protection of a process that holds credentials or data keys.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, IntoRawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::OnceLock,
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit},
        stat::Mode,
    },
    unistd::{AccessFlags, access, geteuid},
};
use rustix::mm::{MlockAllFlags, mlockall};

use crate::{on_abort, process_status};

/// The program of this process.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Whether this process was dumpable when [`refuse_dumps`] was called.
static WAS_DUMPABLE: OnceLock<bool> = OnceLock::new();

/// Why other users could read the memory of a program that holds credentials, or replace the program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The file cannot be examined.
    #[error("cannot examine {0}: {1}")]
    Examine(String, io::Error),
    /// Its owner can change it.
    #[error("{0} belongs to uid {1}, who can replace it; run chown root:root {0} && chmod 711 {0}")]
    Owner(String, u32),
    /// Others can change it.
    #[error("users other than root can write to {0}; run chmod 711 {0}")]
    Writable(String),
    /// The kernel does not protect the process before it protects itself.
    #[error(
        "this user can read {0}, so its other processes can read the memory of this program while it starts; run chmod 711 {0}"
    )]
    Readable(String),
    /// The kernel has not protected this process.
    #[error(
        "other processes of this user could read the memory of {0} while it started: its parent had CAP_DAC_OVERRIDE, or fs.suid_dumpable is 1"
    )]
    Dumpable(String),
}

/// Checks that the mode and owner of a program keep other processes of this user out of its memory.
///
/// If its user cannot read the program, the kernel makes a process non-dumpable at exec, before its
/// first instruction. [`protect`] does that too, but `/proc/PID/mem` may have been opened before. A
/// process of root is protected whatever the mode. Source: `would_dump` in Linux's fs/exec.c.
pub fn check_program(program: &Path) -> Result<(), ProgramError> {
    let name = || name_of(program);
    let metadata = fs::metadata(program).map_err(|error| ProgramError::Examine(name(), error))?;
    if metadata.uid() != 0 {
        return Err(ProgramError::Owner(name(), metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(ProgramError::Writable(name()));
    }
    if !geteuid().is_root() && access(program, AccessFlags::R_OK).is_ok() {
        return Err(ProgramError::Readable(name()));
    }
    Ok(())
}

/// Checks the program of this process, and whether the kernel has protected the process from its start.
/// Must be called after [`refuse_dumps`].
pub fn check_own_program() -> Result<(), ProgramError> {
    let program = Path::new(OWN_PROGRAM);
    check_program(program)?;
    if !geteuid().is_root() && WAS_DUMPABLE.get() == Some(&true) {
        return Err(ProgramError::Dumpable(name_of(program)));
    }
    Ok(())
}

fn name_of(program: &Path) -> String {
    let link = fs::read_link(program).ok();
    let path = link.as_deref().filter(|_| program.starts_with("/proc"));
    path.unwrap_or(program).display().to_string()
}

/// Makes this process non-dumpable: no core dumps, and no access for other processes of its user. Exec
/// undoes it.
pub fn refuse_dumps() -> io::Result<()> {
    WAS_DUMPABLE.get_or_init(|| prctl::get_dumpable().unwrap_or(true));
    Ok(prctl::set_dumpable(false)?)
}

/// Makes this process non-dumpable, and opens `/dev/null` for standard descriptors that the parent has
/// closed, so that later ones do not take their numbers.
pub fn protect() -> io::Result<()> {
    refuse_dumps()?;
    on_abort::clean_up()?;
    loop {
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        if null.as_raw_fd() > io::stderr().as_raw_fd() {
            return Ok(());
        }
        // Stays open until exec closes it, so that the command finds the descriptor closed, as this
        // process did.
        let _ = null.into_raw_fd();
    }
}

/// Locks all present and future memory, page by page as it is used. Does nothing if there is a limit,
/// because reaching it later would kill the process. The error is the limit, in bytes.
pub fn lock_memory() -> Result<(), u64> {
    let limit_bytes = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if (limit_bytes == RLIM_INFINITY || may_lock_without_limit()) && mlockall(flags).is_ok() {
        return Ok(());
    }
    Err(limit_bytes)
}

/// Whether the process has CAP_IPC_LOCK, capability 14 of capabilities(7).
fn may_lock_without_limit() -> bool {
    process_status::mask("CapEff") >> 14 & 1 == 1
}
