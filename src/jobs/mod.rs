//! The background: what sees lost creations and operations through, keeps links in step with Dojo, and traces strays.
//!
//! Each job claims what is due in Postgres (`FOR UPDATE SKIP LOCKED`, with a lease), so any number of replicas
//! share the work without a leader, and what a dead one held is free again when its lease is over. Doing a piece
//! twice changes nothing.

mod backlog;
mod operations;
mod pace;
mod recovery;
mod refresh;
mod strays;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info_span, warn};

use crate::{
    config::JobSettings,
    dojo::Account,
    payment_link::recovery::Patience,
    protocol,
    store::{self, PgPool},
    telemetry::causes,
};
use pace::Pace;

/// What the jobs share.
#[derive(Clone)]
pub struct Jobs {
    pool: PgPool,
    account: Account,
    settings: JobSettings,
    /// Longer than asking Dojo once can take, with everything around it.
    lease: Duration,
    pace: Arc<Pace>,
    /// Rung when something became due just now, so that it need not wait for the next round.
    bell: Arc<Notify>,
    stop: CancellationToken,
}

impl Jobs {
    /// The jobs for this account. Each account has a pace of its own, so that one whose key Dojo refuses holds up no
    /// other.
    #[must_use]
    pub fn new(
        pool: PgPool,
        account: Account,
        settings: JobSettings,
        bell: Arc<Notify>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            pool,
            lease: account.client.creation_lease(),
            pace: Arc::new(Pace::new(settings.background_rate)),
            account,
            settings,
            bell,
            stop,
        }
    }

    /// Starts all of them; they end when they are told to stop.
    pub fn spawn(self, tasks: &TaskTracker) {
        let span = || info_span!("job", account = self.account.name);
        tasks.spawn(recovery::Recovery(self.clone()).run().instrument(span()));
        tasks.spawn(
            operations::Operations(self.clone())
                .run()
                .instrument(span()),
        );
        tasks.spawn(refresh::Refresh(self.clone()).run().instrument(span()));
        tasks.spawn(strays::Strays(self.clone()).run().instrument(span()));
        tasks.spawn(backlog::Watch(self.clone()).run().instrument(span()));
    }

    /// Calls `round` again and again until told to stop: at once while it finds work, else after a while or when
    /// the bell rings. `round` is told how many pieces to claim and answers how many it found.
    async fn rounds<F>(&self, mut round: impl FnMut(i64) -> F)
    where
        F: Future<Output = Result<usize, crate::store::Error>>,
    {
        while !self.stop.is_cancelled() {
            let wait = match self.pace.pause() {
                // Dojo is in trouble; it is not asked at all for a while.
                Some(pause) => pause,
                None => match round(self.pace.batch(self.settings.batch)).await {
                    Ok(0) => self.settings.poll_interval,
                    Ok(_) => continue,
                    Err(error) => {
                        // Readiness tells of it; here it would be told every second.
                        debug!(error = %causes(&error), "the database did not answer");
                        self.settings.poll_interval
                    }
                },
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.bell.notified(), if self.pace.pause().is_none() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does a piece of work, for no longer than it is held: whoever takes it up after that must be alone with it.
    async fn held<T>(
        &self,
        lease: Duration,
        work: impl Future<Output = Result<T, protocol::Error>>,
    ) -> Result<(), protocol::Error> {
        match tokio::time::timeout(lease, Box::pin(work)).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(protocol::Error::TimedOut),
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            settle: self.settings.recovery_settle,
            give_up: self.settings.recovery_give_up,
        }
    }

    /// Notes how a piece of work ended. `Some` if it has to be taken up again: after that long.
    fn took(&self, job: &'static str, result: Result<(), protocol::Error>) -> Option<Duration> {
        let outcome = match &result {
            Ok(()) => "ok",
            Err(protocol::Error::Store(store::Error::IntentTaken { .. })) => "intent_taken",
            Err(protocol::Error::Store(_)) => "database",
            Err(protocol::Error::Dojo(error)) => error.name(),
            Err(protocol::Error::TooManyIntents) => "too_many_intents",
            Err(protocol::Error::TimedOut) => "timed_out",
        };
        metrics::counter!("jobs_total", "job" => job, "outcome" => outcome).increment(1);
        match result {
            Ok(()) => {
                self.pace.went_well();
                None
            }
            Err(error) => {
                warn!(job, error = %causes(&error), "to be tried again");
                let retry = Duration::from_secs(5);
                match error {
                    protocol::Error::Dojo(error) => Some(self.pace.went_wrong(&error).max(retry)),
                    protocol::Error::TooManyIntents
                    | protocol::Error::Store(store::Error::IntentTaken { .. }) => Some(retry * 12),
                    protocol::Error::Store(_) | protocol::Error::TimedOut => Some(retry),
                }
            }
        }
    }
}
