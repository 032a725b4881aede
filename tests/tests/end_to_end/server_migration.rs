//! From file_key_management and back, and backups restored where there is no AWS.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use end_to_end_tests::{
    Database, Process, Scene, Terminal, after, command, dist, key_files, mariadb_program, mode,
    wait_until,
};

use crate::{
    server_algorithms::{assert_rows, check_tables, insert, make_tables},
    server_main_job::ENCRYPT_ALL,
    server_offline_keys::encrypt,
};

const MASTER_KEY: &str = "alias/mariadb";
const KEYS: &str = "1;770A8A65DA156D24EE2A093277530142
2;000102030405060708090a0b0c0d0e0f1011121314151617
7;f5502320f8429037b8daef761b189d12f5502320f8429037b8daef761b189d12
";
const SEVEN: &str = "CREATE TABLE d.seven (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
    INSERT INTO d.seven VALUES ('under key 7')";
const READ_SEVEN: &str = "SELECT t FROM d.seven";
const SEVEN_ROW: &str = "under key 7";

/// The command line of kms-data-keys, which asks for a code.
fn program(scene: &Scene, arguments: &[&str]) -> Command {
    let mut program = Command::new(dist("bin/kms-data-keys"));
    let config = scene.configuration.write(&scene.sandbox);
    let (subcommand, rest) = arguments.split_first().unwrap();
    program
        .arg(subcommand)
        .arg(format!("--config={}", config.display()))
        .args(rest)
        .env_clear();
    for (name, value) in scene.command(&[]).get_envs() {
        program.env(name, value.unwrap());
    }
    program
}

/// Runs kms-data-keys with a code on its standard input; returns its exit code and what it says.
fn data_keys(scene: &Scene, arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = program(scene, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that fails before it asks reads nothing.
    let _ = writeln!(child.stdin.take().unwrap(), "{}", scene.aws.code());
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn succeeds(scene: &Scene, arguments: &[&str]) -> String {
    let (code, text) = data_keys(scene, arguments);
    assert_eq!(code, Some(0), "{text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn password_option(file: &Path) -> String {
    format!("--password-file={}", file.display())
}

/// 300 rows in each table, and a table of key 7.
fn fill(database: &Database) {
    make_tables(database);
    insert(database, 1, 300);
    database.sql(SEVEN);
}

fn ours(scene: &Scene, database: &Database) -> Database {
    database
        .as_other_server()
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&["--innodb-encryption-threads=2"])
}

/// Exports the keys of a database; returns the file and the file of its password.
fn export(scene: &Scene, database: &Database, format: &str) -> (PathBuf, PathBuf, String) {
    let password = scene.sandbox.write("export-password", "another password\n");
    let file = scene.sandbox.path("exported");
    let said = succeeds(
        scene,
        &[
            "export",
            "--output",
            text(&file),
            &password_option(&password),
            &format!("--format={format}"),
            text(&database.datadir),
        ],
    );
    (file, password, said)
}

fn moves_in(algorithm: &str, suffix: &str) {
    let scene = Scene::new().with_broker();
    let (keys, password) = encrypt(&scene.sandbox, KEYS, "-md sha1");
    let theirs = Database::new(&scene.sandbox)
        .with_file_key_management(&keys, Some(&password))
        .options(&[&format!(
            "--file-key-management-encryption-algorithm={algorithm}"
        )])
        .options(&ENCRYPT_ALL);
    let mut server = theirs.start();
    fill(&theirs);
    theirs.stop(&mut server);

    let algorithm = format!("--algorithm={algorithm}");
    let import = [
        "import",
        &format!("--master-key-id={MASTER_KEY}"),
        &algorithm,
        &password_option(&password),
        text(&keys),
        text(&theirs.datadir),
    ];
    let said = succeeds(&scene, &import);
    assert!(said.contains("3 data keys imported"), "{said}");
    let said = succeeds(&scene, &import);
    assert!(said.contains("3 there already"), "{said}");
    assert_eq!(scene.aws.calls("Encrypt"), 3);
    let names = [1, 2, 7].map(|id| format!("aws-kms-key.{id}.1{suffix}"));
    assert_eq!(key_files(&theirs.datadir), names);
    for name in &names {
        assert_eq!(mode(&theirs.datadir.join(name)), 0o600);
    }
    fs::remove_file(&keys).unwrap();

    // Onto keys that never lay in a file. Not everything moves at the first rotation.
    let ours = ours(&scene, &theirs);
    let mut server = scene.start_database(&ours);
    assert_rows(&ours, 300);
    assert_eq!(ours.sql(READ_SEVEN), SEVEN_ROW);
    ours.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    ours.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    ours.sql("ALTER TABLE d.aria ENGINE=Aria; FLUSH BINARY LOGS");
    wait_until("InnoDB to encrypt all its tables anew", || {
        let moved = "SELECT MIN(MIN_KEY_VERSION), COUNT(*) > 3
            FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME = 1";
        ours.sql(moved) == "3\t1"
    });
    insert(&ours, 301, 600);
    ours.stop(&mut server.process);
    let mut server = scene.start_database(&ours);
    assert_rows(&ours, 600);
    check_tables(&ours);
    ours.stop(&mut server.process);
}

#[test]
fn a_server_with_file_key_management_and_cbc_moves_to_kms_and_new_keys() {
    moves_in("AES_CBC", "");
}

#[test]
fn a_server_with_file_key_management_and_ctr_moves_to_kms_and_new_keys() {
    moves_in("AES_CTR", ".ctr");
}

#[test]
fn exported_keys_without_rotation_are_for_file_key_management_too() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox);
    let ours = ours(&scene, &database);
    let mut server = scene.start_database(&ours);
    fill(&ours);
    let (keys, password, said) = export(&scene, &ours, "sha1");
    assert!(said.contains("3 data keys exported"), "{said}");
    assert!(said.contains("For file_key_management"), "{said}");
    assert_eq!(mode(&keys), 0o600);
    ours.stop(&mut server.process);

    let theirs = database
        .as_other_server()
        .with_file_key_management(&keys, Some(&password))
        .options(&ENCRYPT_ALL);
    let mut server = theirs.start();
    assert_rows(&theirs, 300);
    assert_eq!(theirs.sql(READ_SEVEN), SEVEN_ROW);
    insert(&theirs, 301, 400);
    check_tables(&theirs);
    theirs.stop(&mut server);
}

