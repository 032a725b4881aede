//! The supplementary groups of a peer. Source: `SO_PEERGROUPS` in the kernel's `net/core/sock.c`, since
//! Linux 4.13. Neither nix nor rustix supports it.

#![allow(unsafe_code)]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd},
};

use nix::{errno::Errno, libc};

/// No process has more groups (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Most processes have fewer.
const USUAL_GROUPS: usize = 64;

/// Returns the supplementary groups that the peer had when it connected.
pub(crate) fn of(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    match read(socket, USUAL_GROUPS) {
        Err(Errno::ERANGE) => Ok(read(socket, MAX_GROUPS)?),
        groups => Ok(groups?),
    }
}

fn read(socket: &impl AsFd, room: usize) -> nix::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; room];
    let room_bytes = room * size_of::<libc::gid_t>();
    let mut length = libc::socklen_t::try_from(room_bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the buffer is as long as `length` says, and of a type that any bytes are a value of.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &mut length,
        )
    };
    Errno::result(result)?;
    let length_bytes = usize::try_from(length).unwrap_or(0);
    groups.truncate(length_bytes / size_of::<libc::gid_t>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_this_process_are_those_of_its_peer() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        assert_eq!(of(&one).unwrap(), own);
    }
}
