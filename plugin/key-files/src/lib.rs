//! The files in which wrapped data keys lie: their names ([`key_name`]), reading them, making
//! new ones and wrapping them anew so that no crash can spoil them ([`key_directory`]).
//!
//! The plugin and the operator's tools share it.

#![forbid(unsafe_code)]

pub mod fault_points;
pub mod key_directory;
pub mod key_name;
