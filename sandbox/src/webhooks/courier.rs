//! Takes events to their subscribers: signed, tried again a limited number of times, and then never.

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

use super::deliveries::{Deliveries, Delivery, Number, Outcome, State};
use super::event::Event;
use super::faults::{Kind, WebhookFault};
use super::subscriptions::Subscriptions;
use crate::clock::Clock;
use crate::signature;

/// How long a receiver may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many receivers are talked to at once.
const MOST_AT_ONCE: usize = 64;

/// Beyond this many unfinished deliveries further ones are given up at once.
const MOST_UNFINISHED: usize = 20_000;

/// How often a delivery is tried, and how long it rests in between: the delay doubles each time.
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
            Err("attempts is from 1 to 20.".to_owned())
        } else if self.base_delay_ms > 60_000 {
            Err("baseDelayMs is at most 60000.".to_owned())
        } else {
            Ok(())
        }
    }

    fn delay_after(self, attempt: u32) -> Duration {
        Duration::from_millis(self.base_delay_ms.saturating_mul(1 << (attempt - 1)))
    }
}

/// Sends events. Cheap to clone: all clones share the same queue and records.
#[derive(Clone, Debug)]
pub(crate) struct Courier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: reqwest::Client,
    clock: Arc<Clock>,
    state: Mutex<Shared>,
    at_once: Semaphore,
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
    /// By URL, the delivery that a fault holds back until another has overtaken it.
    held: HashMap<String, Arc<Notify>>,
}

