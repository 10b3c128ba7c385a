use std::{fmt::Display, time::Duration};

use super::{Jobs, job::Job};
use crate::{
    protocol::{self, Context},
    store::{self, operations::Unsettled},
};

/// Finds out what became of operations whose answer was lost.
pub(super) struct OperationRecovery(pub(super) Jobs);

impl Job for OperationRecovery {
    const NAME: &'static str = "operation_recovery";

    type Item = Unsettled;

    fn id(unsettled: &Unsettled) -> impl Display + Send {
        unsettled.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<Unsettled>, store::Error> {
        let Context {
            pool,
            account,
            limits,
            ..
        } = &self.0.context;
        let lease = account.client.operation_lease();
        store::operations::claim(pool, &account.name, lease, limit, limits.window).await
    }

    async fn work(&self, unsettled: &Unsettled) -> Result<(), protocol::Error> {
        let work = protocol::operations::resolve(&self.0.context, unsettled);
        self.0.held(unsettled.lease.left(), work).await
    }

    async fn release(
        &self,
        unsettled: &Unsettled,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let (id, lease) = (unsettled.id, unsettled.lease);
        store::operations::give_back(&self.0.context.pool, id, lease, Some(wait)).await
    }
}
