//! The credentials of a profile: keys, a program that prints them, or a role that is assumed with the
//! credentials of another profile. The SDK's provider is not used: it has no interrupt, and its errors
//! name neither file nor line.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-assume-role-credentials.html>.

use secrecy::SecretString;
use tracing::info;

use super::{CredentialsError, Finder, from_environment, machine, process};
use crate::{
    child_output::OutputError,
    credentials::Credentials,
    settings::{Profile, Profiles, SettingsError},
    sts::{self, Role},
};

/// Longest chain of roles.
const MAX_ROLES: usize = 8;

/// Returns the credentials of the selected profile; `None`: it has none, or it does not exist and was
/// not requested.
pub(super) fn credentials(
    finder: &Finder<'_>,
    profiles: &Profiles,
) -> Result<Option<Credentials>, CredentialsError> {
    let Some(selected) = profiles.selected()? else {
        return Ok(None);
    };
    let mut roles = Vec::new();
    let mut profile = selected;
    let base = loop {
        let source = Source {
            finder,
            profiles,
            profile,
        };
        // As in the AWS CLI: where a role is assumed with another profile, that one's keys come before its role.
        if !roles.is_empty()
            && let Some(keys) = source.keys()?
        {
            break Some(keys);
        }
        let Some(role) = source.role()? else {
            break source.own()?;
        };
        roles.push(role);
        if roles.len() > MAX_ROLES {
            return Err(source.failed("its roles form a loop"));
        }
        match source.role_source()? {
            RoleSource::Session(session) => break Some(session),
            RoleSource::SameProfile => break source.keys()?,
            RoleSource::Profile(next) => profile = next,
        }
    };
    let Some(mut session) = base else {
        return match roles.is_empty() {
            true => Ok(None),
            false => Err(CredentialsError::Source {
                from: format!("profile {}", profile.name()),
                why: "it has none, but they are needed to assume a role".into(),
            }),
        };
    };
    for role in roles.iter().rev() {
        let assumed = finder.run(sts::assume_role(finder.aws, &session, role))?;
        session = assumed.map_err(|why| CredentialsError::Source {
            from: format!("role {} of profile {}", role.arn, selected.name()),
            why,
        })?;
    }
    Ok(Some(session))
}

/// The credentials that a role is assumed with.
enum RoleSource<'a> {
    Session(Credentials),
    /// Keys in the same profile.
    SameProfile,
    Profile(&'a Profile),
}

struct Source<'a> {
    finder: &'a Finder<'a>,
    profiles: &'a Profiles,
    profile: &'a Profile,
}

