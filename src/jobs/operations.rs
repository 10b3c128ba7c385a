use std::{fmt::Display, time::Duration};

use super::{Jobs, job::Job};
use crate::{
    protocol,
    store::{self, operations::Unsettled},
};

/// Finds out what became of operations whose answer was lost.
pub(super) struct Operations(pub(super) Jobs);

impl Job for Operations {
    const NAME: &'static str = "operations";

    type Item = Unsettled;

    fn id(unsettled: &Unsettled) -> impl Display + Send {
        unsettled.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Unsettled>, store::Error> {
        let Jobs {
            pool,
            account,
            settings,
            ..
        } = &self.0;
        let lease = account.client.operation_lease();
        let settle = settings.recovery_settle;
        store::operations::claim(pool, &account.name, lease, limit, settle).await
    }

    async fn work(&self, unsettled: &Unsettled) -> Result<(), protocol::Error> {
        let Jobs { pool, account, .. } = &self.0;
        let lease = account.client.operation_lease();
        let patience = self.0.patience();
        let work = protocol::operations::resolve(pool, account, unsettled, patience, lease);
        self.0.held(lease, work).await
    }

    async fn release(
        &self,
        unsettled: &Unsettled,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let (id, lease) = (unsettled.id, unsettled.lease);
        store::operations::give_back(&self.0.pool, id, lease, Some(wait)).await
    }
}
