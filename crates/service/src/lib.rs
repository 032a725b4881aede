//! What the programs need as services of a host: the log ([`logging`]), notifications to systemd
//! ([`systemd`]), the session that systemd stores ([`stored_session`]), the protection of the process
//! ([`process`]), the command ([`command`], [`environment`]) and the handover to the broker
//! ([`handover`]).

pub mod audit_events;
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
pub mod standard_output;
pub mod stored_session;
pub mod systemd;
pub mod usage;
