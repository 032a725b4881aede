//! The command line.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::authorization;
use crate::credential_files;
use crate::error::complain;
use crate::exchange::Exchange;
use crate::fault::{self, Fault, FaultKind};
use crate::identifier::is_name;
use crate::policy::{PolicyError, PolicyKind};
use crate::server::{self, ServeError, TlsFiles};
use crate::state::{Role, State, User};
use crate::store::{Store, StoreError};

/// STS and KMS on this machine, as strict as AWS, for trying and testing without an AWS account.
///
/// `init` makes an account: a user with an access key and a virtual MFA device, and a KMS key named
/// alias/mariadb. `serve` answers the AWS CLI and the SDKs at the URL that it prints. The other
/// commands change what the server has or does, at once and also while it runs.
///
/// A first session, with a code of the MFA device:
///
///   local-aws init --state demo
///   local-aws serve --state demo --listen 127.0.0.1:4566 &
///   export AWS_ENDPOINT_URL=http://127.0.0.1:4566 AWS_DEFAULT_REGION=us-east-1
///   export AWS_SHARED_CREDENTIALS_FILE=demo/credentials
///   aws sts get-session-token --serial-number "$(cat demo/mfa-serial)"
///       --token-code "$(oathtool --totp -b - < demo/mfa-seed)"
#[derive(Parser)]
#[command(name = "local-aws", version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the state directory (mode 0700)
    ///
    /// In it, for people and scripts: `credentials` (the file of AWS's tools; further users are
    /// further profiles), `env` (lines for systemd's EnvironmentFile=), `mfa-serial` (the MFA
    /// device's ARN) and `mfa-seed` (its seed, for oathtool --totp -b).
    Init {
        #[command(flatten)]
        state: StateDirectory,
        /// The account's number, 12 digits
        #[arg(long, default_value = "111122223333", value_parser = account)]
        account: String,
        /// The user's name
        #[arg(long, default_value = "mariadb", value_parser = name)]
        user: String,
        /// The region that clients must name
        #[arg(long, default_value = "us-east-1", value_parser = region)]
        region: String,
    },
    /// Answer requests until SIGTERM or SIGINT
    ///
    /// When ready it prints one line, "listening on URL", and writes the URL to the file `endpoint`
    /// of the state directory, which is removed at the end. Every call is in `cloudtrail.jsonl`
    /// before its answer is sent.
    Serve {
        #[command(flatten)]
        state: StateDirectory,
        /// Where to listen; loopback only, and port 0 takes a free one
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// How long sessions last, whatever was asked for
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
        session_lifetime: Option<u32>,
        /// The server's certificate and its chain, for HTTPS
        #[arg(long, value_name = "PEM", requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// The certificate's private key
        #[arg(long, value_name = "PEM", requires = "tls_cert")]
        tls_key: Option<PathBuf>,
    },
    /// Add a user with an access key and an MFA device
    ///
    /// Its files are those of `init`, under users/NAME/ of the state directory.
    User {
        /// The user's name
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        state: StateDirectory,
        /// What the user may do (an identity policy, JSON); everything without it
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Add a role
    Role {
        /// The role's name
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        state: StateDirectory,
        /// Who may assume it (a trust policy, JSON)
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
        /// What it may do (an identity policy, JSON); everything without it
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Make calls fail
    ///
    /// A fault takes the place of the operation: nothing is done, and no MFA code is spent. It
    /// stands until it is used up (--count) or cleared. Faults for the same call follow each other,
    /// but every delay counts at once.
    Fault {
        #[command(flatten)]
        state: StateDirectory,
        /// Remove all faults
        #[arg(long, conflicts_with_all = ["operation", "kind", "milliseconds", "count"])]
        clear: bool,
        /// Which operation: Decrypt, GetSessionToken, …, or any
        #[arg(long, value_parser = operation, required_unless_present = "clear")]
        operation: Option<String>,
        /// What happens
        #[arg(long, required_unless_present = "clear")]
        kind: Option<FaultKind>,
        /// How long a delay is
        #[arg(long, required_if_eq("kind", "delay"))]
        milliseconds: Option<u64>,
        /// For how many calls
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Shift the server's clock
    ///
    /// For clock skew, and to let sessions end sooner. MFA codes are of the shifted time too; once
    /// one of the future was taken, codes before it are refused after the clock is set back.
    Clock {
        #[command(flatten)]
        state: StateDirectory,
        /// How far ahead of this machine's clock; negative for behind, 0 to set it right
        #[arg(long, allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-MAX_OFFSET..=MAX_OFFSET))]
        offset_seconds: i64,
    },
}

/// A hundred years.
const MAX_OFFSET: i64 = 100 * 366 * 86_400;

#[derive(Args)]
struct StateDirectory {
    /// The state directory
    #[arg(long = "state", value_name = "DIR")]
    directory: PathBuf,
}

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
        Command::Init {
            state,
            account,
            user,
            region,
        } => init(&state, &account, &user, &region),
        Command::Serve {
            state,
            listen,
            session_lifetime,
            tls_cert,
            tls_key,
        } => {
            let store = Store::open(&state.directory)?;
            let exchange = Exchange {
                store,
                session_lifetime_seconds: session_lifetime,
            };
            let tls = tls_cert
                .zip(tls_key)
                .map(|(certificates, key)| TlsFiles { certificates, key });
            let runtime = tokio::runtime::Runtime::new().map_err(CommandError::Runtime)?;
            Ok(runtime.block_on(server::serve(exchange, listen, tls))?)
        }
        Command::User {
            name,
            state,
            policy,
        } => add_user(&state, name, policy.as_deref()),
        Command::Role {
            name,
            state,
            trust,
            policy,
        } => add_role(&state, name, &trust, policy.as_deref()),
        Command::Fault {
            state,
            operation,
            kind,
            milliseconds,
            count,
            ..
        } => {
            if milliseconds.is_some() && kind != Some(FaultKind::Delay) {
                return Err(CommandError::NoDelay);
            }
            let fault = operation.zip(kind).map(|(operation, kind)| Fault {
                operation,
                kind,
                milliseconds: milliseconds.unwrap_or(0),
                remaining: count,
            });
            set_fault(&state, fault)
        }
        Command::Clock {
            state,
            offset_seconds,
        } => {
            let store = Store::open(&state.directory)?;
            Ok(store.transaction(|state| state.clock_offset_seconds = offset_seconds)?)
        }
    }
}

