//! Operations: what can be done to a payment after its link was created.
//!
//! [`permission`] has the rules that allow them, [`recovery`] what to do when Dojo's response to one was lost.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Failure, ItemLine, Money, OperationId, PaymentLinkId, TaxLine};

mod body;
mod captured;
pub mod permission;
pub mod recovery;

pub use body::broken_rules;
pub use captured::{OurCapture, captured_and_under_way};

/// What an operation does.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "type", content = "request")]
pub enum Action {
    /// Cancels a link that nobody has paid.
    Cancel,
    /// Captures an authorized payment, or a part of it.
    Capture(NewCapture),
    /// Refunds a captured payment, or a part of it.
    Refund(NewRefund),
    /// Reverses an authorization, or an `Auto` payment of the same day; always in full.
    Reversal,
    /// Changes the amount before it is captured.
    Amount(NewAmount),
    /// Changes the tip before it is captured.
    TipsAmount(NewTipsAmount),
    /// Sends a receipt by email.
    Receipt(NewReceipt),
}

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ActionKind {
    Cancel,
    Capture,
    Refund,
    Reversal,
    Amount,
    TipsAmount,
    Receipt,
}

impl ActionKind {
    pub const ALL: [Self; 7] = [
        Self::Cancel,
        Self::Capture,
        Self::Refund,
        Self::Reversal,
        Self::Amount,
        Self::TipsAmount,
        Self::Receipt,
    ];

    /// Its name in JSON, in the database, in logs and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Reversal => "reversal",
            Self::Amount => "amount",
            Self::TipsAmount => "tipsAmount",
            Self::Receipt => "receipt",
        }
    }
}

/// How much of an authorized payment to capture.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewCapture {
    /// How much to capture, without the tip. At least 1. Omit it to capture all that is left, including the rest of the
    /// tip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
    /// The tip to capture with it. Requires `amount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tips_amount: Option<Money>,
}

/// How much to refund, and why.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewRefund {
    /// How much to refund. At least 1. Omit it to refund all that is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
    /// The reason for the refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024, example = "Returned goods")]
    pub refund_reason: Option<String>,
    /// More details.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096)]
    pub notes: Option<String>,
    /// The id of the transaction at Dojo to refund, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub previous_transaction_id: Option<String>,
}

impl fmt::Debug for NewRefund {
    /// Shows the amount only. Reasons and notes may mention customers, whose data must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewRefund({:?}, ..)", self.amount)
    }
}

/// The new amount of a payment that isn't captured yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewAmount {
    /// The amount without tips, service charge and cashback. At least 1.
    pub amount: Money,
    /// What the customer buys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_lines: Option<Vec<ItemLine>>,
    /// The taxes on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tax_lines: Option<Vec<TaxLine>>,
}

/// The new tip of a payment that isn't captured yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewTipsAmount {
    /// The tip. Not negative.
    pub tips_amount: Money,
}

/// Who receives a receipt.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewReceipt {
    /// The recipients' email addresses, 1 to 20. Once the link's personal data was erased, only `erased`.
    #[schema(min_items = 1, max_items = 20)]
    pub emails: Vec<String>,
}

impl fmt::Debug for NewReceipt {
    /// Shows no address: customers' data must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewReceipt({} addresses)", self.emails.len())
    }
}

impl Action {
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Cancel => ActionKind::Cancel,
            Self::Capture(_) => ActionKind::Capture,
            Self::Refund(_) => ActionKind::Refund,
            Self::Reversal => ActionKind::Reversal,
            Self::Amount(_) => ActionKind::Amount,
            Self::TipsAmount(_) => ActionKind::TipsAmount,
            Self::Receipt(_) => ActionKind::Receipt,
        }
    }

    /// The money that it moves or sets. `None` if there is none, or if it isn't known yet how much is left.
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

    /// The money that it captures, including the tip, or refunds. `None` if it does neither, or if it isn't known yet how much is
    /// left.
    #[must_use]
    pub fn moved(&self) -> Option<Money> {
        match self {
            Self::Capture(capture) => {
                let tips = capture.tips_amount.map_or(0, |tips| tips.value);
                capture.amount.map(|amount| Money {
                    value: amount.value.saturating_add(tips),
                    ..amount
                })
            }
            Self::Refund(refund) => refund.amount,
            _ => None,
        }
    }

    /// Whether it is a refund. Refunds are the only operations whose repetitions Dojo recognizes by a key, and the
    /// only ones that may be in progress several at a time.
    #[must_use]
    pub fn is_refund(&self) -> bool {
        matches!(self, Self::Refund(_))
    }
}

/// An operation that was requested through this service.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// The operation's id, `op_…`.
    #[schema(value_type = String, example = "op_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: OperationId,
    /// The link that it operates on.
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub payment_link_id: PaymentLinkId,
    /// The account of that link.
    pub account: String,
    /// Where the operation stands.
    pub status: OperationStatus,
    /// Dojo's id for the capture, the refund or the reversal.
    pub dojo_id: Option<String>,
    /// Why the operation failed, if its status is `Failed`.
    pub failure: Option<Failure>,
    /// The name of the client that requested the operation.
    pub created_by: String,
    /// When the operation was requested.
    #[serde(with = "super::timestamp")]
    pub created_at: OffsetDateTime,
    /// When its outcome became known. `null` until then.
    #[serde(default, with = "super::optional_timestamp")]
    pub completed_at: Option<OffsetDateTime>,
    /// What was requested.
    #[serde(flatten)]
    pub action: Action,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum OperationStatus {
    /// Dojo is performing it, or Dojo's response was lost and the outcome isn't known yet.
    Pending,
    /// Dojo performed it.
    Succeeded,
    /// It was not performed.
    Failed,
    /// Dojo's response was lost, and the outcome can't be determined automatically. A person must check the payment.
    Unconfirmed,
}

impl OperationStatus {
    pub const ALL: [Self; 4] = [
        Self::Pending,
        Self::Succeeded,
        Self::Failed,
        Self::Unconfirmed,
    ];

    /// Its name in JSON and in the database.
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

impl FromStr for OperationStatus {
    type Err = UnknownOperationStatus;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == word)
            .ok_or(UnknownOperationStatus)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown status of an operation")]
pub struct UnknownOperationStatus;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Currency, *};

    #[test]
    fn debug_output_shows_no_customer_data() {
        let receipt = Action::Receipt(NewReceipt {
            emails: vec!["mari@example.com".to_owned()],
        });
        let refund = Action::Refund(NewRefund {
            notes: Some("Mari called".to_owned()),
            ..NewRefund::default()
        });
        let shown = format!("{receipt:?} {refund:?}").to_lowercase();
        assert!(!shown.contains("mari"), "{shown}");
    }

    #[test]
    fn an_action_is_read_back_from_json_unchanged() {
        let amount = Money {
            value: 5,
            currency_code: Currency::Gbp,
        };
        for action in [
            json!({"type": "cancel"}),
            json!({"type": "reversal"}),
            json!({"type": "capture", "request": {"amount": amount}}),
            json!({"type": "refund", "request": {"amount": amount, "notes": "n"}}),
            json!({"type": "receipt", "request": {"emails": ["a@b"]}}),
            json!({"type": "amount", "request": {"amount": amount, "itemLines": []}}),
            json!({"type": "tipsAmount", "request": {"tipsAmount": amount}}),
        ] {
            let read: Action = serde_json::from_value(action.clone()).unwrap();
            assert_eq!(json!(read), action);
            assert_eq!(action["type"], read.kind().as_str());
        }
    }
}
