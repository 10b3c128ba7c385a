//! Limits of the attempts to sign in, and what became of them. Nobody guesses 256 random bits, but each failed attempt costs an
//! entry in the audit list, and each session two rows.
//!
//! The right key always gets in: behind a proxy everybody may have the same address, and nobody must be able to keep the others
//! out with wrong keys.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter, clock::DefaultClock,
    state::keyed::HashMapStateStore,
};
use uuid::Uuid;

/// The failed attempts per minute from one address, and in total, on this replica.
const PER_ADDRESS: NonZeroU32 = NonZeroU32::new(10).expect("it is not zero");
const TOTAL: NonZeroU32 = NonZeroU32::new(60).expect("it is not zero");

/// The sessions that a person may begin per minute, on this replica. A browser that is started may open many pages at once.
const PER_PERSON: NonZeroU32 = NonZeroU32::new(60).expect("it is not zero");

/// How many addresses are remembered at most.
const MOST: usize = 10_000;

/// What became of an attempt to sign in, as the metric counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A session began with an API key.
    Done,
    /// A session began because the proxy vouched for the person.
    Vouched,
    /// It isn't an active API key.
    Rejected,
    /// The key lacks the scope that everybody needs.
    Forbidden,
    /// There were too many attempts.
    Limited,
    /// The form did not come from a page of the console.
    Foreign,
    /// The proxy's headers can be read in more than one way.
    Unclear,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Vouched => "vouched",
            Self::Rejected => "rejected",
            Self::Forbidden => "forbidden",
            Self::Limited => "limited",
            Self::Foreign => "foreign",
            Self::Unclear => "unclear",
        }
    }

    pub(super) fn count(self) {
        metrics::counter!("console_sign_ins_total", "outcome" => self.as_str()).increment(1);
    }
}

pub(super) struct Attempts {
    by_address: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
    total: DefaultDirectRateLimiter,
    by_person: RateLimiter<Uuid, HashMapStateStore<Uuid>, DefaultClock>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            by_address: RateLimiter::hashmap(Quota::per_minute(PER_ADDRESS)),
            total: RateLimiter::direct(Quota::per_minute(TOTAL)),
            by_person: RateLimiter::hashmap(Quota::per_minute(PER_PERSON)),
        }
    }
}

impl Attempts {
    /// Counts a failed attempt. Returns whether it is within the limits. `address` is `None` if many people share it.
    pub(super) fn may_fail(&self, address: Option<IpAddr>) -> bool {
        // Before the total, so that one address can't use that up.
        if let Some(address) = address {
            if self.by_address.len() >= MOST {
                self.by_address.retain_recent();
            }
            let is_within = self.by_address.len() < MOST
                && self.by_address.check_key(&network_of(address)).is_ok();
            if !is_within {
                return false;
            }
        }
        self.total.check().is_ok()
    }

    /// Counts a session of this client. Returns whether it is within the limit. There are never more entries than clients.
    pub(super) fn may_begin(&self, client_id: Uuid) -> bool {
        self.by_person.check_key(&client_id).is_ok()
    }
}

/// The network of whoever has this address. Anybody with IPv6 has 2^64 addresses.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(attempts: &Attempts, address: Option<IpAddr>) -> usize {
        (0..100).filter(|_| attempts.may_fail(address)).count()
    }

    #[test]
    fn one_address_is_stopped_before_all_are() {
        let attempts = Attempts::default();
        let busy = Some(IpAddr::from([192, 0, 2, 1]));
        let first = allowed(&attempts, busy);
        assert!((10..15).contains(&first), "{first}");
        assert!(attempts.may_fail(Some(IpAddr::from([192, 0, 2, 2]))));
        let rest = allowed(&attempts, None);
        assert!((45..60).contains(&rest), "{rest}");
    }

    #[test]
    fn a_whole_network_counts_as_one_address() {
        let attempts = Attempts::default();
        let address = |network: u16, host: u16| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host);
            Some(IpAddr::from(address))
        };
        let first = (0..100).filter(|host| attempts.may_fail(address(1, *host)));
        let first = first.count();
        assert!((10..15).contains(&first), "{first}");
        assert!(attempts.may_fail(address(2, 1)));
        // The same IPv4 address in both forms.
        let v4 = IpAddr::from([192, 0, 2, 1]);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(network_of(v4), network_of(mapped));
        assert_ne!(
            network_of(v4),
            network_of("::ffff:192.0.2.2".parse().unwrap())
        );
    }

    #[test]
    fn a_limited_number_of_addresses_is_remembered() {
        let attempts = Attempts::default();
        for number in 0..u32::try_from(MOST).unwrap() + 100 {
            attempts.may_fail(Some(IpAddr::from(number.to_be_bytes())));
        }
        assert!(attempts.by_address.len() <= MOST);
    }

    #[test]
    fn a_person_begins_a_limited_number_of_sessions() {
        let attempts = Attempts::default();
        let (ann, ben) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let begun = (0..200).filter(|_| attempts.may_begin(ann)).count();
        assert!((60..70).contains(&begun), "{begun}");
        assert!(attempts.may_begin(ben));
    }
}
