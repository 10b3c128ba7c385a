//! How long to wait before what Dojo shows, or does not show, can be trusted.

use std::time::Duration;

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

    /// A window of this length.
    #[must_use]
    pub const fn new(length: Duration) -> Self {
        Self(length)
    }

    /// Its length.
    #[must_use]
    pub const fn length(self) -> Duration {
        self.0
    }

    /// Whether something that happened `since` ago has settled by now.
    #[must_use]
    pub fn is_over(self, since: Duration) -> bool {
        since >= self.0
    }

    /// How long to wait before checking again for something that has not settled yet.
    #[must_use]
    pub fn recheck_interval(self) -> Duration {
        (self.0 / 10).clamp(Duration::from_millis(500), Duration::from_secs(15))
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
