//! Name resolution, for the SDK's HTTP client too.
//!
//! Tokio's own uses its pool of blocking threads, which panics if no thread can be started, keeps idle threads, and in
//! which names that hang hold up all others. This one returns an error, and its threads end with their work.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use tokio::sync::oneshot;

use crate::thread;

/// The addresses of a name, or why there are none.
pub type Answer = Result<Vec<IpAddr>, String>;

/// A look-up that takes so long may take longer than anybody waits for it: where the first name server is down, the C
/// library asks the second one after 5 seconds.
const SLOW: Duration = Duration::from_secs(1);

/// How long the answer of such a one is kept for the next attempts.
const KEPT: Duration = Duration::from_secs(60);

/// What is known of each name, in this process.
static NAMES: Mutex<BTreeMap<String, Name>> = Mutex::new(BTreeMap::new());

enum Name {
    /// A thread looks it up for those who wait.
    Asked(Vec<oneshot::Sender<Answer>>),
    /// It took long to look up.
    Known(Vec<IpAddr>, Instant),
}

/// Asks the name service of the host. Concurrent requests for one name share a look-up, so a name
/// server that hangs blocks only one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resolver;

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move { self.resolve(name).await.map_err(ResolveDnsError::new) })
    }
}

impl Resolver {
    /// The addresses of a name, or of an address itself. Takes as long as the name service.
    ///
    /// The error says why there are none.
    pub async fn resolve(&self, name: &str) -> Answer {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let answer = ask(name)
            .map_err(|error| format!("cannot start a thread for a DNS look-up: {error}"))?;
        answer
            .await
            .unwrap_or_else(|_| Err("the DNS look-up was lost".into()))
    }
}

fn ask(name: &str) -> io::Result<oneshot::Receiver<Answer>> {
    let (sender, receiver) = oneshot::channel();
    let mut names = names();
    match names.get_mut(name) {
        Some(Name::Asked(others)) => {
            others.retain(|sender| !sender.is_closed());
            others.push(sender);
        }
        Some(Name::Known(addresses, at)) if at.elapsed() < KEPT => {
            // The receiver is here.
            let _ = sender.send(Ok(addresses.clone()));
        }
        _ => {
            let asked = name.to_owned();
            thread::apart("dns", move || answer(asked))?;
            names.insert(name.into(), Name::Asked(vec![sender]));
        }
    }
    Ok(receiver)
}

fn answer(name: String) {
    let began = Instant::now();
    let answer = look_up(&name);
    let mut names = names();
    let asked = names.remove(&name);
    if let Ok(addresses) = &answer
        && began.elapsed() >= SLOW
    {
        names.insert(name, Name::Known(addresses.clone(), Instant::now()));
    }
    if let Some(Name::Asked(waiting)) = asked {
        for sender in waiting {
            // A caller that has given up does not need the answer.
            let _ = sender.send(answer.clone());
        }
    }
}

/// The map is consistent at every unlock, even after a panic.
fn names() -> MutexGuard<'static, BTreeMap<String, Name>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_up(name: &str) -> Answer {
    let addresses = (name, 0)
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve {name}: {error}"))?;
    Ok(addresses.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(names: &[&str]) -> Vec<Result<Vec<IpAddr>, String>> {
        let resolver = Resolver;
        let runtime = crate::settings::runtime().unwrap();
        runtime.block_on(async {
            let questions: Vec<_> = names
                .iter()
                .map(|name| resolver.resolve_dns(name))
                .collect();
            let mut answers = Vec::new();
            for question in questions {
                answers.push(
                    question
                        .await
                        .map_err(|error| crate::root_cause::root_cause(&error)),
                );
            }
            answers
        })
    }

    #[test]
    fn concurrent_lookups_of_one_name_all_get_its_addresses() {
        for answer in resolve(&["localhost"; 50]) {
            assert!(answer.unwrap().iter().all(IpAddr::is_loopback));
        }
    }

    #[test]
    fn an_address_needs_no_name_service() {
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let answers = resolve(&["2001:db8::1"]);
        assert_eq!(answers[0].as_ref().unwrap(), &[address]);
    }

    #[test]
    fn an_error_names_the_host_that_does_not_exist() {
        let answers = resolve(&["no-such-host.invalid"]);
        let error = answers[0].as_ref().unwrap_err();
        assert!(
            error.starts_with("cannot resolve no-such-host.invalid: "),
            "{error}"
        );
    }
}
