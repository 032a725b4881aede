//! Name resolution, for the SDK's HTTP client too.
//!
//! Tokio's own uses its pool of blocking threads, which panics if no thread can be started, keeps idle threads, and in
//! which names that hang hold up all others. This one returns an error, and its threads end with their work.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use tokio::sync::oneshot;

use crate::thread;

/// The addresses of a name, or why there are none.
pub type Answer = Result<Vec<IpAddr>, String>;

/// Asks the name service of the host. Concurrent requests for one name share a look-up, so a name
/// server that hangs blocks only one thread.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    waiting: Arc<Mutex<HashMap<String, Vec<oneshot::Sender<Answer>>>>>,
}

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
        let answer = self
            .ask(name)
            .map_err(|error| format!("cannot start a thread for a DNS look-up: {error}"))?;
        answer
            .await
            .unwrap_or_else(|_| Err("the DNS look-up was lost".into()))
    }

    fn ask(&self, name: &str) -> io::Result<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if let Some(others) = waiting.get_mut(name) {
            others.retain(|sender| !sender.is_closed());
            others.push(sender);
            return Ok(receiver);
        }
        let (resolver, asked) = (self.clone(), name.to_owned());
        thread::apart("dns", move || resolver.answer(&asked))?;
        waiting.insert(name.into(), vec![sender]);
        Ok(receiver)
    }

    fn answer(&self, name: &str) {
        let answer = look_up(name);
        for sender in self.waiting().remove(name).unwrap_or_default() {
            // A caller that has given up does not need the answer.
            let _ = sender.send(answer.clone());
        }
    }

    /// The map is consistent at every unlock, even after a panic.
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Vec<oneshot::Sender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let resolver = Resolver::default();
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
