//! The process that has connected, and whether it is served.

use std::{fmt, io};

use broker_api::{Failure, FailureKind, Request};
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use tokio::net::UnixStream;

use crate::peer_groups;

/// The process that has connected, with its identity at that time.
pub(crate) struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Reads it from the kernel, because a name service may hang.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
            groups: peer_groups::of(stream)?,
        })
    }

    /// Checks that it is served: as this user, as root, or as a process of the group `gid`, if there is one. The error
    /// says who is served.
    pub fn check(&self, gid: Option<u32>) -> Result<(), String> {
        let own = geteuid();
        if self.uid == own.as_raw() || self.uid == 0 {
            return Ok(());
        }
        match gid {
            Some(gid) if self.gid == gid || self.groups.contains(&gid) => Ok(()),
            Some(gid) => Err(format!(
                "only uid {own}, root and processes of group {gid} are served"
            )),
            None => Err(format!("only uid {own} and root are served")),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, pid {}", self.uid, self.pid)
    }
}

/// What a socket serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    Keys,
    /// The state of the broker, its last events and the names of keys, but no key.
    Overview,
}

impl Scope {
    /// Whether a request and its result are recorded, for the audit and as what the broker has done. A list that is
    /// shown to an operator uses no key, and looking must not change what there is to see.
    pub fn records(self, request: &Request) -> bool {
        !(self == Self::Overview && matches!(request, Request::ListKeys(_)))
    }

    /// Checks a request. The error says what to use instead.
    pub fn check(self, request: &Request) -> Result<(), Failure> {
        match (self, request) {
            (Self::Keys, _) => Ok(()),
            (
                Self::Overview,
                Request::Session
                | Request::Overview
                | Request::Events { .. }
                | Request::ListKeys(_),
            ) => Ok(()),
            (Self::Overview, _) => Err(Failure {
                kind: FailureKind::InvalidRequest,
                message: "this socket serves no keys; use the one that broker_socket names".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_of_the_same_user_are_served() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let _context = runtime.enter();
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.uid, geteuid().as_raw());
        assert_eq!(peer.check(None), Ok(()));
    }

    #[test]
    fn other_users_are_served_only_in_the_group() {
        let other = geteuid().as_raw() + 1;
        let peer = |gid, groups: &[u32]| Peer {
            uid: other,
            gid,
            pid: 1,
            groups: groups.to_vec(),
        };
        assert!(peer(0, &[]).check(None).is_err());
        let group = Some(3000);
        assert!(peer(3001, &[3002]).check(group).is_err());
        assert_eq!(peer(3000, &[]).check(group), Ok(()));
        assert_eq!(peer(3001, &[3002, 3000]).check(group), Ok(()));
    }
}
