//! The events of the feed, and the rules by which a timeline entry becomes events.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    Attempt, EventId, Failure, Metadata, Money, PaymentLink, PaymentLinkId, Status,
    timeline::{Entry, Kind, OperationDetail, ReconciledDetail, ReminderDueDetail},
};

/// Something that happened to a payment link.
///
/// The amounts and statuses are those of the link after the change that the event is part of, as Dojo's own responses
/// confirmed them. A change may be several events, which then have the same statuses and amounts. An event contains no
/// customer details.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The event's id, a TypeID. It never changes, so a receiver can recognize an event that it has already processed.
    #[schema(value_type = String, example = "evt_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: EventId,
    #[serde(flatten)]
    pub happening: Happening,
    /// When the change was recorded.
    #[serde(with = "super::timestamp")]
    pub occurred_at: OffsetDateTime,
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub payment_link_id: PaymentLinkId,
    /// The Dojo account that takes the money, by its name in this service.
    pub account: String,
    /// The link's reference.
    pub reference: String,
    /// The link's metadata.
    pub metadata: Option<Metadata>,
    /// How often the link's state had changed. Of two events about one link, the one with the greater revision shows the newer
    /// state.
    pub revision: i64,
    /// The confirmed status before the change.
    pub status_before: Status,
    /// The confirmed status after the change.
    pub status: Status,
    pub amount: Money,
    /// The tip, on top of `amount`.
    pub tips_amount: Option<Money>,
    /// The total, as Dojo reports it.
    pub total_amount: Option<Money>,
    /// How much has been captured so far, including tips.
    pub captured_amount: Money,
    /// How much has been refunded so far, whoever refunded it.
    pub refunded_amount: Money,
}

/// Declares [`Happening`] and its types, so that a type is spelled in one place.
macro_rules! happenings {
    ($($(#[doc = $about:literal])+ $name:ident $({ $($(#[$meta:meta])* $field:ident: $type:ty),* $(,)? })? = $word:tt,)*) => {
        /// What happened, by the event's type, with the members that only events of that type have.
        #[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
        #[serde(tag = "type", rename_all_fields = "camelCase")]
        pub enum Happening {
            $($(#[doc = $about])+ #[serde(rename = $word)] $name $({ $($(#[$meta])* $field: $type),* })?,)*
        }

        impl Happening {
            /// Every type of event.
            pub const TYPES: &[&str] = &[$($word),*];

            /// The event's type.
            #[must_use]
            pub fn word(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $word,)*
                }
            }
        }
    };
}

happenings! {
    /// Dojo created the payment intent, so the link can be paid.
    Created = "payment_link.created",
    /// The customer's payment was authorized. It is not captured yet.
    Authorized = "payment_link.authorized",
    /// Money was captured: all of it, or a part of a `Manual` payment.
    Captured {
        /// How much was captured by this change.
        captured: Money,
    } = "payment_link.captured",
    /// Money was refunded: all of it or a part, whoever did it.
    Refunded {
        /// How much was refunded by this change.
        refunded: Money,
    } = "payment_link.refunded",
    /// The payment was reversed.
    Reversed = "payment_link.reversed",
    /// The link was canceled before anybody paid it.
    Canceled = "payment_link.canceled",
    /// Nobody paid the link in time.
    Expired = "payment_link.expired",
    /// Nothing was created at Dojo, so there is no link to pay.
    Failed {
        failure: Failure,
    } = "payment_link.failed",
    /// The customer's attempt to pay failed. The customer may try again.
    AttemptDeclined {
        attempt: Attempt,
    } = "payment_link.attempt_declined",
    /// A person must look at the payment.
    AttentionRequired {
        reason: AttentionReason,
        /// The detail of the timeline entry about it.
        #[schema(value_type = Option<Object>)]
        detail: Option<Value>,
    } = "payment_link.attention_required",
    /// The customer was to be reminded, and Dojo has just confirmed that nobody has paid the link. Subscribe to this to send
    /// reminders of your own, for example by text message.
    ReminderDue {
        #[schema(value_type = ReminderDueDetail<'_>)]
        reminder: Value,
    } = "payment_link.reminder_due",
    /// Dojo performed an operation that was requested through this service.
    OperationSucceeded {
        #[schema(value_type = OperationDetail)]
        operation: Value,
    } = "operation.succeeded",
    /// An operation was not performed.
    OperationFailed {
        #[schema(value_type = OperationDetail)]
        operation: Value,
    } = "operation.failed",
    /// Dojo's response was lost, and nothing at Dojo shows whether the operation was performed. A person must check.
    OperationUnconfirmed {
        #[schema(value_type = OperationDetail)]
        operation: Value,
    } = "operation.unconfirmed",
}

/// Why a person must look at a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AttentionReason {
    /// Dojo reports an amount other than the requested one.
    AmountMismatch,
    /// It is not known whether Dojo performed an operation.
    OperationUnconfirmed,
    /// The customer paid a second payment intent of the same link.
    PaidTwice,
    /// Dojo doesn't know the link's payment intent.
    UnknownAtDojo,
    /// Dojo reports that less was captured or refunded than it reported before.
    AmountDecreased,
}

/// A timeline entry, with its link as it was then.
#[derive(Debug)]
pub struct Change<'a> {
    pub entry: &'a Entry,
    pub link: &'a PaymentLink,
    /// The status in the newest response of Dojo's that was accepted. `None` if there was none.
    pub accepted: Option<Status>,
    /// Dojo's `updatedAt` in that response.
    pub dojo_updated_at: Option<OffsetDateTime>,
    pub revision: i64,
}

