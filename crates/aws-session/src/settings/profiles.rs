//! AWS's configuration and credentials files, read by the rules of the AWS SDKs.
//!
//! The SDK's own loader is not used: it opens anything, even a FIFO or a device, reads `~/.aws` whoever
//! can write to it, and does not know the line of a setting.
//!
//! Sources: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>,
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-location.html>.

use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::SettingsError;
use crate::{
    config::SessionConfig,
    ini::{self, Dialect, Property, Section},
    input_file, service_credential,
    variables::{self, ACCESS_KEY_ID, CREDENTIALS_FILE},
};

/// Longest file, in bytes: some thousand profiles.
const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Longest path of a home directory, in bytes (PATH_MAX of Linux).
const MAX_HOME_BYTES: usize = 4096;

/// How much of a path a message shows.
const MAX_SHOWN_CHARACTERS: usize = 300;

const DEFAULT: &str = "default";

/// Whose files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A service. The server may be able to write to its home directory (on Red Hat it is the data
    /// directory), so only root reads `~/.aws`, and not if the service was given credentials.
    Service,
    /// An operator, who may do anything that the files say.
    Operator,
}

/// Which of AWS's two files. They name their sections differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Config,
    Credentials,
}

/// A file that was looked for.
struct SourceFile {
    path: PathBuf,
    /// The variable that names it.
    variable: Option<&'static str>,
    kind: FileKind,
    /// `None`: there is no such file.
    sections: Option<Vec<Section>>,
}

/// A setting, and where it is.
pub struct Setting {
    /// Its value, wiped when dropped.
    pub value: Zeroizing<String>,
    /// "FILE, line 3".
    pub place: String,
}

/// A profile: the sections of its name in both files.
pub struct Profile {
    name: String,
    settings: HashMap<String, Setting>,
}

impl Profile {
    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a setting, even if it is empty.
    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.get(key)
    }

    /// Returns the value of a setting; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        let setting = self.setting(key)?;
        Some(setting.value.as_str()).filter(|value| !value.is_empty())
    }
}

/// The profiles of the files, and which of them is selected.
pub struct Profiles {
    profiles: HashMap<String, Profile>,
    /// The `[services NAME]` sections, as profiles whose settings have nested ones.
    services: HashMap<String, Profile>,
    /// Lists the files that were looked for, for messages.
    looked_at: String,
    selected: String,
    /// What names the selected profile; `None`: nothing.
    selected_by: Option<&'static str>,
}

