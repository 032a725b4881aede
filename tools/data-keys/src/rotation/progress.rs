//! What the state of the tablespaces means for a rotation.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::table;

/// Until here, a current version is one. InnoDB shows 4294967295 if the plugin has none.
const NO_VERSION: u32 = u32::MAX;

/// Settings of the server that decide whether and how fast InnoDB re-encrypts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// `innodb_encryption_threads`.
    pub threads: u64,
    /// `innodb_encryption_rotate_key_age`.
    pub rotate_key_age: u64,
    /// `innodb_encryption_rotation_iops`.
    pub pages_per_second: u64,
    /// Whether `innodb_encrypt_tables` is not OFF.
    pub encrypts_tables: bool,
}

/// An encrypted tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tablespace {
    pub key_id: u32,
    /// No page uses an older version; 0 if some are not encrypted.
    pub min_version: u32,
    pub current_version: u32,
    /// How many pages are done while it is re-encrypted.
    pub rotated_pages: u64,
    /// Its pages while it is re-encrypted, else 0.
    pub rotating_pages: u64,
    /// Its pages, 0 if not known.
    pub pages: u64,
    pub name: String,
}

impl Tablespace {
    fn total_pages(&self) -> u64 {
        self.pages.max(self.rotating_pages)
    }

    fn is_old(&self) -> bool {
        self.min_version < self.current_version && self.current_version != NO_VERSION
    }

    /// Whether InnoDB leaves it under its old version. What is not encrypted yet has no age.
    fn is_kept(&self, settings: &Settings) -> bool {
        if !settings.encrypts_tables {
            return true;
        }
        let age = u64::from(self.current_version.saturating_sub(self.min_version));
        let is_too_young = settings.rotate_key_age == 0 || age <= settings.rotate_key_age;
        self.rotating_pages == 0 && self.min_version != 0 && is_too_young
    }
}

/// The progress of one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeyProgress {
    pub id: u32,
    pub latest_version: u32,
    /// The oldest version that a tablespace uses.
    pub oldest_version: u32,
    pub tablespaces: u64,
    /// Tablespaces that InnoDB will re-encrypt.
    pub tablespaces_left: u64,
    /// Tablespaces under an old version that InnoDB leaves there.
    pub tablespaces_kept: u64,
    /// Pages of the tablespaces that are encrypted with the latest version or will be.
    pub pages: u64,
    /// Those of them that are not yet: at most so many, because InnoDB does not count them by version.
    pub pages_left: u64,
}

/// The state of all tablespaces.
#[derive(Debug)]
pub(super) struct Rotation {
    settings: Settings,
    tablespaces: Vec<Tablespace>,
}

impl Rotation {
    pub fn new(settings: Settings, tablespaces: Vec<Tablespace>) -> Self {
        Self {
            settings,
            tablespaces,
        }
    }

    /// The progress of each key, by id.
    pub fn keys(&self) -> Vec<KeyProgress> {
        let mut keys: BTreeMap<u32, KeyProgress> = BTreeMap::new();
        for tablespace in &self.tablespaces {
            let key = keys.entry(tablespace.key_id).or_insert(KeyProgress {
                id: tablespace.key_id,
                oldest_version: u32::MAX,
                ..KeyProgress::default()
            });
            if tablespace.current_version != NO_VERSION {
                key.latest_version = key.latest_version.max(tablespace.current_version);
            }
            key.oldest_version = key.oldest_version.min(tablespace.min_version);
            key.tablespaces += 1;
            if tablespace.is_old() && tablespace.is_kept(&self.settings) {
                key.tablespaces_kept += 1;
                continue;
            }
            key.pages += tablespace.total_pages();
            if tablespace.is_old() {
                key.tablespaces_left += 1;
                // Without a size, at least its first page is left.
                let left = tablespace
                    .total_pages()
                    .saturating_sub(tablespace.rotated_pages);
                key.pages_left += left.max(1);
            }
        }
        keys.into_values().collect()
    }

    /// Pages that are encrypted with the latest version or will be.
    pub fn pages(&self) -> u64 {
        let pages: u64 = self.keys().iter().map(|key| key.pages).sum();
        pages.max(self.pages_left())
    }

    /// Those of them that are not yet, at most.
    pub fn pages_left(&self) -> u64 {
        self.keys().iter().map(|key| key.pages_left).sum()
    }

