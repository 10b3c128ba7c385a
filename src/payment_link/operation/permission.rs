//! Whether an operation is allowed, given the link's status and amounts and the other operations on the payment.

use std::time::Duration;

use time::OffsetDateTime;

use super::{
    super::{
        CaptureMode, Fault, LinkCapture, Money, PaymentLink, SettlementWindow, Status, parse_time,
        refundable::{RefundBounds, Refunds},
    },
    Action, ActionKind, NewAmount, NewCapture, NewReceipt, NewRefund, NewTipsAmount,
    OperationStatus,
};

/// The other operations on a payment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherOperations {
    pub refunds: Refunds,
    /// Whether the outcome of an operation other than a refund or a receipt isn't known yet.
    pub change_is_pending: bool,
}

/// When an operation is requested, and which responses from Dojo it may be checked against.
#[derive(Debug, Clone, Copy)]
pub struct PermitContext {
    pub now: OffsetDateTime,
    /// A refund may only be checked against amounts that were read from Dojo at this time or later. `None`: Dojo was not
    /// read.
    pub read_since: Option<OffsetDateTime>,
    /// How long Dojo's responses may lag.
    pub window: SettlementWindow,
}

/// Why Dojo isn't called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The payment doesn't allow the operation.
    NotPossible(NotPossible),
    /// The outcome of another operation must be known first.
    Busy,
    /// Whether that much is left to refund isn't known yet: Dojo's refund total may or may not include refunds that are
    /// under way or recent, or Dojo's responses contradict each other.
    Unclear {
        /// When the same request is likely to get a clear response.
        retry_after: Duration,
    },
    /// The request doesn't fit the payment.
    Invalid(Vec<Fault>),
}

/// Why the payment doesn't allow an operation, and what it allows instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotPossible {
    /// For people to read.
    pub reason: String,
    /// The operations that the payment allows now.
    pub allowed_actions: Vec<ActionKind>,
    /// How much is left to capture or to refund, if that is what was requested.
    pub remaining: Option<Money>,
}

impl Denial {
    /// There is no response from Dojo that a refund may be checked against.
    pub const STALE: Self = Self::Unclear {
        retry_after: Duration::from_secs(1),
    };

    fn not_possible(reason: impl Into<String>) -> Self {
        Self::NotPossible(NotPossible {
            reason: reason.into(),
            ..NotPossible::default()
        })
    }
}

/// Checks whether the link's state and amounts allow an operation, and fills in amounts that were omitted.
///
/// Dojo has the last word. What is denied here, Dojo would reject. Where Dojo's documents say nothing, Dojo decides.
pub fn permit(
    action: &mut Action,
    link: &PaymentLink,
    others: &OtherOperations,
    context: PermitContext,
) -> Result<(), Denial> {
    check(action, link, others, context).map_err(|denial| match denial {
        Denial::NotPossible(NotPossible { reason, .. }) => Denial::NotPossible(NotPossible {
            reason,
            allowed_actions: allowed_actions(link, others, context),
            remaining: remaining(action, link, &others.refunds, context.window),
        }),
        other => other,
    })
}

/// The operations that the payment allows, each for all that is left.
#[must_use]
pub fn allowed_actions(
    link: &PaymentLink,
    others: &OtherOperations,
    context: PermitContext,
) -> Vec<ActionKind> {
    let nothing = Money {
        value: 0,
        currency_code: link.amount.currency_code,
    };
    [
        Action::Cancel,
        Action::Capture(NewCapture::default()),
        Action::Refund(NewRefund::default()),
        Action::Reversal,
        Action::Amount(NewAmount {
            amount: link.amount,
            item_lines: None,
            tax_lines: None,
        }),
        Action::TipsAmount(NewTipsAmount {
            tips_amount: link.tips_amount.unwrap_or(nothing),
        }),
        Action::Receipt(NewReceipt { emails: Vec::new() }),
    ]
    .into_iter()
    .filter_map(|mut action| {
        let kind = action.kind();
        match check_state(&mut action, link, &others.refunds, context) {
            Ok(()) | Err(Denial::Busy) => Some(kind),
            Err(Denial::Unclear { .. }) => may_refund(link).then_some(kind),
            Err(Denial::NotPossible(_) | Denial::Invalid(_)) => None,
        }
    })
    .collect()
}

