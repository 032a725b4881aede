//! `check`: which key versions the files of a stopped server still need.
//!
//! Data is lost if a key is reported as not needed although it is. So any doubt (a damaged file, an
//! unknown format, an unknown server) makes the answer "unknown", and the advice is to move key files,
//! never to delete them.

mod reading;
mod stopped;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;
use data_files::{files::Files, server_version::TESTED_RELEASES};
use key_files::{
    key_directory::KeyDirectory,
    key_name::{KeyName, has_number},
};
use serde_json::json;
use tracing::warn;

use crate::{
    DataKeysError, Outcome, print, print_json, table,
    textfile::{Metrics, TextfileArguments},
};
use reading::{Findings, Need};
pub(crate) use stopped::{NotStopped, Stopped};

/// Show which data keys a stopped server needs, and which are missing
#[derive(Debug, Args)]
#[command(after_help = "\
Reads InnoDB tablespaces, the redo log, Aria tables, binary and relay logs; it
starts no server. The latest version of each key id is kept. Move key files that
are not needed to the backups, which may need them; never delete them. If another
server than MariaDB 10.5, 10.11 or 11.8 wrote the files, or for an InnoDB-based
binary log or archived redo log, no key is reported as not needed.

Exit status: 0 if all needed keys are present, 1 if one is missing, 125 if a
file is unreadable or unknown, or the server runs or was not shut down cleanly.")]
pub(crate) struct Arguments {
    /// The data directory
    #[arg(value_name = "DATADIR")]
    datadir: PathBuf,
    /// Other directories with undo tablespaces, redo or binary logs
    #[arg(value_name = "DIR")]
    further: Vec<PathBuf>,
    /// The directory of the key files, if it is another one
    #[arg(long, value_name = "DIR")]
    keyfile_dir: Option<PathBuf>,

    /// Print the table as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    textfile: TextfileArguments,
}

/// Whether a key version is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A file needs it.
    Needed,
    /// Only pages that InnoDB has freed need it.
    FreePages,
    /// The server will use it next.
    Latest,
    /// A file needs it, but it is missing.
    Missing,
    /// Nothing needs it.
    NotNeeded,
    /// Nothing that could be read needs it.
    Unknown,
}

impl State {
    const ALL: [Self; 6] = [
        Self::Needed,
        Self::FreePages,
        Self::Latest,
        Self::Missing,
        Self::NotNeeded,
        Self::Unknown,
    ];

    /// The word for it in JSON and metrics.
    fn identifier(self) -> String {
        self.word().to_lowercase().replace(' ', "_")
    }

    fn word(self) -> &'static str {
        match self {
            Self::Needed => "needed",
            Self::FreePages => "free pages",
            Self::Latest => "latest",
            Self::Missing => "MISSING",
            Self::NotNeeded => "not needed",
            Self::Unknown => "unknown",
        }
    }
}

/// A row of the table.
#[derive(Debug)]
struct Row<'a> {
    id: u32,
    version: u32,
    /// `None` if it is missing.
    key: Option<&'a KeyName>,
    state: State,
    need: Option<&'a Need>,
}

/// Prints the table and the key files that can be moved away.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let datadir =
        &arguments
            .datadir
            .canonicalize()
            .map_err(|source| DataKeysError::DataDirectory {
                path: arguments.datadir.clone(),
                source,
            })?;
    let directory = KeyDirectory::open(arguments.keyfile_dir.as_ref().unwrap_or(datadir))?;
    let keys = directory.list()?.keys;
    if keys.is_empty() {
        warn!(
            "there are no key files in '{}': name their directory with --keyfile-dir, and see that it is mounted",
            directory.path().display()
        );
    }
    let stopped = Stopped::lock(datadir, &arguments.further, &directory)?;
    let files = Files::find(datadir, &arguments.further);
    let findings = reading::read(files);
    drop(stopped);

    let doubts = doubts(&findings, datadir);
    for doubt in &doubts {
        warn!("{doubt}");
    }
    let rows = rows(&keys, &findings.needs, doubts.is_empty());
    let printed = match arguments.json {
        true => print_json(&as_json(&rows, &doubts, datadir)),
        false => print(&report(&rows, &directory, datadir)),
    };
    let written = printed.and(metrics(&rows, &findings).write(arguments.textfile.path()));
    if rows.iter().any(|row| row.state == State::Missing) {
        Outcome::Bad.despite(written)
    } else if doubts.is_empty() {
        Outcome::Good.despite(written)
    } else {
        Outcome::unknown(DataKeysError::Undetermined, written)
    }
}

/// Warns of reasons why more keys may be needed than were found.
fn doubts(findings: &Findings, datadir: &Path) -> Vec<String> {
    let unreadable = |(path, error): &(PathBuf, _)| {
        format!(
            "cannot determine which keys '{}' needs: it {error}",
            short(path, datadir).display()
        )
    };
    let mut doubts: Vec<_> = findings.unreadable.iter().map(unreadable).collect();
    match &findings.newest_server {
        Some((server, _)) if server.is_tested() => {}
        Some((server, path)) => doubts.push(format!(
            "'{}' was written by {server}, but this program has been tested only with files of MariaDB {}",
            short(path, datadir).display(),
            tested_releases()
        )),
        None => doubts.push(format!(
            "no file in '{}' says which version of MariaDB wrote it",
            datadir.display()
        )),
    }
    if !findings.has_all_of_innodb() {
        doubts.push(format!(
            "ibdata1, ib_logfile0 alone and the undo tablespaces are not all in '{}': name the directories of \
             innodb_log_group_home_dir and innodb_undo_directory too",
            datadir.display()
        ));
    }
    if findings.must_recover() {
        doubts.push(
            "the server was not shut down cleanly and will read more when it recovers: start it, stop it, and check again"
                .into(),
        );
    }
    doubts
}

