//! Storing webhooks in batches.
//!
//! A commit waits for the disk, and a statement costs about as much for one row as for ten. So whatever is waiting is stored
//! together: one writer takes it from a queue, stores it in one statement, and only then is each sender answered. While the
//! writer waits for Postgres, the next batch gathers. If nothing else is waiting, a webhook is stored at once, by itself.
//!
//! A webhook that can't be stored fails alone. If a batch fails for a reason that may lie in one of its webhooks, such as a
//! link that is locked, the writer stores each of them by itself. Those that are still held up are set aside: they wait on
//! other connections, together with all further webhooks about their intents, and the writer goes on with the others.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, mpsc, oneshot};

use crate::store::{
    self, PgPool,
    webhooks::{Effect, Webhook, intake_pool, record},
};

/// The most webhooks, and roughly the most bytes of their bodies, that are stored together.
const BATCH: usize = 256;
/// How many webhooks may wait: as many as fit into the next batch. Only webhooks with a valid signature count, so strangers
/// can't fill the queue.
const QUEUE: usize = BATCH;
const BATCH_BYTES: usize = 1024 * 1024;
/// How long the writer stores a batch webhook by webhook. It sets aside what is left then.
const SINGLY: Duration = Duration::from_secs(1);
/// How many webhooks that are held up may wait, and on how many connections.
const SET_ASIDE: usize = 256;
const SET_ASIDE_CONNECTIONS: usize = 2;

/// Why a webhook was not acknowledged. It may be stored all the same, if the connection broke during the commit.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// The database accepts webhooks more slowly than they arrive.
    #[error("too many webhooks are waiting to be stored")]
    QueueFull,
    #[error(transparent)]
    Store(Arc<store::Error>),
    /// The writer panicked, or is gone because the process is stopping.
    #[error("storing the webhook was interrupted")]
    Interrupted,
}

impl From<store::Error> for NotStored {
    fn from(error: store::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

type Reply = oneshot::Sender<Result<Effect, NotStored>>;

/// A webhook that waits, and where its effect goes.
struct Waiting {
    webhook: Webhook,
    reply: Reply,
}

/// The queue of webhooks that wait to be stored. The writer ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Intake {
    queue: mpsc::Sender<Waiting>,
    set_aside: SetAside,
}

impl Intake {
    /// Starts the writer. It wakes the background jobs after each batch.
    #[must_use]
    pub fn start(pool: &PgPool, wake: Arc<Notify>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let set_aside = SetAside::default();
        let writer = Writer {
            waiting,
            postponed: VecDeque::new(),
            own: intake_pool(pool),
            shared: pool.clone(),
            set_aside: set_aside.clone(),
            wake,
        };
        tokio::spawn(writer.run());
        Self { queue, set_aside }
    }

    /// Stores a webhook and applies it to its link. Once this returns `Ok`, it is committed.
    pub async fn store(&self, webhook: Webhook) -> Result<Effect, NotStored> {
        let (reply, effect) = oneshot::channel();
        self.queue
            .try_send(Waiting { webhook, reply })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => queue_full(),
                mpsc::error::TrySendError::Closed(_) => NotStored::Interrupted,
            })?;
        effect.await.unwrap_or(Err(NotStored::Interrupted))
    }

    /// Updates the metrics that show how many webhooks wait, and how many of those that were set aside.
    pub fn report(&self) {
        let held_up = SET_ASIDE - self.set_aside.places.available_permits();
        metrics::gauge!("webhooks_held_up").set(u32::try_from(held_up).unwrap_or(u32::MAX));
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        metrics::gauge!("webhook_queue_length").set(u32::try_from(waiting).unwrap_or(u32::MAX));
    }
}

/// Stores the batches, one after the other.
struct Writer {
    waiting: mpsc::Receiver<Waiting>,
    /// Webhooks that could not be in the same batch as one before them. They come first in the next one.
    postponed: VecDeque<Waiting>,
    /// The writer's own connection.
    own: PgPool,
    /// The connections of everything else, for webhooks that are held up.
    shared: PgPool,
    set_aside: SetAside,
    wake: Arc<Notify>,
}

