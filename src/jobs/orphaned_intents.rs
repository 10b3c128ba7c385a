use std::{fmt::Display, time::Duration};

use tracing::info;

use super::{job::Job, shared::Jobs};
use crate::{
    dojo,
    payment_link::orphaned_intent::is_given_up,
    protocol::{self, Context},
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
        let Context { pool, account, .. } = &self.0.context;
        let lease = account.client.creation_lease();
        store::orphaned_intents::claim(pool, &account.name, lease, limit).await
    }

    async fn work(&self, orphan: &OrphanedIntent) -> Result<(), protocol::Error> {
        let work = protocol::orphaned_intents::trace(&self.0.context, orphan);
        match self.0.within_lease(orphan.lease.left(), work).await {
            // It may be another program's intent, over which Dojo always fails. That must not pause the account.
            Err(protocol::Error::Dojo(error @ dojo::Error::ResponseLost { .. })) => {
                Err(self.0.attribute(error).await)
            }
            result => result,
        }
    }

    async fn release(
        &self,
        orphan: &OrphanedIntent,
        error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let pool = &self.0.context.pool;
        let rejected = matches!(error, Some(protocol::Error::Rejected(_)));
        if rejected && is_given_up(orphan.age) && orphan.surplus_of.is_none() {
            info!(
                payment_intent_id = orphan.id,
                "giving up on an orphaned intent that Dojo does not show to this account"
            );
            return store::orphaned_intents::resolve(pool, &orphan.id).await;
        }
        store::orphaned_intents::release(pool, orphan, wait).await
    }
}
