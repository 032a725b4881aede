//! What is shown of each host: a table that fills in at a terminal, a line, or a JSON object.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::{hosts::Host, outcome::Outcome};

/// Widest column of names, in characters.
const MAX_NAME_CHARACTERS: usize = 40;

/// Lines of a terminal that the table leaves to what was there before.
const OTHER_LINES: usize = 2;

/// Refreshes of the table in a second.
const REFRESHES: u8 = 10;

/// Shows what becomes of the hosts.
pub struct Report<'a> {
    hosts: &'a [Host],
    expiration: Option<String>,
    form: Form,
}

enum Form {
    /// A row for each host, at a terminal that has room for all. Lines take its place at the end: a row is cut at the
    /// width of the terminal.
    Table(MultiProgress, Vec<ProgressBar>),
    /// A line for each host, in the order in which they answer.
    Lines,
    Json,
}

/// A line of the output for programs.
#[derive(Serialize)]
struct Line<'a> {
    host: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<&'a str>,
}

impl<'a> Report<'a> {
    /// Begins with nothing known of the hosts. `expiration` is the end of the session that they get.
    pub fn new(hosts: &'a [Host], expiration: Option<String>, is_json: bool) -> Self {
        let form = match table(hosts).filter(|_| !is_json) {
            Some((table, rows)) => Form::Table(table, rows),
            None if is_json => Form::Json,
            None => Form::Lines,
        };
        Self {
            hosts,
            expiration,
            form,
        }
    }

    /// Says that the host with this index is called.
    pub fn begin(&self, index: usize) {
        if let Form::Table(_, rows) = &self.form
            && let Some(row) = rows.get(index)
        {
            row.set_message("connecting");
        }
    }

    /// Says what has become of a host.
    pub fn end(&self, index: usize, outcome: &Outcome) -> io::Result<()> {
        let Some(host) = self.hosts.get(index) else {
            return Ok(());
        };
        let line = match &self.form {
            Form::Table(_, rows) => {
                if let Some(row) = rows.get(index) {
                    row.finish_with_message(outcome.text(self.expiration.as_deref()));
                }
                return Ok(());
            }
            Form::Lines => self.line(host, outcome),
            Form::Json => {
                let expiration = self.expiration.as_deref();
                let line = Line {
                    host: &host.name,
                    outcome,
                    expiration: expiration.filter(|_| *outcome == Outcome::Unlocked),
                };
                format!("{}\n", serde_json::to_string(&line)?)
            }
        };
        print(&line)
    }

    /// Says what has become of all hosts, if a table had no room for it.
    pub fn finish(&self, outcomes: &[Outcome]) -> io::Result<()> {
        let Form::Table(table, _) = &self.form else {
            return Ok(());
        };
        table.clear()?;
        let hosts = self.hosts.iter().zip(outcomes);
        let lines: String = hosts
            .map(|(host, outcome)| self.line(host, outcome))
            .collect();
        print(&lines)
    }

    fn line(&self, host: &Host, outcome: &Outcome) -> String {
        let width = name_width(self.hosts);
        let text = outcome.text(self.expiration.as_deref());
        format!("{:width$}  {text}\n", host.name)
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn name_width(hosts: &[Host]) -> usize {
    let widths = hosts.iter().map(|host| host.name.chars().count());
    widths.max().unwrap_or_default().min(MAX_NAME_CHARACTERS)
}

/// Draws the rows; `None` where standard output is no terminal, or too small a one.
fn table(hosts: &[Host]) -> Option<(MultiProgress, Vec<ProgressBar>)> {
    // Standard output is a terminal where it has a size.
    let size = tcgetwinsize(io::stdout()).ok()?;
    if hosts.len() + OTHER_LINES > usize::from(size.ws_row) {
        return None;
    }
    let target = ProgressDrawTarget::stdout_with_hz(REFRESHES);
    let all = MultiProgress::with_draw_target(target);
    let template = format!("{{prefix:{}!}}  {{wide_msg}}", name_width(hosts));
    let style = ProgressStyle::with_template(&template).ok()?;
    let row = |host: &Host| {
        let row = all.add(ProgressBar::new(1).with_style(style.clone()));
        row.set_prefix(host.name.clone());
        row.set_message("");
        row
    };
    let rows = hosts.iter().map(row).collect();
    Some((all, rows))
}
