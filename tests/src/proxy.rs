//! A proxy that speaks CONNECT, as a company has one.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// A proxy on this host that takes every host of AWS to `local-aws`.
pub struct Proxy {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts it. Whatever it is asked to connect to, it connects to `target` (`HOST:PORT`).
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            heads: Arc::default(),
        };
        let (heads, target) = (Arc::clone(&proxy.heads), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (heads, target) = (Arc::clone(&heads), target.clone());
                thread::spawn(move || serve(client, &heads, &target));
            }
        });
        proxy
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its URL with a user and a password.
    pub fn url_with_password(&self, password: &str) -> String {
        format!("http://operator:{password}@{}", self.address)
    }

    /// What it was asked: each request line and its headers.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The hosts that it was asked to connect to.
    pub fn hosts(&self) -> Vec<String> {
        self.heads()
            .iter()
            .map(|head| head.split(' ').nth(1).unwrap_or_default().to_owned())
            .collect()
    }
}

fn serve(mut client: TcpStream, heads: &Mutex<Vec<String>>, target: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let is_connect = head.starts_with("CONNECT ");
    heads.lock().unwrap().push(head);
    let server = TcpStream::connect(target);
    let (Ok(server), true) = (server, is_connect) else {
        let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    if client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_err() {
        return;
    }
    let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || relay(from, to));
    relay(server, client);
}

/// Copies what comes from one side to the other, until it ends.
pub fn relay(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
