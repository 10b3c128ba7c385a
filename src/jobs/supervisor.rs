use std::{
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// When a loop last showed that it is alive. It says nothing about whether its work succeeds.
pub struct Heartbeat(Mutex<Instant>);

impl Default for Heartbeat {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Heartbeat {
    /// Shows that the loop is alive.
    pub fn beat(&self) {
        *self.last() = Instant::now();
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves once there has been no heartbeat for this long.
    async fn stopped(&self, limit: Duration) {
        loop {
            let last = *self.last();
            match limit.checked_sub(last.elapsed()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

/// Runs a loop until `stop` is canceled. Restarts it after `pause` if it panics, ends or hangs.
///
/// `limit` is longer than a healthy loop goes without a heartbeat. A loop that hangs is dropped wherever it waits. To its
/// work that is what a crash is: the leases expire, and the work is claimed again.
pub async fn supervise<F: Future<Output = ()>>(
    job: &'static str,
    heartbeat: &Heartbeat,
    limit: Duration,
    pause: Duration,
    stop: &CancellationToken,
    run: impl Fn() -> F,
) {
    loop {
        heartbeat.beat();
        let cause = tokio::select! {
            result = AssertUnwindSafe(run()).catch_unwind() => match result {
                Ok(()) if stop.is_cancelled() => return,
                Ok(()) => "ended",
                // The panic hook has logged where and why.
                Err(_) => "panicked",
            },
            () = heartbeat.stopped(limit) => "hung",
        };
        error!(job, cause, "a background job stopped; restarting it");
        metrics::counter!("job_restarts_total", "job_name" => job, "cause" => cause).increment(1);
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
        let heartbeat = Heartbeat::default();
        let run = async || {
            if starts.fetch_add(1, Ordering::Relaxed) == 0 {
                go_wrong().await;
            } else {
                stop.cancel();
            }
        };
        tokio::time::timeout(
            Duration::from_mins(1),
            supervise("test", &heartbeat, limit, Duration::ZERO, &stop, run),
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
