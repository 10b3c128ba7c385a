//! Delivers events to their subscribers: signed, and with a limited number of attempts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use reqwest::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliveries::{Deliveries, Delivery, DeliveryNumber, Outcome, State};
use super::event::Event;
use super::faults::{Kind, WebhookFault};
use super::subscriptions::Subscriptions;
use crate::clock::Clock;
use crate::signature;

/// How long a receiver may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

const MAX_CONCURRENT_REQUESTS: usize = 64;

/// Beyond this number of unfinished deliveries, new ones are given up at once.
const MAX_UNFINISHED: usize = 20_000;

/// How often a delivery is attempted, and the delay after the first attempt, which doubles each time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct RetryPolicy {
    pub(crate) attempts: u32,
    pub(crate) base_delay_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base_delay_ms: 500,
        }
    }
}

impl RetryPolicy {
    pub(crate) fn check(self) -> Result<(), String> {
        if !(1..=20).contains(&self.attempts) {
            Err("attempts must be between 1 and 20.".to_owned())
        } else if self.base_delay_ms > 60_000 {
            Err("baseDelayMs must be at most 60000.".to_owned())
        } else {
            Ok(())
        }
    }

    fn delay_after(self, attempt: u32) -> Duration {
        Duration::from_millis(self.base_delay_ms.saturating_mul(1 << (attempt - 1)))
    }
}

/// Cheap to clone: all clones share their state.
#[derive(Clone, Debug)]
pub(crate) struct Dispatcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: reqwest::Client,
    clock: Arc<Clock>,
    shared: Mutex<Shared>,
    concurrent_requests: Semaphore,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    subscriptions: Subscriptions,
    deliveries: Deliveries,
    faults: Vec<WebhookFault>,
    retry: RetryPolicy,
    rng: StdRng,
    /// The delivery to each URL that a `reorder` fault delays until another one has overtaken it.
    reordered: HashMap<String, Arc<Notify>>,
}

