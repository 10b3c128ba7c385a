//! Examples for the OpenAPI document: a link in several states, its timeline, and a problem of every type.
//!
//! An example that only one route needs is in that route's attributes. This file contains the examples that several routes
//! share. The examples of problems are created by the code that creates the real ones, so they look the same.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    error::Error,
    problem::{NO_DATABASE, Problem, Subject},
    problem_type::ProblemType,
};
use crate::{
    api_key::Scope,
    payment_link::{
        Currency, Failure, FailureKind, Fault, Money, NotRenewable, PaymentLinkId, Progress,
        Unpayable,
        erasure::NotErasable,
        operation::{ActionKind, permission::NotPossible},
    },
    protocol::intake::NotStored,
    store,
};

const LINK_ID: &str = "plink_01m81mqpmrf8384nj77tj0t0e4";
const OPERATION_ID: &str = "op_01m81mzv2jf8x9qk4s7wd3h6rb";
const INTENT_ID: &str = "pi_CggWPWfehUWgVNnDdsdLMQ";
const MESSAGE_ID: &str = "msg_01m81mzv2jf8x9qk4s7wd3h6rb";
const ENDPOINT_ID: &str = "cbe_01m81mzv2jf8x9qk4s7wd3h6rb";
const REQUEST_ID: &str = "01a20e1c-d61f-7542-999a-274a6af083e1";

/// A link that has not been paid yet.
pub(super) fn link() -> Value {
    json!({
        "id": LINK_ID,
        "account": "default",
        "environment": "production",
        "status": "Created",
        "confirmed": true,
        "url": format!("https://pay.dojo.tech/checkout/{INTENT_ID}"),
        "shortUrl": "https://pay.example.com/p/7m3k9x2c5v8b1n4q",
        "paymentIntentId": INTENT_ID,
        "amount": pounds(2450),
        "tipsAmount": null,
        "totalAmount": pounds(2450),
        "reportedAmount": null,
        "capturedAmount": pounds(0),
        "refundedAmount": pounds(0),
        "refundableAmount": pounds(0),
        "captures": [],
        "payment": null,
        "attempts": [],
        "failure": null,
        "replaces": null,
        "replacedBy": null,
        "createdBy": "orders",
        "createdAt": "2026-11-22T12:47:12.538228Z",
        "updatedAt": "2026-11-22T12:47:12.568313Z",
        "syncedAt": "2026-11-22T12:47:12.568313Z",
        "erasedAt": null,
        "reference": "Order 236",
        "captureMode": "Auto",
        "expireAt": "2026-12-22T12:47:12.540000Z",
    })
}

/// The link that took the place of another.
pub(super) fn renewed_link() -> Value {
    with(
        link(),
        json!({
            "replaces": "plink_01kz7q2m4e9xs3v8b1n6c5d0fa",
            "expireAt": "2027-01-31T18:00:00.000000Z",
        }),
    )
}

/// The same link, paid.
pub(super) fn paid_link() -> Value {
    with(
        link(),
        json!({
            "status": "Captured",
            "capturedAmount": pounds(2450),
            "refundableAmount": pounds(2450),
            "payment": {
                "transactionId": "820973c4-c6df-4c91-bb31-f48044b0bcb8",
                "transactionDateTime": "2026-11-22T13:02:41.685Z",
                "authCode": "323241",
                "cardNumber": "52000000****1005",
                "last4": "1005",
                "cardType": "MASTERCARD",
                "cardFundingType": "Debit",
            },
            "updatedAt": "2026-11-22T13:02:42.104378Z",
            "syncedAt": "2026-11-22T13:02:42.104378Z",
        }),
    )
}

/// A paid link whose personal data was erased.
pub(super) fn erased_link() -> Value {
    with(
        paid_link(),
        json!({
            "updatedAt": "2027-11-23T09:30:00.118204Z",
            "erasedAt": "2027-11-23T09:30:00.118204Z",
        }),
    )
}

