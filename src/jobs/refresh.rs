use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::Jobs;
use crate::{payment_link::timeline::Cause, protocol, store, store::looks::Looked};

/// Looks at links that are due: after each webhook, and on a schedule for webhooks that never came.
pub(super) struct Refresh(pub(super) Jobs);

impl Refresh {
    pub(super) async fn run(self) {
        let Jobs {
            pool,
            account,
            lease,
            ..
        } = &self.0;
        self.0
            .rounds(async |limit| {
                let due = store::looks::claim(pool, &account.name, *lease, limit).await?;
                let found = due.len();
                let left = self.sweep(due).await;
                let concurrency = usize::try_from(self.0.settings.concurrency()).unwrap_or(1);
                stream::iter(left)
                    .for_each_concurrent(concurrency, async |looked| self.look(looked).await)
                    .await;
                Ok(found)
            })
            .await;
    }

    /// Settles in few calls what can be, and returns the rest.
    async fn sweep(&self, due: Vec<Looked>) -> Vec<Looked> {
        let Jobs {
            pool,
            account,
            settings,
            ..
        } = &self.0;
        let all = due.clone();
        self.0.pace.turn().await;
        match protocol::refresh::sweep(pool, account, due, settings.recovery_settle).await {
            Ok(left) => left,
            Err(error) => {
                self.0.took("sweep", Err(error));
                all
            }
        }
    }

    async fn look(&self, looked: Looked) {
        let Jobs {
            pool,
            account,
            settings,
            lease,
            ..
        } = &self.0;
        let id = looked.link.id;
        // Dojo may have got into trouble since the link was claimed, or this replica been told to leave.
        let leaving = self.0.stop.is_cancelled().then_some(Duration::ZERO);
        if let Some(wait) = self.0.pace.pause().or(leaving) {
            let _ = store::looks::look_again(pool, id, wait).await;
            return;
        }
        self.0.pace.turn().await;
        let work = protocol::refresh::look(
            pool,
            account,
            &looked,
            settings.recovery_settle,
            &Cause::Refresh,
        );
        let result = self.0.held(*lease, work).await;
        if let Some(wait) = self.0.took("refresh", result) {
            let _ = store::looks::look_again(pool, id, wait).await;
        }
    }
}