/// There is no other way, because file_key_management has version 1 alone.
#[test]
fn with_rotated_keys_a_server_gets_to_file_key_management_by_way_of_no_encryption() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox);
    let ours = ours(&scene, &database);
    let mut server = scene.start_database(&ours);
    fill(&ours);
    ours.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    let (_, _, said) = export(&scene, &ours, "sha1");
    let reason =
        "Not for file_key_management: it has version 1 of each key alone, and key 1 has version 2";
    assert!(said.contains(reason), "{said}");

    ours.sql(
        "SET GLOBAL innodb_encrypt_tables=OFF; SET GLOBAL aria_encrypt_tables=OFF;
         ALTER TABLE d.aria ENGINE=Aria; ALTER TABLE d.seven ENCRYPTED=NO",
    );
    wait_until("InnoDB to decrypt all its tables", || {
        let encrypted = "SELECT COUNT(*) FROM information_schema.INNODB_TABLESPACES_ENCRYPTION
            WHERE MIN_KEY_VERSION > 0";
        ours.sql(encrypted) == "0"
    });
    ours.stop(&mut server.process);
    let plain = database
        .as_other_server()
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--log-bin=binlog"]);
    let mut server = scene.start_database(&plain);
    plain.sql("RESET MASTER");
    plain.stop(&mut server.process);
    for name in key_files(&database.datadir) {
        fs::remove_file(database.datadir.join(name)).unwrap();
    }

    let keys = scene.sandbox.write("keys", KEYS);
    let theirs = database
        .as_other_server()
        .with_file_key_management(&keys, None)
        .options(&ENCRYPT_ALL)
        .options(&["--innodb-encryption-threads=2"]);
    let mut server = theirs.start();
    assert_rows(&theirs, 300);
    theirs.sql("ALTER TABLE d.seven ENCRYPTED=YES");
    assert_eq!(theirs.sql(READ_SEVEN), SEVEN_ROW);
    insert(&theirs, 301, 400);
    check_tables(&theirs);
    theirs.stop(&mut server);
}

