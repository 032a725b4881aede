//! The keys of the configuration file. This table is the only place that lists them: the parser, the
//! man page and the table in the documentation all use it.

use broker_api::DEFAULT_SOCKET;

use crate::{key_store_location::KeyStoreLocation, master_key_id::MasterKeyId};

/// A key of the configuration file.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// The value that applies without this key; empty: none.
    pub default: &'static str,
    /// What it means: a sentence or more, with code in backticks.
    pub meaning: &'static str,
}

/// Which values a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// The serial number of an MFA device.
    SerialNumber,
    /// A KMS key.
    MasterKey,
    /// The ARN of a role.
    Role,
    /// A name, not empty.
    Name,
    /// An AWS region.
    Region,
    /// A key store.
    KeyStore,
    /// An absolute path.
    Path,
    /// A socket, or an address of this host alone.
    LocalListen,
    /// Permission bits.
    Mode,
    /// A group of this host.
    Group,
    /// A number in this range.
    Number(i32, i32),
    /// An IP address and a port.
    Listen,
    /// Servers, each with a port.
    Servers,
    /// Ids of data keys.
    KeyIds,
    /// A name that a directory can have.
    NameSpace,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Kind {
    /// What a value must be: completes "must be …".
    pub fn expected(self) -> String {
        match self {
            Self::SerialNumber => {
                "the serial number of an MFA device, such as arn:aws:iam::123456789012:mfa/NAME"
                    .into()
            }
            Self::MasterKey => MasterKeyId::EXPECTED.into(),
            Self::Role => "the ARN of a role, such as arn:aws:iam::123456789012:role/NAME".into(),
            Self::Name => "a name".into(),
            Self::Region => "an AWS region, such as us-east-1".into(),
            Self::KeyStore => KeyStoreLocation::EXPECTED.into(),
            Self::Path => "an absolute path".into(),
            Self::LocalListen => "127.0.0.1:PORT, [::1]:PORT or the absolute path of a socket".into(),
            Self::Mode => {
                "octal permission bits that let the owner read and nobody else, such as 0620 (in quotes in a .toml file)"
                    .into()
            }
            Self::Group => "the name of a group on this host".into(),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Listen => "an IP address and a port, such as 10.0.0.5:7443 or [::]:7443".into(),
            Self::Servers => {
                "1 to 8 servers with their ports, such as keys1.example:7443, keys2.example:7443".into()
            }
            Self::KeyIds => "ids of data keys, such as 1-99, 200".into(),
            Self::NameSpace => {
                "a letter and then at most 62 letters, digits, hyphens, dots and underscores".into()
            }
            Self::Word([first @ .., last]) if !first.is_empty() => {
                format!("{} or {last}", first.join(", "))
            }
            Self::Word(words) => words.concat(),
        }
    }
}

macro_rules! keys {
    ($list:ident, $what:literal; $($constant:ident: $name:literal, $kind:expr, $default:expr, $meaning:literal;)*) => {
        $(pub(super) const $constant: Key = Key {
            name: $name,
            kind: $kind,
            default: $default,
            meaning: $meaning,
        };)*

        #[doc = $what]
        pub const $list: &[Key] = &[$($constant),*];
    };
}

/// One week.
const MAX_SECONDS: i32 = 604_800;

/// Longest session that AWS gives for a long-term key, in seconds.
///
/// Source: <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html>.
const MAX_SESSION_SECONDS: i32 = 129_600;

