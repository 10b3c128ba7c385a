use std::{fmt::Display, time::Duration};

use tracing::info;

use super::{Jobs, job::Job};
use crate::{
    protocol,
    store::{self, intents::Stray},
};

/// Traces orphaned intents, which no link claimed, and cancels those that are one too many.
pub(super) struct Strays(pub(super) Jobs);

impl Job for Strays {
    const NAME: &'static str = "strays";

    type Item = Stray;

    fn id(stray: &Stray) -> impl Display + Send {
        stray.id.clone()
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Stray>, store::Error> {
        let Jobs {
            pool,
            account,
            lease,
            ..
        } = &self.0;
        store::intents::claim(pool, &account.name, *lease, limit).await
    }

    async fn work(&self, stray: &Stray) -> Result<(), protocol::Error> {
        let Jobs {
            pool,
            account,
            lease,
            ..
        } = &self.0;
        let work = protocol::strays::look(pool, account, stray);
        self.0.held(*lease, work).await
    }

    async fn release(
        &self,
        stray: &Stray,
        error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let pool = &self.0.pool;
        let rejected = matches!(error, Some(protocol::Error::Rejected(_)));
        if rejected && !stray.recent && stray.surplus_of.is_none() {
            // One of ours could be read with our own key.
            info!(
                payment_intent_id = stray.id,
                "an orphaned intent that Dojo does not show is given up"
            );
            return store::intents::settle(pool, &stray.id).await;
        }
        store::intents::ask_later(pool, &stray.id, wait).await
    }
}
