//! A key store in S3, and everything that it does wrong: no key is made twice, none is lost, and the message says
//! what to do.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use broker_api::{
    FailureKind, FindKey, GenerateDataKey, KeyContext, ListKeys, MAX_LISTED_KEYS, MakeKey,
    Numbering, Reply, Request, SessionPhase,
};
use end_to_end_tests::{
    Database, ENCRYPT_ALL, ObjectStorage, Process, Scene, StoreDirectory, What,
    broker::{Peer, ask, generate, phase},
    write_fifo,
};

/// The keys of a reply: id, version, wrapped key.
type Key = (u32, u32, Vec<u8>);

struct Host {
    scene: Scene,
    broker: Process,
}

impl Host {
    fn new(storage: &ObjectStorage, prefix: &str) -> Self {
        Self::of(Scene::new(), storage, prefix)
    }

    fn of(scene: Scene, storage: &ObjectStorage, prefix: &str) -> Self {
        let line = format!("key_store = {}", storage.location(prefix));
        Self::with(scene.with_broker().line(&line), |command| {
            command.env("AWS_ENDPOINT_URL_S3", storage.endpoint())
        })
    }

    fn with(scene: Scene, change: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = scene.broker_command();
        let broker = Process::start(change(&mut command));
        broker.wait_for("enter an MFA code");
        let host = Self { scene, broker };
        host.give_code();
        host
    }

    fn give_code(&self) {
        write_fifo(self.scene.fifo(), self.scene.aws.code().as_bytes());
        self.broker.wait_for("is open until");
    }

    /// Waits until the store was checked, which is done in the background.
    fn checked(self) -> Self {
        self.broker.wait_for("can be used; it has");
        self
    }

    fn make(&self, id: u32, numbering: Numbering) -> Reply {
        ask(&self.scene, &make(id, numbering))
    }

    fn find(&self, id: u32, version: Option<u32>) -> Reply {
        ask(&self.scene, &find(id, version))
    }

    /// The kind and the text of a failure.
    fn refusal(&self, request: &Request) -> (FailureKind, String) {
        match ask(&self.scene, request) {
            Reply::Failed(failure) => (failure.kind, failure.message),
            reply => panic!("{reply:?}"),
        }
    }
}

fn make(id: u32, numbering: Numbering) -> Request {
    Request::MakeKey(MakeKey {
        generate: GenerateDataKey {
            master_key_id: "alias/mariadb".into(),
            key_bytes: 16,
            context: context(id),
        },
        numbering,
    })
}

fn find(id: u32, version: Option<u32>) -> Request {
    Request::FindKey(FindKey {
        version,
        context: context(id),
    })
}

fn context(key_id: u32) -> KeyContext {
    KeyContext {
        key_id,
        ..KeyContext::default()
    }
}

fn stored(reply: Reply) -> (Key, bool) {
    match reply {
        Reply::Stored {
            key: Some(key),
            is_new,
            ..
        } => ((key.name.id, key.name.version, key.ciphertext_blob), is_new),
        reply => panic!("{reply:?}"),
    }
}

#[test]
fn a_put_whose_answer_is_lost_or_wrong_makes_one_key_and_no_other() {
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    let (error, slow) = ("InternalError", "SlowDown");
    for (id, fault) in (10..).zip([
        // What object_store takes for an object that is there already, although there is none.
        What::Refused(409, "ConditionalRequestConflict"),
        What::Refused(500, error),
        What::Refused(503, slow),
        What::DoneAndRefused(500, error),
        What::DoneAndRefused(503, slow),
        // A retry in between has met its own object.
        What::DoneAndRefused(412, "PreconditionFailed"),
        What::DoneAndRefused(409, "ConditionalRequestConflict"),
        What::DoneAndCutOff,
    ]) {
        storage.fault("PUT", fault.clone());
        let (key, is_new) = stored(host.make(id, Numbering::First));
        assert!(is_new, "{fault:?}");
        assert_eq!(storage.faults_left(), 0, "{fault:?}");
        assert_eq!((key.0, key.1), (id, 1), "{fault:?}");
        assert_eq!(stored(host.find(id, Some(1))).0, key, "{fault:?}");
        let (again, is_new) = stored(host.make(id, Numbering::First));
        assert!(!is_new, "{fault:?}");
        assert_eq!(again, key, "{fault:?}");
        assert_eq!(storage.names(&format!("db1/{id}")), ["1"], "{fault:?}");
    }
}

