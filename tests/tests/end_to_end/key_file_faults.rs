//! Key files and their directory when they are not as they should be. The server runs as a user that
//! permissions mean something to.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use end_to_end_tests::{
    Database, LocalAws, NOBODY, Process, Sandbox, Scene, StoreDirectory, Wrapper, copy, wait_until,
};

const PREFIX: &str = "AWS KMS plugin: ";
const HEALTHY: u32 = 99;

fn database(scene: &Scene) -> Database {
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON", "--aws-key-management=FORCE"])
        .options(&[
            // Nothing but a statement reads the tables of the test.
            "--innodb-buffer-pool-load-at-startup=OFF",
            "--innodb-fast-shutdown=0",
        ]);
    database.give_to(NOBODY);
    database
}

fn start(scene: &Scene, database: &Database) -> Wrapper {
    let wrapper = spawn(scene, database);
    database.wait_until_ready(&wrapper.process);
    wrapper
}

fn spawn(scene: &Scene, database: &Database) -> Wrapper {
    let line = database.command_line();
    let line: Vec<_> = line.iter().map(String::as_str).collect();
    let wrapper = scene.spawn(&mut scene.command_as_nobody(&line));
    wrapper.give_code(&scene.aws);
    wrapper
}

fn create(id: u32) -> String {
    format!(
        "CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id};
         INSERT INTO d.t{id} VALUES ({id})"
    )
}

fn create_another(id: u32) -> String {
    format!("CREATE TABLE d.new{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}")
}

fn select(id: u32) -> String {
    format!("SELECT i FROM d.t{id}")
}

fn key_file(directory: &Path, id: u32) -> PathBuf {
    directory.join(format!("aws-kms-key.{id}.1"))
}

/// The plugin's messages that contain `text`.
fn messages(process: &Process, text: &str) -> Vec<String> {
    let output = process.output();
    let lines = output.lines().filter_map(|line| line.split_once(PREFIX));
    lines
        .map(|(_, message)| message.to_owned())
        .filter(|message| message.contains(text))
        .collect()
}

/// What is wrong with a key file, and what a person must read to put it right.
struct Fault {
    id: u32,
    says: &'static str,
    advises: &'static str,
}

const fn fault(id: u32, says: &'static str, advises: &'static str) -> Fault {
    Fault { id, says, advises }
}

const FROM_BACKUP: &str = "from a backup of the key files";
const EMPTY: Fault = fault(10, "is empty", FROM_BACKUP);
const TRUNCATED: Fault = fault(11, "InvalidCiphertextException", FROM_BACKUP);
const FOREIGN: Fault = fault(12, "InvalidCiphertextException", FROM_BACKUP);
const WITHOUT_PERMISSION: Fault = fault(13, "Permission denied", "give the file to the user");
const OF_ANOTHER_USER: Fault = fault(14, "Permission denied", "give the file to the user");
const DIRECTORY: Fault = fault(15, "is not a regular file", FROM_BACKUP);
const SYMLINK: Fault = fault(16, "symbolic link", "replace the symbolic link");
const MASTER_KEY_DISABLED: Fault = fault(17, "is disabled", "aws kms enable-key");
const MASTER_KEY_DELETED: Fault = fault(18, "pending deletion", "aws kms cancel-key-deletion");
const OF_ANOTHER_ACCOUNT: Fault =
    fault(19, "AccessDeniedException", "check the account and region");

const FAULTS: [Fault; 10] = [
    EMPTY,
    TRUNCATED,
    FOREIGN,
    WITHOUT_PERMISSION,
    OF_ANOTHER_USER,
    DIRECTORY,
    SYMLINK,
    MASTER_KEY_DISABLED,
    MASTER_KEY_DELETED,
    OF_ANOTHER_ACCOUNT,
];

impl Fault {
    fn check(&self, database: &Database, message: &str) {
        let file = key_file(&database.datadir, self.id);
        for expected in [file.to_str().unwrap(), self.says, self.advises] {
            assert!(message.contains(expected), "no {expected:?} in: {message}");
        }
    }
}

