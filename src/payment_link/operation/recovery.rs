//! What to do about an operation whose response from Dojo was lost.

use std::time::Duration;

use super::{
    super::{Capture, RecoveryLimits, Status},
    Action, NewCapture, NewRefund,
};

/// An operation whose response was lost, and what helps to find out whether it was performed.
#[derive(Debug, Clone, Copy)]
pub struct LostOperation<'a> {
    pub action: &'a Action,
    /// The ids of the captures that can't be this one: those from before it was sent, and those of other operations. `None`:
    /// it was never sent.
    pub captures_before: Option<&'a [String]>,
    /// The sum of our other refunds that Dojo made, in minor units.
    pub made_refunds: i64,
    /// Of [`Self::made_refunds`], those that ended more than a settlement window ago. Every copy of Dojo's data shows them.
    pub settled_refunds: i64,
    /// The sum of our refunds that were requested before this one and whose outcome isn't known either, in minor units.
    pub earlier_pending_refunds: i64,
    /// Whether the link may have had the requested amount or tip before it was requested. Then having it proves nothing.
    pub had_requested_amount: bool,
    /// The time since the last attempt that may have taken effect. Attempts that Dojo provably did nothing about don't count.
    pub since_sent: Duration,
    /// The time since it was requested.
    pub age: Duration,
}

impl LostOperation<'_> {
    /// Whether an attempt that took effect would be visible at Dojo by now. Until then, nothing proves that it wasn't
    /// performed.
    fn is_settled(&self, limits: RecoveryLimits) -> bool {
        limits.window.is_over(self.since_sent)
    }
}

/// What Dojo shows of the intent now. Amounts are in minor units of the link's currency.
#[derive(Debug, Clone, Copy)]
pub struct IntentView<'a> {
    /// `None`: a status that we don't know.
    pub status: Option<Status>,
    /// The amount without tips.
    pub amount: Option<i64>,
    pub tips_amount: Option<i64>,
    pub captured_amount: Option<i64>,
    pub refunded_amount: Option<i64>,
    /// `None`: Dojo doesn't list them.
    pub captures: Option<&'a [Capture]>,
}

/// What to do next about a lost operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Dojo performed it. With Dojo's id for it, if it is shown.
    Succeeded(Option<String>),
    /// It may still become visible.
    Wait,
    /// Send it again. Performing it twice has the same effect as once.
    Repeat,
    /// It was not performed, for this reason.
    Failed(&'static str),
    /// It was never sent to Dojo, so the client may request it again.
    NeverSent,
    /// The outcome can't be determined automatically.
    Unconfirmed,
}

const TOO_LATE: Step = Step::Failed("Dojo did not perform it in time");
const NOT_PERFORMED: Step = Step::Failed("Dojo's response was lost, and it was not performed");

