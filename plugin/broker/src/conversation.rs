//! Accepts peers and answers them, each in a thread of its own.

use std::{
    io::{self, ErrorKind},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use broker_protocol::{FrameError, Reply, Request, read_frame, write_frame};
use tracing::warn;

use crate::{keeper::Keeper, kms::Kms, listener::check_peer};

/// Enough for a server that loads its keys, a backup and a state transfer beside it.
const MAX_PEERS: usize = 128;

/// A peer that has nothing to ask for this long, or stops in the middle of a frame, is let go;
/// it comes back when it needs us.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Accepts peers for as long as the process lives.
pub(crate) fn accept(socket: &UnixListener, keeper: &Arc<Keeper>, kms: &Arc<Kms>) {
    let peers = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("cannot accept a peer: {error}");
                // Out of descriptors, most likely: give the others time to end.
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if let Err(error) = admit(stream, &peers, keeper, kms) {
            warn!("dropped a peer: {error}");
        }
    }
}

fn admit(
    stream: UnixStream,
    peers: &Arc<AtomicUsize>,
    keeper: &Arc<Keeper>,
    kms: &Arc<Kms>,
) -> Result<(), String> {
    let peer = check_peer(&stream)?;
    let seat = Seat::take(peers).ok_or_else(|| format!("there are {MAX_PEERS} already"))?;
    let (keeper, kms) = (Arc::clone(keeper), Arc::clone(kms));
    thread::Builder::new()
        .name("peer".into())
        .spawn(move || {
            let _seat = seat;
            if let Err(error) = converse(stream, &keeper, &kms) {
                warn!(
                    "dropped the peer with uid {}, pid {}: {error}",
                    peer.uid(),
                    peer.pid()
                );
            }
        })
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Answers requests until the peer leaves or sends what is no request.
fn converse(mut stream: UnixStream, keeper: &Keeper, kms: &Kms) -> Result<(), FrameError> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    loop {
        let request = match read_frame(&mut stream) {
            Ok(request) => request,
            Err(FrameError::Closed) => return Ok(()),
            Err(FrameError::Io(error)) if has_left(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        write_frame(&mut stream, &answer(request, keeper, kms))?;
    }
}

fn has_left(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::ConnectionReset
            | ErrorKind::UnexpectedEof
    )
}

fn answer(request: Request, keeper: &Keeper, kms: &Kms) -> Reply {
    let answered = match request {
        Request::Session => Ok(Reply::Session(keeper.state())),
        Request::Decrypt(request) => kms.decrypt(keeper, request),
        Request::GenerateDataKey(request) => kms.generate_data_key(keeper, request),
    };
    answered.unwrap_or_else(Reply::Failed)
}

/// A place among the peers, given back when dropped.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(peers: &Arc<AtomicUsize>) -> Option<Self> {
        let seat = Self(Arc::clone(peers));
        (peers.fetch_add(1, Ordering::Relaxed) < MAX_PEERS).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
