//! Opens and reads files that an administrator has named.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

/// Opens `path` if it is a regular file: reading a FIFO would block the server, and a device might never end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

/// Reads a secret: what is in `file`, but at most `most_bytes`.
pub(crate) fn read(file: File, most_bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Allocated at its maximum length: growing would leave a copy of the secret behind.
    let mut content = Zeroizing::new(Vec::with_capacity(most_bytes));
    file.take(most_bytes as u64).read_to_end(&mut content)?;
    Ok(content)
}
