//! A link's timeline, which records each change once, with its cause.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    Channel, Failure, MessageId, Money, OperationId, PaymentLinkId, Purpose, ReportedAmount,
    Status, operation::ActionKind,
};

/// One entry of a link's timeline.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The entry's id. Later entries have greater ids.
    #[schema(example = "1042")]
    pub id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The link's status before.
    pub status_before: Option<Status>,
    /// The link's status after; the same if it didn't change.
    pub status_after: Status,
    /// What caused it.
    pub cause: Cause,
    /// More about it. Its members depend on `type`: each of the types in this module is the detail of one or more of them.
    pub detail: Option<Value>,
    /// When it was recorded.
    #[serde(with = "super::timestamp")]
    pub occurred_at: OffsetDateTime,
}

/// Declares [`Kind`] with each kind's word, so that a kind is spelled in one place.
macro_rules! kinds {
    ($($(#[doc = $about:literal])+ $(#[serde($serde:meta)])? $kind:ident = $word:tt,)*) => {
        /// What a timeline entry records.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub enum Kind {
            $($(#[doc = $about])+ $(#[serde($serde)])? #[serde(rename = $word)] $kind,)*
        }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// What the kind means, for the OpenAPI document.
            #[must_use]
            pub fn about(self) -> String {
                let lines: &[&str] = match self {
                    $(Self::$kind => &[$($about),+],)*
                };
                lines.concat().trim().to_owned()
            }

            /// The kind's word in JSON and in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }
    };
}

// The aliases are words that earlier versions stored.
kinds! {
    /// The link was requested and saved.
    Requested = "requested",
    /// Dojo created the payment intent.
    #[serde(alias = "confirmed")]
    Created = "created",
    /// Nothing was created. `detail` is the failure.
    Failed = "failed",
    /// Dojo's response was lost, so it is not known whether there is a payment intent.
    #[serde(alias = "unanswered")]
    ResponseLost = "responseLost",
    /// A webhook arrived. `detail.verdict` says what it meant.
    Webhook = "webhook",
    /// The intent was read from Dojo and something is new. `detail.changed` says what.
    #[serde(alias = "refreshed")]
    Reconciled = "reconciled",
    /// Dojo's response is older than an earlier one, or its status comes before the one that a webhook reported
    /// (`detail.reason`: `older`, `behind`). The intent is read again before the response is accepted.
    #[serde(alias = "disputed")]
    ConflictingResponse = "conflictingResponse",
    /// Dojo reports an amount other than the requested one.
    AmountMismatch = "amountMismatch",
    /// The first try created nothing, so Dojo is called again to create the intent.
    #[serde(alias = "askedAgain")]
    CreationRetried = "creationRetried",
    /// Dojo doesn't know the link's payment intent. Recorded once, and the intent is read again every few minutes.
    UnknownAtDojo = "unknownAtDojo",
    /// There is a second intent for the link. It will be canceled.
    SurplusFound = "surplusFound",
    /// The second intent is canceled, so nobody can pay it.
    SurplusCanceled = "surplusCanceled",
    /// Somebody paid the second intent, so it can no longer be canceled. A person must refund it.
    SurplusPaid = "surplusPaid",
    /// An operation on the payment was requested. `detail` says which.
    OperationRequested = "operationRequested",
    /// Dojo performed the operation.
    OperationSucceeded = "operationSucceeded",
    /// The operation was not performed. `detail.failure` says why.
    OperationFailed = "operationFailed",
    /// Dojo's response was lost, so it is not known yet whether the operation was performed.
    #[serde(alias = "operationUnanswered")]
    OperationResponseLost = "operationResponseLost",
    /// Dojo's response was lost, and nothing at Dojo shows whether the operation was performed. A person must check.
    OperationUnconfirmed = "operationUnconfirmed",
    /// A link was requested that takes this one's place. `detail.paymentLinkId` is its id.
    RenewalRequested = "renewalRequested",
    /// A message to the customer was requested.
    MessageRequested = "messageRequested",
    /// The mail server has accepted a message.
    MessageSent = "messageSent",
    /// The mail server has refused a message, or could not be reached in time. `detail.reason` says why.
    MessageFailed = "messageFailed",
    /// A message was not sent, because the link could no longer be paid. `detail.reason` says why.
    MessageCanceled = "messageCanceled",
    /// The mail server's response was lost, so it is not known whether it has accepted a message. The message is not sent again
    /// automatically.
    MessageUnknown = "messageUnknown",
    /// The customer was to be reminded, and Dojo has just confirmed that nobody has paid the link.
    ReminderDue = "reminderDue",
    /// The link's personal data was erased.
    Erased = "erased",
}

impl Kind {
    /// [`Self::CreationRetried`] in the database: its word, and the one that earlier versions stored.
    pub const CREATION_RETRIED: [&str; 2] = ["creationRetried", "askedAgain"];
}

/// The detail of an entry of the type `created`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedDetail<'a> {
    /// The intent's id at Dojo.
    pub payment_intent_id: &'a str,
    /// The status that Dojo reported.
    pub reported: &'a str,
}

/// The detail of an entry of the type `responseLost`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseLostDetail<'a> {
    /// How the response was lost, for people to read.
    pub reason: &'a str,
}

/// The detail of an entry of the type `webhook`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookDetail<'a> {
    /// What the webhook meant: `applied`, `unchanged` (the link already has that status), `stale`, `contradictory`,
    /// `unknownStatus`, or `unknownEvent` (not an event that reports a payment intent's status).
    pub verdict: &'a str,
    /// The status that it reported.
    pub reported: Option<&'a str>,
    /// The name of the event.
    pub event: Option<&'a str>,
}

