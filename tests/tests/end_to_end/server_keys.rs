//! Data keys: made, rotated, refused, and exchanged with MariaDB's own plugin.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use broker_protocol::{Decrypt, KmsOptions, Reply, Request, read_frame, write_frame};
use end_to_end_tests::{Configuration, Database, LocalAws, Sandbox, Wrapper};

use crate::server_main_job::ENCRYPT_ALL;

fn start(sandbox: &Sandbox, aws: &LocalAws) -> (Configuration, Database, Wrapper) {
    let configuration = Configuration::with_broker(sandbox, aws);
    let database = Database::new(sandbox)
        .with_our_plugin(&configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&[
            "--innodb-encryption-threads=2",
            "--innodb-encryption-rotate-key-age=0",
        ]);
    let wrapper = Wrapper::start_database(sandbox, aws, &configuration, &database);
    (configuration, database, wrapper)
}

#[test]
fn a_rotation_makes_a_new_version_and_old_rows_stay_readable() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let (configuration, database, mut wrapper) = start(&sandbox, &aws);
    database.sql(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=5;
         INSERT INTO d.t SELECT seq FROM seq_1_to_1000",
    );
    let notes = database.sql("SET GLOBAL aws_key_management_rotate_key=5");
    assert!(
        database.key_files().contains(&"aws-kms-key.5.2".into()),
        "{notes}"
    );
    assert!(!database.key_files().contains(&"aws-kms-key.1.2".into()));
    assert_eq!(
        database.sql("SELECT @@global.aws_key_management_rotate_key"),
        "0"
    );
    assert!(
        notes.contains("innodb_encryption_rotate_key_age"),
        "{notes}"
    );

    database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    for file in ["aws-kms-key.1.2", "aws-kms-key.2.2", "aws-kms-key.5.3"] {
        assert!(database.key_files().contains(&file.into()), "{file}");
    }
    let warning = database.sql("SET GLOBAL aws_key_management_rotate_key=77");
    assert!(warning.contains("77"), "{warning}");

    database.sql("USE d; INSERT INTO d.t SELECT seq FROM seq_1001_to_2000");
    database.stop(&mut wrapper.process);
    let mut wrapper = Wrapper::start_database(&sandbox, &aws, &configuration, &database);
    assert_eq!(
        database.sql("SELECT COUNT(*), SUM(i) FROM d.t"),
        "2000\t2001000"
    );
    database.stop(&mut wrapper.process);
}

#[test]
fn key_files_are_private_and_hold_what_kms_wrapped() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let (configuration, database, _wrapper) = start(&sandbox, &aws);
    let file = database.datadir.join("aws-kms-key.1.1");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(
        unwrap(&configuration.broker_socket, &fs::read(&file).unwrap()).len(),
        16
    );
    assert_eq!(
        aws.calls("GenerateDataKeyWithoutPlaintext"),
        database.key_files().len()
    );
}

#[test]
fn key_spec_decides_the_length_of_new_keys() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let (configuration, database, _wrapper) = start(&sandbox, &aws);
    database.sql(
        "SET GLOBAL aws_key_management_key_spec=AES_256;
         CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=6",
    );
    let wrapped = fs::read(database.datadir.join("aws-kms-key.6.1")).unwrap();
    assert_eq!(unwrap(&configuration.broker_socket, &wrapped).len(), 32);
}

#[test]
fn a_key_that_kms_refuses_fails_the_statement_with_the_reason() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let (_configuration, database, _wrapper) = start(&sandbox, &aws);
    database.sql("CREATE DATABASE d");
    let create =
        |id: u32| format!("CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}");

    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/missing'");
    let error = database.sql_error(&create(10));
    assert!(
        error.contains("NotFoundException") && error.contains("master_key_id"),
        "{error}"
    );

    database.sql("SET GLOBAL aws_key_management_master_key_id=''");
    let error = database.sql_error(&create(11));
    assert!(
        error.contains("aws_key_management_master_key_id"),
        "{error}"
    );

    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/mariadb'");
    database.sql(&create(12));
}

