//! Key servers: databases on hosts that hold neither credentials of AWS nor wrapped keys.

use std::{
    fs::{self, Permissions},
    io::Write,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use broker_api::{
    Decrypt, FailureKind, FindKey, GetKey, HEADER_BYTES, KeyContext, ListKeys, MakeKey, Numbering,
    PROTOCOL_VERSION, Reply, Request, SessionPhase, WaitPolicy, read_frame, write_frame,
};
use end_to_end_tests::{
    Database, LocalAws, NOBODY, Process, Sandbox, StoreDirectory, after_mounting, backup,
    broker::{Peer, frame},
    dist, fence,
    key_server::{
        Authority, DAY, Host, KeyServer, TlsPeer, certificates_of_the_book, configure_upstream,
        flood_without_tls, get_key, given, make_key, tls_files,
    },
    wait_until,
};
use fastrand::Rng;
use nix::{
    sys::{
        signal::Signal,
        socket::{Backlog, listen},
        stat::Mode,
    },
    unistd::mkfifo,
};

const MANIFEST: &str = "aws-kms-keys.list";
const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";
const ALL_OF_DB1: &str =
    "[client \"db1.example\"]\nkey_ids = 1-99\nmay_make = true\nname_space = db1";

/// AWS, a key store, an authority, and a key server that is not started.
struct Site {
    server: KeyServer,
    authority: Authority,
    store: StoreDirectory,
    aws: LocalAws,
    sandbox: Sandbox,
}

impl Site {
    fn new(sections: &str) -> Self {
        Self::with_aws(sections, &[])
    }

    fn with_aws(sections: &str, arguments: &[&str]) -> Self {
        let sandbox = Sandbox::new();
        let aws = LocalAws::start_with(&sandbox, arguments);
        let store = StoreDirectory::new(&sandbox);
        let authority = Authority::new(sandbox.directory("authority"));
        let tls = authority.issue("keys1", &["keys1.example", "127.0.0.1"], 100 * DAY);
        let server = KeyServer::new(&aws, &store, tls, sections);
        Self {
            server,
            authority,
            store,
            aws,
            sandbox,
        }
    }

    /// With a key server that has a session.
    fn unlocked(sections: &str) -> Self {
        let mut site = Self::new(sections);
        site.server.start(&site.aws);
        site.server.unlock(&site.aws);
        site
    }

    fn db1(&self) -> Host {
        let tls = self.authority.issue("db1", &["db1.example"], 100 * DAY);
        Host::new(&[&self.server], &tls)
    }

    fn peer(&self, file: &str, names: &[&str]) -> TlsPeer {
        let tls = self.authority.issue(file, names, 100 * DAY);
        TlsPeer::connect(&self.server, &tls)
    }
}

fn create(id: u32) -> String {
    format!(
        "CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}; INSERT INTO d.t{id} VALUES ({id})"
    )
}

/// Asks for version 1 of a key, as a server that starts.
fn waiting_for_key(key_id: u32) -> Request {
    Request::GetKey(GetKey {
        context: KeyContext {
            key_id,
            key_version: 1,
            wait: WaitPolicy::UntilOpen,
        },
    })
}

fn refusal(reply: Reply) -> (FailureKind, String) {
    match reply {
        Reply::Failed(failure) => (failure.kind, failure.message),
        reply => panic!("{reply:?}"),
    }
}

/// Names of the objects of a key in the key store, below a name space.
fn objects(store: &StoreDirectory, name_space: &str, id: u32) -> Vec<String> {
    file_names(&store.path().join(name_space).join(id.to_string()))
}

#[test]
fn a_database_starts_when_somebody_has_given_the_key_server_a_code_and_keeps_no_key_file() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start_with(&sandbox, &[]);
    let store = StoreDirectory::new(&sandbox);
    let certificates = sandbox.directory("certificates");
    certificates_of_the_book(
        &certificates,
        &fence("key-server-authority"),
        &fence("key-server-certificate"),
        &["localhost", "db1.example"],
    );
    let files = |name: &str| tls_files(&certificates, name);
    let mut server = KeyServer::new(&aws, &store, files("localhost"), ALL_OF_DB1);
    server.start(&aws);
    // The name in the certificate, which this machine resolves.
    let address = format!("localhost:{}", server.port);
    let host = Host::with_upstream(&[address], &files("db1.example"));
    let mut process = Process::start(&mut host.database.command());
    let waiting = process.wait_for("waiting: key server localhost:");
    assert!(waiting.contains("enter an MFA code"), "{waiting}");
    server.unlock(&aws);
    // Not the number of versions outside all name spaces, which is none.
    server
        .process()
        .wait_for("can be used; each host's keys are in its name space there");
    host.database.wait_until_ready(&process);
    host.database
        .sql(&format!("CREATE DATABASE d; {}; {ROTATE}", create(10)));
    assert_eq!(host.database.key_files(), [""; 0]);
    assert!(host.database.datadir.join(MANIFEST).exists());
    assert_eq!(objects(&store, "db1", 10), ["1", "2"]);
    host.database.stop(&mut process);
    let mut process = host.database.start();
    assert_eq!(host.database.sql("SELECT * FROM d.t10"), "10");
    // A backup has no keys, and gets them from the key server.
    let target = sandbox.path("backup");
    let target_dir = format!("--target-dir={}", target.display());
    let socket = format!("--socket={}", host.database.socket.display());
    backup(&["--backup", &target_dir, &socket, "--user=root"]);
    host.database.stop(&mut process);
    backup(&["--prepare", &target_dir]);
    let restored = host.database.on_datadir(&target);
    let mut process = restored.start();
    assert_eq!(restored.sql("SELECT * FROM d.t10"), "10");
    restored.stop(&mut process);
    let log = server.process().output();
    assert!(
        log.contains("GetKey of key 10, version 2, for client db1.example at 127.0.0.1:"),
        "{log}"
    );
}

