//! A link's timeline: each change stands in it once, with its cause.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Status;

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
    /// The link's status after; the same where the entry changed nothing.
    pub status_after: Status,
    /// What caused it.
    pub cause: Cause,
    /// More about it; what is in it depends on `type`.
    pub detail: Option<Value>,
    /// When it was recorded.
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
}

/// What a timeline entry tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The link was asked for and saved.
    Requested,
    /// Dojo confirmed the payment intent.
    #[serde(alias = "confirmed")]
    Created,
    /// The link came to nothing; `detail` is the failure.
    Failed,
    /// Dojo's answer was lost: whether there is a payment intent is not known.
    #[serde(alias = "unanswered")]
    ResponseLost,
    /// A webhook arrived; `detail.verdict` says what it meant: `applied`, `unchanged` (the link has that status already),
    /// `stale`, `contradictory`, `unknownStatus`, or `unknownEvent` (not an event that reports a payment intent's status).
    Webhook,
    /// Dojo was asked and answered something new; `detail.changed` says what.
    #[serde(alias = "refreshed")]
    Reconciled,
    /// Dojo's answer is older than an earlier one, or its status comes before what a webhook reported (`detail.reason`:
    /// `older`, `behind`). Dojo is asked again before it is believed.
    #[serde(alias = "disputed")]
    ConflictingResponse,
    /// Dojo reports another amount than was asked for.
    AmountMismatch,
    /// The first try had led to nothing, so Dojo is asked to create the intent again.
    #[serde(alias = "askedAgain")]
    CreationRetried,
    /// There is a second intent for the link; it is to be canceled.
    SurplusFound,
    /// The second intent is canceled, so nobody can pay it.
    SurplusCanceled,
    /// The second intent cannot be canceled any more: somebody paid it. A person has to look.
    SurplusPaid,
    /// An operation on the payment was asked for; `detail` says which.
    OperationRequested,
    /// Dojo has done it.
    OperationSucceeded,
    /// It was not done; `detail.failure` says why.
    OperationFailed,
    /// Dojo's answer was lost: whether it was done is not known yet.
    #[serde(alias = "operationUnanswered")]
    OperationResponseLost,
    /// Dojo's answer was lost, and nothing at Dojo tells whether it was done. A person has to look.
    OperationUnconfirmed,
}

impl Kind {
    /// [`Self::CreationRetried`] in the database: by its name, and by the one that earlier versions wrote.
    pub const CREATION_RETRIED: [&str; 2] = ["creationRetried", "askedAgain"];

    /// The word for it in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Created => "created",
            Self::Failed => "failed",
            Self::ResponseLost => "responseLost",
            Self::Webhook => "webhook",
            Self::Reconciled => "reconciled",
            Self::ConflictingResponse => "conflictingResponse",
            Self::AmountMismatch => "amountMismatch",
            Self::CreationRetried => "creationRetried",
            Self::SurplusFound => "surplusFound",
            Self::SurplusCanceled => "surplusCanceled",
            Self::SurplusPaid => "surplusPaid",
            Self::OperationRequested => "operationRequested",
            Self::OperationSucceeded => "operationSucceeded",
            Self::OperationFailed => "operationFailed",
            Self::OperationResponseLost => "operationResponseLost",
            Self::OperationUnconfirmed => "operationUnconfirmed",
        }
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
        // Timelines that are stored, and the version before clients, have it under this name.
        #[serde(alias = "apiKey")]
        client: String,
        /// The request's id, as in `x-request-id`.
        request_id: String,
    },
    /// A webhook of Dojo's.
    #[serde(rename_all = "camelCase")]
    Webhook {
        /// The event's id at Dojo.
        event_id: String,
    },
    /// The search for what a lost answer had made.
    Recovery,
    /// A look at Dojo that was due.
    #[serde(alias = "refresh")]
    Reconciliation,
    /// A person who found out what nobody else could tell, and settled it by command.
    Operator,
}
