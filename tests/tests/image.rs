//! The image, run with podman as the book says, for `make test-image`. The containers have this system's network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use end_to_end_tests::{
    LocalAws, ONLY_WITH_MFA, Sandbox, Scene, StoreDirectory, contains_bytes, fence,
    key_server::{Authority, DAY, free_port},
    run_with_input, shell_in, wait_until,
};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
const IMAGE: &str = "localhost/iam-kms-mariadb";
const PASSWORD: &str = "root's \"\\ password";
const MARKER: &str = "4929-1111-2222-3333";
/// User mysql of the image.
const MYSQL: u32 = 999;

fn podman(arguments: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.args(arguments);
    command
}

fn succeeded(what: &str, output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn run(arguments: &[&str]) -> String {
    succeeded(
        &arguments.join(" "),
        &podman(arguments).output().expect("podman"),
    )
}

/// Replaces what must be there.
fn replaced(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "there is no {old:?} in: {text}");
    text.replace(old, new)
}

/// A container, which is removed in the end.
struct Container {
    name: String,
    /// Where its server listens.
    port: u16,
}

impl Drop for Container {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("The log of {}:\n{}", self.name, self.log());
        }
        let _ = podman(&["rm", "--force", "--time=0", &self.name]).output();
    }
}

impl Container {
    fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            port: free_port(),
        }
    }

    /// Starts it with these options of `podman run`, and these arguments of its entry point.
    fn start(name: &str, options: &[&str], arguments: &[&str]) -> Self {
        let container = Self::named(name);
        let name = format!("--name={name}");
        run(&[
            &["run", "--detach", &name][..],
            options,
            &[IMAGE],
            arguments,
        ]
        .concat());
        container
    }

    /// Starts a server with these options of `podman run`, and a volume that has its name.
    fn start_server(name: &str, options: &[&str]) -> Self {
        let volume = format!("--volume={name}:/var/lib/mysql");
        let container = Self::named(name);
        let port = format!("--port={}", container.port);
        let name = format!("--name={name}");
        let password = format!("--env=MARIADB_ROOT_PASSWORD={PASSWORD}");
        let own = ["run", "--detach", &name, &volume, &password];
        run(&[&own[..], options, &[IMAGE, &port]].concat());
        container
    }

    fn log(&self) -> String {
        let output = podman(&["logs", &self.name]).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into()
    }

    fn try_exec(&self, options: &[&str], command: &[&str]) -> Output {
        let all = [&["exec"][..], options, &[&self.name], command].concat();
        podman(&all).output().unwrap()
    }

    fn exec(&self, command: &[&str]) -> String {
        succeeded(&command.join(" "), &self.try_exec(&[], command))
    }

    fn waits(&self) {
        wait_until("the FIFO", || {
            let output = self.try_exec(&[], &["test", "-p", "/run/iam-kms-wrapper/mfa"]);
            output.status.success()
        });
    }

    /// Enters a code or a session document, with the book's command.
    fn try_enter(&self, command: &str, input: &str) -> Output {
        self.waits();
        let command = replaced(command, " db ", &format!(" {} ", self.name));
        run_with_input(Command::new("sh").args(["-euc", &command]), input)
    }

    fn enter_code(&self, aws: &LocalAws) {
        let command = replaced(&fence("container-code").commands, "-it", "-i");
        succeeded(&command, &self.try_enter(&command, &aws.code()));
    }

    fn try_enter_document(&self, document: &str) -> Output {
        let commands = fence("container-session").commands;
        let (_, command) = commands.split_once('|').unwrap();
        self.try_enter(command, document)
    }

    fn enter_document(&self, document: &str) {
        succeeded("the session document", &self.try_enter_document(document));
    }

    fn is_healthy(&self) -> bool {
        self.try_exec(&[], &["healthcheck.sh"]).status.success()
    }

    fn becomes_healthy(&self) {
        wait_until("a healthy server", || {
            assert!(self.runs(), "{} has ended", self.name);
            self.is_healthy()
        });
    }

    fn runs(&self) -> bool {
        run(&["inspect", "--format={{.State.Running}}", &self.name]).trim() == "true"
    }

    fn try_sql(&self, user: &str, password: &str, statement: &str) -> Output {
        let (user, port) = (format!("--user={user}"), format!("--port={}", self.port));
        let password = format!("--env=MYSQL_PWD={password}");
        let client = ["mariadb", "--no-defaults", "--host=127.0.0.1", &port, &user];
        let how = ["--batch", "--skip-column-names", "--execute", statement];
        self.try_exec(&[&password], &[&client[..], &how].concat())
    }

    fn sql(&self, statement: &str) -> String {
        let output = self.try_sql("root", PASSWORD, statement);
        succeeded(statement, &output).trim().into()
    }

    /// Ends it with SIGTERM; returns its exit status.
    fn stop(&self) -> String {
        run(&["stop", "--time=120", &self.name]);
        self.exit_status()
    }

    fn exit_status(&self) -> String {
        run(&["wait", &self.name]).trim().into()
    }
}

