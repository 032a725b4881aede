//! The session of a tool that an operator runs: from an argument, a terminal or standard input.

use std::os::fd::BorrowedFd;

use tracing::{info, warn};

use crate::{
    Channel,
    mfa_prompt::{MfaPrompt, OnPermanentFailure, PromptError},
};
use aws_session::{
    config::{Config, Mfa},
    credentials::Credentials,
    settings::Settings,
    source_credentials::{CredentialsError, Finder},
    token_code::TokenCode,
};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum InteractiveSessionError {
    /// No source credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The code gave no session.
    #[error(transparent)]
    MfaPrompt(#[from] PromptError),
    /// The argument is not a code.
    #[error("the code on the command line is not six digits; omit it to be prompted for it")]
    NoCode,
    /// A code was given, but none is needed.
    #[error(
        "there is a code on the command line, but the configuration has mfa = {0}; omit the code"
    )]
    CodeNotWanted(&'static str),
}

/// Opens the session that `config` describes with the `code` of the command line. Without one, prompts
/// at the terminal, and again after a wrong code. If standard input is not a terminal, reads one line
/// there and leaves the rest for others. Both accept a session document as well. The FIFO of the
/// configuration is not used. The audit records `reason`.
///
/// With `mfa = false` there is no prompt, and the session is the source credentials. When `interrupt`
/// becomes readable, the error is [`PromptError::Interrupted`].
pub fn open_session(
    config: &Config,
    aws: &Settings,
    code: Option<&str>,
    reason: Option<&str>,
    interrupt: BorrowedFd<'_>,
) -> Result<Credentials, InteractiveSessionError> {
    let session = &config.session;
    let code = code
        .map(|code| code_of_argument(&session.mfa, code))
        .transpose()?;
    let finder = Finder {
        config: session,
        aws,
        interrupt: Some(interrupt),
    };
    let source = finder.find_for_mfa().map_err(|error| match error {
        CredentialsError::Interrupted => PromptError::Interrupted.into(),
        error => InteractiveSessionError::from(error),
    })?;
    let announce = |channel: &Channel| {
        info!(
            event = "prompt",
            "waiting for {}",
            channel.wanted(&session.mfa)
        )
    };
    let prompt = MfaPrompt {
        config: session,
        aws,
        source: source.as_ref(),
        timeout: config.fifo.prompt_timeout,
        on_permanent_failure: OnPermanentFailure::GiveUp,
        reason,
        interrupt,
        announce: &announce,
        alive: &|| {},
    };
    Ok(match code {
        Some(code) => prompt.exchange_code(&code)?,
        None => prompt.session(Channel::standard_input)?,
    })
}

fn code_of_argument(mfa: &Mfa, code: &str) -> Result<TokenCode, InteractiveSessionError> {
    match mfa {
        Mfa::Here { .. } => {}
        Mfa::Elsewhere => return Err(InteractiveSessionError::CodeNotWanted("elsewhere")),
        Mfa::Off => return Err(InteractiveSessionError::CodeNotWanted("false")),
    }
    warn!(
        "a code on the command line is visible in the list of processes (ps); omit it to be prompted for it"
    );
    TokenCode::new(code.as_bytes()).ok_or(InteractiveSessionError::NoCode)
}
