//! Limits for hosts that have not shown a certificate yet.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Handshakes at the same time.
const MAX_HANDSHAKES: usize = 512;

/// Handshakes at the same time from one address, or from one network of IPv6.
const MAX_PER_NETWORK: usize = 32;

/// The handshakes that are under way.
#[derive(Default)]
pub(crate) struct Handshakes(Mutex<HashMap<IpAddr, usize>>);

/// Counts as a handshake that is under way until it is dropped.
pub struct Handshake {
    all: Arc<Handshakes>,
    network: IpAddr,
}

impl Handshakes {
    /// Counts a handshake. The error is the limit that has been reached.
    pub fn begin(self: &Arc<Self>, address: IpAddr) -> Result<Handshake, String> {
        let network = network(address);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.values().sum::<usize>() >= MAX_HANDSHAKES {
            return Err(format!("{MAX_HANDSHAKES} handshakes are under way"));
        }
        let count = all.entry(network).or_default();
        if *count >= MAX_PER_NETWORK {
            return Err(format!(
                "{MAX_PER_NETWORK} handshakes from there are under way"
            ));
        }
        *count += 1;
        Ok(Handshake {
            all: Arc::clone(self),
            network,
        })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(&self.network);
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
    use super::*;

    #[test]
    fn one_network_cannot_take_all_handshakes() {
        let handshakes = Arc::new(Handshakes::default());
        let begin = |address: &str| handshakes.begin(address.parse().unwrap());
        let mut kept: Vec<_> = (0..MAX_PER_NETWORK)
            .map(|host| begin(&format!("2001:db8::{host:x}")).unwrap())
            .collect();
        assert!(begin("2001:db8::ffff").is_err());
        kept.push(begin("2001:db8:1::1").unwrap());
        kept.remove(0);
        assert!(begin("2001:db8::ffff").is_ok());
        drop(kept);
        assert!(handshakes.0.lock().unwrap().is_empty());
    }

    #[test]
    fn there_is_an_end_to_all_handshakes_too() {
        let handshakes = Arc::new(Handshakes::default());
        let begin = |host: usize| {
            let address = format!("10.0.{}.{}", host / 256, host % 256);
            handshakes.begin(address.parse().unwrap())
        };
        let kept: Vec<_> = (0..MAX_HANDSHAKES)
            .map(|host| begin(host).unwrap())
            .collect();
        assert!(begin(MAX_HANDSHAKES).is_err());
        drop(kept);
    }
}
