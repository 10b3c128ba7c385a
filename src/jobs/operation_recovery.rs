use std::{fmt::Display, time::Duration};

use super::{job::Job, shared::Jobs};
use crate::{
    protocol,
    store::{self, operation_recovery::ClaimedOperation},
};

/// Resolves lost operations: finds out whether Dojo did them, and does them if it didn't.
pub(super) struct OperationRecovery(pub(super) Jobs);

impl Job for OperationRecovery {
    const NAME: &'static str = "operation_recovery";

    type Item = ClaimedOperation;

    fn id(operation: &ClaimedOperation) -> impl Display + Send {
        operation.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<ClaimedOperation>, store::Error> {
        let context = &self.0.context;
        let account = &context.account;
        store::operation_recovery::claim(
            &context.pool,
            &account.name,
            account.client.operation_lease(),
            limit,
            context.limits.window,
        )
        .await
    }

    async fn work(&self, operation: &ClaimedOperation) -> Result<(), protocol::Error> {
        let work = protocol::operation_recovery::recover(&self.0.context, operation);
        self.0.within_lease(operation.lease.left(), work).await
    }

    async fn release(
        &self,
        operation: &ClaimedOperation,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let (id, lease) = (operation.id, operation.lease);
        store::operation_recovery::release(&self.0.context.pool, id, lease, Some(wait)).await
    }
}