/// The link after this operation, given by the last part of its path.
fn link_after(operation: &str) -> Option<Value> {
    let manual = json!({"captureMode": "Manual", "autoExpireAction": "Release"});
    let changed = |changes| with(with(link(), manual.clone()), changes);
    let link = match operation {
        "amount" => changed(json!({
            "amount": pounds(1950),
            "totalAmount": pounds(1950),
            "config": {"payment": {"customAmountAllowed": true}},
        })),
        "tips-amount" => changed(json!({
            "tipsAmount": pounds(200),
            "totalAmount": pounds(2650),
            "config": {"payment": {"tipsAllowed": true}},
        })),
        "captures" => with(
            with(paid_link(), manual),
            json!({
                "capturedAmount": pounds(1500),
                "refundableAmount": pounds(1500),
                "captures": [{
                    "id": "16afc7a9-3557-4510-b97f-6df948ab7fed",
                    "amount": pounds(1500),
                    "tipsAmount": null,
                    "status": "Successful",
                    "createdAt": "2026-11-22T13:02:41.685Z",
                }],
            }),
        ),
        "cancel" => with(link(), json!({"status": "Canceled"})),
        "reversal" => with(
            paid_link(),
            json!({"status": "Reversed", "capturedAmount": pounds(0), "refundableAmount": pounds(0)}),
        ),
        "refunds" => with(
            paid_link(),
            json!({"refundedAmount": pounds(350), "refundableAmount": pounds(2100)}),
        ),
        "receipt" => paid_link(),
        _ => return None,
    };
    Some(with(link, json!({"operation": operation_for(operation)})))
}

/// The operation with this last part of its path.
fn operation_for(path: &str) -> Value {
    let (kind, request) = match path {
        "captures" => ("capture", json!({"amount": pounds(1500)})),
        "refunds" => (
            "refund",
            json!({"amount": pounds(350), "refundReason": "Returned goods"}),
        ),
        "amount" => ("amount", json!({"amount": pounds(1950)})),
        "tips-amount" => ("tipsAmount", json!({"tipsAmount": pounds(200)})),
        "receipt" => ("receipt", json!({"emails": ["ann@example.com"]})),
        other => (other, Value::Null),
    };
    let mut operation = json!({
        "id": OPERATION_ID,
        "paymentLinkId": LINK_ID,
        "account": "default",
        "status": "Succeeded",
        "dojoId": "7b49adaf-a01a-4c82-999e-2480b6355a07",
        "failure": null,
        "createdBy": "orders",
        "createdAt": "2026-11-22T15:11:41.742430Z",
        "completedAt": "2026-11-22T15:11:41.784598Z",
        "type": kind,
    });
    if !request.is_null() {
        operation["request"] = request;
    }
    operation
}

/// A page of links with one link.
pub(super) fn links() -> Value {
    json!({"data": [paid_link()], "after": "641d1f2a4c9e0-01a20e1c7b50f3d689d49f3a2b57c8d1", "hasMore": false})
}

/// Two events of the feed: a payment, and a refund of a part of it.
pub(super) fn events() -> Value {
    let event = json!({
        "id": "evt_01m81mvvmbeqn9q2m6p0s6z8kc",
        "type": "payment_link.captured",
        "occurredAt": "2026-11-22T12:51:40.117204Z",
        "paymentLinkId": LINK_ID,
        "account": "default",
        "reference": "Order 236",
        "metadata": {"order": "236"},
        "revision": 3,
        "statusBefore": "Created",
        "status": "Captured",
        "amount": pounds(2450),
        "tipsAmount": null,
        "totalAmount": pounds(2450),
        "capturedAmount": pounds(2450),
        "refundedAmount": pounds(0),
        "captured": pounds(2450),
    });
    let mut refund = with(
        event.clone(),
        json!({
            "id": "evt_01m81n0d6pfza9c0tqk6m8q7xy",
            "type": "payment_link.refunded",
            "occurredAt": "2026-11-22T12:54:10.902113Z",
            "revision": 4,
            "statusBefore": "Captured",
            "status": "Refunded",
            "refundedAmount": pounds(350),
            "refunded": pounds(350),
        }),
    );
    if let Some(refund) = refund.as_object_mut() {
        refund.remove("captured");
    }
    json!({"data": [event, refund], "after": "2c1-01a2034ddb8c7d6a9b8a0d0325f47c93"})
}

