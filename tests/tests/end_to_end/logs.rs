//! What `docs/src/logs.md` shows is what the programs print.

use end_to_end_tests::{
    Database, NEW_KEY, Scene, Wrapper, fence, manage_key::key_cli, wait_until, write_fifo,
};

/// Replaces each part of `text` that looks like `pattern` by `example`: in a pattern, `9` stands for a digit,
/// `h` for a hexadecimal digit, `A` for a capital or a digit, and all else for itself.
fn replace(text: &str, pattern: &str, example: &str) -> String {
    let matches = |(found, wanted): (char, char)| match wanted {
        '9' => found.is_ascii_digit(),
        'h' => found.is_ascii_hexdigit(),
        'A' => found.is_ascii_uppercase() || found.is_ascii_digit(),
        wanted => found == wanted,
    };
    let mut replaced = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.len() >= pattern.len() && rest.chars().zip(pattern.chars()).all(matches) {
            replaced += example;
            rest = &rest[pattern.len()..];
        } else {
            replaced.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    replaced
}

/// The lines of our programs and of the plugin in `output`, with what differs in each run replaced.
fn shown(scene: &Scene, output: &str) -> String {
    let run = scene.fifo().parent().unwrap().display().to_string();
    let ours = output.lines().filter_map(|line| {
        if line.starts_with("iam-kms-") {
            return Some(line.to_owned());
        }
        // After the server's time and thread.
        let (_, message) = line.split_once(" [")?;
        message
            .contains("AWS KMS plugin")
            .then(|| format!("mariadbd: [{message}"))
    });
    let mut text: String = ours.map(|line| line + "\n").collect();
    text = text.replace(&run, "/run/iam-kms-wrapper");
    text = text.replace(" --fifo=/run/iam-kms-wrapper/mfa", "");
    for (pattern, example) in [
        (
            "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
        ),
        ("9999-99-99T99:99:99Z", "2026-11-26T19:45:00Z"),
        ("ASIAAAAAAAAAAAAAAAAA", "ASIAEXAMPLE"),
    ] {
        text = replace(&text, pattern, example);
    }
    text
}

/// Several processes print, and the order of what they print at one time differs from run to run.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// What was printed since `before`.
fn since(wrapper: &Wrapper, before: usize) -> (String, usize) {
    let output = wrapper.process.output();
    (output[before..].to_owned(), output.len())
}

#[test]
fn the_page_shows_what_a_start_a_rotation_an_expired_session_and_a_failure_print() {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT)");
    let (start, end) = since(&wrapper, 0);

    database.sql("SET GLOBAL aws_key_management_rotate_key = 1");
    wait_until("the rotation", || {
        database
            .key_files()
            .iter()
            .any(|file| file.ends_with(".1.2"))
    });
    wrapper.process.wait_for("version 2");
    let (rotation, end) = since(&wrapper, end);

    scene.aws.end_session();
    database.sql_error(NEW_KEY);
    wrapper.process.wait_for("the AWS session ended");
    scene.aws.set_clock("0");
    write_fifo(scene.fifo(), format!("{}\n", scene.aws.code()).as_bytes());
    wrapper.process.wait_for_nth("is open until", 2);
    let (expired, end) = since(&wrapper, end);

    key_cli(&scene, "disable-key", &[]);
    database.sql_error(NEW_KEY);
    wait_until("the failure", || {
        wrapper.process.output()[end..].contains("AWS KMS plugin")
    });
    let (failure, _) = since(&wrapper, end);

    let mut wrong = String::new();
    for (documented, output) in [
        (fence("logs-start"), start),
        (fence("logs-rotation"), rotation),
        (fence("logs-expired"), expired),
        (fence("logs-failure"), failure),
    ] {
        let shown = shown(&scene, &output);
        if sorted(&documented.commands) != sorted(&shown) {
            wrong += &format!("```text\n{shown}```\n\n");
        }
    }
    assert!(wrong.is_empty(), "put into docs/src/logs.md:\n{wrong}");
}
