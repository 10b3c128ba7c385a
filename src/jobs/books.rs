//! The books: booking what the feed reports.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    RESTART_PAUSE,
    backlog::as_gauge,
    progress::{Progress, count},
    supervise,
};
use crate::{
    payment_link::movement::BusinessDays,
    store::{self, PgPool},
};

/// The job's name in logs and metrics.
const NAME: &str = "books";

/// How often to look for events in case the feed's position isn't followed.
const POLL: Duration = Duration::from_secs(5);

/// How long to collect events, so that busy times need few transactions.
const PAUSE: Duration = Duration::from_millis(200);

/// How long the job waits after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Longer than a batch can take: a few statements, each with its time limit.
const LIMIT: Duration = Duration::from_mins(2);

/// Books what the feed reports. Each replica tries, and one at a time does it. One job works for all accounts.
pub struct Books {
    pool: PgPool,
    days: BusinessDays,
    /// The position of the newest event.
    head: watch::Receiver<i64>,
    stop: CancellationToken,
    progress: Progress,
}

impl Books {
    #[must_use]
    pub fn new(
        pool: PgPool,
        days: BusinessDays,
        head: watch::Receiver<i64>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            pool,
            days,
            head,
            stop,
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
        let mut head = self.head.clone();
        while !self.stop.is_cancelled() {
            // Marked as seen before the read, so that an event that comes during the read isn't missed.
            head.mark_unchanged();
            let worked = self.work().await;
            let wait = match self.progress.queried(worked) {
                Ok(true) => continue,
                Ok(false) => PAUSE,
                // The failure is counted and logged already.
                Err(_) => RETRY,
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(wait) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                _ = head.changed() => {}
                () = sleep(POLL) => {}
            }
        }
    }

    /// Books the next events or, if there are none, fills in what an earlier version booked. Returns whether there is more to do
    /// at once.
    async fn work(&self) -> Result<bool, store::Error> {
        let booked = store::movements::book_events(&self.pool, &self.days).await?;
        metrics::gauge!("books_unbooked_events").set(as_gauge(booked.behind.max(0)));
        if booked.examined > 0 {
            count(NAME, "ok");
            if booked.behind > 0 {
                return Ok(true);
            }
        }
        store::movements::fill_in(&self.pool).await
    }
}
