//! `--check`: what it finds, what it says of it, and that it leaves no trace.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Output},
    thread,
};

use nix::{sys::signal::Signal::SIGTERM, unistd::User};

use end_to_end_tests::{Database, NOBODY, ObjectStorage, SLEEP, Scene, What, set_user, wait_until};

/// A check that was run.
struct Checked {
    code: Option<i32>,
    list: String,
}

impl Checked {
    fn of(command: &mut Command) -> Self {
        let Output { status, stdout, .. } = command.output().unwrap();
        Self {
            code: status.code(),
            list: String::from_utf8(stdout).unwrap(),
        }
    }

    /// The line about `what`.
    fn line(&self, what: &str) -> &str {
        let about = format!("{what}: ");
        let mut lines = self.list.lines();
        lines
            .find(|line| {
                line.get(VERDICT_WIDTH..)
                    .is_some_and(|l| l.starts_with(&about))
            })
            .unwrap_or_else(|| panic!("nothing about {what}:\n{}", self.list))
    }

    fn says(&self, what: &str, verdict: &str, text: &str) {
        let line = self.line(what);
        assert!(
            line.starts_with(&format!("{verdict:<VERDICT_WIDTH$}")),
            "{}",
            self.list
        );
        assert!(line.contains(text), "{text:?} is not in\n{}", self.list);
    }
}

/// Columns before the name of what was checked.
const VERDICT_WIDTH: usize = 13;

fn check(scene: &Scene, command: &[&str]) -> Command {
    let mut arguments = vec!["--check"];
    arguments.extend(command);
    scene.command(&arguments)
}

/// A copy of the launcher that somebody without rights runs.
fn as_nobody(scene: &Scene, program: &Path, arguments: &[&str]) -> Command {
    let mut prefix = set_user(NOBODY);
    prefix.push(program.display().to_string());
    let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
    let line = scene.command(arguments);
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).args(line.get_args()).env_clear();
    command.envs(line.get_envs().map(|(name, value)| (name, value.unwrap())));
    command.current_dir("/");
    command
}

fn assert_no_trace(scene: &Scene) {
    let directory = scene.fifo().parent().unwrap();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    assert_eq!(scene.aws.calls("GetSessionToken"), 0);
}

#[test]
fn a_host_that_is_ready_exits_with_0_and_a_list_of_what_was_checked() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox);
    let mut line = database.command_line();
    line.push("--plugin-load-add=aws_key_management".into());
    let line: Vec<_> = line.iter().map(String::as_str).collect();
    let checked = Checked::of(&mut check(&scene, &line));
    assert_eq!(checked.code, Some(0), "{}", checked.list);
    assert!(
        checked.list.lines().all(|line| line.starts_with("ok ")),
        "{}",
        checked.list
    );
    checked.says("AWS credentials", "ok", &scene.aws.long_term_key().0);
    checked.says(
        "AWS credentials",
        "ok",
        "arn:aws:iam::111122223333:user/mariadb",
    );
    checked.says("STS", "ok", &scene.aws.endpoint());
    checked.says("KMS", "ok", &scene.aws.endpoint());
    checked.says("clock", "ok", "second");
    checked.says("FIFO", "ok", scene.fifo().to_str().unwrap());
    checked.says("command", "ok", line[0]);
    checked.says("broker", "ok", "/iam-kms-broker");
    checked.says("plugin", "ok", "/plugin/aws_key_management.so");
    assert_no_trace(&scene);

    // The code is as good as before.
    let mut wrapper = scene.start(&["true"]);
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(0);
}

#[test]
fn every_mistake_is_in_the_list_and_the_status_is_125() {
    let scene = Scene::new()
        .with_broker()
        .without("kms_mfa_socket")
        .without("broker_socket")
        .line("kms_mfa_socket = /nonexistent/mfa")
        .line("broker_socket = /nonexistent/broker.sock");
    let empty = scene.sandbox.directory("empty");
    let plugin_dir = format!("--plugin-dir={}", empty.display());
    let mut command = check(&scene, &["/nonexistent/mariadbd", &plugin_dir]);
    command.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
    let checked = Checked::of(&mut command);
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    checked.says("configuration", "ok", "/iam-kms-wrapper.config");
    checked.says(
        "AWS credentials",
        "FAILED",
        "AWS does not accept the access key AKIAIOSFODNN7EXAMPLE (InvalidClientTokenId); check that it exists",
    );
    checked.says(
        "FIFO",
        "FAILED",
        "cannot open the directory of the FIFO /nonexistent/mfa",
    );
    checked.says("command", "FAILED", "cannot find \"/nonexistent/mariadbd\"");
    checked.says(
        "broker",
        "FAILED",
        "cannot create the socket /nonexistent/broker.sock",
    );
    checked.says("plugin", "FAILED", &format!("{} ", empty.display()));
    assert!(!checked.list.contains(&scene.aws.long_term_key().1));
}

