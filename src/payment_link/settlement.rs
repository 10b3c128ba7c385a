//! How long to wait before what Dojo shows, or does not show, can be trusted.

use std::time::Duration;

use super::Progress;

/// The settlement window (`RECOVERY_SETTLE`): how long after a call to Dojo left it may still take effect, and how long
/// copies of Dojo's data, such as search, may lag behind.
///
/// Dojo documents neither. Within the window, nothing proves that a call did nothing. After it, what Dojo shows is taken
/// as final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettlementWindow(Duration);

impl SettlementWindow {
    /// How many windows to go on looking for something that should have appeared within one.
    const LATE: u32 = 10;

    #[must_use]
    pub const fn new(length: Duration) -> Self {
        Self(length)
    }

    #[must_use]
    pub const fn length(self) -> Duration {
        self.0
    }

    /// Whether the window has passed after `elapsed`.
    #[must_use]
    pub fn is_over(self, elapsed: Duration) -> bool {
        elapsed >= self.0
    }

    /// When a client should ask again for the outcome of a lost call.
    ///
    /// The service looks often at first, and most outcomes are found soon. So the waits grow with the time that has passed,
    /// which takes a client about a dozen requests per window. After the window, the next look decides.
    #[must_use]
    pub fn retry_after(self, progress: Progress) -> Duration {
        let until_over = self.0.saturating_sub(progress.since_sent);
        (progress.since_sent / 2)
            .min(until_over)
            .max(progress.until_next.min(self.0))
            .max(Duration::from_secs(1))
    }

    /// How long to wait before checking again for something that has not settled yet.
    #[must_use]
    pub fn recheck_interval(self) -> Duration {
        (self.0 / 10).clamp(Duration::from_millis(500), Duration::from_secs(15))
    }

    /// How long to wait before checking a doubtful response again, which was first seen `since` ago.
    #[must_use]
    pub fn doubt_recheck(self, since: Duration) -> Duration {
        (since / 2).clamp(self.recheck_interval(), Duration::from_hours(6))
    }

    /// For how long to go on looking for something that should have settled, in case the window was too short.
    #[must_use]
    pub fn late_limit(self) -> Duration {
        self.0 * Self::LATE
    }

    /// When to check again for something that should have settled `since` ago. `None`: no more checks.
    #[must_use]
    pub fn late_check(self, since: Duration) -> Option<Duration> {
        (since < self.late_limit()).then_some(self.late_interval())
    }

    /// How long to wait between late checks.
    #[must_use]
    pub fn late_interval(self) -> Duration {
        self.0 * 2
    }
}

/// The limits of recovering what was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryLimits {
    /// How long a lost call may still take effect.
    pub window: SettlementWindow,
    /// How long after a link or an operation was requested Dojo may still be called for it (`RECOVERY_GIVE_UP`).
    pub give_up: Duration,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: SettlementWindow = SettlementWindow::new(Duration::from_mins(2));

    fn progress(since_sent: u64, until_next: u64) -> Progress {
        Progress {
            since_sent: Duration::from_secs(since_sent),
            until_next: Duration::from_secs(until_next),
            is_lost: true,
        }
    }

    #[test]
    fn an_obedient_client_asks_about_a_dozen_times_per_window() {
        let (mut passed, mut requests) = (0, 0);
        while passed < 120 {
            passed += WINDOW.retry_after(progress(passed, 1)).as_secs();
            requests += 1;
        }
        assert!((8..=16).contains(&requests), "{requests}");
        assert!(
            passed < 150,
            "it learns the outcome soon after the window: {passed}"
        );
    }

    proptest! {
        #[test]
        fn a_client_never_waits_longer_than_the_window(since in 0..100_000_u64, next in 0..100_000_u64) {
            let wait = WINDOW.retry_after(progress(since, next));
            prop_assert!(wait >= Duration::from_secs(1) && wait <= WINDOW.length());
        }

        #[test]
        fn a_doubtful_response_is_checked_less_and_less_often(since in 0..1_000_000_u64) {
            let (now, later) = (Duration::from_secs(since), Duration::from_secs(since + 60));
            prop_assert!(WINDOW.doubt_recheck(now) <= WINDOW.doubt_recheck(later));
            prop_assert!(WINDOW.doubt_recheck(now) >= WINDOW.recheck_interval());
        }
    }
}
