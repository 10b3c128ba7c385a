//! The rules that a model runs by: the service's own, and broken ones to show that the checks notice.

use std::time::Duration;

use dojo_payment_links::payment_link::{
    RecoveryLimits, SettlementWindow, Status, Verdict,
    creation_recovery::{self, Found, Step},
    reconciliation::{self, Conflict, Decision, StoredState},
};
use time::OffsetDateTime;

/// What decides. The function pointers are the service's own pure rules; the flags stand for what its SQL does.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each stands for one clause that the service has or has not"
)]
pub(crate) struct Rules {
    /// What a webhook means.
    pub(crate) judge: fn(Status, Option<Status>) -> Verdict,
    /// How an answer is weighed.
    pub(crate) reconcile:
        fn(StoredState, Option<Status>, Option<OffsetDateTime>, SettlementWindow) -> Decision,
    /// When to look again.
    pub(crate) next_reconciliation:
        fn(Status, bool, Duration, Option<Duration>) -> Option<Duration>,
    /// Whether Dojo's own answers agree with the link's status.
    pub(crate) is_confirmed: fn(Status, Option<Status>, Option<&str>) -> bool,
    /// What to do about a lost creation.
    pub(crate) next_step: fn(&[Found], Option<Duration>, Duration, bool, RecoveryLimits) -> Step,
    /// A lost answer leaves the link pending.
    pub(crate) lost_is_unknown: bool,
    /// A second intent is marked, and canceled.
    pub(crate) surplus_is_canceled: bool,
    /// The first intent of a link stays its intent.
    pub(crate) first_intent_stays: bool,
    /// The caller is told of a failure only if the link has failed.
    pub(crate) only_failures_are_told: bool,
    /// An intent that Dojo does not know is asked about again, for a copy of its data may lag.
    pub(crate) missing_is_asked_again: bool,
    /// A dispute is about one status, and over when a webhook moves the link on.
    pub(crate) a_move_ends_a_dispute: bool,
}

impl Rules {
    /// What the service does.
    pub(crate) const REAL: Self = Self {
        judge: Status::judge,
        reconcile: reconciliation::reconcile,
        next_reconciliation: reconciliation::next_reconciliation,
        is_confirmed: reconciliation::is_confirmed,
        next_step: creation_recovery::next_step,
        lost_is_unknown: true,
        surplus_is_canceled: true,
        first_intent_stays: true,
        only_failures_are_told: true,
        missing_is_asked_again: true,
        a_move_ends_a_dispute: true,
    };
}

/// Broken: what a webhook says is taken, even if it is of an earlier stage.
pub(crate) fn judge_by_arrival(_: Status, reported: Option<Status>) -> Verdict {
    reported.map_or(Verdict::Unknown, Verdict::Moved)
}

/// Broken: what Dojo answers is taken, however old it is.
pub(crate) fn reconcile_blindly(
    stored: StoredState,
    answered: Option<Status>,
    _: Option<OffsetDateTime>,
    _: SettlementWindow,
) -> Decision {
    Decision::Accept(answered.unwrap_or(stored.status))
}

/// Broken: an answer that is behind what a webhook told is never believed, nor is one that agrees.
pub(crate) fn reconcile_never(
    _: StoredState,
    _: Option<Status>,
    _: Option<OffsetDateTime>,
    _: SettlementWindow,
) -> Decision {
    Decision::Conflict(Conflict::Behind)
}

/// Broken: a signed webhook is believed whatever Dojo answers, as long as it could be true.
pub(crate) fn reconcile_for_webhooks(
    stored: StoredState,
    answered: Option<Status>,
    answered_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Decision {
    if answered.is_some_and(|answered| answered.leads_to(stored.status)) {
        Decision::Conflict(Conflict::Behind)
    } else {
        reconciliation::reconcile(stored, answered, answered_at, window)
    }
}

/// Broken: an older answer is never believed, so one `updatedAt` in the future shuts Dojo out.
pub(crate) fn reconcile_by_time(
    stored: StoredState,
    answered: Option<Status>,
    answered_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Decision {
    if answered_at < stored.dojo_updated_at {
        Decision::Conflict(Conflict::Older)
    } else {
        reconciliation::reconcile(stored, answered, answered_at, window)
    }
}

/// Broken: every older response must stand, even one that no lag can explain.
pub(crate) fn reconcile_with_patience(
    stored: StoredState,
    reported: Option<Status>,
    updated_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Decision {
    let stands = stored
        .conflicting_for
        .is_some_and(|conflicting_for| window.is_over(conflicting_for));
    if updated_at < stored.dojo_updated_at && !stands {
        Decision::Conflict(Conflict::Older)
    } else {
        reconciliation::reconcile(stored, reported, updated_at, window)
    }
}

/// Broken: the latest response confirms a status, accepted or not.
pub(crate) fn confirm_by_latest(
    status: Status,
    accepted: Option<Status>,
    latest: Option<&str>,
) -> bool {
    let reported = latest.map_or(accepted, Status::from_dojo);
    reported == Some(status)
}

/// Broken: what a webhook reported is confirmed as long as Dojo has not said otherwise.
pub(crate) fn confirm_unless_disputed(
    status: Status,
    _: Option<Status>,
    latest: Option<&str>,
) -> bool {
    latest.is_none_or(|latest| Status::from_dojo(latest) == Some(status))
}

/// Broken: what is not found is created again, without waiting for it to come to light.
pub(crate) fn never_wait(
    found: &[Found],
    since_asked: Option<Duration>,
    age: Duration,
    expired: bool,
    limits: RecoveryLimits,
) -> Step {
    match creation_recovery::next_step(found, since_asked, age, expired, limits) {
        Step::Wait => Step::CreateAgain,
        step => step,
    }
}

/// Broken: what a customer has not paid yet is never looked at without a webhook.
pub(crate) fn look_only_when_told(
    _: Status,
    _: bool,
    _: Duration,
    _: Option<Duration>,
) -> Option<Duration> {
    None
}
