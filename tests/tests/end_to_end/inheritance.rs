//! What the command inherits: all that the wrapper was given, and nothing of the source credentials.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
};

use end_to_end_tests::{
    ONLY_WITH_MFA, Process, SLEEP, Scene, after, after_python, aws_cli,
    inspection::{self, variable},
    wait_until, write_fifo,
};
use nix::unistd::Pid;

const STATUS_FIELDS: [&str; 18] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "CoreDumping",
    "Cpus_allowed",
];

/// What `sleep` has got from whoever started it, but for the environment.
fn inherited(pid: Pid) -> BTreeMap<String, String> {
    // Until then it loads its libraries, through descriptors of its own.
    wait_until("sleep to sleep", || {
        inspection::status(pid, "State").starts_with('S')
    });
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap();
    let mut all: BTreeMap<String, String> = STATUS_FIELDS
        .iter()
        .map(|field| ((*field).into(), inspection::status(pid, field)))
        .collect();
    for line in String::from_utf8(read("limits")).unwrap().lines() {
        // A column of names.
        let (name, limits) = line.split_at(26);
        let limits: Vec<_> = limits.split_whitespace().collect();
        all.insert(name.trim().into(), limits.join(" "));
    }
    for name in ["cmdline", "coredump_filter", "oom_score_adj", "personality"] {
        let text = String::from_utf8_lossy(&read(name)).into_owned();
        all.insert(name.into(), text);
    }
    let ignored = u64::from_str_radix(&all["SigIgn"], 16).unwrap();
    let ignored = (1..32).filter(|signal| ignored >> (signal - 1) & 1 == 1);
    let ignored: Vec<_> = ignored.map(|signal| signal.to_string()).collect();
    all.insert("ignored".into(), ignored.join(" "));
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    all.insert("cwd".into(), cwd.display().to_string());
    let stat = String::from_utf8(read("stat")).unwrap();
    let stat: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // Fields 5, 6 and 19 of proc_pid_stat(5).
    for (name, field) in [("process group", 5), ("session", 6), ("nice", 19)] {
        all.insert(name.into(), stat[field - 3].into());
    }
    let is_closed = |number: &i32| !Path::new(&format!("/proc/{pid}/fd/{number}")).exists();
    let closed: Vec<_> = (0..3).filter(is_closed).map(|it| it.to_string()).collect();
    all.insert("closed".into(), closed.join(" "));
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let number = entry.unwrap().file_name().into_string().unwrap();
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        let target = target.display().to_string();
        // Pipes are of each start's own.
        let target = target.split("[").next().unwrap();
        let info = String::from_utf8(read(&format!("fdinfo/{number}"))).unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags:"));
        all.insert(
            format!("descriptor {number}"),
            format!("{target} {}", flags.unwrap()),
        );
    }
    all
}

/// Starts `sleep` after `setup`, once by itself and once under the wrapper, and compares.
/// `expected` shows that the setup had an effect at all.
fn passes_over_unchanged(setup: &str, expected: &[(&str, &str)]) {
    let sleep = SLEEP;
    for scene in [Scene::new(), Scene::new().with_broker()] {
        let mut alone = Command::new("/usr/bin/sleep");
        alone.arg("1000");
        let alone = Process::start(&mut after_python(setup, &alone));
        alone.wait_for_program("sleep");

        let wrapper = scene.spawn(&mut after_python(setup, &scene.command(&sleep)));
        // Not announced where standard error is closed.
        write_fifo(scene.fifo(), scene.aws.code().as_bytes());
        wrapper.wait_for_command("sleep");

        let mut by_itself = inherited(alone.pid());
        by_itself.insert("cmdline".into(), "sleep\x001000\0".into());
        assert_eq!(inherited(wrapper.process.pid()), by_itself);
        for (name, value) in expected {
            assert_eq!(
                by_itself.get(*name).map(String::as_str),
                Some(*value),
                "{name}"
            );
        }
    }
}

#[test]
fn signals_at_their_defaults_stay_there() {
    // Python itself ignores SIGPIPE and SIGXFSZ.
    passes_over_unchanged(
        "for s in (signal.SIGPIPE, signal.SIGXFSZ): signal.signal(s, signal.SIG_DFL)",
        &[("ignored", ""), ("SigBlk", "0000000000000000")],
    );
}

#[test]
fn ignored_signals_stay_ignored() {
    passes_over_unchanged(
        "for s in (signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ): signal.signal(s, signal.SIG_IGN)",
        &[("ignored", "1 13 25")],
    );
}

#[test]
fn ignored_child_signals_disturb_nothing_and_stay_ignored() {
    passes_over_unchanged(
        "for s in (signal.SIGPIPE, signal.SIGXFSZ): signal.signal(s, signal.SIG_DFL)\n\
         signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        &[("ignored", "17")],
    );
}