/// Formats a list: "10.5, 10.11 and 11.8".
fn tested_releases() -> String {
    let mut names = TESTED_RELEASES
        .map(|(major, minor)| format!("{major}.{minor}"))
        .to_vec();
    let last = names.pop().unwrap_or_default();
    format!("{} and {last}", names.join(", "))
}

/// Combines key files and needs.
fn rows<'a>(
    keys: &'a [KeyName],
    needs: &'a BTreeMap<(u32, u32), Need>,
    all_read: bool,
) -> Vec<Row<'a>> {
    let latest: BTreeMap<u32, u32> = keys.iter().map(KeyName::number).collect();
    let mut rows: Vec<_> = keys
        .iter()
        .map(|key| {
            let need = needs.get(&key.number());
            let state = match need {
                Some(need) if need.pages.free < need.pages.all => State::Needed,
                _ if latest.get(&key.id) == Some(&key.version) => State::Latest,
                Some(_) => State::FreePages,
                None if all_read => State::NotNeeded,
                None => State::Unknown,
            };
            Row {
                id: key.id,
                version: key.version,
                key: Some(key),
                state,
                need,
            }
        })
        .collect();
    for (&(id, version), need) in needs {
        if !has_number(keys, (id, version)) {
            rows.push(Row {
                id,
                version,
                key: None,
                state: State::Missing,
                need: Some(need),
            });
        }
    }
    rows.sort_by_key(|row| (row.id, row.version));
    rows
}

fn report(rows: &[Row<'_>], directory: &KeyDirectory, datadir: &Path) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let number = |of: fn(&Need) -> u64| row.need.map_or(0, of).to_string();
            [
                row.id.to_string(),
                row.version.to_string(),
                row.key
                    .map_or_else(|| "-".into(), |key| key.algorithm.to_string()),
                row.state.word().to_owned(),
                number(|need| need.files),
                number(|need| need.pages.all),
                row.need.map_or_else(
                    || "-".into(),
                    |need| short(&need.first, datadir).display().to_string(),
                ),
            ]
        })
        .collect();
    let mut text = table::layout(
        [
            "ID",
            "VERSION",
            "ALGORITHM",
            "STATE",
            "FILES",
            "PAGES",
            "FIRST FILE",
        ],
        &cells,
    );
    let movable: Vec<_> = rows
        .iter()
        .filter(|row| row.state == State::NotNeeded)
        .filter_map(|row| row.key)
        .collect();
    if !movable.is_empty() {
        text.push_str(
            "\nNothing here needs these. Move them to a directory outside the data directory and keep them with the \
             backups, which may need them:\n",
        );
        for key in movable {
            text.push_str(&format!("  {}\n", directory.path_of(key).display()));
        }
    }
    let missing = rows.iter().filter(|row| row.state == State::Missing);
    if rows.iter().all(|row| row.key.is_none()) {
        // Files that are restored into a mount point are in the way of those that are mounted later.
        if let count @ 1.. = missing.count() {
            text.push_str(&format!(
                "\nThere is no key file in '{}', and {} MISSING: name the directory of the key files with --keyfile-dir, and see \
                 that it is mounted. If they are lost, restore them from a backup of the key files.\n",
                directory.path().display(),
                match count {
                    1 => "1 needed version is".into(),
                    more => format!("{more} needed versions are"),
                },
            ));
        }
        return text;
    }
    for row in missing {
        text.push_str(&format!(
            "\nKey {}, version {} is MISSING: restore its file, aws-kms-key.{0}.{1} or aws-kms-key.{0}.{1}.ctr, from a \
             backup of the key files.\n",
            row.id, row.version
        ));
    }
    text
}

fn as_json(rows: &[Row<'_>], doubts: &[String], datadir: &Path) -> serde_json::Value {
    let keys: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.id,
                "version": row.version,
                "algorithm": row.key.map(|key| key.algorithm.to_string()),
                "state": row.state.identifier(),
                "files": row.need.map_or(0, |need| need.files),
                "pages": row.need.map_or(0, |need| need.pages.all),
                "first_file": row.need.map(|need| short(&need.first, datadir).display().to_string()),
            })
        })
        .collect();
    json!({ "keys": keys, "doubts": doubts })
}

fn metrics(rows: &[Row<'_>], findings: &Findings) -> Metrics {
    let mut metrics = Metrics::new("check");
    let count = |state| rows.iter().filter(|row| row.state == state).count() as u64;
    metrics.gauge(
        "key_versions",
        "Key versions by the state that kms-data-keys check found.",
        "state",
        State::ALL.map(|state| (state.identifier(), count(state))),
    );
    metrics.gauge(
        "files",
        "Files whose keys kms-data-keys check could not determine.",
        "state",
        [("unreadable".into(), findings.unreadable.len() as u64)],
    );
    metrics
}

/// Shortens a path in the data directory.
fn short<'a>(path: &'a Path, datadir: &Path) -> &'a Path {
    path.strip_prefix(datadir).unwrap_or(path)
}