impl Writer {
    async fn run(mut self) {
        // Connects before requests take all the connections that Postgres permits. If this fails, the first webhook tries again.
        let _ = store::condition::server(&self.own).await;
        while let Some(batch) = self.next_batch().await {
            // A panic drops the replies, and each sender is told to try again.
            let _ = AssertUnwindSafe(self.store(batch)).catch_unwind().await;
            self.wake.notify_waiters();
        }
    }

    /// Waits for a webhook, and takes along what else is waiting by then. `None`: no more will come.
    async fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut postponed = VecDeque::new();
        while !batch.is_full() && postponed.len() < BATCH {
            let next = match self.postponed.pop_front() {
                Some(next) => next,
                None if batch.is_empty() => self.waiting.recv().await?,
                None => match self.waiting.try_recv() {
                    Ok(next) => next,
                    Err(_) => break,
                },
            };
            if self.set_aside.includes(&next.webhook) {
                self.wait_aside(next);
            } else if batch.accepts(&next.webhook) {
                batch.add(next);
            } else {
                postponed.push_back(next);
            }
        }
        postponed.append(&mut self.postponed);
        self.postponed = postponed;
        Some(batch)
    }

    async fn store(&self, batch: Batch) {
        let Batch {
            webhooks, replies, ..
        } = batch;
        let start = Instant::now();
        let stored = record(&self.own, &webhooks).await;
        metrics::histogram!("webhook_batch_duration_seconds").record(start.elapsed());
        // A batch is small, so the number is exact.
        #[expect(clippy::cast_precision_loss)]
        metrics::histogram!("webhook_batch_size").record(webhooks.len() as f64);
        match stored {
            Ok(effects) => {
                for (effect, reply) in effects.into_iter().zip(replies) {
                    // A sender that has disconnected sends the webhook again, and it is a duplicate then.
                    let _ = reply.send(Ok(effect));
                }
            }
            Err(error) if error.is_contention() || !error.is_outage() => {
                self.store_singly(webhooks, replies).await;
            }
            Err(error) => fail_all(replies, error),
        }
    }

    /// Stores each webhook by itself.
    async fn store_singly(&self, webhooks: Vec<Webhook>, replies: Vec<Reply>) {
        let start = Instant::now();
        let mut waiting = webhooks.into_iter().zip(replies);
        while let Some((webhook, reply)) = waiting.next() {
            if start.elapsed() > SINGLY {
                self.wait_aside(Waiting { webhook, reply });
                continue;
            }
            match store_one(&self.own, &webhook).await {
                Err(error) if error.is_contention() => self.wait_aside(Waiting { webhook, reply }),
                Err(error) if error.is_outage() => {
                    let replies = waiting.map(|(_, reply)| reply);
                    return fail_all([reply].into_iter().chain(replies), error);
                }
                stored => {
                    let _ = reply.send(stored.map_err(NotStored::from));
                    self.wake.notify_waiters();
                }
            }
        }
    }

    /// Stores a webhook that is held up, without holding up the writer.
    fn wait_aside(&self, Waiting { webhook, reply }: Waiting) {
        let Ok(place) = Arc::clone(&self.set_aside.places).try_acquire_owned() else {
            let _ = reply.send(Err(queue_full()));
            return;
        };
        let turn = self.set_aside.add(&webhook);
        let connections = Arc::clone(&self.set_aside.connections);
        let (pool, wake) = (self.shared.clone(), Arc::clone(&self.wake));
        tokio::spawn(async move {
            let _place = place;
            // Those about the same intent wait for each other without a connection.
            let _turn = turn.begin().await;
            let Ok(_connection) = connections.acquire().await else {
                return;
            };
            let stored = store_one(&pool, &webhook).await;
            let _ = reply.send(stored.map_err(NotStored::from));
            wake.notify_waiters();
        });
    }
}