#[test]
fn a_number_that_another_server_takes_meanwhile_is_not_taken_twice() {
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    let (first, _) = stored(host.make(10, Numbering::First));
    // As if the list lagged behind: it does not have what is there.
    let object = storage.read("db1/10/1").unwrap();
    storage.write(
        "db1/10/2",
        &object.replace("\"version\":1", "\"version\":2"),
    );
    let (key, is_new) = stored(host.make(10, Numbering::Next { known: 1 }));
    assert!(is_new);
    assert_eq!((key.0, key.1), (10, 3));
    assert_ne!(key.2, first.2);
    let (kind, text) = host.refusal(&make(10, Numbering::Next { known: 2_000_000 }));
    assert_eq!(kind, FailureKind::Other);
    assert!(text.contains("highest version of key 10"), "{text}");
    storage.write("db1/10/4294967294", &object);
    for request in [make(10, Numbering::Next { known: 1 }), find(10, None)] {
        let (_, text) = host.refusal(&request);
        assert!(
            text.contains("10/4294967294 in the key store s3://keys/db1 cannot be used: the version before it is 3"),
            "{text}"
        );
    }
    storage.write("db1/11/7", "no key");
    let (_, text) = host.refusal(&find(11, None));
    assert!(
        text.contains("11/7 in the key store s3://keys/db1 cannot be used: it is not an object"),
        "{text}"
    );
}

/// The broker was restarted between two pages, or the second page is asked of another one.
#[test]
fn a_list_goes_on_at_a_broker_that_has_not_begun_it() {
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    for id in 10..13 {
        stored(host.make(id, Numbering::First));
    }
    let other = Host::new(&storage, "db1").checked();
    let request = |after| {
        Request::ListKeys(ListKeys {
            after,
            context: KeyContext::default(),
        })
    };
    let listed = |after| match ask(&other.scene, &request(Some(after))) {
        Reply::KeyList { keys, next: None } => keys.iter().map(|(name, _)| name.id).collect(),
        reply => panic!("{reply:?}"),
    };
    let ids: Vec<u32> = listed((10, 1));
    assert_eq!(ids, [11, 12]);
    // It has the list now, in which a key is missing that was made since.
    stored(host.make(13, Numbering::First));
    let ids: Vec<u32> = listed((13, 1));
    assert!(ids.is_empty(), "{ids:?}");
    let ids: Vec<u32> = listed((12, 1));
    assert_eq!(ids, [13]);
}

#[test]
fn what_s3_refuses_is_told_with_what_to_do() {
    use FailureKind as Kind;
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    for (status, code, kind, parts) in [
        (
            403,
            "AccessDenied",
            Kind::AccessDenied,
            ["allow s3:ListBucket", "said the storage"],
        ),
        (
            404,
            "NoSuchBucket",
            Kind::NotFound,
            ["check the bucket's name in key_store", "NoSuchBucket"],
        ),
        (503, "SlowDown", Kind::Throttled, ["SlowDown", "REQ1"]),
        (
            500,
            "InternalError",
            Kind::Unavailable,
            ["InternalError", "REQ1"],
        ),
        (
            301,
            "PermanentRedirect",
            Kind::NotAuthenticated,
            ["check the region", "PermanentRedirect"],
        ),
        (
            403,
            "InvalidAccessKeyId",
            Kind::NotAuthenticated,
            ["does not accept the access key", "REQ1"],
        ),
        (
            403,
            "RequestTimeTooSkewed",
            Kind::NotAuthenticated,
            ["set the clock", "refuses its requests"],
        ),
    ] {
        for request in [find(10, Some(1)), make(10, Numbering::First)] {
            storage.fault("GET", What::Refused(status, code));
            let (found, text) = host.refusal(&request);
            assert_eq!(found, kind, "{code}: {text}");
            assert!(
                text.starts_with(
                    "the key store s3://keys/db1 cannot be listed (request REQ1) failed: "
                ) || text
                    .starts_with("the key store s3://keys/db1 cannot be listed (request REQ1): "),
                "{text}"
            );
            for part in parts {
                assert!(text.contains(part), "{code}: no {part:?} in {text}");
            }
        }
    }
    storage.fault("GET", What::Garbage);
    let (kind, text) = host.refusal(&find(10, None));
    assert_eq!(kind, Kind::Unavailable, "{text}");
    assert!(
        text.starts_with("the key store s3://keys/db1 cannot be listed: "),
        "{text}"
    );
    assert_eq!(storage.names("db1"), ["conditional-put-check"]);
    assert!(
        host.find(10, None)
            == Reply::Stored {
                key: None,
                is_new: false,
                request_id: String::new()
            }
    );
}

