//! What the page shows: asked of the broker for each request.

use std::{path::Path, time::Duration};

use broker_api::{
    AuditEvent, FailureKind, KeyContext, ListKeys, Overview, Reply, Request, SessionPhase,
    client::{BrokerClient, ClientError},
};

/// How long the broker may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most pages of events and of keys that are asked for: those of the broker are fewer.
const MAX_PAGES: usize = 32;

/// What the broker says.
pub(crate) struct View {
    pub overview: Overview,
    /// The last events of the audit, the latest first.
    pub events: Vec<AuditEvent>,
    pub stored: Stored,
}

/// What the key store has.
pub(crate) enum Stored {
    /// There is no key store.
    NoStore,
    /// The broker reads it with the session, and there is none.
    NoSession,
    /// It cannot be read, for this reason.
    Unreadable(String),
    /// Id and version of its keys.
    Keys(Vec<(u32, u32)>),
}

/// Asks one broker.
pub(crate) struct Broker(BrokerClient);

impl Broker {
    pub fn new(socket: &Path) -> Self {
        Self(BrokerClient::new(socket))
    }

    /// Asks for everything. The error is for the reader of the page.
    pub fn view(&self) -> Result<View, String> {
        let overview = match self.ask(&Request::Overview)? {
            Reply::Overview(overview) => *overview,
            _ => return Err("the broker's answer is not an overview".into()),
        };
        let has_store = overview.session.key_store.is_some();
        Ok(View {
            events: self.events()?,
            stored: match has_store {
                true => self.stored().unwrap_or_else(Stored::Unreadable),
                false => Stored::NoStore,
            },
            overview,
        })
    }

    /// Whether the broker says that a session is open.
    pub fn has_session(&self) -> bool {
        let answer = self.request(&Request::Session);
        matches!(answer, Ok(Reply::Session(session)) if session.phase == SessionPhase::Open)
    }

    fn events(&self) -> Result<Vec<AuditEvent>, String> {
        let mut all: Vec<AuditEvent> = Vec::new();
        for _ in 0..MAX_PAGES {
            let before = all.last().map(|event| event.number);
            match self.ask(&Request::Events { before })? {
                Reply::Events(page) if page.is_empty() => break,
                Reply::Events(page) => all.extend(page),
                _ => return Err("the broker's answer has no events".into()),
            }
        }
        Ok(all)
    }

    fn stored(&self) -> Result<Stored, String> {
        let mut all = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let request = Request::ListKeys(ListKeys {
                after,
                context: KeyContext::default(),
            });
            match self.request(&request)? {
                Reply::KeyList { keys, next } => {
                    all.extend(keys.iter().map(|(name, _)| name.number()));
                    match next {
                        Some(_) => after = next,
                        None => return Ok(Stored::Keys(all)),
                    }
                }
                Reply::Failed(failure) if failure.kind == FailureKind::SessionOver => {
                    return Ok(Stored::NoSession);
                }
                Reply::Failed(failure) => return Err(failure.message),
                _ => return Err("the broker's answer is not a list of keys".into()),
            }
        }
        Err("the key store has too many keys for this page; see kms-data-keys list --store".into())
    }

    fn ask(&self, request: &Request) -> Result<Reply, String> {
        match self.request(request)? {
            Reply::Failed(failure) => Err(failure.message),
            reply => Ok(reply),
        }
    }

    fn request(&self, request: &Request) -> Result<Reply, String> {
        let answer = self.0.request(request, PATIENCE, |_| true);
        // What the client advises is for the socket that serves keys.
        answer.map_err(|error| match error {
            ClientError::NoBroker { socket, source } => format!(
                "no broker shows its state at '{}': {source}; start iam-kms-broker, with overview_socket in its configuration set to that path",
                socket.display()
            ),
            ClientError::NotAllowed {
                socket,
                user,
                source,
                ..
            } => format!(
                "user {user} may not use '{}': {source}; set overview_group in the broker's configuration to a group of that user, and restart the broker",
                socket.display()
            ),
            error => error.to_string(),
        })
    }
}