#[test]
fn a_bad_key_file_is_named_with_what_to_do_and_other_keys_work() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let file = |fault: &Fault| key_file(&database.datadir, fault.id);
    let kms = |arguments: &[&str]| scene.aws.cli(&[&["kms"], arguments].concat());
    let mut wrapper = start(&scene, &database);
    database.sql("CREATE DATABASE d");
    let new_master_key = || kms(&["create-key", "--query=KeyMetadata.KeyId", "--output=text"]);
    let (disabled, deleted) = (new_master_key(), new_master_key());
    for fault in &FAULTS {
        let master_key = match fault.id {
            id if id == MASTER_KEY_DISABLED.id => &disabled,
            id if id == MASTER_KEY_DELETED.id => &deleted,
            _ => "alias/mariadb",
        };
        database.sql(&format!(
            "SET GLOBAL aws_key_management_master_key_id='{master_key}'; {}",
            create(fault.id)
        ));
    }
    database.sql(&create(HEALTHY));
    database.stop(&mut wrapper.process);

    let good: Vec<_> = FAULTS
        .iter()
        .map(|fault| fs::read(file(fault)).unwrap())
        .collect();
    fs::write(file(&EMPTY), "").unwrap();
    let half = fs::read(file(&TRUNCATED)).unwrap();
    fs::write(file(&TRUNCATED), &half[..half.len() / 2]).unwrap();
    fs::write(file(&FOREIGN), "-----BEGIN CERTIFICATE-----").unwrap();
    fs::set_permissions(file(&WITHOUT_PERMISSION), PermissionsExt::from_mode(0o000)).unwrap();
    chown(file(&OF_ANOTHER_USER), Some(0), Some(0)).unwrap();
    fs::remove_file(file(&DIRECTORY)).unwrap();
    fs::create_dir(file(&DIRECTORY)).unwrap();
    let elsewhere = database.datadir.join("elsewhere");
    fs::rename(file(&SYMLINK), &elsewhere).unwrap();
    symlink(&elsewhere, file(&SYMLINK)).unwrap();
    kms(&["disable-key", "--key-id", &disabled]);
    kms(&["schedule-key-deletion", "--key-id", &deleted]);
    let other = Sandbox::new();
    let other_aws = LocalAws::start_with_account(&other, "444455556666");
    let key = "770a8a65da156d24ee2a093277530142";
    other_aws.wrap_key(&other, key, &file(&OF_ANOTHER_ACCOUNT));

    let mut wrapper = start(&scene, &database);
    for fault in &FAULTS {
        let name = file(fault).display().to_string();
        fault.check(&database, &messages(&wrapper.process, &name)[0]);
        // The server's own advice would be: "Please drop the table and recreate."
        let error = database.sql_error(&select(fault.id));
        let (_, said_first) = error.split_once("ERROR ").unwrap();
        assert!(
            said_first.contains("The data is not corrupted: do not drop the table"),
            "{error}"
        );
        if fault.id != OF_ANOTHER_ACCOUNT.id {
            fault.check(&database, said_first);
        }
        let error = database.sql_error(&create_another(fault.id));
        fault.check(&database, &error);
    }
    assert_eq!(database.sql(&select(HEALTHY)), HEALTHY.to_string());
    database.sql(&create(HEALTHY + 1));

    fs::remove_dir(file(&DIRECTORY)).unwrap();
    fs::remove_file(file(&SYMLINK)).unwrap();
    for (fault, content) in FAULTS.iter().zip(&good) {
        fs::write(file(fault), content).unwrap();
        fs::set_permissions(file(fault), PermissionsExt::from_mode(0o600)).unwrap();
        chown(file(fault), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    kms(&["enable-key", "--key-id", &disabled]);
    kms(&["cancel-key-deletion", "--key-id", &deleted]);
    kms(&["enable-key", "--key-id", &deleted]);
    database.stop(&mut wrapper.process);
    let mut wrapper = start(&scene, &database);
    for fault in &FAULTS {
        assert_eq!(database.sql(&select(fault.id)), fault.id.to_string());
    }
    database.stop(&mut wrapper.process);
}

#[test]
fn without_the_servers_own_key_the_start_fails_with_the_files_name() {
    let scene = Scene::new().with_broker();
    let database = database(&scene).options(&["--innodb-encrypt-log=ON"]);
    let mut wrapper = start(&scene, &database);
    database.stop(&mut wrapper.process);
    let file = key_file(&database.datadir, 1);
    let good = fs::read(&file).unwrap();
    fs::write(&file, "").unwrap();

    let mut wrapper = spawn(&scene, &database);
    let (status, output) = wrapper.process.finish();
    assert!(!status.success());
    let message = format!("key file '{}' is empty; restore it", file.display());
    assert!(output.contains(&message), "{output}");

    fs::write(&file, good).unwrap();
    let mut wrapper = start(&scene, &database);
    database.stop(&mut wrapper.process);
}

#[test]
fn keys_are_made_beside_a_directory_of_fsck_that_root_alone_can_read() {
    let scene = Scene::new().with_broker();
    let database = database(&scene).options(&["--innodb-encrypt-log=ON"]);
    let of_fsck = database.datadir.join("lost+found");
    fs::create_dir(&of_fsck).unwrap();
    fs::set_permissions(&of_fsck, PermissionsExt::from_mode(0o700)).unwrap();
    let mut wrapper = start(&scene, &database);
    database.sql(&format!("CREATE DATABASE d; {}", create(10)));
    database.stop(&mut wrapper.process);
    // The control: another directory may be a database.
    let of_root = database.datadir.join("other");
    fs::rename(&of_fsck, &of_root).unwrap();
    let mut wrapper = start(&scene, &database);
    let error = database.sql_error(&create(11));
    assert!(error.contains(of_root.to_str().unwrap()), "{error}");
    database.stop(&mut wrapper.process);
}

#[test]
fn a_key_that_cannot_be_listed_encrypts_nothing_however_often_it_is_asked_for() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let mut wrapper = start(&scene, &database);
    database.sql("CREATE DATABASE d");
    // A sticky directory of somebody else keeps the server from replacing what is not its own.
    let manifest = database.datadir.join("aws-kms-keys.list");
    let give = |owner| {
        chown(&manifest, Some(owner), None).unwrap();
        chown(&database.datadir, Some(owner), None).unwrap();
    };
    fs::set_permissions(&manifest, PermissionsExt::from_mode(0o644)).unwrap();
    fs::set_permissions(&database.datadir, PermissionsExt::from_mode(0o1777)).unwrap();
    give(0);
    for _ in 0..2 {
        let error = database.sql_error(&create(20));
        assert!(error.contains(manifest.to_str().unwrap()), "{error}");
    }
    give(NOBODY);
    database.sql(&create(20));
    let listed = fs::read_to_string(&manifest).unwrap();
    assert!(listed.contains("20 1 "), "{listed}");
    database.stop(&mut wrapper.process);
}

