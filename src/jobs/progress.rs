use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::{info, warn};

use super::supervisor::Heartbeat;
use crate::{store, telemetry::causes};

/// How a job's loop is doing.
///
/// Two things are distinguished: that the loop is alive, which its supervisor needs, and that it makes progress, which the
/// metric `job_last_progress_timestamp_seconds` shows. A job that can't claim its work is alive and makes none.
pub(super) struct Progress {
    pub(super) heartbeat: Heartbeat,
    job: &'static str,
    gauge: metrics::Gauge,
    /// Whether its last query for work failed.
    failing: AtomicBool,
}

impl Progress {
    pub(super) fn new(account: &str, job: &'static str) -> Self {
        let progress = Self {
            heartbeat: Heartbeat::default(),
            job,
            gauge: metrics::gauge!(
                "job_last_progress_timestamp_seconds",
                "account" => account.to_owned(), "job_name" => job
            ),
            failing: AtomicBool::new(false),
        };
        progress.mark();
        progress
    }

    /// Shows that the loop is alive. That is progress as well unless its last query for work failed.
    pub(super) fn mark(&self) {
        self.heartbeat.beat();
        if !self.failing.load(Ordering::Relaxed) {
            // A clock before 1970 is wrong anyway, and 0 shows that.
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            self.gauge.set(now.unwrap_or_default().as_secs_f64());
        }
    }

    /// Records how a query for work went. Each failure is counted. Only the first of a run of failures is logged, and the
    /// success that ends it.
    pub(super) fn queried<T>(&self, result: Result<T, store::Error>) -> Result<T, store::Error> {
        let job = self.job;
        let failed = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Ok(_) if failed => info!(job, "the job can query the database for work again"),
            Ok(_) => {}
            Err(error) => {
                count(job, "database");
                if !failed {
                    warn!(
                        job,
                        error = %causes(error),
                        "the job cannot query the database for work; it keeps trying"
                    );
                }
            }
        }
        self.mark();
        result
    }
}

/// Counts the result of a piece of work.
pub(super) fn count(job: &'static str, outcome: &'static str) {
    metrics::counter!("jobs_total", "job_name" => job, "outcome" => outcome).increment(1);
}