/// A text that asks the customer to pay.
pub(super) fn share() -> Value {
    let url = format!("https://pay.dojo.tech/checkout/{INTENT_ID}");
    let body = format!(
        "Please%20pay%20%C2%A324.50%20for%20Order%20236%3A%0Ahttps%3A%2F%2Fpay.dojo.tech%2Fcheckout%2F{INTENT_ID}"
    );
    json!({
        "url": url,
        "subject": "Payment request: Order 236",
        "text": format!("Please pay £24.50 for Order 236:\n{url}"),
        "mailto": format!("mailto:?subject=Payment%20request%3A%20Order%20236&body={}", body.replace("%0A", "%0D%0A")),
        "sms": format!("sms:?body={body}"),
        "whatsapp": format!("https://wa.me/?text={body}"),
    })
}

/// A message that has just been saved.
pub(super) fn message() -> Value {
    json!({
        "id": MESSAGE_ID,
        "paymentLinkId": LINK_ID,
        "channel": "email",
        "purpose": "request",
        "status": "Pending",
        "failure": null,
        "attempts": 0,
        "to": "ann@example.com",
        "locale": "en",
        "note": "Thank you for your order.",
        "createdBy": "orders",
        "createdAt": "2026-11-22T12:50:07.112031Z",
        "completedAt": null,
    })
}

/// The same message, sent.
pub(super) fn sent_message() -> Value {
    with(
        message(),
        json!({"status": "Sent", "attempts": 1, "completedAt": "2026-11-22T12:50:07.390144Z"}),
    )
}

/// The messages about a link.
pub(super) fn messages() -> Value {
    json!({"data": [sent_message()], "after": MESSAGE_ID, "hasMore": false})
}

/// A page of movements: a payment, and a part of it that was refunded.
pub(super) fn movements() -> Value {
    let payment = json!({
        "id": "mov_01m81mzv2jf8x9qk4s7wd3h6rb",
        "type": "capture",
        "amount": pounds(2450),
        "net": pounds(2450),
        "occurredAt": "2026-11-22T13:02:41.685000Z",
        "datedBy": "dojo",
        "businessDay": "2026-11-22",
        "recordedAt": "2026-11-22T13:02:42.310526Z",
        "account": "default",
        "paymentLinkId": LINK_ID,
        "paymentIntentId": INTENT_ID,
        "reference": "Order 236",
        "metadata": {"costCentre": "4711"},
        "authCode": "323241",
        "last4": "1005",
        "captureId": null,
        "operationId": null,
        "actor": null,
    });
    let refund = with(
        payment.clone(),
        json!({
            "id": "mov_01m84a2n7se5ct0m3b9v6k1x8d",
            "type": "refund",
            "amount": pounds(350),
            "net": pounds(-350),
            "occurredAt": "2026-11-23T10:15:08.402117Z",
            "datedBy": "operation",
            "businessDay": "2026-11-23",
            "recordedAt": "2026-11-23T10:15:08.633940Z",
            "operationId": OPERATION_ID,
            "actor": "orders",
        }),
    );
    json!({"data": [payment, refund], "after": "2026-11-23.2", "hasMore": false})
}