/// A small file system of its own, until dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        let options = format!("size=256k,mode=700,uid={NOBODY},gid={NOBODY}");
        mount(&["-t", "tmpfs", "-o", &options, "key-files"], &path);
        Self(path)
    }

    fn remount(&self, option: &str) {
        mount(&["-o", &format!("remount,{option}")], &self.0);
    }

    /// Leaves no room, and returns the file that takes it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("something-else");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let output = Command::new("mount").args(arguments).arg(path).output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "this test mounts a file system, which takes root and CAP_SYS_ADMIN: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.unwrap().success());
    }
}

/// A server with its key files in a directory of their own, and one key.
struct OwnDirectory {
    directory: PathBuf,
    database: Database,
    scene: Scene,
}

impl OwnDirectory {
    fn new(scene: Scene, directory: PathBuf) -> Self {
        let option = format!("--aws-key-management-keyfile-dir={}", directory.display());
        let database = database(&scene).options(&[&option]);
        Self {
            directory,
            database,
            scene,
        }
    }

    fn start(&self) -> Wrapper {
        start(&self.scene, &self.database)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("aws-kms-key."))
            .collect();
        names.sort();
        names
    }

    /// No key and no version is made, the reason is told with the key file, and the key that is there works.
    fn check_nothing_is_made(&self, reasons: [&str; 2]) {
        let before = self.names();
        self.check_all_is_refused(|_| {
            let directory = self.directory.display().to_string();
            [directory, reasons[0].into(), reasons[1].into()]
        });
        assert_eq!(self.names(), before);
    }

    /// The same, with the reasons for each file.
    fn check_all_is_refused(&self, reasons: impl Fn(&str) -> [String; 3]) {
        let error = self.database.sql_error(&create(20));
        let rotation = "SET GLOBAL aws_key_management_rotate_key=10";
        let warning = self.database.sql(rotation);
        for (message, file) in [(error, "aws-kms-key.20.1"), (warning, "aws-kms-key.10.2")] {
            for expected in reasons(file) {
                assert!(message.contains(&expected), "no {expected:?} in: {message}");
            }
        }
        self.database.sql(
            "INSERT INTO d.t10 VALUES (10);
             CREATE TABLE d.same_key (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
             DROP TABLE d.same_key",
        );
    }

    fn check_all_is_made(&self) {
        self.database.sql(&create(20));
        self.database
            .sql("SET GLOBAL aws_key_management_rotate_key=10");
        let made = [
            "aws-kms-key.1.1",
            "aws-kms-key.10.1",
            "aws-kms-key.10.2",
            "aws-kms-key.20.1",
        ];
        assert_eq!(self.names(), made);
    }
}