impl Courier {
    pub(crate) fn new(
        clock: Arc<Clock>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, reqwest::Error> {
        let client = client(|builder| builder).or_else(|error| {
            // A bare container has no certificates, and needs none for webhooks over plain http.
            tracing::warn!(%error, "no root certificates: webhooks to https URLs will fail");
            client(|builder| builder.tls_certs_only([]))
        })?;
        Ok(Self(Arc::new(Inner {
            client,
            clock,
            state: Mutex::new(Shared {
                subscriptions: Subscriptions::default(),
                deliveries: Deliveries::default(),
                faults: Vec::new(),
                retry: RetryPolicy::default(),
                rng: StdRng::from_rng(&mut rand::rng()),
                held: HashMap::new(),
            }),
            at_once: Semaphore::new(MOST_AT_ONCE),
            tasks,
            shutdown,
        })))
    }

    /// Starts to deliver these events to whoever subscribed to them.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        for event in events {
            let recipients: Vec<(String, String)> = self
                .shared()
                .subscriptions
                .wanting(&event.name, &event.account)
                .into_iter()
                .map(|subscription| (subscription.id.clone(), subscription.url.clone()))
                .collect();
            for (subscription_id, url) in recipients {
                self.dispatch(&event, subscription_id, url);
            }
        }
    }

    /// Sends a recorded event once more, faults or not. False where no such event is remembered.
    pub(crate) fn redeliver(&self, event_id: &str) -> bool {
        let again: Vec<(Number, Delivery)> = self
            .shared()
            .deliveries
            .all()
            .filter(|(_, delivery)| delivery.event_id == event_id)
            .map(|(number, delivery)| (number, delivery.clone()))
            .collect();
        for (number, delivery) in &again {
            self.shared()
                .deliveries
                .update(*number, |delivery| delivery.state = State::Pending);
            self.spawn(Series::of(*number, delivery), None);
        }
        !again.is_empty()
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

    /// Clears the faults; what one of them holds back is sent.
    pub(crate) fn clear_faults(&self) {
        let mut shared = self.shared();
        shared.faults.clear();
        for (_, held) in shared.held.drain() {
            held.notify_one();
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
        if self.0.tasks.len() >= MOST_UNFINISHED {
            shared.deliveries.update(number, Delivery::give_up);
            tracing::warn!(event = %event.id, "too many unfinished deliveries: this one is given up");
            return;
        }

        let overtaken = shared.held.remove(&url);
        let fault = shared.draw_fault(&event.name, overtaken.is_some());
        let kind = fault.as_ref().map(|fault| fault.kind);
        shared
            .deliveries
            .update(number, |delivery| delivery.fault = kind);
        let held = (kind == Some(Kind::Reorder)).then(|| {
            let held = Arc::new(Notify::new());
            shared.held.insert(url.clone(), Arc::clone(&held));
            held
        });
        if kind == Some(Kind::Drop) {
            shared
                .deliveries
                .update(number, |delivery| delivery.state = State::Dropped);
        }
        drop(shared);

        let series = Series {
            number,
            subscription_id,
            url,
            body: event.body.clone(),
            overtaken,
        };
        match (kind, fault) {
            // What the dropped delivery would have overtaken need not wait for the next.
            (Some(Kind::Drop), _) => series.let_overtaken_go(),
            (Some(Kind::Double), _) => {
                self.spawn(
                    Series {
                        overtaken: None,
                        ..series.clone()
                    },
                    None,
                );
                self.spawn(series, None);
            }
            (Some(Kind::Delay | Kind::Reorder), Some(fault)) => {
                self.spawn(
                    series,
                    Some(Wait {
                        longest: fault.delay(),
                        until: held,
                    }),
                );
            }
            _ => self.spawn(series, None),
        }
    }

    fn spawn(&self, series: Series, wait: Option<Wait>) {
        let courier = self.clone();
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            shutdown
                .run_until_cancelled_owned(async move {
                    if let Some(wait) = wait {
                        wait.over().await;
                    }
                    courier.run(series).await;
                })
                .await;
        });
    }

    async fn run(&self, series: Series) {
        let policy = self.retry_policy();
        for attempt in 1..=policy.attempts {
            let outcome = self.send(&series).await;
            if attempt == 1 {
                series.let_overtaken_go();
            }
            let now = self.0.clock.now();
            let delivered = outcome.is_success();
            self.shared()
                .deliveries
                .update(series.number, |delivery| delivery.tried(now, outcome));
            if delivered {
                return;
            }
            if attempt < policy.attempts {
                tokio::time::sleep(policy.delay_after(attempt)).await;
            }
        }
        tracing::info!(url = series.url, "gave up a webhook");
        self.shared()
            .deliveries
            .update(series.number, Delivery::give_up);
    }

    async fn send(&self, series: &Series) -> Outcome {
        let signature = {
            let shared = self.shared();
            match shared.subscriptions.find(&series.subscription_id) {
                Ok(subscription) => subscription
                    .signing_secret()
                    .map(|secret| signature::sign(secret, series.body.as_bytes())),
                Err(_) => return Outcome::Error("the subscription was deleted".to_owned()),
            }
        };
        let Ok(_permit) = self.0.at_once.acquire().await else {
            return Outcome::Error("shutting down".to_owned());
        };
        let mut request = self
            .0
            .client
            .post(&series.url)
            .header(CONTENT_TYPE, "application/json")
            .body(series.body.clone());
        if let Some(signature) = signature {
            request = request.header("dojo-signature", signature);
        }
        match request.send().await {
            Ok(response) => Outcome::Status(response.status().as_u16()),
            Err(error) if error.is_timeout() => Outcome::Error("no answer in time".to_owned()),
            Err(error) => Outcome::Error(error.to_string()),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(
    adjust: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, reqwest::Error> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("dojo-sandbox/", env!("CARGO_PKG_VERSION")))
        .timeout(ANSWER_TIMEOUT)
        // Anything but 2xx is a refusal, a redirect included.
        .redirect(reqwest::redirect::Policy::none());
    adjust(builder).build()
}

impl Shared {
    /// The first fault that strikes. A delivery that overtakes another cannot be held itself: the two
    /// would wait for each other.
    fn draw_fault(&mut self, event: &str, overtakes: bool) -> Option<WebhookFault> {
        let rng = &mut self.rng;
        let fault = self
            .faults
            .iter_mut()
            .filter(|fault| !(overtakes && fault.kind == Kind::Reorder))
            .find_map(|fault| fault.strikes(event, rng).then(|| fault.clone()));
        self.faults.retain(|fault| fault.count != Some(0));
        fault
    }
}

/// The tries of one delivery.
#[derive(Clone, Debug)]
struct Series {
    number: Number,
    subscription_id: String,
    url: String,
    body: String,
    /// The delivery that waits until this one was sent.
    overtaken: Option<Arc<Notify>>,
}

impl Series {
    fn of(number: Number, delivery: &Delivery) -> Self {
        Self {
            number,
            subscription_id: delivery.subscription_id.clone(),
            url: delivery.url.clone(),
            body: delivery.body.clone(),
            overtaken: None,
        }
    }

    fn let_overtaken_go(&self) {
        if let Some(overtaken) = &self.overtaken {
            overtaken.notify_one();
        }
    }
}

/// What a delivery waits for before its first try.
#[derive(Debug)]
struct Wait {
    longest: Duration,
    until: Option<Arc<Notify>>,
}

impl Wait {
    async fn over(self) {
        match self.until {
            // Whichever comes first: waiting too long is as good as being let go.
            Some(until) => drop(tokio::time::timeout(self.longest, until.notified()).await),
            None => tokio::time::sleep(self.longest).await,
        }
    }
}