    /// Why what is left cannot be done; `None` if it can or nothing is left.
    pub fn why_stuck(&self) -> Option<String> {
        if self.pages_left() == 0 {
            return None;
        }
        let variable = match &self.settings {
            Settings { threads: 0, .. } => "innodb_encryption_threads",
            Settings {
                pages_per_second: 0,
                ..
            } => "innodb_encryption_rotation_iops",
            _ => return None,
        };
        Some(format!(
            "InnoDB re-encrypts nothing, because {variable} is 0: SET GLOBAL {variable} to a higher value"
        ))
    }

    /// Says how long the rest will take, from what was done in `elapsed`, or at the limit of the settings.
    pub fn time_left(&self, done: u64, elapsed: Duration) -> String {
        match self.seconds_left(done, elapsed) {
            None => "end not known".into(),
            Some(seconds) => format!("about {} left", duration(seconds)),
        }
    }

    fn seconds_left(&self, done: u64, elapsed: Duration) -> Option<u64> {
        if self.why_stuck().is_some() {
            return None;
        }
        let milliseconds = u64::try_from(elapsed.as_millis()).ok()?;
        let left = self.pages_left();
        match done {
            0 => left.div_ceil(self.settings.pages_per_second.max(1)).into(),
            done => left.checked_mul(milliseconds).map(|it| it / done / 1000),
        }
    }

    /// The table, and what follows from it.
    pub fn report(&self) -> String {
        let keys = self.keys();
        let rows: Vec<_> = keys
            .iter()
            .map(|key| {
                [
                    key.id.to_string(),
                    key.latest_version.to_string(),
                    match key.oldest_version {
                        0 => "not encrypted".into(),
                        version => version.to_string(),
                    },
                    key.tablespaces.to_string(),
                    key.tablespaces_left.to_string(),
                    key.pages_left.to_string(),
                    key.tablespaces_kept.to_string(),
                ]
            })
            .collect();
        let mut text = table::layout(
            [
                "KEY",
                "LATEST",
                "OLDEST USED",
                "TABLESPACES",
                "LEFT",
                "PAGES LEFT",
                "KEPT",
            ],
            &rows,
        );
        text += "\n";
        text += &match (self.pages_left(), self.seconds_left(0, Duration::ZERO)) {
            (0, _) => "InnoDB has nothing to re-encrypt.\n".to_owned(),
            (left, None) => format!("At most {left} more pages are left to re-encrypt.\n"),
            (left, Some(seconds)) => format!(
                "InnoDB will re-encrypt at most {left} more pages, in about {} at innodb_encryption_rotation_iops = {}.\n",
                duration(seconds),
                self.settings.pages_per_second
            ),
        };
        if keys.iter().any(|key| key.tablespaces_kept > 0) {
            text += &self.why_kept();
        }
        text += &self.retirement(&keys);
        text
    }

    /// Says why tablespaces stay under an old version.
    fn why_kept(&self) -> String {
        match &self.settings {
            Settings {
                encrypts_tables: false,
                ..
            } => "KEPT tablespaces stay under an old version, because innodb_encrypt_tables is OFF. With ON, InnoDB \
                 re-encrypts them, and encrypts all tables that are not.\n"
                .into(),
            Settings {
                rotate_key_age: 0, ..
            } => "KEPT tablespaces stay under an old version, because innodb_encryption_rotate_key_age is 0.\n"
                .into(),
            Settings { rotate_key_age, .. } => format!(
                "KEPT tablespaces stay under an old version until the next rotation, because it is not more than \
                 innodb_encryption_rotate_key_age = {rotate_key_age} versions behind.\n"
            ),
        }
    }

    /// Says which versions no tablespace uses any more, and what else may.
    fn retirement(&self, keys: &[KeyProgress]) -> String {
        let unused: Vec<_> = keys
            .iter()
            .filter(|key| key.oldest_version > 1)
            .map(|key| format!("key {}: below {}", key.id, key.oldest_version))
            .collect();
        if unused.is_empty() {
            return String::new();
        }
        format!(
            "Versions that no tablespace uses: {}. The redo log, binary logs, Aria tables, temporary tables and backups may \
             still need them. To retire them, stop the server and run kms-data-keys check DATADIR.\n",
            unused.join("; ")
        )
    }

