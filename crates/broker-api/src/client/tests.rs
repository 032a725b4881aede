//! Against a broker in the same process whose behaviour each test chooses.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::test_broker::TestBroker;
use crate::{KmsSettings, SessionPhase, SessionState, WaitReason};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

/// Stops waiting as soon as the broker says that the request waits.
fn never(_: &Waiting) -> bool {
    false
}

fn session() -> Reply {
    Reply::Session(SessionState {
        phase: SessionPhase::Open,
        expiration_unix_seconds: None,
        fifo: None,
        kms: KmsSettings::default(),
        key_store: None,
        has_key_server: false,
    })
}

fn waiting(message: &str) -> Reply {
    Reply::Waiting(Waiting {
        reason: WaitReason::Session,
        message: message.into(),
    })
}

#[test]
fn a_connection_serves_many_requests() {
    let broker = TestBroker::new(|_| session());
    let client = BrokerClient::new(&broker.socket());
    for _ in 0..5 {
        client.request(&Request::Session, LONG, never).unwrap();
    }
    assert_eq!(broker.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn threads_do_not_wait_for_each_others_connections() {
    let together = std::sync::Arc::new(std::sync::Barrier::new(4));
    let broker = TestBroker::new(move |_| {
        together.wait();
        session()
    });
    let client = BrokerClient::new(&broker.socket());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| client.request(&Request::Session, LONG, never).unwrap());
        }
    });
}

#[test]
fn a_kept_connection_that_broke_is_replaced() {
    let broker = TestBroker::with_connections(|mut stream| {
        // One answer to each connection, and then it is closed.
        if read_frame::<Request>(&mut stream).is_ok() {
            write_frame(&mut stream, &session()).unwrap();
        }
    });
    let client = BrokerClient::new(&broker.socket());
    for _ in 0..3 {
        client.request(&Request::Session, LONG, never).unwrap();
    }
    assert_eq!(broker.connections.load(Ordering::SeqCst), 3);
}