/// Webhooks that are held up.
#[derive(Debug, Clone)]
struct SetAside {
    places: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// The intents that they are about.
    intents: Arc<Mutex<HashMap<String, Held>>>,
}

/// An intent with webhooks that are held up.
#[derive(Debug, Default)]
struct Held {
    webhooks: usize,
    turn: Arc<AsyncMutex<()>>,
}

impl Default for SetAside {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(SET_ASIDE)),
            connections: Arc::new(Semaphore::new(SET_ASIDE_CONNECTIONS)),
            intents: Arc::default(),
        }
    }
}

impl SetAside {
    /// Whether webhooks about the same intent are held up.
    fn includes(&self, webhook: &Webhook) -> bool {
        let intents = self.intents.lock().unwrap_or_else(PoisonError::into_inner);
        intent_of(webhook).is_some_and(|intent| intents.contains_key(intent))
    }

    fn add(&self, webhook: &Webhook) -> Turn {
        let intent = intent_of(webhook).map(str::to_owned);
        let mut intents = self.intents.lock().unwrap_or_else(PoisonError::into_inner);
        let mutex = intent.as_ref().map(|intent| {
            let held = intents.entry(intent.clone()).or_default();
            held.webhooks += 1;
            Arc::clone(&held.turn)
        });
        Turn {
            intent,
            mutex: mutex.unwrap_or_default(),
            set_aside: self.clone(),
        }
    }
}

/// The turn of a webhook among those about the same intent. Dropping it says that the webhook is no longer held up.
struct Turn {
    intent: Option<String>,
    mutex: Arc<AsyncMutex<()>>,
    set_aside: SetAside,
}

impl Turn {
    /// Waits for the turn.
    async fn begin(self) -> (tokio::sync::OwnedMutexGuard<()>, Self) {
        (Arc::clone(&self.mutex).lock_owned().await, self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(intent) = self.intent.take() else {
            return;
        };
        let intents = &self.set_aside.intents;
        let mut intents = intents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = intents.get_mut(&intent) {
            held.webhooks -= 1;
            if held.webhooks == 0 {
                intents.remove(&intent);
            }
        }
    }
}

async fn store_one(pool: &PgPool, webhook: &Webhook) -> Result<Effect, store::Error> {
    Ok(record(pool, std::slice::from_ref(webhook)).await?.remove(0))
}

fn fail_all(replies: impl IntoIterator<Item = Reply>, error: store::Error) {
    let error = Arc::new(error);
    for reply in replies {
        let _ = reply.send(Err(NotStored::Store(Arc::clone(&error))));
    }
}

fn queue_full() -> NotStored {
    metrics::counter!("webhook_queue_full_total").increment(1);
    NotStored::QueueFull
}

/// Webhooks that are stored together. Each changes rows of its own.
#[derive(Default)]
struct Batch {
    webhooks: Vec<Webhook>,
    replies: Vec<Reply>,
    bytes: usize,
    keys: HashSet<(String, String)>,
    intents: HashSet<String>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.webhooks.is_empty()
    }

    fn is_full(&self) -> bool {
        self.webhooks.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    /// Whether no webhook of the batch changes the same rows.
    fn accepts(&self, webhook: &Webhook) -> bool {
        let intent = intent_of(webhook);
        !self.keys.contains(&key_of(webhook))
            && intent.is_none_or(|intent| !self.intents.contains(intent))
    }

    fn add(&mut self, waiting: Waiting) {
        let Waiting { webhook, reply } = waiting;
        self.keys.insert(key_of(&webhook));
        self.intents.extend(intent_of(&webhook).map(str::to_owned));
        self.bytes += webhook.body.len();
        self.webhooks.push(webhook);
        self.replies.push(reply);
    }
}

fn key_of(webhook: &Webhook) -> (String, String) {
    (webhook.account.clone(), webhook.dedup_key.clone())
}

fn intent_of(webhook: &Webhook) -> Option<&str> {
    let event = webhook.event.as_ref().ok()?;
    event.payment_intent_id.as_deref()
}