    /// The same as JSON.
    pub fn as_json(&self) -> Value {
        let names_left: BTreeSet<_> = self
            .tablespaces
            .iter()
            .filter(|it| it.is_old() && !it.is_kept(&self.settings))
            .map(|it| it.name.as_str())
            .collect();
        let keys: Vec<_> = self
            .keys()
            .iter()
            .map(|key| {
                json!({
                    "id": key.id,
                    "latest_version": key.latest_version,
                    "oldest_version": key.oldest_version,
                    "tablespaces": key.tablespaces,
                    "tablespaces_left": key.tablespaces_left,
                    "tablespaces_kept": key.tablespaces_kept,
                    "pages": key.pages,
                    "pages_left": key.pages_left,
                })
            })
            .collect();
        json!({
            "keys": keys,
            "pages_left": self.pages_left(),
            "tablespaces_left": names_left,
            "seconds_left": self.seconds_left(0, Duration::ZERO).filter(|_| self.pages_left() > 0),
            "stuck": self.why_stuck(),
        })
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{} s", seconds.max(1)),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            threads: 4,
            rotate_key_age: 1,
            pages_per_second: 100,
            encrypts_tables: true,
        }
    }

    fn tablespace(versions: (u32, u32), rotated: (u64, u64), pages: u64) -> Tablespace {
        Tablespace {
            key_id: 1,
            min_version: versions.0,
            current_version: versions.1,
            rotated_pages: rotated.0,
            rotating_pages: rotated.1,
            pages,
            name: "d/t".into(),
        }
    }

    #[test]
    fn what_is_one_version_behind_is_kept_and_what_is_further_behind_is_left() {
        let tablespaces = vec![
            tablespace((3, 3), (0, 0), 100),
            tablespace((2, 3), (0, 0), 100),
            tablespace((1, 3), (0, 0), 100),
            tablespace((1, 3), (60, 200), 200),
            tablespace((1, NO_VERSION), (0, 0), 7),
        ];
        let rotation = Rotation::new(settings(), tablespaces);
        let expected = KeyProgress {
            id: 1,
            latest_version: 3,
            oldest_version: 1,
            tablespaces: 5,
            tablespaces_left: 2,
            tablespaces_kept: 1,
            pages: 407,
            pages_left: 240,
        };
        assert_eq!(rotation.keys(), [expected]);
        assert_eq!(rotation.why_stuck(), None);
        assert_eq!(rotation.seconds_left(0, Duration::ZERO), Some(3));
        assert_eq!(
            rotation.time_left(24, Duration::from_secs(60)),
            "about 10 min left"
        );
        let report = rotation.report();
        assert!(report.contains("at most 240 more pages"), "{report}");
        assert!(report.contains("KEPT tablespaces stay"), "{report}");
        assert!(!report.contains("no tablespace uses"), "{report}");
    }

    #[test]
    fn what_is_not_encrypted_yet_is_left_unless_innodb_encrypt_tables_is_off() {
        let tablespaces = vec![tablespace((0, 1), (0, 0), 50)];
        let rotation = Rotation::new(settings(), tablespaces.clone());
        assert_eq!(rotation.pages_left(), 50);
        let off = Settings {
            encrypts_tables: false,
            ..settings()
        };
        let rotation = Rotation::new(off, tablespaces);
        assert_eq!(rotation.pages_left(), 0);
        let report = rotation.report();
        assert!(report.contains("innodb_encrypt_tables is OFF"), "{report}");
    }

    #[test]
    fn without_threads_it_is_stuck_and_says_which_variable_to_set() {
        let stuck = Settings {
            threads: 0,
            ..settings()
        };
        let rotation = Rotation::new(stuck.clone(), vec![tablespace((1, 3), (0, 0), 9)]);
        let reason = rotation.why_stuck().unwrap();
        assert!(
            reason.contains("innodb_encryption_threads is 0"),
            "{reason}"
        );
        assert!(rotation.as_json()["seconds_left"].is_null());
        let done = Rotation::new(stuck, vec![tablespace((3, 3), (0, 0), 9)]);
        assert_eq!(done.why_stuck(), None);
    }

    #[test]
    fn versions_that_no_tablespace_uses_are_named_with_what_to_check_first() {
        let rotation = Rotation::new(settings(), vec![tablespace((4, 5), (0, 0), 9)]);
        let report = rotation.report();
        assert!(report.contains("key 1: below 4."), "{report}");
        assert!(report.contains("kms-data-keys check"), "{report}");
        assert!(report.contains("nothing to re-encrypt"), "{report}");
    }
}
