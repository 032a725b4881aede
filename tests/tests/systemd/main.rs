//! MariaDB's own service under a systemd of its own, with the units and examples of this repository.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod broker_service;
mod console_service;
mod crash_restart;
mod examples;
mod hand_over;
mod old_systemd;
mod package;
mod prompt;
mod recordings;
mod setup;
mod site;
mod starting;
mod stopping;
mod units;