/// Where a volume lies.
fn mountpoint(volume: &str) -> PathBuf {
    let path = run(&["volume", "inspect", "--format={{.Mountpoint}}", volume]);
    path.trim().into()
}

/// The files below `directory` that contain `text`.
fn files_with(text: &str, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(text, &path));
        } else if contains_bytes(&fs::read(&path).unwrap(), text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

/// A copy of `examples/container`, filled in, with a password of root.
fn example(sandbox: &Sandbox, aws: &LocalAws) -> PathBuf {
    let folder = sandbox.directory("container");
    for entry in fs::read_dir(format!("{EXAMPLES}/container")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let configuration = folder.join("iam-kms-wrapper.config");
    let text = fs::read_to_string(&configuration).unwrap();
    let device = "arn:aws:iam::123456789012:mfa/mariadb";
    fs::write(configuration, replaced(&text, device, &aws.serial_number())).unwrap();
    fs::write(folder.join("aws-credentials"), aws.read("credentials")).unwrap();
    fs::write(folder.join("root-password"), format!("{PASSWORD}\n")).unwrap();
    for name in ["aws-credentials", "root-password"] {
        chown(folder.join(name), Some(MYSQL), Some(MYSQL)).unwrap();
        fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o400)).unwrap();
    }
    folder
}

/// An AWS whose master key may be used with MFA only.
fn strict_aws(sandbox: &Sandbox) -> LocalAws {
    let aws = LocalAws::start(sandbox);
    aws.put_key_policy(sandbox, ONLY_WITH_MFA);
    aws
}

fn at(aws: &LocalAws) -> String {
    format!("--env=AWS_ENDPOINT_URL={}", aws.endpoint())
}

/// The configuration in a manifest's `ConfigMap`, of which `changes` are made.
fn configuration_of(manifest: &str, changes: &[(&str, &str)]) -> String {
    let path = format!("{EXAMPLES}/mariadb-operator/{manifest}.yaml");
    let manifest = fs::read_to_string(path).unwrap();
    let (_, rest) = manifest
        .split_once("  iam-kms-wrapper.config: |\n")
        .unwrap();
    let (text, _) = rest.split_once("---\n").unwrap();
    let text = text.lines().map(|line| format!("{}\n", line.trim()));
    changes
        .iter()
        .fold(text.collect(), |text: String, (old, new)| {
            replaced(&text, old, new)
        })
}

/// A mount of this configuration.
fn configuration_mount(sandbox: &Sandbox, name: &str, text: &str) -> String {
    let path = sandbox.write(name, text);
    format!(
        "--volume={}:/etc/iam-kms-wrapper/iam-kms-wrapper.config:ro",
        path.display()
    )
}

/// A folder of files for `/docker-entrypoint-initdb.d`, which make two tables and four rows.
fn init_files(folder: &Path) {
    // The last one does it as scripts for MariaDB's image do.
    let commands = r#"
        mkdir init
        cd init
        echo 'CREATE TABLE orders (card TEXT); CREATE TABLE plain (a TEXT) ENCRYPTED=NO' > 1.sql
        echo 'echo "INSERT INTO orders VALUES (1)" | docker_process_sql; ignored=$not_set' > 2.sh
        echo 'not run' > 3.txt
        echo 'INSERT INTO orders VALUES (2)' | gzip > 4.sql.gz
        echo '#!/bin/sh' > 5.sh
        echo 'exec mariadb -uroot -p"$MARIADB_ROOT_PASSWORD" "$MARIADB_DATABASE" \
            --execute="INSERT INTO orders VALUES (3), (\"of $MARIADB_USER\")"' >> 5.sh
        chmod +x 5.sh"#;
    shell_in(folder, commands);
}

