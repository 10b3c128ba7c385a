use std::{sync::Arc, time::Duration};

use super::{progress::Progress, shared::Jobs};
use crate::{protocol::Context, store};

/// The name in logs and metrics.
pub(super) const NAME: &str = "backlog";

/// Reports how much work is waiting, as metrics.
pub(super) struct BacklogMetrics {
    jobs: Jobs,
    pub(super) progress: Arc<Progress>,
}

impl BacklogMetrics {
    pub(super) fn new(jobs: Jobs) -> Self {
        Self {
            progress: jobs.progress(NAME),
            jobs,
        }
    }

    pub(super) async fn run(&self) {
        let Jobs { context, stop, .. } = &self.jobs;
        let Context { pool, account, .. } = context;
        while !stop.is_cancelled() {
            let found = async {
                let links = store::reconciliation::backlog(pool, &account.name).await?;
                let operations = store::operation_recovery::backlog(pool, &account.name).await?;
                Ok((links, operations))
            };
            if let Ok((links, operations)) = self.progress.queried(found.await) {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a gauge; no backlog has 2^52 links"
                )]
                for (state, count) in [("unsettled", links.unsettled), ("due", links.due)] {
                    metrics::gauge!("backlog_links", "account" => account.name.clone(), "state" => state)
                        .set(count as f64);
                }
                metrics::gauge!("backlog_lag_seconds", "account" => account.name.clone())
                    .set(links.lag);
                #[expect(clippy::cast_precision_loss, reason = "as above")]
                metrics::gauge!("backlog_operations", "account" => account.name.clone())
                    .set(operations as f64);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
    }
}