/// The datadir of the stock plugin: AES_CBC pages of the server's own code under a key that is
/// wrapped in `aws-kms-key.1.1`.
#[test]
fn a_datadir_written_with_the_servers_own_aes_cbc_opens_unchanged_and_goes_back() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let key = "770a8a65da156d24ee2a093277530142";
    let key_file = sandbox.write("keys.txt", &format!("1;{key}\n"));
    let filename = format!("--file-key-management-filename={}", key_file.display());
    let theirs = Database::new(&sandbox).options(&ENCRYPT_ALL).options(&[
        "--plugin-load-add=file_key_management",
        &filename,
        "--file-key-management-encryption-algorithm=AES_CBC",
    ]);
    let mut server = theirs.start();
    theirs.sql(
        "CREATE DATABASE d;
         CREATE TABLE d.plain (i INT, t TEXT);
         CREATE TABLE d.compressed (i INT, t TEXT) ROW_FORMAT=COMPRESSED;
         CREATE TABLE d.pages (i INT, t TEXT) PAGE_COMPRESSED=1;
         CREATE TABLE d.aria (i INT, t TEXT) ENGINE=Aria",
    );
    let tables = ["d.plain", "d.compressed", "d.pages", "d.aria"];
    let insert = |database: &Database, from: u32, to: u32| {
        for table in tables {
            database.sql(&format!(
                "USE d; INSERT INTO {table} SELECT seq, REPEAT('text ', 20) FROM seq_{from}_to_{to}"
            ));
        }
    };
    insert(&theirs, 1, 500);
    // Killed, so that the redo log must be read with the other plugin too.
    server.signal(nix::sys::signal::SIGKILL);
    server.wait();

    let configuration = Configuration::with_broker(&sandbox, &aws);
    wrap(&aws, &sandbox, key, &theirs.datadir.join("aws-kms-key.1.1"));
    let ours = theirs
        .as_other_server()
        .with_our_plugin(&configuration.broker_socket)
        .options(&ENCRYPT_ALL);
    let mut wrapper = Wrapper::start_database(&sandbox, &aws, &configuration, &ours);
    for table in tables {
        assert_eq!(
            ours.sql(&format!("SELECT COUNT(*), SUM(i) FROM {table}")),
            "500\t125250",
            "{table}"
        );
    }
    insert(&ours, 501, 1000);
    ours.sql("PURGE BINARY LOGS TO 'binlog.000002'");
    assert!(
        ours.sql("CHECK TABLE d.plain, d.compressed, d.pages, d.aria")
            .matches("\tOK")
            .count()
            == 4
    );
    wrapper.process.signal(nix::sys::signal::SIGKILL);
    wrapper.process.wait();

    let mut server = theirs.start();
    for table in tables {
        assert_eq!(
            theirs.sql(&format!("SELECT COUNT(*), SUM(i) FROM {table}")),
            "1000\t500500",
            "{table}"
        );
    }
    theirs.stop(&mut server);
}

/// Wraps a key with the AWS CLI into a key file.
fn wrap(aws: &LocalAws, sandbox: &Sandbox, key_hex: &str, file: &Path) {
    let hex = sandbox.write("hex", key_hex);
    let plaintext = sandbox.path("plaintext");
    convert("xxd", &["-r", "-p"], &hex, &plaintext);
    let plaintext = format!("--plaintext=fileb://{}", plaintext.display());
    let wrapped = aws.cli(&[
        "kms",
        "encrypt",
        "--key-id=alias/mariadb",
        "--query=CiphertextBlob",
        "--output=text",
        &plaintext,
    ]);
    convert(
        "base64",
        &["--decode"],
        &sandbox.write("wrapped", &wrapped),
        file,
    );
}

fn convert(program: &str, arguments: &[&str], from: &Path, to: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .arg(from)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::write(to, output.stdout).unwrap();
}

/// The key in a key file, unwrapped through the broker.
pub fn unwrap(broker_socket: &Path, wrapped: &[u8]) -> Vec<u8> {
    let mut stream = std::os::unix::net::UnixStream::connect(broker_socket).unwrap();
    let options = KmsOptions::default();
    write_frame(
        &mut stream,
        &Request::Decrypt(Decrypt {
            ciphertext_blob: wrapped.into(),
            options,
        }),
    )
    .unwrap();
    match read_frame(&mut stream).unwrap() {
        Reply::Decrypted { key, .. } => key.expose().into(),
        reply => panic!("{reply:?}"),
    }
}