#[test]
fn a_missing_broker_is_reported_with_the_socket_and_what_to_start() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let error = BrokerClient::new(&socket)
        .request(&Request::Session, LONG, never)
        .unwrap_err();
    assert!(matches!(error, ClientError::NoBroker { .. }));
    assert!(!error.is_retryable() && error.is_absence());
    let text = error.to_string();
    for part in [
        socket.to_str().unwrap(),
        "iam-kms-wrapper",
        "iam-kms-broker",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_an_error() {
    let client = BrokerClient::new(Path::new(&"x".repeat(200)));
    let result = client.request(&Request::Session, LONG, never);
    assert!(matches!(result, Err(ClientError::NoBroker { .. })));
}

#[test]
fn silence_ends_with_the_time_limit_and_the_request_is_not_repeated() {
    let broker = TestBroker::with_connections(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, SHORT, never).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::TimedOut {
                milliseconds: 100..,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_retryable() && !error.is_absence());
    assert_eq!(broker.connections.load(Ordering::SeqCst), 1);
}

/// Answers the first request of each connection, and no other.
fn broker_that_falls_silent() -> TestBroker {
    TestBroker::with_connections(|mut stream| {
        let _: Request = read_frame(&mut stream).unwrap();
        write_frame(&mut stream, &session()).unwrap();
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

#[test]
fn silence_on_a_kept_connection_ends_with_the_time_limit_and_opens_no_other() {
    let broker = broker_that_falls_silent();
    let client = BrokerClient::new(&broker.socket());
    client.request(&Request::Session, LONG, never).unwrap();
    let error = client.request(&Request::Session, SHORT, never).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert_eq!(connections_before_the_next(&broker), 1);
}

/// Counts the connections so far by making another, which the broker accepts after them.
fn connections_before_the_next(broker: &TestBroker) -> usize {
    let client = BrokerClient::new(&broker.socket());
    client.request(&Request::Session, LONG, never).unwrap();
    broker.connections.load(Ordering::SeqCst) - 1
}

#[test]
fn an_interrupted_call_on_a_kept_connection_opens_no_other() {
    let broker = broker_that_falls_silent();
    let client = BrokerClient::new(&broker.socket());
    client.request(&Request::Session, LONG, never).unwrap();
    let patience = Patience {
        silence: LONG,
        deadline: None,
        is_interrupted: &|| true,
    };
    let error = client
        .request(&Request::Session, patience, never)
        .unwrap_err();
    assert!(matches!(error, ClientError::Interrupted), "{error}");
    assert_eq!(connections_before_the_next(&broker), 1);
}

#[test]
fn eight_connections_are_kept_and_those_beyond_are_closed() {
    const REQUESTS: usize = MAX_IDLE + 1;
    let together = std::sync::Barrier::new(REQUESTS);
    let broker = TestBroker::new(move |_| {
        together.wait();
        session()
    });
    let client = BrokerClient::new(&broker.socket());
    let ask_together = || {
        std::thread::scope(|scope| {
            for _ in 0..REQUESTS {
                scope.spawn(|| client.request(&Request::Session, LONG, never).unwrap());
            }
        });
        broker.connections.load(Ordering::SeqCst)
    };
    assert_eq!(ask_together(), REQUESTS);
    assert_eq!(ask_together(), REQUESTS + 1);
}

#[test]
fn only_root_our_own_user_and_the_owner_of_the_directory_may_listen() {
    for (user, may) in [(0, true), (1000, true), (27, true), (3001, false)] {
        assert_eq!(may_listen(user, 1000, Some(27)), may, "{user}");
    }
    assert!(!may_listen(27, 1000, None));
}

#[test]
fn an_answer_byte_by_byte_does_not_stretch_the_time_limit() {
    let broker = TestBroker::with_connections(|mut stream| {
        let frame = [2, 0, 0x10, 0, 0].into_iter().chain(std::iter::repeat(0));
        for byte in frame {
            std::thread::sleep(Duration::from_millis(20));
            if stream.write_all(&[byte]).is_err() {
                return;
            }
        }
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, SHORT, never).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
}

#[test]
fn an_answer_that_is_not_a_message_is_an_error_and_the_next_request_is_served() {
    let count = AtomicUsize::new(0);
    let broker = TestBroker::with_connections(move |mut stream| {
        // A socket that is closed before its request is read resets the connection.
        let _: Request = read_frame(&mut stream).unwrap();
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            stream.write_all(&[2, 2, 0, 0, 0, 0xff, 0xff]).unwrap();
            return;
        }
        write_frame(&mut stream, &session()).unwrap();
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, LONG, never).unwrap_err();
    assert!(matches!(error, ClientError::Conversation { .. }), "{error}");
    assert!(!error.is_absence());
    assert_eq!(
        client.request(&Request::Session, LONG, never).unwrap(),
        session()
    );
}

#[test]
fn a_broker_of_another_release_is_named_as_such() {
    let broker = TestBroker::with_connections(|mut stream| {
        let _ = read_frame::<Request>(&mut stream);
        stream.write_all(&[3, 0, 0, 0, 0]).unwrap();
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, LONG, never).unwrap_err();
    assert!(
        error.to_string().contains("are of different releases"),
        "{error}"
    );
    assert!(!error.is_retryable());
}

/// Says `count` times, every [`SHORT`], that the request waits, and then answers.
fn waiting_broker(count: u32) -> TestBroker {
    TestBroker::with_connections(move |mut stream| {
        while read_frame::<Request>(&mut stream).is_ok() {
            for number in 0..count {
                std::thread::sleep(SHORT);
                if write_frame(&mut stream, &waiting(&number.to_string())).is_err() {
                    return;
                }
            }
            write_frame(&mut stream, &session()).unwrap();
        }
    })
}

#[test]
fn the_time_limit_starts_again_whenever_the_broker_says_that_the_request_waits() {
    let broker = waiting_broker(35);
    let client = BrokerClient::new(&broker.socket());
    let heard = std::sync::Mutex::new(Vec::new());
    let listen = |waiting: &Waiting| {
        heard.lock().unwrap().push(waiting.message.clone());
        true
    };
    let reply = client
        .request(&Request::Session, SHORT * 30, listen)
        .unwrap();
    assert_eq!(reply, session());
    assert_eq!(heard.into_inner().unwrap().len(), 35);
}

#[test]
fn a_caller_that_stops_waiting_closes_the_connection() {
    let broker = waiting_broker(1);
    let client = BrokerClient::new(&broker.socket());
    for connections in 1..3 {
        let reply = client.request(&Request::Session, LONG, never).unwrap();
        assert_eq!(reply, waiting("0"));
        assert_eq!(broker.connections.load(Ordering::SeqCst), connections);
    }
}

#[test]
fn a_deadline_ends_the_wait_even_if_the_broker_says_that_the_request_waits() {
    let broker = waiting_broker(u32::MAX);
    let client = BrokerClient::new(&broker.socket());
    let patience = Patience {
        silence: LONG,
        deadline: Some(Instant::now() + 5 * SHORT),
        is_interrupted: &|| false,
    };
    let error = client
        .request(&Request::Session, patience, |_| true)
        .unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
}

#[test]
fn a_call_ends_when_its_answer_is_no_longer_wanted() {
    let (_unplugged, silence) = std::sync::mpsc::channel::<()>();
    let silence = Mutex::new(silence);
    let broker = TestBroker::with_connections(move |_stream| {
        // The connection stays open until the test ends.
        let _ = silence.lock().unwrap().recv();
    });
    let client = BrokerClient::new(&broker.socket());
    let start = Instant::now();
    let patience = Patience {
        silence: LONG,
        deadline: None,
        is_interrupted: &|| start.elapsed() > SHORT,
    };
    let error = client
        .request(&Request::Session, patience, never)
        .unwrap_err();
    assert!(matches!(error, ClientError::Interrupted), "{error}");
}

/// Answers version 1 only, as the broker of release 0.1.0.
fn old_broker() -> TestBroker {
    TestBroker::with_connections(|mut stream| {
        let old = version1::PROTOCOL_VERSION;
        while read_frame_of::<version1::Request>(old, &mut stream).is_ok() {
            let state = version1::Reply::Session(version1::SessionState {
                phase: SessionPhase::Open,
                expiration_unix_seconds: None,
                fifo: None,
            });
            write_frame_of(old, &mut stream, &state).unwrap();
        }
    })
}

#[test]
fn a_broker_of_an_older_release_is_recognised_and_the_message_says_to_restart_it() {
    let broker = old_broker();
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, LONG, never).unwrap_err();
    assert!(matches!(error, ClientError::OlderRelease { .. }), "{error}");
    assert!(error.to_string().contains("restart it"), "{error}");
}

#[test]
fn a_broker_that_closes_a_connection_is_not_taken_for_an_older_one() {
    let count = AtomicUsize::new(0);
    let broker = TestBroker::with_connections(move |mut stream| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            return;
        }
        let old = version1::PROTOCOL_VERSION;
        let _: version1::Request = read_frame_of(old, &mut stream).unwrap();
        let waiting = version1::Reply::Waiting(String::new());
        write_frame_of(old, &mut stream, &waiting).unwrap();
        let _: Request = read_frame(&mut stream).unwrap();
        write_frame(&mut stream, &session()).unwrap();
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, LONG, never).unwrap_err();
    assert!(matches!(error, ClientError::Conversation { .. }), "{error}");
    assert!(error.is_retryable() && error.is_absence());
}

#[test]
fn a_socket_in_a_directory_that_every_user_can_write_is_not_used() {
    use std::os::unix::fs::PermissionsExt;

    let broker = TestBroker::new(|_| session());
    let socket = broker.socket();
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(socket.parent().unwrap(), mode).unwrap();
    let error = BrokerClient::new(&socket)
        .request(&Request::Session, LONG, never)
        .unwrap_err();
    assert!(
        matches!(error, ClientError::UntrustedDirectory { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("every user can write"),
        "{error}"
    );
    assert_eq!(broker.request_count(), 0);
}

#[test]
fn only_the_end_of_the_connection_is_a_disconnect() {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};

    assert!(FrameError::Closed.is_disconnect());
    for kind in [ConnectionReset, BrokenPipe, UnexpectedEof] {
        assert!(FrameError::Io(kind.into()).is_disconnect(), "{kind}");
    }
    for kind in [TimedOut, INTERRUPTION] {
        assert!(!FrameError::Io(kind.into()).is_disconnect(), "{kind}");
    }
}

#[test]
fn only_a_policy_that_confines_this_process_is_named() {
    for (label, expected) in [
        ("system_u:system_r:mysqld_t:s0\0", Some("mysqld_t")),
        (
            "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0",
            None,
        ),
        ("mariadbd (enforce)\n", Some("mariadbd (enforce)")),
        ("unconfined\n", None),
        ("", None),
    ] {
        assert_eq!(policy(label).as_deref(), expected, "{label:?}");
    }
    let refused = |policy: Option<&str>| {
        ClientError::NotAllowed {
            socket: "/run/broker.sock".into(),
            user: 999,
            policy: policy.map(str::to_owned),
            source: Errno::EACCES.into(),
        }
        .to_string()
    };
    assert!(refused(None).ends_with("restart this process"));
    let by_policy = refused(Some("mysqld_t"));
    assert!(
        by_policy.ends_with(
            ". Or the policy that confines this process, mysqld_t, denies it: run iam-kms-wrapper --check"
        ),
        "{by_policy}"
    );
}