impl Dispatcher {
    pub(crate) fn new(
        clock: Arc<Clock>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, reqwest::Error> {
        let client = client(|builder| builder).or_else(|error| {
            // A minimal container has no root certificates, and needs none for webhooks over plain HTTP.
            tracing::warn!(%error, "no root certificates found: webhooks to https URLs will fail");
            client(|builder| builder.tls_certs_only([]))
        })?;
        Ok(Self(Arc::new(Inner {
            client,
            clock,
            shared: Mutex::new(Shared {
                subscriptions: Subscriptions::default(),
                deliveries: Deliveries::default(),
                faults: Vec::new(),
                retry: RetryPolicy::default(),
                rng: StdRng::from_rng(&mut rand::rng()),
                reordered: HashMap::new(),
            }),
            concurrent_requests: Semaphore::new(MAX_CONCURRENT_REQUESTS),
            tasks,
            shutdown,
        })))
    }

    /// Starts the delivery of these events to their subscribers.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        for event in events {
            let recipients: Vec<(String, String)> = self
                .shared()
                .subscriptions
                .receiving(&event.name, &event.account)
                .into_iter()
                .map(|subscription| (subscription.id.clone(), subscription.url.clone()))
                .collect();
            for (subscription_id, url) in recipients {
                self.dispatch(&event, subscription_id, url);
            }
        }
    }

    /// Delivers a recorded event again, without faults. Returns false if there is no such event.
    pub(crate) fn redeliver(&self, event_id: &str) -> bool {
        let recorded: Vec<(DeliveryNumber, Delivery)> = self
            .shared()
            .deliveries
            .all()
            .filter(|(_, delivery)| delivery.event_id == event_id)
            .map(|(number, delivery)| (number, delivery.clone()))
            .collect();
        for (number, delivery) in &recorded {
            self.shared()
                .deliveries
                .update(*number, |delivery| delivery.state = State::Pending);
            self.spawn(PendingDelivery::of(*number, delivery), None);
        }
        !recorded.is_empty()
    }

    pub(crate) fn with_subscriptions<T>(&self, work: impl FnOnce(&mut Subscriptions) -> T) -> T {
        work(&mut self.shared().subscriptions)
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.shared()
            .deliveries
            .all()
            .map(|(_, delivery)| delivery.clone())
            .collect()
    }

    pub(crate) fn add_fault(&self, fault: WebhookFault) {
        self.shared().faults.push(fault);
    }

    pub(crate) fn faults(&self) -> Vec<WebhookFault> {
        self.shared().faults.clone()
    }

    /// Removes all faults. Deliveries that a `reorder` fault delays are sent.
    pub(crate) fn clear_faults(&self) {
        let mut shared = self.shared();
        shared.faults.clear();
        for (_, delayed) in shared.reordered.drain() {
            delayed.notify_one();
        }
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        self.shared().retry
    }

    pub(crate) fn set_retry_policy(&self, policy: RetryPolicy) {
        self.shared().retry = policy;
    }

    pub(crate) fn seed(&self, seed: u64) {
        self.shared().rng = StdRng::seed_from_u64(seed);
    }

    fn dispatch(&self, event: &Event, subscription_id: String, url: String) {
        let mut shared = self.shared();
        let number = shared
            .deliveries
            .add(event, url.clone(), subscription_id.clone());
        if self.0.tasks.len() >= MAX_UNFINISHED {
            shared.deliveries.update(number, Delivery::give_up);
            tracing::warn!(event = %event.id, "gave up a webhook delivery: too many are unfinished");
            return;
        }

        let overtaken = shared.reordered.remove(&url);
        let fault = shared.draw_fault(&event.name, overtaken.is_some());
        let kind = fault.as_ref().map(|fault| fault.kind);
        shared
            .deliveries
            .update(number, |delivery| delivery.fault = kind);
        let until_overtaken = (kind == Some(Kind::Reorder)).then(|| {
            let overtaken = Arc::new(Notify::new());
            shared.reordered.insert(url.clone(), Arc::clone(&overtaken));
            overtaken
        });
        if kind == Some(Kind::Drop) {
            shared
                .deliveries
                .update(number, |delivery| delivery.state = State::Dropped);
        }
        drop(shared);

        let pending = PendingDelivery {
            number,
            subscription_id,
            url,
            body: event.body.clone(),
            overtaken,
        };
        match (kind, fault) {
            // The delivery that this one would have overtaken needn't wait for the next one.
            (Some(Kind::Drop), _) => pending.release_overtaken(),
            (Some(Kind::Double), _) => {
                self.spawn(
                    PendingDelivery {
                        overtaken: None,
                        ..pending.clone()
                    },
                    None,
                );
                self.spawn(pending, None);
            }
            (Some(Kind::Delay | Kind::Reorder), Some(fault)) => {
                self.spawn(
                    pending,
                    Some(Wait {
                        at_most: fault.delay(),
                        until: until_overtaken,
                    }),
                );
            }
            _ => self.spawn(pending, None),
        }
    }

    fn spawn(&self, pending: PendingDelivery, wait: Option<Wait>) {
        let dispatcher = self.clone();
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            shutdown
                .run_until_cancelled_owned(async move {
                    if let Some(wait) = wait {
                        wait.finish().await;
                    }
                    dispatcher.run(pending).await;
                })
                .await;
        });
    }

    async fn run(&self, pending: PendingDelivery) {
        let policy = self.retry_policy();
        for attempt in 1..=policy.attempts {
            let outcome = self.send(&pending).await;
            if attempt == 1 {
                pending.release_overtaken();
            }
            let now = self.0.clock.now();
            let delivered = outcome.is_success();
            self.shared().deliveries.update(pending.number, |delivery| {
                delivery.record_attempt(now, outcome);
            });
            if delivered {
                return;
            }
            if attempt < policy.attempts {
                tokio::time::sleep(policy.delay_after(attempt)).await;
            }
        }
        tracing::info!(url = pending.url, "gave up a webhook delivery");
        self.shared()
            .deliveries
            .update(pending.number, Delivery::give_up);
    }

    async fn send(&self, pending: &PendingDelivery) -> Outcome {
        let signature = {
            let shared = self.shared();
            match shared.subscriptions.find(&pending.subscription_id) {
                Ok(subscription) => subscription
                    .signing_secret()
                    .map(|secret| signature::sign(secret, pending.body.as_bytes())),
                Err(_) => return Outcome::Error("the subscription was deleted".to_owned()),
            }
        };
        let Ok(_permit) = self.0.concurrent_requests.acquire().await else {
            return Outcome::Error("the sandbox is stopping".to_owned());
        };
        let mut request = self
            .0
            .client
            .post(&pending.url)
            .header(CONTENT_TYPE, "application/json")
            .body(pending.body.clone());
        if let Some(signature) = signature {
            request = request.header("dojo-signature", signature);
        }
        match request.send().await {
            Ok(response) => Outcome::Status(response.status().as_u16()),
            Err(error) if error.is_timeout() => {
                Outcome::Error("the receiver did not respond in time".to_owned())
            }
            Err(error) => Outcome::Error(error.to_string()),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(
    adjust: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, reqwest::Error> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("dojo-sandbox/", env!("CARGO_PKG_VERSION")))
        .timeout(RESPONSE_TIMEOUT)
        // Everything except 2xx is a failure, including redirects.
        .redirect(reqwest::redirect::Policy::none());
    adjust(builder).build()
}

impl Shared {
    /// The first fault that applies. A delivery that overtakes another one can't be reordered itself, because the two
    /// would wait for each other.
    fn draw_fault(&mut self, event: &str, overtakes: bool) -> Option<WebhookFault> {
        let rng = &mut self.rng;
        let fault = self
            .faults
            .iter_mut()
            .filter(|fault| !(overtakes && fault.kind == Kind::Reorder))
            .find_map(|fault| fault.applies(event, rng).then(|| fault.clone()));
        self.faults.retain(|fault| fault.count != Some(0));
        fault
    }
}

/// A delivery that hasn't succeeded yet.
#[derive(Clone, Debug)]
struct PendingDelivery {
    number: DeliveryNumber,
    subscription_id: String,
    url: String,
    body: String,
    /// The reordered delivery that waits for this one's first attempt.
    overtaken: Option<Arc<Notify>>,
}

impl PendingDelivery {
    fn of(number: DeliveryNumber, delivery: &Delivery) -> Self {
        Self {
            number,
            subscription_id: delivery.subscription_id.clone(),
            url: delivery.url.clone(),
            body: delivery.body.clone(),
            overtaken: None,
        }
    }

    fn release_overtaken(&self) {
        if let Some(overtaken) = &self.overtaken {
            overtaken.notify_one();
        }
    }
}

/// What a delivery waits for before its first attempt.
#[derive(Debug)]
struct Wait {
    at_most: Duration,
    until: Option<Arc<Notify>>,
}

impl Wait {
    async fn finish(self) {
        match self.until {
            // Either one ends the wait.
            Some(until) => drop(tokio::time::timeout(self.at_most, until.notified()).await),
            None => tokio::time::sleep(self.at_most).await,
        }
    }
}