/// Starts a server in a folder with the book's command, and with more options of `podman run`.
fn start_as_the_book_says(folder: &Path, name: &str, options: &str) -> Container {
    let db = Container::named(name);
    let image = format!("{options} {IMAGE} --port={}", db.port);
    let changes = [
        ("--name db", format!("--name {name}")),
        ("--volume data:", format!("--volume {name}:")),
        // This system may not allow it.
        ("--ulimit memlock=-1:-1", String::new()),
        (IMAGE, image),
    ];
    let command = fence("container-run").commands;
    let command = changes
        .iter()
        .fold(command, |command, (old, new)| replaced(&command, old, new));
    shell_in(folder, &command);
    db
}

#[test]
fn an_empty_volume_is_encrypted_from_its_first_page_after_a_code_and_the_server_starts_again_after_the_next()
 {
    let sandbox = Sandbox::new();
    let aws = strict_aws(&sandbox);
    let folder = example(&sandbox, &aws);
    init_files(&folder);
    let options = format!(
        "{} --env MARIADB_DATABASE=shop_1 --env MARIADB_USER=seller --env MARIADB_PASSWORD=secret \
            --volume ./init:/docker-entrypoint-initdb.d:ro",
        at(&aws)
    );
    let db = start_as_the_book_says(&folder, "first-page", &options);
    db.enter_code(&aws);
    db.becomes_healthy();
    assert!(!db.log().contains("[ERROR]"), "{}", db.log());

    let rows = "SELECT COUNT(*) FROM shop_1.orders";
    let of_seller = db.try_sql("seller", "secret", rows);
    assert_eq!(succeeded(rows, &of_seller), "4\n");
    for user in ["root", "seller", "healthcheck"] {
        let output = db.try_sql(user, "", "DO 0");
        assert!(!output.status.success(), "{user} needs no password");
    }
    // A database's name must not act as a pattern.
    let of_seller = db.try_sql("seller", "secret", "CREATE DATABASE shopX1");
    assert!(!of_seller.status.success());
    let write = db.try_exec(&[], &["touch", "/usr/file"]);
    assert!(!write.status.success(), "the root file system is writable");
    let environment = db.exec(&["cat", "/proc/1/environ"]);
    assert!(environment.contains("MARIADB_DATABASE=shop_1\0"));
    for secret in ["=secret\0", PASSWORD, "AWS_SECRET", "AWS_SESSION"] {
        assert!(!environment.contains(secret), "{secret} in {environment:?}");
    }

    let open = "SELECT NAME FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME = 0";
    assert_eq!(db.sql(open), "shop_1/plain");
    db.sql(&format!(
        "INSERT INTO shop_1.orders VALUES ('{MARKER}'); INSERT INTO shop_1.plain VALUES ('in the clear')"
    ));
    // Beside the server, with its broker, and without another code.
    let password = format!("--password={PASSWORD}");
    for what in [&["--backup", "--user=root", &password][..], &["--prepare"]] {
        db.exec(&[&["mariadb-backup", "--target-dir=/tmp/backup"], what].concat());
    }
    assert_eq!(db.stop(), "0");
    let data = mountpoint(&db.name);
    assert_eq!(files_with(MARKER, &data), Vec::<PathBuf>::new());
    // The control: it would be found.
    assert!(files_with("in the clear", &data).contains(&data.join("shop_1/plain.ibd")));
    assert!(data.join("aws-kms-key.1.1").is_file());

    run(&["start", &db.name]);
    db.enter_code(&aws);
    db.becomes_healthy();
    assert_eq!(db.sql(rows), "5");
}

