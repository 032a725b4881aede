//! Reads all files of a data directory, several at a time, and collects the keys that they need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use data_files::{
    aria, binary_log,
    files::Files,
    innodb::{self, PAGE_0},
    redo_log::{self, LogEnd},
    scan::{self, Needs, Pages, ScanError},
    server_version::ServerVersion,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::progress::Progress;

/// With this number, the disk is the limit. Each thread has a buffer of 1 MiB.
const MAX_THREADS: usize = 8;

/// The need for a key version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    /// Number of pages, log blocks or binary logs that need it.
    pub pages: Pages,
    /// Number of files that contain them.
    pub files: u64,
    /// The first of these files by name.
    pub first: PathBuf,
}

/// The findings of all files.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// By key id and version.
    pub needs: BTreeMap<(u32, u32), Need>,
    /// Files whose needs are unknown.
    pub unreadable: Vec<(PathBuf, ScanError)>,
    /// The newest server version that a file names, and that file.
    pub newest_server: Option<(ServerVersion, PathBuf)>,
    /// Whether there are a system tablespace and one redo log.
    has_main_files: bool,
    log_end: Option<LogEnd>,
    flush_lsn: Option<u64>,
    /// Tablespaces that were read, by number.
    spaces: BTreeSet<u32>,
    /// Undo tablespaces that the system tablespace names.
    undo_spaces: BTreeSet<u32>,
}

impl Findings {
    /// Whether the server will recover when it starts. It may then read pages that were not counted.
    pub(super) fn must_recover(&self) -> bool {
        match self.log_end {
            Some(LogEnd::Unclean) => true,
            Some(LogEnd::CleanIfFlushedTo(lsn)) => self.flush_lsn != Some(lsn),
            Some(LogEnd::Clean) | None => false,
        }
    }

    /// Whether all files exist that InnoDB needs for a start.
    pub(super) fn has_all_of_innodb(&self) -> bool {
        self.has_main_files && self.undo_spaces.is_subset(&self.spaces)
    }

    fn note_server(&mut self, server: Option<ServerVersion>, path: &Path) {
        let newest = self.newest_server.as_ref().map(|(newest, _)| *newest);
        if let Some(server) = server.filter(|server| Some(*server) > newest) {
            self.newest_server = Some((server, path.to_owned()));
        }
    }

    fn add(&mut self, path: &Path, needs: Needs) {
        for (key, pages) in needs {
            let need = self.needs.entry(key).or_insert_with(|| Need {
                pages: Pages::default(),
                files: 0,
                first: path.to_owned(),
            });
            need.pages.all += pages.all;
            need.pages.free += pages.free;
            need.files += 1;
            if path < need.first {
                path.clone_into(&mut need.first);
            }
        }
    }
}

/// A unit of work of a thread.
enum Job<'a> {
    SystemTablespace(&'a [PathBuf]),
    Tablespace(&'a Path),
    RedoLog(&'a Path),
    AriaLog(&'a Path),
    TableDefinition(&'a Path),
    UpgradeInfo(&'a Path),
    BinaryLog(&'a Path),
    AriaTable(&'a Path),
}

/// Reads all files.
pub(super) fn read(mut files: Files) -> Findings {
    let unreadable = std::mem::take(&mut files.unreadable);
    let jobs = jobs(&files);
    let reader = Reader {
        progress: Progress::new(
            jobs.iter().map(Job::bytes).sum(),
            "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        ),
        findings: Mutex::new(Findings {
            unreadable,
            // Archived redo logs are listed as unreadable.
            has_main_files: !files.system_tablespace.is_empty()
                && (files.redo_logs.len() == 1 || !files.archived_redo_logs.is_empty()),
            ..Findings::default()
        }),
    };
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads.min(MAX_THREADS) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    reader.run(job);
                }
            });
        }
    });
    let mut findings = reader
        .findings
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    findings.unreadable.sort_by(|(a, _), (b, _)| a.cmp(b));
    // A log may be in a directory and in a list.
    findings.unreadable.dedup_by(|(a, _), (b, _)| a == b);
    findings
}

fn jobs(files: &Files) -> Vec<Job<'_>> {
    // The largest file is probably the first one.
    let mut jobs = vec![Job::SystemTablespace(&files.system_tablespace)];
    jobs.extend(files.tablespaces.iter().map(|path| Job::Tablespace(path)));
    jobs.extend(files.aria_indexes.iter().map(|path| Job::AriaTable(path)));
    jobs.extend(files.redo_logs.iter().map(|path| Job::RedoLog(path)));
    jobs.extend(files.aria_logs.iter().map(|path| Job::AriaLog(path)));
    let definitions = files.table_definitions.iter();
    jobs.extend(definitions.map(|path| Job::TableDefinition(path)));
    jobs.extend(files.upgrade_info.iter().map(|path| Job::UpgradeInfo(path)));
    jobs.extend(files.binary_logs.iter().map(|path| Job::BinaryLog(path)));
    jobs
}

impl Job<'_> {
    /// Returns the number of bytes that are read sequentially.
    fn bytes(&self) -> u64 {
        let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        match self {
            Self::SystemTablespace(paths) => paths.iter().map(|path| length(path)).sum(),
            Self::Tablespace(path) => length(path),
            Self::AriaTable(index) => length(index) + length(&aria::data_file(index)),
            Self::RedoLog(_)
            | Self::AriaLog(_)
            | Self::TableDefinition(_)
            | Self::UpgradeInfo(_)
            | Self::BinaryLog(_) => 0,
        }
    }
}

