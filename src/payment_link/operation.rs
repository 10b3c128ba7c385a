//! What is done to a payment after its link was made: the operations, what allows them, and what to do when Dojo's
//! answer to one was lost.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    Capture, CaptureMode, Failure, Fault, ItemLine, Money, OperationId, PaymentLink,
    RecoveryLimits, SettlementWindow, Status, TaxLine, parse_time,
    refundable::{RefundBounds, Refunds},
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
    /// The name of the client that asked for it.
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Its refunds. One of which nobody can tell whether it was made counts as made.
    pub refunds: Refunds,
    /// Whether the outcome of a change other than a refund is not known yet.
    pub change_running: bool,
}

/// When a request is weighed, and what it may be weighed against.
#[derive(Debug, Clone, Copy)]
pub struct Weighed {
    /// Now.
    pub at: OffsetDateTime,
    /// A refund may only be weighed against amounts for which Dojo was asked at this time or later. `None`: Dojo
    /// was not asked.
    pub read_since: Option<OffsetDateTime>,
    /// How long Dojo's responses may lag behind.
    pub window: SettlementWindow,
}

/// Why Dojo is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    /// The payment does not allow it; in words, with what would be possible instead.
    NotPossible(String),
    /// The outcome of another operation has to be known first.
    Busy,
    /// Whether that much is left to refund isn't known yet: Dojo's figure may or may not include refunds that are under
    /// way or recent, or Dojo's responses contradict each other.
    Unclear {
        /// When the same request is likely to get a clear response.
        retry_after: Duration,
    },
    /// What was asked for does not fit the payment.
    Invalid(Vec<Fault>),
}

