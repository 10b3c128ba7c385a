//! What the log says of requests whose sender proves nothing. Anybody can send any number of those, so only the first has a
//! line of its own, and those after it are summed up.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// How often the log sums up.
const WINDOW: Duration = Duration::from_mins(1);

/// A kind of such requests. There are only so many: accounts are configured, routes are the program's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    /// A webhook without a valid signature, for this account. `None`: for one that is not configured.
    Webhook(Option<String>),
    /// Any other request.
    Request { route: String, status: u16 },
}

/// Counts them.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<Refused, Window>>);

/// A while in which further requests of a kind are only counted.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// How many there were after the one that was told of.
    more: u64,
}

impl Refusals {
    /// Counts one. `true` if it deserves a line of its own: there was none of its kind for a while.
    pub(crate) fn is_first(&self, refused: Refused, now: Instant) -> bool {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = windows.get_mut(&refused) {
            window.more += 1;
            return false;
        }
        let window = Window {
            since: now,
            more: 0,
        };
        windows.insert(refused, window);
        true
    }

    /// How many there were of each kind whose window is over. One that saw some is followed by another.
    fn summed_up(&self, now: Instant) -> Vec<(Refused, u64)> {
        let mut sums = Vec::new();
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|refused, window| {
            if now.duration_since(window.since) < WINDOW {
                return true;
            }
            let more = std::mem::take(&mut window.more);
            window.since = now;
            if more > 0 {
                sums.push((refused.clone(), more));
            }
            more > 0
        });
        sums
    }

    /// Writes what has been summed up to the log.
    pub(crate) fn report(&self, now: Instant) {
        for (refused, more) in self.summed_up(now) {
            match refused {
                Refused::Webhook(Some(account)) => {
                    warn!(
                        account,
                        more, "more webhooks without a valid signature were refused"
                    );
                }
                Refused::Webhook(None) => {
                    warn!(more, "more webhooks for an unknown account were refused");
                }
                Refused::Request { route, status } => {
                    info!(
                        route,
                        status, more, "more requests of unknown senders were answered"
                    );
                }
            }
        }
    }

    /// The same without waiting for the end of any window, for there will be no later.
    pub(crate) fn report_all(&self) {
        self.report(Instant::now() + WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_of_at_once_and_the_others_once_a_minute() {
        let refusals = Refusals::default();
        let leeds = || Refused::Webhook(Some("leeds".to_owned()));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        assert!(refusals.is_first(leeds(), at(0)));
        for second in 1..50 {
            assert!(!refusals.is_first(leeds(), at(second)));
            assert_eq!(refusals.summed_up(at(second)), []);
        }
        assert!(refusals.is_first(Refused::Webhook(None), at(50)));
        assert_eq!(refusals.summed_up(at(60)), [(leeds(), 49)]);
        assert!(!refusals.is_first(leeds(), at(61)));
        assert_eq!(refusals.summed_up(at(110)), [], "the other one was alone");
        assert_eq!(refusals.summed_up(at(120)), [(leeds(), 1)]);
        assert_eq!(refusals.summed_up(at(180)), []);
        assert!(refusals.0.lock().unwrap().is_empty(), "nothing is left");
        assert!(refusals.is_first(leeds(), at(181)));
    }
}
