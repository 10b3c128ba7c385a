//! Storing webhooks in batches.
//!
//! A commit waits for the disk, and a statement costs about as much for one row as for ten. So whatever is waiting is stored
//! together: one writer takes it from a queue, stores it in one statement, and only then is each sender answered. While the
//! writer waits for Postgres, the next batch gathers. If nothing else is waiting, a webhook is stored at once, by itself.
//!
//! A webhook that can't be stored fails alone. If a batch fails for a reason that may lie in one of its webhooks, such as a
//! link that is locked, each of them is stored by itself.

use std::{
    collections::{HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Instant,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

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
/// How many batches may be stored webhook by webhook at the same time, and how many connections each of them uses.
const SEPARATE_BATCHES: usize = 2;
const SEPARATE_CONNECTIONS: usize = 2;

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
}

impl Intake {
    /// Starts the writer. It wakes the background jobs after each batch.
    #[must_use]
    pub fn start(pool: &PgPool, wake: Arc<Notify>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = Writer {
            waiting,
            postponed: VecDeque::new(),
            own: intake_pool(pool),
            shared: pool.clone(),
            separate: Arc::new(Semaphore::new(SEPARATE_BATCHES)),
            wake,
        };
        tokio::spawn(writer.run());
        Self { queue }
    }

    /// Stores a webhook and applies it to its link. Once this returns `Ok`, it is committed.
    pub async fn store(&self, webhook: Webhook) -> Result<Effect, NotStored> {
        let (reply, effect) = oneshot::channel();
        self.queue
            .try_send(Waiting { webhook, reply })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    metrics::counter!("webhook_queue_full_total").increment(1);
                    NotStored::QueueFull
                }
                mpsc::error::TrySendError::Closed(_) => NotStored::Interrupted,
            })?;
        effect.await.unwrap_or(Err(NotStored::Interrupted))
    }

    /// Updates the metric that shows how many webhooks wait.
    pub fn report(&self) {
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
    /// The connections of everything else, for webhooks that are stored by themselves.
    shared: PgPool,
    separate: Arc<Semaphore>,
    wake: Arc<Notify>,
}

impl Writer {
    async fn run(mut self) {
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
            if batch.accepts(&next.webhook) {
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
                self.store_separately(webhooks, replies).await;
            }
            Err(error) => {
                let error = Arc::new(error);
                for reply in replies {
                    let _ = reply.send(Err(NotStored::Store(Arc::clone(&error))));
                }
            }
        }
    }

    /// Stores each webhook by itself, while the writer goes on with the next batch.
    async fn store_separately(&self, webhooks: Vec<Webhook>, replies: Vec<Reply>) {
        let Ok(permit) = Arc::clone(&self.separate).acquire_owned().await else {
            return;
        };
        let (pool, wake) = (self.shared.clone(), Arc::clone(&self.wake));
        tokio::spawn(async move {
            let _permit = permit;
            stream::iter(webhooks.into_iter().zip(replies))
                .for_each_concurrent(SEPARATE_CONNECTIONS, async |(webhook, reply)| {
                    let stored = record(&pool, std::slice::from_ref(&webhook)).await;
                    let effect = stored.map(|mut effects| effects.remove(0));
                    let _ = reply.send(effect.map_err(|error| NotStored::Store(Arc::new(error))));
                    wake.notify_waiters();
                })
                .await;
        });
    }
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
