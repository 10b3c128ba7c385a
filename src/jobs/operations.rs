use futures_util::{StreamExt, stream};

use super::Jobs;
use crate::{protocol, store};

/// Finds out what became of operations whose answer was lost.
pub(super) struct Operations(pub(super) Jobs);

impl Operations {
    pub(super) async fn run(self) {
        let Jobs {
            pool,
            account,
            settings,
            ..
        } = &self.0;
        let lease = account.client.operation_lease();
        self.0
            .rounds(async |limit| {
                // As few as are worked on at once: a lease must not run out in a queue.
                let limit = limit.min(settings.concurrency());
                let settle = settings.recovery_settle;
                let due =
                    store::operations::claim(pool, &account.name, lease, limit, settle).await?;
                let found = due.len();
                stream::iter(due)
                    .for_each_concurrent(None, async |unsettled| {
                        self.0.pace.turn().await;
                        let patience = self.0.patience();
                        let work = protocol::operations::resolve(
                            pool, account, &unsettled, patience, lease,
                        );
                        let result = self.0.held(lease, work).await;
                        if let Some(wait) = self.0.took("operations", result) {
                            // If this fails as well, the lease runs out and somebody takes the operation up.
                            let (id, held) = (unsettled.id, unsettled.lease);
                            let _ = store::operations::give_back(pool, id, held, Some(wait)).await;
                        }
                    })
                    .await;
                Ok(found)
            })
            .await;
    }
}