/// The detail of an entry of the type `reconciled`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReconciledDetail {
    /// What changed, by the names of the link's members. Amounts are in minor units, and lists are counted. Two more names:
    /// `confirmedStatus` is the status in the newest response of Dojo's that was accepted, and `reported` is Dojo's word for
    /// a status that this version doesn't know.
    pub changed: BTreeMap<String, Change>,
}

/// A change of one member.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    pub from: Value,
    pub to: Value,
}

/// The detail of an entry of the type `conflictingResponse`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConflictDetail<'a> {
    /// The status that Dojo reported.
    pub reported: &'a str,
    /// `older` (than an earlier response), or `behind` (its status comes before the one that a webhook reported).
    pub reason: &'a str,
}

/// The detail of an entry of the type `amountMismatch`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MismatchDetail<'a> {
    /// The amount that was requested from Dojo.
    pub requested: Money,
    /// The amount that Dojo reports.
    pub reported: Option<&'a ReportedAmount>,
}

/// The detail of an entry about a surplus intent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SurplusDetail<'a> {
    /// The surplus intent's id at Dojo.
    pub payment_intent_id: &'a str,
}

/// The detail of an entry of the type `renewalRequested`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenewalDetail {
    /// The link that takes the place.
    #[schema(value_type = String)]
    pub payment_link_id: PaymentLinkId,
}

/// The detail of an entry about a message. It never contains an address.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageDetail<'a> {
    #[schema(value_type = String)]
    pub message_id: MessageId,
    pub channel: Channel,
    pub purpose: Purpose,
    /// Why the message was not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// The detail of an entry of the type `reminderDue`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReminderDueDetail<'a> {
    /// As in the request for the link.
    pub after: Option<&'a str>,
    /// As in the request for the link.
    pub before_expiry: Option<&'a str>,
    /// Where the customer pays: the link's `shortUrl`, or its `url` if it has none.
    pub url: &'a str,
    /// The email that this service sends. Without it, the reminder is only an event.
    #[schema(value_type = Option<String>)]
    pub message_id: Option<MessageId>,
}

