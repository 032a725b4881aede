//! The connection of a peer: frames with a time limit each.

use std::{future::Future, io, time::Duration};

use broker_api::{
    FrameError, HEADER_BYTES, Header, MAX_FRAME_BYTES, PROTOCOL_VERSION, Reply, WAITING_INTERVAL,
    Waiting, encode, version1,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

/// A peer that has nothing to ask for this long is let go; it comes back when it needs us.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a whole frame may take, from its first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// A frame as it came.
pub(crate) struct Frame {
    pub version: u8,
    /// Empty if it is longer than [`MAX_FRAME_BYTES`].
    pub body: Zeroizing<Vec<u8>>,
    /// Length of the body as the peer claims.
    pub body_bytes: usize,
}

/// A connection; replies go out in the version of the last frame.
pub(crate) struct Connection {
    stream: UnixStream,
    version: u8,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            version: PROTOCOL_VERSION,
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

    /// Reads the rest of the frame that begins with `version`. A body that is too long is left unread.
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
            let readable = if body_bytes > MAX_FRAME_BYTES {
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

    /// Sends a reply; one to a version that we do not know in our own.
    pub async fn reply(&mut self, reply: Reply) -> Result<(), FrameError> {
        let frame = match self.version {
            version1::PROTOCOL_VERSION => encode(self.version, &version1::Reply::from(reply)),
            _ => encode(PROTOCOL_VERSION, &reply),
        }?;
        Ok(in_time(FRAME_TIMEOUT, self.stream.write_all(&frame)).await?)
    }

    /// Waits for `event`, and tells the peer so as long as it lasts. Fails when the peer has left.
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

    /// The same for some time.
    pub async fn wait(
        &mut self,
        waiting: impl Fn() -> Waiting,
        duration: Duration,
    ) -> Result<(), FrameError> {
        if duration.is_zero() {
            return Ok(());
        }
        self.wait_for(waiting, sleep(duration)).await
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
