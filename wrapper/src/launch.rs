//! What `iam-kms-wrapper` does, in its order: check all that can be checked, get a session, become
//! the command.

use std::{env, io, process::id};

use nix::sys::signal::Signal;
use tracing::{error, info, warn};

use crate::{
    audit,
    broker_process::{Broker, BrokerStartError},
    check, code,
    command_line::CommandLine,
    setup,
};
use aws_session::{
    clock,
    config::{Config, ConfigError, Handoff, Mfa},
    credentials::Credentials,
    service_credential,
    settings::{Reader, Settings, SettingsError},
    source_credentials::{self, CredentialsError, Finder},
};
use code_channel::{
    Channel,
    mfa_prompt::{MfaPrompt, OnPermanentFailure, PromptError},
};
use service::{
    command::{Command, CommandError},
    environment::{self, Variables},
    handover::Handover,
    listen_fds, logging, process,
    signals::Signals,
    stored_session, systemd,
    usage::show_usage,
};

/// Name of the program, in the log and in its help.
const PROGRAM: &str = "iam-kms-wrapper";

/// Why the command does not run.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Broker(#[from] BrokerStartError),
    #[error(transparent)]
    MfaPrompt(#[from] PromptError),
    #[error(
        "{0} is set, which is for a broker that runs as a service of its own: start 'iam-kms-broker --config=FILE' as a service, and the command without iam-kms-wrapper"
    )]
    OnlyForService(&'static str),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("ended by {0} while waiting")]
    Signal(Signal),
}

impl LaunchError {
    /// As env(1), timeout(1) and nice(1) have it.
    fn exit_code(&self) -> i32 {
        match self {
            Self::Command(CommandError::NotFound(_)) => 127,
            Self::Command(CommandError::NotExecutable { .. }) => 126,
            Self::Signal(signal) => 128 + *signal as i32,
            _ => 125,
        }
    }
}

