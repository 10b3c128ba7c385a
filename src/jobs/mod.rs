//! The background jobs: creation recovery, operation recovery, reconciliation, daily reconciliation, orphaned intents,
//! messages, reminders, the feed, the books, callbacks and pruning.
//!
//! Each job claims the rows that are due in Postgres (`FOR UPDATE SKIP LOCKED`, under a lease). So any number of replicas
//! share the work without a leader, and the work of a dead replica is claimed again when its leases expire. Doing the same
//! work twice changes nothing. The feed, the books and pruning have no items to claim: the replicas take turns.

mod backlog;
mod books;
mod callbacks;
mod creation_recovery;
mod daily_reconciliation;
mod feed;
mod job;
mod messages;
mod operation_recovery;
mod orphaned_intents;
mod progress;
mod pruning;
mod reconciliation;
mod served_endpoint;
mod shared;
mod supervisor;
mod throttle;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

pub use books::Books;
pub use callbacks::Callbacks;
pub use feed::{Follower, Sequencer};
use job::{Backoff, Job, Runner};
use progress::Progress;
pub use pruning::{Pruning, prune};
pub use shared::Jobs;
pub use supervisor::{Heartbeat, supervise};

/// How long to wait before a job that stopped is restarted.
pub const RESTART_PAUSE: Duration = Duration::from_secs(5);

impl Jobs {
    /// Starts all jobs. They end when they are told to stop.
    pub fn spawn(self, tasks: &TaskTracker) {
        let batch = self.settings.batch;
        self.start(
            tasks,
            creation_recovery::CreationRecovery(self.clone()),
            batch,
        );
        self.start(
            tasks,
            reconciliation::Reconciliation::new(self.clone()),
            batch,
        );
        // These share no calls, so they claim no more than they work on at once: no lease may expire in a queue.
        let few = batch.min(self.settings.concurrency());
        self.start(
            tasks,
            operation_recovery::OperationRecovery(self.clone()),
            few,
        );
        self.start(tasks, orphaned_intents::OrphanedIntents(self.clone()), few);
        self.start(tasks, messages::Reminders(self.clone()), few);
        self.start(tasks, messages::Messages(self.clone()), few);
        if let Some(days) = self.business_days.clone() {
            let job = daily_reconciliation::DailyReconciliation::new(self.clone(), days);
            self.start(tasks, job, 1);
        }
        let backlog = Arc::new(backlog::BacklogMetrics::new(self.clone()));
        self.keep_running(
            tasks,
            backlog::NAME,
            Arc::clone(&backlog.progress),
            move || {
                let backlog = Arc::clone(&backlog);
                async move { backlog.run().await }
            },
        );
    }

    /// Starts a job that claims up to `batch` items at once.
    fn start<J: Job + Send + 'static>(&self, tasks: &TaskTracker, job: J, batch: i64) {
        let runner = Arc::new(Runner {
            job,
            throttle: Arc::clone(&self.throttle),
            progress: self.progress(J::NAME),
            wake: Arc::clone(&self.context.wake),
            stop: self.stop.clone(),
            batch,
            concurrency: usize::try_from(self.settings.concurrency()).unwrap_or(1),
            poll_interval: self.settings.poll_interval,
            backoff: Backoff::default(),
            shared_work_panicked: AtomicBool::new(false),
            account: self.context.account.name.clone(),
        });
        self.keep_running(tasks, J::NAME, Arc::clone(&runner.progress), move || {
            let runner = Arc::clone(&runner);
            async move { runner.run().await }
        });
    }

    fn keep_running<F: Future<Output = ()> + Send>(
        &self,
        tasks: &TaskTracker,
        job: &'static str,
        progress: Arc<Progress>,
        run: impl Fn() -> F + Send + 'static,
    ) {
        // The longest step is the work on one item, which ends with its lease. The rest is for the database.
        let limit = self.context.account.client.operation_lease() * 2
            + self.mail_time()
            + Duration::from_mins(1);
        let stop = self.stop.clone();
        let span = info_span!("job", account = self.context.account.name);
        let supervised = async move {
            supervise(job, &progress.heartbeat, limit, RESTART_PAUSE, &stop, run).await;
        };
        tasks.spawn(supervised.instrument(span));
    }
}
