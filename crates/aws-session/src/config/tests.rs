use super::*;

const SERIAL: &str = "arn:aws:iam::551888187628:mfa/MDBEnc";

fn read(name: &str, text: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    Config::read(&path).map_err(|error| {
        error
            .to_string()
            .replace(&*directory.path().to_string_lossy(), "DIR")
    })
}

fn ini(lines: &str) -> Result<Config, String> {
    read(
        "wrapper.config",
        &format!("[kms]\nkms_mfa_id = {SERIAL}\n{lines}\n"),
    )
}

fn toml(lines: &str) -> Result<Config, String> {
    read(
        "wrapper.toml",
        &format!("kms_mfa_id = \"{SERIAL}\"\n{lines}\n"),
    )
}

#[test]
fn the_configuration_file_of_the_manual_works_unchanged() {
    let config = read(
        "iam-kms-wrapper.config",
        "    [kms]\n    kms_mfa_id = arn:aws:iam::551888187628:mfa/MDBEnc\n    kms_mfa_socket = /tmp/kms_mfa_socket\n"
            .replace("    ", "")
            .as_str(),
    )
    .unwrap();
    assert_eq!(
        config.session.mfa,
        Mfa::Here {
            serial_number: SERIAL.into()
        }
    );
    assert_eq!(
        (config.fifo.path.as_path(), config.fifo.is_configured),
        (Path::new("/tmp/kms_mfa_socket"), true)
    );
    assert_eq!(
        config.fifo.access,
        FifoAccess {
            mode: 0o600,
            gid: None
        }
    );
    assert_eq!(config.session.duration_seconds, 900);
    assert_eq!(config.handoff, Handoff::Environment);
    assert_eq!(config.session.request_timeout, Duration::from_secs(10));
    assert_eq!(config.fifo.prompt_timeout, None);
}

#[test]
fn the_example_configuration_is_valid() {
    let example = include_str!("../../../../examples/configuration/iam-kms-wrapper.config");
    let config = read("iam-kms-wrapper.config", example).unwrap();
    assert_eq!(config.handoff, Handoff::Broker);
    assert_eq!(config.fifo.path, Path::new(DEFAULT_FIFO));
}

#[test]
fn ini_accepts_comments_colons_and_repeated_keys_like_the_go_program() {
    let config =
        ini("; first\n# second\nregion: eu-west-1 ; not us\nregion = eu-north-1 # at last")
            .unwrap();
    assert_eq!(config.session.region.as_deref(), Some("eu-north-1"));
}

#[test]
fn a_role_session_is_limited_to_twelve_hours() {
    let role = "role_arn = arn:aws:iam::551888187628:role/db";
    let error = ini(&format!("{role}\nsession_duration_seconds = 43201")).unwrap_err();
    assert!(
        error.contains("line 4: session_duration_seconds"),
        "{error}"
    );
    assert!(error.contains("at most 43200 with role_arn"), "{error}");
    assert!(ini(&format!("{role}\nsession_duration_seconds = 43200")).is_ok());
    assert!(ini("session_duration_seconds = 129600").is_ok());
}

#[test]
fn both_formats_accept_every_key() {
    let group = Group::from_gid(nix::unistd::getgid()).unwrap().unwrap();
    let lines = format!(
        "kms_mfa_socket = \"/run/x\"\nkms_mfa_socket_mode = \"0620\"\nkms_mfa_socket_group = \"{}\"\n\
         session_duration_seconds = 3600\nrequest_timeout_seconds = 3\nprompt_timeout_seconds = 60\n\
         role_arn = \"arn:aws:iam::1:role/r\"\nprofile = \"p\"\nregion = \"eu-west-1\"\n\
         handoff = \"broker\"\nbroker_socket = \"/run/b\"\nmfa = true",
        group.name
    );
    let from_toml = toml(&lines).unwrap();
    assert_eq!(from_toml, ini(&lines.replace('"', "")).unwrap());
    assert_eq!(
        from_toml.fifo.access,
        FifoAccess {
            mode: 0o620,
            gid: Some(group.gid.as_raw())
        }
    );
    assert_eq!(from_toml.handoff, Handoff::Broker);
    assert_eq!(
        from_toml,
        read(
            "a.toml",
            &format!("[kms]\nkms_mfa_id = \"{SERIAL}\"\n{lines}")
        )
        .unwrap()
    );
}

