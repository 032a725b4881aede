//! What a program of ours needs to live on a host: its log ([`logging`]), what it tells systemd
//! ([`systemd`]) and has it keep ([`stored_session`]), what protects its memory ([`process`]), the command
//! that it runs ([`command`], [`environment`]) and the broker that it starts ([`handover`]).

pub mod command;
pub mod environment;
pub mod handover;
pub mod listen_fds;
pub mod logging;
pub mod on_abort;
pub mod process;
pub mod process_status;
pub mod signals;
pub mod socket_path;
pub mod stored_session;
pub mod systemd;
pub mod usage;
