//! Prints the results of the benchmarks as the table of docs/src/benchmarks.md.

/// How many times as fast as OpenSSL the plugin must be, by the beginning of the row's name.
const TARGETS: &[(&str, f64)] = &[
    ("AES-128 CTR, 512 bytes", 3.0),
    ("AES-128 CTR, 16384 bytes", 2.0),
    ("AES-128 CBC decryption, 512 bytes", 2.5),
    ("AES-128 CBC decryption, 16384 bytes", 2.0),
    ("AES-128 CBC encryption, 512 bytes", 1.6),
    ("AES-128 CBC encryption, 16384 bytes", 0.95),
    ("AES-128 CTR, 64 events", 2.5),
    ("AES-128 CBC, 64 events", 1.6),
];

const LOOK_UP_TARGET_NANOSECONDS: f64 = 50.0;
const THREADS_TARGET: f64 = 1.8;

/// A turn of the plugin followed by a turn of its peer, in nanoseconds per call.
#[derive(Clone, Copy)]
pub struct Pair {
    /// The plugin.
    pub ours: f64,
    /// The peer.
    pub peer: f64,
}

/// Measurements of the plugin and of OpenSSL.
pub struct Row {
    /// The work.
    pub name: String,
    /// The times.
    pub pairs: Vec<Pair>,
}

/// Prints the medians of the benchmarks that were run. `lookups` pairs `get_latest_key_version` with `get_key`;
/// `threads` pairs two threads with one, all of which do the same amount of work.
pub fn print(rows: &[Row], lookups: &[Pair], threads: &[Pair]) {
    println!(
        "\n{:40} {:>8} {:>8} {:>7}",
        "(ns)", "ours", "OpenSSL", "faster"
    );
    for Row { name, pairs } in rows {
        let faster = median(pairs, |pair| pair.peer / pair.ours);
        let (Some(ours), Some(peer), Some(faster)) = (
            median(pairs, |pair| pair.ours),
            median(pairs, |pair| pair.peer),
            faster,
        ) else {
            continue;
        };
        let target = TARGETS.iter().find(|(row, _)| name.starts_with(row));
        let verdict = target.map(|(_, target)| verdict(*target, faster >= *target));
        let verdict = verdict.unwrap_or_default();
        println!("{name:40} {ours:8.0} {peer:8.0} {faster:7.2}{verdict}");
    }
    println!();
    let latest_version = median(lookups, |pair| pair.ours);
    let get_key = median(lookups, |pair| pair.peer);
    for (function, time) in [
        ("get_latest_key_version", latest_version),
        ("get_key", get_key),
    ] {
        if let Some(time) = time {
            let verdict = verdict(
                LOOK_UP_TARGET_NANOSECONDS,
                time < LOOK_UP_TARGET_NANOSECONDS,
            );
            println!("{function}: {time:.1} ns{verdict}");
        }
    }
    if let Some(gain) = median(threads, |pair| 2.0 * pair.peer / pair.ours) {
        let verdict = verdict(THREADS_TARGET, gain >= THREADS_TARGET);
        println!("two threads do {gain:.2} times what one does{verdict}");
    }
}

/// Returns a target and whether it was met.
pub fn verdict(target: f64, met: bool) -> String {
    format!(" (target {target}) {}", if met { "met" } else { "MISSED" })
}

fn median(pairs: &[Pair], value: fn(&Pair) -> f64) -> Option<f64> {
    let mut values: Vec<_> = pairs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
