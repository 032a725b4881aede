//! Metrics for the textfile collector of Prometheus' node_exporter.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;

use crate::DataKeysError;

/// Where the metrics go.
#[derive(Debug, Args)]
pub(crate) struct TextfileArguments {
    /// Also write metrics for node_exporter
    #[arg(long, value_name = "FILE.prom")]
    textfile: Option<PathBuf>,
}

impl TextfileArguments {
    /// The file, if one is wanted.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.textfile.as_deref()
    }
}

/// The metrics of one run.
pub(crate) struct Metrics {
    /// The subcommand, with which all names begin.
    command: &'static str,
    text: String,
}

impl Metrics {
    pub(crate) fn new(command: &'static str) -> Self {
        Self {
            command,
            text: String::new(),
        }
    }

    /// Adds a gauge named `iam_kms_COMMAND_NAME`, with one sample for each value of a label.
    pub(crate) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = (String, u64)>,
    ) {
        let full = self.begin(name, help);
        for (value, number) in samples {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            self.line(format_args!(
                "{full}{{{label}=\"{}\"}} {number}",
                value.replace('\n', "\\n")
            ));
        }
    }

    fn begin(&mut self, name: &str, help: &str) -> String {
        let full = format!("iam_kms_{}_{name}", self.command);
        self.line(format_args!("# HELP {full} {help}"));
        self.line(format_args!("# TYPE {full} gauge"));
        full
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Cannot fail: a String takes whatever fits into memory.
        let _ = writeln!(self.text, "{line}");
    }

    /// Writes the file, if one is wanted, with the time of the run. The collector never sees half of it.
    pub(crate) fn write(mut self, textfile: Option<&Path>) -> Result<(), DataKeysError> {
        let Some(path) = textfile else {
            return Ok(());
        };
        let full = self.begin(
            "last_run_timestamp_seconds",
            "When this was last determined.",
        );
        let now = unix_seconds(SystemTime::now());
        self.line(format_args!("{full} {now}"));
        replace(path, &self.text).map_err(|source| DataKeysError::Textfile {
            path: path.to_owned(),
            source,
        })
    }
}

/// Seconds since 1970-01-01 UTC; 0 for earlier times.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Writes a file beside `path`, under a name that the collector does not read, and renames it. Everybody may read
/// it: it contains no secrets, and node_exporter has a user of its own.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("it is not the name of a file"))?;
    // What people discard or show metrics with, such as the device /dev/null and the link /dev/stdout, must stay.
    if path
        .symlink_metadata()
        .is_ok_and(|metadata| !metadata.is_file())
    {
        return Err(io::Error::other("it is not a regular file"));
    }
    let temporary = path.with_file_name(format!(".{}.{}", name.display(), process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary)
        .and_then(|mut file| {
            // Whatever the umask is.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report. The file is absent if it could not be created.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{FileTypeExt, symlink},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn a_textfile_is_replaced_as_a_whole_and_readable_for_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verify.prom");
        fs::write(&path, "old").unwrap();
        let mut metrics = Metrics::new("verify");
        metrics.gauge(
            "key_versions",
            "Versions.",
            "result",
            [("a\"b\\c\n".into(), 7)],
        );
        metrics.write(Some(&path)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = "# HELP iam_kms_verify_key_versions Versions.\n\
            # TYPE iam_kms_verify_key_versions gauge\n\
            iam_kms_verify_key_versions{result=\"a\\\"b\\\\c\\n\"} 7\n\
            # HELP iam_kms_verify_last_run_timestamp_seconds When this was last determined.\n\
            # TYPE iam_kms_verify_last_run_timestamp_seconds gauge\n\
            iam_kms_verify_last_run_timestamp_seconds ";
        let time = text.strip_prefix(expected).expect(&text);
        assert!(time.trim().parse::<u64>().unwrap() > 1_700_000_000);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_textfile_that_cannot_be_written_is_an_error_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verify.prom");
        fs::create_dir(&path).unwrap();
        let error = Metrics::new("verify").write(Some(&path)).unwrap_err();
        assert!(error.to_string().contains("verify.prom"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_textfile_takes_the_place_of_nothing_but_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let [socket, link, file] =
            ["socket", "link", "file"].map(|name| directory.path().join(name));
        let _listener = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        for path in [&socket, &link, Path::new("/dev/null")] {
            let error = Metrics::new("verify").write(Some(path)).unwrap_err();
            assert!(error.to_string().contains("regular file"), "{error}");
        }
        assert!(socket.metadata().unwrap().file_type().is_socket());
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