#[test]
fn a_wrong_configuration_exits_with_125_and_the_command_is_checked_all_the_same() {
    let scene = Scene::new().line("regoin = us-east-1");
    let checked = Checked::of(&mut check(&scene, &["true"]));
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    checked.says(
        "configuration",
        "FAILED",
        "line 4: unknown key regoin; did you mean region?",
    );
    checked.says("command", "ok", "/true");
    checked.says("all else", "not checked", "configuration");
    assert_eq!(scene.aws.log(), "");
}

#[test]
fn a_server_that_gets_the_session_itself_is_checked_without_broker_and_plugin_and_the_list_says_so()
{
    let command = ["mariadbd", "--no-defaults"];
    let checked = Checked::of(&mut check(&Scene::new(), &command));
    checked.says("broker and plugin", "not checked", "set handoff = broker");
}

#[test]
fn a_check_without_a_command_says_so() {
    let checked = Checked::of(&mut check(&Scene::new(), &[]));
    assert_eq!(checked.code, Some(0), "{}", checked.list);
    checked.says("command", "not checked", "no COMMAND was given");
}

#[test]
fn a_clock_that_is_off_is_reported_in_seconds() {
    let scene = Scene::new();
    for (aws_ahead, verdict, text) in [
        ("60", "ok", " seconds behind AWS's"),
        ("600", "FAILED", " seconds behind AWS's"),
        ("-600", "FAILED", " seconds ahead of AWS's"),
        ("3600", "FAILED", "set the clock (timedatectl)"),
    ] {
        scene.aws.set_clock(aws_ahead);
        let checked = Checked::of(&mut check(&scene, &["true"]));
        checked.says("clock", verdict, text);
        let code = if verdict == "ok" { 0 } else { 125 };
        assert_eq!(checked.code, Some(code), "{}", checked.list);
    }
}

#[test]
fn an_aws_that_does_not_answer_is_distinguished_from_credentials_that_are_wrong() {
    let mut scene = Scene::new();
    let mut command = check(&scene, &["true"]);
    scene.aws.stop();
    let checked = Checked::of(&mut command);
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    checked.says("STS", "FAILED", "Connection refused");
    checked.says("KMS", "FAILED", "Connection refused");
    checked.says("clock", "not checked", "AWS");
    checked.says("AWS credentials", "not checked", "STS does not answer");
    checked.says("FIFO", "ok", "mfa");
}

#[test]
fn an_answer_that_is_not_of_aws_is_reported() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let page = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(page.as_bytes());
        }
    });
    let checked = Checked::of(check(&scene, &["true"]).env("AWS_ENDPOINT_URL_KMS", url));
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    checked.says("STS", "ok", "answers");
    checked.says("KMS", "FAILED", "is not AWS's; check the endpoint URL");
}

#[test]
fn a_host_that_takes_sessions_from_elsewhere_needs_no_credentials_and_no_sts() {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = elsewhere");
    let mut command = check(&scene, &["true"]);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let checked = Checked::of(&mut command);
    assert_eq!(checked.code, Some(0), "{}", checked.list);
    checked.says("AWS credentials", "not needed", "mfa = elsewhere");
    checked.says("STS", "not needed", "mfa = elsewhere");
    checked.says("clock", "ok", "second");
    checked.says("KMS", "ok", "answers");
}

#[test]
fn no_credentials_and_temporary_ones_are_failures() {
    let scene = Scene::new();
    let mut command = check(&scene, &["true"]);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    Checked::of(&mut command).says("AWS credentials", "FAILED", "found no AWS credentials");
    let mut command = check(&scene, &["true"]);
    command.env("AWS_SESSION_TOKEN", "token");
    Checked::of(&mut command).says("AWS credentials", "FAILED", "accepts only long-term keys");
}

