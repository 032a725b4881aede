//! AWS's configuration and credentials files, by the rules of the AWS SDK, whose parser reads them.
//!
//! We open the files ourselves: only regular ones of bounded length, and `~/.aws` only where nobody
//! can have planted it.
//!
//! Sources: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>,
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-location.html>.

use std::{
    env,
    path::{Path, PathBuf},
    pin::pin,
    task::{Context, Poll, Waker},
};

use aws_runtime::env_config::{
    EnvConfigValue,
    file::{EnvConfigFileKind, EnvConfigFiles},
    section::{EnvConfigSections, Profile},
    source,
};
use aws_types::os_shim_internal::{Env, Fs};
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::SettingsError;
use crate::{
    config::Config,
    input_file, service_credential,
    variables::{self, ACCESS_KEY_ID, CREDENTIALS_FILE},
};

/// Longest file, in bytes: some thousand profiles.
const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Longest path of a home directory, in bytes (PATH_MAX of Linux).
const MAX_HOME_BYTES: usize = 4096;

/// How much of a path is shown.
const MAX_SHOWN_CHARACTERS: usize = 300;

/// Whose files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A service. Its home directory may be its server's to write (on Red Hat it is the data
    /// directory), so `~/.aws` is read by root only, and not where the service has credentials of
    /// its own.
    Service,
    /// An operator, at whose word everything is done anyway.
    Operator,
}

/// One file that was looked for.
struct SourceFile {
    path: PathBuf,
    /// The variable that names it.
    variable: Option<&'static str>,
    kind: EnvConfigFileKind,
    text: Zeroizing<String>,
    is_absent: bool,
}

/// The profiles of the files, and which of them is meant.
pub struct Profiles {
    sections: EnvConfigSections,
    files: Vec<SourceFile>,
    /// `~/.aws`, where it is there and left out.
    left_out: Option<PathBuf>,
    selected: String,
    /// What names the selected profile; `None`: nothing.
    selected_by: Option<&'static str>,
}

impl Profiles {
    /// Reads the files that the environment names, and those of the home directory where `reader`
    /// may.
    ///
    /// Errors: a file cannot be used, or the profile that is asked for is in none.
    pub fn read(config: &Config, reader: Reader) -> Result<Self, SettingsError> {
        let home = variables::text("HOME").filter(|home| home.len() < MAX_HOME_BYTES);
        let home = home.map(|home| Path::new(&home).join(".aws"));
        let may_read = home
            .as_deref()
            .is_some_and(|it| may_read(it, config, reader));
        let of_home = |name| home.as_ref().filter(|_| may_read).map(|it| it.join(name));
        let files = [
            (
                EnvConfigFileKind::Config,
                variables::first(&["AWS_CONFIG_FILE"]),
                of_home("config"),
            ),
            (
                EnvConfigFileKind::Credentials,
                variables::first(&CREDENTIALS_FILE),
                of_home("credentials"),
            ),
        ];
        let mut read = Vec::new();
        for (kind, named, of_home) in files {
            let (path, variable) = match (named, of_home) {
                (Some((variable, path)), _) => (expand_home(path), Some(variable)),
                (None, Some(path)) => (path, None),
                (None, None) => continue,
            };
            read.push(read_file(kind, path, variable)?);
        }
        let left_out = home.filter(|it| !may_read && it.exists());
        Self::of(config, read, left_out)
    }

    /// Reads one credentials file and no other.
    pub fn read_only(config: &Config, path: PathBuf) -> Result<Self, SettingsError> {
        let file = read_file(EnvConfigFileKind::Credentials, path, None)?;
        Self::of(config, vec![file], None)
    }

    fn of(
        config: &Config,
        files: Vec<SourceFile>,
        left_out: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        let (selected, selected_by) = selected_profile(config);
        let sections = parse(&files, &selected).map_err(SettingsError::Defect)?;
        Ok(Self {
            sections,
            files,
            left_out,
            selected,
            selected_by,
        })
    }

    /// The profile that is meant; `None` where none is named and there is no default.
    ///
    /// Errors: it is named, and in no file.
    pub fn selected(&self) -> Result<Option<&Profile>, SettingsError> {
        match (self.profile(&self.selected), self.selected_by) {
            (Some(profile), _) => Ok(Some(profile)),
            (None, None) => Ok(None),
            (None, Some(by)) => Err(SettingsError::NoProfile {
                profile: self.selected.clone(),
                by,
                files: self.looked_at(),
            }),
        }
    }