#[test]
fn a_silent_store_is_given_up_within_the_time_limit_and_a_slow_one_is_waited_for() {
    let storage = ObjectStorage::start();
    let scene = Scene::new().line("request_timeout_seconds = 5");
    let host = Host::of(scene, &storage, "db1").checked();
    let start = Instant::now();
    storage.fault("GET", What::Silent);
    let (kind, text) = host.refusal(&find(10, None));
    assert_eq!(kind, FailureKind::Unavailable);
    assert!(text.contains("no answer within 5 seconds"), "{text}");
    // The store is silent for ever; a busy machine may be slow.
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
    storage.fault("PUT", What::Slow(Duration::from_secs(2)));
    let mut peer = Peer::connect(&host.scene.configuration.broker_socket);
    let (key, is_new) = stored(peer.ask(&make(10, Numbering::First)));
    assert!(is_new);
    assert_eq!(key.1, 1);
}

#[test]
fn a_store_that_cannot_be_reached_or_is_full_is_named_and_no_key_is_made() {
    let scene = Scene::new().with_broker().line("key_store = s3://keys/db1");
    let host = Host::with(scene, |command| {
        command.env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    });
    let line = host
        .broker
        .wait_for("until this is corrected, no data key can be made");
    assert!(
        line.contains("the key store s3://keys/db1 cannot be written: 127.0.0.1:1: "),
        "{line}"
    );
    let (kind, text) = host.refusal(&make(10, Numbering::First));
    assert_eq!(kind, FailureKind::Unavailable);
    assert!(text.contains("127.0.0.1:1: Connection refused"), "{text}");

    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    for _ in 0..3 {
        storage.fault("PUT", What::Refused(507, "InsufficientStorage"));
    }
    let (kind, text) = host.refusal(&make(10, Numbering::First));
    assert_eq!(kind, FailureKind::Unavailable, "{text}");
    assert!(
        text.contains("cannot be written (request REQ1): InsufficientStorage"),
        "{text}"
    );
    assert_eq!(storage.names("db1"), ["conditional-put-check"]);

    let scene = Scene::new().with_broker();
    let store = StoreDirectory::full(&scene.sandbox);
    let host = Host::with(
        scene.line(&format!("key_store = {}", store.location())),
        |command| command,
    )
    .checked();
    let (kind, text) = host.refusal(&make(10, Numbering::First));
    assert_eq!(kind, FailureKind::Unavailable, "{text}");
    assert!(
        text.contains("cannot be written: ") && text.contains("No space left on device"),
        "{text}"
    );
    assert_eq!(store.names(), [""; 0]);
}

#[test]
fn a_store_that_overwrites_is_found_out_before_a_key_is_made() {
    let storage = ObjectStorage::start();
    for _ in 0..4 {
        storage.fault("PUT", What::Unconditional);
    }
    let host = Host::new(&storage, "db1");
    let line = host
        .broker
        .wait_for("until this is corrected, no data key can be made");
    assert!(
        line.contains("overwrites an object although it is told not to (If-None-Match)"),
        "{line}"
    );
    let generated = host.scene.aws.calls("GenerateDataKeyWithoutPlaintext");
    let (kind, text) = host.refusal(&make(10, Numbering::First));
    assert_eq!(kind, FailureKind::Other);
    assert!(
        text.contains("use a store that supports conditional writes"),
        "{text}"
    );
    assert_eq!(
        host.scene.aws.calls("GenerateDataKeyWithoutPlaintext"),
        generated
    );
    storage.recover();
    let (_, is_new) = stored(host.make(10, Numbering::First));
    assert!(is_new, "it is asked again");
}

