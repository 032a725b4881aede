//! Limits for hosts that have not shown a certificate yet.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes at the same time.
const MAX_HANDSHAKES: usize = 256;

/// Handshakes at the same time from one address, or from one network of IPv6.
const MAX_PER_NETWORK: usize = 32;

/// The handshakes that are under way.
pub(crate) struct Handshakes {
    places: Arc<Semaphore>,
    networks: Mutex<HashMap<IpAddr, usize>>,
}

/// A place for a handshake.
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Counts as a handshake that is under way until it is dropped.
pub struct Handshake {
    all: Arc<Handshakes>,
    network: IpAddr,
    _place: Place,
}

impl Handshakes {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            networks: Mutex::default(),
        })
    }

    /// Waits until a handshake may begin.
    pub async fn place(&self) -> Place {
        let permit = Arc::clone(&self.places).acquire_owned().await;
        // An error would say that the semaphore is closed, which nobody does.
        Place {
            _permit: permit.ok(),
        }
    }

    /// Counts a handshake. The error is the limit that has been reached.
    pub fn begin(self: &Arc<Self>, address: IpAddr, place: Place) -> Result<Handshake, String> {
        let network = network(address);
        let mut networks = self.networks();
        let count = networks.entry(network).or_default();
        if *count >= MAX_PER_NETWORK {
            return Err(format!(
                "{MAX_PER_NETWORK} handshakes from there are under way"
            ));
        }
        *count += 1;
        Ok(Handshake {
            all: Arc::clone(self),
            network,
            _place: place,
        })
    }

    /// Consistent at every unlock.
    fn networks(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut networks = self.all.networks();
        if let Some(count) = networks.get_mut(&self.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                networks.remove(&self.network);
            }
        }
    }
}

/// One host has as many addresses of IPv6 as it likes, in its network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Begins a handshake, if there is a place at once.
    fn begin(all: &Arc<Handshakes>, address: &str) -> Option<Result<Handshake, String>> {
        let place = all.place().now_or_never()?;
        Some(all.begin(address.parse().unwrap(), place))
    }

    #[test]
    fn one_network_cannot_take_all_handshakes() {
        let all = Handshakes::new();
        let mut kept: Vec<_> = (0..MAX_PER_NETWORK)
            .map(|host| {
                begin(&all, &format!("2001:db8::{host:x}"))
                    .unwrap()
                    .unwrap()
            })
            .collect();
        assert!(begin(&all, "2001:db8::ffff").unwrap().is_err());
        kept.push(begin(&all, "2001:db8:1::1").unwrap().unwrap());
        kept.remove(0);
        assert!(begin(&all, "2001:db8::ffff").unwrap().is_ok());
        drop(kept);
        assert!(all.networks().is_empty());
    }

    #[test]
    fn there_is_an_end_to_all_handshakes_too() {
        let all = Handshakes::new();
        let address = |host| format!("10.0.{}.{}", host / 256, host % 256);
        let mut kept: Vec<_> = (0..MAX_HANDSHAKES)
            .map(|host| begin(&all, &address(host)).unwrap().unwrap())
            .collect();
        assert!(begin(&all, &address(MAX_HANDSHAKES)).is_none());
        kept.pop();
        assert!(begin(&all, &address(MAX_HANDSHAKES)).unwrap().is_ok());
    }
}