#[test]
fn the_plugin_directory_is_found_in_the_servers_option_files_too() {
    let scene = Scene::new().with_broker();
    let plugin_dir = scene.sandbox.directory("plugin");
    let options = scene.sandbox.write(
        "my.cnf",
        &format!(
            "[mariadbd]\nloose_plugin-dir = {}\nplugin-load-add = aws_key_management\n",
            plugin_dir.display()
        ),
    );
    let defaults = format!("--defaults-file={}", options.display());
    let command = ["mariadbd", &defaults];
    let missing = Checked::of(&mut check(&scene, &command));
    missing.says("plugin", "FAILED", &format!("{} ", plugin_dir.display()));
    let plugin = scene.sandbox.write("plugin/aws_key_management.so", "");
    let plugin_dir = format!("--plugin-dir={}", plugin_dir.display());
    let no_file = ["mariadbd", "--defaults-file=/nonexistent.cnf", &plugin_dir];
    let why = "the server's option files cannot be read: Could not open required defaults file: /nonexistent.cnf";
    Checked::of(&mut check(&scene, &no_file)).says("plugin", "FAILED", why);
    Checked::of(&mut check(&scene, &command)).says("plugin", "ok", plugin.to_str().unwrap());
    Checked::of(&mut check(&scene, &["true"])).says("plugin", "not checked", "no mariadbd");
}

#[test]
fn a_server_whose_options_do_not_load_the_plugin_is_found() {
    let scene = Scene::new().with_broker();
    let plugin_dir = scene.sandbox.directory("plugin");
    scene.sandbox.write("plugin/aws_key_management.so", "");
    let says = |options: &str, arguments: &[&str], verdict, text| {
        let options = format!(
            "[mariadb]\nplugin-dir = {}\n{options}\n",
            plugin_dir.display()
        );
        let options = scene.sandbox.write("my.cnf", &options);
        let defaults = format!("--defaults-file={}", options.display());
        let command = [&["mariadbd", &defaults], arguments].concat();
        Checked::of(&mut check(&scene, &command)).says("plugin", verdict, text);
    };
    let advice =
        "put plugin-load-add = aws_key_management into an option file that the server reads";
    says("", &[], "FAILED", advice);
    says(
        "plugin-load-add = ed25519=auth_ed25519",
        &[],
        "FAILED",
        advice,
    );
    for options in [
        "plugin-load-add = aws_key_management",
        "loose-plugin_load = ed25519=auth_ed25519;aws_key_management.so",
    ] {
        says(options, &[], "ok", "/plugin/aws_key_management.so");
    }
    for arguments in [
        &["--plugin_load_add=aws_key_management"][..],
        &["--plugin-load-add", "aws_key_management"],
    ] {
        says("", arguments, "ok", "/plugin/aws_key_management.so");
    }
    says(
        "plugin-load-add = aws_key_management\naws-key-management-master-key-id = mariadb",
        &[],
        "FAILED",
        "(did you mean alias/mariadb?)",
    );
    let options = "loose-aws-key-management-master-key-id = alias/mariadb";
    says(
        options,
        &[],
        "not checked",
        "whether INSTALL SONAME has loaded it",
    );
}

