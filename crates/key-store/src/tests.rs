use std::{fs, path::Path as FilePath};

use aws_session::{config::Config, settings::Reader};
use key_files::{
    PlaintextKey, WrappedKey,
    check_value::CheckValue,
    key_name::{Algorithm, KeyName},
};

use super::*;

fn settings() -> Settings {
    let config = Config::without_file().unwrap();
    Settings::read(&config.session, Reader::Service).unwrap()
}

fn open(directory: &FilePath) -> KeyStore {
    let location = KeyStoreLocation::Directory(directory.into());
    KeyStore::open(&location, &settings(), None).unwrap()
}

async fn store_in(directory: &FilePath) -> KeyStore {
    let store = open(directory);
    store.init().await.unwrap();
    store
}

fn key(id: u32, version: u32, byte: u8) -> WrappedKey {
    let plaintext = PlaintextKey::new(&[byte; 16]).unwrap();
    WrappedKey {
        name: KeyName {
            id,
            version,
            algorithm: Algorithm::AesCbc,
        },
        bits: 128,
        check_value: CheckValue::of(&plaintext),
        master_key_arn: "arn:aws:kms:eu-west-1:111122223333:key/1a2b".into(),
        ciphertext_blob: vec![byte; 184],
    }
}

#[tokio::test]
async fn a_key_is_put_once_and_read_by_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (store_in(directory.path()).await, open(directory.path()));
    assert!(matches!(one.put(&key(7, 1, 1)).await, Ok(Put::New)));
    assert_eq!(two.get(7, 1, 0).await.unwrap(), Some(key(7, 1, 1)));
    assert_eq!(two.get(7, 2, 0).await.unwrap(), None);
    // The same again, as after an answer that was lost.
    assert!(matches!(one.put(&key(7, 1, 1)).await, Ok(Put::New)));
    match two.put(&key(7, 1, 2)).await {
        Ok(Put::Exists(there)) => assert_eq!(there, key(7, 1, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(one.get(7, 1, 0).await.unwrap(), Some(key(7, 1, 1)));
}

#[tokio::test]
async fn versions_are_listed_with_their_latest_form() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path()).await;
    assert_eq!(store.list().await.unwrap(), Versions::new());
    assert!(store.find(7, None).await.unwrap().is_none());
    store.check().await.unwrap();
    for version in [2, 9, 10] {
        store.put(&key(7, version, 1)).await.unwrap();
    }
    store.put(&key(70, 1, 4)).await.unwrap();
    let rewrapped = |blob| WrappedKey {
        ciphertext_blob: vec![blob; 90],
        ..key(7, 9, 1)
    };
    store.put_form(&rewrapped(3), 1).await.unwrap();
    store.put_form(&rewrapped(5), 2).await.unwrap();
    // Somebody has put another key there, and something else.
    store.put_form(&key(7, 9, 8), 3).await.unwrap();
    fs::write(directory.path().join("7/9.4"), "garbage").unwrap();
    for stray in ["7/x", "7/011", "7/0", "x/1", "7/9.x", "README"] {
        fs::write(directory.path().join(stray), "stray").unwrap_or_else(|_| {
            fs::create_dir(directory.path().join("x")).unwrap();
        });
    }
    let forms = |versions: Versions| -> Vec<_> {
        versions
            .into_iter()
            .map(|(number, forms)| (number, forms.latest, forms.first.is_some()))
            .collect()
    };
    let mut all = vec![
        ((7, 2), 0, true),
        ((7, 9), 4, true),
        ((7, 10), 0, true),
        ((70, 1), 0, true),
    ];
    assert_eq!(forms(store.list_id(7).await.unwrap()), all[..3]);
    assert_eq!(forms(store.list().await.unwrap()), all);
    let latest = store.find(7, None).await.unwrap();
    assert_eq!(latest, Some(key(7, 10, 1)));
    let found = store.find(7, Some(9)).await.unwrap();
    assert_eq!(found, Some(rewrapped(5)), "the latest that is the same key");
    fs::remove_file(directory.path().join("7/9")).unwrap();
    all[1].2 = false;
    assert_eq!(forms(store.list().await.unwrap()), all);
    let lost = store.find(7, Some(9)).await.unwrap_err().to_string();
    assert!(lost.contains("7/9 in the key store"), "{lost}");
    assert!(lost.contains("copy 7/9.4 to 7/9"), "{lost}");
}

