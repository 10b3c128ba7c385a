//! How what Dojo answers is weighed against what is held: the rules that make links converge on Dojo's truth.

use std::time::Duration;

use time::OffsetDateTime;

use super::{SettlementWindow, Status};

/// What is held about a link that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its status.
    pub status: Status,
    /// Dojo's `updatedAt` of the newest state that it answered.
    pub dojo_updated_at: Option<OffsetDateTime>,
    /// How long Dojo's answers have disagreed with what is held; `None` if the last one agreed.
    pub disputed_for: Option<Duration>,
}

/// How to take an answer of Dojo's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// It is the truth now, with this status.
    Accepted(Status),
    /// Nothing changes yet. Dojo is asked again, and believed if it stands by its answer.
    Conflicting(Conflict),
}

/// Why an answer of Dojo's is not accepted at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It is older, by Dojo's own `updatedAt`, than one that was accepted before.
    Older,
    /// Its status comes before one that a webhook reported.
    Behind,
}

impl Conflict {
    /// The reason's name in the timeline, in logs and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Behind => "behind",
        }
    }
}

/// Weighs Dojo's answer to our own question.
///
/// The answer beats any webhook, because it was asked for with our own key. Two kinds of answers may come from a copy
/// of Dojo's data that lags, so they have to stand for as long as the settlement window before they are accepted: one that is
/// older by Dojo's own `updatedAt` than an answer that was accepted, and one whose status comes before what a signed
/// webhook reported (`Created` where the webhook said `Captured`). An answer that still stands after that is right, and
/// what it disagrees with was not: the webhook was forged, or the earlier `updatedAt` came from a clock that ran ahead.
/// Anything else that differs (`Canceled` where a webhook said `Captured`) cannot be explained by lag and counts at once.
///
/// A status word that we do not know is no status: the held one stays.
#[must_use]
pub fn reconcile(
    held: Held,
    answered: Option<Status>,
    answered_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Reading {
    let answered = answered.unwrap_or(held.status);
    let is_older = match (answered_at, held.dojo_updated_at) {
        (Some(answered_at), Some(held_at)) => answered_at < held_at,
        _ => false,
    };
    let dispute = if is_older {
        Conflict::Older
    } else if answered.leads_to(held.status) {
        Conflict::Behind
    } else {
        return Reading::Accepted(answered);
    };
    // What is held was known before the dispute began, so by now every copy has caught up with it.
    if held
        .disputed_for
        .is_some_and(|disputed_for| window.is_over(disputed_for))
    {
        Reading::Accepted(answered)
    } else {
        Reading::Conflicting(dispute)
    }
}

/// When to ask Dojo again about an answer in dispute: a few times early on, then less and less often, and once more
/// when the `window` is over and the answer counts.
#[must_use]
pub fn pause_in_conflict(disputed_for: Option<Duration>, window: SettlementWindow) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(500);
    let disputed_for = disputed_for.unwrap_or_default();
    let first = (window.length() / 8).clamp(SHORTEST, Duration::from_secs(15));
    let left = window.length().saturating_sub(disputed_for).max(SHORTEST);
    (disputed_for / 2).max(first).min(left)
}

/// Whether Dojo's own answers agree with a link's status.
///
/// `settled` is the status in the newest answer that was accepted. `latest` is Dojo's word in its latest answer, where
/// that one did not settle the status: because it is in dispute, or because the word is one that we do not know.
/// Webhooks write neither, so a status that only a webhook reported is not confirmed.
#[must_use]
pub fn is_confirmed(status: Status, settled: Option<Status>, latest: Option<&str>) -> bool {
    let answered = match latest {
        Some(word) => Status::from_dojo(word),
        None => settled,
    };
    answered == Some(status)
}

