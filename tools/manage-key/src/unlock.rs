//! `unlock`: enables the key only while a command runs.

use std::{
    borrow::Cow,
    io::{self, IsTerminal},
    time::Duration,
};

use aws_sdk_kms::types::KeyState;
use tracing::{error, info, warn};

use super::{Attempt, Change, End, ManageError, PROGRAM, Tool, catch_panic, child, not_described};
use aws_session::{config::Mfa, credentials::Credentials};
use service::command::Command;

/// How long to keep trying to disable the key while KMS does not answer: as long as the shortest
/// session lasts.
const DISABLE_PATIENCE: Duration = Duration::from_secs(900);

/// Enables the key, runs `command`, and disables the key again, whatever happens meanwhile. Without
/// kms:DescribeKey it does nothing, because neither state could be verified.
pub(super) fn unlock(tool: &Tool<'_>, command: &Command) -> Result<End, ManageError> {
    let session = tool.open_session(None)?;
    let key = tool.open_key(&session, Some(tool.signals.descriptor()))?;
    let (caller, description) = key.look(tool.key.as_str());
    let description = description.map_err(not_described)?;
    let was_enabled = description.state == KeyState::Enabled;
    let arn = description.changeable().map_err(ManageError::Refused)?;
    if was_enabled {
        warn!("{arn} is enabled already; it will be disabled at the end nevertheless");
    }
    let enable = tool.attempt(&key, &arn, Change::Enable, &caller);
    let mut is_refused = false;
    let outcome = catch_panic(|| {
        let enabled = enable.make();
        is_refused = matches!(
            enabled,
            Err(ManageError::Refused(_) | ManageError::SessionOver(_))
        );
        enabled?;
        fault_point("enabled");
        announce(command, &session);
        child::run(command, tool.signals)
    });
    if is_refused {
        return outcome;
    }
    // Signals that arrived during the wait for KMS, before the command existed.
    let outcome = match (outcome, tool.signals.received()) {
        (Err(ManageError::Interrupted(_)), Some(received)) => {
            warn!("{} arrived before the command was started", received.number);
            Ok(End::Signal(received.number))
        }
        (outcome, _) => outcome,
    };
    let disabled = disable(tool, session, &arn, &caller);
    if let (Err(failure), Err(_)) = (&outcome, &disabled) {
        error!("{failure}");
    }
    disabled.and(outcome)
}

fn announce(command: &Command, session: &Credentials) {
    let path = command.path().display();
    match session.expiration_unix_seconds {
        Some(_) => info!(
            "starting {path}; the session that will disable the key is open until {} (session_duration_seconds)",
            session.expiration_text()
        ),
        None => info!("starting {path}"),
    }
}

/// Disables the key. No signal interrupts this. If the session has ended, opens a new one if possible.
fn disable(
    tool: &Tool<'_>,
    session: Credentials,
    arn: &str,
    caller: &str,
) -> Result<(), ManageError> {
    let once = |session: &Credentials| {
        fault_point("disabling");
        let key = tool.open_key(session, None)?;
        let attempt = Attempt {
            request_patience: DISABLE_PATIENCE,
            ..tool.attempt(&key, arn, Change::Disable, caller)
        };
        attempt.make()
    };
    // The second attempt creates everything again.
    let with = |session: &Credentials| match catch_panic(|| once(session)) {
        Err(ManageError::Defect) => {
            warn!("trying again after an internal error (panic)");
            catch_panic(|| once(session))
        }
        result => result,
    };
    let left_enabled = |why: ManageError| {
        ManageError::LeftEnabled(format!(
            "THE KEY MAY STILL BE ENABLED: {why}; disable it now: {PROGRAM} {} {} disable",
            quoted(&format!("--config={}", tool.config_path.display())),
            quoted(&format!("--key={arn}"))
        ))
    };
    let why = match with(&session) {
        Err(why @ ManageError::SessionOver(_)) => why,
        result => return result.map_err(left_enabled),
    };
    if tool.config.session.mfa != Mfa::Off && !io::stdin().is_terminal() {
        return Err(left_enabled(why));
    }
    warn!("{why}; a new one is needed to disable the key");
    // They were not meant for the prompt that follows.
    while tool.signals.received().is_some() {}
    let session = tool.open_session(None).map_err(left_enabled)?;
    with(&session).map_err(left_enabled)
}

/// Quotes a word for the shell that the command is pasted into.
fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=+:,./@%".contains(&byte);
    match word.bytes().all(is_plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

/// For tests: panics if `KMS_MANAGE_KEY_PANIC` names this point.
#[cfg(feature = "fault-points")]
fn fault_point(name: &str) {
    if std::env::var("KMS_MANAGE_KEY_PANIC").is_ok_and(|point| point == name) {
        std::panic::resume_unwind(Box::new("as the test says"));
    }
}

#[cfg(not(feature = "fault-points"))]
fn fault_point(_: &str) {}