#[test]
fn a_store_that_calls_the_session_expired_ends_it_for_nobody_else() {
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    storage.fault("GET", What::Refused(400, "ExpiredToken"));
    let (kind, text) = host.refusal(&find(10, None));
    assert_eq!(kind, FailureKind::NotAuthenticated);
    assert!(
        text.contains("the key store says that the AWS session has expired"),
        "{text}"
    );
    assert_eq!(phase(&host.scene), SessionPhase::Open);
    assert!(stored(host.make(10, Numbering::First)).1);
}

#[test]
fn the_key_store_is_called_with_the_session_or_with_the_key_of_a_profile() {
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "db1").checked();
    stored(host.make(10, Numbering::First));
    // As the plugin of 0.1.0 asks, which a running server may still have loaded.
    let (kind, text) = host.refusal(&generate(16));
    assert_eq!(kind, FailureKind::InvalidRequest);
    assert!(
        text.contains("must be in the key store s3://keys/db1 before it is used"),
        "{text}"
    );
    let keys = storage.take_access_keys();
    assert!(keys.len() == 1 && keys[0].starts_with("ASIA"), "{keys:?}");
    // What a bucket with Object Lock demands, and what keeps a key from being replaced.
    for put in storage.puts() {
        assert!(put.contains("\r\nx-amz-checksum-sha256: "), "{put}");
        assert!(put.contains("\r\nif-none-match: *"), "{put}");
    }
    assert!(storage.puts().len() >= 3);

    let scene = Scene::new()
        .with_broker()
        .line(&format!("key_store = {}", storage.location("db1")))
        .line("key_store_profile = storage");
    let credentials = scene.aws.path("credentials");
    let mut text = std::fs::read_to_string(&credentials).unwrap();
    text += "\n[storage]\naws_access_key_id = AKIASTORAGE\naws_secret_access_key = secret\n";
    std::fs::write(&credentials, text).unwrap();
    let (_, log) = Process::start(&mut scene.broker_command()).finish();
    assert!(
        log.contains("cannot use key_store_profile: there is no profile storage"),
        "{log}"
    );
    let mut command = scene.broker_command();
    command.env("AWS_SHARED_CREDENTIALS_FILE", &credentials);
    let broker = Process::start(command.env("AWS_ENDPOINT_URL_S3", storage.endpoint()));
    broker.wait_for("enter an MFA code");
    let host = Host { scene, broker };
    // It needs no session to be read.
    assert_eq!(stored(host.find(10, None)).0.1, 1);
    let (kind, _) = host.refusal(&make(11, Numbering::First));
    assert_eq!(kind, FailureKind::SessionOver);
    host.give_code();
    assert!(stored(host.make(11, Numbering::First)).1);
    assert_eq!(storage.take_access_keys(), ["AKIASTORAGE"]);
    storage.fault("GET", What::Refused(400, "ExpiredToken"));
    let (kind, text) = host.refusal(&find(10, None));
    assert_eq!(kind, FailureKind::NotAuthenticated, "{text}");
    assert!(
        text.contains("AKIASTORAGE of key_store_profile have expired"),
        "{text}"
    );
}