/// Decides what to do about a lost operation.
///
/// - A refund is repeated, because Dojo recognizes it by its key, unless Dojo shows that it wasn't made and that too little is
///   left for it by now.
/// - A cancellation or a reversal is repeated, because the second one changes nothing.
/// - A new amount or tip is set again, but only once the first request can no longer arrive and undo a later one.
/// - A capture is found by its id. It is never repeated.
/// - A receipt leaves no trace. It is never repeated.
#[must_use]
pub fn next_step(lost: LostOperation<'_>, intent: IntentView<'_>, limits: RecoveryLimits) -> Step {
    use Status::{Authorized, Captured, Created};

    if let Some(success) = visible_success(lost, intent) {
        return success;
    }
    let in_time = lost.age < limits.give_up;
    // For conclusions that hold only once no attempt can be under way.
    let once_settled = |step| {
        if lost.is_settled(limits) {
            step
        } else {
            Step::Wait
        }
    };
    match (lost.action, intent.status) {
        (Action::Receipt(_), _) => Step::Unconfirmed,
        (Action::Refund(refund), _) if in_time => match fit(refund, lost, intent) {
            Fit::MayBeMade | Fit::Fits => Step::Repeat,
            Fit::Unclear => Step::Wait,
            Fit::TooMuch => once_settled(Step::Failed(
                "it was not made, and other refunds have left too little for it",
            )),
        },
        // How long Dojo remembers the key of a refund isn't documented.
        (Action::Refund(refund), _) if may_be_refunded(refund, lost, intent) => {
            once_settled(Step::Unconfirmed)
        }
        (Action::Refund(_), _) => once_settled(TOO_LATE),
        (Action::Capture(_), _) if lost.captures_before.is_none() => Step::NeverSent,
        (Action::Capture(capture), _) => invisible_capture(capture, lost, intent, limits),
        (_, None) if in_time => Step::Wait,
        (_, None) => Step::Unconfirmed,
        (Action::Cancel, Some(Created)) | (Action::Reversal, Some(Authorized | Captured))
            if in_time =>
        {
            Step::Repeat
        }
        (Action::Cancel, Some(Created)) | (Action::Reversal, Some(Authorized | Captured)) => {
            once_settled(TOO_LATE)
        }
        (Action::Cancel, _) => Step::Failed("the customer paid before it could be canceled"),
        // The payment was paid when the reversal was requested. So this is an older state, from a lagging copy of Dojo's
        // data.
        (Action::Reversal, Some(Created)) => once_settled(NOT_PERFORMED),
        (Action::Reversal, _) => Step::Failed("there is nothing left to reverse"),
        (Action::Amount(_) | Action::TipsAmount(_), Some(Created | Authorized)) => {
            once_settled(if in_time { Step::Repeat } else { TOO_LATE })
        }
        (Action::Amount(_) | Action::TipsAmount(_), _) => {
            Step::Failed("the payment was completed or canceled before it could be changed")
        }
    }
}

/// Decides about a lost operation whose repetition Dojo has rejected. The rejection is about the repetition and says nothing
/// about the first attempt, which may be the reason for it. `Failed` means that the rejection is final.
#[must_use]
pub fn after_rejection(
    lost: LostOperation<'_>,
    intent: IntentView<'_>,
    limits: RecoveryLimits,
) -> Step {
    if let Some(success) = visible_success(lost, intent) {
        return success;
    }
    if !lost.is_settled(limits) {
        return Step::Wait;
    }
    match lost.action {
        Action::Refund(refund) if may_be_refunded(refund, lost, intent) => Step::Unconfirmed,
        _ => Step::Failed("Dojo rejected it"),
    }
}

/// How long to wait before an operation of this age is repeated once more. The pause grows, because Dojo is unlikely to
/// respond soon after several responses were lost.
#[must_use]
pub fn pause_before_repetition(age: Duration) -> Duration {
    (age / 4).clamp(Duration::from_secs(1), Duration::from_mins(1))
}

/// Returns `Succeeded` if the intent shows that the operation was performed.
fn visible_success(lost: LostOperation<'_>, intent: IntentView<'_>) -> Option<Step> {
    let is_visible = match lost.action {
        Action::Cancel => intent.status == Some(Status::Canceled),
        Action::Reversal => intent.status == Some(Status::Reversed),
        Action::Amount(_) | Action::TipsAmount(_) if lost.had_requested_amount => false,
        Action::Amount(new) => intent.amount == Some(new.amount.value),
        // Dojo may omit a tip of 0.
        Action::TipsAmount(new) => intent.tips_amount.unwrap_or(0) == new.tips_amount.value,
        // If it was never sent, every capture is another one.
        Action::Capture(_) if lost.captures_before.is_none() => false,
        Action::Capture(capture) => {
            let ours = new_captures(lost, intent)
                .find(|new| new.id.is_some() && !new.is_void() && has_amounts_of(new, capture));
            return ours.map(|ours| Step::Succeeded(ours.id.clone()));
        }
        Action::Refund(_) | Action::Receipt(_) => false,
    };
    is_visible.then_some(Step::Succeeded(None))
}