impl<'a> Source<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        self.profile.get(key)
    }

    fn failed(&self, why: impl Into<String>) -> CredentialsError {
        CredentialsError::Source {
            from: format!(
                "profile {} in {}",
                self.profile.name(),
                self.profiles.looked_at()
            ),
            why: why.into(),
        }
    }

    /// Returns the role that the profile assumes, unless it exchanges a token for it.
    fn role(&self) -> Result<Option<Role>, CredentialsError> {
        let Some(arn) = self.get("role_arn") else {
            return Ok(None);
        };
        if self.get("web_identity_token_file").is_some() {
            return Ok(None);
        }
        if let Some(serial_number) = self.get("mfa_serial") {
            return Err(self.failed(format!(
                "it assumes a role with an MFA code (mfa_serial), which is the job of the configuration file: set kms_mfa_id = {serial_number}, role_arn = {arn} and profile = {} there",
                self.get("source_profile").unwrap_or("SOURCE_PROFILE")
            )));
        }
        Ok(Some(Role {
            arn: arn.into(),
            session_name: self.get("role_session_name").map(str::to_owned),
            external_id: self.get("external_id").map(str::to_owned),
            duration_seconds: self.duration_seconds()?,
        }))
    }

    fn duration_seconds(&self) -> Result<Option<i32>, CredentialsError> {
        let Some(text) = self.get("duration_seconds") else {
            return Ok(None);
        };
        match text.parse() {
            Ok(seconds @ 900..=43_200) => Ok(Some(seconds)),
            _ => Err(self.failed(format!(
                "its duration_seconds is {text:?}, which is not a number from 900 to 43200"
            ))),
        }
    }

    fn role_source(&self) -> Result<RoleSource<'a>, CredentialsError> {
        match (self.get("source_profile"), self.get("credential_source")) {
            (Some(name), None) if name == self.profile.name() => Ok(RoleSource::SameProfile),
            (Some(name), None) => match self.profiles.profile(name) {
                Some(profile) => Ok(RoleSource::Profile(profile)),
                None => Err(SettingsError::NoProfile {
                    profile: name.into(),
                    by: "source_profile",
                    files: self.profiles.looked_at().into(),
                }
                .into()),
            },
            (None, Some(source)) => self.named_source(source).map(RoleSource::Session),
            (Some(_), Some(_)) => {
                Err(self.failed("it has both source_profile and credential_source; remove one"))
            }
            (None, None) => {
                Err(self.failed("it has role_arn, but no source_profile or credential_source"))
            }
        }
    }

    fn named_source(&self, source: &str) -> Result<Credentials, CredentialsError> {
        let found = match source.to_ascii_lowercase().as_str() {
            "environment" => {
                from_environment()?.ok_or_else(|| "AWS_ACCESS_KEY_ID is not set".to_owned())
            }
            "ec2instancemetadata" => machine::instance(self.finder)?,
            "ecscontainer" => machine::container(self.finder)?
                .unwrap_or_else(|| Err("no variable names the container's endpoint".into())),
            _ => Err("it is not Environment, Ec2InstanceMetadata or EcsContainer".into()),
        };
        found.map_err(|why: String| self.failed(format!("credential_source {source}: {why}")))
    }

    /// Returns the profile's own credentials, without a role, in the order of the AWS CLI; `None`: it has none.
    fn own(&self) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(file) = self.get("web_identity_token_file") {
            let by = "web_identity_token_file";
            let session = machine::web_identity(
                self.finder,
                (file, by),
                self.get("role_arn"),
                self.get("role_session_name"),
            )?;
            return session.map(Some).map_err(|why| self.failed(why));
        }
        for (key, what) in [
            ("sso_session", "IAM Identity Center"),
            ("sso_start_url", "IAM Identity Center"),
            ("login_session", "aws login"),
        ] {
            if self.get(key).is_some() {
                let profile = self.profile.name();
                return Err(self.failed(format!(
                    "it signs in with {what} ({key}), which only the AWS CLI does; sign in there, and export the credentials: eval \"$(aws configure export-credentials --profile {profile} --format env)\", or set credential_process = aws configure export-credentials --profile {profile} in another profile and use that"
                )));
            }
        }
        if let Some(keys) = self.keys()? {
            return Ok(Some(keys));
        }
        let process = self.get("credential_process");
        process.map(|command| self.process(command)).transpose()
    }

    /// Returns the keys in the profile; `None`: it has none.
    fn keys(&self) -> Result<Option<Credentials>, CredentialsError> {
        let (id, secret) = ("aws_access_key_id", "aws_secret_access_key");
        let for_key = |key: &str| match self.profile.setting(key) {
            Some(setting) if setting.value.is_empty() => {
                Err(self.failed(format!("its {key} is empty")))
            }
            setting => Ok(setting),
        };
        let (access_key_id, secret_access_key) = match (for_key(id)?, for_key(secret)?) {
            (Some(id), Some(secret)) => (id, secret),
            (None, None) => return Ok(None),
            (None, _) => return Err(self.failed(format!("it has no {id}"))),
            (_, None) => return Err(self.failed(format!("it has no {secret}"))),
        };
        let keys = Credentials {
            access_key_id: access_key_id.value.to_string(),
            secret_access_key: secret_access_key.value.as_str().into(),
            session_token: self.get("aws_session_token").map(SecretString::from),
            expiration_unix_seconds: None,
        };
        let checked = keys.checked().map(Some);
        checked.map_err(|why| self.failed(format!("the key ({}) {why}", access_key_id.place)))
    }

    fn process(&self, command: &str) -> Result<Credentials, CredentialsError> {
        let timeout = self.finder.aws.request_timeout();
        info!(
            "waiting for the credential_process of profile {}",
            self.profile.name()
        );
        let session = process::run(command, timeout, self.finder.interrupt);
        let session = session.and_then(|session| {
            let checked = session.checked();
            checked.map_err(|why| OutputError::Failed(format!("its key {why}")))
        });
        session.map_err(|error| match error {
            OutputError::Interrupted => CredentialsError::Interrupted,
            error => self.failed(format!("credential_process: {error}")),
        })
    }
}
