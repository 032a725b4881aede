//! From file_key_management and back, and backups restored where there is no AWS.

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use end_to_end_tests::{
    ChildGuard, Database, ENCRYPT_ALL, Process, Scene, Terminal, after, backup, dist, key_files,
    mode,
    offline_keys::encrypt,
    tables::{assert_rows, check_tables, insert, make_tables},
    wait_until,
};
use nix::sys::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

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
        .re_encrypting()
}

/// The option lines that an export prints for a plugin.
fn printed_options(said: &str, plugin: &str) -> Vec<String> {
    said.lines()
        .skip_while(|line| !line.starts_with(&format!("For {plugin}")))
        .skip(1)
        .map_while(|line| line.strip_prefix("  "))
        .map(|line| line.replace(" = ", "="))
        .collect()
}

/// A server on the same datadir with just these lines in its option file, and what loads the plugin.
fn with_printed_options(scene: &Scene, database: &Database, said: &str, plugin: &str) -> Database {
    let lines = printed_options(said, plugin);
    assert!(!lines.is_empty(), "{said}");
    let file = scene.sandbox.write(
        &format!("{plugin}.cnf"),
        &format!(
            "[mariadb]\nplugin_load_add={plugin}\n{}\n",
            lines.join("\n")
        ),
    );
    database
        .as_other_server()
        .defaults_file(&file)
        .options(&ENCRYPT_ALL)
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
    assert!(said.contains("3 existed already"), "{said}");
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
    wait_until("InnoDB to re-encrypt all its tables", || {
        // What was re-encrypted between the two rotations stays under version 2.
        let moved = "SELECT MIN(MIN_KEY_VERSION) > 1, COUNT(*) > 3
            FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME = 1";
        ours.sql(moved) == "1\t1"
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
    let (keys, _, said) = export(&scene, &ours, "sha1");
    assert!(said.contains("3 data keys exported"), "{said}");
    assert_eq!(mode(&keys), 0o600);
    ours.stop(&mut server.process);

    let offline = with_printed_options(&scene, &database, &said, "aws_key_management");
    let mut server = offline.start();
    assert_rows(&offline, 300);
    offline.stop(&mut server);
    let theirs = with_printed_options(&scene, &database, &said, "file_key_management");
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
    let reason = "Not for file_key_management: it supports only version 1 of each key, but key 1 has version 2";
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
        .re_encrypting();
    let mut server = theirs.start();
    assert_rows(&theirs, 300);
    theirs.sql("ALTER TABLE d.seven ENCRYPTED=YES");
    assert_eq!(theirs.sql(READ_SEVEN), SEVEN_ROW);
    insert(&theirs, 301, 400);
    check_tables(&theirs);
    theirs.stop(&mut server);
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
    backup(&["--backup", &target_option, &socket, "--user=root"]);
    let (_, _, said) = export(&scene, &ours, "pbkdf2");
    assert!(said.contains("Not for file_key_management"), "{said}");
    ours.stop(&mut server.process);
    scene.aws.stop();
    for name in key_files(&target) {
        fs::remove_file(target.join(name)).unwrap();
    }

    // mariadb-backup takes options of a plugin from that file alone, the last of a name.
    let options = printed_options(&said, "aws_key_management");
    assert_eq!(options.len(), 4, "{said}");
    let mut file = fs::File::options()
        .append(true)
        .open(target.join("backup-my.cnf"))
        .unwrap();
    writeln!(file, "{}", options.join("\n")).unwrap();
    backup(&["--prepare", &target_option]);
    let restored = ours.on_datadir(&target).options(
        &options
            .iter()
            .map(|option| format!("--{option}"))
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    let mut server = restored.start();
    server.wait_for("AWS KMS plugin: serving keys: 3, versions: 6");
    assert_rows(&restored, 600);
    check_tables(&restored);
    assert_eq!(restored.sql(READ_SEVEN), SEVEN_ROW);

    // Offline, it is backed up and restored with what is in the backup.
    let second = scene.sandbox.path("second");
    let second_option = format!("--target-dir={}", second.display());
    let socket = format!("--socket={}", restored.socket.display());
    backup(&["--backup", &second_option, &socket, "--user=root"]);
    restored.stop(&mut server);
    let kept = fs::read_to_string(second.join("backup-my.cnf")).unwrap();
    for option in &options {
        assert!(kept.lines().any(|line| line == option), "{option}\n{kept}");
    }
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
    assert!(said.contains("Not included: aws-kms-key.7.1"), "{said}");
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
    assert!(said.contains("contains another key"), "{said}");
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
            ("Repeat the password: ", second),
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
        .args(["enc", "-d", "-aes-256-cbc", "-pbkdf2", "-iter", "600000"])
        .args(["-pass", &format!("pass:{PASSWORD}"), "-in", text(&output)]);
    let opened = openssl.output().unwrap();
    let opened = String::from_utf8(opened.stdout).unwrap();
    let line = format!("1;{} #aws-kms-key.1.1", key.to_lowercase());
    assert!(opened.lines().any(|found| found == line));
}

/// Nobody could enter it at another terminal, and two that differ could look the same.
#[test]
fn a_password_that_is_typed_in_another_encoding_than_utf_8_is_refused() {
    let scene = Scene::new().with_broker();
    let keys = wrapped_keys(&scene, &[("aws-kms-key.1.1", &"77".repeat(16))]);
    let output = scene.sandbox.path("exported");
    let export = ["export", "--output", text(&output), text(&keys)];
    let mut terminal = Terminal::new();
    let mut on_terminal = after(&["setsid", "--ctty", "--wait"], &program(&scene, &export));
    let mut process = Process::start(on_terminal.stdin(terminal.programs()));
    terminal.wait_for_nth("Password of the key file: ", 1);
    wait_until("the echo to be off", || !terminal.echoes());
    // In Latin-1.
    terminal.type_bytes(b"p\xe4ssword\n");
    let (status, said) = process.finish();
    assert_eq!(status.code(), Some(125), "{said}");
    assert!(said.contains("is not UTF-8"), "{said}");
    assert!(!output.exists());
}

/// Wraps these keys at KMS, without a server.
fn wrapped_keys(scene: &Scene, keys: &[(&str, &str)]) -> PathBuf {
    let directory = scene.sandbox.directory("wrapped-keys");
    for (name, hex) in keys {
        scene
            .aws
            .wrap_key(&scene.sandbox, hex, &directory.join(name));
    }
    directory
}

#[test]
fn an_export_in_enterprises_form_has_all_versions_and_is_refused_where_algorithms_differ() {
    const OLD: &str = "770a8a65da156d24ee2a093277530142";
    const NEW: &str = "770a8a65da156d24ee2a093277530143";
    let scene = Scene::new().with_broker();
    let keys = wrapped_keys(
        &scene,
        &[
            ("aws-kms-key.1.1.ctr", OLD),
            ("aws-kms-key.1.2.ctr", NEW),
            ("aws-kms-key.7.2", OLD),
        ],
    );
    let password = scene.sandbox.write("export-password", "another password");
    let output = scene.sandbox.path("exported");
    let password_option = password_option(&password);
    let export = [
        "export",
        "--form=enterprise",
        "--format=sha1",
        "--output",
        text(&output),
        &password_option,
        text(&keys),
    ];
    let (code, said) = data_keys(&scene, &export);
    assert_eq!(code, Some(125), "{said}");
    assert!(
        said.contains("one algorithm for all keys") && !output.exists(),
        "{said}"
    );

    fs::rename(
        keys.join("aws-kms-key.7.2"),
        keys.join("aws-kms-key.7.2.ctr"),
    )
    .unwrap();
    let said = succeeds(&scene, &export);
    let theirs = printed_options(
        &said,
        "file_key_management of MariaDB Enterprise Server 11.8",
    );
    assert_eq!(
        theirs,
        [
            format!("file_key_management_filename={}", output.display()),
            format!("file_key_management_filekey=FILE:{}", password.display()),
            "file_key_management_encryption_algorithm=AES_CTR".into(),
        ]
    );
    let mut openssl = Command::new("openssl");
    openssl
        .args(["enc", "-d", "-aes-256-cbc", "-md", "sha1", "-in"])
        .arg(&output)
        .args(["-pass", &format!("file:{}", password.display())]);
    let opened = String::from_utf8(openssl.output().unwrap().stdout).unwrap();
    assert_eq!(opened, format!("1;1;{OLD}\n1;2;{NEW}\n7;2;{OLD}\n"));

    // Back in, versions kept, and served by our plugin with what was printed for it.
    let back = scene.sandbox.directory("back");
    let master_key = format!("--master-key-id={MASTER_KEY}");
    succeeds(
        &scene,
        &[
            "import",
            &master_key,
            "--algorithm=AES_CTR",
            &password_option,
            text(&output),
            text(&back),
        ],
    );
    assert_eq!(key_files(&back), key_files(&keys));
    let database = Database::new(&scene.sandbox);
    let ours = with_printed_options(&scene, &database, &said, "aws_key_management");
    let mut server = ours.start();
    server.wait_for("serving keys: 2, versions: 3");
    assert_eq!(
        ours.sql("SELECT @@aws_key_management_encryption_algorithm"),
        "AES_CTR"
    );
    ours.stop(&mut server);
}

#[test]
fn import_finds_the_usual_numbers_of_iterations_and_takes_any_that_is_given() {
    let scene = Scene::new().with_broker();
    let master_key = format!("--master-key-id={MASTER_KEY}");
    for (options, given, found) in [
        (
            "-md sha384",
            &[][..],
            Some("--digest=sha384 --iterations=0"),
        ),
        (
            "-md sha512 -pbkdf2",
            &[],
            Some("--digest=sha512 --iterations=10000"),
        ),
        (
            "-md sha256 -iter 20000",
            &[],
            Some("--digest=sha256 --iterations=20000"),
        ),
        ("-md sha256 -iter 12345", &["--digest=sha256"], None),
        (
            "-md sha256 -iter 12345",
            &["--iterations=12345"],
            Some("--digest=sha256 --iterations=12345"),
        ),
        (
            "-md sha1 -iter 1000001",
            &["--digest=sha1", "--iterations=1000001"],
            Some("--digest=sha1 --iterations=1000001"),
        ),
    ] {
        let (keys, password) = encrypt(&scene.sandbox, KEYS, options);
        let directory = scene.sandbox.directory("imported");
        let password = password_option(&password);
        let mut import = vec!["import", &master_key, &password];
        import.extend(given);
        import.extend([text(&keys), text(&directory)]);
        let (code, said) = data_keys(&scene, &import);
        match found {
            Some(found) => {
                assert_eq!(code, Some(0), "{said}");
                assert!(said.contains(found), "{found}: {said}");
                assert_eq!(key_files(&directory).len(), 3);
            }
            None => {
                assert_eq!(code, Some(125), "{said}");
                assert!(
                    said.contains("another digest or number of iterations"),
                    "{said}"
                );
                assert_eq!(key_files(&directory), [""; 0]);
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }
}

/// Ctrl-C, as the terminal sends it.
const INTERRUPT: &str = "\x03";

#[test]
fn a_search_shows_its_progress_and_ctrl_c_ends_it_and_the_question_with_the_terminal_as_it_was() {
    let scene = Scene::new().with_broker();
    let (keys, _) = encrypt(&scene.sandbox, KEYS, "-md sha1");
    let directory = scene.sandbox.directory("imported");
    let master_key = format!("--master-key-id={MASTER_KEY}");
    let import = ["import", &master_key, text(&keys), text(&directory)];
    for with_password in [false, true] {
        let mut terminal = Terminal::new();
        let mut on_terminal = after(&["setsid", "--ctty", "--wait"], &program(&scene, &import));
        on_terminal.env("TERM", "xterm").stdin(terminal.programs());
        let mut import = ChildGuard::spawn(on_terminal.stderr(terminal.programs()));
        terminal.wait_for_nth("Password of the key file: ", 1);
        wait_until("the echo to be off", || !terminal.echoes());
        if with_password {
            terminal.type_in("not the password\n");
            terminal.wait_for_nth("looking for the digest", 2);
        }
        terminal.type_in(INTERRUPT);
        wait_until("the end of the import", || {
            import.try_wait().unwrap().is_some()
        });
        let status = import.wait().unwrap();
        assert_eq!(status.signal(), Some(SIGINT as i32), "{}", terminal.shown());
        assert!(terminal.echoes());
        assert_eq!(key_files(&directory), [""; 0]);
    }
}

#[test]
fn a_signal_at_the_question_for_the_password_leaves_the_terminal_as_it_was() {
    let scene = Scene::new().with_broker();
    let (keys, _) = encrypt(&scene.sandbox, KEYS, "-md sha1");
    let directory = scene.sandbox.directory("imported");
    let master_key = format!("--master-key-id={MASTER_KEY}");
    let import = ["import", &master_key, text(&keys), text(&directory)];
    for signal in [SIGTERM, SIGHUP, SIGINT, SIGQUIT] {
        let mut terminal = Terminal::new();
        let mut on_terminal = after(&["setsid", "--ctty"], &program(&scene, &import));
        on_terminal.stdin(terminal.programs());
        let mut process = Process::start(&mut on_terminal);
        terminal.wait_for_nth("Password of the key file: ", 1);
        wait_until("the echo to be off", || !terminal.echoes());
        process.signal(signal);
        let (status, said) = process.finish();
        assert_eq!(status.signal(), Some(signal as i32), "{said}");
        assert!(terminal.echoes(), "{signal}");
    }
}
