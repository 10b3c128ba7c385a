//! The feed: numbering changes, and telling waiting readers of new events.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    Heartbeat, RESTART_PAUSE,
    progress::{Progress, count},
    supervise,
};
use crate::{
    store::{self, PgPool, feed::Announcements},
    telemetry::causes,
};

/// The sequencer's name in logs and metrics.
const NAME: &str = "feed";

/// How often the sequencer looks for changes. With the time that a batch takes, this is how old a change is when readers get
/// it. A shorter pause makes it older under load: more and smaller transactions slow down those that make changes.
const PAUSE: Duration = Duration::from_millis(40);

/// How long the sequencer waits after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Longer than a batch can take: a few statements, each with its time limit.
const LIMIT: Duration = Duration::from_mins(2);

/// Gives changes their place in the feed. Each replica tries, and one at a time does it. One job works for all accounts.
pub struct Sequencer {
    pool: PgPool,
    stop: CancellationToken,
    progress: Progress,
}

impl Sequencer {
    #[must_use]
    pub fn new(pool: PgPool, stop: CancellationToken) -> Self {
        Self {
            pool,
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
        while !self.stop.is_cancelled() {
            let sequenced = store::feed::sequence(&self.pool).await;
            let wait = match self.progress.queried(sequenced) {
                Ok(sequenced) => {
                    if let Some(delay) = sequenced.delay {
                        count(NAME, "ok");
                        metrics::histogram!("feed_delay_seconds").record(delay);
                    }
                    if sequenced.more {
                        continue;
                    }
                    PAUSE
                }
                // The failure is counted and logged already.
                Err(_) => RETRY,
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }
}

/// How often to ask for the newest position in case it isn't announced.
const POLL: Duration = Duration::from_secs(1);

/// Follows the position of the newest event, for all requests that wait for events on this replica.
///
/// Postgres announces new events. Where announcements don't get through, because of a pooler or a dead connection, polling
/// finds them.
pub struct Follower {
    pool: PgPool,
    head: watch::Sender<i64>,
    stop: CancellationToken,
    heartbeat: Heartbeat,
}

impl Follower {
    /// Starts following. The receiver has the position of the newest event.
    #[must_use]
    pub fn start(
        pool: PgPool,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> watch::Receiver<i64> {
        let (head, following) = watch::channel(0);
        let job = Arc::new(Self {
            pool,
            head,
            stop,
            heartbeat: Heartbeat::default(),
        });
        tasks.spawn(async move {
            let run = || job.run();
            supervise(
                "feed_follower",
                &job.heartbeat,
                LIMIT,
                RESTART_PAUSE,
                &job.stop,
                run,
            )
            .await;
        });
        following
    }

    async fn run(&self) {
        let mut announcements = None;
        let mut is_quiet = false;
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            if announcements.is_none() {
                announcements = Announcements::subscribe(&self.pool)
                    .await
                    .inspect_err(
                        |error| debug!(error = %causes(error), "no announcements of new events; polling"),
                    )
                    .ok();
            }
            // After subscribing, so that nothing is missed in between.
            let polled = store::feed::head(&self.pool).await;
            let was_missed = polled.is_ok_and(|head| self.advance(head));
            if was_missed && is_quiet {
                // Events came, and were not announced.
                announcements = None;
                is_quiet = false;
                continue;
            }
            is_quiet = true;
            let until = Instant::now() + POLL;
            loop {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = sleep_until(until) => break,
                    announced = next(&mut announcements) => match announced {
                        Ok(Some(head)) => {
                            is_quiet = false;
                            self.advance(head);
                        }
                        Ok(None) => break,
                        Err(_) => {
                            announcements = None;
                            break;
                        }
                    },
                }
            }
        }
    }

    /// Returns whether the position is a newer one.
    fn advance(&self, head: i64) -> bool {
        // A smaller position is that of a database that was restored. Its readers must learn that, too.
        self.head.send_if_modified(|known| {
            let is_new = *known != head;
            *known = head;
            is_new
        })
    }
}

/// The next announcement. Never, if there is no connection that receives any.
async fn next(announcements: &mut Option<Announcements>) -> Result<Option<i64>, store::Error> {
    match announcements {
        Some(announcements) => announcements.next().await,
        None => pending().await,
    }
}
