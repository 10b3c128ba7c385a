use futures_util::{StreamExt, stream};

use super::Jobs;
use crate::{protocol, store};

/// Traces intents that no link claimed, and cancels those that are one too many.
pub(super) struct Strays(pub(super) Jobs);

impl Strays {
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
                let limit = limit.min(settings.concurrency());
                let due = store::intents::claim(pool, &account.name, *lease, limit).await?;
                let found = due.len();
                stream::iter(due)
                    .for_each_concurrent(None, async |stray| {
                        self.0.pace.turn().await;
                        let result = self
                            .0
                            .held(*lease, protocol::strays::look(pool, account, &stray))
                            .await;
                        if let Some(wait) = self.0.took("strays", result) {
                            let _ = store::intents::ask_later(pool, &stray.id, wait).await;
                        }
                    })
                    .await;
                Ok(found)
            })
            .await;
    }
}