#[test]
fn a_client_gets_only_the_keys_of_its_name_space_and_of_its_key_ids() {
    let sections = "[client \"db1.example\"]\nkey_ids = 1-9\nmay_make = true\n[client \"spiffe://example/db2\"]\nkey_ids = 1-99\nname_space = db2\n";
    let site = Site::unlocked(sections);
    let mut db1 = site.peer("db1", &["db1.example"]);
    let Reply::Stored {
        key: Some(made),
        is_new: true,
        ..
    } = db1.ask(&make_key(5, ""))
    else {
        panic!("it was not made");
    };
    assert!(made.ciphertext_blob.is_empty());
    let Reply::Decrypted { key, .. } = db1.ask(&get_key(5, 1)) else {
        panic!("it was not given");
    };
    assert_eq!(key.expose().len(), 16);
    let mut db2 = site.peer("db2", &["spiffe://example/db2"]);
    let (kind, message) = refusal(db2.ask(&get_key(5, 1)));
    assert_eq!(kind, FailureKind::NotFound, "{message}");
    assert!(message.contains("(name space db2)"), "{message}");
    for (request, expected) in [
        (get_key(10, 1), "client db1.example may not use key 10"),
        (make_key(10, ""), "client db1.example may not use key 10"),
        (
            make_key(6, "alias/other"),
            "the key server chooses the master key",
        ),
    ] {
        let (kind, message) = refusal(db1.ask(&request));
        assert_eq!(kind, FailureKind::AccessDenied, "{message}");
        assert!(message.contains(expected), "{message}");
        site.server.process().wait_for(expected);
    }
    let (kind, message) = refusal(db2.ask(&make_key(5, "")));
    assert_eq!(kind, FailureKind::AccessDenied);
    assert!(message.contains("may not make keys"), "{message}");
    site.server.process().wait_for("may not make keys");
    // What is listed is what may be used.
    let list = Request::ListKeys(ListKeys {
        after: None,
        context: KeyContext::default(),
    });
    fs::create_dir(site.store.path().join("db1.example/10")).unwrap();
    let object = fs::read_to_string(site.store.path().join("db1.example/5/1")).unwrap();
    let object = object
        .replace("\"id\":5", "\"id\":10")
        .replace("\"id\": 5", "\"id\": 10");
    fs::write(site.store.path().join("db1.example/10/1"), object).unwrap();
    let Reply::KeyList { keys, .. } = db1.ask(&list) else {
        panic!("no list");
    };
    let ids: Vec<_> = keys.iter().map(|(name, _)| name.id).collect();
    assert_eq!(ids, [5]);
    assert!(matches!(db2.ask(&list), Reply::KeyList { keys, .. } if keys.is_empty()));
}

#[test]
fn no_version_is_made_that_the_key_store_would_refuse_from_then_on() {
    let site = Site::unlocked(ALL_OF_DB1);
    let mut db1 = site.peer("db1", &["db1.example"]);
    let next = |known| {
        let Request::MakeKey(first) = make_key(5, "") else {
            panic!("no request for a key");
        };
        Request::MakeKey(MakeKey {
            numbering: Numbering::Next { known },
            ..first
        })
    };
    let version = |reply: Reply| match reply {
        Reply::Stored { key: Some(key), .. } => key.name.version,
        reply => panic!("{reply:?}"),
    };
    assert_eq!(version(db1.ask(&make_key(5, ""))), 1);
    let (_, message) = refusal(db1.ask(&next(1_000_001)));
    assert!(
        message.contains("it would use up the version numbers"),
        "{message}"
    );
    assert_eq!(version(db1.ask(&next(1_000_000))), 1_000_001);
    let latest = Request::FindKey(FindKey {
        version: None,
        context: KeyContext {
            key_id: 5,
            ..KeyContext::default()
        },
    });
    assert_eq!(version(db1.ask(&latest)), 1_000_001);
    assert_eq!(version(db1.ask(&next(0))), 1_000_002);
}

#[test]
fn a_wrapped_key_is_worth_nothing_to_a_client() {
    let site = Site::unlocked(ALL_OF_DB1);
    let mut db1 = site.peer("db1", &["db1.example"]);
    db1.ask(&make_key(5, ""));
    let object = fs::read_to_string(site.store.path().join("db1/5/1")).unwrap();
    assert!(object.contains("wrapped_key"), "{object}");
    let request = Request::Decrypt(Decrypt {
        ciphertext_blob: vec![1; 200],
        check_value: None,
        context: KeyContext {
            key_id: 5,
            key_version: 1,
            wait: WaitPolicy::Never,
        },
    });
    let (kind, message) = refusal(db1.ask(&request));
    assert_eq!(kind, FailureKind::AccessDenied);
    assert!(message.contains("takes no wrapped keys"), "{message}");
    let found = db1.ask(&Request::FindKey(FindKey {
        version: None,
        context: KeyContext {
            key_id: 5,
            ..KeyContext::default()
        },
    }));
    let Reply::Stored { key: Some(key), .. } = found else {
        panic!("{found:?}");
    };
    assert!(key.ciphertext_blob.is_empty());
}

#[test]
fn a_certificate_counts_by_exactly_one_section_and_never_by_its_subject() {
    let sections =
        format!("{ALL_OF_DB1}\n[client \"nobody\"]\nkey_ids = 1\n[client \"db2\"]\nkey_ids = 1");
    let site = Site::unlocked(&sections);
    for (file, names, expected) in [
        // Its subject is CN=nobody.
        (
            "none",
            &["db3.example"][..],
            "no [client] section for its certificate, whose names are \"db3.example\"",
        ),
        (
            "wildcard",
            &["*.example"][..],
            "whose names are \"*.example\"",
        ),
        (
            "two",
            &["db1.example", "db2"][..],
            "match more than one section",
        ),
        ("address", &["127.0.0.1"][..], "has no DNS name and no URI"),
        // Its authority may be allowed to issue any URI, and only some DNS names.
        (
            "uri",
            &["URI=db1.example"][..],
            "has no DNS name and no URI",
        ),
    ] {
        let (kind, message) = refusal(site.peer(file, names).ask(&Request::Session));
        assert_eq!(kind, FailureKind::AccessDenied, "{message}");
        assert!(message.contains(expected), "{message}");
        let in_json = expected.replace('"', "\\\"");
        site.server.process().wait_for(&in_json);
    }
    let uri_as_dns_name =
        format!("{sections}\n[client \"spiffe://example/db3\"]\nkey_ids = 1\nname_space = db3");
    let mut site = site;
    site.server.set_sections(&uri_as_dns_name);
    site.server.process().wait_for("4 client sections");
    let mut peer = site.peer("dns", &["DNS=spiffe://example/db3"]);
    let (_, message) = refusal(peer.ask(&Request::Session));
    assert!(message.contains("has no DNS name and no URI"), "{message}");
}

#[test]
fn a_flood_without_certificates_hides_no_refused_certificate_from_the_audit() {
    let site = Site::unlocked(ALL_OF_DB1);
    flood_without_tls(site.server.port, 100);
    let mut stolen = site.peer("stolen", &["stolen.example"]);
    assert_eq!(
        refusal(stolen.ask(&Request::Session)).0,
        FailureKind::AccessDenied
    );
    let line = site.server.process().wait_for("stolen.example");
    assert!(line.contains("\"event\":\"client_refused\""), "{line}");
    let lines = site.server.process().output();
    assert!(lines.matches("is not TLS").count() < 50, "{lines}");
}