#[test]
fn options_that_keep_the_plugin_from_encrypting_are_found_and_the_launcher_warns_of_them() {
    let scene = Scene::new().with_broker();
    let plugin_dir = scene.sandbox.directory("plugin");
    scene.sandbox.write("plugin/aws_key_management.so", "");
    let ours = "plugin-load-add = aws_key_management\naws-key-management = FORCE_PLUS_PERMANENT";
    let other = "the server's options load file_key_management after aws_key_management";
    let taken_off = "plugin-load = ed25519=auth_ed25519;server_audit in the server's options takes aws_key_management off the list";
    for (options, argument, expected) in [
        (
            format!("{ours}\n[mysqld]\nplugin_load_add = file_key_management.so"),
            None,
            Some(other),
        ),
        (
            format!("{ours}\nloose-plugin-load-add = file_key_management=file_key_management"),
            None,
            Some(other),
        ),
        (
            ours.to_owned(),
            Some("--plugin-load-add=hashicorp_key_management"),
            Some("the server's options load hashicorp_key_management after aws_key_management"),
        ),
        (
            format!("{ours}\n[mysqld]\nplugin-load = ed25519=auth_ed25519;server_audit"),
            None,
            Some(taken_off),
        ),
        (
            ours.to_owned(),
            Some("--plugin-load=ed25519=auth_ed25519;server_audit"),
            Some(taken_off),
        ),
        (
            "plugin-load-add = aws_key_management\naws_key_management = off".to_owned(),
            None,
            Some(
                "aws_key_management=off in the server's options keeps the server from using aws_key_management",
            ),
        ),
        (
            "plugin-load-add = aws_key_management".to_owned(),
            Some("--skip-aws-key-management"),
            Some("skip-aws-key-management in the server's options"),
        ),
        // What is loaded before, taken off the list, or switched off, is in nobody's way.
        (
            format!("plugin-load-add = file_key_management\n{ours}"),
            Some("--skip-aws-key-management=0"),
            None,
        ),
        (
            format!("{ours}\nskip-aws-key-management"),
            Some("--enable-aws-key-management"),
            None,
        ),
        (
            format!("plugin-load-add = file_key_management\nplugin-load = server_audit\n{ours}"),
            None,
            None,
        ),
        (
            format!("plugin-load-add = file_key_management\nfile-key-management = OFF\n{ours}"),
            None,
            None,
        ),
        (
            format!("{ours}\n[mysqld]\nplugin-load-add = server_audit"),
            Some("--plugin-load=server_audit;aws_key_management"),
            None,
        ),
    ] {
        let text = format!(
            "[mariadb]\nplugin-dir = {}\n{options}\n",
            plugin_dir.display()
        );
        let file = scene.sandbox.write("my.cnf", &text);
        let defaults = format!("--defaults-file={}", file.display());
        let mut command = vec!["/usr/sbin/mariadbd", &*defaults];
        command.extend(argument);
        let checked = Checked::of(&mut check(&scene, &command));
        let Some(expected) = expected else {
            checked.says("plugin", "ok", "/plugin/aws_key_management.so");
            continue;
        };
        checked.says("plugin", "FAILED", expected);
        assert_eq!(checked.code, Some(125), "{}", checked.list);
        let mut wrapper = scene.start(&command);
        wrapper.process.wait_for(expected);
        wrapper.process.wait_for("waiting for the MFA code");
        wrapper.process.signal(SIGTERM);
        wrapper.process.wait();
    }
    assert_no_trace(&scene);
}

#[test]
fn wherever_the_broker_cannot_listen_is_found_and_the_credentials_of_its_key_store_are_looked_for()
{
    let scene = Scene::new().with_broker();
    let store = scene.sandbox.directory("store");
    scene.sandbox.write("store/conditional-put-check", "");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let socket = scene.sandbox.path("taken.sock");
    let _taken = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let socket = socket.display();
    let store = format!(
        "key_store = file://{}\nkey_store_profile = nosuch",
        store.display()
    );
    for (lines, what, text) in [
        (
            "overview_socket = /nonexistent/overview.sock".to_owned(),
            "broker",
            "cannot create the socket /nonexistent/overview.sock".to_owned(),
        ),
        (
            format!("overview_socket = {socket}"),
            "broker",
            format!("{socket} (overview_socket) is in use"),
        ),
        (
            format!("metrics_listen = {address}"),
            "broker",
            format!("{address} (metrics_listen) is in use; stop the process that listens there"),
        ),
        (
            "metrics_listen = /nonexistent/metrics.sock".to_owned(),
            "broker",
            "cannot create the socket /nonexistent/metrics.sock".to_owned(),
        ),
        (
            store,
            "credentials of the key store",
            "there is no profile nosuch (key_store_profile in the configuration)".to_owned(),
        ),
    ] {
        let faulty = Scene::new().with_broker().line(&lines);
        let file = scene
            .sandbox
            .write("aws-config", "[profile other]\nregion = us-east-1\n");
        let mut command = check(&faulty, &SLEEP);
        let checked = Checked::of(command.env("AWS_CONFIG_FILE", &file));
        checked.says(what, "FAILED", &text);
        assert_eq!(checked.code, Some(125), "{}", checked.list);
        // Before a code is spent.
        let mut command = faulty.command(&SLEEP);
        let output = faulty
            .spawn(command.env("AWS_CONFIG_FILE", &file))
            .ends_with(125);
        assert!(output.contains(&text), "{output}");
        assert!(!output.contains("waiting for"), "{output}");
    }
}

