//! Accepts peers and answers them, each in a thread of its own.

use std::{
    io::ErrorKind,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use broker_api::{
    Failure, FailureKind, FrameError, MayWait, Reply, Request, read_frame, write_frame,
};
use tracing::warn;

use crate::{
    audit,
    keeper::Keeper,
    kms::Kms,
    listener::{Admission, Peer},
};

/// Enough for a server that loads its keys, a backup and a state transfer beside it.
const MAX_PEERS: usize = 128;

/// Of them, so many may wait for a person; the others are told at once that there is no session.
const MAX_WAITING: usize = 64;

/// A peer that has nothing to ask for this long, or stops in the middle of a frame, is let go;
/// it comes back when it needs us.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What all conversations share.
pub(crate) struct Service {
    pub keeper: Keeper,
    pub kms: Kms,
    pub admission: Admission,
    pub peers: Seats,
    pub waiting: Seats,
}

impl Service {
    pub fn new(keeper: Keeper, kms: Kms, admission: Admission) -> Self {
        Self {
            keeper,
            kms,
            admission,
            peers: Seats::new(MAX_PEERS),
            waiting: Seats::new(MAX_WAITING),
        }
    }

    /// Accepts peers for as long as the process lives.
    pub fn accept(self: &Arc<Self>, socket: &UnixListener) {
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
            if let Err(error) = self.admit(stream) {
                warn!("dropped a peer: {error}");
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) -> Result<(), String> {
        let peer = Peer::of(&stream).map_err(|error| format!("unknown: {error}"))?;
        if let Err(why) = self.admission.check(&peer) {
            audit::peer_refused(&peer, &why);
            return Ok(());
        }
        let Some(seat) = self.peers.take() else {
            return Err(format!("there are {MAX_PEERS} already"));
        };
        let service = Arc::clone(self);
        thread::Builder::new()
            .name("peer".into())
            .spawn(move || {
                let _seat = seat;
                if let Err(error) = service.converse(stream, &peer)
                    && !has_left(&error)
                {
                    warn!("dropped the peer with {peer}: {error}");
                }
            })
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Answers requests until the peer leaves, which is an error too, or sends what is no request.
    fn converse(&self, mut stream: UnixStream, peer: &Peer) -> Result<(), FrameError> {
        stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
        stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
        loop {
            let request = read_frame(&mut stream)?;
            let answered = self.answer(&mut stream, &request);
            audit::answered(peer, &request, &answered);
            write_frame(&mut stream, &answered.unwrap_or_else(Reply::Failed))?;
        }
    }

    /// Has KMS asked, after a wait for a session where there is none and the peer may wait.
    fn answer(&self, stream: &mut UnixStream, request: &Request) -> Result<Reply, Failure> {
        let may_wait = request.options().map_or(MayWait::No, |it| it.may_wait);
        let limit = self.keeper.wait_limit(may_wait);
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            let over = match self.kms.answer(&self.keeper, request) {
                Err(failure) if failure.kind == FailureKind::SessionOver => failure,
                answered => return answered,
            };
            let Some(_seat) = self.waiting.take() else {
                return Err(over);
            };
            // To a peer that has left it cannot be said.
            let say_waiting =
                |over: Failure| write_frame(stream, &Reply::Waiting(over.message)).is_ok();
            if !self.keeper.wait_for_session(until, say_waiting) {
                return Err(over);
            }
        }
    }
}

fn has_left(error: &FrameError) -> bool {
    match error {
        FrameError::Closed => true,
        FrameError::Io(error) => matches!(
            error.kind(),
            ErrorKind::WouldBlock
                | ErrorKind::TimedOut
                | ErrorKind::ConnectionReset
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}

/// A limited number of places.
pub(crate) struct Seats {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// A place, given back when dropped.
struct Seat(Arc<AtomicUsize>);

impl Seats {
    fn new(limit: usize) -> Self {
        Self {
            taken: Arc::default(),
            limit,
        }
    }

    fn take(&self) -> Option<Seat> {
        let seat = Seat(Arc::clone(&self.taken));
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.limit).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
