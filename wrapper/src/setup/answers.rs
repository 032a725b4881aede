//! What setup has to know: from options, or asked at the terminal.

use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use zeroize::Zeroizing;

use crate::setup::error::SetupError;
use aws_session::{
    config::{Kind, serial_number},
    input_file,
    master_key_id::MasterKeyId,
    region::is_region,
};
use service::signals::with_terminal_restored;

/// A secret access key has 40 characters.
const SECRET_LIMIT_BYTES: usize = 1024;

/// Answers given as options.
#[derive(Debug, Args)]
pub struct AnswerArguments {
    /// Serial number (ARN) of the MFA device
    #[arg(long, value_name = "ARN", value_parser = mfa_device)]
    mfa_device: Option<String>,

    /// Master key: alias/NAME, ARN or id
    #[arg(long, value_name = "KEY")]
    master_key: Option<MasterKeyId>,

    /// AWS region; default: that of KEY's ARN
    #[arg(long, value_name = "REGION", value_parser = region)]
    region: Option<String>,

    /// Default: service
    #[arg(long, value_name = "service|launcher", hide_possible_values = true)]
    hand_over: Option<HandOver>,

    /// Access key ID of the IAM user
    #[arg(long, value_name = "ID", value_parser = access_key_id)]
    access_key_id: Option<String>,

    /// Its secret access key; -: standard input
    #[arg(long, value_name = "FILE", requires = "access_key_id")]
    secret_access_key_file: Option<PathBuf>,
}

/// How the session reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HandOver {
    /// The broker runs as a service with its own user.
    Service,
    /// The launcher runs in the server's place.
    Launcher,
}

impl HandOver {
    /// The word of `--hand-over`.
    fn name(self) -> String {
        match self {
            Self::Service => "service",
            Self::Launcher => "launcher",
        }
        .into()
    }
}

/// The access key, in memory that is wiped.
pub struct AccessKey {
    /// Public half.
    pub id: String,
    /// Secret half.
    pub secret: Zeroizing<String>,
}

/// Everything that setup has to know.
pub struct Answers {
    /// Serial number of the MFA device.
    pub mfa_device: String,
    /// The master key.
    pub master_key: MasterKeyId,
    /// Where the master key and STS are.
    pub region: String,
    /// How the session reaches the server.
    pub hand_over: HandOver,
    /// The user's access key; `None`: the credential file stays as it is.
    pub access_key: Option<AccessKey>,
}

impl AnswerArguments {
    /// Fails if an answer is missing that has no default where nobody can be asked, and names all of them.
    fn expect_all(&self, has_credential: bool) -> Result<(), SetupError> {
        let keeps_credential = has_credential && self.access_key_id.is_none();
        let of_key = self.master_key.as_ref().and_then(MasterKeyId::region);
        let answers = [
            ("--mfa-device", self.mfa_device.is_some()),
            ("--master-key", self.master_key.is_some()),
            ("--region", self.region.is_some() || of_key.is_some()),
            (
                "--access-key-id",
                self.access_key_id.is_some() || keeps_credential,
            ),
            (
                "--secret-access-key-file",
                self.secret_access_key_file.is_some() || keeps_credential,
            ),
        ];
        let missing = answers.iter().filter(|(_, is_given)| !is_given);
        let missing: Vec<_> = missing.map(|(option, _)| *option).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(SetupError::Missing(missing)),
        }
    }
}

/// What is in place on the host, which a question offers before the usual default.
pub struct Present {
    /// Serial number of the MFA device.
    pub mfa_device: Option<String>,
    /// The master key.
    pub master_key: Option<String>,
    /// Where the master key and STS are.
    pub region: Option<String>,
    /// How the session reaches the server.
    pub hand_over: Option<HandOver>,
    /// Whether there is a credential file, which may stay as it is.
    pub has_credential: bool,
}