#[test]
fn a_certificate_that_is_over_or_of_another_authority_is_refused() {
    let site = Site::unlocked(ALL_OF_DB1);
    let other = Authority::new(site.sandbox.directory("other-authority"));
    let mut stranger = other.issue("db1", &["db1.example"], DAY);
    stranger.authorities = site.authority.certificate();
    assert!(
        TlsPeer::connect(&site.server, &stranger)
            .try_ask(&Request::Session)
            .is_err()
    );
    site.server
        .process()
        .wait_for("of an authority that is not accepted here");
    let yesterday = SystemTime::now() - DAY;
    let over = site
        .authority
        .issue_until("over", &["db1.example"], yesterday);
    assert!(
        TlsPeer::connect(&site.server, &over)
            .try_ask(&Request::Session)
            .is_err()
    );
    let line = site.server.process().wait_for("its certificate expired at");
    assert!(line.contains("the clock of this host says"), "{line}");
}

#[test]
fn a_connection_ends_with_its_certificate_its_section_and_its_authority() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    let short = site
        .authority
        .issue("short", &["db1.example"], Duration::from_secs(8));
    let mut ending = TlsPeer::connect(&site.server, &short);
    assert!(matches!(ending.ask(&Request::Session), Reply::Session(_)));
    let is_over = |peer: &mut TlsPeer| peer.answer().is_err();
    assert!(is_over(&mut ending));
    site.server
        .process()
        .wait_for("the connection is closed, because its certificate expired");
    let mut open = site.peer("db1", &["db1.example"]);
    assert!(matches!(open.ask(&Request::Session), Reply::Session(_)));
    site.server
        .set_sections("[client \"db2.example\"]\nkey_ids = 1");
    assert!(is_over(&mut open));
    site.server.process().wait_for(
        "the connection is closed, because the key server's configuration has no [client] section",
    );
    site.server.set_sections(ALL_OF_DB1);
    site.server.process().wait_for_nth("1 client section", 2);
    let mut open = site.peer("db1", &["db1.example"]);
    assert!(matches!(open.ask(&Request::Session), Reply::Session(_)));
    let other = Authority::new(site.sandbox.directory("other-authority"));
    fs::copy(other.certificate(), site.authority.certificate()).unwrap();
    assert!(is_over(&mut open));
    site.server
        .process()
        .wait_for("the connection is closed, because its certificate is of an authority");
}

#[test]
fn a_changed_configuration_that_cannot_be_read_is_read_again_until_it_can() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    let mut open = site.peer("db1", &["db1.example"]);
    let unused = "the changed configuration is not used, and clients are served as before";
    site.server.set_sections("overview_grupo = operators");
    site.server.process().wait_for(unused);
    fs::remove_file(site.server.sandbox.path("broker.config")).unwrap();
    site.server.process().wait_for_nth(unused, 2);
    assert!(matches!(open.ask(&Request::Session), Reply::Session(_)));
    site.server
        .set_sections("[client \"db2.example\"]\nkey_ids = 1");
    assert!(open.answer().is_err());
    site.server.process().wait_for(
        "the connection is closed, because the key server's configuration has no [client] section",
    );
}

#[test]
fn a_name_service_that_hangs_keeps_no_host_waiting_when_the_configuration_changes() {
    let mut site = Site::new(ALL_OF_DB1);
    // Whoever looks for a group waits for somebody who writes there.
    let groups = site.sandbox.path("group");
    mkfifo(&groups, Mode::S_IRWXU).unwrap();
    let command = site.server.command(&site.aws);
    site.server
        .start_by(after_mounting(&groups, "/etc/group", &command));
    site.server.unlock(&site.aws);
    let mut open = site.peer("db1", &["db1.example"]);
    site.server
        .set_sections("overview_group = operators\n[client \"db2.example\"]\nkey_ids = 1");
    assert!(open.answer().is_err());
    site.server.process().wait_for(
        "the connection is closed, because the key server's configuration has no [client] section",
    );
    let mut db2 = site.peer("db2", &["db2.example"]);
    assert!(matches!(db2.ask(&Request::Session), Reply::Session(_)));
    let mut process = site.server.process.take().unwrap();
    process.signal(Signal::SIGTERM);
    assert!(process.wait().success());
}

#[test]
fn a_client_has_no_more_than_its_share_of_connections_frames_and_bytes() {
    let site = Site::unlocked(&format!("{ALL_OF_DB1}\n[client \"db2\"]\nkey_ids = 1"));
    let tls = site.authority.issue("db1", &["db1.example"], DAY);
    let mut open: Vec<_> = (0..32)
        .map(|_| {
            let mut peer = TlsPeer::connect(&site.server, &tls);
            assert!(matches!(peer.ask(&Request::Session), Reply::Session(_)));
            peer
        })
        .collect();
    let (kind, message) = refusal(TlsPeer::connect(&site.server, &tls).ask(&Request::Session));
    assert_eq!(kind, FailureKind::Throttled);
    assert!(message.contains("32 connections"), "{message}");
    site.server
        .process()
        .wait_for("this client has 32 connections, the most that it may have");
    // Others are not affected.
    let mut other = site.peer("db2", &["db2"]);
    assert!(matches!(other.ask(&Request::Session), Reply::Session(_)));
    // A frame that is longer than any request, and one that is none.
    let mut long = open.pop().unwrap();
    long.send(&[2, 0x01, 0x10, 0, 0]);
    assert!(long.answer().is_err());
    site.server.process().wait_for("a frame of 4097 bytes");
    let mut wrong = open.pop().unwrap();
    wrong.send(&[2, 1, 0, 0, 0, 0xff]);
    assert!(wrong.answer().is_err());
    site.server.process().wait_for("a malformed frame");
    let mut old = open.pop().unwrap();
    old.send(&[1, 1, 0, 0, 0, 2]);
    assert!(old.answer().is_err());
    site.server
        .process()
        .wait_for("protocol version 1 is unknown");
    // More requests than a client may make: a burst, and then some each second.
    let mut peer = open.pop().unwrap();
    let mut answers = (0..100_000).map(|_| peer.ask(&Request::Session));
    let throttled = answers
        .find(|reply| matches!(reply, Reply::Failed(_)))
        .unwrap();
    assert_eq!(refusal(throttled).0, FailureKind::Throttled);
    site.server
        .process()
        .wait_for("this client makes too many requests");
    assert!(matches!(other.ask(&Request::Session), Reply::Session(_)));
}

