//! The connection of a peer, with a time limit for each frame.

use std::{future::Future, io, time::Duration};

use broker_api::{
    FrameError, HEADER_BYTES, Header, MAX_FRAME_BYTES, PROTOCOL_VERSION, Reply, WAITING_INTERVAL,
    Waiting, encode, version1,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use zeroize::Zeroizing;

/// An idle connection is closed after this time; the peer reconnects when it needs the broker.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a frame may take from its first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// A frame as received.
pub(crate) struct Frame {
    pub version: u8,
    /// Empty if it is longer than the connection allows.
    pub body: Zeroizing<Vec<u8>>,
    /// Length of the body as the peer claims.
    pub body_bytes: usize,
}

/// A connection. Replies use the protocol version of the last frame.
pub(crate) struct Connection<S> {
    stream: S,
    version: u8,
    most_body_bytes: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Reads bodies of frames up to `most_body_bytes`.
    pub fn new(stream: S, most_body_bytes: usize) -> Self {
        Self {
            stream,
            version: PROTOCOL_VERSION,
            most_body_bytes: most_body_bytes.min(MAX_FRAME_BYTES),
        }
    }

    /// Waits for the next frame, and reads its first byte.
    pub async fn begin(&mut self) -> Result<u8, FrameError> {
        let mut version = [0];
        match in_time(IDLE_TIMEOUT, self.stream.read(&mut version)).await? {
            0 => Err(FrameError::Closed),
            _ => Ok(version[0]),
        }
    }

    /// Reads the rest of the frame that starts with `version`. A body that is too long is not read.
    pub async fn finish(&mut self, version: u8) -> Result<Frame, FrameError> {
        self.version = version;
        let frame = in_time(FRAME_TIMEOUT, async {
            let mut header = [version; HEADER_BYTES];
            let (_, length) = header.split_at_mut(1);
            self.stream.read_exact(length).await?;
            let Header {
                version,
                body_bytes,
            } = Header::parse(header);
            let readable = if body_bytes > self.most_body_bytes {
                0
            } else {
                body_bytes
            };
            let mut body = Zeroizing::new(vec![0; readable]);
            self.stream.read_exact(&mut body).await?;
            Ok(Frame {
                version,
                body,
                body_bytes,
            })
        });
        Ok(frame.await?)
    }

    /// Sends a reply. If the peer's version is unknown, uses the current version.
    pub async fn reply(&mut self, reply: Reply) -> Result<(), FrameError> {
        let frame = match self.version {
            version1::PROTOCOL_VERSION => encode(self.version, &version1::Reply::from(reply)),
            _ => encode(PROTOCOL_VERSION, &reply),
        }?;
        let written = in_time(FRAME_TIMEOUT, async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        });
        Ok(written.await?)
    }

    /// Waits for `event`, and keeps telling the peer so. Fails if the peer disconnects.
    pub async fn wait_for<T>(
        &mut self,
        waiting: impl Fn() -> Waiting,
        event: impl Future<Output = T>,
    ) -> Result<T, FrameError> {
        let mut event = std::pin::pin!(event);
        loop {
            match timeout(WAITING_INTERVAL, &mut event).await {
                Ok(result) => return Ok(result),
                Err(_) => self.reply(Reply::Waiting(waiting())).await?,
            }
        }
    }
}

pub(crate) async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
