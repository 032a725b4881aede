//! The plugin beside OpenSSL, each called as the server calls it: init, updates, finish.
//!
//! `make bench` runs it and prints the table that `table` makes of the results.

#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod library;
mod openssl;
mod start;

use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use end_to_end_tests::Scene;

use library::{Library, Version};
use openssl::OpenSsl;

#[derive(Clone, Copy, PartialEq)]
pub enum Algorithm {
    Cbc,
    Ctr,
}

const IV: [u8; 16] = [0x3c; 16];
/// Of the pieces that a binlog event is written in: the same ones at each run.
const EVENTS: usize = 64;
const PIECES: usize = 4;
const PAGE_BYTES: usize = 16 * 1024;

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

/// Makes a key file for each key.
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

/// Lengths from 20 to 300 bytes.
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

fn ciphers(criterion: &mut Criterion, library: Library, keys: &[Key]) {
    let source = vec![0x5a; PAGE_BYTES];
    let mut destination = vec![0; PAGE_BYTES];
    let mut peer = OpenSsl::new();
    for key in keys {
        let (name, directions) = match key.algorithm {
            Algorithm::Cbc => ("CBC", ["encryption", "decryption"].as_slice()),
            Algorithm::Ctr => ("CTR", ["both ways"].as_slice()),
        };
        for direction in directions {
            let encrypt = *direction != "decryption";
            let name = format!("AES-{} {name} {direction}", key.bytes.len() * 8);
            let mut group = criterion.benchmark_group(name);
            for bytes in [512, PAGE_BYTES] {
                let (source, destination) = (&source[..bytes], &mut destination[..bytes]);
                group.bench_function(BenchmarkId::new("ours", bytes), |bencher| {
                    bencher.iter(|| {
                        let buffers = (black_box(source), &mut *destination);
                        library.crypt(&key.bytes, &IV, key.of, encrypt, buffers, &[bytes])
                    });
                });
                let ours = destination.to_vec();
                group.bench_function(BenchmarkId::new("OpenSSL", bytes), |bencher| {
                    bencher.iter(|| {
                        let buffers = (black_box(source), &mut *destination);
                        peer.crypt(&key.bytes, &IV, key.algorithm, encrypt, buffers, &[bytes])
                    });
                });
                assert!(ours == *destination, "the results differ");
            }
            group.finish();
        }
    }
}

/// What a server writes to its binlog: for each event an init, a few short updates, a finish.
fn binlog(criterion: &mut Criterion, library: Library, keys: &[Key]) {
    let (source, mut destination) = (vec![0x5a; PAGE_BYTES], vec![0; PAGE_BYTES]);
    let mut peer = OpenSsl::new();
    let events = pieces();
    let one_context: Vec<usize> = events
        .iter()
        .flatten()
        .copied()
        .take(PAGE_BYTES / 300)
        .collect();
    for key in keys {
        let name = match key.algorithm {
            Algorithm::Cbc => "CBC",
            Algorithm::Ctr => "CTR",
        };
        let mut group = criterion.benchmark_group(format!(
            "AES-{} {name} binlog-like stream",
            key.bytes.len() * 8
        ));
        for (stream, lengths) in [
            (
                "events",
                events.iter().map(<[usize; PIECES]>::as_slice).collect(),
            ),
            ("one context", vec![one_context.as_slice()]),
        ] {
            group.bench_function(BenchmarkId::new("ours", stream), |bencher| {
                bencher.iter(|| {
                    for lengths in &lengths {
                        let buffers = (black_box(&*source), &mut *destination);
                        library.crypt(&key.bytes, &IV, key.of, true, buffers, lengths);
                    }
                });
            });
            group.bench_function(BenchmarkId::new("OpenSSL", stream), |bencher| {
                bencher.iter(|| {
                    for lengths in &lengths {
                        let buffers = (black_box(&*source), &mut *destination);
                        peer.crypt(&key.bytes, &IV, key.algorithm, true, buffers, lengths);
                    }
                });
            });
        }
        group.finish();
    }
}

fn key_lookups(criterion: &mut Criterion, library: Library) {
    let mut group = criterion.benchmark_group("key look-up");
    group.bench_function("get_latest_key_version", |bencher| {
        bencher.iter(|| library.latest_version(black_box(1)));
    });
    let mut key = [0; 32];
    group.bench_function("get_key", |bencher| {
        bencher.iter(|| library.key(black_box(Version { id: 1, version: 1 }), &mut key));
    });
    group.finish();
}

/// The same number of calls in each of one and of two threads: the time is the same if neither
/// waits for the other.
fn threads(criterion: &mut Criterion, library: Library, keys: &[Key]) {
    let key = keys
        .iter()
        .find(|key| key.algorithm == Algorithm::Ctr)
        .unwrap();
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
    let mut group = criterion.benchmark_group("threads");
    for count in [1, 2] {
        group.bench_function(
            BenchmarkId::new("get_key and 512 bytes", count),
            |bencher| {
                bencher.iter_custom(|calls| in_threads(count, || work(calls)));
            },
        );
    }
    group.finish();
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
    // Behind a broker and local-aws, which are not needed any more when the plugin has started.
    let scene = Scene::new().with_broker();
    let wrapper = scene.start_with_code(&["sleep", "3600"]);
    let directory = scene.sandbox.directory("keys");
    write_key_files(&keys, &scene, &directory);
    let library = start::measure(&scene, &directory);
    drop((wrapper, scene));

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3))
        .sample_size(100)
        .without_plots()
        .configure_from_args();
    ciphers(&mut criterion, library, &keys);
    binlog(&mut criterion, library, &keys);
    key_lookups(&mut criterion, library);
    threads(&mut criterion, library, &keys);
}
