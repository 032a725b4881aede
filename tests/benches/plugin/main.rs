//! Compares the plugin with OpenSSL, each called as the server calls it: init, updates, finish.
//!
//! `make bench-plugin` runs it.

#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod library;
mod openssl;
mod start;
mod table;

use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use end_to_end_tests::Scene;

use library::{Library, Version};
use openssl::OpenSsl;
use table::{Pair, Row};

#[derive(Clone, Copy, PartialEq)]
pub enum Algorithm {
    Cbc,
    Ctr,
}

const IV: [u8; 16] = [0x3c; 16];
/// Number of binlog events. Their pieces have the same lengths in each run.
const EVENTS: usize = 64;
const PIECES: usize = 4;
const PAGE_BYTES: usize = 16 * 1024;
const SAMPLES: usize = 100;

struct Key {
    algorithm: Algorithm,
    of: Version,
    bytes: Vec<u8>,
}

fn key(algorithm: Algorithm, id: u32, length_bytes: usize) -> Key {
    Key {
        algorithm,
        of: Version { id, version: 1 },
        bytes: vec![id as u8; length_bytes],
    }
}

/// Writes a key file for each key.
fn write_key_files(keys: &[Key], scene: &Scene, directory: &Path) {
    for key in keys {
        let extension = match key.algorithm {
            Algorithm::Cbc => "",
            Algorithm::Ctr => ".ctr",
        };
        let file = directory.join(format!("aws-kms-key.{}.1{extension}", key.of.id));
        let hex: String = key.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        scene.aws.wrap_key(&scene.sandbox, &hex, &file);
    }
}

/// Returns lengths from 20 to 300 bytes.
fn pieces() -> Vec<[usize; PIECES]> {
    let mut state: u32 = 1;
    let mut length = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        20 + (state >> 16) as usize % 281
    };
    (0..EVENTS)
        .map(|_| [(); PIECES].map(|()| length()))
        .collect()
}

/// Times both in turns, because the speed of a machine changes from one second to the next. Criterion decides how many
/// calls make a turn, and reports the first of the two.
fn pairs(
    criterion: &mut Criterion,
    name: &str,
    mut ours: impl FnMut(u64) -> Duration,
    mut peer: impl FnMut(u64) -> Duration,
) -> Vec<Pair> {
    let mut pairs = Vec::new();
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|calls| {
            let (of_ours, of_peer) = (ours(calls), peer(calls));
            let nanoseconds = |time: Duration| time.as_nanos() as f64 / calls as f64;
            pairs.push(Pair {
                ours: nanoseconds(of_ours),
                peer: nanoseconds(of_peer),
            });
            of_ours
        });
    });
    // The first ones are criterion's warm-up.
    pairs.split_off(pairs.len().saturating_sub(SAMPLES))
}

fn timed(mut call: impl FnMut()) -> impl FnMut(u64) -> Duration {
    move |calls| {
        let start = Instant::now();
        for _ in 0..calls {
            call();
        }
        start.elapsed()
    }
}

impl Key {
    fn mode(&self) -> String {
        let name = match self.algorithm {
            Algorithm::Cbc => "CBC",
            Algorithm::Ctr => "CTR",
        };
        format!("AES-{} {name}", self.bytes.len() * 8)
    }
}

fn ciphers(criterion: &mut Criterion, library: Library, key: &Key) -> Vec<Row> {
    let mut rows = Vec::new();
    let source = vec![0x5a; PAGE_BYTES];
    let mut peer = OpenSsl::new();
    let directions: &[_] = match key.algorithm {
        Algorithm::Cbc => &[(" decryption", false), (" encryption", true)],
        Algorithm::Ctr => &[("", true)],
    };
    for (direction, encrypt) in directions {
        for bytes in [512, PAGE_BYTES] {
            let (mut our_result, mut their_result) = (vec![0; bytes], vec![0; bytes]);
            let name = format!("{}{direction}, {bytes} bytes", key.mode());
            let ours = || {
                let buffers = (black_box(&source[..bytes]), &mut *our_result);
                library.crypt(&key.bytes, &IV, key.of, *encrypt, buffers, &[bytes]);
            };
            let theirs = || {
                let buffers = (black_box(&source[..bytes]), &mut *their_result);
                peer.crypt(&key.bytes, &IV, key.algorithm, *encrypt, buffers, &[bytes]);
            };
            let pairs = pairs(criterion, &name, timed(ours), timed(theirs));
            assert_eq!(our_result, their_result, "{name}");
            rows.push(Row { name, pairs });
        }
    }
    rows
}

