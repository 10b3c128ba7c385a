//! All the state of one sandbox, shared by its API, its checkout page and its controls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::Account;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::ledger::Ledger;
use crate::settings::{Settings, given};
use crate::traffic::RequestLog;
use crate::webhooks::{Courier, EVENTS};

/// One sandbox.
#[derive(Debug)]
pub(crate) struct World {
    /// The keys to accept; without one any sandbox key.
    pub(crate) api_keys: Vec<String>,
    /// What payment links begin with, without a slash at the end.
    pub(crate) public_url: String,
    pub(crate) clock: Arc<Clock>,
    pub(crate) courier: Courier,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    ledger: Mutex<Ledger>,
    faults: Mutex<Faults>,
    requests: Mutex<RequestLog>,
    search_lag: Mutex<time::Duration>,
}

impl World {
    pub(crate) fn new(settings: Settings, own_url: &str) -> Result<Self, reqwest::Error> {
        let clock = Arc::new(Clock::default());
        let tasks = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let courier = Courier::new(Arc::clone(&clock), tasks.clone(), shutdown.clone())?;
        let api_keys: Vec<String> = settings
            .api_key
            .iter()
            .flat_map(|keys| keys.split(','))
            .map(|key| key.trim().to_owned())
            .filter(|key| !key.is_empty())
            .collect();
        if let Some(url) = given(settings.webhook_url) {
            let account = api_keys.first().map(|key| Account::of_key(key));
            let events = EVENTS.map(str::to_owned).to_vec();
            let description = Some("From SANDBOX_WEBHOOK_URL".to_owned());
            let secret = given(settings.webhook_secret);
            courier
                .with_subscriptions(|all| {
                    all.subscribe(account, events, url, description, secret, clock.now())
                        .map(|_| ())
                })
                .expect("the first subscription to known events meets no other");
        }
        let public_url = given(settings.public_url).unwrap_or_else(|| own_url.to_owned());
        Ok(Self {
            api_keys,
            public_url: public_url.trim_end_matches('/').to_owned(),
            courier,
            tasks,
            shutdown,
            ledger: Mutex::new(Ledger::new(Arc::clone(&clock))),
            clock,
            faults: Mutex::new(Faults::new()),
            requests: Mutex::new(RequestLog::default()),
            search_lag: Mutex::new(time::Duration::ZERO),
        })
    }

    /// Works on the ledger, alone and up to date, and then tells subscribers what came of it.
    pub(crate) fn with_ledger<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = locked(&self.ledger);
        ledger.catch_up();
        let result = work(&mut ledger);
        let events = ledger.take_outbox();
        drop(ledger);
        self.courier.publish(events);
        result
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        locked(&self.faults)
    }

    pub(crate) fn requests(&self) -> MutexGuard<'_, RequestLog> {
        locked(&self.requests)
    }

    /// How old an intent must be to show in search.
    pub(crate) fn search_lag(&self) -> MutexGuard<'_, time::Duration> {
        locked(&self.search_lag)
    }

    /// Makes all random faults repeatable.
    pub(crate) fn seed(&self, seed: u64) {
        self.faults().seed(seed);
        self.courier.seed(seed);
    }
}

/// A panic while holding the lock leaves state that is still good enough for a stand-in.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
