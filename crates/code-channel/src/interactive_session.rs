//! The session of a tool that a person runs: from an argument, a terminal or standard input.

use std::{
    io::{self, IsTerminal},
    os::fd::BorrowedFd,
};

use tracing::{info, warn};

use crate::{
    Channel, FifoError,
    mfa_prompt::{CodeExchange, MfaPrompt, OnPermanentFailure, PromptError},
};
use aws_session::{
    config::{Config, Mfa},
    credentials::{CredentialsError, Finder},
    session::Session,
    settings::Settings,
    token_code::TokenCode,
};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum InteractiveSessionError {
    /// No source credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Neither a terminal nor standard input can be read.
    #[error(transparent)]
    Channel(#[from] FifoError),
    /// The code gave no session.
    #[error(transparent)]
    MfaPrompt(#[from] PromptError),
    /// The terminal cannot be used.
    #[error("cannot read the terminal: {0}")]
    Terminal(io::Error),
    /// An argument that is no code.
    #[error("the code on the command line is not six digits; leave it out, and it is asked for")]
    NoCode,
    /// A code where none is wanted.
    #[error(
        "there is a code on the command line, but mfa = {0} in the configuration; leave it out"
    )]
    CodeNotWanted(&'static str),
}

/// Opens the session that `config` describes, with the `code` of the command line, or else one that
/// is asked for: at the terminal, again after a wrong one, or on one line of standard input where
/// that is no terminal (what follows the line stays there, for others to read). A session document
/// is taken there too. The FIFO of the configuration is not for this.
///
/// With `mfa = false` nothing is asked for, and the session is the source credentials. The asking
/// ends with [`PromptError::Interrupted`] when `interrupt` becomes readable.
pub fn open_session(
    config: &Config,
    aws: &Settings,
    code: Option<&str>,
    interrupt: BorrowedFd<'_>,
) -> Result<Session, InteractiveSessionError> {
    let code = code
        .map(|code| code_of_argument(config, code))
        .transpose()?;
    let finder = Finder {
        config,
        aws,
        interrupt: Some(interrupt),
    };
    let source = finder.find_for_mfa().map_err(|error| match error {
        CredentialsError::Interrupted => PromptError::Interrupted.into(),
        error => InteractiveSessionError::from(error),
    })?;
    if let (Mfa::Off, Some(source)) = (&config.mfa, &source) {
        return Ok(source.clone());
    }
    let prompt = MfaPrompt {
        config,
        aws,
        trade: CodeExchange::new(config, source.as_ref()),
        on_permanent_failure: OnPermanentFailure::GiveUp,
        interrupt,
        alive: &|| {},
    };
    if let Some(code) = code {
        return Ok(prompt.trade_code(&code)?);
    }
    let mut channel = open_channel()?;
    info!(
        event = "prompt",
        "waiting for {}",
        channel.wanted(&config.mfa)
    );
    Ok(prompt.session(&mut channel)?)
}

fn code_of_argument(config: &Config, code: &str) -> Result<TokenCode, InteractiveSessionError> {
    match config.mfa {
        Mfa::Here { .. } => {}
        Mfa::Elsewhere => return Err(InteractiveSessionError::CodeNotWanted("elsewhere")),
        Mfa::Off => return Err(InteractiveSessionError::CodeNotWanted("false")),
    }
    warn!(
        "a code on the command line shows in the list of processes (ps); leave it out, and it is asked for"
    );
    TokenCode::new(code.as_bytes()).ok_or(InteractiveSessionError::NoCode)
}

fn open_channel() -> Result<Channel, InteractiveSessionError> {
    if io::stdin().is_terminal() {
        return Channel::terminal().map_err(InteractiveSessionError::Terminal);
    }
    Ok(Channel::line())
}
