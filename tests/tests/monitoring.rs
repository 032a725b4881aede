//! What Prometheus makes of a real server: each alert of `examples/monitoring` fires from a real fault, with Debian's
//! own exporters, and each query of the dashboard has an answer. `make test-monitoring` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use aws_session::clock::unix_seconds_now;
use end_to_end_tests::{
    Database, NEW_KEY, Process, Sandbox, Scene, StoreDirectory, dist,
    key_server::{Authority, DAY, free_port},
    try_sql, wait_until, write_fifo,
};
use serde_json::Value;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const STATUS: &str = "mysql_global_status_aws_key_management_";
const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";
/// Waiting times of the alerts, and what the tests have in their place. Nothing else of a rule changes.
const SHORTER: [(&str, &str); 2] = [("[10m]", "[10s]"), ("[1h]", "[10s]")];

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(REPOSITORY).join("examples/monitoring").join(name)).unwrap()
}

/// The rules with shorter times.
fn impatient_rules() -> String {
    let mut rules = example("alerts.yaml");
    for (time, shorter) in SHORTER {
        assert!(rules.contains(time), "{time:?}");
        rules = rules.replace(time, shorter);
    }
    let lines = rules.lines().map(|line| match line.split_once("for: ") {
        Some((indentation, _)) => format!("{indentation}for: 1s\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// Starts a program that listens on a port that it chooses, and returns the address.
fn listening(command: &mut Command) -> (Process, String) {
    let process = Process::start(command);
    let line = process.wait_for("msg=\"Listening on\"");
    let (_, address) = line.split_once("address=").unwrap();
    let address = address.split(' ').next().unwrap().to_owned();
    (process, address)
}

/// A server with broker and key store, and what watches it.
struct Watched {
    scene: Scene,
    store: StoreDirectory,
    broker: Option<Process>,
    database: Database,
    server: Option<Process>,
    textfiles: PathBuf,
    /// Where Prometheus listens.
    address: String,
    _programs: [Process; 3],
}

impl Watched {
    /// The server has tables with keys 1 and 10.
    fn start() -> Self {
        Self::start_with(|scene| scene)
    }

    /// The same with more in the broker's configuration.
    fn start_with(configure: impl FnOnce(Scene) -> Scene) -> Self {
        let metrics = format!("127.0.0.1:{}", free_port());
        let scene = Scene::with_aws(&["--session-lifetime=600"])
            .with_broker()
            .line("request_timeout_seconds = 1")
            .line(&format!("metrics_listen = {metrics}"));
        let scene = configure(scene);
        let store = StoreDirectory::new(&scene.sandbox);
        let scene = scene.line(&format!("key_store = {}", store.location()));
        let broker = Some(scene.start_broker());
        let database = Database::new(&scene.sandbox)
            .with_our_plugin(&scene.configuration.broker_socket)
            .options(&["--innodb-encrypt-tables=ON"]);
        let server = Some(database.start());
        database.sql(
            "CREATE DATABASE d; CREATE TABLE d.t1 (i INT);
             CREATE TABLE d.t10 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10",
        );
        let textfiles = scene.sandbox.directory("textfiles");
        let (programs, address) = watch(&scene.sandbox, &database, &textfiles, &metrics);
        Self {
            scene,
            store,
            broker,
            database,
            server,
            textfiles,
            address,
            _programs: programs,
        }
    }

    /// What Prometheus answers to an instant query: the labels and value of each sample.
    fn query(&self, expression: &str) -> Vec<String> {
        let url = format!("http://{}", self.address);
        let output = Command::new("promtool")
            .args(["query", "instant", &url, expression])
            .output()
            .unwrap();
        assert!(output.status.success(), "{expression}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // Without any sample, promtool prints an empty line.
        let samples = text.lines().filter(|line| !line.is_empty());
        samples.map(str::to_owned).collect()
    }

    fn firing(&self, alert: &str) -> Vec<String> {
        self.query(&format!(
            "ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}"
        ))
    }

    fn wait_for_alert(&self, alert: &str) {
        wait_until(alert, || !self.firing(alert).is_empty());
    }

    fn wait_for_end(&self, alert: &str) {
        wait_until(&format!("the end of {alert}"), || {
            self.firing(alert).is_empty()
        });
    }

    fn write_textfile(&self, name: &str, metric: &str, value: i64) {
        let text = format!("# TYPE {metric} gauge\n{metric} {value}\n");
        fs::write(self.textfiles.join(name), text).unwrap();
    }

    /// Waits until Prometheus has read the server's variable with this value.
    fn wait_for_value(&self, variable: &str, value: u64) {
        let expression = format!("{STATUS}{variable}{{host=\"db1\"}} == {value}");
        wait_until(&expression, || !self.query(&expression).is_empty());
    }

    /// Runs `kms-data-keys` for the textfile collector.
    fn data_keys(&self, arguments: &[&str], last: &[&str]) {
        let file = format!("{}.prom", arguments[0]);
        let mut command = Command::new(dist("bin").join("kms-data-keys"));
        command
            .args(arguments)
            .arg("--textfile")
            .arg(self.textfiles.join(file))
            .args(last);
        let output = command.output().unwrap();
        let code = output.status.code().unwrap();
        assert!(code < 4, "{output:?}");
    }

    fn verify(&self) {
        let socket = self.scene.configuration.broker_socket.to_str().unwrap();
        let datadir = self.database.datadir.to_str().unwrap();
        self.data_keys(&["verify", "--broker-socket", socket], &[datadir]);
    }

    /// Asks the broker for a key, which it gets from KMS or its memory.
    fn ask_broker_for_key_one(&self) {
        let socket = self.scene.configuration.broker_socket.to_str().unwrap();
        let datadir = self.database.datadir.to_str().unwrap();
        let mut command = Command::new(dist("bin").join("kms-data-keys"));
        command.args(["verify", "--broker-socket", socket, datadir]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn compare_with_store(&self) {
        let socket = self.scene.configuration.broker_socket.to_str().unwrap();
        let datadir = self.database.datadir.to_str().unwrap();
        self.data_keys(&["list", "--store", "--broker-socket", socket], &[datadir]);
    }

    fn rotation(&self) {
        let socket = format!("--socket={}", self.database.socket.display());
        let client = ["--", "--no-defaults", &socket, "--user=root"];
        self.data_keys(&["rotation"], &client);
    }

    fn restart_server(&mut self, meanwhile: impl FnOnce(&Self)) {
        let mut server = self.server.take().unwrap();
        self.database.stop(&mut server);
        meanwhile(self);
        self.server = Some(self.database.start());
    }
}

/// Starts mysqld_exporter, node_exporter and Prometheus, as `examples/monitoring/prometheus.yaml` has them.
fn watch(
    sandbox: &Sandbox,
    database: &Database,
    textfiles: &Path,
    broker_metrics: &str,
) -> ([Process; 3], String) {
    let (mysqld_exporter, mysqld) = listening(
        Command::new("prometheus-mysqld-exporter")
            .arg("--web.listen-address=127.0.0.1:0")
            .env(
                "DATA_SOURCE_NAME",
                format!("root@unix({})/", database.socket.display()),
            ),
    );
    let (node_exporter, node) = listening(
        Command::new("prometheus-node-exporter")
            .args([
                "--web.listen-address=127.0.0.1:0",
                "--collector.disable-defaults",
                "--collector.textfile",
            ])
            .arg(format!(
                "--collector.textfile.directory={}",
                textfiles.display()
            )),
    );
    let configuration = example("prometheus.yaml")
        .replace("db1.example.com:9104", &mysqld)
        .replace("db1.example.com:9100", &node)
        .replace("127.0.0.1:9917", broker_metrics);
    let configuration =
        format!("global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n{configuration}");
    let file = sandbox.write("prometheus.yaml", &configuration);
    sandbox.write("alerts.yaml", &impatient_rules());
    let (prometheus, address) = listening(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                sandbox.path("prometheus").display()
            ))
            .arg("--web.listen-address=127.0.0.1:0"),
    );
    ([mysqld_exporter, node_exporter, prometheus], address)
}

/// The queries of the dashboard, with a host and an interval for Grafana's variables.
fn queries_of_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&example("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$host", "db1");
            query.replace("$__rate_interval", "10s")
        })
        .collect()
}

#[test]
fn every_number_of_the_server_arrives_and_every_query_of_the_dashboard_has_an_answer() {
    let watched = Watched::start();
    watched.database.sql(ROTATE);
    watched.verify();
    watched.compare_with_store();
    watched.rotation();
    watched.wait_for_value("key_versions_aes_cbc", 4);

    let rows = watched
        .database
        .sql("SHOW GLOBAL STATUS LIKE 'aws_key_management%'");
    let metrics = watched.query(&format!("{{__name__=~\"{STATUS}.*\", host=\"db1\"}}"));
    let metrics = metrics.join("\n");
    let mut numbers = 0;
    for row in rows.lines() {
        let (name, value) = row.split_once('\t').unwrap();
        let is_number = value.parse::<u64>().is_ok() || ["ON", "OFF"].contains(&value);
        // mysqld_exporter makes numbers of times too.
        if name.ends_with("_expiration") || name.ends_with("_error_time") {
            continue;
        }
        let name = format!("mysql_global_status_{}{{", name.to_lowercase());
        assert_eq!(metrics.contains(&name), is_number, "{row}");
        numbers += usize::from(is_number);
    }
    // 35, and two of each key.
    assert_eq!(numbers, 35 + 2 * 2, "{rows}");

    // An error, for its time. There is no such key.
    watched
        .database
        .sql("SET GLOBAL aws_key_management_rotate_key=77");
    for query in queries_of_dashboard() {
        wait_until(&query, || !watched.query(&query).is_empty());
    }
    assert_eq!(watched.query("ALERTS{alertstate=\"firing\"}"), [""; 0]);

    if let Some(directory) = env::var_os("IAM_KMS_PICTURES") {
        record_a_rotation(&watched, Path::new(&directory));
    }
}

/// Writes the series of a rotation and of the end of a session, for the picture in the book.
fn record_a_rotation(watched: &Watched, directory: &Path) {
    let begin = unix_seconds_now();
    for _ in 0..4 {
        watched.database.sql(ROTATE);
        watched.rotation();
        std::thread::sleep(std::time::Duration::from_secs(4));
    }
    watched.scene.aws.end_session();
    watched.database.sql_error(NEW_KEY);
    watched.wait_for_value("code_awaited", 1);
    std::thread::sleep(std::time::Duration::from_secs(10));
    let url = format!("http://{}", watched.address);
    let series = [
        "session_seconds_left",
        "kms_calls",
        "kms_failures",
        "key_versions_loaded",
        "code_awaited",
    ];
    for name in series {
        let output = Command::new("promtool")
            .args(["query", "range", "--format=json", "--step=1s"])
            .arg(format!("--start={begin}"))
            .args([&url, &format!("{STATUS}{name}{{host=\"db1\"}}")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(format!("{name}.json")), output.stdout).unwrap();
    }
}

#[test]
fn every_alert_and_every_metric_of_the_tools_is_in_the_documents() {
    let readme = example("README.md");
    let rules = example("alerts.yaml");
    let alerts = rules
        .lines()
        .filter_map(|line| line.split_once("- alert: "));
    for (_, alert) in alerts {
        assert!(readme.contains(&format!("\n| `{alert}` |")), "{alert}");
    }
    let reference =
        fs::read_to_string(format!("{REPOSITORY}/docs/src/status-variables.md")).unwrap();
    let kinds = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `kms_failures_")?.split_once('`'));
    let without_alert: Vec<_> = kinds
        .map(|(kind, _)| kind)
        .filter(|kind| !rules.contains(&format!("{STATUS}kms_failures_{kind}[")))
        .collect();
    // KmsBrokerMissing is about the first, and the second is nobody's failure.
    assert_eq!(without_alert, ["no_broker", "interrupted"]);
    let sources = ["verify", "check", "stored/compare", "rotation"].map(|module| {
        let path = format!("{REPOSITORY}/tools/data-keys/src/{module}.rs");
        fs::read_to_string(path).unwrap()
    });
    let page = fs::read_to_string(format!("{REPOSITORY}/docs/src/monitoring.md")).unwrap();
    let mut documented = 0;
    for source in &sources {
        let (_, rest) = source.split_once("Metrics::new(\"").unwrap();
        let (command, rest) = rest.split_once('"').unwrap();
        for gauge in rest.split("gauge(\n").skip(1) {
            let name = gauge.split('"').nth(1).unwrap();
            let row = format!("\n| `iam_kms_{command}_{name}` |");
            assert!(page.contains(&row), "{row}");
            documented += 1;
        }
    }
    assert_eq!(documented, 10);
}

#[test]
fn the_end_of_the_session_and_of_the_broker_are_alerts() {
    let mut watched = Watched::start();
    let newest = "iam_kms_verify_newest_version_timestamp_seconds";
    watched.write_textfile("verify.prom", newest, unix_seconds_now() - 366 * 86_400);
    let due = format!("{newest}{{host=\"db1\"}}");
    wait_until(&due, || !watched.query(&due).is_empty());

    // An idle server does not miss its session. It is verify that notices the end.
    watched.scene.aws.end_session();
    watched.ask_broker_for_key_one();
    let awaited = format!("min_over_time({STATUS}code_awaited{{host=\"db1\"}}[5s]) == 1");
    wait_until(&awaited, || !watched.query(&awaited).is_empty());
    assert_eq!(watched.firing("KmsCodeAwaited"), [""; 0]);
    watched.wait_for_alert("KmsSessionEndsBeforeDueWork");
    watched.write_textfile("verify.prom", newest, unix_seconds_now());
    watched.wait_for_end("KmsSessionEndsBeforeDueWork");

    watched.database.sql_error(NEW_KEY);
    watched.wait_for_alert("KmsCodeAwaited");
    watched.wait_for_end("KmsCodeAwaited");

    drop(watched.broker.take());
    watched.wait_for_alert("KmsBrokerMissing");
    assert_eq!(watched.firing("KmsCallsFail"), [""; 0]);
}

#[test]
fn a_server_that_waits_for_a_code_at_its_start_is_an_alert_until_the_code_comes() {
    let mut watched = Watched::start();
    let mut server = watched.server.take().unwrap();
    watched.database.stop(&mut server);
    // The next broker has neither a session nor a key.
    drop(watched.broker.take());
    let broker = Process::start(&mut watched.scene.broker_command());
    broker.wait_for("enter an MFA code");
    let server = Process::start(&mut watched.database.command());
    watched.wait_for_alert("KmsCodeAwaited");
    write_fifo(watched.scene.fifo(), watched.scene.aws.code().as_bytes());
    watched.database.wait_until_ready(&server);
    watched.wait_for_end("KmsCodeAwaited");
}

#[test]
fn a_backup_and_a_comparison_that_are_late_are_alerts_until_they_are_made() {
    let watched = Watched::start();
    let backup = "iam_kms_backup_last_success_timestamp_seconds";
    watched.write_textfile("backup.prom", backup, unix_seconds_now() - 27 * 3600);
    let compared = "iam_kms_store_last_run_timestamp_seconds";
    watched.write_textfile("list.prom", compared, unix_seconds_now() - 3 * 86_400);
    watched.wait_for_alert("KmsBackupLate");
    watched.wait_for_alert("KmsKeyStoreNotCompared");
    watched.write_textfile("backup.prom", backup, unix_seconds_now() - 25 * 3600);
    watched.compare_with_store();
    watched.wait_for_end("KmsBackupLate");
    watched.wait_for_end("KmsKeyStoreNotCompared");
}

#[test]
fn a_certificate_that_ends_soon_is_an_alert_until_it_is_replaced() {
    let directory = Sandbox::new();
    let authority = Authority::new(directory.directory("authority"));
    let issue = |days| authority.issue("keys1", &["keys1.example"], days * DAY);
    let tls = issue(29);
    let watched = Watched::start_with(|scene| {
        scene
            .line("master_key_id = alias/mariadb")
            .line(&format!("tls_listen = 127.0.0.1:{}", free_port()))
            .line(&format!("tls_certificate = {}", tls.certificate.display()))
            .line(&format!("tls_key = {}", tls.key.display()))
            .line(&format!("tls_client_ca = {}", tls.authorities.display()))
    });
    let alert = "KmsBrokerCertificateEnds";
    watched.wait_for_alert(alert);
    let firing = watched.firing(alert).join("\n");
    assert!(
        firing.contains(&*tls.certificate.to_string_lossy()),
        "{firing}"
    );
    issue(100);
    watched.wait_for_end(alert);
}

#[test]
fn a_kms_that_fails_and_a_master_key_that_is_disabled_are_alerts() {
    let watched = Watched::start();
    let arn = |watched: &Watched| {
        let manifest = fs::read_to_string(watched.database.datadir.join("aws-kms-keys.list"));
        let manifest = manifest.unwrap();
        let start = manifest.find("arn:").unwrap();
        let arn = manifest[start..].split_whitespace().next().unwrap();
        arn.to_owned()
    };
    let key = arn(&watched);
    watched.scene.aws.fault("--operation any --kind throttle");
    wait_until("KmsCallsFail", || {
        assert!(try_sql(&watched.database.socket, NEW_KEY).is_err());
        !watched.firing("KmsCallsFail").is_empty()
    });
    watched.scene.aws.fault("--clear");

    watched
        .scene
        .aws
        .cli(&["kms", "disable-key", "--key-id", &key]);
    watched.verify();
    wait_until("KmsMasterKeyUnusable, twice", || {
        assert!(try_sql(&watched.database.socket, NEW_KEY).is_err());
        let firing = watched.firing("KmsMasterKeyUnusable").join("\n");
        ["verify", "server"]
            .iter()
            .all(|by| firing.contains(&format!("seen_by=\"{by}\"")))
    });
    // That has an alert of its own.
    wait_until("the end of KmsCallsFail", || {
        assert!(try_sql(&watched.database.socket, NEW_KEY).is_err());
        watched.firing("KmsCallsFail").is_empty()
    });

    watched
        .scene
        .aws
        .cli(&["kms", "enable-key", "--key-id", &key]);
    // The server pauses after failures.
    wait_until("a new key", || {
        try_sql(&watched.database.socket, NEW_KEY).is_ok()
    });
    watched.verify();
    watched.wait_for_end("KmsMasterKeyUnusable");
}

#[test]
fn lost_and_wrong_key_files_and_a_key_store_that_lacks_keys_are_alerts() {
    let mut watched = Watched::start();
    let file = |name: &str| watched.database.datadir.join(name);
    let (one, ten) = (file("aws-kms-key.1.1"), file("aws-kms-key.10.1"));
    let content = fs::read(&one).unwrap();
    fs::copy(&ten, &one).unwrap();
    watched.verify();
    watched.wait_for_alert("KmsKeysNotVerified");

    fs::remove_file(&one).unwrap();
    watched.wait_for_alert("KmsKeyFileMissing");
    fs::write(&one, content).unwrap();
    watched.wait_for_end("KmsKeyFileMissing");

    fs::remove_file(watched.store.path().join("10/1")).unwrap();
    watched.compare_with_store();
    watched.wait_for_alert("KmsKeyNotInStore");
    fs::remove_file(watched.textfiles.join("list.prom")).unwrap();
    watched.wait_for_end("KmsKeyNotInStore");
    watched.restart_server(|watched| {
        let datadir = watched.database.datadir.to_str().unwrap();
        watched.data_keys(&["check"], &[datadir]);
    });
    let checked = "iam_kms_check_key_versions{host=\"db1\", state=\"needed\"} == 2";
    wait_until(checked, || !watched.query(checked).is_empty());
    watched.wait_for_value("key_versions_not_in_store", 1);
    watched.wait_for_alert("KmsKeyNotInStore");
}

#[test]
fn encryption_under_an_old_version_is_an_alert() {
    let mut watched = Watched::start();
    watched.database.sql(ROTATE);
    watched.restart_server(|watched| {
        let newest = watched.database.datadir.join("aws-kms-key.10.2");
        fs::write(newest, "damaged").unwrap();
        // Which would have it in one piece.
        fs::remove_file(watched.store.path().join("10/2")).unwrap();
    });
    let state = "key\\_10\\_state";
    assert_eq!(watched.database.status(state), "older version");
    watched.wait_for_alert("KmsEncryptionUnderOldVersion");
    watched.wait_for_alert("KmsKeyVersionsNotLoaded");
}
