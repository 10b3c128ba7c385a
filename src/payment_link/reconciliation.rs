//! The rules by which a link's stored state is reconciled with Dojo's responses.

use std::time::Duration;

use time::OffsetDateTime;

use super::{SettlementWindow, Status};

/// The part of a link's stored state that the rules need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredState {
    /// The link's status, which a webhook may have reported.
    pub status: Status,
    /// The status in the newest response that was accepted. `None` if no response has determined a status yet.
    pub accepted: Option<Status>,
    /// Dojo's `updatedAt` in the newest response that was accepted.
    pub dojo_updated_at: Option<OffsetDateTime>,
    /// How long Dojo's responses have conflicted with what is stored; `None` if the last one didn't.
    pub conflicting_for: Option<Duration>,
}

/// What to do with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Store it, with this status.
    Accept(Status),
    /// Change nothing yet. Read the intent again, and accept the response if Dojo stands by it.
    Conflict(Conflict),
}

/// Why a response is not accepted at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// By Dojo's own `updatedAt`, it is older than a response that was accepted before.
    Older,
    /// Its status comes before the one that a webhook reported.
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

/// Decides about Dojo's response to a read with the account's Dojo API key.
///
/// Such a response overrides any webhook. Two kinds of responses may come from a copy of Dojo's data that lags, so they are
/// accepted only if Dojo stands by them, that is, keeps returning them, for the settlement window:
///
/// - The response is older, by Dojo's own `updatedAt`, than one that was accepted.
/// - Its status comes before the one that a signed webhook reported (`Created` where the webhook said `Captured`).
///
/// If Dojo still stands by it after that, it is right and what it conflicts with was wrong: the webhook was forged, or the
/// earlier `updatedAt` came from a clock that ran ahead. Lag can't explain any other difference (`Canceled` where a webhook
/// said `Captured`), so such a response is accepted at once.
///
/// Nor can lag explain an older response whose status comes after the accepted one: a copy that lags shows an earlier
/// state, never a later one. So the accepted `updatedAt` came from a clock that ran ahead, and the response is the newer of
/// the two. It is accepted at once, unless it is behind a webhook.
///
/// A status that this version doesn't know is ignored: the stored one stays.
#[must_use]
pub fn reconcile(
    stored: StoredState,
    reported: Option<Status>,
    updated_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Decision {
    let status = reported.unwrap_or(stored.status);
    let has_older_time = match (updated_at, stored.dojo_updated_at) {
        (Some(updated_at), Some(accepted_at)) => updated_at < accepted_at,
        _ => false,
    };
    let is_later_stage = stored
        .accepted
        .zip(reported)
        .is_some_and(|(accepted, reported)| accepted.leads_to(reported));
    let conflict = if has_older_time && !is_later_stage {
        Conflict::Older
    } else if status.leads_to(stored.status) {
        Conflict::Behind
    } else {
        return Decision::Accept(status);
    };
    // The stored state predates the conflict, so by now every copy has caught up with it.
    if stored
        .conflicting_for
        .is_some_and(|conflicting_for| window.is_over(conflicting_for))
    {
        Decision::Accept(status)
    } else {
        Decision::Conflict(conflict)
    }
}

/// How long to wait before reading the intent again after a conflicting response. The wait is short at first and increases.
/// The last one ends with the `window`, when the response is accepted.
#[must_use]
pub fn conflict_recheck(conflicting_for: Option<Duration>, window: SettlementWindow) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(500);
    let conflicting_for = conflicting_for.unwrap_or_default();
    let first = (window.length() / 8).clamp(SHORTEST, Duration::from_secs(15));
    let left = window
        .length()
        .saturating_sub(conflicting_for)
        .max(SHORTEST);
    (conflicting_for / 2).max(first).min(left)
}

/// Whether Dojo's own responses agree with a link's status.
///
/// `accepted` is the status in the newest response that was accepted; the link's amounts come from that response, so a
/// status is never confirmed with the amounts of another one. `latest` is the status in Dojo's latest response, if that
/// response didn't determine the link's status, because it conflicts or because this version doesn't know the status.
/// A webhook never sets `accepted`, and can only
/// clear `latest`, so a status that only a webhook reported is not confirmed.
#[must_use]
pub fn is_confirmed(status: Status, accepted: Option<Status>, latest: Option<&str>) -> bool {
    accepted == Some(status) && latest.is_none_or(|word| Status::from_dojo(word) == Some(status))
}