impl Kind {
    /// Whether entries of this kind can become events. The trigger in the database selects the same kinds.
    #[must_use]
    pub fn is_published(self) -> bool {
        match self {
            Self::Created
            | Self::Failed
            | Self::Reconciled
            | Self::AmountMismatch
            | Self::UnknownAtDojo
            | Self::SurplusPaid
            | Self::OperationSucceeded
            | Self::OperationFailed
            | Self::OperationUnconfirmed
            | Self::ReminderDue => true,
            Self::Requested
            | Self::ResponseLost
            // It moves the status at once, but only Dojo's response confirms that.
            | Self::Webhook
            | Self::ConflictingResponse
            | Self::CreationRetried
            | Self::SurplusFound
            | Self::SurplusCanceled
            | Self::OperationRequested
            | Self::OperationResponseLost
            // The new link has events of its own.
            | Self::RenewalRequested
            // Only the reader of a link's timeline needs them.
            | Self::MessageRequested
            | Self::MessageSent
            | Self::MessageFailed
            | Self::MessageCanceled
            | Self::MessageUnknown
            // Nothing happened to the payment.
            | Self::Erased => false,
        }
    }
}

impl Change<'_> {
    /// The events that the change consists of, in order. None if nothing happened that readers of the feed need to know.
    ///
    /// # Errors
    ///
    /// If the entry's detail can't be read.
    pub fn events(&self) -> Result<Vec<Event>, serde_json::Error> {
        let Self { entry, link, .. } = self;
        let confirmed = self.accepted.unwrap_or(entry.status_after);
        let mut before = confirmed;
        let mut after = confirmed;
        let happened = match entry.kind {
            Kind::Created => {
                (before, after) = (Status::Pending, entry.status_after);
                vec![Happening::Created]
            }
            Kind::Failed => {
                (before, after) = (Status::Pending, entry.status_after);
                let failure = serde_json::from_value(self.detail())?;
                vec![Happening::Failed { failure }]
            }
            Kind::Reconciled => {
                let detail: ReconciledDetail = serde_json::from_value(self.detail())?;
                before = confirmed_before(&detail, after);
                self.reconciled(&detail, before, after)
            }
            Kind::AmountMismatch => vec![self.attention(AttentionReason::AmountMismatch)],
            Kind::UnknownAtDojo => vec![self.attention(AttentionReason::UnknownAtDojo)],
            Kind::SurplusPaid => vec![self.attention(AttentionReason::PaidTwice)],
            Kind::OperationSucceeded => vec![Happening::OperationSucceeded {
                operation: self.detail(),
            }],
            Kind::OperationFailed => vec![Happening::OperationFailed {
                operation: self.detail(),
            }],
            Kind::OperationUnconfirmed => vec![
                Happening::OperationUnconfirmed {
                    operation: self.detail(),
                },
                self.attention(AttentionReason::OperationUnconfirmed),
            ],
            Kind::ReminderDue => vec![Happening::ReminderDue {
                reminder: self.detail(),
            }],
            _ => Vec::new(),
        };
        let event = |happening| Event {
            id: EventId::new(),
            happening,
            occurred_at: entry.occurred_at,
            payment_link_id: link.id,
            account: link.account.clone(),
            reference: link.terms.reference.clone(),
            metadata: link.terms.metadata.clone(),
            revision: self.revision,
            status_before: before,
            status: after,
            amount: link.amount,
            tips_amount: link.tips_amount,
            total_amount: link.total_amount,
            captured_amount: link.captured_amount,
            refunded_amount: link.refunded_amount,
        };
        Ok(happened.into_iter().map(event).collect())
    }

    fn detail(&self) -> Value {
        self.entry.detail.clone().unwrap_or_default()
    }

    fn attention(&self, reason: AttentionReason) -> Happening {
        Happening::AttentionRequired {
            reason,
            detail: self.entry.detail.clone(),
        }
    }

    /// What Dojo's response showed to have happened since the one before. A webhook may have been missing, so that may be
    /// several things.
    fn reconciled(
        &self,
        detail: &ReconciledDetail,
        before: Status,
        after: Status,
    ) -> Vec<Happening> {
        let link = self.link;
        let increase = |name: &str| {
            let change = detail.changed.get(name)?;
            let (from, to) = (change.from.as_i64()?, change.to.as_i64()?);
            (to > from).then_some((from, to))
        };
        let gained = |name: &str| {
            increase(name).map(|(from, to)| Money {
                value: to - from,
                currency_code: link.amount.currency_code,
            })
        };
        let decreased = |name: &str| {
            let change = detail.changed.get(name);
            change.is_some_and(|change| change.to.as_i64() < change.from.as_i64())
        };
        let reached = |status| after == status && before != status;

        let mut happened = Vec::new();
        if let Some((from, _)) = increase("attempts") {
            let new = link
                .attempts
                .iter()
                .skip(usize::try_from(from).unwrap_or(0));
            let declined = new.filter(|attempt| attempt.is_declined()).cloned();
            happened.extend(declined.map(|attempt| Happening::AttemptDeclined { attempt }));
        }
        if reached(Status::Authorized) {
            happened.push(Happening::Authorized);
        }
        happened.extend(gained("capturedAmount").map(|captured| Happening::Captured { captured }));
        happened.extend(gained("refundedAmount").map(|refunded| Happening::Refunded { refunded }));
        if reached(Status::Reversed) {
            happened.push(Happening::Reversed);
        }
        // A reversal takes back what was captured. Nothing else does.
        if decreased("refundedAmount") || decreased("capturedAmount") && !reached(Status::Reversed)
        {
            happened.push(self.attention(AttentionReason::AmountDecreased));
        }
        if reached(Status::Canceled) {
            happened.push(if self.is_expired() {
                Happening::Expired
            } else {
                Happening::Canceled
            });
        }
        happened
    }

    /// Whether Dojo canceled the intent because nobody paid it in time.
    fn is_expired(&self) -> bool {
        let canceled_at = self.dojo_updated_at.unwrap_or(self.entry.occurred_at);
        self.link
            .expire_at
            .is_some_and(|expire_at| expire_at <= canceled_at)
    }
}