/// Whether there may be something to refund. Without a fresh read from Dojo, nothing more is known.
fn may_refund(link: &PaymentLink) -> bool {
    matches!(link.status, Status::Captured | Status::Refunded)
}

/// How much is left to capture or to refund.
fn remaining(
    action: &Action,
    link: &PaymentLink,
    refunds: &Refunds,
    window: SettlementWindow,
) -> Option<Money> {
    match action {
        Action::Capture(_) if link.status == Status::Authorized => Some(left_to_capture(link).0),
        Action::Capture(_)
            if link.status == Status::Captured
                && link.terms.capture_mode == CaptureMode::Manual =>
        {
            Some(left_to_capture(link).0)
        }
        Action::Refund(_) => {
            let (captured, refunded) = (link.captured_amount, link.refunded_amount.value);
            let possible = refunds.bounds(captured.value, refunded, window).possible;
            Some(Money {
                value: if may_refund(link) { possible.max(0) } else { 0 },
                ..captured
            })
        }
        _ => None,
    }
}

fn check(
    action: &mut Action,
    link: &PaymentLink,
    others: &OtherOperations,
    context: PermitContext,
) -> Result<(), Denial> {
    same_currency(action, link)?;
    let is_busy = match action {
        Action::Receipt(_) => false,
        Action::Refund(_) => others.change_is_pending,
        _ => others.change_is_pending || others.refunds.has(OperationStatus::Pending),
    };
    if is_busy {
        return Err(Denial::Busy);
    }
    check_state(action, link, &others.refunds, context)
}

/// [`check`] as if no other operation were in progress.
fn check_state(
    action: &mut Action,
    link: &PaymentLink,
    refunds: &Refunds,
    context: PermitContext,
) -> Result<(), Denial> {
    match link.status {
        Status::Pending => {
            return Err(Denial::not_possible(
                "Dojo has not confirmed the link yet: retry when its status is Created",
            ));
        }
        Status::Failed => {
            return Err(Denial::not_possible(
                "the link could not be created, so it has no payment",
            ));
        }
        _ => {}
    }
    match action {
        Action::Cancel => permit_cancel(link),
        Action::Capture(capture) => permit_capture(capture, link),
        Action::Refund(refund) => permit_refund(refund, link, refunds, context),
        Action::Reversal => permit_reversal(link, context.now),
        Action::Amount(new) => {
            permit_change(link, Permission::CustomAmount)?;
            total_fits(link, link.amount, new.amount, "/amount/value")
        }
        Action::TipsAmount(new) => {
            permit_change(link, Permission::Tips)?;
            let before = link.tips_amount.unwrap_or(Money {
                value: 0,
                ..new.tips_amount
            });
            total_fits(link, before, new.tips_amount, "/tipsAmount/value")
        }
        Action::Receipt(_) => match link.status {
            Status::Created => Err(Denial::not_possible("not paid yet, so there is no receipt")),
            Status::Canceled => Err(Denial::not_possible(
                "canceled before it was paid, so there is no receipt",
            )),
            _ => Ok(()),
        },
    }
}

fn same_currency(action: &Action, link: &PaymentLink) -> Result<(), Denial> {
    let tips = match action {
        Action::Capture(capture) => capture.tips_amount,
        _ => None,
    };
    let amount_at = match action {
        Action::TipsAmount(_) => "/tipsAmount/currencyCode",
        _ => "/amount/currencyCode",
    };
    let currency = link.amount.currency_code;
    let faults: Vec<_> = [
        (amount_at, action.amount()),
        ("/tipsAmount/currencyCode", tips),
    ]
    .into_iter()
    .filter(|(_, money)| money.is_some_and(|money| money.currency_code != currency))
    .map(|(at, _)| {
        Fault::new(
            at,
            format!("must be {}, the link's currency", currency.code()),
        )
    })
    .collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Denial::Invalid(faults))
    }
}

