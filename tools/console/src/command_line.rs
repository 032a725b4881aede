//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use aws_session::config::{DEFAULT_FIFO, TlsFiles};
use broker_api::DEFAULT_OVERVIEW_SOCKET;
use clap::{Args, CommandFactory, Parser, error::ErrorKind};
use code_channel::note::MAX_NAME_BYTES;

/// Shows a broker's session, keys and audit on one page, and takes an MFA code.
#[derive(Debug, Parser)]
#[command(
    name = "iam-kms-console",
    version,
    override_usage = "iam-kms-console [OPTIONS]",
    after_help = "\
To open the page from another machine, at http://localhost:8080/:
  ssh -L 8080:/run/iam-kms-console/console.sock HOST
Whoever may connect to the socket sees the page and can enter a code.
Exit status: 0 after SIGTERM or SIGINT, 125 after a failure."
)]
pub struct CommandLine {
    /// The page's socket; or ADDRESS:PORT, which without TLS is a loopback address, open to every user of this host
    #[arg(long, value_name = "WHERE", default_value = "/run/iam-kms-console/console.sock", value_parser = place)]
    pub listen: Place,

    /// Certificates for a page that is served over TLS
    #[command(flatten)]
    pub tls: Option<Tls>,

    /// The broker's overview_socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_OVERVIEW_SOCKET)]
    pub overview_socket: PathBuf,

    /// The FIFO that takes the code
    #[arg(long, value_name = "PATH", default_value = DEFAULT_FIFO)]
    pub fifo: PathBuf,
}

/// What TLS needs. All of it, or nothing.
#[derive(Debug, Args)]
#[group(multiple = true, requires_all = ["certificate", "key", "client_ca", "operators"])]
pub struct Tls {
    /// This host's certificate and intermediate ones
    #[arg(long = "tls-certificate", value_name = "FILE", required = false)]
    certificate: PathBuf,

    /// Its private key
    #[arg(long = "tls-key", value_name = "FILE", required = false)]
    key: PathBuf,

    /// Authorities of the operators' certificates
    #[arg(long = "tls-client-ca", value_name = "FILE", required = false)]
    client_ca: PathBuf,

    /// Who may use the page, by a subject alternative name (e-mail, DNS, URI); repeatable
    #[arg(long = "operator", value_name = "NAME", required = false, value_parser = operator)]
    pub operators: Vec<String>,
}

impl Tls {
    /// The files.
    pub fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.client_ca.clone(),
        }
    }
}

/// What `--listen` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Socket(PathBuf),
    /// A port.
    Port(SocketAddr),
}

/// Where the page is served, and to whom.
#[derive(Debug)]
pub enum Listen {
    /// To those who may use a Unix socket.
    Socket(PathBuf),
    /// To everybody on this host.
    Loopback(SocketAddr),
    /// To the operators.
    Tls(SocketAddr, Tls),
}

impl CommandLine {
    /// Returns where the page is served.
    ///
    /// Errors: certificates and the place do not belong together.
    pub fn listen(self) -> Result<Listen, clap::Error> {
        let conflict = |why: &str| Self::command().error(ErrorKind::ArgumentConflict, why);
        match (self.listen, self.tls) {
            (Place::Socket(path), None) => Ok(Listen::Socket(path)),
            (Place::Port(address), Some(tls)) => Ok(Listen::Tls(address, tls)),
            (Place::Port(address), None) if address.ip().is_loopback() => {
                Ok(Listen::Loopback(address))
            }
            (Place::Port(_), None) => Err(conflict(
                "an address that other hosts reach needs TLS: --tls-certificate, --tls-key, --tls-client-ca and --operator",
            )),
            (Place::Socket(_), Some(_)) => Err(conflict(
                "a socket is served without TLS; give --listen=ADDRESS:PORT, or leave the certificates out",
            )),
        }
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text.parse() {
        Ok(address) => Ok(Place::Port(address)),
        Err(_) if text.starts_with('/') => Ok(Place::Socket(text.into())),
        Err(_) => Err("must be the absolute path of a socket, or ADDRESS:PORT".into()),
    }
}

/// A name as certificates have it: DNS names in lower case.
fn operator(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("must not be empty".into()),
        1..=MAX_NAME_BYTES if text.contains(['@', ':']) => Ok(text.into()),
        1..=MAX_NAME_BYTES => Ok(text.to_ascii_lowercase()),
        _ => Err(format!("must not be longer than {MAX_NAME_BYTES} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(arguments: &[&str]) -> Result<Listen, String> {
        let line = CommandLine::try_parse_from([&["iam-kms-console"], arguments].concat());
        let listen = line.and_then(CommandLine::listen);
        listen.map_err(|error| error.to_string())
    }

    const TLS: [&str; 4] = [
        "--tls-certificate=a.pem",
        "--tls-key=a.key",
        "--tls-client-ca=ca.pem",
        "--operator=DBA.example",
    ];

    #[test]
    fn without_certificates_the_page_is_served_to_this_host_alone() {
        for text in ["/run/a.sock", "127.0.0.1:8080", "[::1]:8080"] {
            assert!(listen(&["--listen", text]).is_ok(), "{text}");
        }
        for text in [
            "0.0.0.0:8080",
            "10.1.2.3:8080",
            "a.sock",
            "localhost:8080",
            "",
        ] {
            assert!(listen(&["--listen", text]).is_err(), "{text}");
        }
    }

    #[test]
    fn certificates_go_with_an_address_and_are_complete() {
        let with = |place, tls: &[&str]| listen(&[&["--listen", place], tls].concat());
        let Ok(Listen::Tls(_, tls)) = with("0.0.0.0:8443", &TLS) else {
            panic!("refused");
        };
        assert_eq!(tls.operators, ["dba.example"]);
        assert!(with("127.0.0.1:8443", &TLS).is_ok());
        assert!(with("/run/a.sock", &TLS).is_err());
        for missing in 0..TLS.len() {
            let mut some = TLS.to_vec();
            some.remove(missing);
            assert!(with("0.0.0.0:8443", &some).is_err(), "{missing}");
        }
    }
}