#[test]
fn an_error_names_the_line_of_an_unknown_key_and_the_nearest_key() {
    assert_eq!(
        ini("kms_mfa_sockt = /x").unwrap_err(),
        "DIR/wrapper.config, line 3: unknown key kms_mfa_sockt; did you mean kms_mfa_socket?"
    );
    assert_eq!(
        toml("\nregoin = \"x\"").unwrap_err(),
        "DIR/wrapper.toml, line 3: unknown key regoin; did you mean region?"
    );
    assert!(
        toml("zzz = 1")
            .unwrap_err()
            .contains("the keys are kms_mfa_id, ")
    );
}

#[test]
fn an_error_names_an_unknown_section() {
    for (name, text) in [
        ("a.toml", "[sts]\nmfa = false"),
        ("a.ini", "[sts]\nmfa = false"),
    ] {
        let error = read(name, text).unwrap_err();
        assert!(
            error.contains("unknown section [sts]; every key belongs in [kms]"),
            "{error}"
        );
    }
}

#[test]
fn an_error_names_an_invalid_value_and_what_is_expected() {
    for (lines, expected) in [
        (
            "session_duration_seconds = 899",
            "a number from 900 to 129600",
        ),
        (
            "session_duration_seconds = many",
            "a number from 900 to 129600",
        ),
        ("kms_mfa_socket = relative", "an absolute path"),
        ("kms_mfa_socket = /", "an absolute path"),
        ("kms_mfa_socket_mode = 0999", "octal permission bits"),
        ("kms_mfa_socket_mode = 0200", "octal permission bits"),
        ("kms_mfa_socket_mode = 4600", "octal permission bits"),
        (
            "kms_mfa_socket_mode = 0666",
            "octal permission bits that let the owner read and nobody else, such as 0620",
        ),
        (
            "kms_mfa_socket_mode = 0640",
            "and nobody else, such as 0620",
        ),
        (
            "kms_mfa_socket_mode = 0604",
            "and nobody else, such as 0620",
        ),
        (
            "master_key_id = mariadb",
            "or an alias such as alias/mariadb (did you mean alias/mariadb?)",
        ),
        (
            "kms_mfa_socket_group = no-such-group-here",
            "the name of a group on this host",
        ),
        ("handoff = pipe", "environment or broker"),
        ("mfa = maybe", "true, elsewhere or false"),
        ("region = evil.example.com/", "an AWS region"),
        ("role_arn = admin", "the ARN of a role"),
        ("kms_mfa_id = 123", "the serial number of an MFA device"),
        (
            "region = \"us-east-1\"",
            "such as us-east-1; write it without quotes",
        ),
        (
            "handoff = 'broker'",
            "environment or broker; write it without quotes",
        ),
        (
            "kms_mfa_id = \"arn:aws:iam::551888187628:mfa/MDBEnc\"",
            "the serial number of an MFA device",
        ),
        ("profile =", "a name"),
        (
            "kms_mfa_id = arn:aws:iam::551888187628:u2f/user/db/yubi-1",
            "STS takes no security key or passkey",
        ),
        (
            "kms_mfa_id = arn:aws:iam::551888187628:user/MDBEnc",
            "the ARN of an MFA device, such as",
        ),
    ] {
        let error = ini(lines).unwrap_err();
        assert!(error.starts_with("DIR/wrapper.config, line 3: "), "{error}");
        assert!(error.contains(expected), "{lines}: {error}");
    }
}

#[test]
fn a_mode_written_as_a_toml_number_is_refused() {
    assert!(
        toml("kms_mfa_socket_mode = 620")
            .unwrap_err()
            .contains("in quotes")
    );
    assert!(
        toml("kms_mfa_socket_mode = 0o620")
            .unwrap_err()
            .contains("in quotes")
    );
}

#[test]
fn a_device_is_required_unless_no_code_is_needed() {
    assert!(
        read("a.ini", "[kms]\n")
            .unwrap_err()
            .contains("kms_mfa_id is missing")
    );
    assert_eq!(read("a.toml", "mfa = false").unwrap().session.mfa, Mfa::Off);
    assert_eq!(
        read("a.toml", "mfa = \"elsewhere\"").unwrap().session.mfa,
        Mfa::Elsewhere
    );
    assert!(
        toml("mfa = false")
            .unwrap_err()
            .contains("left out unless mfa = true")
    );
    assert!(
        read(
            "a.ini",
            "[kms]\nmfa = false\nrole_arn = arn:aws:iam::1:role/r"
        )
        .is_err()
    );
}