/// How long to wait before the next reconciliation of a link if no webhook triggers one earlier. It is short while the link
/// is new, because that is when customers pay, and grows with its age. `None` if nothing can change after this.
///
/// `money_left` is whether less was refunded than was captured. Dojo doesn't document the status of a payment after a partial
/// refund, so `Refunded` is final only once everything was refunded.
///
/// `age` counts from the link's creation while it is unpaid, and from its last change after that. An unpaid link is
/// reconciled just after it expires, regardless of its age.
#[must_use]
pub fn next_reconciliation(
    status: Status,
    money_left: bool,
    age: Duration,
    until_expiry: Option<Duration>,
) -> Option<Duration> {
    const SHORTEST: Duration = Duration::from_secs(30);
    const AFTER_EXPIRY: Duration = Duration::from_secs(30);
    // Only a refund or a reversal can follow, and its webhook may be lost like any other.
    let after_payment = || {
        (age < Duration::from_hours(24 * 180))
            .then(|| (age / 2).clamp(Duration::from_mins(10), Duration::from_hours(24 * 7)))
    };
    match status {
        Status::Pending => Some(SHORTEST),
        Status::Created | Status::Authorized => {
            let wait = (age / 4).clamp(SHORTEST, Duration::from_hours(6));
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
    const ACCEPTED_AT: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);
    const EARLIER: OffsetDateTime = datetime!(2026-01-01 11:59:59.9999999 UTC);

    /// A link whose status Dojo itself has reported.
    fn stored(status: Status) -> StoredState {
        StoredState {
            status,
            accepted: Some(status),
            dojo_updated_at: Some(ACCEPTED_AT),
            conflicting_for: None,
        }
    }

    fn any_status() -> impl Strategy<Value = Status> {
        prop::sample::select(Status::ALL.to_vec())
    }

    fn decide(stored: StoredState, status: Status) -> Decision {
        reconcile(stored, Some(status), stored.dojo_updated_at, WINDOW)
    }

    #[test]
    fn an_older_response_must_stand_for_the_window() {
        for status in Status::ALL {
            let mut stored = stored(Status::Captured);
            let decide = |stored| reconcile(stored, Some(status), Some(EARLIER), WINDOW);
            if stored.status.leads_to(status) {
                continue;
            }
            assert_eq!(decide(stored), Decision::Conflict(Conflict::Older));
            stored.conflicting_for = Some(Duration::from_secs(119));
            assert_eq!(decide(stored), Decision::Conflict(Conflict::Older));
            stored.conflicting_for = Some(WINDOW.length());
            assert_eq!(decide(stored), Decision::Accept(status));
        }
    }

    #[test]
    fn an_older_response_with_an_unknown_word_must_stand_too() {
        let mut stored = stored(Status::Created);
        stored.status = Status::Captured;
        let decision = reconcile(stored, None, Some(EARLIER), WINDOW);
        assert_eq!(decision, Decision::Conflict(Conflict::Older));
    }

    #[test]
    fn an_older_response_at_a_later_stage_is_accepted_at_once() {
        for (accepted, webhook, reported, decision) in [
            (
                Status::Created,
                Status::Created,
                Status::Captured,
                Decision::Accept(Status::Captured),
            ),
            (
                Status::Created,
                Status::Captured,
                Status::Captured,
                Decision::Accept(Status::Captured),
            ),
            (
                Status::Created,
                Status::Refunded,
                Status::Captured,
                Decision::Conflict(Conflict::Behind),
            ),
            (
                Status::Captured,
                Status::Refunded,
                Status::Captured,
                Decision::Conflict(Conflict::Older),
            ),
        ] {
            let mut stored = stored(accepted);
            stored.status = webhook;
            let decided = reconcile(stored, Some(reported), Some(EARLIER), WINDOW);
            assert_eq!(decided, decision, "{accepted:?}, {webhook:?}, {reported:?}");
        }
    }

    #[test]
    fn a_response_that_is_behind_must_stand_for_the_window() {
        let mut stored = stored(Status::Created);
        stored.status = Status::Captured;
        let behind = Decision::Conflict(Conflict::Behind);
        assert_eq!(decide(stored, Status::Created), behind);
        stored.conflicting_for = Some(Duration::from_secs(119));
        assert_eq!(decide(stored, Status::Created), behind);
        stored.conflicting_for = Some(WINDOW.length());
        assert_eq!(
            decide(stored, Status::Created),
            Decision::Accept(Status::Created)
        );
    }

    #[test]
    fn what_lag_cannot_explain_is_accepted_at_once() {
        for (webhook, dojo) in [
            (Status::Canceled, Status::Captured),
            (Status::Captured, Status::Canceled),
            (Status::Refunded, Status::Reversed),
        ] {
            assert_eq!(decide(stored(webhook), dojo), Decision::Accept(dojo));
        }
    }

    #[test]
    fn an_unknown_word_leaves_the_status() {
        let decision = reconcile(stored(Status::Captured), None, None, WINDOW);
        assert_eq!(decision, Decision::Accept(Status::Captured));
    }

    proptest! {
        #[test]
        fn the_response_that_dojo_stands_by_wins(webhook in any_status(), dojo in any_status()) {
            let mut stored = stored(webhook);
            stored.conflicting_for = Some(WINDOW.length());
            prop_assert_eq!(decide(stored, dojo), Decision::Accept(dojo));
        }

        /// An accepted response never undoes what Dojo or a webhook reported, unless Dojo stands by it.
        #[test]
        fn no_response_moves_a_link_back_at_once(
            accepted in any_status(), webhook in any_status(), reported in any_status(), older: bool,
        ) {
            let mut stored = stored(accepted);
            stored.status = webhook;
            let updated_at = if older { EARLIER } else { ACCEPTED_AT };
            if let Decision::Accept(status) = reconcile(stored, Some(reported), Some(updated_at), WINDOW) {
                prop_assert_eq!(status, reported);
                prop_assert!(!status.leads_to(webhook));
                prop_assert!(!older || accepted.leads_to(status));
            }
        }

        #[test]
        fn a_link_is_reconciled_just_after_it_expires_and_at_most_twice_a_minute(
            age in 0..400_u64 * 86400, left in 0..400_u64 * 86400,
        ) {
            let left_for = Some(Duration::from_secs(left));
            let wait = next_reconciliation(Status::Created, false, Duration::from_secs(age), left_for).unwrap();
            prop_assert!(wait >= Duration::from_secs(30));
            prop_assert!(wait <= Duration::from_secs(left + 30).max(Duration::from_secs(30)));
        }

        #[test]
        fn a_conflict_takes_few_reads_and_ends_soon_after_the_window(seconds in 1..86_400_u64) {
            let window = SettlementWindow::new(Duration::from_secs(seconds));
            let (mut reads, mut conflicting_for) = (1, Duration::ZERO);
            while !window.is_over(conflicting_for) {
                conflicting_for += conflict_recheck(Some(conflicting_for), window);
                reads += 1;
            }
            prop_assert!(reads <= 32, "{reads} reads");
            prop_assert!(conflicting_for <= window.length() + Duration::from_millis(500));
        }

        #[test]
        fn only_an_accepted_status_is_confirmed(
            status in any_status(),
            accepted in prop::option::of(any_status()),
            latest in prop::option::of("Created|Authorized|Captured|Refunded|Voided|"),
        ) {
            let confirmed = is_confirmed(status, accepted, latest.as_deref());
            let latest_agrees = latest.is_none_or(|latest| latest == status.as_str());
            prop_assert_eq!(confirmed, accepted == Some(status) && latest_agrees);
        }
    }

    #[test]
    fn reconciliations_come_less_often_with_age_and_end() {
        let created = |age| next_reconciliation(Status::Created, false, age, None).unwrap();
        assert_eq!(created(Duration::ZERO), Duration::from_secs(30));
        assert_eq!(created(Duration::from_hours(1)), Duration::from_mins(15));
        assert_eq!(
            created(Duration::from_hours(24 * 29)),
            Duration::from_hours(6)
        );
        let half_a_year = Duration::from_hours(24 * 181);
        let captured = next_reconciliation(Status::Captured, true, half_a_year, None);
        assert_eq!(captured, None);
        let canceled = next_reconciliation(Status::Canceled, false, Duration::ZERO, None);
        assert_eq!(canceled, None);
    }

    #[test]
    fn refunded_is_final_only_when_everything_went_back() {
        let next =
            |status, money_left| next_reconciliation(status, money_left, Duration::ZERO, None);
        assert_eq!(next(Status::Refunded, false), None);
        assert_eq!(next(Status::Refunded, true), next(Status::Captured, true));
    }
}
