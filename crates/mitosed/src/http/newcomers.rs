//! Connections from the network that have not asked for anything yet: so many of one address at a
//! time, so that nobody takes all places of the port by being silent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections of one address before their first request, at a time.
pub const MAX_PER_ADDRESS: usize = 64;
/// Pause between two lines in the log.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// How many there are, by address.
#[derive(Debug, Default)]
pub struct Newcomers(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    present: HashMap<IpAddr, usize>,
    turned_away: u64,
    late: u64,
    told: Option<Instant>,
}

/// A connection that counts until it asks for something or ends.
#[derive(Debug)]
pub struct Newcomer {
    all: Arc<Newcomers>,
    source: IpAddr,
}

impl Newcomers {
    /// Counts a connection, unless its address has too many.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Newcomer> {
        let source = source_of(address);
        let mut counts = self.lock();
        let present = counts.present.entry(source).or_default();
        if *present < MAX_PER_ADDRESS {
            *present += 1;
            let all = Arc::clone(self);
            return Some(Newcomer { all, source });
        }
        counts.turned_away += 1;
        if counts.told.is_none_or(|at| at.elapsed() > TELL_INTERVAL) {
            counts.told = Some(Instant::now());
            tracing::warn!(
                %address,
                "it has {MAX_PER_ADDRESS} connections that ask for nothing; more are turned away"
            );
        }
        None
    }

    /// Connections that were turned away, and those that were ended since they asked for nothing in
    /// time.
    pub fn ended(&self) -> (u64, u64) {
        let counts = self.lock();
        (counts.turned_away, counts.late)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newcomer {
    /// It is ended since it asked for nothing in time.
    pub fn was_late(self) {
        self.all.lock().late += 1;
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        if let Some(present) = counts.present.get_mut(&self.source) {
            *present -= 1;
            if *present == 0 {
                counts.present.remove(&self.source);
            }
        }
    }
}

/// What one machine may have as its address: of IPv6 a whole network of 64 bits.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_and_others_have_theirs() {
        let all = Arc::new(Newcomers::default());
        let enter = |address: &str| all.enter(address.parse().unwrap());
        let mut present: Vec<_> = (0..MAX_PER_ADDRESS)
            .map(|_| enter("192.0.2.1").unwrap())
            .collect();
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("::ffff:192.0.2.1").is_none(), "the same one");
        assert!(enter("192.0.2.2").is_some());
        present.pop().unwrap().was_late();
        present.push(enter("192.0.2.1").unwrap());
        for number in 0..MAX_PER_ADDRESS {
            present.push(enter(&format!("2001:db8::{number:x}")).unwrap());
        }
        assert!(enter("2001:db8::ffff:1").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        assert_eq!(all.ended(), (3, 1));
        drop(present);
        assert!(all.lock().present.is_empty());
    }
}
