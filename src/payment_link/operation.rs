//! What is done to a payment after its link was made: the operations, what allows them, and what to do when Dojo's
//! answer to one was lost.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    Capture, CaptureMode, Failure, Fault, ItemLine, Money, OperationId, PaymentLink, Status,
    TaxLine, parse_time, recovery::Patience,
};

/// What is asked of Dojo.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "type", content = "request")]
pub enum Action {
    /// Withdraws a link that nobody has paid.
    Cancel,
    /// Collects an authorized payment.
    Capture(NewCapture),
    /// Gives money back.
    Refund(NewRefund),
    /// Undoes an authorization, or an `Auto` payment of the same day; always the whole of it.
    Reversal,
    /// Changes the amount before it is collected.
    Amount(NewAmount),
    /// Changes the tip before it is collected.
    TipsAmount(NewTipsAmount),
    /// Sends a receipt by email.
    Receipt(NewReceipt),
}

/// What to collect of an authorized payment.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewCapture {
    /// How much of it, without the tip. At least 1. Left out: all that is left, with what is left of the tip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
    /// The tip to collect with it. Not without `amount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tips_amount: Option<Money>,
}

/// What to give back.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewRefund {
    /// How much. At least 1. Left out: all that is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024, example = "Returned goods")]
    pub refund_reason: Option<String>,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096)]
    pub notes: Option<String>,
    /// The transaction at Dojo that is refunded, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub previous_transaction_id: Option<String>,
}

impl fmt::Debug for NewRefund {
    /// Shows the amount alone: reasons and notes may tell of customers, who do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewRefund({:?}, ..)", self.amount)
    }
}

/// Another amount for a payment that is not collected yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewAmount {
    /// The amount, without tips, service charge and cashback. At least 1.
    pub amount: Money,
    /// What the customer buys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_lines: Option<Vec<ItemLine>>,
    /// The taxes on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tax_lines: Option<Vec<TaxLine>>,
}

/// Another tip for a payment that is not collected yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewTipsAmount {
    /// The tip. Not negative.
    pub tips_amount: Money,
}

/// Who gets a receipt.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewReceipt {
    /// Their email addresses; 1 to 20.
    #[schema(min_items = 1, max_items = 20)]
    pub emails: Vec<String>,
}

impl fmt::Debug for NewReceipt {
    /// Shows no address: customers do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewReceipt({} addresses)", self.emails.len())
    }
}

impl Action {
    /// The word for it in JSON, in the database, in logs and in metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Capture(_) => "capture",
            Self::Refund(_) => "refund",
            Self::Reversal => "reversal",
            Self::Amount(_) => "amount",
            Self::TipsAmount(_) => "tipsAmount",
            Self::Receipt(_) => "receipt",
        }
    }

    /// The money that it moves or sets, once that is settled.
    #[must_use]
    pub fn amount(&self) -> Option<Money> {
        match self {
            Self::Capture(capture) => capture.amount,
            Self::Refund(refund) => refund.amount,
            Self::Amount(new) => Some(new.amount),
            Self::TipsAmount(new) => Some(new.tips_amount),
            Self::Cancel | Self::Reversal | Self::Receipt(_) => None,
        }
    }
}

/// An operation that was asked for through this service.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its id, a TypeID.
    #[schema(value_type = String, example = "op_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: OperationId,
    /// Where it stands.
    pub status: OperationStatus,
    /// Dojo's id for what was done: of the capture, the refund or the reversal.
    pub dojo_id: Option<String>,
    /// Why it was not done, where the status is `Failed`.
    pub failure: Option<Failure>,
    /// The name of the API key that asked for it.
    pub created_by: String,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its outcome was known. `null` until it is.
    #[serde(with = "time::serde::rfc3339::option")]
    pub completed_at: Option<OffsetDateTime>,
    /// What was asked for.
    #[serde(flatten)]
    pub action: Action,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum OperationStatus {
    /// Dojo is being asked, or its answer was lost and its outcome is not known yet.
    Pending,
    /// Dojo has done it.
    Succeeded,
    /// It was not done.
    Failed,
    /// Dojo's answer was lost, and nothing at Dojo tells whether it was done. A person has to look.
    Unconfirmed,
}

impl OperationStatus {
    /// The word for it in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unconfirmed => "Unconfirmed",
        }
    }
}