/// A server with key 10 in use, whose key files have a disk to themselves.
fn start_on_a_disk_of_its_own() -> (Disk, OwnDirectory, Wrapper) {
    let scene = Scene::new().with_broker();
    let directory = scene.sandbox.directory("keys");
    let disk = Disk::mount(directory.clone());
    let own = OwnDirectory::new(scene, directory);
    let wrapper = own.start();
    own.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    (disk, own, wrapper)
}

#[test]
fn a_full_disk_is_reported_and_keys_are_made_as_soon_as_there_is_room() {
    let (disk, own, mut wrapper) = start_on_a_disk_of_its_own();
    let filler = disk.fill();
    own.check_nothing_is_made(["No space left on device", "make room on the disk"]);
    fs::remove_file(filler).unwrap();
    own.check_all_is_made();
    own.database.stop(&mut wrapper.process);
}

#[test]
fn a_read_only_disk_is_reported_and_is_enough_for_the_keys_that_are_there() {
    let (disk, own, mut wrapper) = start_on_a_disk_of_its_own();
    own.database.stop(&mut wrapper.process);
    disk.remount("ro");
    let mut wrapper = own.start();
    own.check_nothing_is_made(["Read-only file system", "let the server write there"]);
    disk.remount("rw");
    own.check_all_is_made();
    own.database.stop(&mut wrapper.process);
}

#[test]
fn a_directory_that_may_not_be_written_is_reported_and_is_enough_for_the_keys_that_are_there() {
    let scene = Scene::new().with_broker();
    let directory = scene.sandbox.directory("keys");
    let give = |owner| chown(&directory, Some(owner), Some(owner)).unwrap();
    give(NOBODY);
    let own = OwnDirectory::new(scene, directory.clone());
    let mut wrapper = own.start();
    own.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    own.database.stop(&mut wrapper.process);
    give(0);
    let mut wrapper = own.start();
    let advice = "let the user of the server write to that directory";
    own.check_nothing_is_made(["Permission denied", advice]);
    give(NOBODY);
    own.check_all_is_made();
    own.database.stop(&mut wrapper.process);
}