impl Objection {
    /// There is no response from Dojo that a refund may be weighed against.
    pub const STALE: Self = Self::Unclear {
        retry_after: Duration::from_secs(1),
    };

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
    others: &Others,
    weighed: Weighed,
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
        _ => others.change_running || others.refunds.has(OperationStatus::Pending),
    };
    if busy {
        return Err(Objection::Busy);
    }
    match action {
        Action::Cancel => permit_cancel(link),
        Action::Capture(capture) => permit_capture(capture, link),
        Action::Refund(refund) => permit_refund(refund, link, &others.refunds, weighed),
        Action::Reversal => permit_reversal(link, weighed.at),
        Action::Amount(new) => {
            permit_new_amount(link, "customAmountAllowed")?;
            total_fits(link, link.amount, new.amount, "/amount/value")
        }
        Action::TipsAmount(new) => {
            permit_new_amount(link, "tipsAllowed")?;
            let before = link.tips_amount.unwrap_or(Money {
                value: 0,
                ..new.tips_amount
            });
            total_fits(link, before, new.tips_amount, "/tipsAmount/value")
        }
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
    // Saturating, for these are Dojo's figures, and nobody checks those.
    let left = total.saturating_sub(tips);
    let left = money(left.saturating_sub(captured(|capture| capture.amount)));
    let left_tips = tips.saturating_sub(captured(|capture| capture.tips_amount.unwrap_or(0)));
    let left_tips = money(left_tips.max(0));
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
                let without = "the link was made without config.payment.tipsAllowed";
                return Err(Objection::because(if left_tips.value == 0 {
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

fn permit_refund(
    refund: &mut NewRefund,
    link: &PaymentLink,
    refunds: &Refunds,
    weighed: Weighed,
) -> Result<(), Objection> {
    // People refund in Dojo's portal, too, and no webhook tells of a part: older figures than the request prove nothing.
    let is_fresh = weighed
        .read_since
        .is_some_and(|since| refunds.read_at.is_some_and(|read_at| read_at >= since));
    if !is_fresh {
        return Err(Objection::STALE);
    }
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
    if link.captured_amount == 0 {
        return Err(Objection::because("nothing of it is collected yet"));
    }
    let (captured, refunded) = (link.captured_amount, link.refunded_amount);
    let RefundBounds { certain, possible } = refunds.bounds(captured, refunded, weighed.window);
    let unclear = |is_clear: &dyn Fn(RefundBounds) -> bool| Objection::Unclear {
        retry_after: refunds.unclear_for(captured, refunded, weighed.window, is_clear),
    };
    if possible <= 0 {
        return Err(Objection::because(
            if refunds.has(OperationStatus::Pending) {
                "nothing is left to refund: other refunds are under way"
            } else if refunds.has(OperationStatus::Unconfirmed) {
                "nothing is left to refund: whether an earlier refund was made is not known, see the link's operations"
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
        Some(amount) if amount.value > possible => Err(Objection::because(format!(
            "only {} is left to refund",
            money(possible)
        ))),
        Some(amount) if amount.value > certain => {
            Err(unclear(&|then| amount.value <= then.certain))
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

/// Whether the link's total keeps the limit of every amount when this part of it changes.
fn total_fits(link: &PaymentLink, from: Money, to: Money, at: &str) -> Result<(), Objection> {
    let total = link.total_amount.unwrap_or(link.amount).value;
    let total = i128::from(total) - i128::from(from.value) + i128::from(to.value);
    if total <= i128::from(Money::MAX) {
        return Ok(());
    }
    let detail = format!("must leave the total at {} at most", Money::MAX);
    Err(Objection::Invalid(vec![Fault::new(at, detail)]))
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
    /// What other refunds through this service have given back, in minor units, as far as every copy of Dojo's data
    /// shows it by now.
    pub other_refunds: i64,
    /// The same, those of just now included.
    pub done_refunds: i64,
    /// What refunds that were requested before this one, and whose outcome is not known either, may give back.
    pub earlier_refunds: i64,
    /// Whether the amount or the tip may have been the one asked for before it was asked for: then it proves nothing.
    pub was_so: bool,
    /// Since Dojo may last have been asked, tries that it provably did nothing about left aside.
    pub since_asked: Duration,
    /// Since it was asked for here.
    pub age: Duration,
}

impl Lost<'_> {
    /// Whether a try that Dojo did something about would have come to light by now. Before that, nothing proves that
    /// it was not done.
    fn is_settled(&self, limits: RecoveryLimits) -> bool {
        limits.window.is_over(self.since_asked)
    }
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
    /// What was taken from the customer, in minor units.
    pub captured_amount: Option<i64>,
    /// What went back to the customer, in minor units.
    pub refunded_amount: Option<i64>,
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
/// What may be repeated: a refund, for Dojo knows it by its key, unless Dojo shows that it was not made and that too little
/// is left for it by now; a cancellation and a reversal, for the second
/// changes nothing; another amount, once the first request cannot arrive any more and undo a later one. A capture is
/// found by its id and never asked for twice. A receipt leaves no trace, and is not sent twice.
#[must_use]
pub fn next_step(lost: Lost<'_>, seen: Seen<'_>, limits: RecoveryLimits) -> Step {
    use Status::{Authorized, Captured, Created};
    const TOO_LATE: Step = Step::Failed("Dojo could not be brought to do it in time");

    if let Some(done) = shows(lost, seen) {
        return done;
    }
    let settled = lost.is_settled(limits);
    let in_time = lost.age < limits.give_up;
    // What is said once it is certain that no try is under way any more.
    let once_settled = |step| if settled { step } else { Step::Wait };
    match (lost.action, seen.status) {
        (Action::Receipt(_), _) => Step::Unconfirmed,
        (Action::Refund(refund), _) if in_time => match fit(refund, lost, seen) {
            Fit::MayBeMade | Fit::Fits => Step::AskAgain,
            Fit::Unclear => Step::Wait,
            Fit::TooMuch => once_settled(Step::Failed(
                "it was not made before other refunds left too little for it",
            )),
        },
        // How long Dojo remembers the key of a refund is not documented.
        (Action::Refund(refund), _) if may_be_given_back(refund, lost, seen) => {
            once_settled(Step::Unconfirmed)
        }
        (Action::Refund(_), _) => once_settled(TOO_LATE),
        (Action::Capture(_), _) if lost.captures_before.is_none() => Step::NeverAsked,
        (Action::Capture(capture), _) => absent_capture(capture, lost, seen, settled),
        (_, None) if in_time => Step::Wait,
        (_, None) => Step::Unconfirmed,
        (Action::Cancel, Some(Created)) | (Action::Reversal, Some(Authorized | Captured))
            if in_time =>
        {
            Step::AskAgain
        }
        (Action::Cancel, Some(Created)) | (Action::Reversal, Some(Authorized | Captured)) => {
            once_settled(TOO_LATE)
        }
        (Action::Cancel, _) => Step::Failed("the customer paid before it could be canceled"),
        // It was paid when it was asked for, so this is from before that: a copy of Dojo's data that lags behind.
        (Action::Reversal, Some(Created)) => {
            once_settled(Step::Failed("Dojo's answer was lost, and it was not done"))
        }
        (Action::Reversal, _) => Step::Failed("there is nothing to reverse any more"),
        (Action::Amount(_) | Action::TipsAmount(_), Some(Created | Authorized)) => {
            once_settled(if in_time { Step::AskAgain } else { TOO_LATE })
        }
        (Action::Amount(_) | Action::TipsAmount(_), _) => {
            Step::Failed("the payment was settled before it could be changed")
        }
    }
}

/// How long to leave Dojo alone before an operation of this age is asked for once more: ever longer, for what was not
/// answered a few times is not answered soon.
#[must_use]
pub fn pause_before_repetition(age: Duration) -> Duration {
    (age / 4).clamp(Duration::from_secs(1), Duration::from_mins(1))
}

/// Decides about an operation whose answer was lost and whose repetition Dojo has refused: a refusal is about the
/// repetition, and says nothing about the first try, which may be why. `Failed` means that the refusal stands.
#[must_use]
pub fn after_refusal(lost: Lost<'_>, seen: Seen<'_>, limits: RecoveryLimits) -> Step {
    if let Some(done) = shows(lost, seen) {
        return done;
    }
    if !lost.is_settled(limits) {
        return Step::Wait;
    }
    match lost.action {
        Action::Refund(refund) if may_be_given_back(refund, lost, seen) => Step::Unconfirmed,
        _ => Step::Failed("Dojo refused it"),
    }
}

/// That it was done, if the intent shows it.
fn shows(lost: Lost<'_>, seen: Seen<'_>) -> Option<Step> {
    let done = match lost.action {
        Action::Cancel => seen.status == Some(Status::Canceled),
        Action::Reversal => seen.status == Some(Status::Reversed),
        Action::Amount(_) | Action::TipsAmount(_) if lost.was_so => false,
        Action::Amount(new) => seen.amount == Some(new.amount.value),
        // Dojo may leave out a tip of nothing.
        Action::TipsAmount(new) => seen.tips_amount.unwrap_or(0) == new.tips_amount.value,
        // Where Dojo was not asked, a capture that is there is another's.
        Action::Capture(_) if lost.captures_before.is_none() => false,
        Action::Capture(capture) => {
            let ours = new_captures(lost, seen)
                .find(|new| new.id.is_some() && !new.is_void() && is_that_of(new, capture));
            return ours.map(|ours| Step::Succeeded(ours.id.clone()));
        }
        Action::Refund(_) | Action::Receipt(_) => false,
    };
    done.then_some(Step::Succeeded(None))
}

/// The captures that were not there before Dojo was asked. One without an id may be among them.
fn new_captures<'a>(lost: Lost<'a>, seen: Seen<'a>) -> impl Iterator<Item = &'a Capture> {
    let before = lost.captures_before.unwrap_or_default();
    let captures = seen.captures.unwrap_or_default().iter();
    captures.filter(|now| now.id.as_ref().is_none_or(|id| !before.contains(id)))
}

/// Whether a capture has the amounts that were asked for. Dojo does not document whether `amount` includes the tip.
fn is_that_of(found: &Capture, asked: &NewCapture) -> bool {
    let amount = asked.amount.map_or(0, |amount| amount.value);
    let tips = asked.tips_amount.map_or(0, |tips| tips.value);
    found.tips_amount.unwrap_or(0) == tips
        && (found.amount == amount || found.amount == amount.saturating_add(tips))
}

/// What to do about a capture that does not show.
fn absent_capture(capture: &NewCapture, lost: Lost<'_>, seen: Seen<'_>, settled: bool) -> Step {
    let is_ours = |new: &Capture| new.id.is_some() && is_that_of(new, capture);
    if new_captures(lost, seen).any(|new| new.is_void() && is_ours(new)) {
        return Step::Failed("Dojo tried it, and it was declined");
    }
    if !settled {
        return Step::Wait;
    }
    // No list is an empty one only where nothing can have been captured. One that cannot be accounted for, such as
    // one without an id or over another amount, may be it.
    let silent = seen.captures.is_none() && seen.status != Some(Status::Authorized);
    if silent || new_captures(lost, seen).any(|new| !new.is_void()) {
        Step::Unconfirmed
    } else {
        Step::Failed("Dojo's answer was lost, and it was not done")
    }
}

/// Whether a lost refund would fit if it were sent again.
enum Fit {
    /// What Dojo shows as refunded may include it. Only its key can tell.
    MayBeMade,
    /// It isn't in what Dojo shows as refunded, and Dojo has enough left for it.
    Fits,
    /// Whether it was made, or whether Dojo has enough left for it, depends on whether the figure includes other recent
    /// refunds of ours.
    Unclear,
    /// It wasn't made, and too little is left for it.
    TooMuch,
}

/// Decides whether a lost refund would fit if it were sent again, together with those that were requested before it.
///
/// The figure may come from a lagging copy, so other refunds of ours may be missing from it if they are more recent than a
/// settlement window. A portal refund that it shows may then pass for one of them. As for a new refund
/// ([`Refunds::bounds`]), the worst case counts.
///
/// A known limit: if others refunded at least as much as this refund, the figure can't prove that ours wasn't made. The
/// refund is then sent again under its key, although Dojo must reject it if it was never made and no longer fits. There is no
/// other way to find out, and no money moves.
fn fit(refund: &NewRefund, lost: Lost<'_>, seen: Seen<'_>) -> Fit {
    let amount = refund.amount.map_or(0, |amount| amount.value);
    let (Some(captured), Some(refunded)) = (seen.captured_amount, refunded_figure(seen)) else {
        return Fit::MayBeMade;
    };
    if refunded >= lost.done_refunds.saturating_add(amount) {
        return Fit::MayBeMade;
    }
    let left = captured
        .saturating_sub(refunded)
        .saturating_sub(lost.earlier_refunds);
    let may_be_missing = lost.done_refunds.saturating_sub(lost.other_refunds);
    if amount <= left.saturating_sub(may_be_missing) {
        Fit::Fits
    } else if amount <= left || may_be_given_back(refund, lost, seen) {
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
fn refunded_figure(seen: Seen<'_>) -> Option<i64> {
    match seen.status? {
        Status::Captured => seen.refunded_amount,
        Status::Refunded => seen.refunded_amount.filter(|refunded| *refunded > 0),
        _ => None,
    }
}

/// Whether what Dojo shows as refunded may include this refund.
fn may_be_given_back(refund: &NewRefund, lost: Lost<'_>, seen: Seen<'_>) -> bool {
    let amount = refund.amount.map_or(0, |amount| amount.value);
    let with_it = lost.other_refunds.saturating_add(amount);
    let refunded = match seen.status {
        Some(Status::Captured | Status::Refunded) => refunded_figure(seen),
        _ => seen.refunded_amount,
    };
    refunded.is_none_or(|refunded| refunded >= with_it)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use time::macros::datetime;

    use super::{super::refundable::OurRefund, *};

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
    const WEIGHED: Weighed = Weighed {
        at: NOW,
        read_since: Some(NOW),
        window: LIMITS.window,
    };
    const LIMITS: RecoveryLimits = RecoveryLimits {
        window: SettlementWindow::new(Duration::from_mins(2)),
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
            "status": status, "confirmed": true, "url": null, "paymentIntentId": "pi_1", "amount": gbp(1000), "tipsAmount": null,
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

    fn words(action: &mut Action, link: &PaymentLink, others: &Others) -> String {
        match permit(action, link, others, WEIGHED) {
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
            permit(&mut capture(700), &link, &Others::default(), WEIGHED),
            Ok(())
        );
        assert_eq!(
            words(&mut capture(701), &link, &Others::default()),
            "only 7.00 GBP is left to capture"
        );
        assert_eq!(Capture::collected(&link.captures, link.status, 1000), 300);
    }

    /// These refunds, and a figure of Dojo's that was read just now.
    fn reading(ours: Vec<OurRefund>) -> Others {
        Others {
            refunds: Refunds {
                ours,
                elsewhere: 0,
                read_at: Some(NOW),
            },
            change_running: false,
        }
    }

    fn our_refund(amount: i64, status: OperationStatus) -> OurRefund {
        OurRefund {
            amount,
            status,
            completed_at: (status != OperationStatus::Pending)
                .then(|| NOW - LIMITS.window.length()),
        }
    }

    #[test]
    fn a_refund_under_way_counts_whether_dojo_shows_it_or_not() {
        let others = reading(vec![our_refund(600, OperationStatus::Pending)]);
        for (shown, certain) in [(0, 400), (300, 100), (600, 0)] {
            let more = json!({"capturedAmount": 1000, "refundedAmount": shown});
            let link = link(Status::Captured, &more);
            assert_eq!(
                words(&mut refund(401), &link, &others),
                "only 4.00 GBP is left to refund"
            );
            // What is shown may be the refund that is under way, or another one that was made elsewhere.
            for amount in [1, 100, 101, 400] {
                let permitted = permit(&mut refund(amount), &link, &others, WEIGHED);
                let clear = amount <= certain;
                assert_eq!(permitted.is_ok(), clear, "{amount} with {shown} shown");
                assert!(clear || matches!(permitted, Err(Objection::Unclear { .. })));
            }
            let mut all = Action::Refund(NewRefund::default());
            let permitted = permit(&mut all, &link, &others, WEIGHED);
            assert_eq!(permitted.is_ok(), certain == 400, "{shown}");
        }
        // Refunds that were made elsewhere count, too.
        let link = link(
            Status::Captured,
            &json!({"capturedAmount": 1000, "refundedAmount": 900}),
        );
        assert_eq!(
            words(&mut refund(101), &link, &others),
            "only 1.00 GBP is left to refund"
        );
    }

    #[test]
    fn a_refund_is_not_weighed_against_figures_that_are_older_than_its_request() {
        let more = json!({"capturedAmount": 1000});
        let link = link(Status::Captured, &more);
        let mut others = reading(Vec::new());
        assert_eq!(permit(&mut refund(1), &link, &others, WEIGHED), Ok(()));
        for read_at in [Some(NOW - Duration::from_micros(1)), None] {
            others.refunds.read_at = read_at;
            let permitted = permit(&mut refund(1), &link, &others, WEIGHED);
            assert_eq!(permitted, Err(Objection::STALE));
        }
        let not_read = Weighed {
            read_since: None,
            ..WEIGHED
        };
        let permitted = permit(&mut refund(1), &link, &reading(Vec::new()), not_read);
        assert_eq!(permitted, Err(Objection::STALE));
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
            let permitted = permit(&mut Action::Reversal, &link, &Others::default(), WEIGHED);
            assert_eq!(permitted.is_ok(), allowed, "{paid_at}");
        }
    }

    #[test]
    fn the_total_keeps_the_limit_of_every_amount() {
        let config =
            json!({"config": {"payment": {"customAmountAllowed": true, "tipsAllowed": true}}});
        let mut link = link(Status::Created, &config);
        link.tips_amount = Some(gbp(100));
        link.total_amount = Some(gbp(1100));
        let permitted =
            |mut action: Action| permit(&mut action, &link, &Others::default(), WEIGHED);
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
            Err(Objection::Invalid(_))
        ));
        assert_eq!(permitted(tips(Money::MAX - 1000)), Ok(()));
        assert!(matches!(
            permitted(tips(Money::MAX - 999)),
            Err(Objection::Invalid(_))
        ));
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
            other_refunds: 0,
            done_refunds: 0,
            earlier_refunds: 0,
            was_so: false,
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

    fn seen(status: Status, captures: Option<&[Capture]>) -> Seen<'_> {
        Seen {
            status: Some(status),
            amount: Some(1000),
            tips_amount: None,
            captured_amount: Some(1000),
            refunded_amount: Some(0),
            captures,
        }
    }

    #[test]
    fn a_capture_is_known_by_what_was_not_there_before() {
        const NOT_DONE: Step = Step::Failed("Dojo's answer was lost, and it was not done");
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
        for (captures, since_asked, step) in [
            (vec![old.clone()], 119, Step::Wait),
            (vec![old.clone()], 120, NOT_DONE),
            (vec![old.clone(), new], 0, done),
            (vec![old.clone(), declined], 0, was_declined),
            // What cannot be accounted for may be it.
            (vec![old.clone(), other.clone()], 119, Step::Wait),
            (vec![old.clone(), other], 120, Step::Unconfirmed),
            (vec![old.clone(), nameless], 120, Step::Unconfirmed),
            (vec![old.clone(), nameless_and_declined], 119, Step::Wait),
        ] {
            let lost = Lost {
                captures_before: Some(&before),
                ..lost(&action, since_asked, 200)
            };
            assert_eq!(
                next_step(lost, seen(Status::Captured, Some(&captures)), LIMITS),
                step
            );
        }
        // A word that we do not know hides nothing, and where Dojo lists nothing the status tells.
        let captures = [old, dojos_capture("c2", 5, "Successful")];
        let unknown = Seen {
            status: None,
            ..seen(Status::Captured, Some(&captures))
        };
        let lost = Lost {
            captures_before: Some(&before),
            ..lost(&action, 0, 200)
        };
        assert_eq!(
            next_step(lost, unknown, LIMITS),
            Step::Succeeded(Some("c2".to_owned()))
        );
        let lost = Lost {
            since_asked: LIMITS.window.length(),
            ..lost
        };
        assert_eq!(
            next_step(lost, seen(Status::Authorized, None), LIMITS),
            NOT_DONE
        );
        assert_eq!(
            next_step(lost, seen(Status::Captured, None), LIMITS),
            Step::Unconfirmed
        );
        let never = Lost {
            captures_before: None,
            ..lost
        };
        assert_eq!(next_step(never, unknown, LIMITS), Step::NeverAsked);
    }

    #[test]
    fn a_tip_is_found_whether_the_amount_includes_it_or_not() {
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
                seen(Status::Captured, Some(&captures)),
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
    fn nothing_is_called_not_done_while_a_try_may_be_under_way() {
        let day = LIMITS.give_up.as_secs();
        let another = Action::Amount(NewAmount {
            amount: gbp(6),
            item_lines: None,
            tax_lines: None,
        });
        let refund = refund(5);
        for (action, status) in [
            (&Action::Cancel, Status::Created),
            (&Action::Reversal, Status::Authorized),
            (&Action::Reversal, Status::Created),
            (&another, Status::Created),
            (&refund, Status::Captured),
            (&capture(5), Status::Authorized),
        ] {
            let fresh = lost(action, 119, day);
            assert_eq!(
                next_step(fresh, seen(status, Some(&[])), LIMITS),
                Step::Wait,
                "{action:?}"
            );
            assert_eq!(
                after_refusal(fresh, seen(status, Some(&[])), LIMITS),
                Step::Wait,
                "{action:?}"
            );
            let settled = lost(action, 120, day);
            let step = next_step(settled, seen(status, Some(&[])), LIMITS);
            assert!(matches!(step, Step::Failed(_)), "{action:?}: {step:?}");
            let step = after_refusal(settled, seen(status, Some(&[])), LIMITS);
            assert!(matches!(step, Step::Failed(_)), "{action:?}: {step:?}");
        }
    }

    #[test]
    fn what_the_state_shows_is_done_whatever_was_answered() {
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
            let seen = seen(status, None);
            assert_eq!(
                next_step(lost, seen, LIMITS),
                Step::Succeeded(None),
                "{action:?}"
            );
            assert_eq!(
                after_refusal(lost, seen, LIMITS),
                Step::Succeeded(None),
                "{action:?}"
            );
        }
        for (action, status, words) in [
            (
                Action::Cancel,
                Status::Captured,
                "the customer paid before it could be canceled",
            ),
            (
                Action::Reversal,
                Status::Refunded,
                "there is nothing to reverse any more",
            ),
            (
                tips(5),
                Status::Captured,
                "the payment was settled before it could be changed",
            ),
        ] {
            let step = next_step(lost(&action, 0, 0), seen(status, None), LIMITS);
            assert_eq!(step, Step::Failed(words));
        }
    }

    #[test]
    fn a_refund_that_went_unanswered_is_not_done_only_if_dojo_shows_that_it_is_not() {
        let day = LIMITS.give_up.as_secs();
        let action = refund(400);
        let lost = Lost {
            other_refunds: 300,
            ..lost(&action, day, day)
        };
        for (status, refunded, known) in [
            (Status::Captured, Some(300), true),
            (Status::Captured, Some(699), true),
            (Status::Captured, Some(700), false),
            (Status::Captured, None, false),
            // A partial refund may make it `Refunded`, too: the amount counts, where there is one.
            (Status::Refunded, Some(699), true),
            (Status::Refunded, Some(700), false),
            (Status::Refunded, Some(0), false),
            (Status::Refunded, None, false),
        ] {
            let seen = Seen {
                refunded_amount: refunded,
                ..seen(status, None)
            };
            for step in [
                next_step(lost, seen, LIMITS),
                after_refusal(lost, seen, LIMITS),
            ] {
                assert_eq!(
                    matches!(step, Step::Failed(_)),
                    known,
                    "{refunded:?}: {step:?}"
                );
                assert_eq!(step == Step::Unconfirmed, !known, "{refunded:?}: {step:?}");
            }
        }
    }

    #[test]
    fn a_lost_refund_is_not_repeated_once_others_have_left_too_little_for_it() {
        const TOO_LITTLE: Step =
            Step::Failed("it was not made before other refunds left too little for it");
        let action = refund(600);
        // Of what was done, `settled` is so old that every copy of Dojo's data shows it.
        for (refunded, settled, done, earlier, since_asked, step) in [
            // The rest is enough.
            (400, 0, 0, 0, 120, Step::AskAgain),
            (400, 400, 400, 0, 120, Step::AskAgain),
            // It is enough, unless a copy that lags shows another one in place of ours of just now.
            (400, 0, 400, 0, 120, Step::Wait),
            (200, 0, 200, 0, 120, Step::AskAgain),
            // Too little, and it is not among what went back.
            (401, 0, 0, 0, 119, Step::Wait),
            (401, 0, 0, 0, 120, TOO_LITTLE),
            // It may be among what went back.
            (600, 0, 0, 0, 120, Step::AskAgain),
            (1000, 0, 400, 0, 120, Step::AskAgain),
            // Not with what went back for another one. A copy that lags may lack that one, so it proves nothing yet.
            (600, 0, 1, 0, 120, Step::Wait),
            // One that was requested earlier goes first.
            (300, 0, 0, 101, 119, Step::Wait),
            (300, 0, 0, 100, 119, Step::AskAgain),
        ] {
            let lost = Lost {
                other_refunds: settled,
                done_refunds: done,
                earlier_refunds: earlier,
                ..lost(&action, since_asked, 200)
            };
            for status in [Status::Captured, Status::Refunded] {
                let seen = Seen {
                    refunded_amount: Some(refunded),
                    ..seen(status, None)
                };
                let found = next_step(lost, seen, LIMITS);
                assert_eq!(
                    found, step,
                    "{status:?}: {refunded} with {done} done and {earlier} earlier"
                );
            }
        }
    }

    #[test]
    fn a_refund_in_doubt_stays_reserved_and_is_said_to_be_in_doubt() {
        let link = link(
            Status::Captured,
            &json!({"capturedAmount": 1000, "refundedAmount": 0}),
        );
        let others = reading(vec![our_refund(1000, OperationStatus::Unconfirmed)]);
        assert!(words(&mut refund(1), &link, &others).contains("is not known"));
        // Dojo knows whether something went back, and reverses only what did not.
        assert_eq!(
            permit(&mut Action::Reversal, &link, &others, WEIGHED),
            Ok(())
        );
        let others = reading(vec![our_refund(1000, OperationStatus::Pending)]);
        assert!(words(&mut refund(1), &link, &others).contains("under way"));
        assert_eq!(
            permit(&mut Action::Reversal, &link, &others, WEIGHED),
            Err(Objection::Busy)
        );
    }

    #[test]
    fn each_refusal_says_what_is_possible_instead() {
        use Status::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        let auto = json!({"captureMode": "Auto", "capturedAmount": 1000});
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
        let reserved = json!({"capturedAmount": 1000, "refundedAmount": 1});
        let tipped = Action::Capture(NewCapture {
            amount: Some(gbp(1)),
            tips_amount: Some(gbp(2)),
        });
        let with_tip =
            json!({"captureMode": "Manual", "tipsAmount": gbp(1), "totalAmount": gbp(1001)});
        for (mut action, status, more, says) in [
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
                "canceled unpaid: make a new link",
            ),
            (
                tipped,
                Authorized,
                &with_tip,
                "only 0.01 GBP of the tip is left to capture, and the link was made without config.payment.tipsAllowed",
            ),
            (
                Action::Capture(NewCapture {
                    amount: Some(gbp(1)),
                    tips_amount: Some(gbp(2)),
                }),
                Authorized,
                &manual,
                "the link was made without config.payment.tipsAllowed: capture it without a tipsAmount",
            ),
            (
                refund(1),
                Canceled,
                &auto,
                "canceled unpaid: nothing was taken",
            ),
            (
                refund(1),
                Captured,
                &manual,
                "nothing of it is collected yet",
            ),
            (
                Action::Reversal,
                Canceled,
                &auto,
                "canceled unpaid: nothing was taken",
            ),
            (Action::Reversal, Refunded, &auto, "already refunded"),
            (
                Action::Reversal,
                Captured,
                &reserved,
                "a part of it is refunded: refund the rest",
            ),
            (
                tip(),
                Authorized,
                &manual,
                "the link was made without config.payment.tipsAllowed: reverse it and make a new link",
            ),
            (tip(), Refunded, &manual, "already refunded"),
            (tip(), Canceled, &manual, "canceled unpaid: make a new link"),
            (
                receipt(),
                Canceled,
                &auto,
                "canceled unpaid, so there is no receipt",
            ),
        ] {
            let said = words(&mut action, &link(status, more), &reading(Vec::new()));
            assert_eq!(said, says, "{action:?} of {status:?}");
        }
    }

    proptest! {
        #[test]
        fn what_cannot_be_repeated_is_never_asked_for_again(
            status in any_status(), since_asked in 0..200_000_u64, age in 0..200_000_u64, told: bool,
        ) {
            let captures = [dojos_capture("c", 6, "Successful")];
            let seen = Seen {
                status,
                amount: Some(5),
                tips_amount: None,
                captured_amount: Some(5),
                refunded_amount: Some(0),
                captures: told.then_some(&captures[..]),
            };
            let receipt = Action::Receipt(NewReceipt { emails: Vec::new() });
            for action in [capture(5), receipt] {
                let step = next_step(lost(&action, since_asked, age), seen, LIMITS);
                prop_assert_ne!(step, Step::AskAgain);
            }
        }

        #[test]
        fn while_there_is_time_a_refund_that_fits_or_may_be_made_is_judged_by_its_own_answer_alone(
            status in any_status(), age in 0..86_400_u64, refunded in prop::option::of(0..1000_i64), amount in 1..1000_i64,
        ) {
            let seen = Seen { status, refunded_amount: refunded, ..seen(Status::Captured, None) };
            let action = refund(amount);
            let step = next_step(lost(&action, age, age), seen, LIMITS);
            let fits_not = refunded.is_some_and(|refunded| refunded < amount && 1000 - refunded < amount);
            let is_known = match status {
                Some(Status::Captured) => true,
                Some(Status::Refunded) => refunded.is_some_and(|refunded| refunded > 0),
                _ => false,
            };
            if !is_known || !fits_not {
                prop_assert_eq!(step, Step::AskAgain);
            } else if age < LIMITS.window.length().as_secs() {
                prop_assert_eq!(step, Step::Wait);
            } else {
                prop_assert!(matches!(step, Step::Failed(_)));
            }
        }

        #[test]
        fn the_older_a_question_the_longer_it_rests(age in 0..200_000_u64, more in 0..200_000_u64) {
            let (now, later) = (Duration::from_secs(age), Duration::from_secs(age + more));
            prop_assert!(pause_before_repetition(now) >= Duration::from_secs(1));
            prop_assert!(pause_before_repetition(later) >= pause_before_repetition(now));
            prop_assert!(pause_before_repetition(later) <= Duration::from_mins(1));
        }

        #[test]
        fn a_change_of_amount_is_not_asked_for_again_while_the_first_may_arrive(since_asked in 0..120_u64) {
            let seen = Seen {
                status: Some(Status::Created),
                amount: Some(5),
                tips_amount: None,
                captured_amount: Some(5),
                refunded_amount: Some(0),
                captures: None,
            };
            let action = Action::Amount(NewAmount { amount: gbp(6), item_lines: None, tax_lines: None });
            prop_assert_eq!(next_step(lost(&action, since_asked, 200), seen, LIMITS), Step::Wait);
        }
    }
}
