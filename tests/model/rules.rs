//! The rules that a model uses: the service's own, and broken ones which show that the checks notice.

use std::time::Duration;

use dojo_payment_links::payment_link::{
    RecoveryLimits, SettlementWindow, Status, Verdict,
    creation_recovery::{self, Found, Step},
    reconciliation::{self, Conflict, Decision, StoredState},
};
use time::OffsetDateTime;

/// The function pointers are the service's own pure rules. The flags stand for what its SQL does.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each stands for one clause that the service has or hasn't"
)]
pub(crate) struct Rules {
    /// What a webhook means.
    pub(crate) judge: fn(Status, Option<Status>) -> Verdict,
    /// What a response means.
    pub(crate) reconcile:
        fn(StoredState, Option<Status>, Option<OffsetDateTime>, SettlementWindow) -> Decision,
    /// When to reconcile again.
    pub(crate) next_reconciliation:
        fn(Status, bool, Duration, Option<Duration>) -> Option<Duration>,
    /// Whether Dojo's own responses agree with the link's status.
    pub(crate) is_confirmed: fn(Status, Option<Status>, Option<&str>) -> bool,
    /// What to do about a lost creation.
    pub(crate) next_step: fn(&[Found], Option<Duration>, Duration, bool, RecoveryLimits) -> Step,
    /// A lost response leaves the link pending.
    pub(crate) lost_is_unknown: bool,
    /// A surplus intent is marked and canceled.
    pub(crate) surplus_is_canceled: bool,
    /// The first intent of a link stays its intent.
    pub(crate) first_intent_stays: bool,
    /// The caller gets a failure only if the link has failed.
    pub(crate) only_stored_failures_are_returned: bool,
    /// An intent that Dojo doesn't know is read again, because a copy of its data may lag.
    pub(crate) missing_is_read_again: bool,
    /// A conflict is about one status, and ends when a webhook moves the link on.
    pub(crate) a_move_ends_a_conflict: bool,
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
        only_stored_failures_are_returned: true,
        missing_is_read_again: true,
        a_move_ends_a_conflict: true,
    };
}

/// Broken: a webhook is applied even if it reports an earlier stage.
pub(crate) fn judge_by_arrival(_: Status, reported: Option<Status>) -> Verdict {
    reported.map_or(Verdict::Unknown, Verdict::Moved)
}

/// Broken: a response is accepted, however old it is.
pub(crate) fn reconcile_blindly(
    stored: StoredState,
    reported: Option<Status>,
    _: Option<OffsetDateTime>,
    _: SettlementWindow,
) -> Decision {
    Decision::Accept(reported.unwrap_or(stored.status))
}

/// Broken: no response is accepted, whether it is behind a webhook or agrees with it.
pub(crate) fn reconcile_never(
    _: StoredState,
    _: Option<Status>,
    _: Option<OffsetDateTime>,
    _: SettlementWindow,
) -> Decision {
    Decision::Conflict(Conflict::Behind)
}

/// Broken: a signed webhook beats a response that is behind it, however long Dojo stands by the response.
pub(crate) fn reconcile_for_webhooks(
    stored: StoredState,
    reported: Option<Status>,
    updated_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Decision {
    if reported.is_some_and(|reported| reported.leads_to(stored.status)) {
        Decision::Conflict(Conflict::Behind)
    } else {
        reconciliation::reconcile(stored, reported, updated_at, window)
    }
}

/// Broken: an older response is never accepted, so no response is after one `updatedAt` in the future.
pub(crate) fn reconcile_by_time(
    stored: StoredState,
    reported: Option<Status>,
    updated_at: Option<OffsetDateTime>,
    window: SettlementWindow,
) -> Decision {
    if updated_at < stored.dojo_updated_at {
        Decision::Conflict(Conflict::Older)
    } else {
        reconciliation::reconcile(stored, reported, updated_at, window)
    }
}

/// Broken: Dojo must stand by every older response, even by one that lag can't explain.
pub(crate) fn reconcile_older_late(
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

/// Broken: what a webhook reported is confirmed as long as no response conflicts with it.
pub(crate) fn confirm_unless_conflicting(
    status: Status,
    _: Option<Status>,
    latest: Option<&str>,
) -> bool {
    latest.is_none_or(|latest| Status::from_dojo(latest) == Some(status))
}

/// Broken: the creation is retried if no intent is found, without waiting for one to appear.
pub(crate) fn never_wait(
    found: &[Found],
    since_sent: Option<Duration>,
    age: Duration,
    expired: bool,
    limits: RecoveryLimits,
) -> Step {
    match creation_recovery::next_step(found, since_sent, age, expired, limits) {
        Step::Wait => Step::CreateAgain,
        step => step,
    }
}

/// Broken: a link is never reconciled without a webhook.
pub(crate) fn reconcile_only_after_webhooks(
    _: Status,
    _: bool,
    _: Duration,
    _: Option<Duration>,
) -> Option<Duration> {
    None
}
