//! Certificates that are read again when their files change.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_session::{
    clock::{unix_seconds_now, utc_text},
    config::TlsFiles,
    thread,
};
use broker_api::CertificateEnd;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::{Certificate, ClientTls, Content, ServerTls, TlsFilesError, WARNING_SECONDS};

/// How often the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// How often the end of the certificate is warned of.
const WARNING_INTERVAL: Duration = Duration::from_secs(86_400);

/// One side of TLS, made of its files.
pub trait Side: Sized {
    /// The certificate that it shows.
    fn certificate(&self) -> &Certificate;
}

impl Side for ServerTls {
    fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}

impl Side for ClientTls {
    fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}

/// Calls `refresh` again and again, as long as it is polled, and `changed` each time that it returns true. `refresh` has a
/// thread of its own: it reads files, a file server may hang, and whoever polls this accepts connections too.
pub async fn watch(refresh: impl Fn() -> bool + Send + Sync + 'static, changed: impl Fn()) {
    let refresh = Arc::new(refresh);
    loop {
        sleep(RELOAD_INTERVAL).await;
        let refresh = Arc::clone(&refresh);
        // Where no thread can be started now, the next round may have one.
        if let Ok(refreshed) = thread::apart("reload", move || refresh())
            && refreshed.await.unwrap_or(false)
        {
            changed();
        }
    }
}

/// Makes a side of the content of its files.
type Make<T> = fn(&TlsFiles, &Content) -> Result<T, TlsFilesError>;

/// The files of one side, and what they contain.
pub struct WatchedFiles<T> {
    files: TlsFiles,
    make: Make<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    content: Content,
    current: Arc<T>,
    /// What was wrong with the files when they were last read.
    failure: Option<String>,
    /// When its end was last logged, and whether it had come.
    warned: Option<(Instant, bool)>,
}

impl<T: Side> WatchedFiles<T> {
    /// Reads the files for the first time. `make` is a constructor of [`ServerTls`] or [`ClientTls`].
    pub fn read(files: TlsFiles, make: Make<T>) -> Result<Self, TlsFilesError> {
        let content = Content::read(&files)?;
        let current = Arc::new(make(&files, &content)?);
        let watched = Self {
            files,
            make,
            state: Mutex::new(State {
                content,
                current,
                failure: None,
                warned: None,
            }),
        };
        watched.warn_of_end(&mut watched.state());
        Ok(watched)
    }

    /// What the files contained when they were last valid.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.state().current)
    }

    /// Returns the file of the certificate and when it ends.
    pub fn certificate_end(&self) -> CertificateEnd {
        CertificateEnd {
            file: self.files.certificate.display().to_string(),
            expiration_unix_seconds: self.state().current.certificate().not_after_unix_seconds,
        }
    }

    /// Reads the files again, and returns whether they have changed. What was valid before stays until they are valid.
    pub fn refresh(&self) -> bool {
        // Without the lock, which each handshake needs: a file server may hang.
        let read = Content::read(&self.files);
        let mut state = self.state();
        self.warn_of_end(&mut state);
        let made = read.and_then(|content| match content == state.content {
            true => Ok(None),
            false => (self.make)(&self.files, &content).map(|made| Some((content, made))),
        });
        let (content, made) = match made {
            Ok(None) => {
                state.failure = None;
                return false;
            }
            Ok(Some(made)) => made,
            Err(failure) => {
                let failure = failure.to_string();
                if state.failure.as_ref() != Some(&failure) {
                    error!(
                        event = "certificate_failed",
                        "the changed certificates are not used: {failure}"
                    );
                    state.failure = Some(failure);
                }
                return false;
            }
        };
        info!(
            event = "certificate_loaded",
            "the certificate {} was read again; it is valid until {}",
            self.files.certificate.display(),
            utc_text(made.certificate().not_after_unix_seconds)
        );
        *state = State {
            content,
            current: Arc::new(made),
            failure: None,
            warned: None,
        };
        self.warn_of_end(&mut state);
        true
    }

    fn warn_of_end(&self, state: &mut State<T>) {
        let end = state.current.certificate().not_after_unix_seconds;
        let left = end.saturating_sub(unix_seconds_now());
        let has_ended = left <= 0;
        let is_logged = state.warned.is_some_and(|(at, had_ended)| {
            had_ended == has_ended && at.elapsed() < WARNING_INTERVAL
        });
        if left > WARNING_SECONDS || is_logged {
            return;
        }
        state.warned = Some((Instant::now(), has_ended));
        let path = self.files.certificate.display();
        match has_ended {
            true => error!(
                event = "certificate_end",
                "the certificate {path} (or that of an authority in this file) expired at {}, so the other side may refuse this host; replace the file; it is reloaded automatically",
                utc_text(end)
            ),
            false => warn!(
                event = "certificate_end",
                "the certificate {path} (or that of an authority in this file) expires at {}, in {}; replace the file; it is reloaded automatically",
                utc_text(end),
                days_text(left / 86_400)
            ),
        }
    }

    /// Consistent at every unlock.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn days_text(days: i64) -> String {
    match days {
        0 => "less than a day".into(),
        1 => "1 day".into(),
        _ => format!("{days} days"),
    }
}
