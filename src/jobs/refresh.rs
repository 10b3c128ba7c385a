use std::{collections::HashMap, fmt::Display, time::Duration};

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
pub(super) struct Refresh(pub(super) Jobs);

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
        } = &self.0;
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
        } = &self.0;
        let leases: HashMap<_, _> = claimed
            .iter()
            .map(|(looked, lease)| (looked.link.id, *lease))
            .collect();
        let due = claimed.iter().map(|(looked, _)| looked.clone()).collect();
        self.0.turn(progress).await;
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
        } = &self.0;
        let Some(lease) = self.0.hold(looked.link.id, *lease).await? else {
            return Ok(());
        };
        let patience = settings.recovery_settle;
        let work = protocol::refresh::look(pool, account, looked, patience, &Cause::Refresh);
        self.0.held(lease.left(), work).await
    }

    async fn release(
        &self,
        (looked, _): &Self::Item,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::looks::look_again(&self.0.pool, looked.link.id, wait).await
    }
}