/// The captures that weren't there before this one was sent. There may be some without an id.
fn new_captures<'a>(
    lost: LostOperation<'a>,
    intent: IntentView<'a>,
) -> impl Iterator<Item = &'a Capture> {
    let before = lost.captures_before.unwrap_or_default();
    let captures = intent.captures.unwrap_or_default().iter();
    captures.filter(|capture| capture.id.as_ref().is_none_or(|id| !before.contains(id)))
}

/// Whether a capture has the requested amounts. Dojo doesn't document whether its `amount` includes the tip.
fn has_amounts_of(found: &Capture, requested: &NewCapture) -> bool {
    let amount = requested.amount.map_or(0, |amount| amount.value);
    let tips = requested.tips_amount.map_or(0, |tips| tips.value);
    found.tips_amount.unwrap_or(0) == tips
        && (found.amount == amount || found.amount == amount.saturating_add(tips))
}

/// Decides about a lost capture that isn't visible as a success.
fn invisible_capture(
    capture: &NewCapture,
    lost: LostOperation<'_>,
    intent: IntentView<'_>,
    limits: RecoveryLimits,
) -> Step {
    let is_ours = |new: &Capture| new.id.is_some() && has_amounts_of(new, capture);
    if new_captures(lost, intent).any(|new| new.is_void() && is_ours(new)) {
        return Step::Failed("Dojo tried it, and it was declined");
    }
    if !lost.is_settled(limits) {
        return Step::Wait;
    }
    // A missing list means an empty one only if nothing can have been captured. A new capture that can't be explained, such
    // as one without an id or with another amount, may be ours.
    let list_is_missing = intent.captures.is_none() && intent.status != Some(Status::Authorized);
    if list_is_missing || new_captures(lost, intent).any(|new| !new.is_void()) {
        Step::Unconfirmed
    } else {
        NOT_PERFORMED
    }
}

/// Whether a lost refund would fit if it were sent again.
enum Fit {
    /// What Dojo shows as refunded may include it. Only its key can tell.
    MayBeMade,
    /// It isn't in what Dojo shows as refunded, and Dojo has enough left for it.
    Fits,
    /// Whether it was made, or whether Dojo has enough left for it, depends on whether Dojo's refund total includes
    /// other recent refunds of ours.
    Unclear,
    /// It wasn't made, and too little is left for it.
    TooMuch,
}

/// Decides whether a lost refund would fit if it were sent again, together with those that were requested before it.
///
/// The refund total may come from a lagging copy, so other refunds of ours may be missing from it if they are more
/// recent than a settlement window. A portal refund that it shows may then pass for one of them. As for a new refund
/// ([`Refunds::bounds`](super::super::refundable::Refunds::bounds)), the worst case counts.
///
/// A known limit: if others refunded at least as much as this refund, the total can't prove that ours wasn't made. The
/// refund is then sent again under its key, although Dojo must reject it if it was never made and no longer fits. There is no
/// other way to find out, and no money moves.
fn fit(refund: &NewRefund, lost: LostOperation<'_>, intent: IntentView<'_>) -> Fit {
    let amount = refund.amount.map_or(0, |amount| amount.value);
    let (Some(captured), Some(refunded)) = (intent.captured_amount, refund_total(intent)) else {
        return Fit::MayBeMade;
    };
    let with_it = lost.made_refunds.saturating_add(amount);
    if refunded >= with_it.saturating_add(lost.earlier_pending_refunds) {
        return Fit::MayBeMade;
    }
    if refunded >= with_it {
        // What it shows may as well be the earlier refunds, whose outcome is about to be known.
        return Fit::Unclear;
    }
    let left = captured
        .saturating_sub(refunded)
        .saturating_sub(lost.earlier_pending_refunds);
    let possibly_missing = lost.made_refunds.saturating_sub(lost.settled_refunds);
    if amount <= left.saturating_sub(possibly_missing) {
        Fit::Fits
    } else if amount <= left || may_be_refunded(refund, lost, intent) {
        Fit::Unclear
    } else {
        Fit::TooMuch
    }
}