impl Profiles {
    /// Reads the files that the environment names, and those in the home directory if `reader`
    /// may.
    ///
    /// Errors: a file cannot be used.
    pub fn read(config: &SessionConfig, reader: Reader) -> Result<Self, SettingsError> {
        let home = variables::text("HOME").filter(|home| home.len() < MAX_HOME_BYTES);
        let home = home.map(|home| Path::new(&home).join(".aws"));
        let may_read = home
            .as_deref()
            .is_some_and(|it| may_read(it, config, reader));
        let of_home = |name| home.as_ref().filter(|_| may_read).map(|it| it.join(name));
        let files = [
            (
                FileKind::Config,
                variables::first(&["AWS_CONFIG_FILE"]),
                of_home("config"),
            ),
            (
                FileKind::Credentials,
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
        // A credentials file too, with the settings that one may have.
        if let Some(path) = service_credential::file() {
            read.push(read_file_of_service(config, path)?);
        }
        let not_read = home.filter(|it| !may_read && it.exists());
        Ok(Self::of(config, read, not_read.as_deref()))
    }

    /// Reads the credentials file of the service and no other.
    pub fn read_only(config: &SessionConfig, path: PathBuf) -> Result<Self, SettingsError> {
        let file = read_file_of_service(config, path)?;
        Ok(Self::of(config, vec![file], None))
    }

    fn of(config: &SessionConfig, files: Vec<SourceFile>, not_read: Option<&Path>) -> Self {
        let (selected, selected_by) = selected_profile(config);
        let mut profiles = Self {
            profiles: HashMap::new(),
            services: HashMap::new(),
            looked_at: looked_at(&files, not_read),
            selected,
            selected_by,
        };
        for file in files {
            profiles.merge(file);
        }
        profiles
    }

    /// What comes last counts: the credentials file after the configuration file.
    fn merge(&mut self, file: SourceFile) {
        let sections = file.sections.unwrap_or_default();
        let has_profile_default = sections
            .iter()
            .any(|it| split_name(&it.name) == (Some("profile"), DEFAULT));
        for section in sections {
            let (map, name) = match (file.kind, split_name(&section.name)) {
                (FileKind::Config, (None, DEFAULT)) if has_profile_default => continue,
                (FileKind::Config, (Some("profile"), name) | (None, name @ DEFAULT))
                | (FileKind::Credentials, (None, name)) => (&mut self.profiles, name),
                (FileKind::Credentials, (Some(kind), _)) if kind != "profile" => {
                    (&mut self.profiles, section.name.as_str())
                }
                (FileKind::Config, (Some("services"), name)) => (&mut self.services, name),
                _ => continue,
            };
            let profile = map.entry(name.to_owned()).or_insert_with(|| Profile {
                name: name.to_owned(),
                settings: HashMap::new(),
            });
            for Property { key, value, line } in section.properties {
                let place = format!("{}, line {line}", file.path.display());
                profile.settings.insert(key, Setting { value, place });
            }
        }
    }

    /// Returns the selected profile; `None` if none is named and there is no default.
    ///
    /// Errors: it is named, but not in any file.
    pub fn selected(&self) -> Result<Option<&Profile>, SettingsError> {
        match (self.profile(&self.selected), self.selected_by) {
            (Some(profile), _) => Ok(Some(profile)),
            (None, None) => Ok(None),
            (None, Some(by)) => Err(SettingsError::NoProfile {
                profile: self.selected.clone(),
                by,
                files: self.looked_at().into(),
            }),
        }
    }

    /// Returns the profile with this name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    /// Returns a setting of the selected profile and its place; an empty one counts as absent.
    pub fn setting(&self, key: &str) -> Option<(&str, &str)> {
        let setting = self.profile(&self.selected)?.setting(key)?;
        let value = setting.value.as_str();
        (!value.is_empty()).then_some((value, setting.place.as_str()))
    }

    /// Returns the endpoint of a service in the selected profile, or else that of all services, and its
    /// place.
    pub fn endpoint_url(&self, service_id: &str) -> Option<(&str, &str)> {
        const KEY: &str = "endpoint_url";
        let of_service = self.setting("services").and_then(|(name, _)| {
            let property = self
                .services
                .get(name)?
                .setting(&service_id.to_ascii_lowercase())?;
            let url = ini::nested(&property.value, KEY)?;
            (!url.is_empty()).then_some((url, property.place.as_str()))
        });
        of_service.or_else(|| self.setting(KEY))
    }

    /// Lists the files that were looked for, for messages.
    pub fn looked_at(&self) -> &str {
        &self.looked_at
    }
}

/// Splits `[profile NAME]` into its kind and its name. The AWS CLI writes a name with spaces in quotes.
fn split_name(section: &str) -> (Option<&str>, &str) {
    let Some((kind, name)) = section.split_once([' ', '\t']) else {
        return (None, section);
    };
    let name = name.trim_start();
    let in_quotes = |quote| name.strip_prefix(quote)?.strip_suffix(quote);
    let unquoted = in_quotes('\'').or_else(|| in_quotes('"'));
    (Some(kind), unquoted.unwrap_or(name))
}

fn looked_at(files: &[SourceFile], not_read: Option<&Path>) -> String {
    let names: Vec<_> = files.iter().map(SourceFile::describe).collect();
    let mut text = match names.len() {
        0 => "the AWS configuration files (none is named; set AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE)".to_owned(),
        _ => names.join(" and "),
    };
    if let Some(directory) = not_read {
        text += &format!(
            " ({} is not read, since a service must not trust its home directory; name a file with AWS_SHARED_CREDENTIALS_FILE)",
            directory.display()
        );
    }
    text
}

impl SourceFile {
    fn describe(&self) -> String {
        let by = self
            .variable
            .map_or_else(String::new, |it| format!(" ({it})"));
        let absent = match self.sections {
            Some(_) => "",
            None => ", which does not exist",
        };
        // A path from the environment can have any length.
        let path = self.path.to_string_lossy();
        let path: String = path.chars().take(MAX_SHOWN_CHARACTERS).collect();
        format!("{path}{by}{absent}")
    }
}

/// Returns the name of the selected profile, and what selects it; `None`: nothing, so it is the
/// default.
pub fn selected_profile(config: &SessionConfig) -> (String, Option<&'static str>) {
    let named = match &config.profile {
        Some(profile) => Some((
            "profile in the configuration, or --profile",
            profile.clone(),
        )),
        None => variables::first(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]),
    };
    let (by, name) = named.unzip();
    (name.unwrap_or_else(|| DEFAULT.into()), by)
}

/// Whether the files in `directory`, `~/.aws`, may be read.
fn may_read(directory: &Path, config: &SessionConfig, reader: Reader) -> bool {
    match reader {
        Reader::Operator => true,
        Reader::Service => {
            geteuid().is_root()
                && !has_credentials(config)
                && trusted_directory::check(directory, None).is_ok()
        }
    }
}

/// Whether this process was given credentials as a service, so that it has no use for `~/.aws`.
fn has_credentials(config: &SessionConfig) -> bool {
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

fn read_file_of_service(
    config: &SessionConfig,
    path: PathBuf,
) -> Result<SourceFile, SettingsError> {
    read_file(FileKind::Credentials, path, None).map_err(|error| match error {
        SettingsError::File { path, why, .. } => {
            let (section, _) = selected_profile(config);
            SettingsError::FileOfService { path, section, why }
        }
        error => error,
    })
}

fn read_file(
    kind: FileKind,
    path: PathBuf,
    variable: Option<&'static str>,
) -> Result<SourceFile, SettingsError> {
    let sections =
        match input_file::read_text(&path, MAX_FILE_BYTES) {
            Ok(text) => ini::parse(&text, Dialect::Aws).map(Some).map_err(|error| {
                match looks_encrypted(&text) {
                    true => "it looks encrypted by systemd-creds: have systemd decrypt it, with \
                    LoadCredentialEncrypted= in the unit or as an option of systemd-run"
                        .into(),
                    false => format!("line {}: {}", error.line, error.reason),
                }
            }),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.to_string()),
        };
    match sections {
        Ok(sections) => Ok(SourceFile {
            path,
            variable,
            kind,
            sections,
        }),
        Err(why) => Err(SettingsError::File {
            path,
            variable,
            why,
        }),
    }
}

/// Whether this is a credential as systemd-creds(1) encrypts it: Base64, in long lines.
fn looks_encrypted(text: &str) -> bool {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(&byte);
    text.lines().next().is_some_and(|line| line.len() > 60) && text.bytes().all(is_base64)
}

#[cfg(test)]
mod tests {
    use aws_runtime::env_config::{
        file::{EnvConfigFileKind, EnvConfigFiles},
        section::EnvConfigSections,
        source,
    };
    use aws_types::os_shim_internal::{Env, Fs};