fn init(
    directory: &StateDirectory,
    account: &str,
    user: &str,
    region: &str,
) -> Result<(), CommandError> {
    let state = State::new(account, region, user)?;
    let store = Store::create(&directory.directory, &state)?;
    credential_files::write_all(&store, &state)?;
    say(&format!(
        "made account {account} in {region}\n\
         user {user}: credentials, env, mfa-serial and mfa-seed\n\
         key alias/mariadb\n\
         next: local-aws serve --state '{}'",
        directory.directory.display()
    ))
}

fn add_user(
    directory: &StateDirectory,
    name: String,
    policy: Option<&Path>,
) -> Result<(), CommandError> {
    let store = Store::open(&directory.directory)?;
    let policy = policy.map(read).transpose()?;
    store.transaction(|state| {
        if state.users.contains_key(&name) {
            return Err(CommandError::Taken("user"));
        }
        let policy = policy
            .map(|policy| policy.check(state, PolicyKind::Identity))
            .transpose()?;
        state.users.insert(name.clone(), User::new(policy)?);
        credential_files::write_all(&store, state)?;
        say(&format!(
            "made user {name}: users/{name}/ of the state directory"
        ))
    })?
}

fn add_role(
    directory: &StateDirectory,
    name: String,
    trust: &Path,
    policy: Option<&Path>,
) -> Result<(), CommandError> {
    let store = Store::open(&directory.directory)?;
    let (trust, policy) = (read(trust)?, policy.map(read).transpose()?);
    store.transaction(|state| {
        if state.roles.contains_key(&name) {
            return Err(CommandError::Taken("role"));
        }
        let trust = trust.check(state, PolicyKind::Trust)?;
        let policy = policy
            .map(|policy| policy.check(state, PolicyKind::Identity))
            .transpose()?;
        let arn = state.role_arn(&name);
        state.roles.insert(name, Role::new(trust, policy)?);
        say(&format!("made role {arn}"))
    })?
}

/// Sets a fault; clears all if there is none to set.
fn set_fault(directory: &StateDirectory, fault: Option<Fault>) -> Result<(), CommandError> {
    let store = Store::open(&directory.directory)?;
    store.transaction(|state| match fault {
        Some(fault) => state.faults.push(fault),
        None => state.faults.clear(),
    })?;
    Ok(())
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

fn name(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("a name has 1 to 64 of the characters A-Z a-z 0-9 _ + = , . @ -".to_owned()),
    }
}

fn account(text: &str) -> Result<String, String> {
    match text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(text.to_owned()),
        false => Err("an account number has 12 digits".to_owned()),
    }
}

fn region(text: &str) -> Result<String, String> {
    let is_region_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match (1..=64).contains(&text.len()) && text.bytes().all(is_region_byte) {
        true => Ok(text.to_owned()),
        false => Err("a region is like us-east-1".to_owned()),
    }
}

fn operation(text: &str) -> Result<String, String> {
    match fault::is_operation(text) {
        true => Ok(text.to_owned()),
        false => Err("an operation of STS or KMS by its API name, such as Decrypt, or any".into()),
    }
}