/// Runs mariadb-backup to its good end.
fn backup(arguments: &[&str]) {
    let mut line = mariadb_program("/usr/bin/mariadb-backup");
    line.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let output = command(&line).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("completed OK!"), "{error}");
}

#[test]
fn a_backup_of_rotated_keys_is_restored_on_a_host_without_aws_and_key_files() {
    let mut scene = Scene::new().with_broker();
    let ours = ours(&scene, &Database::new(&scene.sandbox));
    let mut server = scene.start_database(&ours);
    fill(&ours);
    ours.sql(
        "SET GLOBAL aws_key_management_encryption_algorithm=AES_CTR;
         SET GLOBAL aws_key_management_rotate_key=-1",
    );
    // 10.5 backs up after a rotation only what was started since.
    ours.stop(&mut server.process);
    let ours = ours.options(&["--aws-key-management-encryption-algorithm=AES_CTR"]);
    let mut server = scene.start_database(&ours);
    insert(&ours, 301, 600);
    let target = scene.sandbox.path("backup");
    let target_option = format!("--target-dir={}", target.display());
    let socket = format!("--socket={}", ours.socket.display());
    backup(&[
        "--no-defaults",
        "--backup",
        &target_option,
        &socket,
        "--user=root",
    ]);
    let (keys, password, said) = export(&scene, &ours, "pbkdf2");
    assert!(said.contains("Not for file_key_management"), "{said}");
    ours.stop(&mut server.process);
    scene.aws.stop();
    for name in key_files(&target) {
        fs::remove_file(target.join(name)).unwrap();
    }

    // mariadb-backup takes options of a plugin from that file alone, the last of a name.
    let (keys, password) = (keys.display(), password.display());
    let options = [
        format!("aws_key_management_offline_keys={keys}"),
        format!("aws_key_management_offline_filekey=FILE:{password}"),
    ];
    let mut file = fs::File::options()
        .append(true)
        .open(target.join("backup-my.cnf"))
        .unwrap();
    writeln!(file, "{}", options.join("\n")).unwrap();
    backup(&["--prepare", &target_option]);
    let restored = ours.on_datadir(&target).options(
        &options
            .each_ref()
            .map(|option| format!("--{option}"))
            .each_ref()
            .map(String::as_str),
    );
    let mut server = restored.start();
    server.wait_for("AWS KMS plugin: serving 3 keys, 6 versions");
    assert_rows(&restored, 600);
    check_tables(&restored);
    assert_eq!(restored.sql(READ_SEVEN), SEVEN_ROW);

    // Offline, it is backed up and restored with what is in the backup.
    let second = scene.sandbox.path("second");
    let second_option = format!("--target-dir={}", second.display());
    let socket = format!("--socket={}", restored.socket.display());
    backup(&[
        "--no-defaults",
        "--backup",
        &second_option,
        &socket,
        "--user=root",
    ]);
    restored.stop(&mut server);
    backup(&["--prepare", &second_option]);
    let again = restored.on_datadir(&second);
    let mut server = again.start();
    assert_rows(&again, 600);
    again.stop(&mut server);
}

