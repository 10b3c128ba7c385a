use std::{fmt::Display, time::Duration};

use tracing::info;

use super::{Jobs, job::Job};
use crate::{
    protocol,
    store::{self, orphaned_intents::OrphanedIntent},
};

/// Finds out which link an orphaned intent belongs to, and cancels surplus intents.
pub(super) struct OrphanedIntents(pub(super) Jobs);

impl Job for OrphanedIntents {
    const NAME: &'static str = "orphaned_intents";

    type Item = OrphanedIntent;

    fn id(orphan: &OrphanedIntent) -> impl Display + Send {
        orphan.id.clone()
    }

    async fn claim(&self, limit: i64) -> Result<Vec<OrphanedIntent>, store::Error> {
        let Jobs {
            pool,
            account,
            lease,
            ..
        } = &self.0;
        store::orphaned_intents::claim(pool, &account.name, *lease, limit).await
    }

    async fn work(&self, orphan: &OrphanedIntent) -> Result<(), protocol::Error> {
        let Jobs {
            pool,
            account,
            lease,
            ..
        } = &self.0;
        let work = protocol::orphaned_intents::look(pool, account, orphan);
        self.0.within_lease(*lease, work).await
    }

    async fn release(
        &self,
        orphan: &OrphanedIntent,
        error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let pool = &self.0.pool;
        let rejected = matches!(error, Some(protocol::Error::Rejected(_)));
        if rejected && !orphan.recent && orphan.surplus_of.is_none() {
            // Our own intents can be read with our key.
            info!(
                payment_intent_id = orphan.id,
                "giving up on an orphaned intent that Dojo does not show to this account"
            );
            return store::orphaned_intents::settle(pool, &orphan.id).await;
        }
        store::orphaned_intents::ask_later(pool, &orphan.id, wait).await
    }
}
