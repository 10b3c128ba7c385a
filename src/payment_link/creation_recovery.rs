//! The rule for lost creations, which ensures that each link has only one intent.

use std::time::Duration;

use time::OffsetDateTime;

use super::{RecoveryLimits, Status};

/// An intent at Dojo that names the link in its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    /// `None` if this version doesn't know the status.
    pub status: Option<Status>,
    pub created_at: Option<OffsetDateTime>,
}

/// What to do next about a pending link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The intent at this index is the link's. All others must be canceled.
    Adopt(usize),
    /// An intent may still appear.
    Wait,
    /// It is too late for an intent to appear: create it again.
    CreateAgain,
    /// It is too late for an intent to appear, and also too late to create one.
    GiveUp,
}

/// Decides what to do about a link, given the intents that a search for it found.
///
/// `since_sent` is the time since the last moment at which a request to create the intent may have been sent (`None` if none
/// was sent), and `age` the time since the link was created. Of several intents, the one that was paid is the link's, or else
/// the oldest.
#[must_use]
pub fn next_step(
    found: &[Found],
    since_sent: Option<Duration>,
    age: Duration,
    expired: bool,
    limits: RecoveryLimits,
) -> Step {
    let best = found
        .iter()
        .enumerate()
        .min_by_key(|(_, intent)| (rank(intent.status), intent.created_at, &intent.id));
    if let Some((index, _)) = best {
        return Step::Adopt(index);
    }
    if since_sent.is_some_and(|since| !limits.window.is_over(since)) {
        Step::Wait
    } else if expired || age >= limits.give_up {
        Step::GiveUp
    } else {
        Step::CreateAgain
    }
}

/// Lower is better. A canceled intent is the link's only if there is no other.
fn rank(status: Option<Status>) -> u8 {
    match status {
        Some(Status::Authorized | Status::Captured | Status::Refunded | Status::Reversed) => 0,
        Some(Status::Canceled) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::{super::SettlementWindow, *};

    const LIMITS: RecoveryLimits = RecoveryLimits {
        window: SettlementWindow::new(Duration::from_mins(2)),
        give_up: Duration::from_hours(24),
    };

    fn found(id: &str, status: Status) -> Found {
        Found {
            id: id.to_owned(),
            status: Some(status),
            created_at: Some(datetime!(2026-01-01 12:00 UTC)),
        }
    }

    fn after(since_sent: u64, age: u64) -> Step {
        let since_sent = Some(Duration::from_secs(since_sent));
        next_step(&[], since_sent, Duration::from_secs(age), false, LIMITS)
    }

    #[test]
    fn an_intent_that_may_still_appear_is_waited_for() {
        assert_eq!(after(0, 0), Step::Wait);
        assert_eq!(
            after(119, 86_400 * 2),
            Step::Wait,
            "however old the link is"
        );
        assert_eq!(after(120, 120), Step::CreateAgain);
        assert_eq!(after(120, 86_400), Step::GiveUp);
        let never_sent = next_step(&[], None, Duration::ZERO, false, LIMITS);
        assert_eq!(never_sent, Step::CreateAgain);
    }

    #[test]
    fn an_expired_link_is_not_created_again() {
        let since = Some(Duration::from_mins(3));
        assert_eq!(
            next_step(&[], since, Duration::from_mins(3), true, LIMITS),
            Step::GiveUp
        );
    }

    #[test]
    fn the_paid_one_of_several_intents_is_adopted() {
        let all = [
            found("pi_a", Status::Canceled),
            found("pi_b", Status::Created),
            found("pi_c", Status::Captured),
        ];
        assert_eq!(
            next_step(&all, None, Duration::ZERO, false, LIMITS),
            Step::Adopt(2)
        );
        assert_eq!(
            next_step(&all[..2], None, Duration::ZERO, false, LIMITS),
            Step::Adopt(1)
        );
        assert_eq!(
            next_step(&all[..1], None, Duration::ZERO, false, LIMITS),
            Step::Adopt(0)
        );
    }

    proptest! {
        /// Two replicas that find the same intents in a different order must agree.
        #[test]
        fn the_choice_does_not_depend_on_the_order(
            statuses in prop::collection::vec(prop::sample::select(Status::ALL[2..].to_vec()), 1..5),
        ) {
            let all: Vec<_> = statuses.iter().enumerate()
                .map(|(n, status)| found(&format!("pi_{n}"), *status)).collect();
            let reversed: Vec<_> = all.iter().rev().cloned().collect();
            let choice = |all: &[Found]| match next_step(all, None, Duration::ZERO, false, LIMITS) {
                Step::Adopt(index) => all[index].id.clone(),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(choice(&all), choice(&reversed));
        }
    }
}