#[test]
fn an_invalid_file_is_an_error_and_not_a_panic() {
    assert!(
        read("a.toml", "kms_mfa_id = = 1")
            .unwrap_err()
            .starts_with("DIR/a.toml, line 1: ")
    );
    assert!(
        read("a.ini", "[kms]\nnonsense\n")
            .unwrap_err()
            .starts_with("DIR/a.ini, line ")
    );
    assert!(
        read("a.ini", &"x".repeat(100_000))
            .unwrap_err()
            .contains("longer than")
    );
    assert!(toml("region = [1]").unwrap_err().contains("takes a string"));
    let missing = Config::read(Path::new("/nonexistent/file"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        missing,
        "cannot read the configuration file /nonexistent/file: No such file or directory (os error 2); name it with --config=FILE, or begin with an example from /usr/share/iam-kms-wrapper/examples/configuration"
    );
}

#[test]
fn without_a_file_every_default_of_the_table_applies() {
    let config = Config::without_file().unwrap();
    assert_eq!(config.session.mfa, Mfa::Off);
    assert_eq!(config.fifo.path, Path::new(DEFAULT_FIFO));
    assert!(!config.fifo.is_configured);
    assert_eq!(config.fifo.access.mode, 0o600);
    assert_eq!(config.session.reuse_min_seconds, 60);
    assert_eq!(config.broker.socket, Path::new(broker_api::DEFAULT_SOCKET));
}

#[test]
fn each_key_is_in_the_table_once_and_its_default_is_valid() {
    for key in KEYS {
        let same = KEYS.iter().filter(|other| other.name == key.name);
        assert_eq!(same.count(), 1, "{}", key.name);
        if !["", "true"].contains(&key.default) {
            let line = format!("{} = {}", key.name, key.default);
            assert!(ini(&line).is_ok(), "{line}");
        }
    }
}

const SERVER: &str = "key_store = s3://bucket/prefix\nmaster_key_id = alias/mariadb\ntls_listen = 10.0.0.5:7443\ntls_certificate = /c\ntls_key = /k\ntls_client_ca = /a\n";

#[test]
fn a_key_server_has_a_section_for_each_client() {
    let sections = "[client \"DB1.example\"]\nkey_ids = 1-9\n[client \"spiffe://x/db2\"]\nkey_ids = 7\nmay_make = true\nname_space = db2\n";
    let config = ini(&format!("{SERVER}{sections}")).unwrap();
    let server = config.broker.key_server.unwrap();
    assert_eq!(server.listen.to_string(), "10.0.0.5:7443");
    let clients: Vec<_> = server
        .clients
        .iter()
        .map(|client| {
            let space = client.name_space.as_str();
            (client.name.as_str(), client.may_make, space)
        })
        .collect();
    assert_eq!(
        clients,
        [
            ("db1.example", false, "db1.example"),
            ("spiffe://x/db2", true, "db2")
        ]
    );
    let in_toml = "key_store = \"s3://bucket/prefix\"\nmaster_key_id = \"alias/mariadb\"\ntls_listen = \"10.0.0.5:7443\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"\ntls_client_ca = \"/a\"\n[client.\"DB1.example\"]\nkey_ids = \"1-9\"\n[client.\"spiffe://x/db2\"]\nkey_ids = 7\nmay_make = true\nname_space = \"db2\"\n";
    assert_eq!(toml(in_toml).unwrap().broker.key_server, Some(server));
}

#[test]
fn what_is_wrong_with_a_key_server_is_named_with_its_line() {
    for (lines, expected) in [
        (
            "[client \"db1\"]\nkey_ids = 1",
            "line 3: clients are for a key server only",
        ),
        (
            "tls_listen = 10.0.0.5:7443",
            "tls_listen needs tls_certificate, which is missing",
        ),
        ("tls_client_ca = /a", "must be left out without tls_listen"),
        (
            &format!("{SERVER}[client \"db1\"]"),
            "line 9: key_ids is missing",
        ),
        (
            &format!("{SERVER}[client db1]"),
            "line 9: a client's section is [client \"NAME\"]",
        ),
        (
            &format!("{SERVER}[client \"*.x\"]\nkey_ids = 1"),
            "line 9: the name of a client must be",
        ),
        (
            &format!("{SERVER}[client \"db1\"]\nkey_id = 1"),
            "line 10: unknown key key_id; did you mean key_ids?",
        ),
        (
            &format!("{SERVER}[client \"db1\"]\nbroker_socket_group = mysql"),
            "line 10: unknown key broker_socket_group; it belongs in [kms], above the [client] sections",
        ),
        (
            &format!("{SERVER}[client \"db1\"]\nkey_ids = 0"),
            "key_ids is \"0\", but must be ids of data keys",
        ),
        (
            &format!("{SERVER}[client \"x:y\"]\nkey_ids = 1"),
            "set name_space",
        ),
        (
            &format!("{SERVER}[client \"db1\"]\nkey_ids = 1\n[client \"DB1\"]\nkey_ids = 2"),
            "line 11: there is another section",
        ),
        (
            &format!(
                "{}[client \"db1\"]\nkey_ids = 1\nmay_make = true",
                SERVER.replace("master_key_id = alias/mariadb\n", "")
            ),
            "so master_key_id is needed",
        ),
    ] {
        let error = ini(lines).unwrap_err();
        assert!(error.contains(expected), "{lines}\n{error}");
    }
}

#[test]
fn a_host_with_an_upstream_has_nothing_of_aws() {
    let host =
        "[kms]\nupstream = keys1:7443\ntls_certificate = /c\ntls_key = /k\ntls_server_ca = /a\n";
    let config = read("wrapper.config", host).unwrap();
    assert_eq!(config.session.mfa, Mfa::Off);
    assert_eq!(
        config.broker.upstream.unwrap().servers[0].to_string(),
        "keys1:7443"
    );
    for line in [
        "kms_mfa_id = arn:aws:iam::551888187628:mfa/MDBEnc",
        "mfa = false",
        "profile = x",
        "key_store = file:///x",
        "tls_listen = 127.0.0.1:1",
        "metrics_listen = 127.0.0.1:1",
    ] {
        let error = read("wrapper.config", &format!("{host}{line}\n")).unwrap_err();
        assert!(error.contains("must be left out with upstream"), "{error}");
    }
    let servers = "upstream = [\"keys1:7443\", \"[::1]:1\"]\ntls_certificate = \"/c\"\ntls_key = \"/k\"\ntls_server_ca = \"/a\"\n";
    let config = read("wrapper.toml", servers).unwrap();
    assert_eq!(config.broker.upstream.unwrap().servers.len(), 2);
}

#[test]
fn a_broker_has_no_two_sockets_or_fifos_at_one_path() {
    for (lines, other) in [
        (
            "overview_socket = /run/iam-kms-wrapper/broker.sock",
            "broker_socket",
        ),
        ("broker_socket = /a\nmetrics_listen = /a", "broker_socket"),
        (
            "overview_socket = /a\nmetrics_listen = /a",
            "overview_socket",
        ),
        ("kms_mfa_socket = /a\nbroker_socket = /a", "kms_mfa_socket"),
        ("broker_socket = /run/iam-kms-wrapper/mfa", "kms_mfa_socket"),
        (
            "kms_mfa_socket = /run/iam-kms-wrapper/broker.sock",
            "broker_socket",
        ),
    ] {
        let error = ini(lines).unwrap_err();
        assert!(
            error.contains(&format!("must be another path than {other}")),
            "{error}"
        );
    }
    ini("broker_socket = /a\noverview_socket = /b\nmetrics_listen = /c").unwrap();
}

#[test]
fn metrics_are_served_on_a_socket_or_to_this_host_alone() {
    for (value, expected) in [
        (
            "127.0.0.1:9917",
            Listen::Loopback("127.0.0.1:9917".parse().unwrap()),
        ),
        (
            "[::1]:9917",
            Listen::Loopback("[::1]:9917".parse().unwrap()),
        ),
        (
            "/run/iam-kms-wrapper/metrics.sock",
            Listen::Socket("/run/iam-kms-wrapper/metrics.sock".into()),
        ),
    ] {
        let config = ini(&format!("metrics_listen = {value}")).unwrap();
        assert_eq!(config.broker.metrics_listen, Some(expected));
    }
    for value in [
        "0.0.0.0:9917",
        "10.0.0.1:9917",
        "localhost",
        ":9917",
        "run/metrics",
    ] {
        let error = ini(&format!("metrics_listen = {value}")).unwrap_err();
        assert!(error.contains("127.0.0.1:PORT"), "{error}");
    }
}
