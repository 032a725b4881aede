//! The page of `iam-kms-console` in Chromium, for `make test-console`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use broker_api::{Decrypt, GenerateDataKey, KeyContext, MakeKey, Numbering, Reply, Request};
use end_to_end_tests::{
    Scene, StoreDirectory, broker::ask, console::Console, key_server::free_port, write_fifo,
};

fn context(key_id: u32, key_version: u32) -> KeyContext {
    KeyContext {
        key_id,
        key_version,
        ..KeyContext::default()
    }
}

fn make(key_id: u32) -> Request {
    Request::MakeKey(MakeKey {
        generate: GenerateDataKey {
            master_key_id: "alias/mariadb".into(),
            key_bytes: 16,
            context: context(key_id, 0),
        },
        numbering: Numbering::First,
    })
}

/// As a server does.
fn make_and_use(scene: &Scene, key_id: u32) {
    let Reply::Stored { key: Some(key), .. } = ask(scene, &make(key_id)) else {
        panic!("no key {key_id}");
    };
    let decrypt = Request::Decrypt(Decrypt {
        ciphertext_blob: key.ciphertext_blob,
        check_value: None,
        context: context(key_id, 1),
    });
    let reply = ask(scene, &decrypt);
    assert!(matches!(reply, Reply::Decrypted { .. }), "{reply:?}");
}

#[test]
fn the_page_is_usable_in_the_dark_on_a_phone_and_with_the_keyboard_alone_and_axe_finds_nothing() {
    let python = env::var("IAM_KMS_CONSOLE_PYTHON").expect("run it with `make test-console`");
    let pictures = PathBuf::from(env::var("IAM_KMS_CONSOLE_PICTURES").unwrap());
    fs::create_dir_all(&pictures).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let scene = Scene::with_aws(&["--session-lifetime=600"]);
    let store = StoreDirectory::new(&scene.sandbox);
    let scene = scene.line(&format!("key_store = {}", store.location()));
    let console = Console::listening_on(&address, scene, &[]);
    let scene = &console.scene;
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    console.broker.wait_for("is open until");
    for key_id in 1..=3 {
        make_and_use(scene, key_id);
    }
    // The page begins with a session that has ended.
    scene.aws.end_session();
    ask(scene, &make(4));
    console.broker.wait_for("the AWS session ended");
    scene.aws.set_clock("0");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("console/browser.py");
    let output = Command::new(python)
        .arg("-B")
        .arg(script)
        .arg(format!("http://{address}/"))
        .arg(&pictures)
        .arg(console.scene.aws.code())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{failed}");
    println!("{said}");
}
