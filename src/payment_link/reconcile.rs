//! How what Dojo answers is weighed against what is held: the rules that make links converge on Dojo's truth.

use std::time::Duration;

use time::OffsetDateTime;

use super::Status;

/// What is held about a link that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its status.
    pub status: Status,
    /// Dojo's `updatedAt` of the newest state that it answered.
    pub dojo_updated_at: Option<OffsetDateTime>,
    /// How long Dojo's answers have been behind what a webhook told.
    pub disputed_for: Option<Duration>,
}

/// How to take an answer of Dojo's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// It is the truth now, with this status.
    Accepted(Status),
    /// It is older than what Dojo answered before. Nothing changes.
    Older,
    /// It is behind what a webhook told, as an answer from a lagging copy of Dojo's data would be. Nothing
    /// changes yet; Dojo is asked again, and believed if it stays with it.
    Disputed,
}

/// Weighs Dojo's answer to our own question.
///
/// The answer beats any webhook, for it was asked for with our own key, with two exceptions. One that is
/// older by Dojo's own `updatedAt` is none. And one that is merely *behind* (`Created` where a signed webhook
/// said `Captured`) may come from a lagging copy, so it has to stand for as long as `patience`. Anything
/// else that differs (`Canceled` where a webhook said `Captured`) cannot be explained by lag and counts at once.
///
/// A status word that we do not know is no status: the held one stays.
#[must_use]
pub fn reconcile(
    held: Held,
    answered: Option<Status>,
    answered_at: Option<OffsetDateTime>,
    patience: Duration,
) -> Reading {
    if let (Some(answered_at), Some(held_at)) = (answered_at, held.dojo_updated_at)
        && answered_at < held_at
    {
        return Reading::Older;
    }
    let answered = answered.unwrap_or(held.status);
    let behind = answered.leads_to(held.status);
    if behind
        && held
            .disputed_for
            .is_none_or(|disputed_for| disputed_for < patience)
    {
        Reading::Disputed
    } else {
        Reading::Accepted(answered)
    }
}

/// When to look at a link again if no webhook tells of it before: soon while it is new, for then customers pay,
/// and ever later as it ages. `None`: never, nothing can change any more.
///
/// `age` counts from the link's creation while it is unpaid, and from its last change after that. An unpaid link
/// is looked at just after it expires, whatever its age.
#[must_use]
pub fn next_look(
    status: Status,
    age: Duration,
    until_expiry: Option<Duration>,
) -> Option<Duration> {
    const SOONEST: Duration = Duration::from_secs(30);
    const AFTER_EXPIRY: Duration = Duration::from_secs(30);
    match status {
        Status::Pending => Some(SOONEST),
        Status::Created | Status::Authorized => {
            let wait = (age / 4).clamp(SOONEST, Duration::from_hours(6));
            let expiry = until_expiry.map(|left| left + AFTER_EXPIRY);
            Some(expiry.map_or(wait, |expiry| wait.min(expiry)))
        }
        // Only a refund or a reversal can follow, and its webhook may be lost like any other.
        Status::Captured => (age < Duration::from_hours(24 * 180))
            .then(|| (age / 2).clamp(Duration::from_mins(10), Duration::from_hours(24 * 7))),
        Status::Failed | Status::Refunded | Status::Reversed | Status::Canceled => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(2);

    fn held(status: Status) -> Held {
        Held {
            status,
            dojo_updated_at: Some(datetime!(2026-01-01 12:00 UTC)),
            disputed_for: None,
        }
    }

    fn answer(held: Held, status: Status) -> Reading {
        reconcile(held, Some(status), held.dojo_updated_at, PATIENCE)
    }

    #[test]
    fn an_older_answer_never_overwrites_a_newer_one() {
        let before = datetime!(2026-01-01 11:59:59.9999999 UTC);
        for status in Status::ALL {
            let reading = reconcile(held(Status::Created), Some(status), Some(before), PATIENCE);
            assert_eq!(reading, Reading::Older);
        }
    }

    #[test]
    fn an_answer_that_is_behind_has_to_stand_for_a_while() {
        let mut held = held(Status::Captured);
        assert_eq!(answer(held, Status::Created), Reading::Disputed);
        held.disputed_for = Some(Duration::from_secs(119));
        assert_eq!(answer(held, Status::Created), Reading::Disputed);
        held.disputed_for = Some(PATIENCE);
        assert_eq!(
            answer(held, Status::Created),
            Reading::Accepted(Status::Created)
        );
    }

    #[test]
    fn what_lag_cannot_explain_counts_at_once() {
        for (webhook, dojo) in [
            (Status::Canceled, Status::Captured),
            (Status::Captured, Status::Canceled),
            (Status::Refunded, Status::Reversed),
        ] {
            assert_eq!(answer(held(webhook), dojo), Reading::Accepted(dojo));
        }
    }

    #[test]
    fn an_unknown_word_leaves_the_status() {
        let reading = reconcile(held(Status::Captured), None, None, PATIENCE);
        assert_eq!(reading, Reading::Accepted(Status::Captured));
    }

    proptest! {
        #[test]
        fn whatever_webhooks_said_dojos_standing_answer_wins(
            webhook in prop::sample::select(Status::ALL.to_vec()),
            dojo in prop::sample::select(Status::ALL.to_vec()),
        ) {
            let mut held = held(webhook);
            held.disputed_for = Some(PATIENCE);
            prop_assert_eq!(answer(held, dojo), Reading::Accepted(dojo));
        }

        #[test]
        fn a_link_is_looked_at_just_after_it_expires_and_never_more_often_than_twice_a_minute(
            age in 0..400_u64 * 86400, left in 0..400_u64 * 86400,
        ) {
            let wait = next_look(Status::Created, Duration::from_secs(age), Some(Duration::from_secs(left)));
            let wait = wait.unwrap();
            prop_assert!(wait >= Duration::from_secs(30));
            prop_assert!(wait <= Duration::from_secs(left + 30).max(Duration::from_secs(30)));
        }
    }

    #[test]
    fn looks_come_less_often_with_age_and_end() {
        let created = |age| next_look(Status::Created, age, None).unwrap();
        assert_eq!(created(Duration::ZERO), Duration::from_secs(30));
        assert_eq!(created(Duration::from_hours(1)), Duration::from_mins(15));
        assert_eq!(
            created(Duration::from_hours(24 * 29)),
            Duration::from_hours(6)
        );
        assert_eq!(
            next_look(Status::Captured, Duration::from_hours(24 * 181), None),
            None
        );
        assert_eq!(next_look(Status::Canceled, Duration::ZERO, None), None);
    }
}
