//! Each key is an account of its own.

use dojo_sandbox::Settings;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, Rig, answer, id, ten_pounds, text};

const OTHER: &str = "sk_sandbox_other";

/// A call with the key of the other account.
async fn other(rig: &Rig, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let request = rig
        .request(method, path)
        .header("authorization", format!("Basic {OTHER}"))
        .header("version", "2026-02-27")
        .header("idempotencyKey", "once");
    answer(if body.is_null() {
        request
    } else {
        request.json(body)
    })
    .await
}

#[tokio::test]
async fn what_is_of_another_account_is_not_there() {
    let rig = Rig::start().await;
    let intent = rig.create_simple().await;
    rig.pay(&intent).await;
    let refund = answer(
        rig.api(Method::POST, &format!("/payment-intents/{intent}/refunds"))
            .header("idempotencyKey", "once")
            .json(&json!({"amount": 100})),
    )
    .await
    .1;
    let events = json!({"events": ["payment_intent.created"], "url": "http://localhost:1/hook"});
    let (_, subscription) = rig.post("/webhooks", &events).await;
    let subscription = id(&subscription);

    let refund = format!("/payment-intents/refunds/{}", text(&refund["refundId"]));
    assert_eq!(rig.get(&refund).await.0, 200);
    for (method, path, body) in [
        (
            Method::GET,
            format!("/payment-intents/{intent}"),
            Value::Null,
        ),
        (
            Method::DELETE,
            format!("/payment-intents/{intent}"),
            Value::Null,
        ),
        (
            Method::POST,
            format!("/payment-intents/{intent}/refunds"),
            json!({"amount": 1}),
        ),
        (Method::GET, refund, Value::Null),
        (
            Method::PATCH,
            format!("/webhooks/{subscription}"),
            json!({"url": "http://localhost:2/"}),
        ),
        (
            Method::GET,
            format!("/webhooks/{subscription}/secrets"),
            Value::Null,
        ),
        (
            Method::DELETE,
            format!("/webhooks/{subscription}"),
            Value::Null,
        ),
    ] {
        let (status, answer) = other(&rig, method.clone(), &path, &body).await;
        // As for one that is not there: Dojo's document lists no 404 for refunds.
        let unknown = if path.contains("refunds") { 400 } else { 404 };
        assert_eq!(status, unknown, "{method} {path}: {answer}");
    }
    let search = json!({"startDate": "2000-01-01T00:00:00Z", "endDate": "2100-01-01T00:00:00Z"});
    let (_, mine) = rig.post("/payment-intents/search", &search).await;
    assert_eq!(mine["data"][0]["id"], intent.as_str());
    let (_, theirs) = other(&rig, Method::POST, "/payment-intents/search", &search).await;
    assert_eq!(theirs["data"], json!([]));
    assert_eq!(
        other(&rig, Method::GET, "/webhooks", &Value::Null).await.1,
        json!([])
    );
    assert_eq!(rig.intent(&intent).await["status"], "Captured");

    // An event is taken in one account only.
    assert_eq!(other(&rig, Method::POST, "/webhooks", &events).await.0, 200);
    assert_eq!(rig.post("/webhooks", &events).await.0, 409);
}

#[tokio::test]
async fn of_several_keys_the_first_ones_webhooks_go_to_the_standing_address() {
    let receiver = Receiver::start().await;
    let rig = Rig::with(Settings {
        api_key: Some(format!("{}, {OTHER}", crate::support::KEY)),
        webhook_url: Some(receiver.url.clone()),
        ..Settings::default()
    })
    .await;
    let (status, _) = other(&rig, Method::POST, "/payment-intents", &ten_pounds()).await;
    assert_eq!(status, 200);
    let intent = rig.create_simple().await;
    let arrived = receiver.wait_for(1).await;
    assert_eq!(arrived[0].body["data"]["paymentIntentId"], intent.as_str());
    let request = rig
        .request(Method::GET, "/webhooks")
        .header("authorization", "Basic sk_sandbox_third")
        .header("version", "2026-02-27");
    assert_eq!(answer(request).await.0, 401);
}
