//! Work that may hang, such as a DNS look-up or reading from a file server, in its own thread, so that nobody else
//! has to wait for it.

use std::{io, thread};

use tokio::sync::oneshot;

/// Stack of such a thread, in bytes. Enough for the modules of the name service, and small where address space is limited.
const STACK_BYTES: usize = 512 * 1024;

/// Does `work` in a thread of this name. The receiver gets what it returns, or an error after a panic.
///
/// Errors: no thread can be started.
pub fn apart<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Perhaps nobody waits any more.
            let _ = sender.send(work());
        })?;
    Ok(receiver)
}