/// The confirmed status before a reconciliation that left it at `after`.
fn confirmed_before(detail: &ReconciledDetail, after: Status) -> Status {
    let from = |name: &str| {
        let change = detail.changed.get(name)?;
        serde_json::from_value(change.from.clone()).ok()
    };
    if let Some(before) = from("confirmedStatus") {
        return before;
    }
    // Without it, the same status was confirmed before, for example when a part of a payment is refunded. Only an entry that an
    // earlier version writes during an upgrade never has it. If such an entry confirms what a webhook had reported, the link was
    // most likely unpaid.
    let began = |name: &str, nothing: Value| {
        let change = detail.changed.get(name);
        change.is_some_and(|change| change.from == nothing)
    };
    let is_paid_now = began("payment", Value::Bool(false)) || began("capturedAmount", 0.into());
    let is_over = matches!(after, Status::Canceled | Status::Reversed);
    if detail.changed.contains_key("confirmed") && (is_paid_now || is_over) {
        return from("status").unwrap_or(Status::Created);
    }
    from("status").unwrap_or(after)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;
    use crate::payment_link::{Currency, timeline::Cause};

    const EXPIRY: OffsetDateTime = datetime!(2026-11-30 12:00 UTC);

    fn link() -> PaymentLink {
        let pounds = |value| json!({"value": value, "currencyCode": "GBP"});
        let link = json!({
            "id": PaymentLinkId::new(), "account": "leeds", "environment": "sandbox", "status": "Captured",
            "confirmed": true, "url": null, "paymentIntentId": "pi_1", "amount": pounds(1000), "tipsAmount": null,
            "totalAmount": pounds(1000), "reportedAmount": null, "capturedAmount": pounds(1000),
            "refundedAmount": pounds(300), "refundableAmount": pounds(700), "captures": [], "payment": null,
            "attempts": [
                {"eventType": "Declined", "transactionDateTime": "1"},
                {"eventType": "AuthChallenged", "transactionDateTime": "2"},
                {"eventType": "Error", "transactionDateTime": "3"},
            ],
            "failure": null, "createdBy": "orders", "createdAt": "2026-11-20T12:00:00Z",
            "updatedAt": "2026-11-20T12:00:00Z", "syncedAt": null, "expireAt": null,
            "reference": "Order 1", "captureMode": "Auto",
        });
        let mut link: PaymentLink = serde_json::from_value(link).unwrap();
        link.expire_at = Some(EXPIRY);
        link
    }

    fn entry(kind: Kind, after: Status, detail: Value) -> Entry {
        Entry {
            id: "1".to_owned(),
            kind,
            status_before: Some(after),
            status_after: after,
            cause: Cause::Reconciliation,
            detail: Some(detail),
            occurred_at: datetime!(2026-11-21 12:00 UTC),
        }
    }

    /// The events of a reconciliation that changed this, and left Dojo's status at `after`.
    fn reconciled(changed: &Value, after: Status, updated_at: OffsetDateTime) -> Vec<Event> {
        let entry = entry(Kind::Reconciled, after, json!({ "changed": changed }));
        let change = Change {
            entry: &entry,
            link: &link(),
            accepted: Some(after),
            dojo_updated_at: Some(updated_at),
            revision: 4,
        };
        change.events().unwrap()
    }

    fn types(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.happening.word()).collect()
    }

    #[test]
    fn one_response_can_report_several_things() {
        let changed = json!({
            "confirmedStatus": {"from": "Created", "to": "Refunded"},
            "capturedAmount": {"from": 0, "to": 1000},
            "refundedAmount": {"from": 0, "to": 300},
            "attempts": {"from": 1, "to": 3},
        });
        let events = reconciled(&changed, Status::Refunded, EXPIRY);
        assert_eq!(
            types(&events),
            [
                "payment_link.attempt_declined",
                "payment_link.captured",
                "payment_link.refunded"
            ]
        );
        let Happening::AttemptDeclined { attempt } = &events[0].happening else {
            panic!("it is the first");
        };
        assert_eq!(attempt.event_type, "Error", "a challenge is no failure");
        let refunded = Money {
            value: 300,
            currency_code: Currency::Gbp,
        };
        assert_eq!(events[2].happening, Happening::Refunded { refunded });
        for event in &events {
            let statuses = (event.status_before, event.status);
            assert_eq!(statuses, (Status::Created, Status::Refunded));
            assert_eq!(event.revision, 4);
        }
    }

    #[test]
    fn a_status_that_only_a_webhook_reported_is_no_event() {
        let changed = json!({
            "status": {"from": "Captured", "to": "Created"},
            "confirmed": {"from": false, "to": true},
        });
        assert_eq!(
            types(&reconciled(&changed, Status::Created, EXPIRY)),
            [""; 0]
        );
    }

    #[test]
    fn a_link_that_dojo_canceled_after_its_expiry_has_expired() {
        let changed = json!({"confirmedStatus": {"from": "Created", "to": "Canceled"}});
        let before = EXPIRY - time::Duration::SECOND;
        for (updated_at, expected) in [
            (EXPIRY, "payment_link.expired"),
            (before, "payment_link.canceled"),
        ] {
            let events = reconciled(&changed, Status::Canceled, updated_at);
            assert_eq!(types(&events), [expected]);
        }
    }

    #[test]
    fn an_authorization_and_its_reversal_are_told() {
        let changed = json!({"confirmedStatus": {"from": "Created", "to": "Authorized"}});
        let events = reconciled(&changed, Status::Authorized, EXPIRY);
        assert_eq!(types(&events), ["payment_link.authorized"]);
        let changed = json!({"confirmedStatus": {"from": "Authorized", "to": "Reversed"}});
        let events = reconciled(&changed, Status::Reversed, EXPIRY);
        assert_eq!(types(&events), ["payment_link.reversed"]);
    }

    #[test]
    fn money_that_disappears_needs_attention() {
        let changed = json!({"refundedAmount": {"from": 300, "to": 0}});
        let events = reconciled(&changed, Status::Captured, EXPIRY);
        assert_eq!(types(&events), ["payment_link.attention_required"]);
        let json = serde_json::to_value(&events[0]).unwrap();
        assert_eq!(json["reason"], "amountDecreased");
        assert_eq!(json["detail"]["changed"], changed);
        let changed = json!({
            "confirmedStatus": {"from": "Captured", "to": "Reversed"},
            "capturedAmount": {"from": 1000, "to": 0},
        });
        let events = reconciled(&changed, Status::Reversed, EXPIRY);
        assert_eq!(types(&events), ["payment_link.reversed"]);
    }

    #[test]
    fn an_entry_of_an_earlier_version_has_the_status_before_too() {
        let changed = json!({
            "confirmed": {"from": false, "to": true},
            "capturedAmount": {"from": 0, "to": 1000},
        });
        let events = reconciled(&changed, Status::Captured, EXPIRY);
        assert_eq!(types(&events), ["payment_link.captured"]);
        assert_eq!(events[0].status_before, Status::Created);
    }

    #[test]
    fn a_part_of_a_refund_changes_no_status() {
        let changed = json!({
            "confirmed": {"from": false, "to": true},
            "refundedAmount": {"from": 0, "to": 300},
        });
        let events = reconciled(&changed, Status::Captured, EXPIRY);
        assert_eq!(types(&events), ["payment_link.refunded"]);
        assert_eq!(events[0].status_before, Status::Captured);
        let changed = json!({
            "confirmed": {"from": false, "to": true},
            "capturedAmount": {"from": 400, "to": 1000},
        });
        let events = reconciled(&changed, Status::Captured, EXPIRY);
        assert_eq!(events[0].status_before, Status::Captured);
    }

    #[test]
    fn an_unconfirmed_operation_needs_attention() {
        let detail = json!({"operationId": "op_1", "operation": "refund"});
        let entry = entry(Kind::OperationUnconfirmed, Status::Captured, detail.clone());
        let change = Change {
            entry: &entry,
            link: &link(),
            accepted: Some(Status::Captured),
            dojo_updated_at: None,
            revision: 5,
        };
        let events = change.events().unwrap();
        let types = types(&events);
        assert_eq!(
            types,
            ["operation.unconfirmed", "payment_link.attention_required"]
        );
        let json = serde_json::to_value(&events[1]).unwrap();
        assert_eq!(json["reason"], "operationUnconfirmed");
        assert_eq!(json["detail"], detail);
    }

    #[test]
    fn every_published_kind_becomes_an_event() {
        for kind in Kind::ALL {
            let detail = match kind {
                Kind::Failed => json!({"reason": "rejected", "status": 400, "detail": "no"}),
                _ => json!({"changed": {"capturedAmount": {"from": 0, "to": 1}}}),
            };
            let entry = entry(*kind, Status::Captured, detail);
            let change = Change {
                entry: &entry,
                link: &link(),
                accepted: Some(Status::Captured),
                dojo_updated_at: None,
                revision: 1,
            };
            let is_told = !change.events().unwrap().is_empty();
            assert_eq!(is_told, kind.is_published(), "{kind:?}");
        }
    }
}