#[tokio::test]
async fn an_object_that_took_the_place_of_another_is_told_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path()).await;
    store.put(&key(7, 1, 1)).await.unwrap();
    let before = store.list().await.unwrap();
    assert_eq!(store.list().await.unwrap(), before);
    fs::remove_file(directory.path().join("7/1")).unwrap();
    store.put(&key(7, 1, 2)).await.unwrap();
    assert_ne!(store.list().await.unwrap(), before);
}

#[tokio::test]
async fn the_check_passes_each_time() {
    let directory = tempfile::tempdir().unwrap();
    store_in(directory.path()).await;
    for _ in 0..3 {
        open(directory.path()).check().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_not_the_key_of_its_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path()).await;
    store.put(&key(7, 1, 1)).await.unwrap();
    let object = directory.path().join("7/1");
    let good = fs::read_to_string(&object).unwrap();
    fs::write(directory.path().join("7/2"), &good).unwrap();
    let text = store.get(7, 2, 0).await.unwrap_err().to_string();
    assert!(text.contains("7/2 in the key store file://"), "{text}");
    assert!(text.ends_with("it is aws-kms-key.7.1"), "{text}");
    for (wrong, why) in [
        (String::new(), "it is not an object of a key store"),
        ("{}".into(), "it is not an object of a key store"),
        (good.replace(":1,\"id\"", ":2,\"id\""), "later release"),
        (good.replace("AES_CBC", "ROT13"), "its algorithm"),
        (good.replace("128", "129"), "it is not an object"),
        (good.replace("\"AQEB", "\"AQ!B"), "its wrapped key"),
        (
            good.replace("check_value\":\"", "check_value\":\"x"),
            "its check value",
        ),
        (format!("{good}{}", " ".repeat(40_000)), "longer than 32768"),
    ] {
        fs::write(&object, wrong).unwrap();
        let text = store.get(7, 1, 0).await.unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn nothing_is_put_into_a_directory_that_may_be_that_of_a_file_server_which_is_not_mounted() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for failed in [
        store.put(&key(7, 1, 1)).await.map(drop),
        store.list().await.map(drop),
        store.find(7, None).await.map(drop),
        store.check().await,
    ] {
        let text = failed.unwrap_err().to_string();
        assert!(
            text.contains("is not mounted, or was never made one"),
            "{text}"
        );
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_store_whose_directory_is_missing_is_named() {
    let store = open(FilePath::new("/nonexistent/keys"));
    for failed in [store.list().await.map(drop), store.check().await] {
        let text = failed.unwrap_err().to_string();
        assert!(
            text.starts_with("the key store file:///nonexistent/keys is not mounted"),
            "{text}"
        );
    }
    let text = store.init().await.unwrap_err().to_string();
    assert!(text.contains("there is no such directory"), "{text}");
    assert!(!FilePath::new("/nonexistent").exists());
}

#[tokio::test]
async fn only_an_empty_directory_becomes_a_store() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    let store = store_in(directory.path()).await;
    store.init().await.unwrap();
    store.put(&key(7, 1, 1)).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 1);
    // Again: who was interrupted runs the same command.
    store.init().await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 1);
    fs::remove_file(directory.path().join("conditional-put-check")).unwrap();
    let text = store.init().await.unwrap_err().to_string();
    assert!(text.contains("is not an empty directory"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_put_one_version_at_once_exactly_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    store_in(directory.path()).await;
    for id in 1..=100 {
        let put = |byte| {
            let store = open(directory.path());
            tokio::spawn(async move { store.put(&key(id, 1, byte)).await.unwrap() })
        };
        let (one, two) = (put(1), put(2));
        let there = open(directory.path());
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        let there = there.get(id, 1, 0).await.unwrap().unwrap();
        let (winner, loser, byte) = match &one {
            Put::New => (one, two, 1),
            Put::Exists(_) => (two, one, 2),
        };
        assert!(matches!(winner, Put::New), "{winner:?}");
        assert!(matches!(loser, Put::Exists(it) if it == there));
        assert_eq!(there, key(id, 1, byte));
    }
}
