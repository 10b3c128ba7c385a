use std::{sync::Arc, time::Duration};

use super::{Jobs, supervisor::Progress};
use crate::{protocol::Context, store};

/// Its name in logs and metrics.
pub(super) const NAME: &str = "backlog";

/// Shows how far behind the background is.
pub(super) struct Watch {
    jobs: Jobs,
    pub(super) progress: Arc<Progress>,
}

impl Watch {
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
            self.progress.mark();
            if let Ok(backlog) = store::reconciliation::backlog(pool, &account.name).await {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a gauge; no backlog has 2^52 links"
                )]
                for (state, count) in [("unsettled", backlog.unsettled), ("due", backlog.due)] {
                    metrics::gauge!("backlog_links", "account" => account.name.clone(), "state" => state)
                        .set(count as f64);
                }
                metrics::gauge!("backlog_lag_seconds", "account" => account.name.clone())
                    .set(backlog.lag);
            }
            if let Ok(operations) = store::operation_recovery::backlog(pool, &account.name).await {
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
