use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{info, warn};

use crate::dojo;

/// Keeps the background gentle on Dojo: so many calls a second, and none at all for a while when Dojo is in
/// trouble.
pub(super) struct Throttle {
    turns: tokio::sync::Mutex<Interval>,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Calls in a row that went wrong.
    failures: u32,
    /// The pieces of work that the first of them were for.
    suspects: HashSet<String>,
    paused_until: Option<Instant>,
}

/// How many failures in a row are weather. More of them pause the background.
const TOLERATED: u32 = 2;
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How long a pause is at most that Dojo asked for.
const LONGEST_WISH: Duration = Duration::from_mins(5);

impl Throttle {
    /// At most `rate` calls a second.
    pub(super) fn new(rate: u32) -> Self {
        let mut turns = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            turns: tokio::sync::Mutex::new(turns),
            trouble: Mutex::default(),
        }
    }

    /// Waits until it is this call's turn.
    pub(super) async fn turn(&self) {
        self.turns.lock().await.tick().await;
    }

    /// How much longer to leave Dojo alone, if at all.
    pub(super) fn pause(&self) -> Option<Duration> {
        let until = self.trouble().paused_until?;
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// How much to take on at once: all that one may, or a single piece to see whether Dojo is back.
    pub(super) fn batch(&self, most: i64) -> i64 {
        if self.trouble().failures > TOLERATED {
            1
        } else {
            most
        }
    }

    pub(super) fn went_well(&self) {
        let mut trouble = self.trouble();
        if trouble.failures > TOLERATED {
            info!("Dojo answers again");
        }
        *trouble = Trouble::default();
    }

    /// Notes a failure that is not about the piece of work `item` alone; tells how long to leave Dojo alone.
    pub(super) fn went_wrong(&self, error: &dojo::Error, item: &str) -> Duration {
        let wished = error.retry_after();
        let now = Instant::now();
        let mut trouble = self.trouble();
        let left = trouble
            .paused_until
            .and_then(|until| until.checked_duration_since(now))
            .filter(|left| !left.is_zero());
        if let Some(left) = left.filter(|left| wished.is_none_or(|wished| wished <= *left)) {
            // Calls that were under way when the pause began say no more than the first: one bad moment with many
            // calls in it is one moment.
            return left;
        }
        // Dojo may have trouble with a single intent for ever. Only several pieces of work show that it is in trouble.
        let ambiguous = matches!(error, dojo::Error::ResponseLost { .. });
        if trouble.failures <= TOLERATED && !trouble.suspects.insert(item.to_owned()) && ambiguous {
            return Duration::ZERO;
        }
        trouble.failures = trouble.failures.saturating_add(1);
        let beyond = trouble.failures.saturating_sub(TOLERATED);
        if beyond == 0 && wished.is_none() {
            return Duration::ZERO;
        }
        let pause = Duration::from_millis(500) * 2_u32.saturating_pow(beyond.min(10));
        // Replicas that failed together need not come back together; none comes before Dojo wished.
        let pause = pause.min(LONGEST_PAUSE).mul_f64(jitter(0.75));
        let wished = wished.unwrap_or_default().min(LONGEST_WISH);
        let pause = pause.max(wished.mul_f64(jitter(1.0)));
        if trouble.paused_until.is_none_or(|until| until <= now) {
            warn!(
                seconds = pause.as_secs_f64(),
                "Dojo is in trouble; the background leaves it alone for a while"
            );
        }
        trouble.paused_until = Some(now + pause);
        pause
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Trouble> {
        // Nothing that holds it can leave it half changed.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A factor that is at random between this and 1.25.
fn jitter(least: f64) -> f64 {
    rand::rng().random_range(least..1.25)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Failures of this many different pieces of work.
    fn fail(throttle: &Throttle, pieces: u32) -> Duration {
        let pauses = (0..pieces).map(|piece| throttle.went_wrong(&lost(), &piece.to_string()));
        pauses.last().unwrap_or_default()
    }

    #[tokio::test]
    async fn it_pauses_when_calls_keep_failing_longer_and_longer_and_resumes() {
        let throttle = Throttle::new(10);
        fail(&throttle, TOLERATED);
        assert_eq!(throttle.pause(), None);
        assert_eq!(throttle.batch(50), 50);
        let first = throttle.went_wrong(&lost(), "the last straw");
        assert!(throttle.pause().is_some());
        assert_eq!(throttle.batch(50), 1);
        let mut last = first;
        for _ in 0..20 {
            // The pause is over, and Dojo is in trouble still, whatever it is asked.
            throttle.trouble().paused_until = None;
            last = throttle.went_wrong(&lost(), "the last straw");
        }
        assert!(last > first && last <= LONGEST_PAUSE.mul_f64(1.25));
        throttle.went_well();
        assert_eq!(throttle.pause(), None);
        assert_eq!(throttle.batch(50), 50);
    }

    #[tokio::test]
    async fn many_failures_at_once_are_one_bad_moment() {
        let throttle = Throttle::new(10);
        let pause = fail(&throttle, 50);
        assert!(pause < Duration::from_secs(2), "{pause:?}");
    }

    #[tokio::test]
    async fn one_piece_of_work_that_keeps_failing_is_no_trouble_of_the_account() {
        let throttle = Throttle::new(10);
        for _ in 0..50 {
            throttle.went_wrong(&lost(), "the same");
            assert_eq!(throttle.pause(), None);
        }
    }

    #[tokio::test]
    async fn it_waits_as_long_as_dojo_asks_within_reason() {
        let throttle = Throttle::new(10);
        assert!(throttle.went_wrong(&busy(30), "a") >= Duration::from_secs(30));
        assert!(throttle.pause().is_some());
        let longest = throttle.went_wrong(&busy(u64::MAX), "b");
        assert!(longest <= LONGEST_WISH.mul_f64(1.25));
    }
}
