//! Examples for the OpenAPI document: a link on its way, what is told of it, and a problem of every type.
//!
//! What one call alone shows stands in its attributes. Here is what several share, and what depends on the call where its
//! answers are declared once for many. Problems are made by the code that answers them, so that they look as they are sent.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    auth::Scope,
    error::{Error, Subject},
    problem::{KINDS, Problem},
};
use crate::{
    payment_link::{Failure, FailureKind, Fault, PaymentLinkId},
    store,
};

const LINK_ID: &str = "plink_01m81mqpmrf8384nj77tj0t0e4";
const OPERATION_ID: &str = "op_01m81mzv2jf8x9qk4s7wd3h6rb";
const INTENT_ID: &str = "pi_CggWPWfehUWgVNnDdsdLMQ";
const REQUEST_ID: &str = "01a20e1c-d61f-7542-999a-274a6af083e1";

/// A link that waits for its customer.
pub(super) fn link() -> Value {
    json!({
        "id": LINK_ID,
        "account": "default",
        "environment": "production",
        "status": "Created",
        "confirmed": true,
        "url": format!("https://pay.dojo.tech/checkout/{INTENT_ID}"),
        "paymentIntentId": INTENT_ID,
        "amount": pounds(2450),
        "tipsAmount": null,
        "totalAmount": pounds(2450),
        "reportedAmount": null,
        "capturedAmount": 0,
        "refundedAmount": 0,
        "captures": [],
        "payment": null,
        "attempts": [],
        "failure": null,
        "createdBy": "orders",
        "createdAt": "2026-11-22T12:47:12.538228Z",
        "updatedAt": "2026-11-22T12:47:12.568313Z",
        "syncedAt": "2026-11-22T12:47:12.568313Z",
        "reference": "Order 236",
        "captureMode": "Auto",
        "expireAt": "2026-12-22T12:47:12.540Z",
    })
}

/// The same, paid.
pub(super) fn paid_link() -> Value {
    with(
        link(),
        json!({
            "status": "Captured",
            "capturedAmount": 2450,
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

/// The link after the operation of this name, which is the last part of its path.
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
                "capturedAmount": 1500,
                "captures": [{
                    "id": "16afc7a9-3557-4510-b97f-6df948ab7fed",
                    "amount": 1500,
                    "tipsAmount": null,
                    "status": "Successful",
                    "createdAt": "2026-11-22T13:02:41.685Z",
                }],
            }),
        ),
        "cancel" => with(link(), json!({"status": "Canceled"})),
        "reversal" => with(
            paid_link(),
            json!({"status": "Reversed", "capturedAmount": 0}),
        ),
        "refunds" => with(paid_link(), json!({"refundedAmount": 350})),
        "receipt" => paid_link(),
        _ => return None,
    };
    Some(link)
}

/// A page with one link in it, of more.
pub(super) fn links() -> Value {
    json!({"data": [paid_link()], "after": "641d1f2a4c9e0-01a20e1c7b50f3d689d49f3a2b57c8d1"})
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
        "after": null,
    })
}

/// A page of operations: one refund.
pub(super) fn operations() -> Value {
    json!({
        "data": [{
            "id": OPERATION_ID,
            "status": "Succeeded",
            "dojoId": "7b49adaf-a01a-4c82-999e-2480b6355a07",
            "failure": null,
            "createdBy": "orders",
            "createdAt": "2026-11-22T15:11:41.74243Z",
            "completedAt": "2026-11-22T15:11:41.784598Z",
            "type": "refund",
            "request": {"amount": pounds(350), "refundReason": "Returned goods"},
        }],
        "after": null,
    })
}

/// An event of Dojo's, as its webhooks carry it.
pub(super) fn webhook() -> Value {
    json!({
        "id": "evt_mB_-r9agomU0OZSzxSg6Wh",
        "event": "payment_intent.status_updated",
        "accountId": "acc_test",
        "createdAt": "2026-11-22T13:02:41.901Z",
        "data": {"paymentIntentId": INTENT_ID, "paymentStatus": "Captured", "captureMode": "Auto"},
    })
}

