//! Rate limits per client.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    state::keyed::HashMapStateStore,
};
use uuid::Uuid;

/// A rate limit for each client, on this replica only. Only requests with a valid API key count, so that there are never
/// more entries than clients.
pub(crate) struct Rates(RateLimiter<Uuid, HashMapStateStore<Uuid>, DefaultClock>);

impl Rates {
    /// Allows each client this many requests per second, and as many in a burst.
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        Self(RateLimiter::hashmap(Quota::per_second(per_second)))
    }

    /// Counts a request of this client. If it exceeds the limit, returns how long the client must wait.
    pub(crate) fn check(&self, client_id: Uuid) -> Result<(), Duration> {
        self.0
            .check_key(&client_id)
            .map_err(|early| early.wait_time_from(self.0.clock().now()))
    }

    /// Forgets the clients that have been idle long enough to have their full allowance again.
    pub(crate) fn forget_idle(&self) {
        self.0.retain_recent();
        self.0.shrink_to_fit();
    }
}

/// One rate limit for all requests of customers, on this replica only. They have no API key, and behind a load balancer no
/// address of their own.
pub(crate) struct PageRate(DefaultDirectRateLimiter);

impl PageRate {
    /// Allows this many requests per second, and as many in a burst.
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        Self(RateLimiter::direct(Quota::per_second(per_second)))
    }

    /// Counts a request. Returns whether it is within the limit.
    pub(crate) fn allows(&self) -> bool {
        self.0.check().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_limit_and_is_forgotten_when_idle() {
        let rates = Rates::new(20);
        let (busy, idle) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let rejected = (0..200).filter_map(|_| rates.check(busy).err()).last();
        let wait = rejected.expect("200 requests take less than 9 seconds");
        assert!(wait <= Duration::from_millis(50), "{wait:?}");
        assert_eq!(rates.check(idle), Ok(()));
        assert_eq!(rates.0.len(), 2);

        let start = std::time::Instant::now();
        while !rates.0.is_empty() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the clients are never forgotten"
            );
            std::thread::yield_now();
            rates.forget_idle();
        }
        assert_eq!(rates.check(busy), Ok(()));
    }
}
