//! Callbacks: which endpoints this replica serves, and how far behind they are.
//!
//! A replica claims endpoints and serves each in a task of its own ([`ServedEndpoint`]), so an endpoint that is slow or dead
//! holds up no other.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    RESTART_PAUSE,
    backlog::as_gauge,
    progress::Progress,
    served_endpoint::{NAME, Resources, ServedEndpoint},
    supervise,
};
use crate::{
    callbacks::{
        client::LazyClient,
        endpoint::{EndpointId, EndpointStatus},
    },
    store::{self, PgPool},
};

/// Longer than a round of [`Callbacks`] can take: a few statements, each with its time limit.
const LIMIT: Duration = Duration::from_mins(2);

/// How often to look for endpoints that no replica serves.
const POLL: Duration = Duration::from_secs(1);

/// How many endpoints to claim at a time. Few, so that several replicas that start at once share them.
const CLAIM: i64 = 4;

/// How often to measure how far behind the endpoints are.
const MEASURE: Duration = Duration::from_secs(5);

/// How often to remove the deliveries of endpoints that were deleted.
const REMOVE: Duration = Duration::from_secs(20);

/// The pause between two batches of deliveries that are removed.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Sends callbacks. Each replica runs it, and one at a time serves an endpoint.
pub struct Callbacks {
    resources: Resources,
    progress: Progress,
}

impl Callbacks {
    /// `concurrency` is the number of deliveries in flight to each endpoint. `head` has the position of the newest event.
    #[must_use]
    pub fn new(
        pool: PgPool,
        client: Arc<LazyClient>,
        concurrency: usize,
        head: watch::Receiver<i64>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            resources: Resources {
                pool,
                client,
                concurrency,
                head,
                stop,
            },
            progress: Progress::new("", NAME),
        }
    }

    /// Starts the job. It ends when it is told to stop, once what is in flight has been recorded.
    pub fn spawn(self, tasks: &TaskTracker) {
        let tracker = tasks.clone();
        tasks.spawn(async move {
            let run = || self.run(&tracker);
            let heartbeat = &self.progress.heartbeat;
            supervise(
                NAME,
                heartbeat,
                LIMIT,
                RESTART_PAUSE,
                &self.resources.stop,
                run,
            )
            .await;
        });
    }

    async fn run(&self, tasks: &TaskTracker) {
        let (mut measured_at, mut removed_at) = (None::<Instant>, None::<Instant>);
        let mut known = HashSet::new();
        while !self.resources.stop.is_cancelled() {
            let claimed =
                store::callback_deliveries::claim(&self.resources.pool, self.lease_length(), CLAIM)
                    .await;
            let claimed = self.progress.queried(claimed).unwrap_or_default();
            let found_all = claimed.is_empty();
            for claimed in claimed {
                tasks.spawn(ServedEndpoint::new(self.resources.clone(), claimed).run());
            }
            if measured_at.is_none_or(|at| at.elapsed() >= MEASURE) {
                measured_at = Some(Instant::now());
                self.measure(&mut known).await;
            }
            if removed_at.is_none_or(|at| at.elapsed() >= REMOVE) {
                let has_more = self.remove_deleted().await;
                removed_at = Some(Instant::now()).filter(|_| !has_more);
            }
            let wait = if found_all { POLL } else { POLL / 10 };
            tokio::select! {
                () = self.resources.stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// A lease is renewed once a quarter of it is over. An attempt that begins in the first half ends within it.
    fn lease_length(&self) -> Duration {
        self.resources.client.timeouts().total * 2 + Duration::from_secs(5)
    }

    async fn measure(&self, known: &mut HashSet<EndpointId>) {
        let Ok(backlogs) = self
            .progress
            .queried(store::callback_deliveries::backlog(&self.resources.pool).await)
        else {
            return;
        };
        let set = |id: EndpointId, pending, failed, lag, paused| {
            let endpoint = id.to_string();
            metrics::gauge!("callback_pending", "endpoint" => endpoint.clone()).set(pending);
            metrics::gauge!("callback_failed", "endpoint" => endpoint.clone()).set(failed);
            metrics::gauge!("callback_lag_seconds", "endpoint" => endpoint.clone()).set(lag);
            metrics::gauge!("callback_paused", "endpoint" => endpoint).set(paused);
        };
        let mut gone = std::mem::take(known);
        for backlog in backlogs {
            gone.remove(&backlog.id);
            known.insert(backlog.id);
            let paused = f64::from(u8::from(backlog.status == EndpointStatus::Paused));
            let (pending, failed) = (as_gauge(backlog.pending), as_gauge(backlog.failed));
            set(backlog.id, pending, failed, backlog.lag, paused);
        }
        for id in gone {
            set(id, 0.0, 0.0, 0.0, 0.0);
        }
    }

    /// Removes the next deliveries of deleted endpoints. Returns whether more may be left.
    async fn remove_deleted(&self) -> bool {
        let until = Instant::now() + POLL;
        while !self.resources.stop.is_cancelled() && Instant::now() < until {
            let removed = store::callback_endpoints::remove_deleted(&self.resources.pool).await;
            if !self.progress.queried(removed).unwrap_or(false) {
                return false;
            }
            sleep(REMOVE_PAUSE).await;
        }
        true
    }
}
