//! Frames: a version byte, the length of the body as four bytes little-endian, the body.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// The version of the messages that this release sends.
pub const PROTOCOL_VERSION: u8 = 2;

/// Longest frame body in bytes. Replies with lists come close to it.
pub const MAX_FRAME_BYTES: usize = 16 * 1024;

/// Length of a frame's header.
pub const HEADER_BYTES: usize = 5;

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
        "protocol version {0} is unknown: the two programs are of different releases; install the same release of both and restart them"
    )]
    Version(u8),
    /// A frame longer than [`MAX_FRAME_BYTES`], or than the reader accepts.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// A body that is not a message.
    #[error("a malformed frame: {0}")]
    Malformed(postcard::Error),
}

impl FrameError {
    /// Returns whether the other side has ended the connection.
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            ),
            _ => false,
        }
    }
}

/// What stands before the body of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The version of the message in the body.
    pub version: u8,
    /// Length of the body in bytes, as the sender claims.
    pub body_bytes: usize,
}

impl Header {
    /// Reads a header; any bytes are one.
    pub fn parse([version, l0, l1, l2, l3]: [u8; HEADER_BYTES]) -> Self {
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        Self {
            version,
            body_bytes: usize::try_from(length).unwrap_or(usize::MAX),
        }
    }

    /// Length of the body in bytes, if it is not over [`MAX_FRAME_BYTES`].
    pub fn checked_body_bytes(&self) -> Result<usize, FrameError> {
        match self.body_bytes {
            0..=MAX_FRAME_BYTES => Ok(self.body_bytes),
            length => Err(FrameError::TooLong(length)),
        }
    }
}

/// Makes the frame of a message of `version`, in a buffer that is wiped afterwards: it may hold a data
/// key.
///
/// Errors: the message does not fit into [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(version: u8, message: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let mut frame = Zeroizing::new(vec![0; HEADER_BYTES + MAX_FRAME_BYTES]);
    let (header, body) = frame.split_at_mut(HEADER_BYTES);
    let length = postcard::to_slice(message, body)
        .map_err(FrameError::Malformed)?
        .len();
    let length_field = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    header.copy_from_slice(&header_bytes(version, length_field));
    frame.truncate(HEADER_BYTES + length);
    Ok(frame)
}

/// Reads the message in the body of a frame, all of which it must take.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body).map_err(FrameError::Malformed)? {
        (message, []) => Ok(message),
        _ => Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        )),
    }
}

/// Writes one message of the present version. Nothing is written if it does not fit into
/// [`MAX_FRAME_BYTES`].
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    write_frame_of(PROTOCOL_VERSION, stream, message)
}

/// The same of any version.
pub fn write_frame_of<T: Serialize>(
    version: u8,
    stream: &mut impl Write,
    message: &T,
) -> Result<(), FrameError> {
    stream.write_all(&encode(version, message)?)?;
    Ok(stream.flush()?)
}

/// Reads one message of the present version; [`FrameError::Closed`] when the stream ends before its
/// first byte.
///
/// At most [`MAX_FRAME_BYTES`] are read whatever the length field says, into a buffer that is wiped
/// afterwards.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    read_frame_of(PROTOCOL_VERSION, stream)
}

/// The same of any version.
pub fn read_frame_of<T: DeserializeOwned>(
    version: u8,
    stream: &mut impl Read,
) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    read_header(stream, &mut header)?;
    let header = Header::parse(header);
    if header.version != version {
        return Err(FrameError::Version(header.version));
    }
    let mut body = Zeroizing::new(vec![0; header.checked_body_bytes()?]);
    stream.read_exact(&mut body)?;
    decode(&body)
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

fn header_bytes(version: u8, length: u32) -> [u8; HEADER_BYTES] {
    let [l0, l1, l2, l3] = length.to_le_bytes();
    [version, l0, l1, l2, l3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use key_files::{MAX_CIPHERTEXT_BYTES, PlaintextKey};

    use crate::{Decrypt, KeyContext, Reply, Request, WaitPolicy, version1};

    fn longest_request() -> Request {
        Request::Decrypt(Decrypt {
            ciphertext_blob: vec![0xff; MAX_CIPHERTEXT_BYTES],
            check_value: Some([0xff; 16]),
            context: KeyContext {
                key_id: u32::MAX,
                key_version: u32::MAX,
                wait: WaitPolicy::UntilOpen,
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
        let wire = header_bytes(PROTOCOL_VERSION, u32::MAX);
        assert!(matches!(
            read_frame::<Request>(&mut wire.as_slice()),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn another_version_is_named() {
        let mut wire = Vec::new();
        write_frame_of(
            version1::PROTOCOL_VERSION,
            &mut wire,
            &version1::Request::Session,
        )
        .unwrap();
        assert!(matches!(
            read_frame::<Request>(&mut wire.as_slice()),
            Err(FrameError::Version(1))
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

    /// Fails with `error` once, before it reads from the rest.
    struct FailsOnce<'a> {
        error: Option<io::ErrorKind>,
        rest: &'a [u8],
    }

    impl Read for FailsOnce<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.error.take() {
                Some(error) => Err(error.into()),
                None => self.rest.read(buffer),
            }
        }
    }

    #[test]
    fn a_signal_does_not_end_the_reading_but_any_other_error_does() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &Request::Session).unwrap();
        let read = |error| {
            let mut stream = FailsOnce {
                error: Some(error),
                rest: &wire,
            };
            read_frame::<Request>(&mut stream)
        };
        assert_eq!(read(io::ErrorKind::Interrupted).unwrap(), Request::Session);
        let failed = read(io::ErrorKind::TimedOut).unwrap_err();
        assert!(matches!(failed, FrameError::Io(_)), "{failed}");
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