impl std::str::FromStr for OperationStatus {
    type Err = UnknownOperationStatus;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [
            Self::Pending,
            Self::Succeeded,
            Self::Failed,
            Self::Unconfirmed,
        ]
        .into_iter()
        .find(|status| status.as_str() == word)
        .ok_or(UnknownOperationStatus)
    }
}

/// A word that is no status of an operation.
#[derive(Debug, thiserror::Error)]
#[error("no such status of an operation")]
pub struct UnknownOperationStatus;

/// The rules for the body of an operation that its schema cannot say, each broken one as a fault. Like
/// [`super::broken_rules`], it works on the JSON.
#[must_use]
pub fn broken_rules(body: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let value = |name: &str| {
        body.pointer(&format!("/{name}/value"))
            .and_then(Value::as_i64)
    };
    if value("amount").is_some_and(|value| value < 1) {
        faults.push(Fault::new("/amount/value", "must be at least 1"));
    }
    if value("tipsAmount").is_some_and(|value| value < 0) {
        faults.push(Fault::new("/tipsAmount/value", "must not be negative"));
    }
    for (index, email) in body["emails"].as_array().into_iter().flatten().enumerate() {
        // Whether an address is one is for the mail to find out (RFC 5321, section 3.3); this finds slips.
        let plausible = |email: &str| {
            let parts = email.rsplit_once('@');
            parts.is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty())
                && email.len() <= 254
                && !email.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if email.as_str().is_some_and(|email| !plausible(email)) {
            faults.push(Fault::new(
                format!("/emails/{index}"),
                "must be an email address",
            ));
        }
    }
    faults
}

/// What else goes on with a payment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// What refunds that were asked for here have given back or may give back: minor units.
    pub refunds: i64,
    /// Whether the outcome of a refund is not known yet.
    pub refund_running: bool,
    /// Whether the outcome of a change other than a refund is not known yet.
    pub change_running: bool,
}

/// Why Dojo is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    /// The payment does not allow it; in words, with what would be possible instead.
    NotPossible(String),
    /// The outcome of another operation has to be known first.
    Busy,
    /// What was asked for does not fit the payment.
    Invalid(Vec<Fault>),
}

impl Objection {
    fn because(words: impl Into<String>) -> Self {
        Self::NotPossible(words.into())
    }
}

/// Whether the link's state and amounts allow an operation; fills in the amounts that were left out.
///
/// Dojo has the last word on all of it: what is refused here would be refused there, and what is silent in its
/// documents is left to it.
pub fn permit(
    action: &mut Action,
    link: &PaymentLink,
    others: Others,
    now: OffsetDateTime,
) -> Result<(), Objection> {
    same_currency(action, link)?;
    match link.status {
        Status::Pending => {
            return Err(Objection::because(
                "Dojo has not confirmed the link yet: ask again when it is Created",
            ));
        }
        Status::Failed => {
            return Err(Objection::because(
                "the link came to nothing, so there is nothing to do it to",
            ));
        }
        _ => {}
    }
    let busy = match action {
        Action::Receipt(_) => false,
        Action::Refund(_) => others.change_running,
        _ => others.change_running || others.refund_running,
    };
    if busy {
        return Err(Objection::Busy);
    }
    match action {
        Action::Cancel => permit_cancel(link),
        Action::Capture(capture) => permit_capture(capture, link),
        Action::Refund(refund) => permit_refund(refund, link, others),
        Action::Reversal => permit_reversal(link, now),
        Action::Amount(_) => permit_new_amount(link, "customAmountAllowed"),
        Action::TipsAmount(_) => permit_new_amount(link, "tipsAllowed"),
        Action::Receipt(_) => match link.status {
            Status::Created => Err(Objection::because("not paid yet, so there is no receipt")),
            Status::Canceled => Err(Objection::because(
                "canceled unpaid, so there is no receipt",
            )),
            _ => Ok(()),
        },
    }
}

fn same_currency(action: &Action, link: &PaymentLink) -> Result<(), Objection> {
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
    .map(|(at, _)| Fault::new(at, format!("must be {}, the link's", currency.code())))
    .collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Objection::Invalid(faults))
    }
}

fn permit_cancel(link: &PaymentLink) -> Result<(), Objection> {
    Err(Objection::because(match link.status {
        Status::Authorized => "authorized: reverse it",
        Status::Captured if may_be_of_today(link) => "captured: refund or reverse it",
        Status::Captured => "captured: refund it",
        Status::Refunded => "already refunded",
        Status::Reversed => "already reversed",
        Status::Canceled => "already canceled",
        _ => return Ok(()),
    }))
}

