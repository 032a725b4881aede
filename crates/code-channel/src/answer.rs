//! What `iam-kms-wrapper code --json` prints, one object a line, for a program that enters a code or a
//! session document.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// What has become of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerState {
    /// A service waits, and standard input is read now. Another answer follows.
    Waiting,
    /// It opened a session.
    Accepted,
    /// The service refused it.
    Refused,
    /// It was written, but the service has not said what became of it.
    Unknown,
    /// Nothing waits for a code.
    NotWaiting,
    /// It could not be written.
    Failed,
}

/// A line of the output.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What has become of the input.
    pub state: AnswerState,
    /// The same in words, on one line.
    pub message: String,
}

impl Answer {
    /// Writes the line to standard output.
    pub fn print(&self) -> io::Result<()> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(line.as_bytes())?;
        stdout.flush()
    }

    /// Reads a line; `None`: it is something else.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// In the process that prints.
    const PRINTS: &str = "IAM_KMS_TEST_PRINTS";

    #[test]
    fn what_one_program_prints_another_one_reads() {
        let answer = Answer {
            state: AnswerState::NotWaiting,
            message: "nothing waits\nfor a \"code\"".into(),
        };
        if env::var_os(PRINTS).is_some() {
            return answer.print().unwrap();
        }
        let printed = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "answer::tests::what_one_program_prints_another_one_reads",
            ])
            .env(PRINTS, "")
            .output()
            .unwrap();
        let line = r#"{"state":"not_waiting","message":"nothing waits\nfor a \"code\""}"#;
        let printed = String::from_utf8(printed.stdout).unwrap();
        assert!(printed.contains(&format!("{line}\n")), "{printed}");
        assert_eq!(Answer::parse(line), Some(answer));
        assert_eq!(Answer::parse("ssh: connect to host db1: timed out"), None);
    }
}
