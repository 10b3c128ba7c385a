use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Currency, Fault, Money, PaymentLinkId, Reminder, SendByEmail, Status, Terms};

/// A payment link.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentLink {
    /// The link's id, a TypeID.
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: PaymentLinkId,
    /// The Dojo account that takes the money, by its name in this service.
    pub account: String,
    /// Whether real money moves.
    pub environment: Environment,
    pub status: Status,
    /// Whether Dojo's latest response to a read with the account's Dojo API key agrees with `status`. After a webhook
    /// changes the status, it is `false` until the next read, and it is `false` while Dojo's responses disagree. Hand
    /// over goods only when `status` is `Captured` **and** this is `true`.
    pub confirmed: bool,
    /// The URL of the page on which the customer pays. `null` until Dojo has confirmed the link.
    pub url: Option<String>,
    /// A short address to give to the customer, if this service has been set up for them (`SHORT_URL_BASE`). It leads to `url`
    /// while the link can be paid, and afterwards to a page that says why it can't. If another link takes this one's place, it
    /// gets the address.
    pub short_url: Option<String>,
    /// The id of the payment intent at Dojo. `null` until Dojo has confirmed the link.
    #[schema(example = "pi_CggWPWfehUWgVNnDdsdLMQ")]
    pub payment_intent_id: Option<String>,
    /// What the customer pays, without tips, service charge and cashback.
    pub amount: Money,
    /// The tip, on top of `amount`.
    pub tips_amount: Option<Money>,
    /// The total, as Dojo reports it. `null` until Dojo has confirmed the link.
    pub total_amount: Option<Money>,
    /// The amount that Dojo reports, if it differs from `amount`, which means that something is wrong.
    pub reported_amount: Option<ReportedAmount>,
    /// How much was captured, including tips. It comes from Dojo's response to a read, never from a webhook, and is less than
    /// `totalAmount` if a `Manual` payment was captured in part. Refunds are not subtracted.
    pub captured_amount: Money,
    /// How much was refunded, as Dojo reports it, whoever refunded it.
    pub refunded_amount: Money,
    /// How much is left to refund: what was captured, less what was refunded, less refunds whose outcome isn't known yet. For
    /// a while after a refund, Dojo's refund total may not include it yet, so a refund of that much may have to wait
    /// (`refundable-amount-unclear`).
    pub refundable_amount: Money,
    /// The captures of a `Manual` payment, oldest first.
    pub captures: Vec<LinkCapture>,
    /// The payment. `null` until it is final.
    pub payment: Option<Payment>,
    /// The customer's attempts that were declined or challenged, oldest first.
    pub attempts: Vec<Attempt>,
    /// Why there is nothing to pay, if the status is `Failed`.
    pub failure: Option<Failure>,
    /// The link whose place this one took.
    #[schema(value_type = Option<String>)]
    pub replaces: Option<PaymentLinkId>,
    /// The link that was requested to take this one's place.
    #[schema(value_type = Option<String>)]
    pub replaced_by: Option<PaymentLinkId>,
    /// The name of the client that requested the link.
    pub created_by: String,
    /// When the link was requested.
    #[serde(with = "super::timestamp")]
    pub created_at: OffsetDateTime,
    /// When anything about the link last changed in this service.
    #[serde(with = "super::timestamp")]
    pub updated_at: OffsetDateTime,
    /// When a response from Dojo about this link was last accepted. `null` until the first one.
    #[serde(default, with = "super::optional_timestamp")]
    pub synced_at: Option<OffsetDateTime>,
    /// When its personal data was erased. `null`: it wasn't.
    #[serde(default, with = "super::optional_timestamp")]
    pub erased_at: Option<OffsetDateTime>,
    /// When the link expires, if nobody has paid it. `null` if Dojo hasn't reported it and the request didn't say.
    #[serde(default, with = "super::optional_timestamp")]
    pub expire_at: Option<OffsetDateTime>,
    /// The email that the link was requested with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<SendByEmail>,
    /// The reminders that the link was requested with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reminders: Option<Vec<Reminder>>,
    /// All other parameters of the request. `expireAt` is above.
    #[serde(flatten)]
    pub terms: Terms,
}

/// An amount that Dojo reports, in any currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportedAmount {
    /// Minor units.
    pub value: i64,
    /// ISO 4217 code.
    pub currency_code: String,
}

impl ReportedAmount {
    /// The value in minor units, if it is in this currency.
    #[must_use]
    pub fn in_currency(&self, currency: Currency) -> Option<i64> {
        (self.currency_code == currency.code()).then_some(self.value)
    }
}

/// Whether real money moves. It depends on Dojo's API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Test cards only.
    Sandbox,
    /// Real cards, real money.
    Production,
}

impl Environment {
    /// The environment's name in JSON, in the database and in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Production => "production",
        }
    }
}

impl FromStr for Environment {
    type Err = UnknownEnvironment;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "sandbox" => Ok(Self::Sandbox),
            "production" => Ok(Self::Production),
            _ => Err(UnknownEnvironment),
        }
    }
}

/// The text is not the name of an environment.
#[derive(Debug, thiserror::Error)]
#[error("the environment is neither sandbox nor production")]
pub struct UnknownEnvironment;

