//! Each module is about one part of the whole; every test runs the real programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod broker;
mod broker_service;
mod chaos;
mod check;
mod code_channel;
mod crash_restart;
mod credential_directory;
mod data_keys;
mod documents;
mod exit_codes;
mod go_compatibility;
mod inheritance;
mod key_file_crashes;
mod key_file_faults;
mod kms_outages;
mod machine_role;
mod manage_key;
mod many_hosts;
mod mock;
mod plugin_in_c;
mod secrets;
mod server_algorithms;
mod server_backup;
mod server_check_datadir;
mod server_copies;
mod server_keys;
mod server_keystreams;
mod server_lifecycle;
mod server_lost_keys;
mod server_main_job;
mod server_memory;
mod server_messages;
mod server_migration;
mod server_offline_keys;
mod server_session;
mod sql_user;
mod sts_answers;
mod systemd_notify;
mod terminal;
mod unlock;
mod waiting_calls;