#[test]
fn a_client_sees_nothing_of_what_the_key_server_does() {
    let site = Site::unlocked(ALL_OF_DB1);
    let mut peer = site.peer("db1", &["db1.example"]);
    for (nth, request) in (1..).zip([Request::Overview, Request::Events { before: None }]) {
        let (kind, message) = refusal(peer.ask(&request));
        assert_eq!(kind, FailureKind::AccessDenied, "{message}");
        assert!(message.contains("on its own host only"), "{message}");
        let line = site.server.process().wait_for_nth(&message, nth);
        assert!(line.contains("\"client\":\"db1.example\""), "{line}");
    }
}

#[test]
fn a_database_host_has_no_overview_and_says_where_to_ask() {
    let site = Site::unlocked(ALL_OF_DB1);
    let host = site.db1();
    let mut peer = Peer::connect(&host.socket());
    for request in [Request::Overview, Request::Events { before: None }] {
        let (kind, message) = refusal(peer.ask(&request));
        assert_eq!(kind, FailureKind::InvalidRequest, "{message}");
        assert!(message.contains("ask on the key server"), "{message}");
    }
    assert!(matches!(peer.ask(&Request::Session), Reply::Session(_)));
}

/// Bytes that a client may send in place of a request. `kind` takes turns, so that each comes early.
fn odd_frame(rng: &mut Rng, kind: usize) -> Vec<u8> {
    let context = KeyContext {
        key_id: rng.u32(0..8),
        key_version: rng.u32(0..3),
        ..KeyContext::default()
    };
    let requests = [
        get_key(context.key_id, context.key_version),
        make_key(context.key_id, "alias/mariadb"),
        Request::Session,
        Request::Overview,
        Request::FindKey(FindKey {
            version: None,
            context,
        }),
        Request::ListKeys(ListKeys {
            after: Some((rng.u32(..), rng.u32(..))),
            context,
        }),
        Request::Decrypt(Decrypt {
            ciphertext_blob: vec![rng.u8(..); rng.usize(..200)],
            check_value: None,
            context,
        }),
    ];
    let request = &requests[rng.usize(..requests.len())];
    let frame = broker_api::encode(PROTOCOL_VERSION, request).unwrap();
    let mut bytes = frame.to_vec();
    match kind {
        0 => bytes = (0..rng.usize(..5000)).map(|_| rng.u8(..)).collect(),
        1 => bytes[0] = rng.u8(3..),
        2 => bytes[2] = rng.u8(0x11..),
        3 => bytes.truncate(rng.usize(..bytes.len())),
        4 => {
            // As long as its header says, but not a request.
            let body: Vec<u8> = (0..rng.usize(1..60)).map(|_| rng.u8(9..)).collect();
            bytes = vec![PROTOCOL_VERSION, u8::try_from(body.len()).unwrap(), 0, 0, 0];
            bytes.extend(body);
        }
        _ => {
            for _ in 0..rng.usize(1..4) {
                let place = rng.usize(HEADER_BYTES..bytes.len());
                bytes[place] = rng.u8(..);
            }
        }
    }
    bytes
}

#[test]
fn random_and_changed_frames_end_their_own_connection_only_and_the_audit_says_why() {
    let sections = format!("{ALL_OF_DB1}\n[client \"db2\"]\nkey_ids = 1");
    let site = Site::unlocked(&sections);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut db1 = site.peer("db1", &["db1.example"]);
    db1.ask(&make_key(5, ""));
    let key = given(db1.ask(&get_key(5, 1)));
    let mut db2 = site.peer("db2", &["db2"]);
    let tls = site.authority.files("db1");
    let mut answers = 0;
    for round in 0..600 {
        let bytes = odd_frame(&mut rng, round % 6);
        let mut peer = TlsPeer::connect(&site.server, &tls);
        // It may be refused before all of it has been sent.
        let _ = peer.0.write_all(&bytes).and_then(|()| {
            peer.0.conn.send_close_notify();
            peer.0.flush()
        });
        while let Ok(reply) = peer.answer() {
            answers += 1;
            if let Reply::Generated { .. } | Reply::Overview(_) | Reply::Events(_) = reply {
                panic!("{reply:?}");
            }
        }
        if round % 50 == 0 {
            assert!(matches!(db2.ask(&Request::Session), Reply::Session(_)));
        }
    }
    assert!(answers > 0);
    assert_eq!(given(db1.ask(&get_key(5, 1))), key);
    for why in [
        "refused client db1.example at 127.0.0.1:",
        ": protocol version ",
        ": a frame of ",
        ": a malformed frame: ",
    ] {
        site.server.process().wait_for(why);
    }
}

#[test]
fn a_client_has_no_more_than_its_share_of_requests_in_flight() {
    let site = Site::unlocked(ALL_OF_DB1);
    let tls = site.authority.issue("db1", &["db1.example"], DAY);
    let mut peers: Vec<_> = (0..20)
        .map(|_| TlsPeer::connect(&site.server, &tls))
        .collect();
    for peer in &mut peers {
        assert!(matches!(peer.ask(&Request::Session), Reply::Session(_)));
    }
    site.aws
        .fault("--operation GenerateDataKeyWithoutPlaintext --kind delay --milliseconds 5000");
    for (id, peer) in (1..).zip(&mut peers) {
        broker_api::write_frame(&mut peer.0, &make_key(id, "")).unwrap();
    }
    let answers: Vec<_> = peers
        .iter_mut()
        .map(|peer| peer.answer().unwrap())
        .collect();
    let throttled = answers
        .iter()
        .filter(|reply| matches!(reply, Reply::Failed(failure) if failure.kind == FailureKind::Throttled))
        .count();
    assert_eq!(throttled, 4, "{answers:?}");
    site.server
        .process()
        .wait_for("this client has 16 requests in flight, the most that it may have");
}

#[test]
fn the_manifest_finds_a_wrong_key_and_an_older_state_of_the_key_store() {
    let site = Site::unlocked(ALL_OF_DB1);
    let host = site.db1();
    let mut process = host.database.start();
    host.database.sql(&format!(
        "CREATE DATABASE d; {}; {}",
        create(10),
        create(11)
    ));
    host.database.sql(ROTATE);
    host.database.stop(&mut process);
    let path = |name: &str| site.store.path().join("db1").join(name);
    let newest = fs::read(path("10/2")).unwrap();
    // The server remembers what it has read. The one that comes after a restart has only the store.
    let restart = |mut site: Site| {
        site.server.kill();
        site.server.start(&site.aws);
        site.server.unlock(&site.aws);
        site
    };
    fs::remove_file(path("10/2")).unwrap();
    let site = restart(site);
    let mut process = host.database.start();
    let line = process.wait_for("the key server does not have aws-kms-key.10.2");
    assert!(line.contains("is in an older state"), "{line}");
    process.wait_for("although version 2 exists");
    host.database.stop(&mut process);
    let path = |name: &str| site.store.path().join("db1").join(name);
    let other = fs::read_to_string(path("11/2")).unwrap();
    let swapped = other
        .replace("\"id\":11", "\"id\":10")
        .replace("\"id\": 11", "\"id\": 10");
    assert_ne!(other, swapped);
    fs::write(path("10/2"), swapped).unwrap();
    let site = restart(site);
    let mut process = Process::start(&mut host.database.command());
    process.wait_for("aws-kms-key.10.2 is another key here");
    assert!(!process.wait().success());
    fs::write(site.store.path().join("db1/10/2"), newest).unwrap();
    let _site = restart(site);
    let mut process = host.database.start();
    assert_eq!(host.database.sql("SELECT * FROM d.t10"), "10");
    host.database.stop(&mut process);
}

