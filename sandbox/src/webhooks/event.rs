//! Events. As at Dojo, an event contains only the intent's id, status and capture mode.

use serde::Serialize;

use crate::account::Account;
use crate::clock::Timestamp;
use crate::ids;
use crate::intents::{CaptureMode, Intent};

const CREATED: &str = "payment_intent.created";
const STATUS_UPDATED: &str = "payment_intent.status_updated";
const SEND_RECEIPT: &str = "payment_intent.send-receipt";

/// The events that an account can subscribe to, unless the control API removes some.
pub(crate) const EVENTS: [&str; 3] = [CREATED, STATUS_UPDATED, SEND_RECEIPT];

/// One event, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) payment_intent_id: String,
    pub(crate) account: Account,
    /// The exact text to send. It is written only once, because its bytes are signed.
    pub(crate) body: String,
}

/// The JSON of an event, with its members in Dojo's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    id: &'a str,
    event: &'a str,
    account_id: &'a Account,
    created_at: Timestamp,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    payment_intent_id: &'a str,
    payment_status: &'a str,
    capture_mode: CaptureMode,
}

impl Event {
    pub(crate) fn created(intent: &Intent, now: Timestamp) -> Self {
        Self::about(intent, CREATED, intent.status.as_str(), now)
    }

    pub(crate) fn status_updated(intent: &Intent, now: Timestamp) -> Self {
        Self::about(intent, STATUS_UPDATED, intent.status.as_str(), now)
    }

    pub(crate) fn send_receipt(intent: &Intent, now: Timestamp) -> Self {
        Self::about(intent, SEND_RECEIPT, intent.status.as_str(), now)
    }

    /// An event with any content, true or not.
    pub(crate) fn forged(
        intent: &Intent,
        name: Option<&str>,
        status: &str,
        now: Timestamp,
    ) -> Self {
        Self::about(intent, name.unwrap_or(STATUS_UPDATED), status, now)
    }

    fn about(intent: &Intent, name: &str, status: &str, now: Timestamp) -> Self {
        let id = ids::prefixed("evt_");
        let body = Body {
            id: &id,
            event: name,
            account_id: &intent.account,
            created_at: now,
            data: Data {
                payment_intent_id: &intent.id,
                payment_status: status,
                capture_mode: intent.capture_mode,
            },
        };
        let body = serde_json::to_string(&body).expect("an event can be serialized");
        Self {
            id,
            name: name.to_owned(),
            payment_intent_id: intent.id.clone(),
            account: intent.account.clone(),
            body,
        }
    }
}
