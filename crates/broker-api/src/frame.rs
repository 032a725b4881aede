//! Frames: a version byte, the length of the body as four bytes little-endian, the body.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// Longest frame body in bytes. The longest message is a request with a master key id (2048
/// characters) or a wrapped key (6144 bytes), a region and an endpoint URL.
pub const MAX_FRAME_BYTES: usize = 16 * 1024;

const PROTOCOL_VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// Reading or writing failed, or took longer than the socket's time-out.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side speaks another version of this protocol.
    #[error(
        "protocol version {0} instead of {PROTOCOL_VERSION}: plugin and broker are of different releases"
    )]
    Version(u8),
    /// A frame longer than [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes, more than {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// A body that is not a message.
    #[error("a malformed frame: {0}")]
    Malformed(postcard::Error),
}

/// Writes one message. Nothing is written if it does not fit into [`MAX_FRAME_BYTES`].
///
/// The bytes pass through one buffer that is wiped afterwards: they may be a data key.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let mut buffer = Zeroizing::new(vec![0; HEADER_BYTES + MAX_FRAME_BYTES]);
    let (header, body) = buffer.split_at_mut(HEADER_BYTES);
    let length = postcard::to_slice(message, body)
        .map_err(FrameError::Malformed)?
        .len();
    let length_field = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    header.copy_from_slice(&header_bytes(length_field));
    let frame = buffer
        .get(..HEADER_BYTES + length)
        .ok_or(FrameError::TooLong(length))?;
    stream.write_all(frame)?;
    Ok(stream.flush()?)
}

/// Reads one message; [`FrameError::Closed`] when the stream ends before its first byte.
///
/// At most [`MAX_FRAME_BYTES`] are read whatever the length field says, into a buffer that is wiped
/// afterwards.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    read_header(stream, &mut header)?;
    let [version, l0, l1, l2, l3] = header;
    if version != PROTOCOL_VERSION {
        return Err(FrameError::Version(version));
    }
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let mut body = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut body)?;
    match postcard::take_from_bytes(&body).map_err(FrameError::Malformed)? {
        (message, []) => Ok(message),
        _ => Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        )),
    }
}

/// Reads the header, telling an orderly end of the connection from one inside a frame.
fn read_header(stream: &mut impl Read, header: &mut [u8; HEADER_BYTES]) -> Result<(), FrameError> {
    let (first, rest) = header.split_at_mut(1);
    loop {
        match stream.read(first) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(_) => return Ok(stream.read_exact(rest)?),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn header_bytes(length: u32) -> [u8; HEADER_BYTES] {
    let [l0, l1, l2, l3] = length.to_le_bytes();
    [PROTOCOL_VERSION, l0, l1, l2, l3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use key_store::{MAX_CIPHERTEXT_BYTES, PlaintextKey};

    use crate::{Decrypt, KmsOptions, MayWait, Reply, Request};

    fn longest_request() -> Request {
        Request::Decrypt(Decrypt {
            ciphertext_blob: vec![0xff; MAX_CIPHERTEXT_BYTES],
            options: KmsOptions {
                region: "r".repeat(64),
                endpoint_url: "u".repeat(2048),
                request_timeout_milliseconds: u32::MAX,
                may_wait: MayWait::Start,
                key_id: u32::MAX,
                key_version: u32::MAX,
            },
        })
    }

    #[test]
    fn messages_come_back_as_they_went() {
        let mut wire = Vec::new();
        let reply = Reply::Decrypted {
            key: PlaintextKey::new(&[9; 32]).unwrap(),
            master_key_arn: "arn".into(),
            request_id: "id".into(),
        };
        write_frame(&mut wire, &longest_request()).unwrap();
        write_frame(&mut wire, &reply).unwrap();
        let mut stream = wire.as_slice();
        assert_eq!(
            read_frame::<Request>(&mut stream).unwrap(),
            longest_request()
        );
        assert_eq!(read_frame::<Reply>(&mut stream).unwrap(), reply);
        assert!(matches!(
            read_frame::<Reply>(&mut stream),
            Err(FrameError::Closed)
        ));
    }

    #[test]
    fn a_message_over_the_limit_is_not_written() {
        let mut wire = Vec::new();
        assert!(write_frame(&mut wire, &vec![1u8; MAX_FRAME_BYTES]).is_err());
        assert!(wire.is_empty());
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_it_is_read() {
        let wire = header_bytes(u32::MAX);
        assert!(matches!(
            read_frame::<Request>(&mut wire.as_slice()),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn another_version_is_named() {
        let wire = [PROTOCOL_VERSION + 1, 0, 0, 0, 0];
        assert!(matches!(
            read_frame::<Request>(&mut wire.as_slice()),
            Err(FrameError::Version(2))
        ));
    }

    #[test]
    fn a_truncated_frame_is_an_error_and_not_an_end() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &longest_request()).unwrap();
        for length in 1..wire.len() {
            let result = read_frame::<Request>(&mut &wire[..length]);
            assert!(matches!(result, Err(FrameError::Io(_))), "{length}");
        }
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &Request::Session).unwrap();
        wire[1] += 1;
        wire.push(0);
        assert!(matches!(
            read_frame::<Request>(&mut wire.as_slice()),
            Err(FrameError::Malformed(_))
        ));
    }
}