/// The next start would look for new key files where the path leads then.
#[test]
fn a_directory_that_is_moved_replaced_or_mounted_over_gets_no_new_key_until_it_is_back() {
    let scene = Scene::new().with_broker();
    let directory = scene.sandbox.directory("keys");
    let [away, other] = ["away", "other"].map(|name| scene.sandbox.path(name));
    chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    let own = OwnDirectory::new(scene, directory.clone());
    let mut wrapper = own.start();
    let missing = || own.database.status("key\\_files\\_missing");
    own.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    let before = own.names();
    let check = || {
        own.check_all_is_refused(|_| {
            let name = format!("directory '{}' was moved", directory.display());
            [name, "put that directory back".into(), "restart".into()]
        });
    };

    // To another disk, behind a symbolic link, with all files.
    copy(&directory, &other);
    fs::rename(&directory, &away).unwrap();
    check();
    symlink(&other, &directory).unwrap();
    check();
    assert_eq!(own.names(), before);
    wait_until("the inspection", || missing() == "2");
    fs::remove_file(&directory).unwrap();
    fs::rename(&away, &directory).unwrap();
    assert_eq!(own.names(), before);
    let disk = Disk::mount(directory.clone());
    check();
    assert!(own.names().is_empty());
    drop(disk);
    own.check_all_is_made();
    own.database.stop(&mut wrapper.process);

    // Removed and made again, as `mv` does between file systems: a restart is enough.
    let mut wrapper = own.start();
    let before = own.names();
    fs::remove_dir_all(&other).unwrap();
    copy(&directory, &other);
    fs::remove_dir_all(&directory).unwrap();
    copy(&other, &directory);
    let warning = own
        .database
        .sql("SET GLOBAL aws_key_management_rotate_key=10");
    assert!(warning.contains("was moved, replaced"), "{warning}");
    assert_eq!(own.names(), before);
    own.database.stop(&mut wrapper.process);
    let mut wrapper = own.start();
    own.database.sql(&select(10));
    own.database
        .sql("SET GLOBAL aws_key_management_rotate_key=10");
    assert_eq!(own.names().len(), before.len() + 1);
    own.database.stop(&mut wrapper.process);
}

#[test]
fn while_no_key_file_can_be_written_no_new_key_comes_into_the_key_store() {
    let scene = Scene::new().with_broker();
    let store = StoreDirectory::new(&scene.sandbox);
    for path in [store.path(), &store.path().join("conditional-put-check")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let scene = scene.line(&format!("key_store = {}", store.location()));
    let directory = scene.sandbox.directory("keys");
    let away = scene.sandbox.path("away");
    chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    let own = OwnDirectory::new(scene, directory.clone());
    let mut wrapper = own.start();
    own.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    let before = store.names();
    fs::rename(&directory, &away).unwrap();
    for _ in 0..2 {
        own.check_all_is_refused(|_| {
            ["was moved", "put that directory back", "restart"].map(str::to_owned)
        });
    }
    assert_eq!(store.names(), before);
    fs::rename(&away, &directory).unwrap();
    chown(&directory, Some(0), Some(0)).unwrap();
    for _ in 0..2 {
        own.check_nothing_is_made(["Permission denied", "let the user of the server write"]);
    }
    assert_eq!(store.names(), before);
    chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    own.check_all_is_made();
    own.database.stop(&mut wrapper.process);
}

/// As a backup program that locks what it copies, and hangs.
#[test]
fn while_another_process_has_the_lock_a_rotation_of_many_keys_ends_in_time() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let mut wrapper = start(&scene, &database);
    let tables: String = (3..43).map(|id| create(id) + ";").collect();
    database.sql(&format!("CREATE DATABASE d; {tables}"));
    let lock = fs::File::open(&database.datadir).unwrap();
    lock.lock().unwrap();
    let start = Instant::now();
    let warnings = database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    // Ten seconds for all keys, and what a busy machine needs.
    assert!(start.elapsed() < Duration::from_secs(60), "{warnings}");
    assert!(
        warnings.contains("another process has kept its lock for ten seconds"),
        "{warnings}"
    );
    drop(lock);
    let warnings = database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    assert!(!warnings.contains("was not rotated"), "{warnings}");
    database.stop(&mut wrapper.process);
}

#[test]
fn a_directory_that_may_not_be_read_is_reported_at_the_start() {
    let scene = Scene::new().with_broker();
    let directory = scene.sandbox.directory("keys");
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
    let own = OwnDirectory::new(scene, directory.clone());
    let (status, output) = spawn(&own.scene, &own.database).process.finish();
    assert!(!status.success());
    let message = format!(
        "cannot open the key file directory '{}': Permission denied",
        directory.display()
    );
    assert!(output.contains(&message), "{output}");
    assert!(output.contains("give this user access to it"), "{output}");
}
