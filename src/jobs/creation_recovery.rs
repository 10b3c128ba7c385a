use std::{fmt::Display, time::Duration};

use super::{
    Jobs,
    job::{Job, Prepared},
    supervisor::Progress,
};
use crate::{
    protocol::{
        self, Context,
        creation_recovery::{Search, Searched},
    },
    store,
};

/// Sees lost creations through.
pub(super) struct CreationRecovery(pub(super) Jobs);

impl Job for CreationRecovery {
    const NAME: &'static str = "creation_recovery";
    const SHARED: &'static str = "search";

    /// Nothing is found before it was searched for.
    type Item = Searched;

    fn id(item: &Searched) -> impl Display + Send {
        item.unsettled.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Searched>, store::Error> {
        let Context { pool, account, .. } = &self.0.context;
        let lease = account.client.creation_lease();
        let claimed = store::creation::claim_unsettled(pool, &account.name, lease, limit).await?;
        Ok(claimed.into_iter().map(Searched::from).collect())
    }

    async fn prepare(&self, claimed: Vec<Searched>, progress: &Progress) -> Prepared<Searched> {
        let Jobs {
            context, throttle, ..
        } = &self.0;
        let turn = || self.0.turn(progress);
        let links = claimed.iter().map(|item| item.unsettled.clone()).collect();
        let Search {
            searched,
            unsearched,
            trouble,
        } = tokio::select! {
            search = protocol::creation_recovery::search_all(context, links, turn) => search,
            // A search may take minutes, and somebody else can do it.
            () = self.0.stop.cancelled() => return Prepared {
                ready: Vec::new(),
                held_up: claimed,
                trouble: None,
            },
        };
        if trouble.is_none() {
            throttle.went_well();
        }
        Prepared {
            ready: searched,
            held_up: unsearched.into_iter().map(Searched::from).collect(),
            trouble,
        }
    }

    fn needs_dojo(item: &Searched) -> bool {
        item.found.is_empty()
    }

    async fn work(&self, item: &Searched) -> Result<(), protocol::Error> {
        let Some(unsettled) = self.0.hold(item.unsettled.id, item.unsettled.lease).await? else {
            return Ok(());
        };
        let mut item = item.clone();
        item.unsettled.lease = unsettled;
        let work = protocol::creation_recovery::recover(&self.0.context, &item);
        self.0.held(unsettled.left(), work).await
    }

    async fn release(
        &self,
        item: &Searched,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let unsettled = &item.unsettled;
        let (id, lease) = (unsettled.id, unsettled.lease);
        store::creation::give_back(&self.0.context.pool, id, lease, Some(wait)).await
    }
}
