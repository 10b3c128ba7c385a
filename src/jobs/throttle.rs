use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{info, warn};

use crate::dojo;

/// Limits the calls that background jobs make to Dojo: a maximum rate, and a pause while Dojo keeps failing.
pub(super) struct Throttle {
    interval: tokio::sync::Mutex<Interval>,
    trouble: Mutex<Trouble>,
    /// The longest pause that Dojo may ask for.
    max_retry_after: Duration,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Calls in a row that failed.
    failures: u32,
    /// The items whose calls failed, until the jobs pause.
    items: HashSet<String>,
    paused_until: Option<Instant>,
}

/// How many failures in a row are tolerated before background jobs pause: single calls fail now and then.
const TOLERATED_FAILURES: u32 = 2;
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

impl Throttle {
    /// At most `rate` calls a second.
    pub(super) fn new(rate: u32, max_retry_after: Duration) -> Self {
        let mut interval = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            interval: tokio::sync::Mutex::new(interval),
            trouble: Mutex::default(),
            max_retry_after,
        }
    }

    /// Waits until another call may be made.
    pub(super) async fn ready(&self) {
        self.interval.lock().await.tick().await;
    }

    /// How much longer the background jobs make no calls, if they are paused.
    pub(super) fn pause(&self) -> Option<Duration> {
        let until = self.trouble().paused_until?;
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// How many items to claim at once: `max`, or a single one to find out whether Dojo works again.
    pub(super) fn batch_size(&self, max: i64) -> i64 {
        if self.trouble().failures > TOLERATED_FAILURES {
            1
        } else {
            max
        }
    }

    /// Records that a call succeeded.
    pub(super) fn succeeded(&self) {
        let mut trouble = self.trouble();
        if trouble.failures > TOLERATED_FAILURES {
            info!("Dojo responds again");
        }
        *trouble = Trouble::default();
    }

    /// Records a failure that may concern more than the item `id`. Returns how long to make no calls.
    pub(super) fn failed(&self, error: &dojo::Error, id: &str) -> Duration {
        let retry_after = error.retry_after();
        let now = Instant::now();
        let mut trouble = self.trouble();
        let left = trouble
            .paused_until
            .and_then(|until| until.checked_duration_since(now))
            .filter(|left| !left.is_zero());
        if let Some(left) = left.filter(|left| retry_after.is_none_or(|wait| wait <= *left)) {
            // Calls that were under way when the pause began count as one failure: they had the same cause.
            return left;
        }
        // Dojo may always fail over a single intent. Only failures of several items show that Dojo itself fails.
        let ambiguous = matches!(error, dojo::Error::ResponseLost { .. });
        if trouble.failures <= TOLERATED_FAILURES
            && !trouble.items.insert(id.to_owned())
            && ambiguous
        {
            return Duration::ZERO;
        }
        trouble.failures = trouble.failures.saturating_add(1);
        let beyond = trouble.failures.saturating_sub(TOLERATED_FAILURES);
        if beyond == 0 && retry_after.is_none() {
            return Duration::ZERO;
        }
        let pause = Duration::from_millis(500) * 2_u32.saturating_pow(beyond.min(10));
        // Replicas that failed together should not come back together, and none before Dojo allows it.
        let pause = pause.min(LONGEST_PAUSE).mul_f64(jitter(0.75));
        let retry_after = retry_after.unwrap_or_default().min(self.max_retry_after);
        let pause = pause.max(retry_after.mul_f64(jitter(1.0)));
        if trouble.paused_until.is_none_or(|until| until <= now) {
            warn!(
                seconds = pause.as_secs_f64(),
                "calls to Dojo keep failing; background jobs are paused"
            );
        }
        trouble.paused_until = Some(now + pause);
        pause
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Trouble> {
        // No code that has the lock can leave it half changed.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A random factor between `least` and 1.25.
fn jitter(least: f64) -> f64 {
    rand::rng().random_range(least..1.25)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);

    fn busy(seconds: u64) -> dojo::Error {
        dojo::Error::Busy {
            retry_after: Some(Duration::from_secs(seconds)),
        }
    }

    fn lost() -> dojo::Error {
        dojo::Error::ResponseLost {
            reason: "status 500".to_owned(),
            source: None,
        }
    }

    /// Failures of this many different items.
    fn fail(throttle: &Throttle, items: u32) -> Duration {
        let pauses = (0..items).map(|item| throttle.failed(&lost(), &item.to_string()));
        pauses.last().unwrap_or_default()
    }

    #[tokio::test]
    async fn it_pauses_longer_and_longer_while_calls_fail_and_then_resumes() {
        let throttle = Throttle::new(10, MAX_RETRY_AFTER);
        fail(&throttle, TOLERATED_FAILURES);
        assert_eq!(throttle.pause(), None);
        assert_eq!(throttle.batch_size(50), 50);
        let first = throttle.failed(&lost(), "one more");
        assert!(throttle.pause().is_some());
        assert_eq!(throttle.batch_size(50), 1);
        let mut last = first;
        for _ in 0..20 {
            // The pause is over, and Dojo still fails.
            throttle.trouble().paused_until = None;
            last = throttle.failed(&lost(), "one more");
        }
        assert!(last > first && last <= LONGEST_PAUSE.mul_f64(1.25));
        throttle.succeeded();
        assert_eq!(throttle.pause(), None);
        assert_eq!(throttle.batch_size(50), 50);
    }

    #[tokio::test]
    async fn many_failures_at_once_count_as_one() {
        let throttle = Throttle::new(10, MAX_RETRY_AFTER);
        let pause = fail(&throttle, 50);
        assert!(pause < Duration::from_secs(2), "{pause:?}");
    }

    #[tokio::test]
    async fn an_item_that_keeps_failing_does_not_pause_the_account() {
        let throttle = Throttle::new(10, MAX_RETRY_AFTER);
        for _ in 0..50 {
            throttle.failed(&lost(), "the same");
            assert_eq!(throttle.pause(), None);
        }
    }

    #[tokio::test]
    async fn it_obeys_retry_after_up_to_a_limit() {
        let throttle = Throttle::new(10, MAX_RETRY_AFTER);
        assert!(throttle.failed(&busy(30), "a") >= Duration::from_secs(30));
        assert!(throttle.pause().is_some());
        let longest = throttle.failed(&busy(u64::MAX), "b");
        assert!(longest <= MAX_RETRY_AFTER.mul_f64(1.25));
    }
}
