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
        "DIR/wrapper.config, line 3: there is no key kms_mfa_sockt; did you mean kms_mfa_socket?"
    );
    assert_eq!(
        toml("\nregoin = \"x\"").unwrap_err(),
        "DIR/wrapper.toml, line 3: there is no key regoin; did you mean region?"
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
            error.contains("there is no section [sts]; every key belongs in [kms]"),
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
            "kms_mfa_socket_group = no-such-group-here",
            "the name of a group on this host",
        ),
        ("handoff = pipe", "environment or broker"),
        ("mfa = maybe", "true or elsewhere or false"),
        ("region = evil.example.com/", "an AWS region"),
        ("role_arn = admin", "the ARN of a role"),
        ("kms_mfa_id = 123", "the serial number of an MFA device"),
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
        "cannot read the configuration file /nonexistent/file: No such file or directory (os error 2)"
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