/// What a call does, as far as its problems differ by that.
#[derive(Clone, Copy, PartialEq)]
enum Call {
    Reads,
    Creates,
    Operates,
}

impl Call {
    fn of(method: &str, path: &str) -> Self {
        let (_, last) = path.rsplit_once('/').unwrap_or_default();
        if link_after(last).is_some() {
            Self::Operates
        } else if (method, path) == ("post", "/v1/payment-links") {
            Self::Creates
        } else {
            Self::Reads
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Reads => "read",
            Self::Creates => "create",
            Self::Operates => "operation",
        }
    }

    fn subject(self) -> Subject {
        match self {
            Self::Reads | Self::Creates => Subject::Link(link_id()),
            Self::Operates => Subject::Operation {
                id: OPERATION_ID
                    .parse()
                    .expect("a constant, which a test reads"),
                link_id: link_id(),
            },
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::Reads => Scope::LinksRead,
            Self::Creates => Scope::LinksWrite,
            Self::Operates => Scope::PaymentsManage,
        }
    }

    fn fault(self) -> Fault {
        match self {
            Self::Reads => Fault::new("limit", "must be 1 to 100, once"),
            Self::Creates | Self::Operates => Fault::new("/amount/value", "must be at least 1"),
        }
    }

    fn path(self) -> String {
        match self {
            Self::Reads => format!("/v1/payment-links/{LINK_ID}"),
            Self::Creates => "/v1/payment-links".to_owned(),
            Self::Operates => format!("/v1/payment-links/{LINK_ID}/refunds"),
        }
    }
}

/// Completes the document: a key for each operation and the link after it, and under the name of each type of problem
/// its example. Those are kept once, under `components`.
pub(super) fn complete(document: &mut Value) {
    let mut shared = serde_json::Map::new();
    for (path, item) in members(&mut document["paths"]) {
        for (method, call) in members(item) {
            let kind = Call::of(method, path);
            let (_, last) = path.rsplit_once('/').unwrap_or_default();
            if kind == Call::Operates {
                for parameter in call["parameters"].as_array_mut().into_iter().flatten() {
                    // A key is for one request: the same on another operation would be refused.
                    if parameter["name"] == "Idempotency-Key" {
                        parameter["example"] = json!(format!("order-236-{last}"));
                    }
                }
            }
            for (status, answer) in members(&mut call["responses"]) {
                let (Ok(status), Some(content)) = (status.parse(), answer.get_mut("content"))
                else {
                    continue;
                };
                if let (200, Some(link)) = (status, link_after(last)) {
                    content["application/json"]["example"] = link;
                }
                let Some(problem) = content.get_mut("application/problem+json") else {
                    continue;
                };
                let Some(examples) = problem.get_mut("examples") else {
                    continue;
                };
                for (slug, example) in members(examples) {
                    share(&mut shared, slug, status, kind, example);
                }
            }
        }
    }
    document["components"]["examples"] = Value::Object(shared);
}

/// Has the example of a problem refer to a shared one, which is made if it is not there yet.
fn share(
    shared: &mut serde_json::Map<String, Value>,
    slug: &str,
    status: u16,
    call: Call,
    example: &mut Value,
) {
    let Some((_, statuses, what_to_do)) = KINDS.iter().find(|kind| kind.0 == slug) else {
        return;
    };
    let Some(value) = problem(slug, status, call) else {
        return;
    };
    let value = json!({"description": what_to_do, "value": value});
    let mut name = slug.to_owned();
    if statuses.contains(',') {
        name = format!("{slug}-{status}");
    }
    if shared.get(&name).is_some_and(|other| *other != value) {
        name = format!("{name}-{}", call.name());
    }
    *example = json!({"$ref": format!("#/components/examples/{name}")});
    shared.insert(name, value);
}

/// The problem of this type, once for each status that it comes with.
pub(super) fn problems(slug: &str) -> Vec<Value> {
    let statuses = KINDS
        .iter()
        .find(|kind| kind.0 == slug)
        .map_or("", |kind| kind.1);
    let call = match slug {
        "not-found" | "timed-out" => Call::Reads,
        "operation-in-progress"
        | "refundable-amount-unclear"
        | "not-possible"
        | "not-done"
        | "outcome-unconfirmed" => Call::Operates,
        _ => Call::Creates,
    };
    let statuses = statuses.split(", ").map(|status| match status {
        "409" if slug == "refused-by-dojo" => (409, Call::Operates),
        status => (status.parse().unwrap_or(400), call),
    });
    statuses
        .filter_map(|(status, call)| problem(slug, status, call))
        .collect()
}