/// It has no key files, and its manifest says which keys there are.
#[test]
fn verify_on_a_database_host_asks_the_key_server_for_each_key_of_the_manifest() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    let mut host = site.db1();
    let mut process = host.database.start();
    let tables = format!("CREATE DATABASE d; {}; {}", create(10), create(11));
    host.database.sql(&tables);
    host.database.sql(ROTATE);
    let verify = |host: &Host, expected: i32, texts: &[&str]| {
        let mut verify = Command::new(dist("bin").join("kms-data-keys"));
        verify
            .args(["verify", "--textfile=verify.prom", "--broker-socket"])
            .arg(host.socket())
            .arg(&host.database.datadir)
            .current_dir(host.sandbox.path(""));
        let output = verify.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(expected), "{said}");
        let metrics = fs::read_to_string(host.sandbox.path("verify.prom")).unwrap();
        for text in texts {
            assert!(
                said.contains(text) || metrics.contains(text),
                "{said}\n{metrics}"
            );
        }
    };
    let none_missing = "key_versions{result=\"missing\"} 0";
    verify(&host, 0, &[", 0 failed", none_missing]);
    host.database.stop(&mut process);

    // The server remembers what it has read. The one that comes after a restart has only the store.
    site.server.kill();
    site.server.start(&site.aws);
    verify(
        &host,
        125,
        &[none_missing, "enter an MFA code", ", 0 failed"],
    );
    let path = |name: &str| site.store.path().join("db1").join(name);
    fs::remove_file(path("10/1")).unwrap();
    let other = fs::read_to_string(path("11/2")).unwrap();
    let swapped = other
        .replace("\"id\":11", "\"id\":10")
        .replace("\"id\": 11", "\"id\": 10");
    fs::write(path("10/2"), swapped).unwrap();
    site.server.kill();
    site.server.start(&site.aws);
    site.server.unlock(&site.aws);
    let wrong = [
        none_missing,
        "aws-kms-key.10.1: key server 127.0.0.1:",
        "the key store has no version 1 of key 10",
        "aws-kms-key.10.2 of the key server is not the key that",
        ", 2 failed",
    ];
    verify(&host, 1, &wrong);

    // Nobody knows now whether there should be key files.
    drop(host.broker.take());
    verify(&host, 125, &[none_missing, "no broker at", ", 0 failed"]);
}

#[test]
fn a_running_database_outlives_its_key_server_and_uses_the_next_one() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    let host = site.db1();
    let mut process = host.database.start();
    host.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    site.server.kill();
    assert_eq!(host.database.sql("SELECT * FROM d.t10"), "10");
    let refused = host.database.sql_error(&create(11));
    assert!(
        refused.contains("no key server could serve the request: key server 127.0.0.1:"),
        "{refused}"
    );
    site.server.start(&site.aws);
    let refused = host.database.sql_error(&create(12));
    assert!(refused.contains("enter an MFA code"), "{refused}");
    site.server.unlock(&site.aws);
    wait_until("the failure to be forgotten", || {
        end_to_end_tests::try_sql(&host.database.socket, &create(13)).is_ok()
    });
    host.database.stop(&mut process);
}

/// Kills one of two key servers while databases start, rotate and back up.
#[test]
fn no_start_fails_while_one_of_two_key_servers_is_killed_again_and_again() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    let tls = site.authority.issue("keys2", &["127.0.0.1"], DAY);
    let mut second = KeyServer::new(&site.aws, &site.store, tls, ALL_OF_DB1);
    second.start(&site.aws);
    second.unlock(&site.aws);
    let tls = site.authority.issue("db1", &["db1.example"], DAY);
    let host = Host::new(&[&site.server, &second], &tls);
    let mut process = host.database.start();
    host.database.sql("CREATE DATABASE d");
    host.database.stop(&mut process);
    for (round, id) in (20..23).enumerate() {
        let started = Process::start(&mut host.database.command());
        let killed = match round % 2 {
            0 => &mut site.server,
            _ => &mut second,
        };
        // While the plugin is being loaded.
        started.wait_for(["loaded key 1", "loaded key 2", "loaded key 20"][round]);
        killed.kill();
        host.database.wait_until_ready(&started);
        host.database.sql(&format!("{}; {ROTATE}", create(id)));
        let mut started = started;
        host.database.stop(&mut started);
        killed.start(&site.aws);
        killed.unlock(&site.aws);
    }
    let mut process = host.database.start();
    for id in 20..23 {
        assert_eq!(
            host.database.sql(&format!("SELECT * FROM d.t{id}")),
            id.to_string()
        );
    }
    let listed = fs::read_to_string(host.database.datadir.join(MANIFEST)).unwrap();
    for line in listed
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
    {
        let mut fields = line.split(' ');
        let (id, version) = (fields.next().unwrap(), fields.next().unwrap());
        let object = site.store.path().join("db1").join(id).join(version);
        assert!(object.exists(), "{line}");
    }
    host.database.stop(&mut process);
}

/// At any time, one of both may have a session and be back in a moment.
#[test]
fn a_rotation_that_finds_one_key_server_down_and_the_other_without_a_session_tries_again() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    let tls = site.authority.issue("keys2", &["127.0.0.1"], DAY);
    let mut second = KeyServer::new(&site.aws, &site.store, tls, ALL_OF_DB1);
    second.start(&site.aws);
    let tls = site.authority.issue("db1", &["db1.example"], DAY);
    let host = Host::new(&[&site.server, &second], &tls);
    let mut process = host.database.start();
    let session = site.aws.session_document();
    site.server.kill();
    let down = site.server.address();
    let (kind, message) = refusal(Peer::connect(&host.socket()).ask(&make_key(50, "")));
    assert_eq!(kind, FailureKind::Unavailable, "{message}");
    assert!(message.contains("enter an MFA code"), "{message}");
    let other = format!("; key server {down}: Connection refused");
    assert!(message.contains(&other), "{message}");
    thread::scope(|scope| {
        let database = &host.database;
        let rotated = scope.spawn(|| database.sql(ROTATE));
        second
            .process()
            .wait_for("MakeKey of a new version of key 1, for client db1.example");
        second.hand(&session);
        rotated.join().unwrap();
    });
    assert_eq!(objects(&site.store, "db1", 1), ["1", "2"]);
    host.database.stop(&mut process);
}

