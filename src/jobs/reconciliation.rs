use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    job::{Job, Prepared},
    progress::Progress,
    shared::Jobs,
};
use crate::{
    protocol::{self, Context, intent_search::SurplusSearch},
    store::{self, leases::Lease, reconciliation::LinkSnapshot},
};

/// Reconciles links that are due: after each webhook, and on a schedule in case webhooks were lost.
pub(super) struct Reconciliation {
    jobs: Jobs,
    /// The links of this round that may have a surplus intent at Dojo.
    may_have_surplus: Mutex<Vec<LinkSnapshot>>,
    /// The searches for surplus intents that are not complete.
    searches: Mutex<VecDeque<SurplusSearch>>,
}

impl Reconciliation {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self {
            jobs,
            may_have_surplus: Mutex::default(),
            searches: Mutex::default(),
        }
    }

    fn may_have_surplus(&self) -> MutexGuard<'_, Vec<LinkSnapshot>> {
        // No code that has the lock can leave the list half changed.
        self.may_have_surplus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn searches(&self) -> MutexGuard<'_, VecDeque<SurplusSearch>> {
        // As above.
        self.searches.lock().unwrap_or_else(PoisonError::into_inner)
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
        let work = protocol::reconciliation::reconcile_due(&self.jobs.context, snapshot);
        self.jobs.within_lease(lease.left(), work).await?;
        if snapshot.creation_retried {
            self.may_have_surplus().push(snapshot.clone());
        }
        Ok(())
    }

    /// Searches for surplus intents. This comes after the responses have been stored, so that a search that fails delays no
    /// payment. It runs for no longer than the work on one link, because other links become due meanwhile, and continues in
    /// the next round.
    async fn finish(&self, progress: &Progress) -> Result<(), protocol::Error> {
        let Jobs { context, stop, .. } = &self.jobs;
        let lease = context.account.client.creation_lease();
        let mut searches = std::mem::take(&mut *self.searches());
        let mut links = std::mem::take(&mut *self.may_have_surplus());
        links.retain(|snapshot| {
            !searches
                .iter()
                .any(|search| search.covers(snapshot.link.id))
        });
        searches.extend(SurplusSearch::of(links));
        let work = async {
            while let Some(search) = searches.front_mut() {
                let ready = || self.jobs.ready(progress);
                let found = search.run(context, usize::MAX, ready).await;
                // One that fails is dropped: the next reconciliation of its links searches again.
                searches.pop_front();
                found?;
            }
            Ok(())
        };
        let found = tokio::select! {
            found = tokio::time::timeout(lease, work) => found.unwrap_or(Ok(())),
            () = stop.cancelled() => Ok(()),
        };
        *self.searches() = searches;
        found
    }

    async fn release(
        &self,
        (snapshot, _): &Self::Item,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::reconciliation::release(&self.jobs.context.pool, snapshot.link.id, wait).await
    }
}