/// Whether a reversal is at least worth a thought.
fn may_be_of_today(link: &PaymentLink) -> bool {
    link.terms.capture_mode == CaptureMode::Auto && link.refunded_amount == 0
}

fn permit_capture(capture: &mut NewCapture, link: &PaymentLink) -> Result<(), Objection> {
    match link.status {
        Status::Authorized => {}
        Status::Captured if link.terms.capture_mode == CaptureMode::Manual => {}
        Status::Created if link.terms.capture_mode == CaptureMode::Auto => {
            return Err(Objection::because(
                "not paid yet, and captured by itself when it is",
            ));
        }
        Status::Created => {
            return Err(Objection::because(
                "not paid yet: capture it when it is Authorized, or cancel it",
            ));
        }
        Status::Captured => return Err(Objection::because("already captured: refund it")),
        Status::Refunded => return Err(Objection::because("already refunded")),
        Status::Reversed => return Err(Objection::because("already reversed")),
        _ => return Err(Objection::because("canceled unpaid: make a new link")),
    }
    let money = |value| Money {
        value,
        currency_code: link.amount.currency_code,
    };
    let captured = |part: fn(&Capture) -> i64| {
        link.captures
            .iter()
            .filter(|capture| !capture.is_void())
            .map(part)
            .fold(0, i64::saturating_add)
    };
    let tips = link.tips_amount.map_or(0, |tips| tips.value);
    let total = link.total_amount.unwrap_or(link.amount).value;
    let left = money(total - tips - captured(|capture| capture.amount));
    let left_tips = money((tips - captured(|capture| capture.tips_amount.unwrap_or(0))).max(0));
    if left.value <= 0 {
        return Err(Objection::because("already captured: refund it"));
    }
    match capture.amount {
        None if capture.tips_amount.is_some() => Err(Objection::Invalid(vec![Fault::new(
            "/amount",
            "is required where there is a tipsAmount",
        )])),
        None => {
            capture.amount = Some(left);
            capture.tips_amount = Some(left_tips).filter(|tips| tips.value > 0);
            Ok(())
        }
        Some(amount) if amount.value > left.value => Err(Objection::because(format!(
            "only {left} is left to capture"
        ))),
        Some(_) => {
            let more_tips = capture
                .tips_amount
                .is_some_and(|tips| tips.value > left_tips.value);
            if more_tips && !is_allowed(link, "tipsAllowed") {
                return Err(Objection::because(format!(
                    "only {left_tips} of the tip is left to capture, and the link was made without \
                     config.payment.tipsAllowed"
                )));
            }
            Ok(())
        }
    }
}

fn permit_refund(
    refund: &mut NewRefund,
    link: &PaymentLink,
    others: Others,
) -> Result<(), Objection> {
    let money = |value| Money {
        value,
        currency_code: link.amount.currency_code,
    };
    match link.status {
        Status::Captured | Status::Refunded => {}
        Status::Created => return Err(Objection::because("not paid yet: cancel it")),
        Status::Authorized => {
            return Err(Objection::because(
                "authorized and not captured: reverse it, or capture it first",
            ));
        }
        Status::Reversed => return Err(Objection::because("already reversed")),
        _ => return Err(Objection::because("canceled unpaid: nothing was taken")),
    }
    // What Dojo tells includes refunds made elsewhere, and some or all of ours that are under way.
    let given = link.refunded_amount.max(others.refunds);
    let left = money(link.captured_amount.saturating_sub(given));
    if left.value <= 0 {
        return Err(Objection::because(if others.refund_running {
            "nothing is left to refund: other refunds are under way"
        } else {
            "already refunded in full"
        }));
    }
    match refund.amount {
        None => {
            refund.amount = Some(left);
            Ok(())
        }
        Some(amount) if amount.value > left.value => {
            Err(Objection::because(format!("only {left} is left to refund")))
        }
        Some(_) => Ok(()),
    }
}

