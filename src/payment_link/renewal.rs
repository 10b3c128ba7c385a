//! Renewing a link that can no longer be paid: a link with the same terms takes its place.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{NewPaymentLink, PaymentLink, PaymentLinkId, Reminder, SendByEmail, Status, Terms};

/// What is new about the link that takes the place of another.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Renewal {
    /// When the new link expires, if nobody pays it. Must be in the future. Default: 30 days after its creation.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub expire_at: Option<OffsetDateTime>,
    /// As in a request for a new link. The old link's `send` doesn't count, so that no customer gets an email that nobody
    /// asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub send: Option<SendByEmail>,
    /// As in a request for a new link. The old link's reminders don't count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 10, nullable = false)]
    pub reminders: Option<Vec<Reminder>>,
}

/// Why a link can't be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRenewable {
    #[error("the link was not renewed, because it can still be paid: cancel it first")]
    StillPayable,
    #[error(
        "the link was not renewed, because its payment is authorized: capture or reverse it first"
    )]
    Authorized,
    #[error("the link was not renewed, because it has been paid")]
    Paid,
    #[error("the link was not renewed, because it was never created: request a new one")]
    NeverCreated,
    #[error("the link was not renewed, because its personal data was erased: request a new one")]
    Erased,
    /// Dojo's response doesn't show the status that the link has here.
    #[error(
        "the link was not renewed, because Dojo has not confirmed yet that it can no longer be paid: send the same request \
         again after Retry-After"
    )]
    NotConfirmed,
    #[error(
        "another request is renewing the link: read {0}, or send the same request again after Retry-After"
    )]
    BeingRenewed(PaymentLinkId),
    #[error("the link has been renewed already: {0} has taken its place")]
    Renewed(PaymentLinkId),
}

impl PaymentLink {
    /// Checks whether nobody can pay the link any more. `confirmed` must be that of a read that has just been made.
    pub fn check_renewable(&self) -> Result<(), NotRenewable> {
        match self.status {
            // The new link would silently lack what was erased.
            _ if self.erased_at.is_some() => Err(NotRenewable::Erased),
            Status::Failed => Err(NotRenewable::NeverCreated),
            Status::Pending => Err(NotRenewable::NotConfirmed),
            _ if !self.confirmed => Err(NotRenewable::NotConfirmed),
            Status::Canceled | Status::Reversed => Ok(()),
            // Even if its time is over: only Dojo can tell that nobody is paying it at this moment.
            Status::Created => Err(NotRenewable::StillPayable),
            Status::Authorized => Err(NotRenewable::Authorized),
            Status::Captured | Status::Refunded => Err(NotRenewable::Paid),
        }
    }

    /// The request for a link with the same terms. Without the customer's secret at Dojo, which is not stored.
    #[must_use]
    pub fn renewed(&self, renewal: &Renewal) -> NewPaymentLink {
        NewPaymentLink {
            account: self.account.clone(),
            amount: self.amount,
            tips_amount: self.tips_amount,
            send: renewal.send.clone(),
            reminders: renewal.reminders.clone(),
            terms: Terms {
                expire_at: renewal.expire_at,
                ..self.terms.clone()
            },
        }
    }
}
