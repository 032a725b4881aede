//! The files that setup writes, from the examples and units of the repository.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::setup::answers::{AccessKey, Answers, HandOver};

/// Configuration of launcher and broker.
pub const CONFIG: &str = "/etc/iam-kms-wrapper/iam-kms-wrapper.config";

/// The user's access key, encrypted or for root alone.
pub const CREDENTIAL: &str = "/etc/iam-kms-wrapper/aws-credentials";

/// The credential's name for systemd, which is part of what it encrypts.
pub const CREDENTIAL_NAME: &str = "aws-credentials";

/// Drop-in of the broker as a service.
pub const SERVICE_DROP_IN: &str = "/etc/systemd/system/mariadb.service.d/iam-kms-broker.conf";

/// Drop-in of the launcher in the server's place.
pub const LAUNCHER_DROP_IN: &str = "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.conf";

const REDHAT_DROP_IN: &str = "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.redhat.conf";

/// Has the broker's credential decrypted.
pub const SERVICE_CREDENTIAL_DROP_IN: &str =
    "/etc/systemd/system/iam-kms-broker.service.d/credential.conf";

/// The same for the launcher; read after [`LAUNCHER_DROP_IN`], which it changes.
const LAUNCHER_CREDENTIAL_DROP_IN: &str =
    "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.credential.conf";

/// The keys of the configuration for which setup asks.
pub const ANSWERED_KEYS: [&str; 2] = ["kms_mfa_id", "region"];

/// The option for which setup asks.
pub const MASTER_KEY_OPTION: &str = "aws-key-management-master-key-id";

const FIRST_LINE: &str =
    "# Written by iam-kms-wrapper setup, which never overwrites what somebody has edited.";

/// A file as it is to be.
pub struct PlannedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Permissions.
    pub mode: u32,
    /// All of it.
    pub content: Zeroizing<String>,
    /// Whether the content is not to be shown.
    pub is_secret: bool,
}

/// What the host has of MariaDB, as far as the files depend on it.
pub struct Layout {
    /// Directory of the server's option files.
    pub option_directory: &'static Path,
    /// The server's program.
    pub server: &'static Path,
    /// Where the programs are installed: `/usr` or `/usr/local`.
    pub prefix: PathBuf,
}

impl Layout {
    /// The option file for the plugin.
    pub fn option_file(&self) -> PathBuf {
        self.option_directory.join("60-encryption.cnf")
    }
}

/// The files besides the credential. `is_encrypted`: whether systemd has to decrypt that one.
pub fn without_credential(
    answers: &Answers,
    layout: &Layout,
    is_encrypted: bool,
) -> Vec<PlannedFile> {
    let config = match answers.hand_over {
        HandOver::Service => {
            include_str!("../../../examples/broker-service/iam-kms-wrapper.config")
        }
        HandOver::Launcher => include_str!("../../../examples/mfa-at-boot/iam-kms-wrapper.config"),
    };
    let [mfa_device, region] = ANSWERED_KEYS;
    let config = with_values(
        config,
        &[(mfa_device, &answers.mfa_device), (region, &answers.region)],
    );
    let options = with_values(
        include_str!("../../../examples/configuration/60-encryption.cnf"),
        &[(MASTER_KEY_OPTION, answers.master_key.as_str())],
    );
    let mut files = vec![
        public(CONFIG, config),
        public(layout.option_file(), options),
    ];
    let drop_in = |path, text: &str| public(path, with_prefix(text, &layout.prefix));
    let credential_drop_in = match answers.hand_over {
        HandOver::Service => {
            files.push(drop_in(
                SERVICE_DROP_IN,
                include_str!("../../../systemd/mariadb.service.d/iam-kms-broker.conf"),
            ));
            SERVICE_CREDENTIAL_DROP_IN
        }
        HandOver::Launcher => {
            files.push(drop_in(
                LAUNCHER_DROP_IN,
                include_str!("../../../systemd/mariadb.service.d/iam-kms-wrapper.conf"),
            ));
            // Red Hat's own package, whose unit has other commands.
            if layout.server.starts_with("/usr/libexec") {
                files.push(drop_in(
                    REDHAT_DROP_IN,
                    include_str!(
                        "../../../systemd/redhat/mariadb.service.d/iam-kms-wrapper.redhat.conf"
                    ),
                ));
            }
            LAUNCHER_CREDENTIAL_DROP_IN
        }
    };
    if is_encrypted {
        let text = format!(
            "{FIRST_LINE}\n[Service]\n# In place of the one that is not encrypted.\nLoadCredential=\nLoadCredentialEncrypted={CREDENTIAL_NAME}:{CREDENTIAL}\n"
        );
        files.push(public(credential_drop_in, text));
    }
    files
}

