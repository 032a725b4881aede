//! The commands.

mod arguments;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::authorization;
use crate::credential_files;
use crate::error::complain;
use crate::exchange::Exchange;
use crate::fault::{Fault, FaultKind};
use crate::policy::{Policy, PolicyError, PolicyKind, PrincipalNames, Question};
use crate::server::{self, ServeError, TlsFiles};
use crate::state::{Role, State, User};
use crate::store::{Store, StoreError};
use arguments::{Arguments, Attached, Command};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    #[error("--milliseconds is for --kind delay only")]
    NoDelay,
    #[error("cannot read '{path}': {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("'{path}' is not a policy that can be used: {source}")]
    Policy { path: PathBuf, source: PolicyError },
    #[error("there is a {0} of that name already; choose another")]
    Taken(&'static str),
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Init(arguments) => init(&arguments),
        Command::Serve(arguments) => serve(arguments),
        Command::User(arguments) => add_user(arguments),
        Command::Role(arguments) => add_role(arguments),
        Command::Key(arguments) => add_key(&arguments),
        Command::Fault(arguments) => set_fault(arguments),
        Command::Simulate(arguments) => simulate(arguments),
        Command::Clock(arguments) => Ok(Store::open(&arguments.state)?
            .transaction(|state| state.clock_offset_seconds = arguments.offset_seconds)?),
    }
}

fn simulate(arguments: arguments::Simulate) -> Result<(), CommandError> {
    let path = arguments.policy;
    let text = std::fs::read_to_string(&path).map_err(|source| CommandError::Read {
        path: path.clone(),
        source,
    })?;
    let kind = match arguments.kind {
        Attached::Identity => PolicyKind::Identity,
        Attached::Bucket => PolicyKind::Bucket,
    };
    let policy =
        Policy::parse(&text, kind).map_err(|source| CommandError::Policy { path, source })?;
    let account = arguments.principal.split(':').nth(4).unwrap_or_default();
    let verdict = policy.ask(&Question {
        action: &arguments.action,
        resource: &arguments.resource,
        principal: &PrincipalNames {
            root_arn: format!("arn:aws:iam::{account}:root"),
            account: account.to_owned(),
            arns: vec![arguments.principal.clone()],
            service: None,
        },
        context: &arguments.context.into_iter().collect(),
    });
    let answer = match (verdict.denied, verdict.allowed) {
        (true, _) => "denied",
        (false, true) => "allowed",
        (false, false) => "not allowed",
    };
    writeln!(std::io::stdout(), "{answer}").map_err(CommandError::Output)
}

fn init(arguments: &arguments::Init) -> Result<(), CommandError> {
    let arguments::Init {
        state: directory,
        account,
        user,
        region,
    } = arguments;
    let state = State::new(account, region, user)?;
    let store = Store::create(directory, &state)?;
    credential_files::write_all(&store, &state)?;
    say(&format!(
        "made account {account} in {region}\n\
         user {user}: credentials, env, mfa-serial and mfa-seed\n\
         key alias/mariadb\n\
         next: local-aws serve --state '{}'",
        directory.display()
    ))
}

fn serve(arguments: arguments::Serve) -> Result<(), CommandError> {
    let exchange = Exchange {
        store: Store::open(&arguments.state)?,
        session_lifetime_seconds: arguments.session_lifetime,
        key_state_delay: Duration::from_millis(arguments.key_state_delay_milliseconds.into()),
        machine_role: arguments.machine_role,
    };
    let tls = arguments.tls_cert.zip(arguments.tls_key);
    let tls = tls.map(|(certificates, key)| TlsFiles { certificates, key });
    let runtime = tokio::runtime::Runtime::new().map_err(CommandError::Runtime)?;
    Ok(runtime.block_on(server::serve(exchange, arguments.listen, tls))?)
}

fn add_user(arguments: arguments::User) -> Result<(), CommandError> {
    let store = Store::open(&arguments.state)?;
    let policy = arguments.policy.as_deref().map(read).transpose()?;
    let name = arguments.name;
    store.transaction(|state| {
        if state.users.contains_key(&name) {
            return Err(CommandError::Taken("user"));
        }
        let policy = policy
            .map(|policy| policy.check(state, PolicyKind::Identity))
            .transpose()?;
        state.users.insert(name.clone(), User::new(policy)?);
        Ok(credential_files::write_all(&store, state)?)
    })??;
    say(&format!(
        "made user {name}: users/{name}/ of the state directory"
    ))
}

fn add_role(arguments: arguments::Role) -> Result<(), CommandError> {
    let store = Store::open(&arguments.state)?;
    let trust = read(&arguments.trust)?;
    let policy = arguments.policy.as_deref().map(read).transpose()?;
    let name = arguments.name;
    let arn = store.transaction(|state| {
        if state.roles.contains_key(&name) {
            return Err(CommandError::Taken("role"));
        }
        let trust = trust.check(state, PolicyKind::Trust)?;
        let policy = policy
            .map(|policy| policy.check(state, PolicyKind::Identity))
            .transpose()?;
        let arn = state.role_arn(&name);
        state.roles.insert(name, Role::new(trust, policy)?);
        Ok(arn)
    })??;
    say(&format!("made role {arn}"))
}

fn add_key(arguments: &arguments::Key) -> Result<(), CommandError> {
    let policy = arguments.policy.as_deref().map(read).transpose()?;
    let arn = Store::open(&arguments.state)?.transaction(|state| {
        let region = arguments.region.as_ref().unwrap_or(&state.region);
        let mut place = state.place_in(region);
        if let Some(account) = &arguments.account {
            place.account.clone_from(account);
        }
        let alias = arguments.alias.as_deref();
        if alias.is_some_and(|alias| state.aliases.contains_key(&place.arn(alias))) {
            return Err(CommandError::Taken("alias"));
        }
        let policy = policy
            .map(|policy| policy.check(state, PolicyKind::Key))
            .transpose()?;
        Ok(state.add_key(place, policy, alias)?)
    })??;
    say(&arn)
}

/// Sets a fault; clears all if there is none to set.
fn set_fault(arguments: arguments::Fault) -> Result<(), CommandError> {
    let arguments::Fault {
        operation,
        kind,
        milliseconds,
        count,
        ..
    } = arguments;
    if milliseconds.is_some() && kind != Some(FaultKind::Delay) {
        return Err(CommandError::NoDelay);
    }
    let fault = operation.zip(kind).map(|(operation, kind)| Fault {
        operation,
        kind,
        milliseconds: milliseconds.unwrap_or(0),
        remaining: count,
    });
    Ok(
        Store::open(&arguments.state)?.transaction(|state| match fault {
            Some(fault) => state.faults.push(fault),
            None => state.faults.clear(),
        })?,
    )
}

fn say(text: &str) -> Result<(), CommandError> {
    writeln!(std::io::stdout(), "{text}").map_err(CommandError::Output)
}

/// A policy file as it was read.
struct PolicyFile {
    path: PathBuf,
    text: String,
}

fn read(path: &Path) -> Result<PolicyFile, CommandError> {
    let path = path.to_owned();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(PolicyFile { path, text }),
        Err(source) => Err(CommandError::Read { path, source }),
    }
}

impl PolicyFile {
    fn check(self, state: &State, kind: PolicyKind) -> Result<String, CommandError> {
        match authorization::parse_new(state, &self.text, kind) {
            Ok(()) => Ok(self.text),
            Err(source) => Err(CommandError::Policy {
                path: self.path,
                source,
            }),
        }
    }
}