/// Encrypts as a server does for its binlog: an init, a few short updates and a finish for each event. Also makes the
/// same updates in one context.
fn binlog(criterion: &mut Criterion, library: Library, key: &Key) -> Vec<Row> {
    let mut rows = Vec::new();
    let source = vec![0x5a; PAGE_BYTES];
    let (mut our_result, mut their_result) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
    let mut peer = OpenSsl::new();
    let pieces = pieces();
    let events: Vec<_> = pieces.iter().map(<[usize; PIECES]>::as_slice).collect();
    let one_context = &pieces.as_flattened()[..PAGE_BYTES / 300];
    for (stream, contexts) in [
        (format!("{EVENTS} events of a binlog"), events),
        (
            format!("{} pieces in one context", one_context.len()),
            vec![one_context],
        ),
    ] {
        let name = format!("{}, {stream}", key.mode());
        let ours = || {
            for lengths in &contexts {
                let buffers = (black_box(&*source), &mut *our_result);
                library.crypt(&key.bytes, &IV, key.of, true, buffers, lengths);
            }
        };
        let theirs = || {
            for lengths in &contexts {
                let buffers = (black_box(&*source), &mut *their_result);
                peer.crypt(&key.bytes, &IV, key.algorithm, true, buffers, lengths);
            }
        };
        let pairs = pairs(criterion, &name, timed(ours), timed(theirs));
        rows.push(Row { name, pairs });
    }
    rows
}

fn key_lookups(criterion: &mut Criterion, library: Library) -> Vec<Pair> {
    let mut key = [0; 32];
    let latest_version = || {
        library.latest_version(black_box(1));
    };
    let get_key = || {
        library.key(black_box(Version { id: 1, version: 1 }), &mut key);
    };
    let name = "get_latest_key_version, get_key";
    pairs(criterion, name, timed(latest_version), timed(get_key))
}

/// Makes the same number of calls in one thread and in each of two threads. The time is the same if the threads do not
/// delay each other.
fn threads(criterion: &mut Criterion, library: Library, key: &Key) -> Vec<Pair> {
    let work = |calls: u64| {
        let source = vec![0x5a; PAGE_BYTES];
        let mut destination = vec![0; PAGE_BYTES];
        let mut bytes = [0; 32];
        for _ in 0..calls {
            let version = library.latest_version(black_box(key.of.id));
            library.key(Version { version, ..key.of }, &mut bytes);
            let buffers = (source.as_slice(), destination.as_mut_slice());
            library.crypt(&key.bytes, &IV, key.of, true, buffers, &[512]);
        }
    };
    pairs(
        criterion,
        "two threads, one",
        |calls| in_threads(2, || work(calls)),
        |calls| in_threads(1, || work(calls)),
    )
}

fn in_threads(count: usize, work: impl Fn() + Sync) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(&work);
        }
    });
    start.elapsed()
}

fn main() {
    let keys = [
        key(Algorithm::Cbc, 1, 16),
        key(Algorithm::Ctr, 2, 16),
        key(Algorithm::Cbc, 3, 32),
        key(Algorithm::Ctr, 4, 32),
    ];
    // Once the plugin has started, it needs neither broker nor local-aws.
    let scene = Scene::new().with_broker();
    let wrapper = scene.start_with_code(&["sleep", "3600"]);
    let directory = scene.sandbox.directory("keys");
    write_key_files(&keys, &scene, &directory);
    let library = start::measure(&scene, &directory);
    drop((wrapper, scene));

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3))
        .sample_size(SAMPLES)
        .without_plots()
        .configure_from_args();
    let mut rows = Vec::new();
    for key in &keys {
        rows.extend(ciphers(&mut criterion, library, key));
        rows.extend(binlog(&mut criterion, library, key));
    }
    let lookups = key_lookups(&mut criterion, library);
    let threads = threads(&mut criterion, library, &keys[1]);
    table::print(&rows, &lookups, &threads);
}