/// A problem as this call answers it.
fn problem(slug: &str, status: u16, call: Call) -> Option<Value> {
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
    let error = match slug {
        "malformed-json" => {
            Error::MalformedJson("expected `,` or `}` at line 3 column 2".to_owned())
        }
        "body-incomplete" => Error::BodyIncomplete,
        "unauthenticated" => Error::Unauthenticated,
        "bad-signature" => Error::BadSignature,
        "forbidden" => Error::Forbidden(call.scope()),
        "not-found" => Error::NoSuchLink,
        "request-in-progress" => Error::Running(call.subject()),
        "operation-in-progress" => Error::OperationRunning,
        "refundable-amount-unclear" => Error::RefundableUnclear {
            retry_after: Duration::from_secs(1),
        },
        "rate-limited" => Error::RateLimited(Duration::from_secs(1)),
        "not-possible" => Error::NotPossible("only 3.50 GBP is left to refund".to_owned()),
        "not-created" => failed(
            FailureKind::NotCreated,
            "Dojo could not be brought to create it in time",
            vec![],
        ),
        "not-done" => failed(
            FailureKind::NotDone,
            "Dojo's answer was lost, and it was not done",
            vec![],
        ),
        "outcome-unconfirmed" => Error::Unconfirmed(call.subject()),
        "body-too-large" => Error::BodyTooLarge(super::body::LIMIT),
        "unsupported-media-type" => Error::NotJson,
        "invalid-request" => Error::Invalid(vec![call.fault()]),
        "idempotency-key-reused" => Error::IdempotencyKeyReused,
        "refused-by-dojo" if status == 409 => failed(
            FailureKind::Refused,
            "The payment has been settled already",
            vec![],
        ),
        "refused-by-dojo" => failed(
            FailureKind::Refused,
            "One or more validation errors occurred.",
            vec![Fault::new(
                "/amount/value",
                "exceeds the limit of the account",
            )],
        ),
        "internal-error" => Error::Store(store::Error::Unreadable(String::new())),
        "dojo-key-refused" => failed(FailureKind::KeyRefused, "", vec![]),
        "dojo-misrouted" => failed(FailureKind::Misrouted, "", vec![]),
        "dojo-not-reached" => failed(FailureKind::NotReached, "", vec![]),
        "database-unavailable" => Error::Store(store::Error::from(sqlx::Error::PoolTimedOut)),
        "not-kept" => Error::NotKept(store::Error::Unreadable(String::new())),
        "overloaded" => Error::Overloaded,
        "account-not-configured" => Error::AccountNotConfigured(link_id()),
        "outcome-unknown" => Error::DojoUnsure(call.subject()),
        _ => return made_elsewhere(slug, status),
    };
    let instance = match slug {
        "bad-signature" | "not-kept" => "/webhooks/dojo".to_owned(),
        _ => call.path(),
    };
    written(error.problem(), instance)
}

/// A problem that no [`Error`] makes: of the router, of a time limit, of `/readyz`.
fn made_elsewhere(slug: &str, status: u16) -> Option<Value> {
    let status = StatusCode::from_u16(status).ok()?;
    let (problem, instance) = match slug {
        "not-ready" => (
            Problem::new(status, slug, super::service::NO_DATABASE),
            "/readyz",
        ),
        _ => (Problem::of_status(status), "/v1/payment-links"),
    };
    written(problem, instance.to_owned())
}

fn written(problem: Problem, instance: String) -> Option<Value> {
    let request_id = REQUEST_ID.to_owned();
    serde_json::to_value(Problem {
        instance,
        request_id,
        ..problem
    })
    .ok()
}

fn link_id() -> PaymentLinkId {
    LINK_ID.parse().expect("a constant, which a test reads")
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