/// Waits until a request that waits is told this, or returns its answer.
fn told(peer: &mut Peer, expected: &str) -> Option<Reply> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match read_frame(&mut peer.0).unwrap() {
            Reply::Waiting(waiting) if waiting.message.contains(expected) => return None,
            Reply::Waiting(waiting) => assert!(Instant::now() < until, "{waiting:?}"),
            reply => return Some(reply),
        }
    }
}

#[test]
fn a_request_that_waits_is_told_what_is_missing_now_and_ends_when_its_host_is_no_longer_served() {
    let mut site = Site::unlocked(ALL_OF_DB1);
    site.peer("db1", &["db1.example"]).ask(&make_key(5, ""));
    site.server.kill();
    let host = site.db1();
    let mut peer = Peer::connect(&host.socket());
    write_frame(&mut peer.0, &waiting_for_key(5)).unwrap();
    assert_eq!(told(&mut peer, "Connection refused"), None);
    site.server.start(&site.aws);
    assert_eq!(told(&mut peer, "enter an MFA code"), None);
    let called = |server: &KeyServer| server.process().output().matches("GetKey of").count();
    // The log may come a little later than the answer.
    site.server.process().wait_for("GetKey of");
    // While it waits for a code only, the audit of the key server is spared.
    assert_eq!(called(&site.server), 1);
    site.server.kill();
    assert_eq!(told(&mut peer, "Connection refused"), None);
    site.server.start(&site.aws);
    assert_eq!(told(&mut peer, "enter an MFA code"), None);
    site.server
        .set_sections("[client \"db2.example\"]\nkey_ids = 1");
    let (kind, message) = refusal(told(&mut peer, "no such text").unwrap());
    assert_eq!(kind, FailureKind::AccessDenied);
    assert!(message.contains("this host is not served"), "{message}");
}

/// As a server that starts does, while another one of its host, or it itself, reads keys that the key server still has.
#[test]
fn an_answer_from_the_key_cache_wakes_no_request_that_waits_for_a_session() {
    let mut site = Site::with_aws(ALL_OF_DB1, &["--session-lifetime=600"]);
    site.server.start(&site.aws);
    site.server.unlock(&site.aws);
    let host = site.db1();
    let ask = |request: &Request| Peer::connect(&host.socket()).ask(request);
    for id in [5, 6] {
        ask(&make_key(id, ""));
    }
    let cached = given(ask(&get_key(6, 1)));
    site.aws.end_session();
    let mut waiting = Peer::connect(&host.socket());
    write_frame(&mut waiting.0, &waiting_for_key(5)).unwrap();
    assert_eq!(told(&mut waiting, "enter an MFA code"), None);
    for _ in 0..10 {
        assert_eq!(given(ask(&get_key(6, 1))), cached);
    }
    let process = site.server.process();
    process.wait_for_nth("GetKey of key 6, version 1", 11);
    let asked = process
        .output()
        .matches("GetKey of key 5, version 1")
        .count();
    assert_eq!(asked, 1);
    // The state of the session wakes it.
    site.aws.set_clock("0");
    site.server.unlock(&site.aws);
    given(told(&mut waiting, "no such text").unwrap());
}

#[test]
fn a_key_server_that_is_silent_again_is_in_the_log_again() {
    let mut site = Site::new(ALL_OF_DB1);
    let host = site.db1();
    let broker = host.broker.as_ref().unwrap();
    let list = Request::ListKeys(ListKeys {
        after: None,
        context: KeyContext::default(),
    });
    for times in 1..=2 {
        let refused = Peer::connect(&host.socket()).ask(&list);
        assert!(matches!(refused, Reply::Failed(_)), "{refused:?}");
        broker.wait_for_nth("no key server could serve the request", times);
        site.server.start(&site.aws);
        // Without a session, from its directory.
        let listed = Peer::connect(&host.socket()).ask(&list);
        assert!(matches!(listed, Reply::KeyList { .. }), "{listed:?}");
        broker.wait_for_nth("answers", times);
        site.server.kill();
    }
}

/// Many hosts start at once after a power failure, and share the limit of their account.
#[test]
fn starts_that_wait_for_kms_ask_less_and_less_often_and_the_log_has_the_reason_once() {
    for fault in ["500", "throttle"] {
        let mut site = Site::unlocked(ALL_OF_DB1);
        let mut maker = site.peer("db1", &["db1.example"]);
        for id in 1..=8 {
            maker.ask(&make_key(id, ""));
        }
        site.server.kill();
        site.server.start(&site.aws);
        site.server.unlock(&site.aws);
        site.aws
            .fault(&format!("--operation Decrypt --kind {fault}"));
        let host = site.db1();
        let before = site.aws.calls("Decrypt");
        let began = Instant::now();
        let mut peers: Vec<_> = (1..=8)
            .map(|id| {
                let mut peer = Peer::connect(&host.socket());
                write_frame(&mut peer.0, &waiting_for_key(id)).unwrap();
                peer
            })
            .collect();
        wait_until("the fifth attempt for each key", || {
            site.aws.calls("Decrypt") - before >= 5 * 8
        });
        // Pauses of 1, 2, 4 and 8 s, each shorter or longer by a quarter.
        let took = began.elapsed();
        assert!(took > Duration::from_secs(11), "{took:?}");
        let log = host.broker.as_ref().unwrap().output();
        assert_eq!(log.matches("no key server could serve").count(), 1, "{log}");
        site.aws.fault("--clear");
        for peer in &mut peers {
            given(told(peer, "no such text").unwrap());
        }
    }
}