#[test]
fn an_empty_volume_is_refused_without_a_password_and_with_what_the_entry_point_does_not_support() {
    let refusals: [(&[&str], &str); 4] = [
        (&[], "no password of root is set"),
        (
            &["--env=MARIADB_ROOT_PASSWORD=a", "--env=MARIADB_USER=b"],
            "neither MARIADB_PASSWORD",
        ),
        (
            &["--env=MARIADB_ROOT_PASSWORD_FILE=/missing"],
            "MARIADB_ROOT_PASSWORD_FILE",
        ),
        (
            &["--env=MYSQL_ROOT_PASSWORD=a", "--env=MARIADB_MASTER_HOST=b"],
            "MARIADB_MASTER_HOST",
        ),
    ];
    for (options, reason) in refusals {
        let own = ["run", "--rm", "--entrypoint=docker-entrypoint.sh"];
        let output = podman(&[&own[..], options, &[IMAGE]].concat()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{options:?}: {said}");
        assert!(said.contains(reason), "{options:?}: {said}");
    }
}

#[test]
fn compose_starts_a_server_that_is_healthy_after_the_code() {
    let sandbox = Sandbox::new();
    let aws = strict_aws(&sandbox);
    let folder = example(&sandbox, &aws);
    let db = Container::named("container_db_1");
    // This system may not allow higher limits.
    let system = format!(
        "services:\n  db:\n    network_mode: host\n    command: --port={}\n    environment:\n      AWS_ENDPOINT_URL: {}\n    \
            ulimits:\n      memlock: 65536\n      nofile: 16384\n      nproc: 4096\n",
        db.port,
        aws.endpoint()
    );
    fs::write(folder.join("system.yaml"), system).unwrap();
    let program = env::var("IAM_KMS_PODMAN_COMPOSE").expect("run it with `make test-image`");
    let with_files = format!("{program} --file compose.yaml --file system.yaml");
    let compose = |commands: &str| replaced(commands, "podman compose", &with_files);
    shell_in(&folder, &compose(&fence("compose-up").commands));
    db.waits();
    assert!(!db.is_healthy());
    let command = compose(&fence("compose-code").commands);
    let command = replaced(&command, "exec db", "exec -T db");
    let mut sh = Command::new("sh");
    sh.args(["-euc", &command]).current_dir(&folder);
    succeeded(&command, &run_with_input(&mut sh, &aws.code()));
    db.becomes_healthy();
    // What podman's timer runs.
    run(&["healthcheck", "run", &db.name]);
    assert_eq!(db.sql("SELECT 1"), "1");
}

#[test]
fn a_container_that_waits_for_its_session_ends_at_sigterm() {
    let sandbox = Sandbox::new();
    let configuration = configuration_of("session-document", &[]);
    let mount = configuration_mount(&sandbox, "config", &configuration);
    let db = Container::start("waiting", &[&mount], &[]);
    db.waits();
    assert_eq!(db.stop(), "143");
}

#[test]
fn any_user_initializes_with_a_session_document_and_what_was_interrupted_is_made_anew() {
    let sandbox = Sandbox::new();
    let aws = strict_aws(&sandbox);
    let configuration = configuration_of("session-document", &[]);
    let mount = configuration_mount(&sandbox, "config", &configuration);
    let db = Container::start_server("document", &["--user=123456:0", &mount, &at(&aws)]);
    let document = aws.session_document();
    db.enter_document(&document);
    let data = mountpoint(&db.name);
    wait_until("the system tables", || {
        data.join(".initializing/mysql/global_priv.frm").exists()
    });
    run(&["kill", "--signal=KILL", &db.name]);
    assert_eq!(db.exit_status(), "137");
    assert!(!data.join("mysql").exists());
    run(&["start", &db.name]);
    db.enter_document(&document);
    db.becomes_healthy();
    assert_eq!(db.sql("SELECT CURRENT_USER()"), "root@%");
    assert!(!data.join(".initializing").exists() && !data.join(".initialized").exists());
    assert_eq!(db.exec(&["id", "--user"]), "123456\n");
}

#[test]
fn files_that_are_in_the_volume_already_are_not_touched() {
    let sandbox = Sandbox::new();
    let aws = strict_aws(&sandbox);
    let configuration = configuration_of("session-document", &[]);
    let mount = configuration_mount(&sandbox, "config", &configuration);
    run(&["volume", "create", "half-restored"]);
    let data = mountpoint("half-restored");
    fs::write(data.join("ibdata1"), "a part of a backup").unwrap();
    chown(&data, Some(MYSQL), Some(MYSQL)).unwrap();
    let db = Container::start_server("half-restored", &[&mount, &at(&aws)]);
    // The container may end before it is said that the document was taken.
    db.try_enter_document(&aws.session_document());
    assert_eq!(db.exit_status(), "1");
    assert!(
        db.log()
            .contains("/var/lib/mysql has files, but no database 'mysql'"),
        "{}",
        db.log()
    );
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
}

/// The options of `podman run` that give a container what a pod with the manifest's configuration has from Pod Identity.
fn with_pod_identity(scene: &Scene) -> Vec<String> {
    let (sandbox, aws) = (&scene.sandbox, &scene.aws);
    let token = sandbox.write("token", &aws.read("container-token"));
    vec![
        configuration_mount(sandbox, "config", &configuration_of("pod-identity", &[])),
        at(aws),
        format!(
            "--env=AWS_CONTAINER_CREDENTIALS_FULL_URI={}/container-credentials",
            aws.endpoint()
        ),
        format!("--volume={}:/token:ro", token.display()),
        "--env=AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/token".into(),
    ]
}

/// Runs a command in place of the image's entry point, as the operator does, and returns its log.
fn job(options: &[&str], command: &[&str]) -> String {
    let entry_point = format!("--entrypoint={}", command[0]);
    let own = ["run", "--rm", "--tmpfs=/backup", &entry_point];
    let all = [&own[..], options, &[IMAGE], &command[1..]].concat();
    let output = podman(&all).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {log}");
    log
}

#[test]
fn with_pod_identity_nobody_enters_a_code_and_the_operators_backup_and_recovery_jobs_get_the_keys()
{
    let scene = Scene::with_machine_role("900");
    let galera = "[mariadb]\nwsrep-on = ON\nwsrep-provider = /usr/lib/galera/libgalera_smm.so\nwsrep-cluster-address = gcomm://\n\
        binlog-format = ROW\nwsrep-node-address = 127.0.0.1\n";
    let galera = scene.sandbox.write("galera.cnf", galera);
    let mut options = with_pod_identity(&scene);
    options.extend([
        format!(
            "--volume={}:/etc/mysql/conf.d/galera.cnf:ro",
            galera.display()
        ),
        "--volume=galera:/var/lib/mysql".into(),
    ]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let db = Container::named("galera");
    let name = format!("--name={}", db.name);
    let password = format!("--env=MARIADB_ROOT_PASSWORD={PASSWORD}");
    let port = format!("--port={}", db.port);
    let provider = format!("--wsrep-provider-options=base_port={}", free_port());
    let own = ["run", "--detach", &name, &password];
    run(&[&own[..], &options, &[IMAGE, &port, &provider]].concat());
    db.becomes_healthy();
    db.sql("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT PRIMARY KEY); INSERT INTO shop.orders VALUES (1)");

    let backup = "set -euo pipefail
        mariadb-backup --user=root --host=127.0.0.1 PORT --backup --stream=xbstream > /backup/file
        mkdir /backup/full
        mbstream -x -C /backup/full < /backup/file
        mariadb-backup --prepare --target-dir=/backup/full";
    let secret = format!("--env=MYSQL_PWD={PASSWORD}");
    let with_secret = [&options[..], &[&secret]].concat();
    let log = job(
        &with_secret,
        &["bash", "-c", &backup.replace("PORT", &port)],
    );
    assert!(log.trim_end().ends_with("completed OK!"), "{log}");

    run(&["kill", "--signal=KILL", &db.name]);
    db.exit_status();
    let log = job(
        &options,
        &["mariadbd", "--log-error=/dev/stderr", "--wsrep-recover"],
    );
    let nothing = "00000000-0000-0000-0000-000000000000:-1";
    assert!(log.contains("WSREP: Recovered position: "), "{log}");
    assert!(!log.contains(nothing), "{log}");
}

/// A folder as Kubernetes mounts a secret of cert-manager.
fn secret(sandbox: &Sandbox, authority: &Authority, name: &str, dns_name: &str) -> PathBuf {
    let files = authority.issue(name, &[dns_name], DAY);
    let folder = sandbox.directory(name);
    fs::copy(&files.authorities, folder.join("ca.crt")).unwrap();
    fs::copy(&files.certificate, folder.join("tls.crt")).unwrap();
    let convert = format!("openssl ec -in {} -out tls.key", files.key.display());
    shell_in(&folder, &convert);
    let key = folder.join("tls.key");
    let text = fs::read_to_string(&key).unwrap();
    assert!(text.starts_with("-----BEGIN EC PRIVATE KEY-----"));
    chown(&key, Some(0), Some(MYSQL)).unwrap();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o440)).unwrap();
    folder
}