fn permit_cancel(link: &PaymentLink) -> Result<(), Denial> {
    Err(Denial::not_possible(match link.status {
        Status::Authorized => "authorized: reverse it",
        Status::Captured if may_be_reversible(link) => "captured: refund or reverse it",
        Status::Captured => "captured: refund it",
        Status::Refunded => "already refunded",
        Status::Reversed => "already reversed",
        Status::Canceled => "already canceled",
        _ => return Ok(()),
    }))
}

/// Whether a reversal may still be possible.
fn may_be_reversible(link: &PaymentLink) -> bool {
    link.terms.capture_mode == CaptureMode::Auto && link.refunded_amount.value == 0
}

fn permit_capture(capture: &mut NewCapture, link: &PaymentLink) -> Result<(), Denial> {
    match link.status {
        Status::Authorized => {}
        Status::Captured if link.terms.capture_mode == CaptureMode::Manual => {}
        Status::Created if link.terms.capture_mode == CaptureMode::Auto => {
            return Err(Denial::not_possible(
                "not paid yet: it is captured automatically when it is paid",
            ));
        }
        Status::Created => {
            return Err(Denial::not_possible(
                "not paid yet: capture it when it is Authorized, or cancel it",
            ));
        }
        Status::Captured => return Err(Denial::not_possible("already captured: refund it")),
        Status::Refunded => return Err(Denial::not_possible("already refunded")),
        Status::Reversed => return Err(Denial::not_possible("already reversed")),
        _ => {
            return Err(Denial::not_possible(
                "canceled before it was paid: create a new link",
            ));
        }
    }
    let (left, left_tips) = left_to_capture(link);
    if left.value <= 0 {
        return Err(Denial::not_possible("already captured: refund it"));
    }
    match capture.amount {
        None if capture.tips_amount.is_some() => Err(Denial::Invalid(vec![Fault::new(
            "/amount",
            "is required with a tipsAmount",
        )])),
        None => {
            capture.amount = Some(left);
            capture.tips_amount = Some(left_tips).filter(|tips| tips.value > 0);
            Ok(())
        }
        Some(amount) if amount.value > left.value => Err(Denial::not_possible(format!(
            "only {left} is left to capture"
        ))),
        Some(_) => {
            let more_tips = capture
                .tips_amount
                .is_some_and(|tips| tips.value > left_tips.value);
            if more_tips && !Permission::Tips.is_given(link) {
                let without = Permission::Tips.missing();
                return Err(Denial::not_possible(if left_tips.value == 0 {
                    format!("{without}: capture it without a tipsAmount")
                } else {
                    format!("only {left_tips} of the tip is left to capture, and {without}")
                }));
            }
            match capture.tips_amount.filter(|_| more_tips) {
                Some(new) => total_fits(link, left_tips, new, "/tipsAmount/value"),
                None => Ok(()),
            }
        }
    }
}

/// How much of the amount and of the tip is left to capture.
fn left_to_capture(link: &PaymentLink) -> (Money, Money) {
    let money = |value| Money {
        value,
        currency_code: link.amount.currency_code,
    };
    let captured = |part: fn(&LinkCapture) -> i64| {
        link.captures
            .iter()
            .filter(|capture| !capture.is_void())
            .map(part)
            .fold(0, i64::saturating_add)
    };
    let tips = link.tips_amount.map_or(0, |tips| tips.value);
    let total = link.total_amount.unwrap_or(link.amount).value;
    // Saturating, because these amounts come from Dojo and are not checked.
    let left = total
        .saturating_sub(tips)
        .saturating_sub(captured(|capture| capture.amount.value));
    let left_tips = tips.saturating_sub(captured(|capture| {
        capture.tips_amount.map_or(0, |tips| tips.value)
    }));
    (money(left.max(0)), money(left_tips.max(0)))
}

