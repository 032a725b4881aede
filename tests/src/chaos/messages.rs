//! What this program knows of the texts of those under test. Everything else it judges by what
//! they do.

/// Each message of the plugin begins with it, in the error log and at the client.
pub(super) const PLUGIN: &str = "AWS KMS plugin";

/// The broker has a session.
pub(super) const SESSION_OPEN: &str = "is open until";

/// A statement that InnoDB or Aria refuses because the plugin has no key for it.
const NO_KEY_FOR_STATEMENT: [&str; 2] = ["Wrong create options", "Incorrect create options"];

/// Whether the client was refused for the lack of a key, and not for something else.
pub(super) fn refuses_for_lack_of_a_key(text: &str) -> bool {
    text.contains(PLUGIN)
        || NO_KEY_FOR_STATEMENT
            .iter()
            .any(|known| text.contains(known))
}

/// Whether the client shows a warning of the plugin, in the form of `mariadb --show-warnings`.
pub(super) fn shows_warning_of_plugin(text: &str) -> bool {
    text.lines()
        .any(|line| line.starts_with("Warning") && line.contains(PLUGIN))
}

/// Words of a server that tell of damage, in lower case, whoever says them.
const DAMAGE: [&str; 13] = [
    "corrupt",
    "assertion",
    "got signal",
    "got exception",
    "marked as crashed",
    "is crashed",
    "[fatal]",
    "panicked",
    "a defect in the plugin",
    "internal error in the plugin",
    "missing for key",
    "checksum",
    "cannot be decrypted",
];

/// What looks like damage but is not: the server's words for its settings, and the plugin's note
/// on old key files that were moved away.
const NO_DAMAGE: [&str; 3] = [
    "checksums for mini-transactions",
    "innodb_checksum_algorithm",
    "lists older key versions that have no key file here",
];

/// Errors that nothing comes of.
fn is_harmless(line: &str) -> bool {
    // Of the intermediate table of an ALTER TABLE that a kill has cut short: its file has no first page
    // yet. The next steps of recovery remove it.
    let of_intermediate_table =
        line.contains("InnoDB: Expected tablespace id") && line.contains("/#sql-");
    // A session ended while a backup blocked commits: its temporary tables are gone all the same.
    let of_temporary_table =
        line.contains("Failed to write the DROP statement for temporary tables to binary log");
    // A rotation was under way when the server was stopped.
    let of_rotation = line.contains(" rotated: ") && line.contains("the statement was killed");
    of_intermediate_table || of_temporary_table || of_rotation
}

/// Whether `mariadb-backup --prepare` with an increment has failed as it does without us, where tables were rebuilt while
/// the increment was taken. With file_key_management, it died of a signal in 3 of 16, and in 1 of 44 it laid an increment
/// over the wrong table and called its pages corrupted. Where the plugin complains, or is among the frames of the
/// crash, it is ours.
pub(super) fn is_failure_of_increment(has_signal: bool, output: &str) -> bool {
    let is_crash = has_signal && output.contains("got signal");
    let is_wrong_table = !has_signal
        && output.contains("srv_start() returned 37")
        && output.contains("InnoDB: Unable to apply log to corrupted page");
    let complains = |line: &str| line.contains(PLUGIN) && line.contains("[ERROR]");
    (is_crash || is_wrong_table)
        && !output.contains("aws_key_management.so")
        && !output.contains("panicked")
        && !output.lines().any(complains)
}

/// Whether `mariadb-backup --backup` has given up because a table was dropped while it listed the tablespaces.
pub(super) fn is_race_with_drop(output: &str) -> bool {
    output.contains("was not found") && output.contains("Failed to validate first page of the file")
}

/// What of a server's error log must not be there.
///
/// `may_lack_keys`: KMS, session or broker were taken away, so the plugin may complain.
pub(super) fn wrong_lines(log: &str, may_lack_keys: bool) -> Vec<String> {
    let is_wrong = |line: &&str| {
        let lower = line.to_lowercase();
        let of_plugin = line.contains(PLUGIN);
        let tells_damage = DAMAGE.iter().any(|word| lower.contains(word))
            && !NO_DAMAGE.iter().any(|known| lower.contains(known));
        // The plugin says that data is *not* corrupted.
        let is_damage =
            tells_damage && !(of_plugin && may_lack_keys && lower.contains("not corrupted"));
        is_damage || line.contains("[ERROR]") && !(of_plugin && may_lack_keys)
    };
    log.lines()
        .filter(is_wrong)
        .filter(|line| !is_harmless(line))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_tells_of_damage_is_wrong_whatever_was_provoked() {
        for line in [
            "2026-01-01 1:00:00 0 [ERROR] InnoDB: Table d.t1 is corrupted. Please drop the table",
            "2026-01-01 1:00:00 0x7f InnoDB: Assertion failure in file buf0flu.cc line 1",
            "260101 1:00:00 [ERROR] mysqld got signal 6 ;",
            "thread '<unnamed>' panicked at broker/src/keeper.rs:1:1",
            "2026-01-01 1:00:00 0 [ERROR] Something of the server's own",
        ] {
            assert_eq!(wrong_lines(line, true), [line]);
        }
    }

    #[test]
    fn a_failure_of_an_increment_is_its_own_only_without_the_plugin() {
        let crash = "261126  9:00:00 [ERROR] mariadb-backup got signal 11 ;\n\
                     /usr/bin/mariadb-backup(recv_sys_t::apply)[0x55]\n";
        let ours = format!("{crash}/plugin/aws_key_management.so(+0x1234)[0x7f]\n");
        assert!(is_failure_of_increment(true, crash));
        assert!(!is_failure_of_increment(true, &ours));
        assert!(!is_failure_of_increment(false, crash));
        assert!(!is_failure_of_increment(true, "killed without a word"));
        let corrupted = "0 [ERROR] InnoDB: Unable to apply log to corrupted page 84 in file d/t1.ibd\n\
                         [00] mariadb-backup: srv_start() returned 37 (Data structure corruption).\n";
        let ours = format!("0 [ERROR] {PLUGIN}: key 5, version 2, cannot be read\n{corrupted}");
        assert!(is_failure_of_increment(false, corrupted));
        assert!(!is_failure_of_increment(false, &ours));
    }

    #[test]
    fn an_error_of_the_plugin_is_wrong_unless_it_was_provoked() {
        let line = "2026-01-01 1:00:00 0 [ERROR] AWS KMS plugin: cannot make key 7";
        assert_eq!(wrong_lines(line, false), [line]);
        assert_eq!(wrong_lines(line, true), [""; 0]);
    }

    #[test]
    fn what_a_healthy_server_says_is_not_wrong() {
        let log = "2026-01-01 1:00:00 0 [ERROR] InnoDB: Expected tablespace id 733 but found 0 in the file ./d/#sql-ib742.ibd\n\
                   2026-01-01 1:00:00 0 [Note] InnoDB: Starting crash recovery from checkpoint LSN=42\n\
                   2026-01-01 1:00:00 0 [Note] AWS KMS plugin: loaded key 1, version 1\n\
                   2026-01-01 1:00:00 0 [Note] /usr/sbin/mariadbd: ready for connections.";
        assert_eq!(wrong_lines(log, false), [""; 0]);
    }
}
