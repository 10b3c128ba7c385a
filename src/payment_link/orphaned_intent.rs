//! The rules for intents that no link claims, and for surplus intents.

use std::time::Duration;

use super::Status;

/// How long to keep tracing an intent that Dojo doesn't show. By then, one of ours could be read with the account's
/// Dojo API key.
const GIVE_UP: Duration = Duration::from_hours(24);

/// When to read an orphaned intent again that Dojo doesn't know, although it sent a webhook about it. `None` if never again.
///
/// A copy of Dojo's data that lags is the likely reason, so it is read soon at first. But the intents of other programs that
/// use the same account may never be shown. There may be many of them, and they must not use up the background jobs' calls.
#[must_use]
pub fn recheck_interval(age: Duration) -> Option<Duration> {
    (!is_given_up(age)).then(|| surplus_recheck_interval(age))
}

/// The same for a surplus intent, on which the service never gives up: somebody might pay it.
#[must_use]
pub fn surplus_recheck_interval(age: Duration) -> Duration {
    (age / 4).clamp(Duration::from_secs(30), Duration::from_mins(15))
}

/// Whether an orphaned intent of this age that Dojo doesn't show is left alone for good.
#[must_use]
pub fn is_given_up(age: Duration) -> bool {
    age >= GIVE_UP
}

/// What to do about a surplus intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SurplusStep {
    /// Cancel it, so that nobody can pay it.
    Cancel,
    /// Nobody paid it, or it was fully refunded.
    Done,
    /// Somebody paid it: a person must refund it.
    ReportPaid,
    /// This version doesn't know its status. Read it again later.
    Wait,
}

/// Decides about a surplus intent by its status and amounts as Dojo reports them. `captured` and `refunded` are in minor
/// units, or `None` if not reported.
///
/// Dojo may call a payment `Refunded` after a partial refund, so the amounts decide whether there is money left.
#[must_use]
pub fn surplus_step(
    status: Option<Status>,
    captured: Option<i64>,
    refunded: Option<i64>,
) -> SurplusStep {
    match status {
        None => SurplusStep::Wait,
        Some(Status::Created) => SurplusStep::Cancel,
        Some(Status::Canceled | Status::Reversed) => SurplusStep::Done,
        Some(Status::Refunded)
            if captured
                .zip(refunded)
                .is_some_and(|(captured, refunded)| refunded >= captured) =>
        {
            SurplusStep::Done
        }
        Some(_) => SurplusStep::ReportPaid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_intents_are_read_less_often_with_age_and_given_up() {
        let minutes = |n| recheck_interval(Duration::from_mins(n));
        assert_eq!(minutes(0), Some(Duration::from_secs(30)));
        assert_eq!(minutes(20), Some(Duration::from_mins(5)));
        assert_eq!(minutes(60 * 23), Some(Duration::from_mins(15)));
        assert_eq!(minutes(60 * 24), None);
        // A day of one such intent takes about as many calls as half an hour of it would at first.
        let (mut age, mut reads) = (Duration::ZERO, 0);
        while let Some(wait) = recheck_interval(age) {
            age += wait;
            reads += 1;
        }
        assert!(reads < 120, "{reads} reads");
    }

    #[test]
    fn a_surplus_intent_with_money_left_is_reported() {
        use Status::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        for (status, captured, refunded, step) in [
            (Created, 0, 0, SurplusStep::Cancel),
            (Canceled, 0, 0, SurplusStep::Done),
            (Reversed, 0, 0, SurplusStep::Done),
            (Authorized, 0, 0, SurplusStep::ReportPaid),
            (Captured, 1000, 0, SurplusStep::ReportPaid),
            (Refunded, 1000, 300, SurplusStep::ReportPaid),
            (Refunded, 1000, 1000, SurplusStep::Done),
        ] {
            let decided = surplus_step(Some(status), Some(captured), Some(refunded));
            assert_eq!(decided, step, "{status:?}, {captured}, {refunded}");
        }
        let unclear = surplus_step(Some(Refunded), Some(1000), None);
        assert_eq!(unclear, SurplusStep::ReportPaid);
        assert_eq!(surplus_step(None, None, None), SurplusStep::Wait);
    }
}
