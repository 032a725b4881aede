//! What the end-to-end tests stand on: real programs, each in a directory of its own, started on
//! readiness and ended when dropped.
//!
//! The programs under test come from the directory that `IAM_KMS_DIST` names: `bin/` and `plugin/`,
//! as `make dist` lays them out. Nothing here mocks anything: MariaDB, oathtool and the AWS CLI are
//! the real ones, AWS is `local-aws`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod aws;
mod backup;
pub mod chaos;
mod checked;
mod database;
mod fences;
mod fifo_writer;
pub mod inspection;
mod machine;
mod manager;
mod process;
mod proxy;
mod sandbox;
mod scene;
mod server;
mod terminal;
mod traces;
mod wrapper;

pub use aws::{LocalAws, aws_cli};
pub use backup::{backup, backup_command_line, backup_succeeded, try_backup};
pub use checked::Checked;
pub use database::{
    Database, ENCRYPT_ALL, SqlError, contains_bytes, key_files, run_client, try_sql,
};
pub use fences::{Fence, fence};
pub use fifo_writer::FifoWriter;
pub use machine::{Image, Machine};
pub use manager::{Manager, pass};
pub use process::{Process, wait_until};
pub use proxy::Proxy;
pub use sandbox::{Sandbox, dist, number_from_environment};
pub use scene::{NOBODY, Scene, after, after_python, mode, set_user, variables_of};
pub(crate) use server::owner_of;
pub use server::{command, mariadb_program};
pub use terminal::Terminal;
pub use traces::{traces, traces_in_memory};
pub use wrapper::{Configuration, Wrapper, write_fifo};

/// Longest wait for anything that is expected to happen, in seconds. It only costs when something is
/// wrong: the tests run side by side on small machines with other load, and nothing waits longer than
/// it has to.
pub const PATIENCE_SECONDS: u64 = 300;