fn permit_refund(
    refund: &mut NewRefund,
    link: &PaymentLink,
    refunds: &Refunds,
    context: PermitContext,
) -> Result<(), Denial> {
    // People also refund in Dojo's portal, and no webhook announces a partial refund. So amounts from before the
    // request prove nothing.
    let is_fresh = context
        .read_since
        .is_some_and(|since| refunds.read_at.is_some_and(|read_at| read_at >= since));
    if !is_fresh {
        return Err(Denial::STALE);
    }
    let money = |value| Money {
        value,
        currency_code: link.amount.currency_code,
    };
    match link.status {
        Status::Captured | Status::Refunded => {}
        Status::Created => return Err(Denial::not_possible("not paid yet: cancel it")),
        Status::Authorized => {
            return Err(Denial::not_possible(
                "authorized and not captured: reverse it, or capture it first",
            ));
        }
        Status::Reversed => return Err(Denial::not_possible("already reversed")),
        _ => {
            return Err(Denial::not_possible(
                "canceled before it was paid: nothing was captured",
            ));
        }
    }
    if link.captured_amount.value == 0 {
        return Err(Denial::not_possible("nothing is captured yet"));
    }
    let (captured, refunded) = (link.captured_amount.value, link.refunded_amount.value);
    let RefundBounds { certain, possible } = refunds.bounds(captured, refunded, context.window);
    let unclear = |is_clear: &dyn Fn(RefundBounds) -> bool| Denial::Unclear {
        retry_after: refunds.unclear_for(captured, refunded, context.window, is_clear),
    };
    if possible <= 0 {
        return Err(Denial::not_possible(
            if refunds.has(OperationStatus::Pending) {
                "nothing is left to refund: other refunds are under way"
            } else if refunds.has(OperationStatus::Unconfirmed) {
                "nothing is left to refund: the outcome of an earlier refund is unknown, see the link's operations"
            } else {
                "already refunded in full"
            },
        ));
    }
    match refund.amount {
        None if certain < possible => Err(unclear(&|then| then.certain == then.possible)),
        None => {
            refund.amount = Some(money(possible));
            Ok(())
        }
        Some(amount) if amount.value > possible => Err(Denial::not_possible(format!(
            "only {} is left to refund",
            money(possible)
        ))),
        Some(amount) if amount.value > certain => {
            Err(unclear(&|then| amount.value <= then.certain))
        }
        Some(_) => Ok(()),
    }
}

fn permit_reversal(link: &PaymentLink, now: OffsetDateTime) -> Result<(), Denial> {
    Err(Denial::not_possible(match link.status {
        Status::Authorized => return Ok(()),
        Status::Captured if link.terms.capture_mode == CaptureMode::Manual => "captured: refund it",
        Status::Captured if link.refunded_amount.value > 0 => "partly refunded: refund the rest",
        Status::Captured => {
            // The time zone of Dojo's day isn't documented. A payment that is a day old is of another day in all of them.
            let paid_at = link
                .payment
                .as_ref()
                .and_then(|payment| payment.transaction_date_time.as_deref())
                .and_then(parse_time);
            if paid_at.is_none_or(|paid_at| now - paid_at < time::Duration::DAY) {
                return Ok(());
            }
            "captured on an earlier day: refund it"
        }
        Status::Created => "not paid yet: cancel it",
        Status::Refunded => "already refunded",
        Status::Reversed => "already reversed",
        _ => "canceled before it was paid: nothing was captured",
    }))
}

fn permit_change(link: &PaymentLink, permission: Permission) -> Result<(), Denial> {
    match link.status {
        Status::Created | Status::Authorized => {}
        Status::Captured => return Err(Denial::not_possible("already captured: refund it")),
        Status::Refunded => return Err(Denial::not_possible("already refunded")),
        Status::Reversed => return Err(Denial::not_possible("already reversed")),
        _ => {
            return Err(Denial::not_possible(
                "canceled before it was paid: create a new link",
            ));
        }
    }
    if permission.is_given(link) {
        return Ok(());
    }
    let instead = if link.status == Status::Created {
        "cancel it and create a new link"
    } else {
        "reverse it and create a new link"
    };
    let missing = permission.missing();
    Err(Denial::not_possible(format!("{missing}: {instead}")))
}

