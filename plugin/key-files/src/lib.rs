//! The files in which wrapped data keys lie: their names ([`key_name`]), reading them and making
//! new ones that no crash can spoil ([`key_directory`]).
//!
//! The plugin and the operator's tools share it.

#![forbid(unsafe_code)]

pub mod fault_points;
pub mod key_directory;
pub mod key_name;
