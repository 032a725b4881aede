//! What a program prints for people and scripts.

use std::io::{self, ErrorKind, Write};

/// Writes `text` to standard output, at once. It is not a failure if the reader stops early, such as `head` or
/// `grep -q`: the exit status still says what the program has to say.
pub fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
