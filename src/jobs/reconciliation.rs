use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    Jobs,
    job::{Job, Prepared},
    progress::Progress,
};
use crate::{
    payment_link::timeline::Cause,
    protocol::{self, Context},
    store::{self, leases::Lease, reconciliation::LinkSnapshot},
};

/// Reconciles links that are due: after each webhook, and on a schedule in case webhooks were lost.
pub(super) struct Reconciliation {
    jobs: Jobs,
    /// The links of this round that may have a surplus intent at Dojo.
    may_have_surplus: Mutex<Vec<LinkSnapshot>>,
}

impl Reconciliation {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self {
            jobs,
            may_have_surplus: Mutex::default(),
        }
    }

    fn may_have_surplus(&self) -> std::sync::MutexGuard<'_, Vec<LinkSnapshot>> {
        // No code that has the lock can leave the list half changed.
        self.may_have_surplus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job for Reconciliation {
    const NAME: &'static str = "reconciliation";
    const SHARED_NAME: &'static str = "sweep";

    type Item = (LinkSnapshot, Lease);

    fn id((snapshot, _): &Self::Item) -> impl Display + Send {
        snapshot.link.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Self::Item>, store::Error> {
        let Context { pool, account, .. } = &self.jobs.context;
        let lease = account.client.creation_lease();
        store::reconciliation::claim(pool, &account.name, lease, limit).await
    }

    /// Reconciles as many links as possible in a few calls to Dojo's search.
    async fn prepare(&self, claimed: Vec<Self::Item>, progress: &Progress) -> Prepared<Self::Item> {
        let context = &self.jobs.context;
        let lease = context.account.client.creation_lease();
        let leases: HashMap<_, _> = claimed
            .iter()
            .map(|(snapshot, lease)| (snapshot.link.id, *lease))
            .collect();
        let due = claimed
            .iter()
            .map(|(snapshot, _)| snapshot.clone())
            .collect();
        self.jobs.ready(progress).await;
        let sweep = protocol::reconciliation::sweep(context, due);
        let left = tokio::time::timeout(lease, sweep)
            .await
            .unwrap_or(Err(protocol::Error::TimedOut));
        match left {
            Ok(left) => Prepared::from(
                left.into_iter()
                    .filter_map(|snapshot| {
                        let lease = *leases.get(&snapshot.link.id)?;
                        Some((snapshot, lease))
                    })
                    .collect::<Vec<_>>(),
            ),
            // The links that it did reconcile have been released. Renewing their leases fails, so they are left out.
            Err(error) => Prepared {
                ready: claimed,
                deferred: Vec::new(),
                error: Some(error),
            },
        }
    }

    async fn work(&self, (snapshot, lease): &Self::Item) -> Result<(), protocol::Error> {
        let Some(lease) = self.jobs.renewed(snapshot.link.id, *lease).await? else {
            return Ok(());
        };
        let context = &self.jobs.context;
        let work = protocol::reconciliation::read(context, snapshot, &Cause::Reconciliation);
        self.jobs.within_lease(lease.left(), work).await?;
        if snapshot.asked_again {
            self.may_have_surplus().push(snapshot.clone());
        }
        Ok(())
    }

    /// Searches for surplus intents. This comes after the reads have been stored, so that a search that fails delays no
    /// payment. The next reconciliation searches again.
    async fn finish(&self, progress: &Progress) -> Result<(), protocol::Error> {
        let Jobs { context, stop, .. } = &self.jobs;
        let lease = context.account.client.creation_lease();
        let links = std::mem::take(&mut *self.may_have_surplus());
        let ready = || self.jobs.ready(progress);
        let search = protocol::creation_recovery::find_surplus(
            context,
            links,
            protocol::creation_recovery::PAGES,
            ready,
        );
        tokio::select! {
            // No longer than the work on one link: others become due meanwhile.
            found = tokio::time::timeout(lease, search) => {
                found.unwrap_or(Err(protocol::Error::TimedOut))
            }
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn release(
        &self,
        (snapshot, _): &Self::Item,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::reconciliation::look_again(&self.jobs.context.pool, snapshot.link.id, wait).await
    }
}