/// A final payment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    /// The transaction's id at Dojo.
    pub transaction_id: Option<String>,
    /// When the payment was made, in Dojo's format.
    pub transaction_date_time: Option<String>,
    /// The bank's authorization code.
    pub auth_code: Option<String>,
    /// The card number, masked except for its first and last digits.
    #[schema(example = "52000000****1005")]
    pub card_number: Option<String>,
    /// The card number's last four digits.
    pub last4: Option<String>,
    /// The card's scheme.
    #[schema(example = "Mastercard")]
    pub card_type: Option<String>,
    /// Credit, debit, prepaid or charge.
    pub card_funding_type: Option<String>,
}

/// A capture of a `Manual` payment, or an attempt at one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Capture)]
pub struct LinkCapture {
    /// The capture's id at Dojo.
    pub id: Option<String>,
    /// How much was captured, without the tip.
    pub amount: Money,
    /// The tip that was captured with it.
    pub tips_amount: Option<Money>,
    /// As Dojo reports it: `Created`, `Successful`, `Declined` or `Failed`.
    #[schema(example = "Successful")]
    pub status: Option<String>,
    /// In Dojo's format.
    pub created_at: Option<String>,
}

/// A capture as Dojo reports it, without a currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// The capture's id at Dojo.
    pub id: Option<String>,
    /// In minor units, without the tip.
    pub amount: i64,
    /// The tip that was captured with it, in minor units.
    pub tips_amount: Option<i64>,
    /// As Dojo reports it: `Created`, `Successful`, `Declined` or `Failed`.
    pub status: Option<String>,
    /// In Dojo's format.
    pub created_at: Option<String>,
}

impl Capture {
    /// The capture as callers see it.
    #[must_use]
    pub fn in_currency(&self, currency_code: Currency) -> LinkCapture {
        let money = |value| Money {
            value,
            currency_code,
        };
        LinkCapture {
            id: self.id.clone(),
            amount: money(self.amount),
            tips_amount: self.tips_amount.map(money),
            status: self.status.clone(),
            created_at: self.created_at.clone(),
        }
    }

    /// Whether the capture failed.
    #[must_use]
    pub fn is_void(&self) -> bool {
        is_void(self.status.as_deref())
    }

    /// Whether the money was collected. A missing or unknown status is no reason to doubt it, because Dojo lists the capture.
    #[must_use]
    pub fn is_collected(&self) -> bool {
        !self.is_void() && self.status.as_deref() != Some("Created")
    }

    /// How much was captured, in minor units, including tips. `status` is the one in Dojo's own response. `whole` is what an
    /// intent without any `captures` has collected, such as an `Auto` one.
    #[must_use]
    pub fn collected(captures: &[Self], status: Status, whole: i64) -> i64 {
        if !matches!(status, Status::Captured | Status::Refunded) {
            return 0;
        }
        if captures.is_empty() {
            return whole;
        }
        captures
            .iter()
            .filter(|capture| capture.is_collected())
            .map(|capture| {
                capture
                    .amount
                    .saturating_add(capture.tips_amount.unwrap_or(0))
            })
            .fold(0, i64::saturating_add)
    }
}

impl LinkCapture {
    /// Whether the capture failed.
    #[must_use]
    pub fn is_void(&self) -> bool {
        is_void(self.status.as_deref())
    }
}

fn is_void(status: Option<&str>) -> bool {
    matches!(status, Some("Declined" | "Failed"))
}

/// An attempt to pay that was declined, failed, or had to be confirmed with the bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// As Dojo reports it: `Declined`, `AuthChallenged` or `Error`.
    #[schema(example = "Declined")]
    pub event_type: String,
    /// In Dojo's format.
    pub transaction_date_time: Option<String>,
}

impl Attempt {
    /// Whether the attempt failed. Otherwise the bank asked the customer to confirm it.
    #[must_use]
    pub fn is_declined(&self) -> bool {
        self.event_type != "AuthChallenged"
    }
}

/// Why a link was not created or an operation was not performed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub reason: FailureKind,
    /// The HTTP status of Dojo's response, if there was one.
    pub status: Option<u16>,
    /// An explanation.
    pub detail: String,
    /// The fields that Dojo rejected.
    #[serde(default)]
    pub errors: Vec<Fault>,
}

/// The reason for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// Dojo rejected the request.
    #[serde(alias = "refused")]
    Rejected,
    /// Dojo rejected this service's API key.
    #[serde(alias = "keyRefused")]
    KeyRejected,
    /// The server at Dojo's address is not Dojo's API. Nothing was created.
    Misrouted,
    /// Dojo was not reached, or was too busy. Nothing was created.
    NotReached,
    /// Dojo's response was lost, and it has turned out that nothing was created.
    NotCreated,
    /// Dojo's response to an operation was lost, and it has turned out that it was not performed.
    NotDone,
}

impl FailureKind {
    /// Whether the same request gets the same outcome for good. Otherwise it may be sent again, and Dojo is called again.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Rejected | Self::NotCreated | Self::NotDone => true,
            Self::KeyRejected | Self::Misrouted | Self::NotReached => false,
        }
    }
}

/// What is known about the outcome of a call to Dojo whose response was lost or is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// How long ago the last call that may have taken effect ended. Zero if it may still be under way.
    pub since_sent: Duration,
    /// How long until the service next looks at Dojo for the outcome.
    pub until_next: Duration,
    /// Whether a response was lost, or the call may simply be under way.
    pub is_lost: bool,
}
