//! What has become of a host.

use serde::Serialize;

/// What has become of a host. The output for programs has it as `result`, and the reason as `message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "message", rename_all = "snake_case")]
pub enum Outcome {
    /// It has the session.
    Unlocked,
    /// It waits for one (`--dry-run`).
    Waiting,
    /// Nothing waits there.
    NotWaiting,
    /// There was no connection, or no answer in time, and nothing was sent.
    Unreachable(String),
    /// It answered, but did not take the session.
    Refused(String),
    /// The session was sent, but there was no answer.
    Unknown(String),
    /// A signal came first, and nothing was sent.
    Interrupted,
}

impl Outcome {
    /// A host that did not come to an answer, because `why`.
    pub fn of_no_answer(why: &str, is_sent: bool) -> Self {
        match is_sent {
            true => Self::Unknown(format!(
                "{why}; the session was sent, see the log of the service"
            )),
            false => Self::Unreachable(why.into()),
        }
    }

    /// A host that a signal has cut off.
    pub fn of_interrupted(is_sent: bool) -> Self {
        match is_sent {
            true => Self::of_no_answer("interrupted", true),
            false => Self::Interrupted,
        }
    }

    /// Returns the word for it in the summary.
    fn word(&self) -> &'static str {
        match self {
            Self::Unlocked => "unlocked",
            Self::Waiting => "waiting",
            Self::NotWaiting => "not waiting",
            Self::Unreachable(_) => "unreachable",
            Self::Refused(_) => "refused",
            Self::Unknown(_) => "unknown",
            Self::Interrupted => "not called",
        }
    }

    /// Describes it to a person; `expiration` is the end of the session.
    pub fn text(&self, expiration: Option<&str>) -> String {
        match self {
            Self::Unlocked => format!("unlocked until {}", expiration.unwrap_or("its end")),
            Self::Waiting => "is waiting".into(),
            Self::NotWaiting => "was not waiting".into(),
            Self::Unreachable(why) => format!("unreachable: {why}"),
            Self::Refused(why) => format!("refused: {why}"),
            Self::Unknown(why) => format!("unknown: {why}"),
            Self::Interrupted => "interrupted: nothing was sent".into(),
        }
    }
}

/// Counts the outcomes of a run, for people: "2 of 5 hosts unlocked, 1 refused, …".
pub fn summary(outcomes: &[Outcome], is_dry_run: bool) -> String {
    let count = |word| outcomes.iter().filter(|it| it.word() == word).count();
    let wanted = if is_dry_run { "waiting" } else { "unlocked" };
    let hosts = if outcomes.len() == 1 { "host" } else { "hosts" };
    let mut text = format!("{} of {} {hosts} {wanted}", count(wanted), outcomes.len());
    for word in [
        "not waiting",
        "unreachable",
        "refused",
        "unknown",
        "not called",
    ] {
        match count(word) {
            0 => {}
            number => text.push_str(&format!(", {number} {word}")),
        }
    }
    text
}

/// The exit code of a run: that of the outcome that most needs somebody to look.
pub fn exit_code<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> i32 {
    let codes = outcomes.map(|outcome| match outcome {
        Outcome::Refused(_) => 1,
        Outcome::Unreachable(_) => 2,
        Outcome::Unknown(_) => 3,
        Outcome::NotWaiting => 4,
        _ => 0,
    });
    [1, 3, 2, 4]
        .into_iter()
        .find(|worst| codes.clone().any(|code| code == *worst))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_each_outcome() {
        let refused = || Outcome::Refused("a".into());
        let outcomes = [Outcome::Unlocked, refused(), refused(), Outcome::NotWaiting];
        assert_eq!(
            summary(&outcomes, false),
            "1 of 4 hosts unlocked, 1 not waiting, 2 refused"
        );
        let outcomes = [
            Outcome::Unknown("a".into()),
            Outcome::Unreachable("a".into()),
        ];
        assert_eq!(
            summary(&outcomes, false),
            "0 of 2 hosts unlocked, 1 unreachable, 1 unknown"
        );
        assert_eq!(summary(&[Outcome::Waiting], true), "1 of 1 host waiting");
        assert_eq!(
            summary(&[Outcome::Interrupted], true),
            "0 of 1 host waiting, 1 not called"
        );
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst_outcome() {
        let all = [
            Outcome::Refused("a".into()),
            Outcome::Unknown("a".into()),
            Outcome::Unreachable("a".into()),
            Outcome::NotWaiting,
            Outcome::Unlocked,
            Outcome::Waiting,
        ];
        for (from, code) in [(0, 1), (1, 3), (2, 2), (3, 4), (4, 0), (5, 0)] {
            assert_eq!(exit_code(all[from..].iter()), code);
        }
    }
}