keys! {
    KEYS, "Every key of the configuration file outside the `[client]` sections.";
    KMS_MFA_ID: "kms_mfa_id", Kind::SerialNumber, "",
        "The MFA device: its ARN, or the serial number of a hardware token. Required with `mfa = true`, and not allowed otherwise.";
    MASTER_KEY_ID: "master_key_id", Kind::MasterKey, "",
        "The master key (KMS key) that `kms-manage-key` manages, and under which a key server wraps new keys.";
    KMS_MFA_SOCKET: "kms_mfa_socket", Kind::Path, "/run/iam-kms-wrapper/mfa",
        "The FIFO that takes the code. If this key is absent and standard input is a terminal, `iam-kms-wrapper` prompts there instead.";
    KMS_MFA_SOCKET_MODE: "kms_mfa_socket_mode", Kind::Mode, "0600",
        "Permissions of the FIFO. Whoever may read it could take a code, so only the owner may.";
    KMS_MFA_SOCKET_GROUP: "kms_mfa_socket_group", Kind::Group, "",
        "Group of the FIFO. Without this key: the group of the process.";
    SESSION_DURATION_SECONDS: "session_duration_seconds", Kind::Number(900, MAX_SESSION_SECONDS), "900",
        "How long a session lasts. With `role_arn`, 43200 at most.";
    REQUEST_TIMEOUT_SECONDS: "request_timeout_seconds", Kind::Number(1, MAX_SECONDS), "10",
        "Time limit for one call of STS or KMS, and for a `credential_process`.";
    PROMPT_TIMEOUT_SECONDS: "prompt_timeout_seconds", Kind::Number(0, MAX_SECONDS), "0",
        "How long the launcher waits for a code before it exits with 125. `0` waits without limit, as the broker's service always does.";
    ROLE_ARN: "role_arn", Kind::Role, "",
        "The role to assume with the code. Without this key, the code opens a session of the user (`GetSessionToken`). Only with `mfa = true`.";
    PROFILE: "profile", Kind::Name, "",
        "The AWS profile that holds the source credentials. Without this key: `AWS_PROFILE`, then `default`.";
    REGION: "region", Kind::Region, "",
        "The AWS region. Without this key: `AWS_REGION`, then the region of the profile, then `us-east-1`.";
    HANDOFF: "handoff", Kind::Word(&["environment", "broker"]), "environment",
        "How the command gets the session. `environment`: in its environment variables. `broker`: `iam-kms-broker` keeps the session and makes the KMS calls. Set that for a broker that runs as a service, too: otherwise the preflight check leaves out the broker, the plugin, AppArmor and SELinux.";
    BROKER_SOCKET: "broker_socket", Kind::Path, DEFAULT_SOCKET,
        "The socket that the broker listens on.";
    BROKER_SOCKET_GROUP: "broker_socket_group", Kind::Group, "",
        "The broker also serves members of this group. Without this key, it serves only its own user and root.";
    REUSE_SESSION_MIN_SECONDS: "reuse_session_min_seconds", Kind::Number(0, MAX_SESSION_SECONDS), "60",
        "A restart reuses the stored session, without a code, if it lasts for at least this long.";
    REPROMPT_WAIT_SECONDS: "reprompt_wait_seconds", Kind::Number(0, MAX_SECONDS), "0",
        "How long `mariadb-backup` waits for a code if it starts while there is no session. It then fails and says why.";
    KEY_CACHE: "key_cache", Kind::Word(&["lifetime", "session"]), "lifetime",
        "How long the broker keeps the data keys that it has decrypted. `lifetime`: until it exits, so that backups work without a session. `session`: not at all, so that nobody gets a key without a session.";
    KEY_STORE: "key_store", Kind::KeyStore, "",
        "Where a second copy of the wrapped data keys is kept, from which lost key files are restored and which the nodes of a cluster share: `s3://BUCKET/PREFIX` or `file:///PATH`.";
    KEY_STORE_PROFILE: "key_store_profile", Kind::Name, "",
        "The AWS profile whose credentials are used for the key store, for a store of the S3 protocol that does not know AWS's sessions. Without this key: the session.";
    METRICS_LISTEN: "metrics_listen", Kind::LocalListen, "",
        "Where the broker serves `/metrics` for Prometheus. Without this key: nowhere. Every user of the host can read what a port serves.";
    OVERVIEW_SOCKET: "overview_socket", Kind::Path, "",
        "A second socket of the broker, on which it shows its state and the last events of the audit, but serves no key.";
    OVERVIEW_GROUP: "overview_group", Kind::Group, "",
        "The group that may use `overview_socket`, and `metrics_listen` if that is a socket. Without this key: the broker's own user and root.";
    LOG_FORMAT: "log_format", Kind::Word(&["text", "json"]), "text",
        "Format of the log if it does not go to the journal. `json` writes each event as a JSON object.";
    MFA: "mfa", Kind::Word(&["true", "elsewhere", "false"]), "true",
        "`true`: exchange a code for a session. `elsewhere`: accept only session documents that were made on another machine. `false`: use the source credentials as they are, such as the role of an instance.";
    TLS_LISTEN: "tls_listen", Kind::Listen, "",
        "Makes the broker a key server: it also listens here, for the brokers of database hosts. Needs `key_store`, `tls_certificate`, `tls_key`, `tls_client_ca` and a `[client \"NAME\"]` section for each host.";
    TLS_CERTIFICATE: "tls_certificate", Kind::Path, "",
        "PEM file with this broker's certificate and the intermediate ones, for `tls_listen` or `upstream`. Reread when it changes.";
    TLS_KEY: "tls_key", Kind::Path, "",
        "PEM file with the private key of `tls_certificate`. Only its owner and the broker's group may read it.";
    TLS_CLIENT_CA: "tls_client_ca", Kind::Path, "",
        "PEM file with the CA certificates that a key server accepts for database hosts. Reread when it changes.";
    UPSTREAM: "upstream", Kind::Servers, "",
        "The key servers from which this host gets its data keys, in place of KMS. The next one is tried when one does not answer or has no session. Needs `tls_certificate`, `tls_key` and `tls_server_ca`. Not together with the keys about AWS, codes, metrics and the overview.";
    TLS_SERVER_CA: "tls_server_ca", Kind::Path, "",
        "PEM file with the CA certificates that this host accepts for the servers in `upstream`. Reread when it changes.";
}

keys! {
    CLIENT_KEYS, "Every key of a `[client \"NAME\"]` section.";
    KEY_IDS: "key_ids", Kind::KeyIds, "",
        "The ids of the data keys that the host may use. Required.";
    MAY_MAKE: "may_make", Kind::Word(&["true", "false"]), "false",
        "Whether the host may make keys and new versions of them.";
    NAME_SPACE: "name_space", Kind::NameSpace, "",
        "Where in the key store its keys are: the nodes of a cluster have the same. Without this key: NAME.";
}
