use std::{fmt::Display, time::Duration};

use super::{
    Jobs,
    job::{Job, Prepared},
    supervisor::Progress,
};
use crate::{
    protocol::{
        self, Context,
        intent_search::{SearchResult, SearchedCreation},
    },
    store,
};

/// Sees lost creations through.
pub(super) struct CreationRecovery(pub(super) Jobs);

impl Job for CreationRecovery {
    const NAME: &'static str = "creation_recovery";
    const SHARED: &'static str = "search";

    /// Nothing is found before it was searched for.
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
        let turn = || self.0.turn(progress);
        let links = claimed.iter().map(|item| item.lost.clone()).collect();
        let SearchResult {
            searched,
            unsearched,
            error,
        } = tokio::select! {
            search = protocol::intent_search::search_all(context, links, turn) => search,
            // A search may take minutes, and somebody else can do it.
            () = self.0.stop.cancelled() => return Prepared {
                ready: Vec::new(),
                held_up: claimed,
                trouble: None,
            },
        };
        if error.is_none() {
            throttle.went_well();
        }
        Prepared {
            ready: searched,
            held_up: unsearched.into_iter().map(SearchedCreation::from).collect(),
            trouble: error,
        }
    }

    fn needs_dojo(item: &SearchedCreation) -> bool {
        item.intents.is_empty()
    }

    async fn work(&self, item: &SearchedCreation) -> Result<(), protocol::Error> {
        let Some(lease) = self.0.hold(item.lost.id, item.lost.lease).await? else {
            return Ok(());
        };
        let mut item = item.clone();
        item.lost.lease = lease;
        let work = protocol::creation_recovery::recover(&self.0.context, &item);
        self.0.held(lease.left(), work).await
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
