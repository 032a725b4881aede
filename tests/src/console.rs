//! `iam-kms-console` beside a broker.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
};

use crate::{Process, Scene, dist};

/// A broker that waits for a code, and a console beside it.
pub struct Console {
    /// AWS and the broker's configuration.
    pub scene: Scene,
    /// The broker.
    pub broker: Process,
    /// The console.
    pub process: Process,
    /// Where it listens.
    pub page: Page,
}

/// The page on a socket.
pub struct Page {
    /// The socket.
    pub socket: PathBuf,
}

/// An answer of the console.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, with the status line.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Console {
    /// Starts both. The console listens on a socket.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self::of(Scene::new())
    }

    /// Starts both, with this configuration.
    pub fn of(scene: Scene) -> Self {
        Self::start(scene, None, &[])
    }

    /// Starts both, with this configuration. The console listens on an address of this host, for a browser, and gets
    /// further arguments.
    pub fn listening_on(address: &str, scene: Scene, arguments: &[String]) -> Self {
        Self::start(scene, Some(address), arguments)
    }

    fn start(scene: Scene, address: Option<&str>, arguments: &[String]) -> Self {
        let scene = scene.with_broker();
        let run = scene.fifo().parent().unwrap().to_owned();
        let overview = run.join("overview.sock");
        let scene = scene.line(&format!("overview_socket = {}", overview.display()));
        let broker = Process::start(&mut scene.broker_command());
        broker.wait_for("enter an MFA code");
        let socket = run.join("console.sock");
        let mut command = Command::new(dist("bin/iam-kms-console"));
        command
            .arg(match address {
                Some(address) => format!("--listen={address}"),
                None => format!("--listen={}", socket.display()),
            })
            .arg(format!("--overview-socket={}", overview.display()))
            .arg(format!("--fifo={}", scene.fifo().display()))
            .args(arguments)
            .env_clear();
        let process = Process::start(&mut command);
        process.wait_for("the page is at");
        Self {
            scene,
            broker,
            process,
            page: Page { socket },
        }
    }
}

/// The token of a page's form.
pub fn token_of(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"token\" value=\"").unwrap();
    rest.split_once('"').unwrap().0.into()
}

fn request_of_form(headers: &str, form: &str) -> String {
    format!(
        "POST /code HTTP/1.1\r\nHost: localhost:8080\r\n{headers}\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    )
}

impl Page {
    fn begin(&self, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Sends a request as it is, and returns the answer.
    pub fn send(&self, request: &str) -> Answer {
        let mut stream = self.begin(request);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            status,
            head: head.into(),
            body: body.into(),
        }
    }

    /// Gets a path.
    pub fn get(&self, path: &str) -> Answer {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"
        ))
    }

    /// The token of the page's form.
    pub fn token(&self) -> String {
        token_of(&self.get("/").body)
    }

    /// Sends the form, with further header lines.
    pub fn post(&self, headers: &str, form: &str) -> Answer {
        self.send(&request_of_form(headers, form))
    }

    /// Sends the form, and returns the connection without reading the answer.
    pub fn begin_post(&self, headers: &str, form: &str) -> UnixStream {
        self.begin(&request_of_form(headers, form))
    }

    /// Enters a code as the page does, and returns the page that follows.
    pub fn enter(&self, code: &str, reason: &str) -> String {
        let form = format!("token={}&code={code}&reason={reason}", self.token());
        let answer = self.post("Origin: http://localhost:8080\r\n", &form);
        assert_eq!(answer.status, 303, "{}", answer.head);
        self.get("/").body
    }
}