#[test]
fn a_device_of_another_account_than_the_keys_is_found() {
    let scene = Scene::new()
        .without("kms_mfa_id")
        .line("kms_mfa_id = arn:aws:iam::123456789012:mfa/mariadb");
    let checked = Checked::of(&mut check(&scene, &["true"]));
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    let device = "kms_mfa_id, arn:aws:iam::123456789012:mfa/mariadb, of another account";
    checked.says("AWS credentials", "FAILED", device);
}

#[test]
fn a_host_whose_server_runs_is_checked_beside_it() {
    let scene = Scene::new().with_broker();
    let wrapper = scene.start(&SLEEP);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let checked = Checked::of(&mut check(&scene, &["sleep"]));
    assert_eq!(checked.code, Some(0), "{}", checked.list);
    checked.says("broker", "not checked", "one listens on ");
}

#[test]
fn without_path_a_program_is_found_where_execvp_looks_and_never_in_the_current_directory() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("datadir");
    let planted = scene.sandbox.write("datadir/planted", "#!/bin/sh\n");
    fs::set_permissions(planted, PermissionsExt::from_mode(0o755)).unwrap();
    for path in [None, Some(":/bin"), Some("/bin:")] {
        for (program, verdict, text) in [
            ("planted", "FAILED", "cannot find"),
            ("cat", "ok", "/bin/cat"),
        ] {
            let mut command = check(&scene, &[program]);
            command.current_dir(&directory).env_remove("PATH");
            if let Some(path) = path {
                command.env("PATH", path);
            }
            Checked::of(&mut command).says("command", verdict, text);
        }
    }
}

