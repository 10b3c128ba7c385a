//! Limits of the attempts to sign in. Nobody guesses 256 random bits, but each attempt costs a query and an entry in the audit
//! list.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter, clock::DefaultClock,
    state::keyed::HashMapStateStore,
};

/// The attempts per minute from one address, and in total, on this replica.
const PER_ADDRESS: NonZeroU32 = NonZeroU32::new(10).expect("it is not zero");
const TOTAL: NonZeroU32 = NonZeroU32::new(60).expect("it is not zero");

pub(super) struct Attempts {
    by_address: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
    total: DefaultDirectRateLimiter,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            by_address: RateLimiter::hashmap(Quota::per_minute(PER_ADDRESS)),
            total: RateLimiter::direct(Quota::per_minute(TOTAL)),
        }
    }
}

impl Attempts {
    /// Counts an attempt. Returns whether it is within the limits. `address` is `None` if many people share it.
    pub(super) fn allow(&self, address: Option<IpAddr>) -> bool {
        // Before the total, so that one address can't use that up.
        if let Some(address) = address {
            self.by_address.retain_recent();
            if self.by_address.check_key(&address.to_canonical()).is_err() {
                return false;
            }
        }
        self.total.check().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_stopped_before_all_are() {
        let attempts = Attempts::default();
        let busy = Some(IpAddr::from([192, 0, 2, 1]));
        let allowed = (0..100).filter(|_| attempts.allow(busy)).count();
        assert!((10..15).contains(&allowed), "{allowed}");
        assert!(attempts.allow(Some(IpAddr::from([192, 0, 2, 2]))));
        let rest = (0..100).filter(|_| attempts.allow(None)).count();
        assert!((45..60).contains(&rest), "{rest}");
    }
}
