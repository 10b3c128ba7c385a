//! Erasing personal data: which of it is in what callers send and Dojo responds, what remains, and when a link is ready for it.
//!
//! Works on JSON and not on the types, so that what another version stored remains as it is, except for what is personal.
//! What remains can still be read by every version.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Map, Value, json};

use super::{PaymentLink, Status, timeline::Kind};

/// What replaces a personal text that must not be missing.
pub const ERASED: &str = "erased";

/// The members of a request for a link that are personal, whatever they contain.
pub const PERSONAL_TERMS: [&str; 5] = [
    "customer",
    "billingAddress",
    "shippingDetails",
    "requestSecurity",
    "send",
];

/// The members of a refund that are personal: texts for people, which may name somebody.
const PERSONAL_IN_REFUNDS: [&str; 2] = ["refundReason", "notes"];

/// The keys of the metadata entries that are personal (`PERSONAL_METADATA`). Only the operator knows which are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PersonalMetadata(Arc<BTreeSet<String>>);

impl FromIterator<String> for PersonalMetadata {
    fn from_iter<I: IntoIterator<Item = String>>(keys: I) -> Self {
        Self(Arc::new(keys.into_iter().collect()))
    }
}

impl PersonalMetadata {
    /// The keys of the personal entries.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }

    /// Removes the personal entries, if `object` has metadata.
    fn erase_in(&self, object: &mut Map<String, Value>) {
        if let Some(Value::Object(entries)) = object.get_mut("metadata") {
            entries.retain(|key, _| !self.0.contains(key));
        }
    }
}

/// Erases what is personal in the request for a link, as it is stored.
pub fn erase_request(request: &mut Value, personal: &PersonalMetadata) {
    let Value::Object(request) = request else {
        return;
    };
    for name in PERSONAL_TERMS {
        request.remove(name);
    }
    personal.erase_in(request);
}

/// Erases what is personal in the action of an operation: the recipients of a receipt, and the texts of a refund.
pub fn erase_action(action: &mut Value) {
    let Some(Value::Object(request)) = action.get_mut("request") else {
        return;
    };
    for name in PERSONAL_IN_REFUNDS {
        request.remove(name);
    }
    // A receipt has at least one recipient.
    if let Some(emails) = request.get_mut("emails") {
        *emails = json!([ERASED]);
    }
}

/// Erases what is personal in a failure: Dojo's words, which may quote what it rejected. Its reason and status remain.
pub fn erase_failure(failure: &mut Value) {
    let Value::Object(failure) = failure else {
        return;
    };
    failure.insert("detail".to_owned(), json!(ERASED));
    failure.insert("errors".to_owned(), json!([]));
}

/// Erases what is personal in the detail of a timeline entry, which may be a failure or contain one. How a response was lost may
/// quote a response that was not understood.
pub fn erase_detail(kind: &str, detail: &mut Value) {
    // A word that isn't known is from a later version.
    match serde_json::from_value(json!(kind)).ok() {
        Some(Kind::Failed) => erase_failure(detail),
        Some(Kind::ResponseLost | Kind::OperationResponseLost) => {
            if let Some(reason) = detail.get_mut("reason") {
                *reason = json!(ERASED);
            }
        }
        _ => erase_failure_in(detail),
    }
}

fn erase_failure_in(value: &mut Value) {
    if let Some(failure) = value.get_mut("failure") {
        erase_failure(failure);
    }
}

/// Erases what is personal in an event of the feed.
pub fn erase_event(event: &mut Value, personal: &PersonalMetadata) {
    erase_failure_in(event);
    for name in ["operation", "detail"] {
        if let Some(detail) = event.get_mut(name) {
            erase_failure_in(detail);
        }
    }
    if let Value::Object(event) = event {
        personal.erase_in(event);
    }
}

/// Erases what is personal in a link's row as it waits to become an event.
pub fn erase_row(link: &mut Value, personal: &PersonalMetadata) {
    erase_failure_in(link);
    if let Some(request) = link.get_mut("request") {
        erase_request(request, personal);
    }
}

/// Why a link's personal data can't be erased yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotErasable {
    #[error("it is not known yet whether the link was created")]
    NotCreatedYet,
    #[error("the link can still be paid: cancel it first")]
    StillPayable,
    #[error("the payment is authorized: capture or reverse it first")]
    Authorized,
    #[error("Dojo has not confirmed the link's status yet")]
    NotConfirmed,
    #[error("the outcome of an operation on the payment is not known yet")]
    OperationOpen,
    #[error("a message is being sent")]
    MessageBeingSent,
    #[error("another payment intent of the link may still be paid")]
    SurplusOpen,
    #[error("the link is being renewed")]
    BeingRenewed,
}

impl NotErasable {
    /// Whether the reason goes away without anybody doing anything about it.
    #[must_use]
    pub fn may_pass(self) -> bool {
        !matches!(self, Self::StillPayable | Self::Authorized)
    }
}

