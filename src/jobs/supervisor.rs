use std::{
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// When a job's loop last made progress: it began a round, finished a piece of work, or was idle and alive.
pub(super) struct Progress {
    last: Mutex<Instant>,
    gauge: metrics::Gauge,
}

impl Progress {
    pub(super) fn new(account: &str, job: &'static str) -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            gauge: metrics::gauge!(
                "job_last_progress_timestamp_seconds",
                "account" => account.to_owned(), "job" => job
            ),
        }
    }

    pub(super) fn mark(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        // A clock before 1970 is wrong anyway, and 0 shows that.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.gauge.set(now.unwrap_or_default().as_secs_f64());
    }

    /// Resolves once there has been no progress for this long.
    async fn stalled(&self, limit: Duration) {
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match limit.checked_sub(last.elapsed()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

/// Keeps a job's loop running until it is told to stop: starts it again, after `pause`, if it panics, ends or hangs.
///
/// `limit` is longer than a healthy loop can go without progress. A loop that hangs is dropped wherever it waits, which
/// does to its work what a crash would: the leases run out, and somebody takes it up again.
pub(super) async fn supervise<F: Future<Output = ()>>(
    job: &'static str,
    progress: &Progress,
    limit: Duration,
    pause: Duration,
    stop: &CancellationToken,
    run: impl Fn() -> F,
) {
    loop {
        progress.mark();
        let cause = tokio::select! {
            result = AssertUnwindSafe(run()).catch_unwind() => match result {
                Ok(()) if stop.is_cancelled() => return,
                Ok(()) => "ended",
                // The panic hook has logged where and why.
                Err(_) => "panicked",
            },
            () = progress.stalled(limit) => "hung",
        };
        error!(job, cause, "a background job stopped; it is started again");
        metrics::counter!("job_restarts_total", "job" => job, "cause" => cause).increment(1);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Runs a job that goes wrong once in this way; the number of times that it was started.
    async fn started(limit: Duration, go_wrong: impl AsyncFn()) -> u32 {
        let (starts, stop) = (AtomicU32::new(0), CancellationToken::new());
        let progress = Progress::new("default", "test");
        let run = async || {
            if starts.fetch_add(1, Ordering::Relaxed) == 0 {
                go_wrong().await;
            } else {
                stop.cancel();
            }
        };
        tokio::time::timeout(
            Duration::from_mins(1),
            supervise("test", &progress, limit, Duration::ZERO, &stop, run),
        )
        .await
        .expect("it is started again and then told to stop");
        starts.into_inner()
    }

    #[tokio::test]
    async fn a_job_that_panics_or_ends_is_started_again() {
        let long = Duration::from_hours(1);
        assert_eq!(started(long, async || panic!("a bug")).await, 2);
        assert_eq!(started(long, async || {}).await, 2);
    }

    #[tokio::test]
    async fn a_job_that_hangs_is_started_again() {
        let limit = Duration::from_millis(20);
        assert_eq!(started(limit, std::future::pending).await, 2);
    }
}
