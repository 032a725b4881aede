//! Support for the end-to-end tests. Each test runs real programs in its own directory, waits until they
//! are ready, and ends them when their values are dropped.
//!
//! The programs under test come from the directory that `IAM_KMS_DIST` names: `bin/` and `plugin/`,
//! as `make dist` lays them out. Nothing here mocks anything: MariaDB, oathtool and the AWS CLI are
//! the real ones, AWS is `local-aws`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(test)]
mod audit_events;
mod aws;
mod backup;
pub mod broker;
pub mod chaos;
mod checked;
pub mod console;
mod database;
mod fences;
mod fifo_writer;
pub mod fleet;
pub mod inspection;
pub mod key_server;
mod machine;
pub mod manage_key;
mod manager;
mod object_storage;
pub mod offline_keys;
mod process;
mod proxy;
mod sandbox;
mod scene;
mod server;
pub mod tables;
mod terminal;
mod traces;
mod wrapper;

pub use aws::{LocalAws, ONLY_WITH_MFA, aws_cli};
pub use backup::{backup, backup_command_line, backup_succeeded, try_backup};
pub use checked::Checked;
pub use database::{
    Database, ENCRYPT_ALL, NEW_KEY, SqlError, contains_bytes, key_files, run_client, try_sql,
};
pub use fences::{Fence, fence, shell_in};
pub use fifo_writer::FifoWriter;
pub use machine::{Image, Machine};
pub use manager::{Manager, pass};
pub use object_storage::{Fault, ObjectStorage, StoreDirectory, TlsStorage, What};
pub use process::{ChildGuard, Process, run_with_input, wait_until, wait_until_with};
pub use proxy::{Proxy, relay};
pub use sandbox::{Sandbox, copy, dist, number_from_environment};
pub use scene::{NOBODY, Scene, after, after_mounting, after_python, mode, set_user, variables_of};
pub use server::{command, mariadb_program};
pub(crate) use server::{owner_of, server_options};
pub use terminal::Terminal;
pub use traces::{traces, traces_in_memory};
pub use wrapper::{Configuration, ECHO, SLEEP, Wrapper, write_fifo};

/// How long to wait for anything that is expected to happen, in seconds. The tests share small machines
/// with other load. A long limit costs time only when something is wrong.
pub const PATIENCE_SECONDS: u64 = 300;