#[test]
fn a_server_keeps_its_keys_in_s3_and_finds_them_there_again() {
    let storage = ObjectStorage::start();
    let host = Host::new(&storage, "prod/db1").checked();
    let database = Database::new(&host.scene.sandbox)
        .with_our_plugin(&host.scene.configuration.broker_socket)
        .options(&["--aws-key-management=FORCE"])
        .options(&ENCRYPT_ALL);
    let mut process = database.start();
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
         INSERT INTO d.t VALUES (7); SET GLOBAL aws_key_management_rotate_key=-1",
    );
    database.stop(&mut process);
    let names = [
        "1/1",
        "1/2",
        "10/1",
        "10/2",
        "2/1",
        "2/2",
        "conditional-put-check",
    ];
    assert_eq!(storage.names("prod/db1"), names);
    for name in database.key_files() {
        std::fs::remove_file(database.datadir.join(name)).unwrap();
    }
    // S3 is slow and fails now and then.
    storage.fault("GET", What::Slow(Duration::from_millis(500)));
    for fault in [
        What::Refused(503, "SlowDown"),
        What::DoneAndCutOff,
        What::Refused(500, "InternalError"),
    ] {
        storage.fault("GET", fault);
    }
    let mut process = database.start();
    assert_eq!(database.sql("SELECT * FROM d.t"), "7");
    assert_eq!(database.key_files().len(), 6);
    // A rotation whose put fails once.
    storage.fault("PUT", What::Refused(500, "InternalError"));
    let made = database.sql("SET GLOBAL aws_key_management_rotate_key=10");
    assert!(
        made.contains("10.3") || made.contains("version 3"),
        "{made}"
    );
    database.stop(&mut process);
}

/// Both nodes make the same ids at the same moments: one key each, and both have it.
fn race(one: &Host, two: &Host, ids: std::ops::Range<u32>) {
    let peers = [one, two].map(|host| Peer::connect(&host.scene.configuration.broker_socket));
    let barrier = std::sync::Barrier::new(2);
    let made = std::thread::scope(|scope| {
        let threads = peers.map(|mut peer| {
            let (barrier, ids) = (&barrier, ids.clone());
            scope.spawn(move || {
                ids.map(|id| {
                    barrier.wait();
                    stored(peer.ask(&make(id, Numbering::First)))
                })
                .collect::<Vec<_>>()
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    let [ours, theirs] = made;
    let mut winners = BTreeSet::new();
    for ((key, is_new), (other, is_other_new)) in ours.into_iter().zip(theirs) {
        assert_eq!(key, other);
        assert_eq!(key.1, 1);
        assert!(is_new != is_other_new, "key {}", key.0);
        winners.insert(is_new);
    }
    assert_eq!(
        winners.len(),
        2,
        "one of them was always first: this was no race"
    );
}

#[test]
fn more_keys_than_a_page_of_a_list_has_are_listed() {
    let storage = ObjectStorage::start();
    let prefix = format!("{}/db1", "long".repeat(25));
    let host = Host::new(&storage, &prefix).checked();
    stored(host.make(1, Numbering::First));
    let object = storage.read(&format!("{prefix}/1/1")).unwrap();
    for version in 2..1101 {
        let text = object.replace("\"version\":1,", &format!("\"version\":{version},"));
        storage.write(&format!("{prefix}/1/{version}"), &text);
    }
    let (key, _) = stored(host.make(1, Numbering::Next { known: 1 }));
    assert_eq!(key.1, 1101);
    let request = Request::ListKeys(ListKeys {
        after: None,
        context: context(0),
    });
    let mut peer = Peer::connect(&host.scene.configuration.broker_socket);
    match peer.ask(&request) {
        Reply::KeyList { keys, next } => {
            assert_eq!(keys.len(), MAX_LISTED_KEYS);
            assert!(next.is_some());
        }
        reply => panic!("{reply:?}"),
    }
}

#[test]
fn two_nodes_that_make_the_same_thousand_keys_at_once_have_the_same_keys() {
    let first = Scene::new().with_broker();
    let store = StoreDirectory::new(&first.sandbox);
    let line = format!("key_store = {}", store.location());
    let one = Host::with(first.line(&line), |command| command);
    let two = Host::with(Scene::new().with_broker().line(&line), |command| command);
    race(&one, &two, 1..1001);
    assert_eq!(store.names().len(), 1000);
}

#[test]
fn two_nodes_that_make_the_same_keys_in_s3_at_once_have_the_same_keys() {
    let storage = ObjectStorage::start();
    let one = Host::new(&storage, "cluster").checked();
    let two = Host::new(&storage, "cluster").checked();
    race(&one, &two, 1..101);
    assert_eq!(storage.names("cluster").len(), 101);
}