/// The credential file before it is encrypted.
pub fn credential(key: &AccessKey) -> PlannedFile {
    let parts = [
        FIRST_LINE,
        "\n[default]\naws_access_key_id = ",
        &key.id,
        "\naws_secret_access_key = ",
        &key.secret,
        "\n",
    ];
    // At its full size, so that growth leaves no copy behind.
    let mut content = Zeroizing::new(String::with_capacity(parts.iter().map(|p| p.len()).sum()));
    for part in parts {
        content.push_str(part);
    }
    PlannedFile {
        path: CREDENTIAL.into(),
        mode: 0o600,
        content,
        is_secret: true,
    }
}

fn public(path: impl Into<PathBuf>, content: String) -> PlannedFile {
    PlannedFile {
        path: path.into(),
        mode: 0o644,
        content: Zeroizing::new(content),
        is_secret: false,
    }
}

/// The example with the values of these keys, and without the first line, which says where the example goes.
fn with_values(example: &str, values: &[(&str, &str)]) -> String {
    let mut text = format!("{FIRST_LINE}\n");
    for line in example.lines().skip(1) {
        match values.iter().find(|(name, _)| key(line) == *name) {
            Some((name, value)) => text.push_str(&format!("{name} = {value}")),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// The key that a line of a configuration sets. For any other line, some text that is no key.
pub fn key(line: &str) -> &str {
    line.split(['=', ':']).next().unwrap_or(line).trim()
}

/// The value that a configuration or an option file gives to a key; the last one counts.
pub fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().rev().find(|line| key(line) == name)?;
    let (_, value) = line.split_once(['=', ':'])?;
    Some(value.trim().to_owned())
}

/// As `make install` changes it.
fn with_prefix(text: &str, prefix: &Path) -> String {
    text.replace("/usr/local/", &format!("{}/", prefix.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn files(hand_over: HandOver, server: &'static str) -> Vec<PlannedFile> {
        let answers = Answers {
            mfa_device: "arn:aws:iam::123456789012:mfa/db1".into(),
            master_key: "alias/db1".parse().unwrap(),
            region: "eu-central-1".into(),
            hand_over,
            access_key: None,
        };
        let layout = Layout {
            option_directory: Path::new("/etc/my.cnf.d"),
            server: Path::new(server),
            prefix: "/usr".into(),
        };
        without_credential(&answers, &layout, true)
    }

    fn content<'a>(files: &'a [PlannedFile], name: &str) -> &'a str {
        let file = files.iter().find(|file| file.path.ends_with(name));
        &file.unwrap().content
    }

    #[test]
    fn every_answer_is_in_the_files_once() {
        for hand_over in [HandOver::Service, HandOver::Launcher] {
            let files = files(hand_over, "/usr/sbin/mariadbd");
            let config = content(&files, "iam-kms-wrapper.config");
            let options = content(&files, "60-encryption.cnf");
            for (text, line) in [
                (config, "\nkms_mfa_id = arn:aws:iam::123456789012:mfa/db1\n"),
                (config, "\nregion = eu-central-1\n"),
                (config, "\nhandoff = broker\n"),
                (options, "\naws-key-management-master-key-id = alias/db1\n"),
            ] {
                assert_eq!(text.matches(line).count(), 1, "{line}: {text}");
            }
        }
    }

    #[test]
    fn only_red_hats_package_gets_its_drop_in() {
        let names = |server| -> Vec<_> {
            let files = files(HandOver::Launcher, server);
            let names = files.iter().map(|file| file.path.file_name().unwrap());
            names.map(|name| name.to_owned()).collect()
        };
        let redhat = "iam-kms-wrapper.redhat.conf";
        assert!(names("/usr/libexec/mariadbd").contains(&redhat.into()));
        assert!(!names("/usr/sbin/mariadbd").contains(&redhat.into()));
    }

    #[test]
    fn systemd_reads_the_credential_drop_in_after_the_one_that_it_changes() {
        assert!(LAUNCHER_CREDENTIAL_DROP_IN > LAUNCHER_DROP_IN);
    }

    #[test]
    fn drop_ins_name_the_programs_where_they_are_installed() {
        let files = files(HandOver::Launcher, "/usr/libexec/mariadbd");
        for file in &files {
            assert!(!file.content.contains("/usr/local"), "{}", *file.content);
        }
        let drop_in = content(&files, "iam-kms-wrapper.conf");
        assert!(
            drop_in.contains("ExecStart=/usr/bin/iam-kms-wrapper "),
            "{drop_in}"
        );
    }
}
