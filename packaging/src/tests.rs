#![allow(clippy::unwrap_used)]

use std::process::Command;

use super::*;

/// The default size of a terminal.
const ROWS: usize = 24;
const COLUMNS: usize = 80;

fn every_command() -> Vec<clap::Command> {
    let mut commands = Vec::new();
    for program in programs() {
        let mut command = program.command.disable_help_subcommand(true);
        command.build();
        commands.extend(command.get_subcommands().cloned());
        commands.push(command);
    }
    commands
}

fn written() -> tempfile::TempDir {
    let share = tempfile::tempdir().unwrap();
    write(share.path()).unwrap();
    share
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_help_of_each_program_and_subcommand_fits_a_screen() {
    for command in every_command() {
        let name = command.get_name().to_owned();
        let asked = command.try_get_matches_from([&name, "--help"]);
        let help = asked.unwrap_err().to_string();
        let rows = help
            .lines()
            .map(|line| line.chars().count().div_ceil(COLUMNS).max(1));
        assert!(rows.sum::<usize>() <= ROWS, "{help}");
    }
}

#[test]
fn groff_reports_no_warnings_for_any_man_page() {
    let share = written();
    let pages = files(&share.path().join("man"));
    assert!(pages.len() >= programs().len() + 2, "{pages:?}");
    for page in pages {
        let output = Command::new("groff")
            .args(["-man", "-K", "utf-8", "-T", "utf8", "-ww", "-z"])
            .arg(&page)
            .output()
            .unwrap();
        let complaints = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{complaints}");
        assert_eq!(complaints, "", "{}", page.display());
    }
}

#[test]
fn each_program_has_a_page_and_completions_for_three_shells() {
    let share = written();
    for program in programs() {
        let name = program.name();
        for file in [
            format!("man/man{0}/{name}.{0}", program.section),
            format!("bash-completion/completions/{name}"),
            format!("zsh/site-functions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            let text = fs::read_to_string(share.path().join(&file)).unwrap();
            assert!(text.contains(name), "{file}");
        }
    }
}

#[test]
fn bash_loads_the_completions_and_completes_an_option() {
    let share = written();
    let script = "\
        . \"$1/bash-completion/completions/iam-kms-wrapper\"
        COMP_WORDS=(iam-kms-wrapper --conf) COMP_CWORD=1
        _iam__kms__wrapper iam-kms-wrapper --conf iam-kms-wrapper
        echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-euc", script, "bash"])
        .arg(share.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "--config\n",
        "{output:?}"
    );
}

#[test]
fn the_man_page_of_the_configuration_describes_every_key() {
    let page = String::from_utf8(configuration::man_page().unwrap()).unwrap();
    let documented = [aws_session::config::KEYS, aws_session::config::CLIENT_KEYS].concat();
    for key in &documented {
        let heading = format!(".TP\n\\fB{}\\fR\nValue: ", key.name);
        assert!(page.contains(&heading), "{}: {page}", key.name);
    }
    let keys = page.matches(".TP\n").count();
    assert_eq!(keys, documented.len(), "{page}");
}

#[test]
fn the_table_in_the_documentation_matches_the_code() {
    let table = configuration::markdown_table();
    assert!(
        include_str!("../../docs/src/configuration.md").contains(&table),
        "put in the output of `cargo run -p packaging -- --configuration-table`:\n{table}"
    );
}

#[test]
fn the_tables_of_the_audit_in_the_documentation_match_the_code() {
    for table in [audit::table_of_events(), audit::table_of_fields()] {
        assert!(
            include_str!("../../docs/src/audit.md").contains(&table),
            "put in the output of `cargo run -p packaging -- --audit-tables`:\n{table}"
        );
    }
}