fn permit_reversal(link: &PaymentLink, now: OffsetDateTime) -> Result<(), Objection> {
    Err(Objection::because(match link.status {
        Status::Authorized => return Ok(()),
        Status::Captured if link.terms.capture_mode == CaptureMode::Manual => "captured: refund it",
        Status::Captured if link.refunded_amount > 0 => "a part of it is refunded: refund the rest",
        Status::Captured => {
            // Which time zone Dojo's day is in is not documented; a day ago is another day in all of them.
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
        _ => "canceled unpaid: nothing was taken",
    }))
}

fn permit_new_amount(link: &PaymentLink, member: &str) -> Result<(), Objection> {
    match link.status {
        Status::Created | Status::Authorized => {}
        Status::Captured => return Err(Objection::because("already captured: refund it")),
        Status::Refunded => return Err(Objection::because("already refunded")),
        Status::Reversed => return Err(Objection::because("already reversed")),
        _ => return Err(Objection::because("canceled unpaid: make a new link")),
    }
    if is_allowed(link, member) {
        return Ok(());
    }
    let instead = if link.status == Status::Created {
        "cancel it and make a new link"
    } else {
        "reverse it and make a new link"
    };
    Err(Objection::because(format!(
        "the link was made without config.payment.{member}: {instead}"
    )))
}

/// Whether the link was made with this member of `config.payment` set.
fn is_allowed(link: &PaymentLink, member: &str) -> bool {
    let payment = link
        .terms
        .config
        .as_ref()
        .and_then(|config| config.payment.as_ref());
    payment.is_some_and(|payment| match member {
        "tipsAllowed" => payment.tips_allowed,
        _ => payment.custom_amount_allowed,
    })
}

/// An operation whose answer was lost, and what tells whether it was done.
#[derive(Debug, Clone, Copy)]
pub struct Lost<'a> {
    /// What was asked for.
    pub action: &'a Action,
    /// The captures that were there before, by their ids. `None`: it never came to asking.
    pub captures_before: Option<&'a [String]>,
    /// Since Dojo may last have been asked.
    pub since_asked: Duration,
    /// Since it was asked for here.
    pub age: Duration,
}

/// What Dojo answers about the intent now.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its status; `None` for a word that we do not know.
    pub status: Option<Status>,
    /// Its amount without tips, in minor units of the link's currency.
    pub amount: Option<i64>,
    /// Its tip.
    pub tips_amount: Option<i64>,
    /// Its captures. `None`: Dojo does not tell.
    pub captures: Option<&'a [Capture]>,
}

/// What to do about an operation whose answer was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It was done; with Dojo's id for it, where that is told.
    Succeeded(Option<String>),
    /// It may still come to light.
    Wait,
    /// Dojo may be asked again: to do it twice is the same as once.
    AskAgain,
    /// It was not done, and this is why.
    Failed(&'static str),
    /// Dojo was never asked, so whoever wants it may ask for it again.
    NeverAsked,
    /// Nobody can tell.
    Unconfirmed,
}

/// Decides about an operation whose answer was lost.
///
/// What may be repeated: a refund, for Dojo knows it by its key; a cancellation and a reversal, for the second
/// changes nothing; another amount, once the first request cannot arrive any more and undo a later one. A capture is
/// found by its id and never asked for twice. A receipt leaves no trace, and is not sent twice.
#[must_use]
pub fn next_step(lost: Lost<'_>, seen: Seen<'_>, patience: Patience) -> Step {
    const TOO_LATE: Step = Step::Failed("Dojo could not be brought to do it in time");
    let again = || {
        if lost.age < patience.give_up {
            Step::AskAgain
        } else {
            TOO_LATE
        }
    };
    let settled = lost.since_asked >= patience.settle;
    match (lost.action, seen.status) {
        (Action::Refund(_), _) if lost.age < patience.give_up => Step::AskAgain,
        // How long Dojo remembers the key of a refund is not documented.
        (Action::Receipt(_) | Action::Refund(_), _) => Step::Unconfirmed,
        (_, None) if lost.age < patience.give_up => Step::Wait,
        (_, None) => Step::Unconfirmed,
        (Action::Cancel, Some(Status::Canceled)) | (Action::Reversal, Some(Status::Reversed)) => {
            Step::Succeeded(None)
        }
        (Action::Cancel, Some(Status::Created))
        | (Action::Reversal, Some(Status::Authorized | Status::Captured)) => again(),
        (Action::Cancel, _) => Step::Failed("the customer paid before it could be canceled"),
        (Action::Reversal, _) => Step::Failed("there is nothing to reverse any more"),
        (Action::Amount(NewAmount { amount, .. }), _) if seen.amount == Some(amount.value) => {
            Step::Succeeded(None)
        }
        (Action::TipsAmount(new), _) if seen.tips_amount == Some(new.tips_amount.value) => {
            Step::Succeeded(None)
        }
        (Action::Amount(_) | Action::TipsAmount(_), Some(Status::Created | Status::Authorized)) => {
            if settled {
                again()
            } else {
                Step::Wait
            }
        }
        (Action::Amount(_) | Action::TipsAmount(_), _) => {
            Step::Failed("the payment was settled before it could be changed")
        }
        (Action::Capture(capture), Some(_)) => found_capture(capture, lost, seen, settled),
    }
}