/// How much Dojo shows as refunded, where that can be relied on.
///
/// Dojo doesn't document whether it calls a payment `Refunded` after a partial refund, so the amount counts and not the status.
/// `Refunded` without an amount, or with an amount of 0, says only that something was refunded. For statuses other than
/// `Captured` and `Refunded` the amount means nothing to us.
fn refund_total(intent: IntentView<'_>) -> Option<i64> {
    match intent.status? {
        Status::Captured => intent.refunded_amount,
        Status::Refunded => intent.refunded_amount.filter(|refunded| *refunded > 0),
        _ => None,
    }
}

/// Whether what Dojo shows as refunded may include this refund.
fn may_be_refunded(refund: &NewRefund, lost: LostOperation<'_>, intent: IntentView<'_>) -> bool {
    let amount = refund.amount.map_or(0, |amount| amount.value);
    let with_it = lost.settled_refunds.saturating_add(amount);
    let refunded = match intent.status {
        Some(Status::Captured | Status::Refunded) => refund_total(intent),
        _ => intent.refunded_amount,
    };
    refunded.is_none_or(|refunded| refunded >= with_it)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            super::{Currency, Money, SettlementWindow},
            NewAmount, NewReceipt, NewTipsAmount,
        },
        *,
    };

    const LIMITS: RecoveryLimits = RecoveryLimits {
        window: SettlementWindow::new(Duration::from_mins(2)),
        give_up: Duration::from_hours(24),
    };

    fn gbp(value: i64) -> Money {
        Money {
            value,
            currency_code: Currency::Gbp,
        }
    }

    fn refund(value: i64) -> Action {
        Action::Refund(NewRefund {
            amount: Some(gbp(value)),
            ..NewRefund::default()
        })
    }

    fn capture(value: i64) -> Action {
        Action::Capture(NewCapture {
            amount: Some(gbp(value)),
            tips_amount: None,
        })
    }

    fn lost(action: &Action, since_sent: u64, age: u64) -> LostOperation<'_> {
        LostOperation {
            action,
            captures_before: Some(&[]),
            made_refunds: 0,
            settled_refunds: 0,
            earlier_pending_refunds: 0,
            had_requested_amount: false,
            since_sent: Duration::from_secs(since_sent),
            age: Duration::from_secs(age),
        }
    }

    fn any_status() -> impl Strategy<Value = Option<Status>> {
        prop::option::of(prop::sample::select(Status::ALL[2..].to_vec()))
    }

    fn dojos_capture(id: &str, amount: i64, status: &str) -> Capture {
        Capture {
            id: Some(id.to_owned()),
            amount,
            tips_amount: None,
            status: Some(status.to_owned()),
            created_at: None,
        }
    }

    fn intent(status: Status, captures: Option<&[Capture]>) -> IntentView<'_> {
        IntentView {
            status: Some(status),
            amount: Some(1000),
            tips_amount: None,
            captured_amount: Some(1000),
            refunded_amount: Some(0),
            captures,
        }
    }

    #[test]
    fn a_lost_capture_is_found_among_the_new_ones() {
        let before = ["c1".to_owned()];
        let old = dojos_capture("c1", 5, "Successful");
        let new = dojos_capture("c2", 5, "Successful");
        let declined = dojos_capture("c2", 5, "Declined");
        let other = dojos_capture("c2", 6, "Successful");
        let nameless = Capture {
            id: None,
            ..new.clone()
        };
        let nameless_and_declined = Capture {
            id: None,
            ..declined.clone()
        };
        let done = Step::Succeeded(Some("c2".to_owned()));
        let was_declined = Step::Failed("Dojo tried it, and it was declined");
        let action = capture(5);
        for (captures, since_sent, step) in [
            (vec![old.clone()], 119, Step::Wait),
            (vec![old.clone()], 120, NOT_PERFORMED),
            (vec![old.clone(), new], 0, done),
            (vec![old.clone(), declined], 0, was_declined),
            // A capture that cannot be explained may be ours.
            (vec![old.clone(), other.clone()], 119, Step::Wait),
            (vec![old.clone(), other], 120, Step::Unconfirmed),
            (vec![old.clone(), nameless], 120, Step::Unconfirmed),
            (vec![old.clone(), nameless_and_declined], 119, Step::Wait),
        ] {
            let lost = LostOperation {
                captures_before: Some(&before),
                ..lost(&action, since_sent, 200)
            };
            assert_eq!(
                next_step(lost, intent(Status::Captured, Some(&captures)), LIMITS),
                step
            );
        }
        // An unknown status hides nothing. Without a list of captures, the status decides.
        let captures = [old, dojos_capture("c2", 5, "Successful")];
        let unknown = IntentView {
            status: None,
            ..intent(Status::Captured, Some(&captures))
        };
        let lost = LostOperation {
            captures_before: Some(&before),
            ..lost(&action, 0, 200)
        };
        assert_eq!(
            next_step(lost, unknown, LIMITS),
            Step::Succeeded(Some("c2".to_owned()))
        );
        let lost = LostOperation {
            since_sent: LIMITS.window.length(),
            ..lost
        };
        assert_eq!(
            next_step(lost, intent(Status::Authorized, None), LIMITS),
            NOT_PERFORMED
        );
        assert_eq!(
            next_step(lost, intent(Status::Captured, None), LIMITS),
            Step::Unconfirmed
        );
        let never = LostOperation {
            captures_before: None,
            ..lost
        };
        assert_eq!(next_step(never, unknown, LIMITS), Step::NeverSent);
    }

    #[test]
    fn a_capture_with_a_tip_is_found_whether_or_not_its_amount_includes_the_tip() {
        let action = Action::Capture(NewCapture {
            amount: Some(gbp(5)),
            tips_amount: Some(gbp(2)),
        });
        for (amount, tips, found) in [
            (5, Some(2), true),
            (7, Some(2), true),
            (5, None, false),
            (7, None, false),
        ] {
            let captures = [Capture {
                tips_amount: tips,
                ..dojos_capture("c", amount, "Successful")
            }];
            let step = next_step(
                lost(&action, 0, 0),
                intent(Status::Captured, Some(&captures)),
                LIMITS,
            );
            assert_eq!(
                matches!(step, Step::Succeeded(_)),
                found,
                "{amount} {tips:?}"
            );
        }
    }

    #[test]
    fn nothing_has_failed_while_an_attempt_may_be_under_way() {
        let day = LIMITS.give_up.as_secs();
        let new_amount = Action::Amount(NewAmount {
            amount: gbp(6),
            item_lines: None,
            tax_lines: None,
        });
        let refund = refund(5);
        for (action, status) in [
            (&Action::Cancel, Status::Created),
            (&Action::Reversal, Status::Authorized),
            (&Action::Reversal, Status::Created),
            (&new_amount, Status::Created),
            (&refund, Status::Captured),
            (&capture(5), Status::Authorized),
        ] {
            let recent = lost(action, 119, day);
            assert_eq!(
                next_step(recent, intent(status, Some(&[])), LIMITS),
                Step::Wait,
                "{action:?}"
            );
            assert_eq!(
                after_rejection(recent, intent(status, Some(&[])), LIMITS),
                Step::Wait,
                "{action:?}"
            );
            let settled = lost(action, 120, day);
            let step = next_step(settled, intent(status, Some(&[])), LIMITS);
            assert!(matches!(step, Step::Failed(_)), "{action:?}: {step:?}");
            let step = after_rejection(settled, intent(status, Some(&[])), LIMITS);
            assert!(matches!(step, Step::Failed(_)), "{action:?}: {step:?}");
        }
    }

    #[test]
    fn what_the_intent_shows_decides_even_after_a_rejection() {
        let tips = |value| {
            Action::TipsAmount(NewTipsAmount {
                tips_amount: gbp(value),
            })
        };
        let amount = Action::Amount(NewAmount {
            amount: gbp(1000),
            item_lines: None,
            tax_lines: None,
        });
        for (action, status) in [
            (Action::Cancel, Status::Canceled),
            (Action::Reversal, Status::Reversed),
            (amount, Status::Captured),
            (tips(0), Status::Captured),
        ] {
            let lost = lost(&action, 0, 0);
            let intent = intent(status, None);
            assert_eq!(
                next_step(lost, intent, LIMITS),
                Step::Succeeded(None),
                "{action:?}"
            );
            assert_eq!(
                after_rejection(lost, intent, LIMITS),
                Step::Succeeded(None),
                "{action:?}"
            );
        }
        for (action, status, reason) in [
            (
                Action::Cancel,
                Status::Captured,
                "the customer paid before it could be canceled",
            ),
            (
                Action::Reversal,
                Status::Refunded,
                "there is nothing left to reverse",
            ),
            (
                tips(5),
                Status::Captured,
                "the payment was completed or canceled before it could be changed",
            ),
        ] {
            let step = next_step(lost(&action, 0, 0), intent(status, None), LIMITS);
            assert_eq!(step, Step::Failed(reason));
        }
    }

    #[test]
    fn a_lost_refund_has_failed_only_if_it_cannot_be_in_what_dojo_shows() {
        let day = LIMITS.give_up.as_secs();
        let action = refund(400);
        let lost = LostOperation {
            settled_refunds: 300,
            ..lost(&action, day, day)
        };
        for (status, refunded, has_failed) in [
            (Status::Captured, Some(300), true),
            (Status::Captured, Some(699), true),
            (Status::Captured, Some(700), false),
            (Status::Captured, None, false),
            // Dojo may call a payment `Refunded` after a partial refund, too: the amount counts, if there is one.
            (Status::Refunded, Some(699), true),
            (Status::Refunded, Some(700), false),
            (Status::Refunded, Some(0), false),
            (Status::Refunded, None, false),
        ] {
            let intent = IntentView {
                refunded_amount: refunded,
                ..intent(status, None)
            };
            for step in [
                next_step(lost, intent, LIMITS),
                after_rejection(lost, intent, LIMITS),
            ] {
                assert_eq!(
                    matches!(step, Step::Failed(_)),
                    has_failed,
                    "{refunded:?}: {step:?}"
                );
                assert_eq!(
                    step == Step::Unconfirmed,
                    !has_failed,
                    "{refunded:?}: {step:?}"
                );
            }
        }
    }

    #[test]
    fn a_lost_refund_is_not_repeated_if_others_have_left_too_little_for_it() {
        const TOO_LITTLE: Step =
            Step::Failed("it was not made, and other refunds have left too little for it");
        let action = refund(600);
        // `settled` is the part of `made` that every copy of Dojo's data shows.
        for (refunded, settled, made, earlier, since_sent, step) in [
            // Enough is left.
            (400, 0, 0, 0, 120, Step::Repeat),
            (400, 400, 400, 0, 120, Step::Repeat),
            // Enough is left, unless a lagging copy shows a portal refund in place of our recent one.
            (400, 0, 400, 0, 120, Step::Wait),
            (200, 0, 200, 0, 120, Step::Repeat),
            // Too little is left, and it can't be in Dojo's refund total.
            (401, 0, 0, 0, 119, Step::Wait),
            (401, 0, 0, 0, 120, TOO_LITTLE),
            // It may be in the refund total.
            (600, 0, 0, 0, 120, Step::Repeat),
            (1000, 0, 400, 0, 120, Step::Repeat),
            // Together with another one, it can't be. But a lagging copy may lack the other one, so this proves nothing yet.
            (600, 0, 1, 0, 120, Step::Wait),
            // Refunds that were requested earlier take precedence.
            (300, 0, 0, 101, 119, Step::Wait),
            (300, 0, 0, 100, 119, Step::Repeat),
            // What the refund total shows may be the earlier one or this one.
            (601, 0, 0, 400, 120, Step::Wait),
            (1000, 0, 0, 400, 120, Step::Repeat),
        ] {
            let lost = LostOperation {
                settled_refunds: settled,
                made_refunds: made,
                earlier_pending_refunds: earlier,
                ..lost(&action, since_sent, 200)
            };
            for status in [Status::Captured, Status::Refunded] {
                let intent = IntentView {
                    refunded_amount: Some(refunded),
                    ..intent(status, None)
                };
                let found = next_step(lost, intent, LIMITS);
                assert_eq!(
                    found, step,
                    "{status:?}: {refunded} with {made} made and {earlier} pending"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn captures_and_receipts_are_never_repeated(
            status in any_status(), since_sent in 0..200_000_u64, age in 0..200_000_u64, are_listed: bool,
        ) {
            let captures = [dojos_capture("c", 6, "Successful")];
            let intent = IntentView {
                status,
                amount: Some(5),
                tips_amount: None,
                captured_amount: Some(5),
                refunded_amount: Some(0),
                captures: are_listed.then_some(&captures[..]),
            };
            let receipt = Action::Receipt(NewReceipt { emails: Vec::new() });
            for action in [capture(5), receipt] {
                let step = next_step(lost(&action, since_sent, age), intent, LIMITS);
                prop_assert_ne!(step, Step::Repeat);
            }
        }

        #[test]
        fn a_lost_refund_is_repeated_in_time_unless_it_provably_does_not_fit(
            status in any_status(), age in 0..86_400_u64, refunded in prop::option::of(0..1000_i64), amount in 1..1000_i64,
        ) {
            let intent = IntentView { status, refunded_amount: refunded, ..intent(Status::Captured, None) };
            let action = refund(amount);
            let step = next_step(lost(&action, age, age), intent, LIMITS);
            let is_too_much = refunded.is_some_and(|refunded| refunded < amount && 1000 - refunded < amount);
            let is_known = match status {
                Some(Status::Captured) => true,
                Some(Status::Refunded) => refunded.is_some_and(|refunded| refunded > 0),
                _ => false,
            };
            if !is_known || !is_too_much {
                prop_assert_eq!(step, Step::Repeat);
            } else if age < LIMITS.window.length().as_secs() {
                prop_assert_eq!(step, Step::Wait);
            } else {
                prop_assert!(matches!(step, Step::Failed(_)));
            }
        }

        #[test]
        fn the_older_an_operation_the_longer_the_pause(age in 0..200_000_u64, more in 0..200_000_u64) {
            let (now, later) = (Duration::from_secs(age), Duration::from_secs(age + more));
            prop_assert!(pause_before_repetition(now) >= Duration::from_secs(1));
            prop_assert!(pause_before_repetition(later) >= pause_before_repetition(now));
            prop_assert!(pause_before_repetition(later) <= Duration::from_mins(1));
        }

        #[test]
        fn a_new_amount_is_not_sent_again_while_the_first_may_arrive(since_sent in 0..120_u64) {
            let intent = IntentView {
                status: Some(Status::Created),
                amount: Some(5),
                tips_amount: None,
                captured_amount: Some(5),
                refunded_amount: Some(0),
                captures: None,
            };
            let action = Action::Amount(NewAmount { amount: gbp(6), item_lines: None, tax_lines: None });
            prop_assert_eq!(next_step(lost(&action, since_sent, 200), intent, LIMITS), Step::Wait);
        }
    }
}
