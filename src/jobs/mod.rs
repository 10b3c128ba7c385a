//! The background: what sees lost creations and operations through, keeps links in step with Dojo, and traces orphaned
//! intents.
//!
//! Each job claims what is due in Postgres (`FOR UPDATE SKIP LOCKED`, with a lease), so any number of replicas
//! share the work without a leader, and what a dead one held is free again when its lease is over. Doing a piece
//! twice changes nothing.

mod backlog;
mod creation_recovery;
mod job;
mod operation_recovery;
mod orphaned_intents;
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
use job::{Job, Runner, Strikes};
use supervisor::{Progress, supervise};
use throttle::Throttle;

/// How long to wait before a job that stopped is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// What the jobs share.
#[derive(Clone)]
pub struct Jobs {
    context: Context,
    settings: JobSettings,
    throttle: Arc<Throttle>,
    stop: CancellationToken,
}

impl Jobs {
    /// The jobs for the account of `context`. Each account has a throttle of its own, so that one whose key Dojo refuses holds up no
    /// other.
    #[must_use]
    pub fn new(context: Context, settings: JobSettings, stop: CancellationToken) -> Self {
        Self {
            context,
            throttle: Arc::new(Throttle::new(settings.background_rate)),
            settings,
            stop,
        }
    }

    /// Starts all of them; they end when they are told to stop.
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
        // These share no calls, so they claim no more than they work on at once: a lease must not run out in a queue.
        let few = batch.min(self.settings.concurrency());
        self.start(
            tasks,
            operation_recovery::OperationRecovery(self.clone()),
            few,
        );
        self.start(tasks, orphaned_intents::OrphanedIntents(self.clone()), few);
        let watch = Arc::new(backlog::Watch::new(self.clone()));
        self.keep_running(
            tasks,
            backlog::NAME,
            Arc::clone(&watch.progress),
            move || {
                let watch = Arc::clone(&watch);
                async move { watch.run().await }
            },
        );
    }

    /// Starts a job that claims up to `batch` pieces at once.
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
            strikes: Strikes::default(),
            shaken: AtomicBool::new(false),
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
        // The longest step is a piece of work, which ends with its lease; the rest is for the database.
        let limit = self.context.account.client.operation_lease() * 2 + Duration::from_mins(1);
        let stop = self.stop.clone();
        let span = info_span!("job", account = self.context.account.name);
        let supervised = async move {
            supervise(job, &progress, limit, RESTART_PAUSE, &stop, run).await;
        };
        tasks.spawn(supervised.instrument(span));
    }

    /// Waits until it is a call's turn, and shows that the job is alive.
    async fn turn(&self, progress: &Progress) {
        self.throttle.turn().await;
        progress.mark();
    }

    /// Makes sure that a claimed link is held for as long as a piece of work takes. `None`: it was given back meanwhile,
    /// or somebody else holds it.
    async fn hold(&self, id: PaymentLinkId, lease: Lease) -> Result<Option<Lease>, store::Error> {
        if lease.is_fresh() {
            return Ok(Some(lease));
        }
        let (lease, held) = store::leases::renew(&self.context.pool, &lease, &[id]).await?;
        Ok(held.contains(&id).then_some(lease))
    }

    /// Does a piece of work, for no longer than it is held: whoever takes it up after that must be alone with it.
    ///
    /// A refusal that is about this piece alone is told from one of the account's key: by asking whether Dojo takes the
    /// key for something else.
    async fn held<T>(
        &self,
        lease: Duration,
        work: impl Future<Output = Result<T, protocol::Error>> + Send,
    ) -> Result<(), protocol::Error> {
        let result = tokio::time::timeout(lease, Box::pin(work)).await;
        match result.unwrap_or(Err(protocol::Error::TimedOut)) {
            Ok(_) => Ok(()),
            Err(protocol::Error::Dojo(error @ dojo::Error::Refused { .. })) => {
                Err(protocol::Error::Rejected(error))
            }
            Err(protocol::Error::Dojo(error @ dojo::Error::KeyRefused { .. })) => {
                Err(self.attribute(error).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out whether a failure concerns one piece of work alone or the whole account, by a call that works if the
    /// account does.
    async fn attribute(&self, error: dojo::Error) -> protocol::Error {
        self.throttle.turn().await;
        match self.context.account.client.probe().await {
            Ok(_) => protocol::Error::Rejected(error),
            Err(_) => protocol::Error::Dojo(error),
        }
    }
}
