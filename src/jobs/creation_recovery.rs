use std::{fmt::Display, time::Duration};

use super::{
    Jobs,
    job::{Job, Prepared},
    progress::Progress,
};
use crate::{
    protocol::{
        self, Context,
        creation_recovery::{Search, Searched},
    },
    store,
};

/// Resolves lost creations: finds the intents that Dojo created, or creates them again.
pub(super) struct CreationRecovery(pub(super) Jobs);

impl Job for CreationRecovery {
    const NAME: &'static str = "creation_recovery";
    const SHARED_NAME: &'static str = "search";

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
        let ready = || self.0.ready(progress);
        let links = claimed.iter().map(|item| item.unsettled.clone()).collect();
        let Search {
            searched,
            unsearched,
            trouble: error,
        } = tokio::select! {
            search = protocol::creation_recovery::search_all(context, links, ready) => search,
            // A search may take minutes, and another replica can do it.
            () = self.0.stop.cancelled() => return Prepared {
                ready: Vec::new(),
                deferred: claimed,
                error: None,
            },
        };
        if error.is_none() {
            throttle.succeeded();
        }
        Prepared {
            ready: searched,
            deferred: unsearched.into_iter().map(Searched::from).collect(),
            error,
        }
    }

    fn needs_dojo(item: &Searched) -> bool {
        item.found.is_empty()
    }

    async fn work(&self, item: &Searched) -> Result<(), protocol::Error> {
        let (id, lost_creation_lease) = (item.unsettled.id, item.unsettled.lease);
        let Some(renewed) = self.0.renewed(id, lost_creation_lease).await? else {
            return Ok(());
        };
        let mut item = item.clone();
        item.unsettled.lease = renewed;
        let work = protocol::creation_recovery::recover(&self.0.context, &item);
        self.0.within_lease(renewed.left(), work).await
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
