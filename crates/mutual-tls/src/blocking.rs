//! A connection without a runtime, for the preflight and the tests.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use aws_session::config::ServerAddress;
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::{ClientTls, in_words};

/// A connection to a key server.
pub type BlockingStream = StreamOwned<ClientConnection, TcpStream>;

impl ClientTls {
    /// Connects to a key server, and shows it the certificate. Connecting, and each read and write, may take `patience`:
    /// the addresses of its name share that.
    ///
    /// The error says in people's words why that failed.
    pub fn connect_blocking(
        &self,
        server: &ServerAddress,
        patience: Duration,
    ) -> Result<BlockingStream, String> {
        let text = |error: io::Error| error.to_string();
        let addresses = (server.host.as_str(), server.port)
            .to_socket_addrs()
            .map_err(text)?;
        let share = patience / addresses.len().max(1) as u32;
        let mut failure = "it has no address".into();
        for address in addresses {
            match TcpStream::connect_timeout(&address, share) {
                Ok(socket) => return self.greet_blocking(socket, server, patience),
                Err(error) => failure = text(error),
            }
        }
        Err(failure)
    }

    /// Makes the TLS handshake over a connected socket.
    pub fn greet_blocking(
        &self,
        mut socket: TcpStream,
        server: &ServerAddress,
        patience: Duration,
    ) -> Result<BlockingStream, String> {
        let text = |error: io::Error| error.to_string();
        socket.set_nodelay(true).map_err(text)?;
        socket.set_read_timeout(Some(patience)).map_err(text)?;
        socket.set_write_timeout(Some(patience)).map_err(text)?;
        let name = ServerName::try_from(server.host.clone()).map_err(|error| error.to_string())?;
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name)
            .map_err(|error| in_words(&error))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).map_err(reason)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }
}

/// The reason why TLS failed, in people's words.
pub fn reason(error: io::Error) -> String {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => in_words(error),
        None => error.to_string(),
    }
}
