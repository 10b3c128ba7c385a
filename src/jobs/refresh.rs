use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    Jobs,
    job::{Job, Prepared},
    supervisor::Progress,
};
use crate::{
    payment_link::timeline::Cause,
    protocol,
    store::{self, leases::Lease, looks::Looked},
};

/// Looks at links that are due: after each webhook, and on a schedule for webhooks that never came.
pub(super) struct Refresh {
    jobs: Jobs,
    /// The links of this round that may have a second intent at Dojo.
    doubtful: Mutex<Vec<Looked>>,
}

impl Refresh {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self {
            jobs,
            doubtful: Mutex::default(),
        }
    }

    fn doubtful(&self) -> std::sync::MutexGuard<'_, Vec<Looked>> {
        // Nothing that holds it can leave it half changed.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job for Refresh {
    const NAME: &'static str = "refresh";
    const SHARED: &'static str = "sweep";

    type Item = (Looked, Lease);

    fn id((looked, _): &Self::Item) -> impl Display + Send {
        looked.link.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Self::Item>, store::Error> {
        let Jobs {
            pool,
            account,
            lease,
            ..
        } = &self.jobs;
        store::looks::claim(pool, &account.name, *lease, limit).await
    }

    /// Settles in few calls what can be.
    async fn prepare(&self, claimed: Vec<Self::Item>, progress: &Progress) -> Prepared<Self::Item> {
        let Jobs {
            pool,
            account,
            settings,
            lease,
            ..
        } = &self.jobs;
        let leases: HashMap<_, _> = claimed
            .iter()
            .map(|(looked, lease)| (looked.link.id, *lease))
            .collect();
        let due = claimed.iter().map(|(looked, _)| looked.clone()).collect();
        self.jobs.turn(progress).await;
        let sweep = protocol::refresh::sweep(pool, account, due, settings.recovery_settle);
        let left = tokio::time::timeout(*lease, sweep)
            .await
            .unwrap_or(Err(protocol::Error::TimedOut));
        match left {
            Ok(left) => Prepared::from(
                left.into_iter()
                    .filter_map(|looked| {
                        let lease = *leases.get(&looked.link.id)?;
                        Some((looked, lease))
                    })
                    .collect::<Vec<_>>(),
            ),
            // Those that it has settled hold no lease any more, and are left out when their turn comes.
            Err(error) => Prepared {
                ready: claimed,
                held_up: Vec::new(),
                trouble: Some(error),
            },
        }
    }

    async fn work(&self, (looked, lease): &Self::Item) -> Result<(), protocol::Error> {
        let Jobs {
            pool,
            account,
            settings,
            ..
        } = &self.jobs;
        let Some(lease) = self.jobs.hold(looked.link.id, *lease).await? else {
            return Ok(());
        };
        let patience = settings.recovery_settle;
        let work = protocol::refresh::read(pool, account, looked, patience, &Cause::Refresh);
        self.jobs.held(lease.left(), work).await?;
        if looked.asked_again {
            self.doubtful().push(looked.clone());
        }
        Ok(())
    }

    /// Searches for second intents: after what was read is written, so that a search that fails keeps no payment from
    /// being told. The next look searches again.
    async fn finish(&self, progress: &Progress) -> Result<(), protocol::Error> {
        let Jobs {
            pool,
            account,
            lease,
            stop,
            ..
        } = &self.jobs;
        let doubtful = std::mem::take(&mut *self.doubtful());
        let turn = || self.jobs.turn(progress);
        let search = protocol::recovery::find_surplus(
            pool,
            account,
            doubtful,
            protocol::recovery::PAGES,
            turn,
        );
        tokio::select! {
            // No longer than a piece of work: others are due meanwhile.
            found = tokio::time::timeout(*lease, search) => {
                found.unwrap_or(Err(protocol::Error::TimedOut))
            }
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn release(
        &self,
        (looked, _): &Self::Item,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::looks::look_again(&self.jobs.pool, looked.link.id, wait).await
    }
}