/// Runs the program; returns its exit code if it has not become the command.
pub fn main() -> i32 {
    logging::init(PROGRAM);
    match env::args_os().nth(1) {
        Some(first) if first == code::SUBCOMMAND => return code::main(env::args_os().skip(1)),
        Some(first) if first == audit::SUBCOMMAND => return audit::main(env::args_os().skip(1)),
        Some(first) if first == setup::SUBCOMMAND => return setup::main(env::args_os().skip(1)),
        _ => {}
    }
    let command_line = match CommandLine::parse_arguments(env::args_os()) {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    let failure = match process::protect() {
        Ok(()) if command_line.check => return check::run(command_line),
        Ok(()) => launch(command_line),
        Err(error) => LaunchError::System("protect this process", error),
    };
    error!("{failure}");
    failure.exit_code()
}

/// Becomes the command; returns only with the reason why not.
fn launch(command_line: CommandLine) -> LaunchError {
    match prepare(command_line) {
        Ok((command, variables)) => command.replace_process(&variables).into(),
        Err(failure) => failure,
    }
}

/// Does everything up to the exec.
fn prepare(command_line: CommandLine) -> Result<(Command, Variables), LaunchError> {
    let taken = listen_fds::take(stored_session::NAME)
        .map_err(|error| LaunchError::System("take the kept session out of LISTEN_FDS", error))?;
    let (kept_file, passed_on) = taken.map(|taken| (taken.file, taken.left)).unzip();
    let config = Config::read(&command_line.config)?;
    logging::use_format(config.log_format);
    if config.broker.upstream.is_some() {
        return Err(LaunchError::OnlyForService("upstream"));
    }
    if config.broker.key_server.is_some() {
        return Err(LaunchError::OnlyForService("tls_listen"));
    }
    if let Err(exposure) = process::check_own_program() {
        warn!("{exposure}");
    }
    if config.handoff == Handoff::Broker {
        // A warning: the server knows more of its plugins than its options say.
        if let Err(conflict) = check::check_loading(&command_line.command) {
            warn!("{conflict}");
        }
    }
    let command = Command::find(command_line.command)?;
    let aws = Settings::read(&config.session, Reader::Service)?;
    let finder = Finder {
        config: &config.session,
        aws: &aws,
        // Signals still end us by themselves.
        interrupt: None,
    };
    let source = finder.find_for_mfa()?;
    let (broker, of_key_store) = match config.handoff {
        Handoff::Broker => (
            Some(Broker::find(&config.broker)?),
            source_credentials::of_key_store(&config, &aws, None)?,
        ),
        Handoff::Environment => (None, None),
    };
    let signals = Signals::hold().map_err(|error| LaunchError::System("hold signals", error))?;
    let kept =
        kept_file.and_then(|file| stored_session::reuse(&config.session, source.as_ref(), file));
    let is_kept = kept.is_some();
    let obtained = kept.map_or_else(
        || obtain_session(&config, &aws, source.as_ref(), &signals),
        Ok,
    );
    let session = match obtained {
        Err(LaunchError::MfaPrompt(PromptError::Interrupted)) => {
            return Err(end_by_signal(signals));
        }
        session => session?,
    };
    if !is_kept {
        stored_session::keep(&config.session, source.as_ref(), &session);
    }
    report(&config.session.mfa, &session, is_kept, &command);
    let finds_its_own = finds_its_own(&config, &session);
    let mut variables = match finds_its_own {
        true => env::vars_os().collect(),
        false => environment::for_command(),
    };
    if let Some(names) = passed_on {
        environment::set_passed_descriptors(&mut variables, &names);
    }
    if !environment::has_region(&variables)
        && let Some(region) = aws.configured_region()
    {
        environment::add_region(&mut variables, region.into());
    }
    match broker {
        Some(broker) => {
            let of_key_store = match of_key_store {
                // It may have expired in the time that an operator took.
                Some(Credentials {
                    expiration_unix_seconds: Some(_),
                    ..
                }) => match source_credentials::of_key_store(
                    &config,
                    &aws,
                    Some(signals.descriptor()),
                ) {
                    Err(CredentialsError::Interrupted) => return Err(end_by_signal(signals)),
                    found => found?,
                },
                found => found,
            };
            let handover = Handover {
                config,
                session,
                clock: clock::read(),
                source,
                key_store_credentials: of_key_store,
                server_pid: id().cast_signed(),
            };
            broker.start(&handover, env::vars_os().collect())?;
        }
        None if finds_its_own => {}
        None => environment::add_session(&mut variables, &session),
    }
    signals
        .release()
        .map_err(|error| LaunchError::System("release signals", error))?;
    Ok((command, variables))
}

/// Whether the command is left to find the credentials by itself, as it would without us: those of a
/// role end, and in its environment they would stay as they are, while its own SDK gets the next.
///
/// What only we can find is still handed over.
fn finds_its_own(config: &Config, session: &Credentials) -> bool {
    config.session.mfa == Mfa::Off
        && config.handoff == Handoff::Environment
        && session.expiration_unix_seconds.is_some()
        && config.session.profile.is_none()
        && service_credential::file().is_none()
}

/// Asks for a code, or takes the source credentials as they are.
fn obtain_session(
    config: &Config,
    aws: &Settings,
    source: Option<&Credentials>,
    signals: &Signals,
) -> Result<Credentials, LaunchError> {
    let announce = |channel: &Channel| {
        let wanted = channel.wanted(&config.session.mfa);
        info!(event = "prompt", "waiting for {wanted}");
        systemd::status(&format!("Waiting for {wanted}"));
    };
    let prompt = MfaPrompt {
        config: &config.session,
        aws,
        source,
        timeout: config.fifo.prompt_timeout,
        on_permanent_failure: OnPermanentFailure::GiveUp,
        reason: None,
        interrupt: signals.descriptor(),
        announce: &announce,
        alive: &systemd::extend_timeout,
    };
    let session = prompt.session(|| Channel::of_service(&config.fifo))?;
    systemd::extend_timeout();
    Ok(session)
}

fn report(mfa: &Mfa, session: &Credentials, is_kept: bool, command: &Command) {
    let until = session.expiration_text();
    let command = command.path().display();
    let how = if is_kept {
        " (kept by systemd, so no code is asked for)"
    } else {
        ""
    };
    match mfa {
        Mfa::Off => info!(
            event = "session_open",
            access_key_id = session.access_key_id,
            expiration = until,
            "no MFA code is asked for (mfa = false); starting {command}"
        ),
        _ => info!(
            event = "session_open",
            access_key_id = session.access_key_id,
            expiration = until,
            "session {} is open until {until}{how}; starting {command}",
            session.access_key_id
        ),
    }
    systemd::status(&format!(
        "Session open until {until}{how}; starting {command}"
    ));
}

fn end_by_signal(signals: Signals) -> LaunchError {
    let Some(signal) = signals.received() else {
        return LaunchError::System("read the signal", io::ErrorKind::WouldBlock.into());
    };
    info!("ended by {signal} while waiting for a code");
    match signals.die_of(signal) {
        Ok(()) => LaunchError::Signal(signal),
        Err(error) => LaunchError::System("die of the signal", error),
    }
}