    use super::*;
    use crate::config::Config;

    fn ours(config: &str, credentials: &str) -> Profiles {
        let file = |kind, text| SourceFile {
            path: "FILE".into(),
            variable: None,
            kind,
            sections: Some(ini::parse(text, Dialect::Aws).unwrap()),
        };
        let files = vec![
            file(FileKind::Config, config),
            file(FileKind::Credentials, credentials),
        ];
        Profiles::of(&Config::without_file().unwrap().session, files, None)
    }

    fn of_the_sdk(config: &str, credentials: &str) -> EnvConfigSections {
        let files = EnvConfigFiles::builder()
            .with_contents(EnvConfigFileKind::Config, config)
            .with_contents(EnvConfigFileKind::Credentials, credentials)
            .build();
        let (env, fs) = (Env::from_slice(&[]), Fs::from_slice(&[]));
        let loading = source::load(&env, &fs, &files);
        let loaded = crate::settings::runtime().unwrap().block_on(loading);
        EnvConfigSections::parse(loaded.unwrap()).unwrap()
    }

    #[test]
    fn files_are_read_like_the_aws_sdk_reads_them() {
        for (config, credentials) in [
            ("[default]\na = 1\n[profile b]\na = 2", "[b]\na = 3\nc = 4"),
            ("[default]\na = 1\n[profile default]\nb = 2", ""),
            (
                "[default]\na = 1\n[default]\na = 2\nb = 3",
                "[default]\nb = 4",
            ),
            ("[b]\na = 1\n[profile  c\t]\na = 2", "[profile d]\na = 3"),
            ("[ default ]#x\nA_b = c #d\ne = f#g\nh=i;j\nk = l ;m", ""),
            ("[default]\na =\n  b = 1\n\n  c = 2\nd = 3\n   4 # 5\n", ""),
            (
                "[default]\n# no\n; no\na = = b\nc = \n",
                "[default]\r\na = 1\r\n",
            ),
            (
                "[sso-session x]\na = 1\n[services y]\nsts =\n a = 1\n",
                "[x]\nb = 2",
            ),
        ] {
            let (ours, theirs) = (ours(config, credentials), of_the_sdk(config, credentials));
            let names: Vec<_> = theirs.profiles().collect();
            assert_eq!(ours.profiles.len(), names.len(), "{config:?}");
            for name in names {
                let (ours, theirs) = (
                    ours.profile(name).unwrap(),
                    theirs.get_profile(name).unwrap(),
                );
                for key in ["a", "a_b", "b", "c", "d", "e", "h", "k"] {
                    let ours = ours.setting(key).map(|setting| setting.value.as_str());
                    assert_eq!(ours, theirs.get(key), "{config:?}: [{name}] {key}");
                }
            }
        }
    }

    #[test]
    fn the_endpoint_of_a_service_overrides_the_general_one() {
        let config = "[default]\nservices = local\nendpoint_url = all\n[services local]\nsts =\n  endpoint_url = sts\n";
        let profiles = ours(config, "");
        assert_eq!(profiles.endpoint_url("STS"), Some(("sts", "FILE, line 5")));
        assert_eq!(profiles.endpoint_url("KMS"), Some(("all", "FILE, line 3")));
    }
}
