use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Currency, Money, PaymentLinkId, Status, Terms};

/// A payment link as this service knows it.
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
    /// Where the link stands.
    pub status: Status,
    /// Whether Dojo's latest answer to this service's own key agrees with `status`. `false` from a webhook that changes
    /// the status until the read that follows it, and while Dojo's answers disagree. Hand over goods only when `status`
    /// is `Captured` **and** this is `true`.
    pub confirmed: bool,
    /// The page on which the customer pays. `null` until Dojo has confirmed the link.
    pub url: Option<String>,
    /// The id of the payment intent at Dojo. `null` until Dojo has confirmed the link.
    #[schema(example = "pi_CggWPWfehUWgVNnDdsdLMQ")]
    pub payment_intent_id: Option<String>,
    /// What the customer pays, without tips, service charge and cashback.
    pub amount: Money,
    /// The tip, on top of `amount`.
    pub tips_amount: Option<Money>,
    /// The whole of it, as Dojo has it. `null` until Dojo has confirmed the link.
    pub total_amount: Option<Money>,
    /// What Dojo reports as `amount`, where it is not the one asked for. Something is wrong then.
    pub reported_amount: Option<ReportedAmount>,
    /// How much was taken from the customer, tips included, in minor units, as Dojo answered it: never on a webhook's word,
    /// and less than `totalAmount` where a `Manual` payment was captured in part. What went back since is not taken off.
    pub captured_amount: i64,
    /// How much went back to the customer, in minor units.
    pub refunded_amount: i64,
    /// The captures of a `Manual` payment, oldest first.
    pub captures: Vec<Capture>,
    /// The payment itself; once it is final.
    pub payment: Option<Payment>,
    /// The customer's tries that were declined or challenged, oldest first.
    pub attempts: Vec<Attempt>,
    /// Why there is nothing to pay, where the status is `Failed`.
    pub failure: Option<Failure>,
    /// The name of the client that asked for the link.
    pub created_by: String,
    /// When the link was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When anything about the link last changed here.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When an answer of Dojo's about this link was last accepted. `null` until one was.
    #[serde(with = "time::serde::rfc3339::option")]
    pub synced_at: Option<OffsetDateTime>,
    /// Everything else that the caller asked for.
    #[serde(flatten)]
    pub terms: Terms,
}

/// An amount that Dojo reports, in whatever currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportedAmount {
    /// Minor units.
    pub value: i64,
    /// ISO 4217 code.
    pub currency_code: String,
}

impl ReportedAmount {
    /// As money of this currency, if it is.
    #[must_use]
    pub fn in_currency(&self, currency: Currency) -> Option<i64> {
        (self.currency_code == currency.code()).then_some(self.value)
    }
}

/// Whether real money moves. Dojo's API key decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Test cards only.
    Sandbox,
    /// Real cards, real money.
    Production,
}

impl Environment {
    /// The word for it in JSON, in the database and in logs.
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

/// A word that is no environment.
#[derive(Debug, thiserror::Error)]
#[error("the environment is neither sandbox nor production")]
pub struct UnknownEnvironment;

/// A final payment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    /// The transaction's id at Dojo.
    pub transaction_id: Option<String>,
    /// When the payment was made, as Dojo writes it.
    pub transaction_date_time: Option<String>,
    /// The bank's authorization code.
    pub auth_code: Option<String>,
    /// The card's number, all but its last digits masked.
    #[schema(example = "52000000****1005")]
    pub card_number: Option<String>,
    /// The card's last four digits.
    pub last4: Option<String>,
    /// The card's scheme.
    #[schema(example = "Mastercard")]
    pub card_type: Option<String>,
    /// Credit, debit, pre-paid or charge.
    pub card_funding_type: Option<String>,
}

/// A part of a `Manual` payment that was collected, or was to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// The capture's id at Dojo.
    pub id: Option<String>,
    /// Minor units, without the tip.
    pub amount: i64,
    /// The tip that was collected with it, in minor units.
    pub tips_amount: Option<i64>,
    /// Dojo's word: `Created`, `Successful`, `Declined` or `Failed`.
    #[schema(example = "Successful")]
    pub status: Option<String>,
    /// When it was, as Dojo writes it.
    pub created_at: Option<String>,
}

impl Capture {
    /// Whether it came to nothing.
    #[must_use]
    pub fn is_void(&self) -> bool {
        matches!(self.status.as_deref(), Some("Declined" | "Failed"))
    }

    /// Whether the money is there. A word that we do not know, or none, is no reason to doubt it: Dojo lists it.
    #[must_use]
    pub fn is_collected(&self) -> bool {
        !self.is_void() && self.status.as_deref() != Some("Created")
    }

    /// How much was taken from the customer: minor units, the tip included. `status` is Dojo's own answer, and `whole` what
    /// an intent without any `captures` has collected, as an `Auto` one does.
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

/// A try to pay that did not go through, or that the bank wanted confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Dojo's word: `Declined`, `AuthChallenged` or `Error`.
    #[schema(example = "Declined")]
    pub event_type: String,
    /// When it was, as Dojo writes it.
    pub transaction_date_time: Option<String>,
}

/// Why a link or an operation came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What went wrong.
    pub reason: FailureKind,
    /// The status that Dojo answered with, where it answered.
    pub status: Option<u16>,
    /// What it means, in words.
    pub detail: String,
    /// Dojo's objections to single fields.
    #[serde(default)]
    pub errors: Vec<Fault>,
}

/// What went wrong with a link or an operation that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// Dojo refused what was asked for.
    Refused,
    /// Dojo refused this service's key.
    KeyRefused,
    /// What answered at Dojo's address is not its API. Nothing was created.
    Misrouted,
    /// Dojo was not reached, or had no time. Nothing was created.
    NotReached,
    /// Dojo's answer was lost, and it is known by now that nothing was created.
    NotCreated,
    /// Dojo's answer to an operation was lost, and it is known by now that it was not done.
    NotDone,
}

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// Where it is: a JSON pointer (RFC 6901) into the body, or a query parameter's name.
    #[schema(example = "/amount/value")]
    pub pointer: String,
    /// What is wrong.
    #[schema(example = "must be at least 1")]
    pub detail: String,
}

impl Fault {
    /// A fault at `pointer`.
    #[must_use]
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }

    /// The JSON pointer to the field `name` of what is at `pointer` (RFC 6901, section 3).
    #[must_use]
    pub fn below(pointer: &str, name: &str) -> String {
        format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
    }
}
