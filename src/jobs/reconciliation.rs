use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    Jobs,
    job::{Job, Prepared},
    supervisor::Progress,
};
use crate::{
    protocol::{self, Context, intent_search::SurplusSearch},
    store::{self, leases::Lease, reconciliation::LinkSnapshot},
};

/// Looks at links that are due: after each webhook, and on a schedule for webhooks that never came.
pub(super) struct Reconciliation {
    jobs: Jobs,
    /// The links of this round that may have a second intent at Dojo.
    doubtful: Mutex<Vec<LinkSnapshot>>,
    /// The searches for second intents that are not complete.
    searches: Mutex<VecDeque<SurplusSearch>>,
}

impl Reconciliation {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self {
            jobs,
            doubtful: Mutex::default(),
            searches: Mutex::default(),
        }
    }

    fn doubtful(&self) -> MutexGuard<'_, Vec<LinkSnapshot>> {
        // Nothing that holds it can leave it half changed.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn searches(&self) -> MutexGuard<'_, VecDeque<SurplusSearch>> {
        // As above.
        self.searches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job for Reconciliation {
    const NAME: &'static str = "reconciliation";
    const SHARED: &'static str = "sweep";

    type Item = (LinkSnapshot, Lease);

    fn id((snapshot, _): &Self::Item) -> impl Display + Send {
        snapshot.link.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Self::Item>, store::Error> {
        let Context { pool, account, .. } = &self.jobs.context;
        let lease = account.client.creation_lease();
        store::reconciliation::claim(pool, &account.name, lease, limit).await
    }

    /// Settles in few calls what can be.
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
        self.jobs.turn(progress).await;
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
            // Those that it has settled hold no lease any more, and are left out when their turn comes.
            Err(error) => Prepared {
                ready: claimed,
                held_up: Vec::new(),
                trouble: Some(error),
            },
        }
    }

    async fn work(&self, (snapshot, lease): &Self::Item) -> Result<(), protocol::Error> {
        let Some(lease) = self.jobs.hold(snapshot.link.id, *lease).await? else {
            return Ok(());
        };
        let work = protocol::reconciliation::reconcile_due(&self.jobs.context, snapshot);
        self.jobs.held(lease.left(), work).await?;
        if snapshot.creation_retried {
            self.doubtful().push(snapshot.clone());
        }
        Ok(())
    }

    /// Searches for second intents: after the responses are stored, so that a search that fails keeps no payment from being
    /// recorded. Reads for no longer than a piece of work takes, because other links become due meanwhile, and goes on in the
    /// next round.
    async fn finish(&self, progress: &Progress) -> Result<(), protocol::Error> {
        let Jobs { context, stop, .. } = &self.jobs;
        let lease = context.account.client.creation_lease();
        let mut searches = std::mem::take(&mut *self.searches());
        let mut doubtful = std::mem::take(&mut *self.doubtful());
        doubtful.retain(|snapshot| {
            !searches
                .iter()
                .any(|search| search.covers(snapshot.link.id))
        });
        searches.extend(SurplusSearch::of(doubtful));
        let work = async {
            while let Some(search) = searches.front_mut() {
                let turn = || self.jobs.turn(progress);
                let found = search.run(context, usize::MAX, turn).await;
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
