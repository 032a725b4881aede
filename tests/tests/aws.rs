//! The main job against AWS itself, or what `AWS_ENDPOINT_URL` names in its place. `make test-aws` runs
//! it: `scripts/test-aws` makes the key, the user and the MFA device that the environment names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::RefCell,
    env,
    fs::File,
    process::{Command, Stdio},
};

use end_to_end_tests::{
    Configuration, Database, ENCRYPT_ALL, Sandbox, Wrapper, aws_cli, dist, wait_until,
};

const MARKER: &str = "marker-that-nobody-else-writes";
const ROWS: &str = "SELECT COUNT(*), MIN(t LIKE 'marker-that-nobody%') FROM d.t";

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run this with `make test-aws`"))
}

/// An emulator checks neither codes nor policies.
fn is_emulator() -> bool {
    env::var_os("AWS_ENDPOINT_URL").is_some()
}

/// The user's MFA device.
struct Device {
    used: RefCell<String>,
}

impl Device {
    /// The next code. AWS takes each only once.
    fn code(&self) -> String {
        let mut code = String::new();
        wait_until("the next MFA code", || {
            let seed = File::open(variable("IAM_KMS_TEST_MFA_SEED")).unwrap();
            let output = Command::new("oathtool")
                .args(["--totp", "--base32", "-"])
                .stdin(seed)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            code = String::from_utf8(output.stdout).unwrap().trim().into();
            *self.used.borrow() != code
        });
        self.used.replace(code.clone());
        code
    }

    /// A code that AWS refuses: no two steps in a row have the same one.
    fn wrong_code(&self) -> String {
        let code: u32 = self.used.borrow().parse().unwrap();
        format!("{:06}", (code + 1) % 1_000_000)
    }
}

/// The command line of the launcher with what this test was given of AWS, and nothing else.
fn command(sandbox: &Sandbox, configuration: &Configuration, database: &Database) -> Command {
    let file = configuration.write(sandbox);
    let mut command = Command::new(dist("bin/iam-kms-wrapper"));
    command
        .arg(format!("--config={}", file.display()))
        .args(database.command_line())
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| name == "PATH"))
        .envs(env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")))
        .stdin(Stdio::null());
    command
}

#[test]
fn tables_are_encrypted_under_keys_from_kms_and_read_back_after_a_rotation_and_a_restart() {
    let key = variable("IAM_KMS_TEST_KEY");
    let device = Device {
        used: RefCell::new(variable("IAM_KMS_TEST_USED_CODE")),
    };
    let sandbox = Sandbox::new();
    let configuration =
        Configuration::new(&sandbox, &variable("IAM_KMS_TEST_MFA_SERIAL")).handing_to_a_broker();
    let database = Database::new(&sandbox)
        .with_our_plugin(&configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&[&format!("--aws-key-management-master-key-id={key}")]);

    if is_emulator() {
        println!("AWS_ENDPOINT_URL is set: what AWS must refuse is not tried");
    } else {
        refuses_the_key_without_mfa(&key);
    }

    let wrapper = Wrapper::spawn(
        &mut command(&sandbox, &configuration, &database),
        &configuration.fifo,
    );
    wrapper.wait_for_fifo();
    if !is_emulator() {
        wrapper.write(format!("{}\n", device.wrong_code()).as_bytes());
        wrapper.process.wait_for("AWS refused the code");
    }
    let mut wrapper = start(wrapper, &device, &database);
    database.sql(&format!(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t (i INT, t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
         INSERT INTO d.t SELECT seq, CONCAT('{MARKER}', seq) FROM seq_1_to_500;
         SET GLOBAL aws_key_management_rotate_key=7;
         INSERT INTO d.t SELECT seq, CONCAT('{MARKER}', seq) FROM seq_501_to_1000;
         FLUSH TABLES; FLUSH BINARY LOGS"
    ));
    assert_eq!(
        database.key_files(),
        [
            "aws-kms-key.1.1",
            "aws-kms-key.2.1",
            "aws-kms-key.7.1",
            "aws-kms-key.7.2"
        ]
    );
    database.stop(&mut wrapper.process);
    let readable = database.files_with(MARKER.as_bytes());
    assert_eq!(readable, [""; 0], "the marker is in the clear");

    let wrapper = Wrapper::spawn(
        &mut command(&sandbox, &configuration, &database),
        &configuration.fifo,
    );
    let mut wrapper = start(wrapper, &device, &database);
    assert_eq!(database.sql(ROWS), "1000\t1");
    assert_eq!(database.status("session_state"), "open");
    database.stop(&mut wrapper.process);
}

/// Gives a code and waits until the server is ready.
fn start(wrapper: Wrapper, device: &Device, database: &Database) -> Wrapper {
    wrapper.wait_for_fifo();
    wrapper.write(format!("{}\n", device.code()).as_bytes());
    database.wait_until_ready(&wrapper.process);
    wrapper
}

fn refuses_the_key_without_mfa(key: &str) {
    let output = aws_cli()
        .args(["kms", "generate-data-key-without-plaintext"])
        .args(["--key-spec=AES_256", &format!("--key-id={key}")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("AccessDenied"),
        "{output:?}"
    );
}