/// Requests that wait for KMS do not delay those for keys in memory.
#[test]
fn a_key_in_memory_and_the_session_are_told_at_once_while_kms_hangs_for_others() {
    const CLIENTS: usize = 17;
    const CALLS: usize = 16;
    let sections: String = (0..CLIENTS)
        .map(|n| format!("[client \"db{n}.example\"]\nkey_ids = 1-9\nmay_make = true\n"))
        .collect();
    let site = Site::unlocked(&format!("request_timeout_seconds = 120\n{sections}"));
    let files = (0..CLIENTS).map(|n| {
        let name = format!("db{n}");
        site.authority
            .issue(&name, &[&format!("{name}.example")], 100 * DAY)
    });
    let files: Vec<_> = files.collect();
    let connect = |n: usize| TlsPeer::connect(&site.server, &files[n]);
    for n in 0..CLIENTS {
        let made = connect(n).ask(&make_key(1, ""));
        assert!(matches!(made, Reply::Stored { .. }), "{made:?}");
    }
    given(connect(0).ask(&get_key(1, 1)));
    site.aws.fault("--operation Decrypt --kind silence");
    let mut waiting: Vec<_> = (1..CLIENTS)
        .flat_map(|n| [n; CALLS])
        .map(|n| {
            let mut peer = connect(n);
            peer.send(&frame(&get_key(1, 1)));
            peer
        })
        .collect();
    for peer in &mut waiting {
        let told = peer.receive().unwrap();
        assert!(matches!(told, Reply::Waiting(_)), "{told:?}");
    }
    let began = Instant::now();
    given(connect(0).ask(&get_key(1, 1)));
    let session = connect(0).ask(&Request::Session);
    assert!(matches!(session, Reply::Session(_)), "{session:?}");
    assert!(began.elapsed() < Duration::from_secs(60));
}

