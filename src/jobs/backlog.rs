use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{progress::Progress, shared::Jobs};
use crate::{
    payment_link::Status,
    protocol::Context,
    store::{self, daily_reconciliation::Summary},
};

/// The name in logs and metrics.
pub(super) const NAME: &str = "backlog";

/// How often to count recent links. This reads up to 100000 rows, so it is done less often than the rest.
const RECENT_LINKS_INTERVAL: Duration = Duration::from_mins(1);

/// Reports how much work is waiting, and the statuses of recent links, as metrics.
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
        let Jobs {
            context,
            business_days,
            stop,
            ..
        } = &self.jobs;
        let Context { pool, account, .. } = context;
        let mut counted_at = None::<Instant>;
        while !stop.is_cancelled() {
            let is_due = counted_at.is_none_or(|at| at.elapsed() >= RECENT_LINKS_INTERVAL);
            let found = async {
                let links = store::reconciliation::backlog(pool, &account.name).await?;
                let operations = store::operation_recovery::backlog(pool, &account.name).await?;
                let messages = store::messages::backlog(pool, &account.name).await?;
                let books = if business_days.is_some() {
                    store::daily_reconciliation::summary(pool, &account.name).await?
                } else {
                    Summary::default()
                };
                let recent = if is_due {
                    Some(store::links::recent(pool, &account.name).await?)
                } else {
                    None
                };
                Ok((links, operations, messages, books, recent))
            };
            let found = self.progress.queried(found.await);
            if let Ok((links, operations, messages, books, recent)) = found {
                let account = || account.name.clone();
                for (kind, differences) in books.differences {
                    metrics::gauge!(
                        "daily_reconciliation_differences", "account" => account(), "kind" => kind.as_str()
                    )
                    .set(as_gauge(differences));
                }
                metrics::gauge!("daily_reconciliation_lag_seconds", "account" => account())
                    .set(books.lag);
                for (state, count) in [("unsettled", links.unsettled), ("due", links.due)] {
                    metrics::gauge!("backlog_links", "account" => account(), "state" => state)
                        .set(as_gauge(count));
                }
                metrics::gauge!("backlog_lag_seconds", "account" => account()).set(links.lag);
                metrics::gauge!("backlog_operations", "account" => account())
                    .set(as_gauge(operations.operations));
                metrics::gauge!("backlog_operations_lag_seconds", "account" => account())
                    .set(operations.lag);
                metrics::gauge!("backlog_messages", "account" => account())
                    .set(as_gauge(messages.messages));
                metrics::gauge!("backlog_messages_lag_seconds", "account" => account())
                    .set(messages.lag);
                if let Some(recent) = recent {
                    counted_at = Some(Instant::now());
                    for status in Status::ALL {
                        let found = recent.iter().find(|(found, _)| *found == status);
                        metrics::gauge!(
                            "recent_links", "account" => account(), "status" => status.as_str()
                        )
                        .set(as_gauge(found.map_or(0, |(_, links)| *links)));
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge; no backlog has 2^52 links"
)]
pub(super) fn as_gauge(count: i64) -> f64 {
    count as f64
}
