use std::{fmt::Display, time::Duration};

use super::{Jobs, job::Job};
use crate::{
    protocol,
    store::{self, operations::Unsettled},
};

/// Resolves lost operations: finds out whether Dojo did them, and does them if it didn't.
pub(super) struct OperationRecovery(pub(super) Jobs);

impl Job for OperationRecovery {
    const NAME: &'static str = "operation_recovery";

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
        let window = settings.window();
        store::operations::claim(pool, &account.name, lease, limit, window).await
    }

    async fn work(&self, unsettled: &Unsettled) -> Result<(), protocol::Error> {
        let Jobs { pool, account, .. } = &self.0;
        let lease = account.client.operation_lease();
        let limits = self.0.limits();
        let work = protocol::operations::resolve(pool, account, unsettled, limits, lease);
        self.0.within_lease(lease, work).await
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