/// The state that the threads share.
struct Reader {
    progress: Progress,
    findings: Mutex<Findings>,
}

impl Reader {
    fn run(&self, job: &Job<'_>) {
        match job {
            Job::SystemTablespace(paths) => self.system_tablespace(paths),
            Job::Tablespace(path) => self.read(path, |file| {
                let layout = innodb::Layout::read(file)?;
                self.findings().spaces.insert(layout.space_id);
                Ok(layout.scan(file, &[PAGE_0])?.needs)
            }),
            Job::AriaTable(index) => self.aria_table(index),
            Job::BinaryLog(path) => self.read(path, |file| {
                let log = binary_log::scan(file)?;
                self.findings().note_server(log.server, path);
                Ok(log.needs)
            }),
            Job::RedoLog(path) => self.read(path, |file| {
                let log = redo_log::scan(file)?;
                let mut findings = self.findings();
                findings.log_end = Some(log.end);
                findings.note_server(log.creator, path);
                Ok(log.needs)
            }),
            Job::AriaLog(path) => self.server(path, ServerVersion::of_aria_log),
            Job::TableDefinition(path) => self.server(path, ServerVersion::of_table_definition),
            Job::UpgradeInfo(path) => self.server(path, ServerVersion::of_upgrade_info),
        }
    }

    /// Records the server version that a file names. The file is never encrypted.
    fn server(
        &self,
        path: &Path,
        of: impl FnOnce(&mut File) -> Result<Option<ServerVersion>, ScanError>,
    ) {
        let server = scan::open(path).and_then(|mut file| of(&mut file));
        let mut findings = self.findings();
        match server {
            Ok(server) => findings.note_server(server, path),
            Err(error) => findings.unreadable.push((path.to_owned(), error)),
        }
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the needs of a file that `inspect` finds, or why they are unknown.
    fn read(
        &self,
        path: &Path,
        inspect: impl FnOnce(&mut ProgressReader<'_>) -> Result<Needs, ScanError>,
    ) {
        let scanned = self
            .open(path)
            .and_then(|mut file| inspect(&mut file))
            .and_then(scan::check_versions);
        let mut findings = self.findings();
        match scanned {
            Ok(needs) => findings.add(path, needs),
            Err(error) => findings.unreadable.push((path.to_owned(), error)),
        }
    }

    fn open(&self, path: &Path) -> Result<ProgressReader<'_>, ScanError> {
        let file = scan::open(path)?;
        // This doubles the read-ahead. A failure does not matter.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        let progress = &self.progress;
        Ok(ProgressReader { file, progress })
    }

    fn system_tablespace(&self, paths: &[PathBuf]) {
        let Some(first) = paths.first() else {
            return;
        };
        let described = self.open(first).and_then(|mut file| {
            let layout = innodb::Layout::read(&mut file)?;
            let trx_sys = layout.read_trx_sys(&mut file)?;
            Ok((layout, trx_sys))
        });
        let (layout, trx_sys) = match described {
            Ok(described) => described,
            Err(error) => return self.findings().unreadable.push((first.clone(), error)),
        };
        let mut skipped = trx_sys.doublewrite_buffer;
        skipped.push(PAGE_0);
        {
            let mut findings = self.findings();
            findings.flush_lsn = Some(layout.flush_lsn);
            findings.undo_spaces = trx_sys.undo_spaces;
        }
        let mut pages = 0;
        for path in paths {
            let skipped = if path == first {
                skipped.as_slice()
            } else {
                &[]
            };
            self.read(path, |file| {
                let scanned = layout.scan(file, skipped)?;
                pages += scanned.pages;
                Ok(scanned.needs)
            });
        }
        if pages < u64::from(layout.size_pages) {
            let error = ScanError::Malformed(
                "is shorter than its page 0 says: a file in innodb_data_file_path is missing",
            );
            self.findings().unreadable.push((first.clone(), error));
        }
    }

    fn aria_table(&self, index: &Path) {
        let mut layout = None;
        self.read(index, |file| {
            layout = aria::Layout::read(file)?;
            layout.map_or_else(|| Ok(Needs::new()), |layout| layout.scan_index(file))
        });
        if let Some(layout) = layout {
            self.read(&aria::data_file(index), |file| layout.scan_data(file));
        }
    }
}

/// A file whose reading advances the progress bar.
struct ProgressReader<'a> {
    file: File,
    progress: &'a Progress,
}

impl Read for ProgressReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.progress.add(bytes as u64);
        Ok(bytes)
    }
}

impl Seek for ProgressReader<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}
