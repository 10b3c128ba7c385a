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
    protocol::{self, Context},
    store::{self, leases::Lease, reconciliation::LinkSnapshot},
};

/// Looks at links that are due: after each webhook, and on a schedule for webhooks that never came.
pub(super) struct Reconciliation {
    jobs: Jobs,
    /// The links of this round that may have a second intent at Dojo.
    doubtful: Mutex<Vec<LinkSnapshot>>,
}

impl Reconciliation {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self {
            jobs,
            doubtful: Mutex::default(),
        }
    }

    fn doubtful(&self) -> std::sync::MutexGuard<'_, Vec<LinkSnapshot>> {
        // Nothing that holds it can leave it half changed.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
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
        let context = &self.jobs.context;
        let work = protocol::reconciliation::read(context, snapshot, &Cause::Reconciliation);
        self.jobs.held(lease.left(), work).await?;
        if snapshot.asked_again {
            self.doubtful().push(snapshot.clone());
        }
        Ok(())
    }

    /// Searches for second intents: after what was read is written, so that a search that fails keeps no payment from
    /// being told. The next look searches again.
    async fn finish(&self, progress: &Progress) -> Result<(), protocol::Error> {
        let Jobs { context, stop, .. } = &self.jobs;
        let lease = context.account.client.creation_lease();
        let doubtful = std::mem::take(&mut *self.doubtful());
        let turn = || self.jobs.turn(progress);
        let search = protocol::creation_recovery::find_surplus(
            context,
            doubtful,
            protocol::creation_recovery::PAGES,
            turn,
        );
        tokio::select! {
            // No longer than a piece of work: others are due meanwhile.
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