    /// The profile with this name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.sections.get_profile(name)
    }

    /// A setting of the profile that is meant; an empty one is none.
    pub fn setting(&self, key: &str) -> Option<&str> {
        let value = self.profile(&self.selected)?.get(key)?;
        (!value.is_empty()).then_some(value)
    }

    /// The endpoint that the profile has for a service, or else for all.
    pub fn endpoint_url(&self, service_id: &str) -> Option<String> {
        let nothing = Env::from_slice(&[]);
        let setting = EnvConfigValue::new()
            .profile("endpoint_url")
            .service_id(service_id);
        let (url, _) = setting.load(&nothing, Some(&self.sections))?;
        Some(url.into_owned()).filter(|url| !url.is_empty())
    }

    /// Where a setting of the files stands, for people: "FILE, line 3".
    pub fn place(&self, key: &str, value: &str) -> String {
        let is_it = |line: &str| {
            line.split_once('=').is_some_and(|(name, rest)| {
                name.trim().eq_ignore_ascii_case(key) && rest.trim().starts_with(value.trim())
            })
        };
        // What comes last counts.
        self.files
            .iter()
            .rev()
            .find_map(|file| {
                let line = file.text.lines().position(is_it)? + 1;
                Some(format!("{}, line {line}", file.path.display()))
            })
            .unwrap_or_else(|| self.looked_at())
    }

    /// The files that were looked for, for people.
    pub fn looked_at(&self) -> String {
        let names: Vec<_> = self.files.iter().map(SourceFile::describe).collect();
        let mut text = match names.len() {
            0 => "AWS configuration files, of which none is named (AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE)".to_owned(),
            _ => names.join(" and "),
        };
        if let Some(directory) = &self.left_out {
            text += &format!(
                " ({} is not read, since a service must not trust its home directory; name a file with AWS_SHARED_CREDENTIALS_FILE)",
                directory.display()
            );
        }
        text
    }
}

impl SourceFile {
    fn describe(&self) -> String {
        let by = self
            .variable
            .map_or_else(String::new, |it| format!(" ({it})"));
        let absent = if self.is_absent {
            ", which is not there"
        } else {
            ""
        };
        // A path of the environment can be of any length.
        let path = self.path.to_string_lossy();
        let path: String = path.chars().take(MAX_SHOWN_CHARACTERS).collect();
        format!("{path}{by}{absent}")
    }
}

/// The name of the profile that is meant, and what names it; `None`: nothing, so it is the default.
pub fn selected_profile(config: &Config) -> (String, Option<&'static str>) {
    let named = match &config.profile {
        Some(profile) => Some(("profile in the configuration", profile.clone())),
        None => variables::first(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]),
    };
    let (by, name) = named.unzip();
    (name.unwrap_or_else(|| "default".into()), by)
}

/// Whether the files in `directory`, `~/.aws`, may be read.
fn may_read(directory: &Path, config: &Config, reader: Reader) -> bool {
    match reader {
        Reader::Operator => true,
        Reader::Service => {
            geteuid().is_root()
                && !has_credentials(config)
                && trusted_directory::check(directory, None).is_ok()
        }
    }
}

/// Whether this process was given credentials as a service, so that `~/.aws` is nothing to it.
fn has_credentials(config: &Config) -> bool {
    let is_in_environment = config.profile.is_none() && variables::first(&ACCESS_KEY_ID).is_some();
    service_credential::file().is_some()
        || variables::first(&CREDENTIALS_FILE).is_some()
        || is_in_environment
}

fn expand_home(path: String) -> PathBuf {
    match (path.strip_prefix("~/"), env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

fn read_file(
    kind: EnvConfigFileKind,
    path: PathBuf,
    variable: Option<&'static str>,
) -> Result<SourceFile, SettingsError> {
    let failed = |path: &Path, why| SettingsError::File {
        path: path.into(),
        variable,
        why,
    };
    let (text, is_absent) = match input_file::read_text(&path, MAX_FILE_BYTES) {
        Ok(text) => (text, false),
        Err(error) if error.is_absent() => (Zeroizing::default(), true),
        Err(error) => return Err(failed(&path, error.to_string())),
    };
    let file = SourceFile {
        path,
        variable,
        kind,
        text,
        is_absent,
    };
    parse(std::slice::from_ref(&file), "default").map_err(|why| failed(&file.path, why))?;
    Ok(file)
}

/// The SDK's parser on texts that are here already, so that it opens nothing by itself.
fn parse(files: &[SourceFile], selected: &str) -> Result<EnvConfigSections, String> {
    if files.is_empty() {
        return Ok(EnvConfigSections::default());
    }
    let contents = files.iter().fold(EnvConfigFiles::builder(), |all, file| {
        all.with_contents(file.kind, file.text.as_str())
    });
    let (contents, env, fs) = (
        contents.build(),
        Env::from_slice(&[("AWS_PROFILE", selected)]),
        Fs::from_slice(&[]),
    );
    // Nothing is awaited: there is no file to open.
    let loading = pin!(source::load(&env, &fs, &contents));
    let Poll::Ready(source) = loading.poll(&mut Context::from_waker(Waker::noop())) else {
        return Err("it cannot be parsed".into());
    };
    let source = source.map_err(|error| error.to_string())?;
    EnvConfigSections::parse(source).map_err(|error| {
        let text = error.to_string();
        let text = text.strip_prefix("error parsing  on ").unwrap_or(&text);
        text.replace(":\n  ", ": ")
    })
}