/// The same movements as CSV.
pub(super) fn movements_csv() -> String {
    let header = "businessDay,occurredAt,type,amount,net,currency,account,reference,paymentLinkId,paymentIntentId,\
                  authCode,last4,captureId,operationId,actor,recordedAt,id,costCentre";
    let payment = format!(
        "2026-11-22,2026-11-22T13:02:41.685000Z,capture,24.50,24.50,GBP,default,Order 236,{LINK_ID},{INTENT_ID},\
         323241,1005,,,,2026-11-22T13:02:42.310526Z,mov_01m81mzv2jf8x9qk4s7wd3h6rb,4711"
    );
    let refund = format!(
        "2026-11-23,2026-11-23T10:15:08.402117Z,refund,3.50,-3.50,GBP,default,Order 236,{LINK_ID},{INTENT_ID},\
         323241,1005,,{OPERATION_ID},orders,2026-11-23T10:15:08.633940Z,mov_01m84a2n7se5ct0m3b9v6k1x8d,4711"
    );
    format!("{header}\r\n{payment}\r\n{refund}\r\n")
}

/// The totals of these movements.
pub(super) fn daily_totals() -> Value {
    let total = |day: &str, captured, refunded| {
        json!({
            "businessDay": day,
            "account": "default",
            "captured": pounds(captured),
            "refunded": pounds(refunded),
            "reversed": pounds(0),
            "corrected": pounds(0),
            "net": pounds(captured - refunded),
            "movements": 1,
        })
    };
    json!({
        "data": [total("2026-11-22", 2450, 0), total("2026-11-23", 0, 350)],
        "after": "2026-11-23.GBP.default",
        "hasMore": false,
    })
}

/// A business day on which somebody refunded a payment in Dojo's portal, and this service hasn't noticed.
pub(super) fn reconciliations() -> Value {
    let transaction = json!({
        "id": "0b6de1f3-7f0c-4f5e-9d3c-2f1f0a8f3c11",
        "occurredAt": "2026-11-22T16:20:09.114000Z",
        "type": "Refund",
        "status": "Authorized",
        "amount": pounds(350),
        "tipsAmount": null,
        "cashbackAmount": null,
        "paymentIntentId": INTENT_ID,
        "reference": "Order 236",
        "paymentProduct": "PaymentLinks",
    });
    json!({"data": [{
        "businessDay": "2026-11-22",
        "account": "default",
        "state": "Differs",
        "reconciledAt": "2026-11-23T02:00:04.401873Z",
        "transactions": 118,
        "matched": 117,
        "differenceCount": 1,
        "differences": [{"kind": "onlyAtDojo", "movement": null, "transaction": transaction}],
    }]})
}

/// The same business day, without its difference, and the one before.
pub(super) fn compared_days() -> Value {
    let day = |day: &str, transactions, only_at_dojo: i64| {
        json!({
            "businessDay": day,
            "account": "default",
            "state": if only_at_dojo == 0 { "Agrees" } else { "Differs" },
            "reconciledAt": "2026-11-23T02:00:04.401873Z",
            "transactions": transactions,
            "matched": transactions - only_at_dojo,
            "differenceCount": only_at_dojo,
            "kinds": {"onlyHere": 0, "onlyAtDojo": only_at_dojo, "differentAmount": 0, "held": 0},
        })
    };
    json!({
        "data": [day("2026-11-21", 96, 0), day("2026-11-22", 118, 1)],
        "after": "2026-11-22.default",
        "hasMore": false,
    })
}

/// A callback endpoint.
pub(super) fn endpoint() -> Value {
    json!({
        "id": ENDPOINT_ID,
        "url": "https://orders.example.com/hooks/payments",
        "types": ["payment_link.captured", "payment_link.refunded"],
        "accounts": null,
        "description": null,
        "headerName": null,
        "status": "Active",
        "pauseReason": null,
        "failingSince": null,
        "lastSuccessAt": "2026-11-22T12:51:40.190211Z",
        "previousSecretsEndAt": null,
        "createdAt": "2026-11-22T12:40:02.118250Z",
        "updatedAt": "2026-11-22T12:40:02.118250Z",
    })
}

