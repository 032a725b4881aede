//! The command line as it is written: what `--help` says, and what an argument may be.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::fault::{ANY_OPERATION, FaultKind};
use crate::identifier::{is_alias_name, is_name};
use crate::{kms, sts};

/// A hundred years.
const MAX_OFFSET_SECONDS: i64 = 100 * 366 * 86_400;

/// STS and KMS on this machine, as strict as AWS, for trying and testing without an AWS account.
///
/// `init` creates an account: a user with an access key and a virtual MFA device, and a KMS key named
/// alias/mariadb. `serve` answers the AWS CLI and the SDKs at the URL that it prints. The other
/// commands change the server's state or behaviour. They take effect at once, even while it runs.
///
/// A first session, with a code of the MFA device:
///
///   local-aws init --state demo
///   local-aws serve --state demo --listen 127.0.0.1:4566 &
///   export AWS_ENDPOINT_URL=http://127.0.0.1:4566 AWS_DEFAULT_REGION=us-east-1
///   export AWS_SHARED_CREDENTIALS_FILE=demo/credentials
///   aws sts get-session-token --serial-number "$(cat demo/mfa-serial)" \
///       --token-code "$(oathtool --totp -b - < demo/mfa-seed)"
#[derive(Parser)]
#[command(name = "local-aws", version, verbatim_doc_comment)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Create the state directory (mode 0700)
    ///
    /// It contains `credentials` (the file that AWS's tools read, with a profile for each further
    /// user), `env` (lines for systemd's EnvironmentFile=), `mfa-serial` (the MFA
    /// device's ARN) and `mfa-seed` (its seed, for oathtool --totp -b).
    Init(Init),
    /// Answer requests until SIGTERM or SIGINT
    ///
    /// When ready it prints one line, "listening on URL", and writes the URL to the file `endpoint`
    /// of the state directory, which it removes at the end. It records each call in `cloudtrail.jsonl`
    /// before it sends the answer.
    Serve(Serve),
    /// Add a user with an access key and an MFA device
    ///
    /// It gets the same files as the user of `init`, under users/NAME/ of the state directory.
    User(User),
    /// Add a role
    Role(Role),
    /// Add a KMS key, if you like in another region or account, and print its ARN
    ///
    /// The server answers for every region that has a key. The policy of another account's key must
    /// allow this account to use it, and so must the user's own policy.
    Key(Key),
    /// Make calls fail
    ///
    /// The server returns the fault instead of performing the operation, and the MFA code stays unused.
    /// A fault lasts for --count calls or until it is cleared. Several faults for the same call
    /// are returned one after another, but all delays apply at once.
    Fault(Fault),
    /// Ask a policy what it says to a request, and print allowed, denied or "not allowed"
    ///
    /// As IAM's SimulateCustomPolicy. For policies of services that this program does not have, such as S3.
    Simulate(Simulate),
    /// Shift the server's clock
    ///
    /// Use it to test clock skew, or to let sessions expire sooner. MFA codes follow the shifted time,
    /// too: after the server has accepted a code of the future, it refuses all earlier codes, even if you
    /// set the clock back. The shift outlasts a restart.
    Clock(Clock),
}

/// `init`
#[derive(Args)]
pub struct Init {
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// The account's number, 12 digits
    #[arg(long, default_value = "111122223333", value_parser = account)]
    pub account: String,
    /// The user's name
    #[arg(long, default_value = "mariadb", value_parser = name)]
    pub user: String,
    /// The region that clients must name
    #[arg(long, default_value = "us-east-1", value_parser = region)]
    pub region: String,
}

/// `serve`
#[derive(Args)]
pub struct Serve {
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Where to listen; loopback only, and port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// How long sessions last, regardless of the request
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub session_lifetime: Option<u32>,
    /// How long EnableKey and DisableKey take to have an effect on DescribeKey and on any use of the
    /// key; with AWS, seconds to minutes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub key_state_delay_milliseconds: u32,
    /// The role of the machine that clients run on
    ///
    /// The server hands out its sessions at EC2's metadata service, version 2, and at the container
    /// credentials endpoint, both under the server's URL. The metadata service requires that the role
    /// lets ec2.amazonaws.com assume it.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub machine_role: Option<String>,
    /// The server's certificate and its chain, for HTTPS
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// `user`
#[derive(Args)]
pub struct User {
    /// The user's name
    #[arg(value_parser = name)]
    pub name: String,
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// What the user may do (an identity policy, JSON) [default: everything]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// `role`
#[derive(Args)]
pub struct Role {
    /// The role's name
    #[arg(value_parser = name)]
    pub name: String,
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Who may assume it (a trust policy, JSON)
    #[arg(long, value_name = "FILE")]
    pub trust: PathBuf,
    /// What it may do (an identity policy, JSON) [default: everything]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// `key`
#[derive(Args)]
pub struct Key {
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// The key's region [default: that of `init`]
    #[arg(long, value_parser = region)]
    pub region: Option<String>,
    /// The key's account, 12 digits [default: that of `init`]
    #[arg(long, value_parser = account)]
    pub account: Option<String>,
    /// A name for it: alias/…
    #[arg(long, value_parser = alias)]
    pub alias: Option<String>,
    /// Who may use it (a key policy, JSON) [default: whom its account allows]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// `fault`
#[derive(Args)]
pub struct Fault {
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Remove all faults
    #[arg(long, conflicts_with_all = ["operation", "kind", "milliseconds", "count"])]
    pub clear: bool,
    /// Which operation: Decrypt, GetSessionToken, …, or any
    #[arg(long, value_parser = operation, required_unless_present = "clear")]
    pub operation: Option<String>,
    /// What happens
    #[arg(long, required_unless_present = "clear")]
    pub kind: Option<FaultKind>,
    /// How long a delay is
    #[arg(long, required_if_eq("kind", "delay"))]
    pub milliseconds: Option<u64>,
    /// For how many calls
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// `simulate`
#[derive(Args)]
pub struct Simulate {
    /// The policy, JSON
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// What it is attached to
    #[arg(long)]
    pub kind: Attached,
    /// The action, such as s3:PutObject
    #[arg(long)]
    pub action: String,
    /// ARN of the resource
    #[arg(long, value_name = "ARN")]
    pub resource: String,
    /// ARN of the user who asks
    #[arg(long, value_name = "ARN")]
    pub principal: String,
    /// What the request carries, such as aws:MultiFactorAuthPresent=true
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub context: Vec<(String, String)>,
}

/// What a policy is attached to.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Attached {
    /// A user or role
    Identity,
    /// A bucket of S3
    Bucket,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a pair is KEY=VALUE")?;
    Ok((key.to_ascii_lowercase(), value.to_owned()))
}

/// `clock`
#[derive(Args)]
pub struct Clock {
    /// The state directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// How far ahead of this machine's clock; negative for behind, 0 to set it right
    #[arg(long, allow_hyphen_values = true, value_parser = offset())]
    pub offset_seconds: i64,
}

fn offset() -> clap::builder::RangedI64ValueParser {
    clap::value_parser!(i64).range(-MAX_OFFSET_SECONDS..=MAX_OFFSET_SECONDS)
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

fn alias(text: &str) -> Result<String, String> {
    match is_alias_name(text) {
        true => Ok(text.to_owned()),
        false => Err("an alias is like alias/mariadb".to_owned()),
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
    let operations = [&[ANY_OPERATION][..], &sts::OPERATIONS, &kms::OPERATIONS].concat();
    match operations.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err("an operation of STS or KMS by its API name, such as Decrypt, or any".into()),
    }
}