impl PaymentLink {
    /// Checks whether nothing about the link is open. What is personal may be needed as long as something is.
    ///
    /// `open` is what is open besides the link's own state. A paid link can still be refunded afterwards: a refund needs nothing
    /// personal.
    pub fn check_erasable(&self, open: &[NotErasable]) -> Result<(), NotErasable> {
        match self.status {
            Status::Pending => return Err(NotErasable::NotCreatedYet),
            Status::Created => return Err(NotErasable::StillPayable),
            Status::Authorized => return Err(NotErasable::Authorized),
            // Nothing at Dojo could confirm it.
            Status::Failed => {}
            _ if !self.confirmed => return Err(NotErasable::NotConfirmed),
            Status::Captured | Status::Refunded | Status::Reversed | Status::Canceled => {}
        }
        open.first().map_or(Ok(()), |why| Err(*why))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::payment_link::{Failure, NewPaymentLink, operation::Action};

    fn personal() -> PersonalMetadata {
        ["name".to_owned()].into_iter().collect()
    }

    #[test]
    fn a_request_keeps_everything_but_what_is_personal() {
        let mut request = json!({
            "account": "default",
            "amount": {"value": 1000, "currencyCode": "GBP"},
            "reference": "Order 1",
            "captureMode": "Auto",
            "customer": {"emailAddress": "ann@example.com"},
            "billingAddress": {"countryCode": "GB"},
            "shippingDetails": {"name": "Ann"},
            "requestSecurity": {"ipAddress": "192.0.2.1"},
            "send": {"email": "ann@example.com"},
            "metadata": {"name": "Ann", "order": "1"},
            "ofALaterVersion": true,
        });
        erase_request(&mut request, &personal());
        let expected = json!({
            "account": "default",
            "amount": {"value": 1000, "currencyCode": "GBP"},
            "reference": "Order 1",
            "captureMode": "Auto",
            "metadata": {"order": "1"},
            "ofALaterVersion": true,
        });
        assert_eq!(request, expected);
        serde_json::from_value::<NewPaymentLink>(request).unwrap();
    }

    #[test]
    fn an_action_and_a_failure_can_still_be_read() {
        for (mut action, expected) in [
            (json!({"type": "cancel"}), json!({"type": "cancel"})),
            (
                json!({"type": "receipt", "request": {"emails": ["ann@example.com", "bob@example.com"]}}),
                json!({"type": "receipt", "request": {"emails": ["erased"]}}),
            ),
            (
                json!({"type": "refund", "request": {"refundReason": "Ann", "notes": "Ann", "previousTransactionId": "t"}}),
                json!({"type": "refund", "request": {"previousTransactionId": "t"}}),
            ),
        ] {
            erase_action(&mut action);
            assert_eq!(action, expected);
            serde_json::from_value::<Action>(action).unwrap();
        }
        let mut failure = json!({
            "reason": "rejected", "status": 422, "detail": "Ann is not valid",
            "errors": [{"pointer": "/customer", "detail": "Ann is not valid"}],
        });
        erase_failure(&mut failure);
        let failure: Failure = serde_json::from_value(failure).unwrap();
        assert_eq!(
            (failure.detail.as_str(), failure.errors, failure.status),
            (ERASED, Vec::new(), Some(422))
        );
    }

    #[test]
    fn failures_are_erased_wherever_they_are() {
        let failure = json!({"reason": "rejected", "status": 422, "detail": "Ann", "errors": []});
        let mut entry = failure.clone();
        erase_detail("failed", &mut entry);
        let mut of_operation = json!({"operationId": "op_1", "failure": failure});
        erase_detail("operationFailed", &mut of_operation);
        // The second is the word of an earlier version.
        for kind in ["responseLost", "operationUnanswered"] {
            let mut lost = json!({"operationId": "op_1", "reason": "unreadable: Ann"});
            erase_detail(kind, &mut lost);
            assert_eq!(lost, json!({"operationId": "op_1", "reason": ERASED}));
        }
        let mut conflict = json!({"reported": "Created", "reason": "behind"});
        erase_detail("conflictingResponse", &mut conflict);
        assert_eq!(conflict["reason"], "behind");
        let mut event = json!({
            "failure": failure, "operation": {"failure": failure}, "detail": {"failure": failure},
            "metadata": {"name": "Ann"},
        });
        erase_event(&mut event, &personal());
        let mut row = json!({"failure": failure, "request": {"customer": "Ann", "metadata": {"name": "Ann"}}});
        erase_row(&mut row, &personal());
        for erased in [entry, of_operation, event, row] {
            assert!(!erased.to_string().contains("Ann"), "{erased}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,8}".prop_map(Value::from),
        ];
        let name = prop_oneof![
            Just("request".to_owned()),
            Just("failure".to_owned()),
            Just("metadata".to_owned()),
            Just("emails".to_owned()),
            "[a-z]{1,8}",
        ];
        leaf.prop_recursive(3, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(name.clone(), inner, 0..4)
                    .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn erasing_twice_is_the_same_as_erasing_once(value in any_json()) {
            let erase: [fn(&mut Value); 5] = [
                |value| erase_request(value, &personal()),
                erase_action,
                |value| erase_detail("operationFailed", value),
                |value| erase_event(value, &personal()),
                |value| erase_row(value, &personal()),
            ];
            for erase in erase {
                let mut once = value.clone();
                erase(&mut once);
                let mut twice = once.clone();
                erase(&mut twice);
                prop_assert_eq!(once, twice);
            }
        }
    }
}