fn found_capture(capture: &NewCapture, lost: Lost<'_>, seen: Seen<'_>, settled: bool) -> Step {
    let Some(before) = lost.captures_before else {
        return Step::NeverAsked;
    };
    let Some(captures) = seen.captures else {
        return if settled {
            Step::Unconfirmed
        } else {
            Step::Wait
        };
    };
    let ours = captures.iter().find(|now| {
        now.id.as_ref().is_some_and(|id| !before.contains(id))
            && Some(now.amount) == capture.amount.map(|amount| amount.value)
            && now.tips_amount.unwrap_or(0) == capture.tips_amount.map_or(0, |tips| tips.value)
    });
    match ours {
        Some(ours) if ours.is_void() => Step::Failed("Dojo tried it, and it was declined"),
        Some(ours) => Step::Succeeded(ours.id.clone()),
        None if settled => Step::Failed("Dojo's answer was lost, and it was not done"),
        None => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
    const PATIENCE: Patience = Patience {
        settle: Duration::from_mins(2),
        give_up: Duration::from_hours(24),
    };

    fn gbp(value: i64) -> Money {
        Money {
            value,
            currency_code: super::super::Currency::Gbp,
        }
    }

    /// A link over 10.00 GBP.
    fn link(status: Status, more: &Value) -> PaymentLink {
        let mut link = json!({
            "id": "plink_01kaz8v4wce7q8m6s5gq9nq2fd", "account": "default", "environment": "sandbox",
            "status": status, "url": null, "paymentIntentId": "pi_1", "amount": gbp(1000), "tipsAmount": null,
            "totalAmount": gbp(1000), "reportedAmount": null, "capturedAmount": 0, "refundedAmount": 0,
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

    fn words(action: &mut Action, link: &PaymentLink, others: Others) -> String {
        match permit(action, link, others, NOW) {
            Err(Objection::NotPossible(words)) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_part_that_was_declined_is_still_left_to_capture() {
        let captures = json!([
            {"id": "c1", "amount": 300, "status": "Successful"},
            {"id": "c2", "amount": 700, "status": "Declined"},
        ]);
        let more = json!({"captures": captures, "captureMode": "Manual"});
        let link = link(Status::Captured, &more);
        assert_eq!(
            permit(&mut capture(700), &link, Others::default(), NOW),
            Ok(())
        );
        assert_eq!(
            words(&mut capture(701), &link, Others::default()),
            "only 7.00 GBP is left to capture"
        );
        assert_eq!(Capture::collected(&link.captures, link.status, 1000), 300);
    }

    #[test]
    fn a_refund_under_way_counts_whether_dojo_shows_it_or_not() {
        let others = Others {
            refunds: 600,
            refund_running: true,
            change_running: false,
        };
        for shown in [0, 400, 600] {
            let more = json!({"capturedAmount": 1000, "refundedAmount": shown});
            let link = link(Status::Captured, &more);
            assert_eq!(permit(&mut refund(400), &link, others, NOW), Ok(()));
            assert_eq!(
                words(&mut refund(401), &link, others),
                "only 4.00 GBP is left to refund"
            );
        }
        // Refunds that were made elsewhere count, too.
        let link = link(
            Status::Captured,
            &json!({"capturedAmount": 1000, "refundedAmount": 900}),
        );
        assert_eq!(
            words(&mut refund(101), &link, others),
            "only 1.00 GBP is left to refund"
        );
    }

    #[test]
    fn a_payment_of_another_day_is_refunded_and_one_of_an_unknown_day_left_to_dojo() {
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
            let permitted = permit(&mut Action::Reversal, &link, Others::default(), NOW);
            assert_eq!(permitted.is_ok(), allowed, "{paid_at}");
        }
    }

    #[test]
    fn what_belongs_to_customers_is_not_shown() {
        let receipt = Action::Receipt(NewReceipt {
            emails: vec!["mari@example.com".to_owned()],
        });
        let refund = Action::Refund(NewRefund {
            notes: Some("Mari called".to_owned()),
            ..NewRefund::default()
        });
        assert!(
            !format!("{receipt:?} {refund:?}")
                .to_lowercase()
                .contains("mari")
        );
    }

    #[test]
    fn an_operation_reads_back_as_it_was_written() {
        let lines = json!({"type": "amount", "request": {"amount": gbp(5), "itemLines": []}});
        for action in [
            json!({"type": "cancel"}),
            json!({"type": "reversal"}),
            json!({"type": "capture", "request": {"amount": gbp(5)}}),
            json!({"type": "refund", "request": {"amount": gbp(5), "notes": "n"}}),
            json!({"type": "receipt", "request": {"emails": ["a@b"]}}),
            lines,
        ] {
            let read: Action = serde_json::from_value(action.clone()).unwrap();
            assert_eq!(json!(read), action);
            assert_eq!(action["type"], read.kind());
        }
    }

    fn lost(action: &Action, since_asked: u64, age: u64) -> Lost<'_> {
        Lost {
            action,
            captures_before: Some(&[]),
            since_asked: Duration::from_secs(since_asked),
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

    #[test]
    fn a_capture_is_known_by_what_was_not_there_before() {
        let before = ["c1".to_owned()];
        let (old, new) = (
            dojos_capture("c1", 5, "Successful"),
            dojos_capture("c2", 5, "Successful"),
        );
        let declined = dojos_capture("c2", 5, "Declined");
        let other = dojos_capture("c2", 6, "Successful");
        let done = Step::Succeeded(Some("c2".to_owned()));
        let action = capture(5);
        for (captures, since_asked, step) in [
            (vec![old.clone()], 119, Step::Wait),
            (
                vec![old.clone()],
                120,
                Step::Failed("Dojo's answer was lost, and it was not done"),
            ),
            (vec![old.clone(), new], 0, done),
            (
                vec![old.clone(), declined],
                0,
                Step::Failed("Dojo tried it, and it was declined"),
            ),
            (vec![old, other], 0, Step::Wait),
        ] {
            let lost = Lost {
                captures_before: Some(&before),
                ..lost(&action, since_asked, 200)
            };
            let seen = Seen {
                status: Some(Status::Captured),
                amount: None,
                tips_amount: None,
                captures: Some(&captures),
            };
            assert_eq!(next_step(lost, seen, PATIENCE), step);
        }
    }

    proptest! {
        #[test]
        fn however_many_refunds_are_asked_for_no_more_is_promised_than_was_captured(
            captured in 1..5_000_i64,
            asked in prop::collection::vec((1..2_000_i64, 0..3_u8), 1..30),
        ) {
            let (mut promised, mut shown) = (0, 0);
            for (value, behind) in asked {
                // Dojo shows none, some or all of what is promised.
                shown = (promised * i64::from(behind) / 2).max(shown);
                let more = json!({"capturedAmount": captured, "refundedAmount": shown});
                let others = Others { refunds: promised, refund_running: true, change_running: false };
                let mut action = refund(value);
                if permit(&mut action, &link(Status::Captured, &more), others, NOW).is_ok() {
                    promised += action.amount().unwrap().value;
                }
                prop_assert!(promised <= captured);
            }
        }

        #[test]
        fn what_cannot_be_repeated_is_never_asked_for_again(
            status in any_status(), since_asked in 0..200_000_u64, age in 0..200_000_u64, told: bool,
        ) {
            let captures = [dojos_capture("c", 6, "Successful")];
            let seen = Seen {
                status,
                amount: Some(5),
                tips_amount: None,
                captures: told.then_some(&captures[..]),
            };
            let receipt = Action::Receipt(NewReceipt { emails: Vec::new() });
            for action in [capture(5), receipt] {
                let step = next_step(lost(&action, since_asked, age), seen, PATIENCE);
                prop_assert_ne!(step, Step::AskAgain);
            }
        }

        #[test]
        fn a_refund_is_never_judged_by_the_state_alone(status in any_status(), age in 0..200_000_u64) {
            let seen = Seen { status, amount: Some(5), tips_amount: None, captures: None };
            let action = refund(5);
            let step = next_step(lost(&action, age, age), seen, PATIENCE);
            prop_assert!(matches!(step, Step::AskAgain | Step::Unconfirmed), "{:?}", step);
        }

        #[test]
        fn a_change_of_amount_is_not_asked_for_again_while_the_first_may_arrive(since_asked in 0..120_u64) {
            let seen = Seen {
                status: Some(Status::Created),
                amount: Some(5),
                tips_amount: None,
                captures: None,
            };
            let action = Action::Amount(NewAmount { amount: gbp(6), item_lines: None, tax_lines: None });
            prop_assert_eq!(next_step(lost(&action, since_asked, 200), seen, PATIENCE), Step::Wait);
        }
    }
}