/// Starts the broker alone, with these options of `podman run`.
fn start_broker(name: &str, options: &[&str]) -> Container {
    let options = [&["--entrypoint=iam-kms-broker"], options].concat();
    let configuration = "--config=/etc/iam-kms-wrapper/iam-kms-wrapper.config";
    Container::start(name, &options, &[configuration])
}

#[test]
fn a_server_whose_broker_is_a_sidecar_gets_its_keys_from_a_key_server() {
    let sandbox = Sandbox::new();
    let aws = strict_aws(&sandbox);
    let store = StoreDirectory::new(&sandbox);
    chown(store.path(), Some(MYSQL), Some(MYSQL)).unwrap();
    let authority = Authority::new(sandbox.directory("authority"));
    let port = free_port();

    let here = [
        ("s3://example-keys/mariadb", "file:///key-store"),
        ("0.0.0.0:7443", &format!("127.0.0.1:{port}")),
    ];
    let configuration = configuration_of("key-server", &here);
    let certificate = secret(&sandbox, &authority, "server", "localhost");
    let keys = start_broker(
        "keys",
        &[
            &configuration_mount(&sandbox, "server.config", &configuration),
            &format!(
                "--volume={}:/run/secrets/key-server:ro",
                certificate.display()
            ),
            &format!("--volume={}:/key-store", store.path().display()),
            &at(&aws),
        ],
    );

    let servers = "key-server-0.key-server:7443, key-server-1.key-server:7443";
    let here = [(servers, &*format!("localhost:{port}"))];
    let configuration = configuration_of("key-server-sidecar", &here);
    let certificate = secret(&sandbox, &authority, "client", "mariadb.default");
    // The containers of a pod share /dev/shm, but do not see each other's processes.
    let _sidecar = start_broker(
        "sidecar",
        &[
            "--ipc=shareable",
            &configuration_mount(&sandbox, "sidecar.config", &configuration),
            &format!("--volume={}:/run/secrets/keys:ro", certificate.display()),
        ],
    );
    let db = Container::named("with-sidecar");
    run(&[
        "run",
        "--detach",
        &format!("--name={}", db.name),
        "--volume=with-sidecar:/var/lib/mysql",
        &format!("--env=MARIADB_ROOT_PASSWORD={PASSWORD}"),
        "--ipc=container:sidecar",
        "--env=IAM_KMS_BROKER_SOCKET=/dev/shm/iam-kms-broker.sock",
        IMAGE,
        "--aws-key-management-broker-socket=/dev/shm/iam-kms-broker.sock",
        &format!("--port={}", db.port),
    ]);
    keys.enter_document(&aws.session_document());
    db.becomes_healthy();
    db.sql(&format!(
        "CREATE DATABASE shop; CREATE TABLE shop.orders (card TEXT); INSERT INTO shop.orders VALUES ('{MARKER}')"
    ));
    assert_eq!(db.stop(), "0");
    let data = mountpoint(&db.name);
    assert_eq!(files_with(MARKER, &data), Vec::<PathBuf>::new());
    assert!(data.join("aws-kms-keys.list").is_file());
    assert!(!data.join("aws-kms-key.1.1").exists());
    assert!(store.path().join("mariadb.default/1/1").is_file());
}

#[test]
fn the_server_waits_for_the_sidecars_socket_and_ends_at_sigterm() {
    let db = Container::start(
        "early",
        &["--env=IAM_KMS_BROKER_SOCKET=/dev/shm/iam-kms-broker.sock"],
        &[],
    );
    wait_until("its wait", || {
        db.try_exec(&[], &["pgrep", "--exact", "sleep"])
            .status
            .success()
    });
    assert_eq!(db.stop(), "143");
}