/// The detail of an entry about an operation.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationDetail {
    #[schema(value_type = String)]
    pub operation_id: OperationId,
    pub operation: ActionKind,
    /// The amount that was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
    /// Dojo's id for what it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dojo_id: Option<String>,
    /// Why the operation was not performed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// How the response was lost, for people to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Kind {
    /// The name of the schema of the kind's details. `None` if there are none.
    #[must_use]
    pub fn detail_schema(self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Requested | Self::CreationRetried | Self::UnknownAtDojo | Self::Erased => {
                return None;
            }
            Self::Created => CreatedDetail::name(),
            Self::Failed => Failure::name(),
            Self::ResponseLost => ResponseLostDetail::name(),
            Self::Webhook => WebhookDetail::name(),
            Self::Reconciled => ReconciledDetail::name(),
            Self::ConflictingResponse => ConflictDetail::name(),
            Self::AmountMismatch => MismatchDetail::name(),
            Self::SurplusFound | Self::SurplusCanceled | Self::SurplusPaid => SurplusDetail::name(),
            Self::OperationRequested
            | Self::OperationSucceeded
            | Self::OperationFailed
            | Self::OperationResponseLost
            | Self::OperationUnconfirmed => OperationDetail::name(),
            Self::RenewalRequested => RenewalDetail::name(),
            Self::MessageRequested
            | Self::MessageSent
            | Self::MessageFailed
            | Self::MessageCanceled
            | Self::MessageUnknown => MessageDetail::name(),
            Self::ReminderDue => ReminderDueDetail::name(),
        })
    }
}

/// What caused a timeline entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Cause {
    /// A request to this service.
    #[serde(rename_all = "camelCase")]
    Request {
        /// The name of the client whose API key the request came with.
        // Stored entries from before there were clients have this name.
        #[serde(alias = "apiKey")]
        client: String,
        /// As in `x-request-id`.
        request_id: String,
    },
    /// A webhook from Dojo.
    #[serde(rename_all = "camelCase")]
    Webhook {
        /// The event's id at Dojo.
        event_id: String,
    },
    /// The search for the effect of a call whose response was lost.
    Recovery,
    /// A read of the intent that was due.
    #[serde(alias = "refresh")]
    Reconciliation,
    /// A person, by command: one who checked in Dojo's portal and settled an operation, or who erased a link's personal data.
    Operator,
    /// A time that the request for the link had set.
    Schedule,
    /// The delivery of a message, or an attempt at it.
    Delivery,
    /// A setting that says how long data is kept.
    Retention,
}

impl Cause {
    /// The names of all causes.
    pub const NAMES: [&str; 8] = [
        "request",
        "webhook",
        "recovery",
        "reconciliation",
        "operator",
        "schedule",
        "delivery",
        "retention",
    ];

    /// Its name in JSON and in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Request { .. } => "request",
            Self::Webhook { .. } => "webhook",
            Self::Recovery => "recovery",
            Self::Reconciliation => "reconciliation",
            Self::Operator => "operator",
            Self::Schedule => "schedule",
            Self::Delivery => "delivery",
            Self::Retention => "retention",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cause_is_named_as_in_json() {
        let causes = [
            Cause::Request {
                client: String::new(),
                request_id: String::new(),
            },
            Cause::Webhook {
                event_id: String::new(),
            },
            Cause::Recovery,
            Cause::Reconciliation,
            Cause::Operator,
            Cause::Schedule,
            Cause::Delivery,
            Cause::Retention,
        ];
        assert_eq!(causes.each_ref().map(Cause::name), Cause::NAMES);
        for cause in causes {
            assert_eq!(json!(cause)["type"], cause.name());
        }
    }

    #[test]
    fn every_kind_reads_back_from_its_word() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            let read: Kind = serde_json::from_value(json!(kind.as_str())).unwrap();
            assert_eq!(read, *kind);
        }
    }

    #[test]
    fn words_of_earlier_versions_read_back() {
        for (word, kind) in [
            ("confirmed", Kind::Created),
            ("unanswered", Kind::ResponseLost),
            ("refreshed", Kind::Reconciled),
            ("disputed", Kind::ConflictingResponse),
            ("askedAgain", Kind::CreationRetried),
            ("operationUnanswered", Kind::OperationResponseLost),
        ] {
            let read: Kind = serde_json::from_value(json!(word)).unwrap();
            assert_eq!(read, kind, "{word}");
        }
        for word in Kind::CREATION_RETRIED {
            let read: Kind = serde_json::from_value(json!(word)).unwrap();
            assert_eq!(read, Kind::CreationRetried, "{word}");
        }
    }
}