/// As the end of a transient unit with the same RuntimeDirectory= does.
#[test]
fn a_socket_that_somebody_removes_is_there_again() {
    let site = Site::unlocked(ALL_OF_DB1);
    let host = site.db1();
    let key_servers_own = site.server.sandbox.path("run").join("broker.sock");
    for (broker, socket) in [
        (host.broker.as_ref().unwrap(), host.socket()),
        (site.server.process(), key_servers_own),
    ] {
        fs::remove_file(&socket).unwrap();
        fs::remove_file(socket.with_extension("sock.lock")).unwrap();
        broker.wait_for("it is there again");
        assert_eq!(
            fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let answer = Peer::connect(&socket).ask(&Request::Session);
        assert!(matches!(answer, Reply::Session(_)), "{answer:?}");
        assert!(socket.with_extension("sock.lock").exists());
    }
}

#[test]
fn a_database_host_holds_no_credential_and_asks_again_when_its_certificate_is_replaced() {
    let site = Site::unlocked(ALL_OF_DB1);
    let tls = site
        .authority
        .issue("db1", &["db1.example"], Duration::from_secs(5));
    let host = Host::new(&[&site.server], &tls);
    let broker = host.broker.as_ref().unwrap();
    broker.wait_for("expires at");
    // At once, and not with the next daily warning.
    broker.wait_for("expired at");
    let mut peer = Peer::connect(&host.socket());
    wait_until(
        "the certificate to end",
        || matches!(peer.ask(&get_key(5, 1)), Reply::Failed(failure) if failure.message.contains("has expired")),
    );
    site.authority.issue("db1", &["db1.example"], DAY);
    broker.wait_for("was read again; it is valid until");
    let (kind, message) = refusal(peer.ask(&get_key(5, 1)));
    assert_eq!(kind, FailureKind::NotFound, "{message}");
    let environment = fs::read(format!("/proc/{}/environ", broker.pid())).unwrap();
    assert!(environment.is_empty());
    assert_eq!(
        file_names(&host.sandbox.path("run")),
        ["broker.sock", "broker.sock.lock"]
    );
}

#[test]
fn the_broker_of_a_database_host_serves_no_other_user_and_takes_no_private_key_that_all_can_read() {
    let site = Site::new(ALL_OF_DB1);
    let mut host = site.db1();
    let socket = host.socket();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    // Its mode already keeps others out; this is the second lock.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let script = format!(
        "import os, socket\nos.setgid({NOBODY}); os.setuid({NOBODY})\n\
         s = socket.socket(socket.AF_UNIX); s.connect({socket:?})\n\
         try:\n print('got', s.recv(100))\n\
         except ConnectionResetError:\n print('got', b'')"
    );
    let stranger = Process::start(Command::new("/usr/bin/python3").args(["-c", &script]));
    assert_eq!(stranger.wait_for("got"), "got b''");
    let broker = host.broker.as_ref().unwrap();
    broker.wait_for("rejected a connection (uid 65534, pid ");
    let key = site.authority.files("db1").key;
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    drop(host.broker.take());
    let config = host.sandbox.path("broker.config");
    let output = Command::new(dist("bin/iam-kms-broker"))
        .arg(format!("--config={}", config.display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("can be read by every user"), "{why}");
}

fn file_names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// For a cluster, whose nodes share a name space.
#[test]
fn two_hosts_of_one_name_space_have_the_same_keys() {
    let sections = format!(
        "{ALL_OF_DB1}\n[client \"db2.example\"]\nkey_ids = 1-99\nmay_make = true\nname_space = db1"
    );
    let site = Site::unlocked(&sections);
    let one = site.db1();
    let mut process = one.database.start();
    one.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    one.database.stop(&mut process);
    let tls = site.authority.issue("db2", &["db2.example"], DAY);
    let other = Host::new(&[&site.server], &tls);
    let copy: Database = other.database.on_datadir(&one.database.datadir);
    fs::remove_file(one.database.datadir.join(MANIFEST)).unwrap();
    let mut process = copy.start();
    assert_eq!(copy.sql("SELECT * FROM d.t10"), "10");
    copy.stop(&mut process);
    assert_eq!(objects(&site.store, "db1", 10), ["1"]);
}

fn check(site: &Site, config: &Path) -> String {
    let option = format!("--config={}", config.display());
    let mut command = site
        .aws
        .program("iam-kms-wrapper", &["--check", &option, "sleep"]);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn the_preflight_check_of_both_sides_finds_what_is_wrong() {
    let mut site = Site::new(ALL_OF_DB1);
    let host = site.db1();
    let of_host = host.sandbox.path("broker.config");
    let list = check(&site, &of_host);
    assert!(list.contains("ok           certificate: "), "{list}");
    let unreachable = format!(
        "FAILED       key server {}: Connection refused",
        site.server.address()
    );
    assert!(list.contains(&unreachable), "{list}");
    let of_server = site.server.sandbox.path("broker.config");
    let list = check(&site, &of_server);
    assert!(
        list.contains("ok           key server: the certificate "),
        "{list}"
    );
    assert!(
        list.contains("there is 1 section for database hosts"),
        "{list}"
    );
    site.server.start(&site.aws);
    let list = check(&site, &of_host);
    assert!(
        list.contains("it serves this host, and waits for an MFA code"),
        "{list}"
    );
    site.server.set_sections("[client \"db2\"]\nkey_ids = 1");
    site.server.process().wait_for("1 client section");
    let list = check(&site, &of_host);
    assert!(
        list.contains(
            "this host is not served: the key server's configuration has no [client] section"
        ),
        "{list}"
    );
}

#[test]
fn the_launcher_leaves_a_host_with_an_upstream_to_the_service() {
    let site = Site::new(ALL_OF_DB1);
    let host = site.db1();
    let config = host.sandbox.path("broker.config");
    let option = format!("--config={}", config.display());
    let output = site
        .aws
        .program("iam-kms-wrapper", &[&option, "echo", "it runs"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("upstream is set, which is for a broker that runs as a service"),
        "{message}"
    );
}

#[test]
fn however_many_hosts_ask_at_once_kms_unwraps_each_key_once() {
    let sections = format!("{ALL_OF_DB1}\n[client \"db2\"]\nkey_ids = 1-99\nname_space = db1");
    let mut site = Site::unlocked(&sections);
    let mut db1 = site.peer("db1", &["db1.example"]);
    for id in 1..=5 {
        assert!(matches!(
            db1.ask(&make_key(id, "")),
            Reply::Stored { is_new: true, .. }
        ));
    }
    site.server.kill();
    site.server.start(&site.aws);
    site.server.unlock(&site.aws);
    // KMS is 200 ms away, so that all ask for a key before its answer is there.
    site.aws
        .fault("--operation Decrypt --kind delay --milliseconds 200 --count 1000");
    let before = site.aws.calls("Decrypt");
    let hosts = [("db1", "db1.example"), ("db2", "db2")];
    let mut peers: Vec<_> = (0..16)
        .flat_map(|_| hosts)
        .map(|(file, name)| site.peer(file, &[name]))
        .collect();
    for id in 1..=5 {
        for peer in &mut peers {
            broker_api::write_frame(&mut peer.0, &get_key(id, 1)).unwrap();
        }
        let mut keys: Vec<_> = peers
            .iter_mut()
            .map(|peer| match peer.answer().unwrap() {
                Reply::Decrypted { key, .. } => key.expose().to_vec(),
                reply => panic!("{reply:?}"),
            })
            .collect();
        keys.dedup();
        assert_eq!(keys.len(), 1);
    }
    assert_eq!(site.aws.calls("Decrypt") - before, 5);
}

/// Without a key cache, each call is one of KMS, and none waits for another.
#[test]
fn hosts_that_ask_for_a_key_at_once_do_not_queue_where_no_key_is_cached() {
    let site = Site::unlocked(&format!("key_cache = session\n{ALL_OF_DB1}"));
    let mut peers: Vec<_> = (0..8).map(|_| site.peer("db1", &["db1.example"])).collect();
    peers[0].ask(&make_key(5, ""));
    site.aws
        .fault("--operation Decrypt --kind delay --milliseconds 1000 --count 1000");
    let before = site.aws.calls("Decrypt");
    let began = Instant::now();
    for peer in &mut peers {
        write_frame(&mut peer.0, &get_key(5, 1)).unwrap();
    }
    for peer in &mut peers {
        given(peer.answer().unwrap());
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(site.aws.calls("Decrypt") - before, 8);
}

#[test]
fn a_rewrapped_key_is_served_after_its_first_master_key_is_disabled() {
    let mut site = Site::new(&format!("key_cache = session\n{ALL_OF_DB1}"));
    site.server.start(&site.aws);
    site.server.unlock(&site.aws);
    let mut peer = site.peer("db1", &["db1.example"]);
    peer.ask(&make_key(10, ""));
    let key = given(peer.ask(&get_key(10, 1)));

    site.aws.key(&["--alias", "alias/new"]);
    let directory = site.sandbox.directory("pulled");
    let directory = directory.to_str().unwrap();
    let store = format!("--store={}/db1", site.store.location());
    // By itself, the name space is no key store of the tools.
    let name_space = site.store.path().join("db1");
    fs::write(name_space.join("conditional-put-check"), "").unwrap();
    for arguments in [
        &["pull", &store, directory][..],
        &["rewrap", "--to=alias/new", &store, directory],
    ] {
        let output = site.aws.program("kms-data-keys", arguments).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let first = site.aws.cli(&[
        "kms",
        "describe-key",
        "--key-id=alias/mariadb",
        "--query=KeyMetadata.KeyId",
        "--output=text",
    ]);
    site.aws
        .cli(&["kms", "disable-key", "--key-id", first.trim()]);
    assert_eq!(given(peer.ask(&get_key(10, 1))), key);
}

#[test]
fn a_key_server_that_never_answers_does_not_hide_the_session_of_the_next_one() {
    let site = Site::unlocked(ALL_OF_DB1);
    // Accepts connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let tls = site.authority.issue("db1", &["db1.example"], 100 * DAY);
    let host = Host::with_upstream(&[silent, site.server.address()], &tls);
    wait_until("the state of the second server", || {
        let answer = Peer::connect(&host.socket()).ask(&Request::Session);
        matches!(answer, Reply::Session(state) if state.phase == SessionPhase::Open)
    });
}

/// Such as an IPv6 address where a firewall drops IPv6.
#[test]
fn an_address_that_does_not_answer_does_not_hide_the_next_one_of_the_name() {
    let mut site = Site::new(ALL_OF_DB1);
    site.server.listen = "127.0.0.9";
    site.server.start(&site.aws);
    site.server.unlock(&site.aws);
    let port = site.server.port;
    let silent = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listen(&silent, Backlog::new(0).unwrap()).unwrap();
    let address = silent.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queue.push(stream);
    }
    let hosts = site.sandbox.write(
        "hosts",
        "127.0.0.1 keys1.example localhost\n127.0.0.9 keys1.example\n",
    );
    let in_hosts = |command: &Command| after_mounting(&hosts, "/etc/hosts", command);
    let sandbox = Sandbox::new();
    let tls = site.authority.issue("db1", &["db1.example"], 100 * DAY);
    let socket = configure_upstream(&sandbox, &[format!("keys1.example:{port}")], &tls);
    let config = format!("--config={}", sandbox.path("broker.config").display());

    let mut check = Command::new(dist("bin").join("iam-kms-wrapper"));
    check.args(["--check", &config, "true"]);
    let checked = in_hosts(&check).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.contains("it serves this host, and has a session"),
        "{said}"
    );

    let mut broker = Command::new(dist("bin").join("iam-kms-broker"));
    let broker = Process::start(&mut in_hosts(broker.arg(&config)));
    broker.wait_for("listening on");
    // Not an answer that nobody understands, because it takes more than a second.
    let directory = sandbox.directory("keys");
    fs::write(directory.join("aws-kms-key.10.1"), "wrapped").unwrap();
    let mut verify = Command::new(dist("bin").join("kms-data-keys"));
    verify
        .args(["verify", "--broker-socket"])
        .args([&socket, &directory]);
    let verified = verify.output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(
        said.contains("the key store has no version 1 of key 10"),
        "{said}"
    );
}
