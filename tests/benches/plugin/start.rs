//! Measures how long a server with 1,000 key versions waits for the plugin at 20 ms for each KMS call, and how long it
//! would wait if the plugin loaded one key after the other.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use broker_api::{Decrypt, GenerateDataKey, KeyContext, Reply, Request, read_frame, write_frame};
use end_to_end_tests::{Scene, dist};

use crate::library::Library;
use crate::table::verdict;

const FIRST_ID: u32 = 1001;
const KEYS: u32 = 1000;
const CALL_MILLISECONDS: u32 = 20;
const TARGET_SECONDS: f64 = 1.5;

/// Makes the key files, starts the plugin in `directory`, which receives its manifest, and prints how long the start
/// takes. Returns the plugin.
pub fn measure(scene: &Scene, directory: &Path) -> Library {
    let socket = &scene.configuration.broker_socket;
    let mut broker = UnixStream::connect(socket).unwrap();
    let ids = FIRST_ID..FIRST_ID + KEYS;
    for id in ids.clone() {
        let file = directory.join(format!("aws-kms-key.{id}.1"));
        fs::write(file, new_key(&mut broker)).unwrap();
    }
    scene.aws.fault(&format!(
        "--operation Decrypt --kind delay --milliseconds {CALL_MILLISECONDS}"
    ));

    let start = Instant::now();
    unwrap_one_by_one(&mut broker, directory);
    let one_by_one = start.elapsed().as_secs_f64();

    // Where the plugin writes its manifest.
    std::env::set_current_dir(directory).unwrap();
    let plugin = dist("plugin/aws_key_management.so");
    let variables = [
        (c"broker_socket", socket.to_str().unwrap()),
        (c"keyfile_dir", directory.to_str().unwrap()),
    ];
    let start = Instant::now();
    let library = Library::start(&plugin, &variables);
    let seconds = start.elapsed().as_secs_f64();
    for id in ids {
        assert_eq!(library.latest_version(id), 1);
    }

    println!(
        "start with {KEYS} key versions, {CALL_MILLISECONDS} ms a call: {seconds:.2} s{}; one by \
         one {one_by_one:.1} s",
        verdict(TARGET_SECONDS, seconds < TARGET_SECONDS)
    );
    library
}

fn new_key(broker: &mut UnixStream) -> Vec<u8> {
    let request = GenerateDataKey {
        master_key_id: "alias/mariadb".into(),
        key_bytes: 16,
        context: KeyContext::default(),
    };
    write_frame(broker, &Request::GenerateDataKey(request)).unwrap();
    match read_frame(broker).unwrap() {
        Reply::Generated {
            ciphertext_blob, ..
        } => ciphertext_blob,
        reply => panic!("{reply:?}"),
    }
}

fn unwrap_one_by_one(broker: &mut UnixStream, directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let request = Decrypt {
            ciphertext_blob: fs::read(entry.unwrap().path()).unwrap(),
            check_value: None,
            context: KeyContext::default(),
        };
        write_frame(broker, &Request::Decrypt(request)).unwrap();
        match read_frame(broker).unwrap() {
            Reply::Decrypted { .. } => {}
            reply => panic!("{reply:?}"),
        }
    }
}
