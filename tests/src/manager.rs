//! The service manager's side of `$NOTIFY_SOCKET` and `LISTEN_FDS`.

use std::{
    fs::File,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
    process::{Command, id},
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::close,
};

use crate::{PATIENCE_SECONDS, Sandbox, after_python};

/// Hears what a service says, and has a descriptor store for one descriptor, as
/// `FileDescriptorStoreMax=1` gives it.
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
    /// How many of `heard` have been waited for.
    seen: usize,
    stored: Option<File>,
}

impl Manager {
    /// Binds the notify socket in the sandbox.
    pub fn start(sandbox: &Sandbox) -> Self {
        let path = sandbox.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let patience = Some(Duration::from_secs(PATIENCE_SECONDS));
        socket.set_read_timeout(patience).unwrap();
        Self {
            socket,
            path,
            heard: Vec::new(),
            seen: 0,
            stored: None,
        }
    }

    /// Value of `$NOTIFY_SOCKET`.
    pub fn address(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Waits for a message that contains `text`, after those that have been waited for.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            if let Some(heard) = self.heard.get(self.seen) {
                self.seen += 1;
                if heard.contains(text) {
                    return heard.clone();
                }
            } else {
                assert!(self.receive(), "waited for {text:?}, got {:?}", self.heard);
            }
        }
    }

    /// All messages so far.
    pub fn heard(&mut self) -> &[String] {
        self.socket.set_nonblocking(true).unwrap();
        while self.receive() {}
        self.socket.set_nonblocking(false).unwrap();
        &self.heard
    }

    /// What the store holds after the messages so far.
    pub fn stored(&mut self) -> Option<&File> {
        self.heard();
        self.stored.as_ref()
    }

    /// `command` as it is started again, with the stored descriptor as `LISTEN_FDS` has it.
    pub fn restart(&self, command: &Command) -> Command {
        self.restart_with(&pass(&["stored"], &["iam-kms-session"]), command)
    }

    /// The same where the Python `setup` prepares and passes the descriptors; `stored` is the one
    /// of the store.
    pub fn restart_with(&self, setup: &str, command: &Command) -> Command {
        let stored = self.stored.as_ref().unwrap().as_raw_fd();
        let us = id();
        let setup = format!(
            "import fcntl, socket\nstored = os.open('/proc/{us}/fd/{stored}', os.O_RDONLY)\n{setup}"
        );
        let mut command = after_python(&setup, command);
        command.env("NOTIFY_SOCKET", self.address());
        command
    }

    /// False where there is nothing to be received.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let mut space = cmsg_space!([RawFd; 2]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            flags,
        ) else {
            return false;
        };
        let length = message.bytes;
        let mut descriptors = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                descriptors.extend(numbers);
            }
        }
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        if text.contains("FDSTOREREMOVE=1\nFDNAME=iam-kms-session\n") {
            self.stored = None;
        }
        for number in descriptors {
            assert_eq!(text, "FDSTORE=1\nFDNAME=iam-kms-session\n");
            // A full store takes nothing.
            if self.stored.is_none() {
                let path = format!("/proc/self/fd/{number}");
                let file = File::options().read(true).write(true).open(path);
                self.stored = Some(file.unwrap());
            }
            close(number).unwrap();
        }
        self.heard.push(text);
        true
    }
}

/// Python that passes the descriptors of these expressions under these names, as systemd does.
pub fn pass(descriptors: &[&str], names: &[&str]) -> String {
    let descriptors = descriptors.join(", ");
    let names = names.join(":");
    format!(
        "passed = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in ({descriptors},)]\n\
         for number, fd in enumerate(passed):\n    os.dup2(fd, 3 + number)\n\
         os.closerange(3 + len(passed), 1000)\n\
         os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)), LISTEN_FDNAMES='{names}')"
    )
}