#[test]
fn programs_that_other_users_could_look_into_or_replace_are_failures_and_a_start_warns_of_them() {
    let scene = Scene::new().with_broker();
    let program = scene.copy_programs(&["iam-kms-wrapper", "iam-kms-broker"]);
    let broker = program.with_file_name("iam-kms-broker");
    let as_nobody = |arguments: &[&str]| as_nobody(&scene, &program, arguments);
    let run = scene.fifo().parent().unwrap();
    chown(run, Some(NOBODY), Some(NOBODY)).unwrap();
    for (owner, mode, verdict, why) in [
        (0, 0o711, "ok", ""),
        (0, 0o755, "FAILED", "this user can read "),
        (0, 0o733, "FAILED", "users other than root can write to "),
        (NOBODY, 0o711, "FAILED", "belongs to uid 65534"),
    ] {
        for file in [&program, &broker] {
            chown(file, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
        }
        let checked = Checked::of(&mut as_nobody(&["--check", "true"]));
        checked.says("this program", verdict, why);
        checked.says("broker", verdict, why);
        let wrapper = scene.spawn(&mut as_nobody(&SLEEP));
        wrapper.give_code(&scene.aws);
        wrapper.process.wait_for("iam-kms-broker: listening on");
        let warnings = if verdict == "ok" { 0 } else { 2 };
        let output = wrapper.process.output();
        assert_eq!(output.matches("chmod 711").count(), warnings, "{output}");
        drop(wrapper);
        let socket = &scene.configuration.broker_socket;
        wait_until("the broker to leave", || !socket.exists());
    }
}

#[test]
fn a_server_that_drops_to_another_user_needs_a_group_that_the_broker_serves() {
    let scene = Scene::new().with_broker();
    let options = scene.sandbox.write("my.cnf", "[mariadb]\nuser = nobody\n");
    let defaults = format!("--defaults-file={}", options.display());
    let server = ["/usr/sbin/mariadbd", &*defaults];
    let of_user = |scene: &Scene, command: &[&str], verdict, text| {
        Checked::of(&mut check(scene, command)).says("server's user", verdict, text);
    };
    let advice = "the server runs as nobody, as its options say, and the broker serves root alone; set broker_socket_group = nobody";
    of_user(&scene, &server, "FAILED", advice);
    let of_argument = ["/usr/sbin/mariadbd", "--no-defaults", "--user=nobody"];
    of_user(&scene, &of_argument, "FAILED", advice);
    let safe = ["/usr/bin/mariadbd-safe", "--no-defaults"];
    of_user(&scene, &safe, "FAILED", "the server runs as mysql");
    let root = ["/usr/sbin/mariadbd", "--no-defaults", "--user=root"];
    of_user(&scene, &root, "ok", "root may use");
    let missing = ["/usr/sbin/mariadbd", "--no-defaults", "--user=no-such-user"];
    of_user(&scene, &missing, "FAILED", "there is no user no-such-user");
    let scene = scene.line("broker_socket_group = nogroup");
    of_user(&scene, &server, "ok", "nobody may use");
    let run = scene.fifo().parent().unwrap();
    fs::set_permissions(run, PermissionsExt::from_mode(0o700)).unwrap();
    of_user(&scene, &server, "FAILED", "who cannot search ");
}

#[test]
fn a_broker_of_another_user_than_the_servers_needs_a_group_of_the_server() {
    let scene = Scene::new().with_broker();
    let program = scene.copy_programs(&["iam-kms-wrapper", "iam-kms-broker"]);
    let run = scene.fifo().parent().unwrap();
    chown(run, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(run, PermissionsExt::from_mode(0o755)).unwrap();
    let data = scene.sandbox.directory("data");
    let datadir = format!("--datadir={}", data.display());
    let of_data = ["--check", "/usr/sbin/mariadbd", "--no-defaults", &datadir];
    let of_option = [
        "--check",
        "/usr/sbin/mariadbd",
        "--no-defaults",
        "--user=mail",
        "--datadir=/nonexistent",
    ];
    let mail = User::from_name("mail").unwrap().unwrap().uid.as_raw();
    chown(&data, Some(mail), None).unwrap();
    let check = |scene: &Scene, command| Checked::of(&mut as_nobody(scene, &program, command));
    let what = "server's user";
    let alone = "the broker serves root and its own user alone; set broker_socket_group = mail";
    let checked = check(&scene, &of_data);
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    let text = format!("the server runs as mail, the owner of its data directory, and {alone}");
    checked.says(what, "FAILED", &text);
    let text = format!("the server runs as mail, as its options say, and {alone}");
    check(&scene, &of_option).says(what, "FAILED", &text);
    let scene = scene.line("broker_socket_group = nogroup");
    check(&scene, &of_data).says(what, "FAILED", "a group that this user is not in");
    let scene = scene.without("broker_socket_group");
    let scene = scene.line("broker_socket_group = mail");
    for command in [&of_data[..], &of_option] {
        check(&scene, command).says(what, "ok", "mail may use the broker's socket");
    }
    // The launcher in front of a server of its own user, who has no need of a group.
    chown(&data, Some(NOBODY), None).unwrap();
    let own = [&of_data[..], &["--user=mail"]].concat();
    let list = check(&scene.without("broker_socket_group"), &own).list;
    assert!(!list.contains(what), "{list}");
}

#[test]
fn the_key_store_is_looked_for_where_the_broker_will_use_it() {
    let storage = ObjectStorage::start();
    let scene = Scene::new().line(&format!("key_store = {}", storage.location("db1")));
    let url = format!("{}/keys", storage.endpoint());
    let mut command = check(&scene, &SLEEP);
    command.env("AWS_ENDPOINT_URL_S3", storage.endpoint());
    let checked = Checked::of(&mut command);
    checked.says("key store", "ok", &format!("{url} answers"));
    assert_eq!(checked.code, Some(0), "{}", checked.list);

    storage.fault("GET", What::Refused(404, "NoSuchBucket"));
    let checked = Checked::of(&mut command);
    checked.says(
        "key store",
        "FAILED",
        "there is no such bucket; check key_store",
    );
    assert_eq!(checked.code, Some(125));

    let scene = scene.without("key_store");
    let directory = scene.sandbox.path("keys");
    let scene = scene.line(&format!("key_store = file://{}", directory.display()));
    let checked = Checked::of(&mut check(&scene, &SLEEP));
    checked.says("key store", "FAILED", "No such file or directory");
    // The mount point of a file server that is not mounted.
    fs::create_dir(&directory).unwrap();
    let checked = Checked::of(&mut check(&scene, &SLEEP));
    checked.says(
        "key store",
        "FAILED",
        "is not mounted, or was never made one",
    );
    assert_eq!(checked.code, Some(125), "{}", checked.list);
    fs::write(directory.join("conditional-put-check"), "").unwrap();
    let checked = Checked::of(&mut check(&scene, &SLEEP));
    checked.says("key store", "ok", "is there");
}
