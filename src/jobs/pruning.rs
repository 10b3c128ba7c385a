use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use super::{
    RESTART_PAUSE,
    progress::{Progress, count},
    supervisor::supervise,
};
use crate::store::{
    self, PgPool,
    pruning::{Batch, Removed},
};

/// The name in logs and metrics.
const NAME: &str = "pruning";

/// How often to find out whether the next batch is due.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How long to leave the database alone between two batches of the feed or of callbacks. A batch takes some ten milliseconds.
const REST: Duration = Duration::from_millis(100);

/// Longer than a batch can take: a few statements, each with its time limit.
const LIMIT: Duration = Duration::from_mins(3);

/// Removes old webhooks, a batch at a time. One job works for all accounts.
pub struct Pruning {
    pool: PgPool,
    older_than: Duration,
    stop: CancellationToken,
    progress: Progress,
}

impl Pruning {
    #[must_use]
    pub fn new(pool: PgPool, older_than: Duration, stop: CancellationToken) -> Self {
        Self {
            pool,
            older_than,
            stop,
            // In Prometheus, an empty label is the same as none.
            progress: Progress::new("", NAME),
        }
    }

    /// Starts the job. It ends when it is told to stop.
    pub fn spawn(self, tasks: &TaskTracker) {
        let job = Arc::new(self);
        tasks.spawn(async move {
            let run = || job.run();
            let heartbeat = &job.progress.heartbeat;
            supervise(NAME, heartbeat, LIMIT, RESTART_PAUSE, &job.stop, run).await;
        });
    }

    async fn run(&self) {
        let mut removed = Removed::default();
        while !self.stop.is_cancelled() {
            let batch = store::pruning::next_batch(&self.pool, self.older_than).await;
            let wait = match self.progress.queried(batch) {
                Ok(Some(batch)) => {
                    count(NAME, "ok");
                    removed.add(batch.removed);
                    for (table, rows) in batch.removed.by_table() {
                        metrics::counter!("pruned_rows_total", "table" => table).increment(rows);
                    }
                    if batch.next.is_none() {
                        removed.feed_events += self
                            .prune_table("feed_events", || {
                                store::feed::prune(&self.pool, self.older_than)
                            })
                            .await;
                        removed.callback_deliveries += self
                            .prune_table("callback_deliveries", || {
                                store::callback_deliveries::prune(&self.pool, self.older_than)
                            })
                            .await;
                        let Removed {
                            webhook_events,
                            payment_link_events,
                            feed_events,
                            callback_deliveries,
                        } = std::mem::take(&mut removed);
                        info!(
                            webhook_events,
                            payment_link_events,
                            feed_events,
                            callback_deliveries,
                            "old rows were removed"
                        );
                    }
                    batch.rest.min(POLL_INTERVAL)
                }
                // The failure is counted and logged already.
                Ok(None) | Err(_) => POLL_INTERVAL,
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Removes a table's old rows, a batch at a time. Returns how many there were.
    async fn prune_table<F>(&self, table: &'static str, batch: impl Fn() -> F) -> u64
    where
        F: Future<Output = Result<(u64, bool), store::Error>>,
    {
        let mut removed = 0;
        while !self.stop.is_cancelled() {
            let Ok((rows, more)) = self.progress.queried(batch().await) else {
                break;
            };
            metrics::counter!("pruned_rows_total", "table" => table).increment(rows);
            removed += rows;
            if !more {
                break;
            }
            sleep(REST).await;
        }
        removed
    }
}

/// Removes everything at once that the job would remove, or with `dry_run` only counts it. Calls `report` every few seconds
/// with the number of rows so far.
pub async fn prune(
    pool: &PgPool,
    older_than: Duration,
    dry_run: bool,
    report: impl Fn(Removed),
) -> Result<Removed, store::Error> {
    let (mut removed, mut after) = (Removed::default(), 0);
    let mut reported_at = Instant::now();
    loop {
        let batch = if dry_run {
            Some(store::pruning::preview(pool, after, older_than).await?)
        } else {
            store::pruning::batch(pool, after, older_than).await?
        };
        let Some(Batch {
            removed: more,
            next,
            rest,
        }) = batch
        else {
            // A batch takes some ten milliseconds.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        removed.add(more);
        let Some(next) = next else {
            break;
        };
        after = next;
        if reported_at.elapsed() > Duration::from_secs(10) {
            reported_at = Instant::now();
            report(removed);
        }
        sleep(rest).await;
    }
    if dry_run {
        removed.feed_events = store::feed::prunable(pool, older_than).await?;
        removed.callback_deliveries =
            store::callback_deliveries::prunable(pool, older_than).await?;
        return Ok(removed);
    }
    removed.feed_events = to_the_end(|| store::feed::prune(pool, older_than)).await?;
    removed.callback_deliveries =
        to_the_end(|| store::callback_deliveries::prune(pool, older_than)).await?;
    Ok(removed)
}

/// Removes batches until nothing is left to remove. Returns how many rows there were.
async fn to_the_end<F>(batch: impl Fn() -> F) -> Result<u64, store::Error>
where
    F: Future<Output = Result<(u64, bool), store::Error>>,
{
    let mut removed = 0;
    loop {
        let (rows, more) = batch().await?;
        removed += rows;
        if !more {
            return Ok(removed);
        }
        sleep(REST).await;
    }
}
