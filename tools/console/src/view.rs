//! What the page shows: asked of the broker for each request.

use std::{path::Path, time::Duration};

use broker_api::{
    AuditEvent, KeyContext, ListKeys, Overview, Reply, Request,
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
    /// Id and version of the keys in the key store; `None`: there is none. Or why they are not known.
    pub stored: Option<Result<Vec<(u32, u32)>, String>>,
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
            stored: has_store.then(|| self.stored()),
            overview,
        })
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

    fn stored(&self) -> Result<Vec<(u32, u32)>, String> {
        let mut all = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let request = Request::ListKeys(ListKeys {
                after,
                context: KeyContext::default(),
            });
            match self.ask(&request)? {
                Reply::KeyList { keys, next } => {
                    all.extend(keys.iter().map(|(name, _)| name.number()));
                    match next {
                        Some(_) => after = next,
                        None => return Ok(all),
                    }
                }
                _ => return Err("the broker's answer is not a list of keys".into()),
            }
        }
        Err("the key store has too many keys for this page; see kms-data-keys list --store".into())
    }

    fn ask(&self, request: &Request) -> Result<Reply, String> {
        let answer = self.0.request(request, PATIENCE, |_| true);
        // What the client advises is for the socket that serves keys.
        let answer = answer.map_err(|error| match error {
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
        })?;
        match answer {
            Reply::Failed(failure) => Err(failure.message),
            reply => Ok(reply),
        }
    }
}