/// Checks that the link's total stays within the limit of an amount when one part of it changes.
fn total_fits(link: &PaymentLink, from: Money, to: Money, at: &str) -> Result<(), Denial> {
    let total = link.total_amount.unwrap_or(link.amount).value;
    let total = i128::from(total) - i128::from(from.value) + i128::from(to.value);
    if total <= i128::from(Money::MAX) {
        return Ok(());
    }
    let detail = format!("must not raise the total above {}", Money::MAX);
    Err(Denial::Invalid(vec![Fault::new(at, detail)]))
}

/// A permission in `config.payment` that a link is created with.
#[derive(Debug, Clone, Copy)]
enum Permission {
    /// `customAmountAllowed`: the amount may be changed.
    CustomAmount,
    /// `tipsAllowed`: the tip may be changed.
    Tips,
}

impl Permission {
    fn is_given(self, link: &PaymentLink) -> bool {
        let config = link.terms.config.as_ref();
        let payment = config.and_then(|config| config.payment.as_ref());
        payment.is_some_and(|payment| match self {
            Self::CustomAmount => payment.custom_amount_allowed,
            Self::Tips => payment.tips_allowed,
        })
    }

    fn missing(self) -> &'static str {
        match self {
            Self::CustomAmount => "the link was created without config.payment.customAmountAllowed",
            Self::Tips => "the link was created without config.payment.tipsAllowed",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::{
        super::{
            super::{Currency, refundable::OurRefund},
            NewAmount, NewReceipt, NewTipsAmount,
        },
        *,
    };

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
    const WINDOW: SettlementWindow = SettlementWindow::new(Duration::from_mins(2));
    const CONTEXT: PermitContext = PermitContext {
        now: NOW,
        read_since: Some(NOW),
        window: WINDOW,
    };

    fn gbp(value: i64) -> Money {
        Money {
            value,
            currency_code: Currency::Gbp,
        }
    }

    /// A link over 10.00 GBP.
    fn link(status: Status, more: &Value) -> PaymentLink {
        let mut link = json!({
            "id": "plink_01kaz8v4wce7q8m6s5gq9nq2fd", "account": "default", "environment": "sandbox",
            "status": status, "confirmed": true, "url": null, "paymentIntentId": "pi_1", "amount": gbp(1000), "tipsAmount": null,
            "totalAmount": gbp(1000), "reportedAmount": null, "capturedAmount": gbp(0), "refundedAmount": gbp(0), "refundableAmount": gbp(0),
            "captures": [], "payment": null, "attempts": [], "failure": null, "createdBy": "orders",
            "createdAt": "2026-03-01T00:00:00Z", "updatedAt": "2026-03-01T00:00:00Z", "syncedAt": null,
            "reference": "Order 1",
        });
        for (name, value) in more.as_object().unwrap() {
            link[name] = value.clone();
        }
        serde_json::from_value(link).unwrap()
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

    fn reason(action: &mut Action, link: &PaymentLink, others: &OtherOperations) -> String {
        match permit(action, link, others, CONTEXT) {
            Err(Denial::NotPossible(denial)) => denial.reason,
            other => panic!("{other:?}"),
        }
    }

    /// These refunds, and a refund total that was just read from Dojo.
    fn reading(ours: Vec<OurRefund>) -> OtherOperations {
        OtherOperations {
            refunds: Refunds {
                ours,
                elsewhere: 0,
                read_at: Some(NOW),
            },
            change_is_pending: false,
        }
    }

    fn our_refund(amount: i64, status: OperationStatus) -> OurRefund {
        OurRefund {
            amount,
            status,
            completed_at: (status != OperationStatus::Pending).then(|| NOW - WINDOW.length()),
        }
    }

    #[test]
    fn a_declined_capture_is_still_left_to_capture() {
        let captures = json!([
            {"id": "c1", "amount": gbp(300), "status": "Successful"},
            {"id": "c2", "amount": gbp(700), "status": "Declined"},
        ]);
        let more = json!({"captures": captures, "captureMode": "Manual"});
        let link = link(Status::Captured, &more);
        assert_eq!(
            permit(
                &mut capture(700),
                &link,
                &OtherOperations::default(),
                CONTEXT
            ),
            Ok(())
        );
        assert_eq!(
            reason(&mut capture(701), &link, &OtherOperations::default()),
            "only 7.00 GBP is left to capture"
        );
    }

    #[test]
    fn a_pending_refund_counts_whether_dojo_shows_it_or_not() {
        let others = reading(vec![our_refund(600, OperationStatus::Pending)]);
        for (shown, certain) in [(0, 400), (300, 100), (600, 0)] {
            let more = json!({"capturedAmount": gbp(1000), "refundedAmount": gbp(shown)});
            let link = link(Status::Captured, &more);
            assert_eq!(
                reason(&mut refund(401), &link, &others),
                "only 4.00 GBP is left to refund"
            );
            // What Dojo shows may be the pending refund, or another one made elsewhere.
            for amount in [1, 100, 101, 400] {
                let permitted = permit(&mut refund(amount), &link, &others, CONTEXT);
                let is_clear = amount <= certain;
                assert_eq!(permitted.is_ok(), is_clear, "{amount} with {shown} shown");
                assert!(is_clear || matches!(permitted, Err(Denial::Unclear { .. })));
            }
            let mut all = Action::Refund(NewRefund::default());
            let permitted = permit(&mut all, &link, &others, CONTEXT);
            assert_eq!(permitted.is_ok(), certain == 400, "{shown}");
        }
        // Refunds made elsewhere count, too.
        let link = link(
            Status::Captured,
            &json!({"capturedAmount": gbp(1000), "refundedAmount": gbp(900)}),
        );
        assert_eq!(
            reason(&mut refund(101), &link, &others),
            "only 1.00 GBP is left to refund"
        );
    }

    #[test]
    fn a_refund_is_not_checked_against_figures_from_before_its_request() {
        let more = json!({"capturedAmount": gbp(1000)});
        let link = link(Status::Captured, &more);
        let mut others = reading(Vec::new());
        assert_eq!(permit(&mut refund(1), &link, &others, CONTEXT), Ok(()));
        for read_at in [Some(NOW - Duration::from_micros(1)), None] {
            others.refunds.read_at = read_at;
            let permitted = permit(&mut refund(1), &link, &others, CONTEXT);
            assert_eq!(permitted, Err(Denial::STALE));
        }
        let not_read = PermitContext {
            read_since: None,
            ..CONTEXT
        };
        let permitted = permit(&mut refund(1), &link, &reading(Vec::new()), not_read);
        assert_eq!(permitted, Err(Denial::STALE));
    }

    #[test]
    fn a_payment_of_another_day_is_not_reversible_and_dojo_decides_if_the_day_is_unknown() {
        for (paid_at, allowed) in [
            (
                json!({"transactionDateTime": "2026-02-28T12:00:00Z"}),
                false,
            ),
            (json!({"transactionDateTime": "2026-02-28T12:00:01Z"}), true),
            (json!({"transactionDateTime": "yesterday"}), true),
            (Value::Null, true),
        ] {
            let link = link(Status::Captured, &json!({"payment": paid_at}));
            let permitted = permit(
                &mut Action::Reversal,
                &link,
                &OtherOperations::default(),
                CONTEXT,
            );
            assert_eq!(permitted.is_ok(), allowed, "{paid_at}");
        }
    }

    #[test]
    fn the_total_stays_within_the_limit_of_an_amount() {
        let config =
            json!({"config": {"payment": {"customAmountAllowed": true, "tipsAllowed": true}}});
        let mut link = link(Status::Created, &config);
        link.tips_amount = Some(gbp(100));
        link.total_amount = Some(gbp(1100));
        let permitted =
            |mut action: Action| permit(&mut action, &link, &OtherOperations::default(), CONTEXT);
        let amount = |value| {
            Action::Amount(NewAmount {
                amount: gbp(value),
                item_lines: None,
                tax_lines: None,
            })
        };
        let tips = |value| {
            Action::TipsAmount(NewTipsAmount {
                tips_amount: gbp(value),
            })
        };
        assert_eq!(permitted(amount(Money::MAX - 100)), Ok(()));
        assert!(matches!(
            permitted(amount(Money::MAX - 99)),
            Err(Denial::Invalid(_))
        ));
        assert_eq!(permitted(tips(Money::MAX - 1000)), Ok(()));
        assert!(matches!(
            permitted(tips(Money::MAX - 999)),
            Err(Denial::Invalid(_))
        ));
    }

    #[test]
    fn an_unconfirmed_refund_stays_reserved_and_is_reported_as_unknown() {
        let link = link(
            Status::Captured,
            &json!({"capturedAmount": gbp(1000), "refundedAmount": gbp(0)}),
        );
        let others = reading(vec![our_refund(1000, OperationStatus::Unconfirmed)]);
        assert!(reason(&mut refund(1), &link, &others).contains("is unknown"));
        // Dojo knows whether anything was refunded, and reverses only payments without refunds.
        assert_eq!(
            permit(&mut Action::Reversal, &link, &others, CONTEXT),
            Ok(())
        );
        let others = reading(vec![our_refund(1000, OperationStatus::Pending)]);
        assert!(reason(&mut refund(1), &link, &others).contains("under way"));
        assert_eq!(
            permit(&mut Action::Reversal, &link, &others, CONTEXT),
            Err(Denial::Busy)
        );
    }

    #[test]
    fn each_rejection_says_what_is_possible_instead() {
        use Status::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        let auto = json!({"captureMode": "Auto", "capturedAmount": gbp(1000)});
        let manual = json!({"captureMode": "Manual"});
        let tip = || {
            Action::TipsAmount(NewTipsAmount {
                tips_amount: gbp(1),
            })
        };
        let receipt = || {
            Action::Receipt(NewReceipt {
                emails: vec!["a@b".to_owned()],
            })
        };
        let reserved = json!({"capturedAmount": gbp(1000), "refundedAmount": gbp(1)});
        let tipped = Action::Capture(NewCapture {
            amount: Some(gbp(1)),
            tips_amount: Some(gbp(2)),
        });
        let with_tip =
            json!({"captureMode": "Manual", "tipsAmount": gbp(1), "totalAmount": gbp(1001)});
        for (mut action, status, more, expected) in [
            (Action::Cancel, Refunded, &auto, "already refunded"),
            (Action::Cancel, Reversed, &auto, "already reversed"),
            (Action::Cancel, Canceled, &auto, "already canceled"),
            (
                capture(1),
                Created,
                &manual,
                "not paid yet: capture it when it is Authorized, or cancel it",
            ),
            (capture(1), Refunded, &manual, "already refunded"),
            (
                capture(1),
                Canceled,
                &manual,
                "canceled before it was paid: create a new link",
            ),
            (
                tipped,
                Authorized,
                &with_tip,
                "only 0.01 GBP of the tip is left to capture, and the link was created without config.payment.tipsAllowed",
            ),
            (
                Action::Capture(NewCapture {
                    amount: Some(gbp(1)),
                    tips_amount: Some(gbp(2)),
                }),
                Authorized,
                &manual,
                "the link was created without config.payment.tipsAllowed: capture it without a tipsAmount",
            ),
            (
                refund(1),
                Canceled,
                &auto,
                "canceled before it was paid: nothing was captured",
            ),
            (refund(1), Captured, &manual, "nothing is captured yet"),
            (
                Action::Reversal,
                Canceled,
                &auto,
                "canceled before it was paid: nothing was captured",
            ),
            (Action::Reversal, Refunded, &auto, "already refunded"),
            (
                Action::Reversal,
                Captured,
                &reserved,
                "partly refunded: refund the rest",
            ),
            (
                tip(),
                Authorized,
                &manual,
                "the link was created without config.payment.tipsAllowed: reverse it and create a new link",
            ),
            (tip(), Refunded, &manual, "already refunded"),
            (
                tip(),
                Canceled,
                &manual,
                "canceled before it was paid: create a new link",
            ),
            (
                receipt(),
                Canceled,
                &auto,
                "canceled before it was paid, so there is no receipt",
            ),
        ] {
            let reason = reason(&mut action, &link(status, more), &reading(Vec::new()));
            assert_eq!(reason, expected, "{action:?} of {status:?}");
        }
    }
}
