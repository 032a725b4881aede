//! The two key servers.

use std::{process::Command, thread, time::Duration};

use end_to_end_tests::{
    LocalAws, StoreDirectory,
    key_server::{Authority, DAY, KeyServer},
};
use fastrand::Rng;

use crate::HOSTS;

/// Longest pauses, in milliseconds: between two kills, until a killed server is started again, and until it gets its
/// session.
const PAUSE: u64 = 1000;
const DOWN: u64 = 700;
const LOCKED: u64 = 500;

/// The address of the key servers for a host.
fn address_for(host: usize) -> String {
    format!("127.2.0.{}", host + 1)
}

/// Gives each host its own address, because a key server limits the handshakes from one address. Call it in a separate
/// network namespace.
pub fn give_addresses() {
    for host in 0..HOSTS {
        let (to, from) = (address_for(host), format!("127.1.0.{}", host + 1));
        let route = ["route", "add", "local", &to, "dev", "lo", "src", &from];
        let added = Command::new("ip")
            .args(route)
            .args(["table", "local"])
            .status();
        assert!(added.unwrap().success());
    }
}

/// Two key servers, one of which has a session at any time.
pub struct Servers<'a> {
    aws: &'a LocalAws,
    /// From one code. It is given to a server again and again.
    session: String,
    both: [KeyServer; 2],
    kills: [usize; 2],
}

impl<'a> Servers<'a> {
    /// Starts both, and gives them a session.
    pub fn start(
        aws: &'a LocalAws,
        store: &StoreDirectory,
        authority: &Authority,
        sections: &str,
    ) -> Self {
        let addresses: Vec<_> = (0..HOSTS).map(address_for).collect();
        let mut names: Vec<_> = addresses.iter().map(String::as_str).collect();
        names.push("127.0.0.1");
        let both = ["keys1", "keys2"].map(|name| {
            let tls = authority.issue(name, &names, 100 * DAY);
            let mut server = KeyServer::new(aws, store, tls, sections);
            server.listen = "0.0.0.0";
            server
        });
        let mut servers = Self {
            aws,
            session: aws.session_document(),
            both,
            kills: [0; 2],
        };
        for server in &mut servers.both {
            server.start(aws);
            server.hand(&servers.session);
        }
        servers
    }

    /// `upstream` of a host.
    pub fn upstream(&self, host: usize) -> [String; 2] {
        [0, 1].map(|server| format!("{}:{}", address_for(host), self.both[server].port))
    }

    /// How often each was killed.
    pub fn kills(&self) -> [usize; 2] {
        self.kills
    }

    /// Kills one of them, and brings it back. Returns after a pause, in which both serve.
    pub fn kill_one(&mut self, rng: &mut Rng) {
        let pause =
            |rng: &mut Rng, longest| thread::sleep(Duration::from_millis(rng.u64(..longest)));
        let victim = rng.usize(..2);
        let server = &mut self.both[victim];
        loop {
            server.kill();
            self.kills[victim] += 1;
            pause(rng, DOWN);
            server.start(self.aws);
            pause(rng, LOCKED);
            // Sometimes again before it has a session.
            if rng.u8(..4) > 0 {
                break;
            }
        }
        server.hand(&self.session);
        pause(rng, PAUSE);
    }

    /// Both again, each after a restart.
    pub fn restarted(&mut self) -> &[KeyServer; 2] {
        for server in &mut self.both {
            server.kill();
            server.start(self.aws);
            server.hand(&self.session);
        }
        &self.both
    }
}
