//! The background jobs: creation recovery, operation recovery, reconciliation and orphaned intents.
//!
//! Each job claims the rows that are due in Postgres (`FOR UPDATE SKIP LOCKED`, under a lease). So any number of replicas
//! share the work without a leader, and the work of a dead replica is claimed again when its leases expire. Doing the same
//! work twice changes nothing.

mod backlog;
mod creation_recovery;
mod job;
mod operation_recovery;
mod orphaned_intents;
mod progress;
mod reconciliation;
mod supervisor;
mod throttle;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info_span};

use crate::{
    config::JobSettings,
    dojo,
    payment_link::PaymentLinkId,
    protocol::{self, Context},
    store::{self, leases::Lease},
};
use job::{Backoff, Job, Runner};
use progress::Progress;
pub use supervisor::{Heartbeat, supervise};
use throttle::Throttle;

/// How long to wait before a job that stopped is restarted.
pub const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// The jobs of one account, and what they share.
#[derive(Clone)]
pub struct Jobs {
    context: Context,
    settings: JobSettings,
    throttle: Arc<Throttle>,
    stop: CancellationToken,
}

impl Jobs {
    /// The jobs for this account. Each account has a throttle of its own, so that an account whose key Dojo rejects doesn't
    /// hold up the others.
    #[must_use]
    pub fn new(context: Context, settings: JobSettings, stop: CancellationToken) -> Self {
        Self {
            throttle: Arc::new(Throttle::new(
                settings.background_rate,
                settings.max_retry_after,
            )),
            context,
            settings,
            stop,
        }
    }

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
        });
        self.keep_running(tasks, J::NAME, Arc::clone(&runner.progress), move || {
            let runner = Arc::clone(&runner);
            async move { runner.run().await }
        });
    }

    fn progress(&self, job: &'static str) -> Arc<Progress> {
        Arc::new(Progress::new(&self.context.account.name, job))
    }

    fn keep_running<F: Future<Output = ()> + Send>(
        &self,
        tasks: &TaskTracker,
        job: &'static str,
        progress: Arc<Progress>,
        run: impl Fn() -> F + Send + 'static,
    ) {
        // The longest step is the work on one item, which ends with its lease. The rest is for the database.
        let limit = self.context.account.client.operation_lease() * 2 + Duration::from_mins(1);
        let stop = self.stop.clone();
        let span = info_span!("job", account = self.context.account.name);
        let supervised = async move {
            supervise(job, &progress.heartbeat, limit, RESTART_PAUSE, &stop, run).await;
        };
        tasks.spawn(supervised.instrument(span));
    }

    /// Waits until the throttle allows another call, and shows that the job is alive.
    async fn ready(&self, progress: &Progress) {
        self.throttle.ready().await;
        progress.mark();
    }

    /// Renews the lease on a claimed link unless it lasts for the work on one item. `None`: the link was released meanwhile,
    /// or is leased to another replica.
    async fn renewed(
        &self,
        id: PaymentLinkId,
        lease: Lease,
    ) -> Result<Option<Lease>, store::Error> {
        if lease.is_fresh() {
            return Ok(Some(lease));
        }
        let (lease, renewed) = store::leases::renew(&self.context.pool, &lease, &[id]).await?;
        Ok(renewed.contains(&id).then_some(lease))
    }

    /// Works on an item for no longer than its lease lasts: after that, another replica may work on it.
    ///
    /// If Dojo rejects the work, this finds out whether that concerns the item or the account's key, by trying whether Dojo
    /// accepts the key for another call.
    async fn within_lease<T>(
        &self,
        lease: Duration,
        work: impl Future<Output = Result<T, protocol::Error>> + Send,
    ) -> Result<(), protocol::Error> {
        let result = tokio::time::timeout(lease, Box::pin(work)).await;
        match result.unwrap_or(Err(protocol::Error::TimedOut)) {
            Ok(_) => Ok(()),
            Err(protocol::Error::Dojo(error @ dojo::Error::Rejected { .. })) => {
                Err(protocol::Error::Rejected(error))
            }
            Err(protocol::Error::Dojo(error @ dojo::Error::KeyRejected { .. })) => {
                Err(self.attribute(error).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out whether a failure concerns one item or the whole account, by a call that succeeds if the account works.
    async fn attribute(&self, error: dojo::Error) -> protocol::Error {
        self.throttle.ready().await;
        match self.context.account.client.probe().await {
            Ok(_) => protocol::Error::Rejected(error),
            Err(_) => protocol::Error::Dojo(error),
        }
    }
}
