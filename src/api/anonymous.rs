//! Limits what the log says about requests whose sender is unknown. Anybody can send any number of those, so only the first of
//! a kind gets a line of its own. Those that follow are counted.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// How often the log reports the counts.
const WINDOW: Duration = Duration::from_mins(1);

/// A kind of anonymous request. The number of kinds is limited: accounts are configured, and routes are part of the program.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Anonymous {
    /// A webhook without a valid signature, for this account. `None` if the account is not configured.
    Webhook(Option<String>),
    /// Any other request.
    Request { route: String, status: u16 },
}

/// Counts anonymous requests by kind.
#[derive(Debug, Default)]
pub(crate) struct AnonymousRequests(Mutex<HashMap<Anonymous, Window>>);

/// A period in which further requests of a kind are only counted.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// The number of requests after the one that was logged.
    more: u64,
}

impl AnonymousRequests {
    /// Counts a request. Returns `true` if it deserves a line of its own, because it is the first of its kind for a while.
    pub(crate) fn is_first(&self, kind: Anonymous, now: Instant) -> bool {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = windows.get_mut(&kind) {
            window.more += 1;
            return false;
        }
        let window = Window {
            since: now,
            more: 0,
        };
        windows.insert(kind, window);
        true
    }

    /// The counts of the windows that are over. A window with further requests is followed by another one.
    fn due(&self, now: Instant) -> Vec<(Anonymous, u64)> {
        let mut counts = Vec::new();
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|kind, window| {
            if now.duration_since(window.since) < WINDOW {
                return true;
            }
            let more = std::mem::take(&mut window.more);
            window.since = now;
            if more > 0 {
                counts.push((kind.clone(), more));
            }
            more > 0
        });
        counts
    }

    /// Logs the counts of the windows that are over.
    pub(crate) fn report(&self, now: Instant) {
        for (kind, more) in self.due(now) {
            match kind {
                Anonymous::Webhook(Some(account)) => {
                    warn!(
                        account,
                        more, "more webhooks without a valid signature were rejected"
                    );
                }
                Anonymous::Webhook(None) => {
                    warn!(more, "more webhooks for an unknown account were rejected");
                }
                Anonymous::Request { route, status } => {
                    info!(route, status, more, "more requests from unknown senders");
                }
            }
        }
    }

    /// Logs all counts, even if their windows are not over, because the process is about to end.
    pub(crate) fn report_all(&self) {
        self.report(Instant::now() + WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_others_are_counted_every_minute() {
        let requests = AnonymousRequests::default();
        let leeds = || Anonymous::Webhook(Some("leeds".to_owned()));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        assert!(requests.is_first(leeds(), at(0)));
        for second in 1..50 {
            assert!(!requests.is_first(leeds(), at(second)));
            assert_eq!(requests.due(at(second)), []);
        }
        assert!(requests.is_first(Anonymous::Webhook(None), at(50)));
        assert_eq!(requests.due(at(60)), [(leeds(), 49)]);
        assert!(!requests.is_first(leeds(), at(61)));
        assert_eq!(
            requests.due(at(110)),
            [],
            "there was only one of the other kind"
        );
        assert_eq!(requests.due(at(120)), [(leeds(), 1)]);
        assert_eq!(requests.due(at(180)), []);
        assert!(requests.0.lock().unwrap().is_empty(), "nothing is left");
        assert!(requests.is_first(leeds(), at(181)));
    }
}