/// What Enter stands for.
enum EnterMeans {
    /// Nothing.
    None,
    /// This is in place.
    Present(String),
    /// This, on a host where nothing is in place.
    Usual(&'static str),
}

impl EnterMeans {
    fn of(present: Option<String>, usual: &'static str) -> Self {
        present.map_or(Self::Usual(usual), Self::Present)
    }
}

impl Answers {
    /// Takes what `arguments` give and asks for the rest, if standard input is a terminal.
    pub fn get(arguments: AnswerArguments, present: Present) -> Result<Self, SetupError> {
        if !io::stdin().is_terminal() {
            arguments.expect_all(present.has_credential)?;
        }
        let master_key_region = |key: &MasterKeyId| key.region().map(str::to_owned);
        let mfa_device = answer(
            arguments.mfa_device,
            "--mfa-device",
            "MFA device (its ARN, see aws iam list-mfa-devices)",
            present
                .mfa_device
                .map_or(EnterMeans::None, EnterMeans::Present),
            mfa_device,
        )?;
        let master_key: MasterKeyId = answer(
            arguments.master_key,
            "--master-key",
            "Master key (alias, ARN or id)",
            EnterMeans::of(present.master_key, "alias/mariadb"),
            str::parse,
        )?;
        let region = answer(
            arguments.region.or_else(|| master_key_region(&master_key)),
            "--region",
            "AWS region of the master key",
            EnterMeans::of(present.region, "us-east-1"),
            region,
        )?;
        if master_key_region(&master_key).is_some_and(|of_key| of_key != region) {
            return Err(SetupError::Answer(format!(
                "the master key {} is not in the region {region}; correct --region or --master-key",
                master_key.as_str()
            )));
        }
        let hand_over = match arguments.hand_over {
            None if !io::stdin().is_terminal() => HandOver::Service,
            given => answer(
                given,
                "--hand-over",
                "Run the broker as a service, or the launcher in the server's place? (service, launcher)",
                EnterMeans::of(present.hand_over.map(HandOver::name), "service"),
                |text| {
                    HandOver::from_str(text, true).map_err(|_| "must be service or launcher".into())
                },
            )?,
        };
        Ok(Self {
            mfa_device,
            master_key,
            region,
            hand_over,
            access_key: access_key(
                arguments.access_key_id,
                arguments.secret_access_key_file,
                present.has_credential,
            )?,
        })
    }
}

/// The key given or entered; `None` to keep the credential file, if there is one.
fn access_key(
    id: Option<String>,
    secret_file: Option<PathBuf>,
    can_keep: bool,
) -> Result<Option<AccessKey>, SetupError> {
    if id.is_none() && can_keep && !io::stdin().is_terminal() {
        return Ok(None);
    }
    let keep = "keep the present one";
    let default = match can_keep {
        true => EnterMeans::Usual(keep),
        false => EnterMeans::None,
    };
    let id = answer(
        id,
        "--access-key-id",
        "Access key ID",
        default,
        |text| match can_keep && text == keep {
            true => Ok(text.to_owned()),
            false => access_key_id(text),
        },
    )?;
    if can_keep && id == keep {
        return Ok(None);
    }
    let secret = match secret_file {
        Some(file) if file == Path::new("-") => read_standard_input()?,
        Some(file) => input_file::read_text(&file, SECRET_LIMIT_BYTES).map_err(|error| {
            SetupError::Answer(format!(
                "cannot read the secret access key from {}: {error}",
                file.display()
            ))
        })?,
        None if io::stdin().is_terminal() => ask_secret()?,
        None => return Err(SetupError::Missing(vec!["--secret-access-key-file"])),
    };
    let trimmed = secret.trim();
    if trimmed.is_empty() || !trimmed.chars().all(|c| c.is_ascii_graphic()) {
        return Err(SetupError::Answer(
            "the secret access key must be one word of printable ASCII characters".into(),
        ));
    }
    Ok(Some(AccessKey {
        id,
        secret: Zeroizing::new(trimmed.to_owned()),
    }))
}

/// The answer given as an option, or else asked for until it is good.
fn answer<T>(
    given: Option<T>,
    option: &'static str,
    question: &str,
    default: EnterMeans,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, SetupError> {
    if let Some(given) = given {
        return Ok(given);
    }
    if !io::stdin().is_terminal() {
        return Err(SetupError::Missing(vec![option]));
    }
    let default_text = match &default {
        EnterMeans::None => String::new(),
        EnterMeans::Present(present) => format!(" [{present}, as now]"),
        EnterMeans::Usual(usual) => format!(" [{usual}]"),
    };
    loop {
        let text = ask(&format!("{question}{default_text}: "))?;
        let text = match &default {
            EnterMeans::Present(present) if text.is_empty() => present.as_str(),
            EnterMeans::Usual(usual) if text.is_empty() => usual,
            _ => text.as_str(),
        };
        match parse(text) {
            Ok(answer) => return Ok(answer),
            Err(why) => show(&format!("That {why}.\n"))?,
        }
    }
}

/// Whether the person agrees; no answer is a no.
pub fn confirm(question: &str) -> Result<bool, SetupError> {
    if !io::stdin().is_terminal() {
        return Err(SetupError::Missing(vec!["--yes"]));
    }
    let text = ask(&format!("{question} [y/N] "))?;
    Ok(matches!(text.to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn ask(prompt: &str) -> Result<String, SetupError> {
    show(prompt)?;
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(0) => Err(SetupError::Declined),
        Ok(_) => Ok(line.trim().to_owned()),
        Err(error) => Err(SetupError::System("read the answer", error)),
    }
}

fn show(text: &str) -> Result<(), SetupError> {
    let mut output = io::stdout();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| SetupError::System("write to the terminal", error))
}

fn read_standard_input() -> Result<Zeroizing<String>, SetupError> {
    // At its full size, so that growth leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_LIMIT_BYTES));
    io::stdin()
        .take(SECRET_LIMIT_BYTES as u64)
        .read_to_string(&mut text)
        .map_err(|error| SetupError::System("read the secret access key", error))?;
    Ok(text)
}

fn ask_secret() -> Result<Zeroizing<String>, SetupError> {
    let prompt = "Secret access key (not shown): ";
    let secret = with_terminal_restored(|| rpassword::prompt_password(prompt))
        .map_err(|error| SetupError::System("read the secret access key", error))?;
    Ok(Zeroizing::new(secret))
}

fn mfa_device(text: &str) -> Result<String, String> {
    serial_number(text).map_err(|expected| format!("must be {expected}"))
}

fn region(text: &str) -> Result<String, String> {
    match is_region(text) {
        true => Ok(text.into()),
        false => Err(format!("must be {}", Kind::Region.expected())),
    }
}

/// Source of the characters: AccessKeyId in
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_Credentials.html>.
fn access_key_id(text: &str) -> Result<String, String> {
    if text.starts_with("ASIA") {
        return Err("must be a long-term access key (AKIA…), not one of a session".into());
    }
    let is_good = (16..=128).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match is_good {
        true => Ok(text.into()),
        false => Err("must be an access key ID, such as AKIAIOSFODNN7EXAMPLE".into()),
    }
}