#[test]
fn an_export_is_whole_or_not_there_unless_a_file_is_left_out_by_name() {
    let scene = Scene::new().with_broker();
    let keys = scene.sandbox.directory("keys");
    let key = |name: &str, hex| {
        scene.aws.wrap_key(&scene.sandbox, hex, &keys.join(name));
    };
    key("aws-kms-key.1.1", "770A8A65DA156D24EE2A093277530142");
    key("aws-kms-key.1.2.ctr", "770A8A65DA156D24EE2A093277530143");
    fs::write(keys.join("aws-kms-key.7.1"), "not wrapped by KMS").unwrap();
    let password = scene.sandbox.write("export-password", "another password");
    let output = scene.sandbox.path("exported");
    let password = password_option(&password);
    let export = |more: &[&str]| {
        let mut arguments = vec!["export", "--output", text(&output), &password];
        arguments.extend(more);
        arguments.push(text(&keys));
        data_keys(&scene, &arguments)
    };

    let (code, said) = export(&[]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("aws-kms-key.7.1"), "{said}");
    assert!(said.contains("nothing was exported"), "{said}");
    assert!(!output.exists());
    let (code, said) = export(&["--leave-out=aws-kms-key.9.1"]);
    assert_eq!(code, Some(125), "{said}");
    assert!(
        said.contains("there is no key file 'aws-kms-key.9.1'"),
        "{said}"
    );
    let (code, said) = export(&["--leave-out=aws-kms-key.7.1"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 data keys exported"), "{said}");
    assert!(said.contains("Not in it: aws-kms-key.7.1"), "{said}");
    let before = fs::read(&output).unwrap();
    let (code, said) = export(&["--leave-out=aws-kms-key.7.1"]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("exists; name another file"), "{said}");
    assert_eq!(fs::read(&output).unwrap(), before);

    // Back into another directory, and not beside other versions of the same key.
    let other = scene.sandbox.directory("other");
    let master_key = format!("--master-key-id={MASTER_KEY}");
    let import = [
        "import",
        &master_key,
        &password,
        text(&output),
        text(&other),
    ];
    succeeds(&scene, &import);
    assert_eq!(
        key_files(&other),
        ["aws-kms-key.1.1", "aws-kms-key.1.2.ctr"]
    );
    fs::rename(other.join("aws-kms-key.1.1"), other.join("aws-kms-key.1.9")).unwrap();
    let (code, said) = data_keys(&scene, &import);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("aws-kms-key.1.9"), "{said}");
    // A file that is there and holds another key.
    fs::remove_file(other.join("aws-kms-key.1.9")).unwrap();
    key(
        "../other/aws-kms-key.1.1",
        "00000000000000000000000000000000",
    );
    let (code, said) = data_keys(&scene, &import);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("holds another key"), "{said}");
    assert!(!said.contains("770"), "{said}");
}

#[test]
fn the_password_is_asked_for_twice_at_the_terminal_and_not_shown() {
    const PASSWORD: &str = "typed by a person";
    let scene = Scene::new().with_broker();
    let keys = scene.sandbox.directory("keys");
    let key = "770A8A65DA156D24EE2A093277530142";
    scene
        .aws
        .wrap_key(&scene.sandbox, key, &keys.join("aws-kms-key.1.1"));
    let output = scene.sandbox.path("exported");
    let export = ["export", "--output", text(&output), text(&keys)];
    for (second, code) in [("typed otherwise", 125), (PASSWORD, 0)] {
        let mut terminal = Terminal::new();
        let mut on_terminal = after(&["setsid", "--ctty", "--wait"], &program(&scene, &export));
        let mut process = Process::start(on_terminal.stdin(terminal.programs()));
        for (prompt, answer) in [
            ("Password of the key file: ", PASSWORD),
            ("The same again: ", second),
        ] {
            terminal.wait_for_nth(prompt, 1);
            wait_until("the echo to be off", || !terminal.echoes());
            terminal.type_in(&format!("{answer}\n"));
        }
        if code == 0 {
            process.wait_for("waiting for");
            wait_until("the echo to be off", || !terminal.echoes());
            terminal.type_in(&format!("{}\n", scene.aws.code()));
        }
        let (status, said) = process.finish();
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(!terminal.shown().contains("typed"), "{}", terminal.shown());
    }
    let mut openssl = Command::new("openssl");
    openssl
        .args(["enc", "-d", "-aes-256-cbc", "-pbkdf2", "-iter", "200000"])
        .args(["-pass", &format!("pass:{PASSWORD}"), "-in", text(&output)]);
    let opened = openssl.output().unwrap();
    let opened = String::from_utf8(opened.stdout).unwrap();
    let line = format!("1;{} #aws-kms-key.1.1", key.to_lowercase());
    assert!(opened.lines().any(|found| found == line));
}
