//! The state of one sandbox, shared by its API, its checkout page and its control API.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::Account;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::intent_store::IntentStore;
use crate::requests::{RequestLog, Watcher};
use crate::settings::{Settings, non_empty};
use crate::webhooks::{Dispatcher, EVENTS, NewSubscription};

#[derive(Debug)]
pub(crate) struct AppState {
    /// The API keys to accept. Empty: any sandbox key.
    pub(crate) api_keys: Vec<String>,
    /// The start of every payment link, without a trailing slash.
    pub(crate) public_url: String,
    pub(crate) clock: Arc<Clock>,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    intents: Mutex<IntentStore>,
    faults: Mutex<Faults>,
    requests: Mutex<RequestLog>,
    search_lag: Mutex<time::Duration>,
    transaction_lag: Mutex<time::Duration>,
    watcher: Mutex<Option<Watcher>>,
}

impl AppState {
    pub(crate) fn new(settings: Settings, own_url: &str) -> Result<Self, reqwest::Error> {
        let clock = Arc::new(Clock::default());
        let tasks = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let dispatcher = Dispatcher::new(Arc::clone(&clock), tasks.clone(), shutdown.clone())?;
        let api_keys: Vec<String> = settings
            .api_key
            .iter()
            .flat_map(|keys| keys.split(','))
            .map(|key| key.trim().to_owned())
            .filter(|key| !key.is_empty())
            .collect();
        if let Some(url) = non_empty(settings.webhook_url) {
            let account = api_keys.first().map(|key| Account::of_key(key));
            let subscription = NewSubscription {
                events: EVENTS.map(str::to_owned).to_vec(),
                url,
                description: Some("From SANDBOX_WEBHOOK_URL".to_owned()),
            };
            let secret = non_empty(settings.webhook_secret);
            dispatcher
                .with_subscriptions(|subscriptions| {
                    subscriptions
                        .subscribe(account, subscription, secret, clock.now())
                        .map(|_| ())
                })
                .expect("the first subscription conflicts with no other");
        }
        let public_url = non_empty(settings.public_url).unwrap_or_else(|| own_url.to_owned());
        Ok(Self {
            api_keys,
            public_url: public_url.trim_end_matches('/').to_owned(),
            dispatcher,
            tasks,
            shutdown,
            intents: Mutex::new(IntentStore::new(Arc::clone(&clock))),
            clock,
            faults: Mutex::new(Faults::new()),
            requests: Mutex::new(RequestLog::default()),
            search_lag: Mutex::new(time::Duration::ZERO),
            transaction_lag: Mutex::new(time::Duration::ZERO),
            watcher: Mutex::default(),
        })
    }

    /// Locks the intents, expires those that are due, calls `work`, and then publishes the events that this caused.
    pub(crate) fn with_intents<T>(&self, work: impl FnOnce(&mut IntentStore) -> T) -> T {
        let mut intents = lock(&self.intents);
        intents.expire_due();
        let result = work(&mut intents);
        let events = intents.take_outbox();
        drop(intents);
        self.dispatcher.publish(events);
        result
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(crate) fn requests(&self) -> MutexGuard<'_, RequestLog> {
        lock(&self.requests)
    }

    pub(crate) fn watcher(&self) -> Option<Watcher> {
        lock(&self.watcher).clone()
    }

    pub(crate) fn set_watcher(&self, watcher: Watcher) {
        *lock(&self.watcher) = Some(watcher);
    }

    /// How old an intent must be to appear in search.
    pub(crate) fn search_lag(&self) -> MutexGuard<'_, time::Duration> {
        lock(&self.search_lag)
    }

    /// How old a transaction must be to appear in search.
    pub(crate) fn transaction_lag(&self) -> MutexGuard<'_, time::Duration> {
        lock(&self.transaction_lag)
    }

    /// Makes random faults repeatable.
    pub(crate) fn seed(&self, seed: u64) {
        self.faults().seed(seed);
        self.dispatcher.seed(seed);
    }
}

/// Ignores that a panic may have left the state half changed: a sandbox may continue with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
