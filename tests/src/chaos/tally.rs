//! How often what was done.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

/// The subjects of the summary, in its order.
const SUBJECTS: [&str; 9] = [
    "server", "broker", "KMS", "codes", "keys", "load", "tables", "copies", "checks",
];

/// Numbers by subject and name.
#[derive(Default)]
pub(super) struct Tally(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Tally {
    pub fn count(&self, subject: &'static str, what: &'static str) {
        self.add(subject, what, 1);
    }

    pub fn add(&self, subject: &'static str, what: &'static str, number: u64) {
        assert!(SUBJECTS.contains(&subject), "{subject}");
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *numbers.entry((subject, what)).or_default() += number;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for subject in SUBJECTS {
            let of_subject = numbers.range((subject, "")..);
            let texts: Vec<_> = of_subject
                .take_while(|((of, _), _)| *of == subject)
                .map(|((_, what), number)| format!("{what} {number}"))
                .collect();
            if !texts.is_empty() {
                writeln!(formatter, "  {subject}: {}", texts.join(", "))?;
            }
        }
        Ok(())
    }
}