/// A callback endpoint with its secret, as when it is created.
pub(super) fn endpoint_with_secret() -> Value {
    with(
        endpoint(),
        json!({"lastSuccessAt": null, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="}),
    )
}

/// Deliveries to a callback endpoint: one that waits, and one that was delivered.
pub(super) fn deliveries() -> Value {
    let delivered = json!({
        "eventId": "evt_01m81mvvmbeqn9q2m6p0s6z8kc",
        "type": "payment_link.captured",
        "paymentLinkId": LINK_ID,
        "status": "Delivered",
        "attempts": 1,
        "nextAttemptAt": null,
        "lastAttempt": {
            "at": "2026-11-22T12:51:40.190211Z",
            "outcome": "delivered",
            "responseStatus": 204,
            "responseBody": null,
            "milliseconds": 38,
        },
    });
    let waits = with(
        delivered.clone(),
        json!({
            "eventId": "evt_01m81n0d6pfza9c0tqk6m8q7xy",
            "type": "payment_link.refunded",
            "status": "Pending",
            "attempts": 2,
            "nextAttemptAt": "2026-11-22T12:59:21.663001Z",
            "lastAttempt": {
                "at": "2026-11-22T12:54:16.140918Z",
                "outcome": "rejected",
                "responseStatus": 503,
                "responseBody": "down for maintenance",
                "milliseconds": 12,
            },
        }),
    );
    json!({"data": [waits, delivered], "after": "2c0", "hasMore": false})
}

/// A link's timeline, from the request to the payment.
pub(super) fn timeline() -> Value {
    let request = json!({"type": "request", "client": "orders", "requestId": REQUEST_ID});
    json!({
        "data": [
            {
                "id": "1041",
                "type": "requested",
                "statusBefore": null,
                "statusAfter": "Pending",
                "cause": request,
                "detail": null,
                "occurredAt": "2026-11-22T12:47:12.538228Z",
            },
            {
                "id": "1042",
                "type": "created",
                "statusBefore": "Pending",
                "statusAfter": "Created",
                "cause": request,
                "detail": {"paymentIntentId": INTENT_ID, "reported": "Created"},
                "occurredAt": "2026-11-22T12:47:12.568313Z",
            },
            {
                "id": "1057",
                "type": "webhook",
                "statusBefore": "Created",
                "statusAfter": "Captured",
                "cause": {"type": "webhook", "eventId": "evt_mB_-r9agomU0OZSzxSg6Wh"},
                "detail": {"event": "payment_intent.status_updated", "reported": "Captured", "verdict": "applied"},
                "occurredAt": "2026-11-22T13:02:41.989233Z",
            },
        ],
        "after": "1057",
        "hasMore": false,
    })
}

/// A page of operations: one refund.
pub(super) fn operations() -> Value {
    json!({
        "data": [operation_for("refunds")],
        "after": OPERATION_ID,
        "hasMore": false,
    })
}

/// A page of operations that need attention: one refund.
pub(super) fn unconfirmed_operations() -> Value {
    let unconfirmed = json!({"status": "Unconfirmed", "dojoId": null});
    json!({
        "data": [with(operation_for("refunds"), unconfirmed)],
        "after": OPERATION_ID,
        "hasMore": false,
    })
}

/// An event from Dojo.
pub(super) fn webhook() -> Value {
    json!({
        "id": "evt_mB_-r9agomU0OZSzxSg6Wh",
        "event": "payment_intent.status_updated",
        "accountId": "acc_test",
        "createdAt": "2026-11-22T13:02:41.901Z",
        "data": {"paymentIntentId": INTENT_ID, "paymentStatus": "Captured", "captureMode": "Auto"},
    })
}

/// The kinds of routes whose problems differ.
#[derive(Clone, Copy, PartialEq)]
enum Call {
    Reads,
    Creates,
    Operates,
    Follows,
    Manages,
    Erases,
}

impl Call {
    fn of(method: &str, path: &str) -> Self {
        let (_, last) = path.rsplit_once('/').unwrap_or_default();
        if link_after(last).is_some() {
            Self::Operates
        } else if (method, path) == ("post", "/v1/payment-links") || last == "renew" {
            Self::Creates
        } else if last == "erase" {
            Self::Erases
        } else if path == "/v1/events" {
            Self::Follows
        } else if path.starts_with("/v1/callback-endpoints") {
            Self::Manages
        } else {
            Self::Reads
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Reads => "read",
            Self::Creates => "create",
            Self::Operates => "operation",
            Self::Follows => "events",
            Self::Manages => "callbacks",
            Self::Erases => "erase",
        }
    }

    fn subject(self) -> Subject {
        match self {
            Self::Reads | Self::Creates | Self::Follows | Self::Manages | Self::Erases => {
                Subject::Link(link_id())
            }
            Self::Operates => Subject::Operation {
                id: OPERATION_ID.parse().expect("a constant that a test parses"),
                link_id: link_id(),
            },
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::Reads => Scope::LinksRead,
            Self::Creates => Scope::LinksWrite,
            Self::Operates => Scope::PaymentsManage,
            Self::Follows => Scope::EventsRead,
            Self::Manages => Scope::CallbacksManage,
            Self::Erases => Scope::DataErase,
        }
    }

    fn fault(self) -> Fault {
        match self {
            Self::Reads | Self::Follows => {
                Fault::new("limit", "must be given once and be 1 to 100")
            }
            Self::Creates | Self::Operates => Fault::new("/amount/value", "must be at least 1"),
            Self::Manages => Fault::new("/url", "must be an https URL"),
            Self::Erases => Fault::new("/reason", "is not a known field"),
        }
    }

    fn path(self) -> String {
        match self {
            Self::Reads => format!("/v1/payment-links/{LINK_ID}"),
            Self::Creates => "/v1/payment-links".to_owned(),
            Self::Operates => format!("/v1/payment-links/{LINK_ID}/refunds"),
            Self::Follows => "/v1/events".to_owned(),
            Self::Manages => format!("/v1/callback-endpoints/{ENDPOINT_ID}"),
            Self::Erases => format!("/v1/payment-links/{LINK_ID}/erase"),
        }
    }
}

/// Adds to the document: an `Idempotency-Key` for each route that takes one, the link after each operation, and an example of
/// each type of problem. Examples of problems are shared, under `components`.
pub(super) fn complete(document: &mut Value) {
    let mut shared = serde_json::Map::new();
    for (path, item) in members(&mut document["paths"]) {
        for (method, call) in members(item) {
            let kind = Call::of(method, path);
            let (_, last) = path.rsplit_once('/').unwrap_or_default();
            let parameters = call.get_mut("parameters").and_then(Value::as_array_mut);
            for parameter in parameters.into_iter().flatten() {
                if parameter["name"] == "Idempotency-Key" {
                    // A key is for one request, so each operation's example has its own.
                    parameter["example"] = match kind {
                        _ if kind == Call::Operates || matches!(last, "renew" | "messages") => {
                            json!(format!("order-236-{last}"))
                        }
                        _ => json!("order-236"),
                    };
                }
            }
            for (status, response) in members(&mut call["responses"]) {
                let (Ok(status), Some(content)) = (status.parse(), response.get_mut("content"))
                else {
                    continue;
                };
                if let (200 | 202, Some(link)) = (status, link_after(last)) {
                    content["application/json"]["example"] = link;
                }
                let Some(problem) = content.get_mut("application/problem+json") else {
                    continue;
                };
                let Some(examples) = problem.get_mut("examples") else {
                    continue;
                };
                for (slug, example) in members(examples) {
                    share_example(&mut shared, slug, status, kind, example);
                }
            }
        }
    }
    document["components"]["examples"] = Value::Object(shared);
}

/// Replaces the example of a problem by a reference to a shared one, and adds that if it doesn't exist yet.
fn share_example(
    shared: &mut serde_json::Map<String, Value>,
    slug: &str,
    status: u16,
    call: Call,
    example: &mut Value,
) {
    let kind = ProblemType::from_slug(slug).unwrap_or_else(|| {
        panic!("a route documents the problem type {slug}, which does not exist")
    });
    let value = json!({"description": kind.advice(), "value": problem(kind, status, call)});
    let mut name = slug.to_owned();
    if kind.statuses().len() > 1 {
        name = format!("{slug}-{status}");
    }
    if shared.get(&name).is_some_and(|other| *other != value) {
        name = format!("{name}-{}", call.name());
    }
    *example = json!({"$ref": format!("#/components/examples/{name}")});
    shared.insert(name, value);
}

/// Examples of this type, one for each of its statuses.
pub(super) fn problems(kind: ProblemType) -> Vec<Value> {
    let call = match kind {
        ProblemType::NotFound | ProblemType::TimedOut | ProblemType::NotPayable => Call::Reads,
        ProblemType::EventsRemoved | ProblemType::CursorUnknown => Call::Follows,
        ProblemType::UrlTaken | ProblemType::TooManyEndpoints => Call::Manages,
        ProblemType::NotErasable => Call::Erases,
        ProblemType::OperationInProgress
        | ProblemType::RefundableAmountUnclear
        | ProblemType::NotPossible
        | ProblemType::NotDone
        | ProblemType::OutcomeUnconfirmed => Call::Operates,
        _ => Call::Creates,
    };
    let statuses = match kind.statuses() {
        [] => &[400],
        statuses => statuses,
    };
    let examples = statuses.iter().map(|&status| match (kind, status) {
        (ProblemType::RejectedByDojo, 409) => problem(kind, status, Call::Operates),
        _ => problem(kind, status, call),
    });
    examples.collect()
}

/// A problem of this type as the route returns it.
fn problem(kind: ProblemType, status: u16, call: Call) -> Value {
    let failed = |reason, detail: &str, errors| Error::DojoFailed {
        subject: call.subject(),
        failure: Failure {
            reason,
            status: None,
            detail: detail.to_owned(),
            errors,
        },
        retry_after: None,
        replayed: false,
    };
    // Its message isn't part of any problem.
    let store_error = store::Error::Unreadable(String::new());
    let error = match kind {
        ProblemType::MalformedJson => {
            Error::MalformedJson("expected `,` or `}` at line 3 column 2".to_owned())
        }
        ProblemType::BodyIncomplete => Error::BodyIncomplete,
        ProblemType::Unauthenticated => Error::Unauthenticated,
        ProblemType::BadSignature => Error::BadSignature,
        ProblemType::Forbidden => Error::Forbidden(call.scope()),
        ProblemType::NotFound if call == Call::Manages => Error::NoSuchEndpoint,
        ProblemType::NotFound => Error::NoSuchLink,
        ProblemType::UrlTaken => Error::UrlTaken,
        ProblemType::TooManyEndpoints => Error::TooManyEndpoints,
        ProblemType::RequestInProgress => Error::RequestInProgress {
            subject: call.subject(),
            progress: Progress {
                since_sent: Duration::from_secs(14),
                until_next: Duration::from_secs(6),
                is_lost: true,
            },
            retry_after: Duration::from_secs(7),
        },
        ProblemType::OperationInProgress => Error::OperationInProgress,
        ProblemType::RefundableAmountUnclear => Error::RefundableUnclear {
            retry_after: Duration::from_secs(1),
        },
        ProblemType::RateLimited => Error::RateLimited(Duration::from_secs(1)),
        ProblemType::NotPayable => Error::NotPayable(Unpayable::Paid),
        ProblemType::NotRenewable => Error::NotRenewable(NotRenewable::StillPayable),
        ProblemType::NotPossible => Error::NotPossible(NotPossible {
            reason: "only 3.50 GBP is left to refund".to_owned(),
            allowed_actions: vec![ActionKind::Refund, ActionKind::Receipt],
            remaining: Some(Money {
                value: 350,
                currency_code: Currency::Gbp,
            }),
        }),
        ProblemType::NotCreated => failed(
            FailureKind::NotCreated,
            "Dojo did not create it in time",
            vec![],
        ),
        ProblemType::NotDone => failed(
            FailureKind::NotDone,
            "Dojo's response was lost, and the operation did not take effect",
            vec![],
        ),
        ProblemType::OutcomeUnconfirmed => Error::Unconfirmed(call.subject()),
        ProblemType::EventsRemoved => Error::EventsRemoved,
        ProblemType::CursorUnknown => Error::CursorUnknown,
        ProblemType::BodyTooLarge => Error::BodyTooLarge(super::body::LIMIT),
        ProblemType::UnsupportedMediaType => Error::NotJson,
        ProblemType::InvalidRequest => Error::Invalid(vec![call.fault()]),
        ProblemType::IdempotencyKeyReused => Error::IdempotencyKeyReused,
        ProblemType::Erased => Error::Erased,
        ProblemType::NotErasable => Error::NotErasable(NotErasable::OperationOpen),
        ProblemType::RejectedByDojo if status == 409 => failed(
            FailureKind::Rejected,
            "The payment has been settled already",
            vec![],
        ),
        ProblemType::RejectedByDojo => failed(
            FailureKind::Rejected,
            "One or more validation errors occurred.",
            vec![Fault::new(
                "/amount/value",
                "exceeds the limit of the account",
            )],
        ),
        ProblemType::InternalError => Error::Internal(store_error.into()),
        ProblemType::DojoKeyRejected => failed(FailureKind::KeyRejected, "", vec![]),
        ProblemType::DojoMisrouted => failed(FailureKind::Misrouted, "", vec![]),
        ProblemType::DojoNotReached => failed(FailureKind::NotReached, "", vec![]),
        ProblemType::DatabaseUnavailable => Error::DatabaseUnavailable(store_error.into()),
        ProblemType::NotStored => Error::WebhookNotStored(NotStored::QueueFull),
        ProblemType::Overloaded => Error::Overloaded,
        ProblemType::AccountNotConfigured => Error::AccountNotConfigured(link_id()),
        ProblemType::OutcomeUnknown => Error::OutcomeUnknown(call.subject()),
        ProblemType::NotReady => {
            let problem = Problem::new(kind, NO_DATABASE);
            return complete_problem(problem, "/readyz".to_owned());
        }
        // The framework creates these responses.
        ProblemType::MethodNotAllowed | ProblemType::TimedOut | ProblemType::Other => {
            let status = StatusCode::from_u16(status).expect("a status of the table");
            let problem = Problem::of_status(status);
            return complete_problem(problem, "/v1/payment-links".to_owned());
        }
    };
    let instance = match kind {
        ProblemType::BadSignature | ProblemType::NotStored => "/webhooks/dojo".to_owned(),
        _ => call.path(),
    };
    complete_problem(error.problem(), instance)
}

fn complete_problem(problem: Problem, instance: String) -> Value {
    let request_id = REQUEST_ID.to_owned();
    let problem = Problem {
        instance,
        request_id,
        ..problem
    };
    serde_json::to_value(problem).expect("plain structs become JSON")
}

fn link_id() -> PaymentLinkId {
    LINK_ID.parse().expect("a constant that a test parses")
}

fn pounds(value: i64) -> Value {
    json!({"value": value, "currencyCode": "GBP"})
}

/// An object with some members changed.
fn with(mut object: Value, changes: Value) -> Value {
    if let (Value::Object(object), Value::Object(changes)) = (&mut object, changes) {
        object.extend(changes);
    }
    object
}

fn members(object: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    object.as_object_mut().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem_type::PREFIX;

    #[test]
    fn every_problem_type_has_an_example_for_each_of_its_statuses() {
        for kind in ProblemType::ALL {
            let examples = problems(*kind);
            for example in &examples {
                assert_eq!(example["type"], format!("{PREFIX}{}", kind.slug()));
            }
            let statuses = examples.iter().map(|example| example["status"].as_u64());
            let expected = kind.statuses().iter().map(|status| Some((*status).into()));
            if *kind != ProblemType::Other {
                assert!(statuses.eq(expected), "{kind:?}");
            }
        }
    }
}
