//! From AES_CBC, as the stock plugin writes it, to AES_CTR while the server runs.

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Scene,
    tables::{assert_rows, check_tables, insert, make_tables},
    wait_until,
};
use nix::sys::signal::SIGKILL;

#[test]
fn a_running_server_moves_from_cbc_to_ctr_and_survives_being_killed() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&[
            "--innodb-encrypt-temporary-tables=ON",
            "--innodb-default-encryption-key-id=3",
        ])
        .re_encrypting();
    let mut server = scene.start_database(&database);
    make_tables(&database);
    insert(&database, 1, 500);

    // InnoDB leaves alone what is one version behind; so it moves everything at the second rotation.
    database.sql(
        "SET GLOBAL aws_key_management_encryption_algorithm=AES_CTR;
         SET GLOBAL aws_key_management_rotate_key=-1;
         SET GLOBAL aws_key_management_rotate_key=-1",
    );
    let files = database.key_files();
    for file in [
        "aws-kms-key.1.3",
        "aws-kms-key.2.3",
        "aws-kms-key.3.1",
        "aws-kms-key.3.3.ctr",
    ] {
        assert!(files.contains(&file.into()), "{files:?}");
    }
    insert(&database, 501, 1000);
    wait_until("InnoDB to re-encrypt all its tables", || {
        // What was re-encrypted between the two rotations stays under version 2.
        let moved = "SELECT MIN(MIN_KEY_VERSION) > 1, COUNT(*) > 3
            FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME = 1";
        database.sql(moved) == "1\t1"
    });
    insert(&database, 1001, 1500);
    assert_rows(&database, 1500);
    server.process.signal(SIGKILL);
    server.process.wait();

    let mut server = scene.start_database(&database);
    assert_rows(&database, 1500);
    check_tables(&database);
    database.stop(&mut server.process);
}

#[test]
fn a_node_of_a_cluster_makes_no_versions_of_ctr() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            "--aws-key-management-encryption-algorithm=AES_CTR",
            "--innodb-encrypt-tables=ON",
            "--wsrep-on=ON",
            "--wsrep-provider=/usr/lib/galera/libgalera_smm.so",
            "--wsrep-provider-options=base_port=0;gmcast.listen_addr=tcp://127.0.0.1:0",
            "--wsrep-cluster-address=gcomm://",
            "--wsrep-node-address=127.0.0.1",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
        ]);
    let mut server = scene.start_database(&database);
    // A node is ready for connections a moment before it takes statements.
    wait_until("wsrep_ready", || {
        let ready = "SHOW STATUS LIKE 'wsrep_ready'";
        database.sql(ready).contains("ON")
    });
    database.sql("CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=3");
    assert_eq!(database.key_files(), ["aws-kms-key.1.1", "aws-kms-key.3.1"]);
    let log = server.process.output();
    assert!(
        log.contains("AES_CBC (AES_CTR is not for cluster nodes)"),
        "{log}"
    );
    database.stop(&mut server.process);
}
