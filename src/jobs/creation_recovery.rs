use std::{fmt::Display, time::Duration};

use super::{
    job::{Job, Prepared},
    progress::Progress,
    shared::Jobs,
};
use crate::{
    protocol::{
        self, Context,
        intent_search::{SearchResult, SearchedCreation},
    },
    store,
};

/// Resolves lost creations: finds the intents that Dojo created, or creates them again.
pub(super) struct CreationRecovery(pub(super) Jobs);

impl Job for CreationRecovery {
    const NAME: &'static str = "creation_recovery";
    const SHARED_NAME: &'static str = "search";

    type Item = SearchedCreation;

    fn id(item: &SearchedCreation) -> impl Display + Send {
        item.lost.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<SearchedCreation>, store::Error> {
        let Context { pool, account, .. } = &self.0.context;
        let lease = account.client.creation_lease();
        let claimed = store::creation_recovery::claim(pool, &account.name, lease, limit).await?;
        Ok(claimed.into_iter().map(SearchedCreation::from).collect())
    }

    async fn prepare(
        &self,
        claimed: Vec<SearchedCreation>,
        progress: &Progress,
    ) -> Prepared<SearchedCreation> {
        let Jobs {
            context, throttle, ..
        } = &self.0;
        let ready = || self.0.ready(progress);
        let links = claimed.iter().map(|item| item.lost.clone()).collect();
        let SearchResult {
            searched,
            unsearched,
            error,
        } = tokio::select! {
            search = protocol::intent_search::search_all(context, links, ready) => search,
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
            deferred: unsearched.into_iter().map(SearchedCreation::from).collect(),
            error,
        }
    }

    fn needs_dojo(item: &SearchedCreation) -> bool {
        item.intents.is_empty()
    }

    async fn work(&self, item: &SearchedCreation) -> Result<(), protocol::Error> {
        let Some(lease) = self.0.renewed(item.lost.id, item.lost.lease).await? else {
            return Ok(());
        };
        let mut item = item.clone();
        item.lost.lease = lease;
        let work = protocol::creation_recovery::recover(&self.0.context, &item);
        self.0.within_lease(lease.left(), work).await
    }

    async fn release(
        &self,
        item: &SearchedCreation,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::creation_recovery::release(&self.0.context.pool, &item.lost, Some(wait)).await
    }
}
