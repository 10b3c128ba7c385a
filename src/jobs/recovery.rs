use futures_util::{StreamExt, stream};

use super::Jobs;
use crate::{protocol, store};

/// Sees lost creations through.
pub(super) struct Recovery(pub(super) Jobs);

impl Recovery {
    pub(super) async fn run(self) {
        let Jobs {
            pool,
            account,
            settings,
            lease,
            ..
        } = &self.0;
        self.0
            .rounds(async |limit| {
                // As few as are worked on at once: a lease must not run out in a queue.
                let limit = limit.min(settings.concurrency());
                let due =
                    store::creation::claim_unsettled(pool, &account.name, *lease, limit).await?;
                let found = due.len();
                stream::iter(due)
                    .for_each_concurrent(None, async |unsettled| {
                        self.0.pace.turn().await;
                        let work = protocol::recovery::recover(
                            pool,
                            account,
                            &unsettled,
                            self.0.patience(),
                            *lease,
                        );
                        let result = self.0.held(*lease, work).await;
                        if let Some(wait) = self.0.took("recovery", result) {
                            // If this fails as well, the lease runs out and somebody takes the link up.
                            let _ = store::creation::give_back(
                                pool,
                                unsettled.id,
                                unsettled.lease,
                                Some(wait),
                            )
                            .await;
                        }
                    })
                    .await;
                Ok(found)
            })
            .await;
    }
}
