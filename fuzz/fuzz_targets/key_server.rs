//! What a client sends to a key server inside TLS: each frame is a request or ends the connection, and no request gets
//! further than the client's section of the configuration allows.

#![no_main]

use std::{fs, sync::LazyLock};

use aws_session::config::{ClientConfig, Config};
use broker_api::{PROTOCOL_VERSION, Request};
use iam_kms_broker::fuzzing::requests;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

const MASTER_KEY: &str = "alias/mariadb";
/// What `key_ids` says.
const KEY_IDS: std::ops::RangeInclusive<u32> = 10..=19;
/// The shortest frame: a header, and a body of one byte.
const SHORTEST_FRAME_BYTES: usize = 6;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

/// One client that may make keys, and one that may not.
static CLIENTS: LazyLock<[ClientConfig; 2]> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.config");
    let text = format!(
        "[kms]\nkms_mfa_id = arn:aws:iam::111122223333:mfa/mariadb\nmaster_key_id = {MASTER_KEY}\n\
         key_store = file:///keys\ntls_listen = 127.0.0.1:7443\ntls_certificate = /a.pem\ntls_key = /a.key\n\
         tls_client_ca = /ca.pem\n[client \"db1\"]\nkey_ids = 10-19\nmay_make = true\n\
         [client \"db2\"]\nkey_ids = 10-19\n"
    );
    fs::write(&path, text).unwrap();
    let clients = Config::read(&path).unwrap().broker.key_server.unwrap().clients;
    clients.try_into().unwrap()
});

fn check(bytes: &[u8]) {
    for client in CLIENTS.iter() {
        let read = RUNTIME.block_on(requests(bytes, client, Some(MASTER_KEY)));
        assert!(read.len() * SHORTEST_FRAME_BYTES <= bytes.len());
        for (request, _) in read.iter().filter(|(_, is_refused)| !is_refused) {
            match request {
                Request::Session | Request::ListKeys(_) => {}
                Request::GetKey(request) => assert!(KEY_IDS.contains(&request.context.key_id)),
                Request::FindKey(request) => assert!(KEY_IDS.contains(&request.context.key_id)),
                Request::MakeKey(request) => {
                    let generate = &request.generate;
                    assert!(client.may_make && KEY_IDS.contains(&generate.context.key_id));
                    assert!([16, 32].contains(&generate.key_bytes));
                    assert!(["", MASTER_KEY].contains(&generate.master_key_id.as_str()));
                }
                request => panic!("{request:?}"),
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    check(data);
    // With headers that fit, so that bodies are reached sooner.
    let mut framed = Vec::new();
    for body in data.chunks(usize::from(data.first().copied().unwrap_or_default()) + 1) {
        let length = u32::try_from(body.len()).unwrap();
        framed.push(PROTOCOL_VERSION);
        framed.extend(length.to_le_bytes());
        framed.extend(body);
    }
    check(&framed);
});