/// When to look at a link again if no webhook tells of it before: soon while it is new, because that is when customers
/// pay, and less and less often as it ages. `None`: never, nothing can change any more.
///
/// `money_left`: whether less was refunded than was captured. What Dojo calls a payment after a partial refund is not
/// documented, so `Refunded` is the end only once all of it went back.
///
/// `age` counts from the link's creation while it is unpaid, and from its last change after that. An unpaid link
/// is looked at just after it expires, whatever its age.
#[must_use]
pub fn next_look(
    status: Status,
    money_left: bool,
    age: Duration,
    until_expiry: Option<Duration>,
) -> Option<Duration> {
    const SOONEST: Duration = Duration::from_secs(30);
    const AFTER_EXPIRY: Duration = Duration::from_secs(30);
    // Only a refund or a reversal can follow, and its webhook may be lost like any other.
    let after_payment = || {
        (age < Duration::from_hours(24 * 180))
            .then(|| (age / 2).clamp(Duration::from_mins(10), Duration::from_hours(24 * 7)))
    };
    match status {
        Status::Pending => Some(SOONEST),
        Status::Created | Status::Authorized => {
            let wait = (age / 4).clamp(SOONEST, Duration::from_hours(6));
            let expiry = until_expiry.map(|left| left + AFTER_EXPIRY);
            Some(expiry.map_or(wait, |expiry| wait.min(expiry)))
        }
        Status::Captured => after_payment(),
        Status::Refunded if money_left => after_payment(),
        Status::Failed | Status::Refunded | Status::Reversed | Status::Canceled => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const WINDOW: SettlementWindow = SettlementWindow::new(Duration::from_mins(2));

    fn held(status: Status) -> Held {
        Held {
            status,
            dojo_updated_at: Some(datetime!(2026-01-01 12:00 UTC)),
            disputed_for: None,
        }
    }

    fn answer(held: Held, status: Status) -> Reading {
        reconcile(held, Some(status), held.dojo_updated_at, WINDOW)
    }

    #[test]
    fn an_older_answer_has_to_stand_for_a_while() {
        let before = datetime!(2026-01-01 11:59:59.9999999 UTC);
        for status in Status::ALL {
            let mut held = held(Status::Created);
            let reading = |held| reconcile(held, Some(status), Some(before), WINDOW);
            assert_eq!(reading(held), Reading::Conflicting(Conflict::Older));
            held.disputed_for = Some(Duration::from_secs(119));
            assert_eq!(reading(held), Reading::Conflicting(Conflict::Older));
            held.disputed_for = Some(WINDOW.length());
            assert_eq!(reading(held), Reading::Accepted(status));
        }
    }

    #[test]
    fn an_answer_that_is_behind_has_to_stand_for_a_while() {
        let mut held = held(Status::Captured);
        let behind = Reading::Conflicting(Conflict::Behind);
        assert_eq!(answer(held, Status::Created), behind);
        held.disputed_for = Some(Duration::from_secs(119));
        assert_eq!(answer(held, Status::Created), behind);
        held.disputed_for = Some(WINDOW.length());
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
        let reading = reconcile(held(Status::Captured), None, None, WINDOW);
        assert_eq!(reading, Reading::Accepted(Status::Captured));
    }

    proptest! {
        #[test]
        fn whatever_webhooks_said_dojos_standing_answer_wins(
            webhook in prop::sample::select(Status::ALL.to_vec()),
            dojo in prop::sample::select(Status::ALL.to_vec()),
        ) {
            let mut held = held(webhook);
            held.disputed_for = Some(WINDOW.length());
            prop_assert_eq!(answer(held, dojo), Reading::Accepted(dojo));
        }

        #[test]
        fn a_link_is_looked_at_just_after_it_expires_and_never_more_often_than_twice_a_minute(
            age in 0..400_u64 * 86400, left in 0..400_u64 * 86400,
        ) {
            let left_for = Some(Duration::from_secs(left));
            let wait = next_look(Status::Created, false, Duration::from_secs(age), left_for).unwrap();
            prop_assert!(wait >= Duration::from_secs(30));
            prop_assert!(wait <= Duration::from_secs(left + 30).max(Duration::from_secs(30)));
        }

        #[test]
        fn a_dispute_takes_few_questions_and_ends_soon_after_the_window(seconds in 1..86_400_u64) {
            let window = SettlementWindow::new(Duration::from_secs(seconds));
            let (mut asked, mut disputed_for) = (1, Duration::ZERO);
            while !window.is_over(disputed_for) {
                disputed_for += pause_in_conflict(Some(disputed_for), window);
                asked += 1;
            }
            prop_assert!(asked <= 32, "asked {asked} times");
            prop_assert!(disputed_for <= window.length() + Duration::from_millis(500));
        }

        #[test]
        fn only_what_dojo_answered_is_confirmed(
            status in prop::sample::select(Status::ALL.to_vec()),
            settled in prop::option::of(prop::sample::select(Status::ALL.to_vec())),
            latest in prop::option::of("Created|Authorized|Captured|Refunded|Voided|"),
        ) {
            let answered = latest.as_deref().or(settled.map(Status::as_str));
            let confirmed = is_confirmed(status, settled, latest.as_deref());
            prop_assert_eq!(confirmed, answered == Some(status.as_str()));
        }
    }

    #[test]
    fn looks_come_less_often_with_age_and_end() {
        let created = |age| next_look(Status::Created, false, age, None).unwrap();
        assert_eq!(created(Duration::ZERO), Duration::from_secs(30));
        assert_eq!(created(Duration::from_hours(1)), Duration::from_mins(15));
        assert_eq!(
            created(Duration::from_hours(24 * 29)),
            Duration::from_hours(6)
        );
        assert_eq!(
            next_look(Status::Captured, true, Duration::from_hours(24 * 181), None),
            None
        );
        let canceled = next_look(Status::Canceled, false, Duration::ZERO, None);
        assert_eq!(canceled, None);
    }

    #[test]
    fn refunded_is_the_end_only_when_all_of_it_went_back() {
        let refunded = |money_left| next_look(Status::Refunded, money_left, Duration::ZERO, None);
        assert_eq!(refunded(false), None);
        assert_eq!(
            refunded(true),
            next_look(Status::Captured, true, Duration::ZERO, None)
        );
    }
}