#[test]
fn blocked_signals_stay_blocked() {
    passes_over_unchanged(
        "signal.pthread_sigmask(signal.SIG_SETMASK, \
         [signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1])",
        &[("SigBlk", "0000000000015201")],
    );
}

#[test]
fn the_umask_is_inherited() {
    passes_over_unchanged("os.umask(0o027)", &[("Umask", "0027")]);
}

#[test]
fn resource_limits_are_inherited() {
    passes_over_unchanged(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n\
         resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))\n\
         resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 2 << 20))",
        &[
            ("Max open files", "300 400 files"),
            ("Max core file size", "4096 8192 bytes"),
            ("Max locked memory", "1048576 2097152 bytes"),
        ],
    );
}

#[test]
fn working_directory_niceness_and_oom_score_are_inherited() {
    passes_over_unchanged(
        "os.chdir('/usr/lib')\nos.nice(3)\nopen('/proc/self/oom_score_adj', 'w').write('123')",
        &[
            ("cwd", "/usr/lib"),
            ("nice", "3"),
            ("oom_score_adj", "123\n"),
        ],
    );
}

#[test]
fn open_descriptors_are_inherited_and_none_is_added() {
    passes_over_unchanged(
        "os.dup2(os.open('/etc/hostname', os.O_RDONLY), 3)\n\
         os.dup2(os.open('/dev/null', os.O_RDWR), 77)\n\
         [os.set_inheritable(fd, True) for fd in os.pipe()]",
        &[("descriptor 77", "/dev/null flags:\t0100002")],
    );
}

#[test]
fn closed_standard_streams_stay_closed() {
    for closed in ["0", "0 1", "0 1 2"] {
        let setup = format!("for number in '{closed}'.split(): os.close(int(number))");
        passes_over_unchanged(&setup, &[("closed", closed)]);
    }
}

#[test]
fn user_and_groups_are_inherited() {
    let scene = Scene::new();
    let mut command = scene.command_as_nobody(&SLEEP);
    let wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let pid = wrapper.process.pid();
    assert_eq!(inspection::status(pid, "Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(inspection::status(pid, "Groups"), "");
}

#[test]
fn arguments_are_inherited_byte_for_byte() {
    let scene = Scene::new();
    // Waits in itself, with any arguments.
    let mut command = scene.command(&["dash", "-c", "read line"]);
    let arguments: [&[u8]; 6] = [
        b"",
        b"with space",
        "Größe".as_bytes(),
        b"\xff\xfe",
        b"--config=x",
        b"new\nline",
    ];
    command.args(arguments.map(OsStr::from_bytes));
    let wrapper = scene.spawn(command.stdin(Stdio::piped()));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("dash");
    let mut expected = b"dash\0-c\0read line\0".to_vec();
    for argument in arguments {
        expected.extend_from_slice(argument);
        expected.push(0);
    }
    assert_eq!(inspection::command_line(wrapper.process.pid()), expected);
}

#[test]
fn what_waits_in_standard_input_is_the_commands() {
    let scene = Scene::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"111676\nfor the command\n").unwrap();
    drop(writer);
    let mut wrapper = scene.spawn(scene.command(&["cat"]).stdin(reader));
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert!(output.contains("111676\nfor the command"), "{output}");
    assert!(!output.contains("ignored"), "{output}");
}

#[test]
fn nothing_is_written_to_standard_output() {
    let scene = Scene::new();
    let output = scene.sandbox.path("output");
    let script = "exec \"$@\" > \"$0\"";
    let prefix = ["sh", "-c", script, output.to_str().unwrap()];
    let mut wrapper = scene.spawn(&mut after(&prefix, &scene.command(&["echo", "hers"])));
    wrapper.wait_for_fifo();
    wrapper.write(b"11167\n");
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(0);
    assert_eq!(fs::read_to_string(output).unwrap(), "hers\n");
}

/// Names by which an SDK or the AWS CLI finds credentials, and some that no release of ours knows. Each is
/// twice in the environment.
const DROPPED: [&str; 22] = [
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_DELEGATION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE",
    "AWS_CREDENTIAL_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_SESSION_EXPIRATION",
    "AWS_LOGIN_CACHE_DIRECTORY",
    "AWS_SDK_LOAD_CONFIG",
    "AWS_NEWER_THAN_THIS_RELEASE",
];

/// Starts `sleep` with exactly these assignments in its environment, duplicates included.
fn start_with_environment(scene: &Scene, environment: &[String]) -> Command {
    let script = format!(
        "import ctypes, os, sys
         def strings(list): return (ctypes.c_char_p * (len(list) + 1))(*map(os.fsencode, list), None)
         ctypes.CDLL(None).execve(os.fsencode(sys.argv[1]), strings(sys.argv[1:]), strings({environment:?}))"
    )
    .replace("\n         ", "\n");
    after(&["/usr/bin/python3", "-c", &script], &scene.command(&SLEEP))
}

/// The names and values that the command gets of an environment with everything in it.
fn passed_on(scene: &Scene, kept: &[String]) -> Vec<(String, String)> {
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    let mut environment = vec![
        format!("AWS_ACCESS_KEY_ID={access_key_id}"),
        format!("AWS_SECRET_ACCESS_KEY={secret_access_key}"),
        // A value would make the key a temporary one.
        "AWS_SESSION_TOKEN=".into(),
        "AWS_SECURITY_TOKEN=".into(),
    ];
    environment.extend(DROPPED.map(|name| format!("{name}=x")));
    environment.extend(environment.clone());
    environment.extend_from_slice(kept);
    let wrapper = scene.spawn(&mut start_with_environment(scene, &environment));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    inspection::environment(wrapper.process.pid())
}

fn kept(scene: &Scene) -> Vec<String> {
    [
        "PATH=/usr/bin:/bin".to_owned(),
        format!("AWS_ENDPOINT_URL={}", scene.aws.endpoint()),
        "AWS_EC2_METADATA_DISABLED=true".into(),
        "AWS_REGION=us-east-1".into(),
        "AWS_DEFAULT_REGION=eu-west-1".into(),
        "AWS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt".into(),
        "AWS_ENDPOINT_URL_S3=http://127.0.0.1:1".into(),
        "AWS_MAX_ATTEMPTS=4".into(),
        "MYSQLD_OPTS=--a=b --c".into(),
        "EMPTY=".into(),
        "TWICE=first".into(),
        "TWICE=second".into(),
    ]
    .into()
}

#[test]
fn the_session_takes_the_place_of_all_source_credentials_and_the_rest_stays() {
    let scene = Scene::new();
    let kept = kept(&scene);
    let passed_on = passed_on(&scene, &kept);
    let (before, session) = passed_on.split_at(kept.len());
    let before: Vec<_> = before.iter().map(|(n, v)| format!("{n}={v}")).collect();
    assert_eq!(before, kept);
    let names: Vec<_> = session.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_CREDENTIAL_EXPIRATION"
        ]
    );
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    for (name, value) in session {
        assert!(
            *value != access_key_id && *value != secret_access_key,
            "{name}"
        );
    }
}

