//! Against a broker in the same process that behaves in every way.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use broker_api::{SessionPhase, SessionState};

use super::*;
use crate::test_broker::TestBroker;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

/// Gives up as soon as the broker waits.
fn never(_: &str) -> bool {
    false
}

fn session() -> Reply {
    Reply::Session(SessionState {
        phase: SessionPhase::Open,
        expiration_unix_seconds: None,
        fifo: None,
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
fn no_broker_is_told_with_the_socket_and_what_to_start() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let error = BrokerClient::new(&socket)
        .request(&Request::Session, LONG, never)
        .unwrap_err();
    assert!(matches!(error, BrokerError::NoBroker { .. }));
    assert!(!error.is_retryable());
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
    assert!(matches!(result, Err(BrokerError::NoBroker { .. })));
}

#[test]
fn silence_ends_with_the_time_limit_and_is_not_asked_twice() {
    let broker = TestBroker::with_connections(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, SHORT, never).unwrap_err();
    assert!(
        matches!(
            error,
            BrokerError::TimedOut {
                milliseconds: 100,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_retryable());
    assert_eq!(broker.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_byte_by_byte_does_not_stretch_the_time_limit() {
    let broker = TestBroker::with_connections(|mut stream| {
        let frame = [1, 0, 0x10, 0, 0].into_iter().chain(std::iter::repeat(0));
        for byte in frame {
            std::thread::sleep(Duration::from_millis(20));
            if stream.write_all(&[byte]).is_err() {
                return;
            }
        }
    });
    let client = BrokerClient::new(&broker.socket());
    let start = Instant::now();
    let error = client.request(&Request::Session, SHORT, never).unwrap_err();
    assert!(matches!(error, BrokerError::TimedOut { .. }), "{error}");
    assert!(start.elapsed() < LONG);
}

#[test]
fn rubbish_is_an_error_and_the_next_request_is_served() {
    let count = AtomicUsize::new(0);
    let broker = TestBroker::with_connections(move |mut stream| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            stream.write_all(&[1, 2, 0, 0, 0, 0xff, 0xff]).unwrap();
            return;
        }
        let _: Request = read_frame(&mut stream).unwrap();
        write_frame(&mut stream, &session()).unwrap();
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, LONG, never).unwrap_err();
    assert!(matches!(error, BrokerError::Conversation { .. }), "{error}");
    assert_eq!(
        client.request(&Request::Session, LONG, never).unwrap(),
        session()
    );
}

#[test]
fn a_broker_of_another_release_is_named_as_such() {
    let broker = TestBroker::with_connections(|mut stream| {
        let _ = read_frame::<Request>(&mut stream);
        stream.write_all(&[2, 0, 0, 0, 0]).unwrap();
    });
    let client = BrokerClient::new(&broker.socket());
    let error = client.request(&Request::Session, LONG, never).unwrap_err();
    assert!(
        error.to_string().contains("of different releases"),
        "{error}"
    );
    assert!(!error.is_retryable());
}

/// Says each [`SHORT`] that it waits, `count` times, and answers then.
fn waiting_broker(count: u32) -> TestBroker {
    TestBroker::with_connections(move |mut stream| {
        while read_frame::<Request>(&mut stream).is_ok() {
            for number in 0..count {
                std::thread::sleep(SHORT);
                let waiting = Reply::Waiting(number.to_string());
                if write_frame(&mut stream, &waiting).is_err() {
                    return;
                }
            }
            write_frame(&mut stream, &session()).unwrap();
        }
    })
}

#[test]
fn a_broker_that_says_that_it_waits_is_waited_for_beyond_the_time_limit() {
    let broker = waiting_broker(8);
    let client = BrokerClient::new(&broker.socket());
    let heard = std::sync::Mutex::new(Vec::new());
    let waiting = |why: &str| {
        heard.lock().unwrap().push(why.to_owned());
        true
    };
    let reply = client
        .request(&Request::Session, SHORT * 5, waiting)
        .unwrap();
    assert_eq!(reply, session());
    assert_eq!(heard.into_inner().unwrap().len(), 8);
}

#[test]
fn who_gives_up_waiting_leaves_the_connection() {
    let broker = waiting_broker(1);
    let client = BrokerClient::new(&broker.socket());
    for connections in 1..3 {
        let reply = client.request(&Request::Session, LONG, never).unwrap();
        assert_eq!(reply, Reply::Waiting("0".into()));
        assert_eq!(broker.connections.load(Ordering::SeqCst), connections);
    }
}