#[test]
fn with_a_broker_nothing_takes_the_place_of_the_source_credentials() {
    let scene = Scene::new().with_broker();
    let kept = kept(&scene);
    let passed_on = passed_on(&scene, &kept);
    let passed_on: Vec<_> = passed_on.iter().map(|(n, v)| format!("{n}={v}")).collect();
    assert_eq!(passed_on, kept);
}

#[test]
fn the_configured_region_reaches_the_command_unless_it_has_one() {
    let scene = Scene::new().line("region = us-east-1");
    let wrapper = scene.start_with_code(&SLEEP);
    assert_eq!(variable(wrapper.process.pid(), "AWS_REGION"), "us-east-1");
    drop(wrapper);
    let mut command = scene.command(&SLEEP);
    let wrapper = scene.spawn(command.env("AWS_DEFAULT_REGION", "eu-west-1"));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let environment = inspection::environment(wrapper.process.pid());
    assert!(!environment.iter().any(|(name, _)| name == "AWS_REGION"));
    drop(wrapper);
    // An empty variable counts as unset.
    let mut command = scene.command(&SLEEP);
    let wrapper = scene.spawn(command.env("AWS_REGION", ""));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert_eq!(variable(wrapper.process.pid(), "AWS_REGION"), "us-east-1");
}

#[test]
fn the_aws_cli_as_the_command_uses_a_key_that_wants_mfa() {
    let scene = Scene::new();
    scene.aws.put_key_policy(&scene.sandbox, ONLY_WITH_MFA);

    let aws_cli = aws_cli();
    let aws = aws_cli.get_program().to_str().unwrap();
    let generate = "generate-data-key-without-plaintext";
    let mut command = scene.command(&[
        aws,
        "kms",
        generate,
        "--key-id=alias/mariadb",
        "--key-spec=AES_256",
    ]);
    let mut wrapper = scene.spawn(command.env("AWS_DEFAULT_REGION", "us-east-1"));
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert!(output.contains("\"CiphertextBlob\": "), "{output}");
}

#[test]
fn the_command_has_no_child_and_keeps_the_process_id() {
    for scene in [Scene::new(), Scene::new().with_broker()] {
        // That it runs under this process id is what start_with_code waits for.
        let wrapper = scene.start_with_code(&SLEEP);
        wait_until("no child", || {
            inspection::children(wrapper.process.pid()).is_empty()
        });
    }
}
