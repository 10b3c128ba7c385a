//! Managing a payment: captures, refunds, reversals, amounts, tips and receipts.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Receiver, TestSandbox, event_types, id, send, ten_pounds, ten_pounds_manual, text,
};

const DAY: u64 = 86_400;

async fn authorized(sandbox: &TestSandbox) -> String {
    let id = id(&sandbox.create(&ten_pounds_manual("Release")).await);
    sandbox.pay(&id).await;
    id
}

async fn paid(sandbox: &TestSandbox) -> String {
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    id
}

async fn capture(sandbox: &TestSandbox, id: &str, body: Value) -> (u16, Value) {
    sandbox
        .post(&format!("/payment-intents/{id}/captures"), &body)
        .await
}

async fn refund(sandbox: &TestSandbox, id: &str, key: &str, body: Value) -> (u16, Value) {
    let request = sandbox.api(Method::POST, &format!("/payment-intents/{id}/refunds"));
    send(request.header("idempotencyKey", key).json(&body)).await
}

async fn reverse(sandbox: &TestSandbox, id: &str) -> u16 {
    sandbox
        .post(&format!("/payment-intents/{id}/reversal"), &json!({}))
        .await
        .0
}

#[tokio::test]
async fn an_authorization_is_captured_in_full() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = authorized(&sandbox).await;
    receiver.wait_for(2).await;
    let (status, response) = capture(&sandbox, &id, json!({"amount": 1000})).await;
    assert_eq!(status, 200, "{response}");
    let intent = sandbox.intent(&id).await;
    assert_eq!(intent["status"], "Captured");
    assert_eq!(intent["captures"][0]["id"], response["captureId"]);
    assert_eq!(intent["captures"][0]["status"], "Successful");
    assert!(intent["paymentDetails"].is_object());
    let webhooks = receiver.wait_for(3).await;
    assert_eq!(
        webhooks[2].summary(),
        "payment_intent.status_updated Captured"
    );
    assert_eq!(capture(&sandbox, &id, json!({"amount": 1})).await.0, 409);
}

#[tokio::test]
async fn partial_captures_cant_exceed_the_authorization() {
    let sandbox = TestSandbox::start().await;
    let id = authorized(&sandbox).await;
    assert_eq!(capture(&sandbox, &id, json!({"amount": 400})).await.0, 200);
    assert_eq!(sandbox.intent(&id).await["status"], "Captured");
    assert_eq!(capture(&sandbox, &id, json!({"amount": 601})).await.0, 409);
    assert_eq!(capture(&sandbox, &id, json!({"amount": 500})).await.0, 200);
    // Only what was captured can be refunded.
    assert_eq!(
        refund(&sandbox, &id, "a", json!({"amount": 901})).await.0,
        400
    );
    assert_eq!(
        refund(&sandbox, &id, "b", json!({"amount": 900})).await.0,
        200
    );
    let intent = sandbox.intent(&id).await;
    assert_eq!(
        (&intent["status"], &intent["refundedAmount"]),
        (&json!("Refunded"), &json!(900))
    );
    assert_eq!(capture(&sandbox, &id, json!({"amount": 100})).await.0, 409);
}

#[tokio::test]
async fn the_rest_of_an_authorization_expires() {
    let sandbox = TestSandbox::start().await;
    let id = authorized(&sandbox).await;
    assert_eq!(capture(&sandbox, &id, json!({"amount": 400})).await.0, 200);
    sandbox
        .control("clock", &json!({"advanceSeconds": 7 * DAY}))
        .await;
    assert_eq!(sandbox.intent(&id).await["status"], "Captured");
    assert_eq!(capture(&sandbox, &id, json!({"amount": 600})).await.0, 409);
}

#[tokio::test]
async fn only_an_authorization_can_be_captured() {
    let sandbox = TestSandbox::start().await;
    let unpaid = id(&sandbox.create(&ten_pounds_manual("Capture")).await);
    assert_eq!(
        capture(&sandbox, &unpaid, json!({"amount": 1000})).await.0,
        409
    );
    let auto = paid(&sandbox).await;
    assert_eq!(
        capture(&sandbox, &auto, json!({"amount": 1000})).await.0,
        409
    );
    for body in [
        json!({}),
        json!({"amount": 0}),
        json!({"amount": 1.5}),
        json!({"amount": 1, "x": 1}),
    ] {
        assert_eq!(capture(&sandbox, &auto, body).await.0, 400);
    }
    assert_eq!(
        capture(&sandbox, "pi_unknown", json!({"amount": 1}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn tips_are_captured_if_the_intent_allows_them() {
    let sandbox = TestSandbox::start().await;
    let id = authorized(&sandbox).await;
    assert_eq!(
        capture(&sandbox, &id, json!({"amount": 1000, "tipsAmount": 100}))
            .await
            .0,
        409
    );

    let mut body = ten_pounds_manual("Release");
    body["config"] = json!({"payment": {"tipsAllowed": true}});
    let id = crate::support::id(&sandbox.create(&body).await);
    sandbox.pay(&id).await;
    assert_eq!(
        capture(&sandbox, &id, json!({"amount": 1000, "tipsAmount": 100}))
            .await
            .0,
        200
    );
    let intent = sandbox.intent(&id).await;
    assert_eq!(intent["tipsAmount"]["value"], 100);
    assert_eq!(intent["totalAmount"]["value"], 1100);
    assert_eq!(
        refund(&sandbox, &id, "all", json!({"amount": 1100}))
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn a_payment_is_refunded_in_parts_until_nothing_is_left() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = paid(&sandbox).await;
    receiver.wait_for(2).await;

    let body = json!({"amount": 400, "refundReason": "Cold tea", "notes": "Sorry"});
    let (status, first) = refund(&sandbox, &id, "one", body).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["paymentIntentId"], id.as_str());
    assert_eq!(first["refundReason"], "Cold tea");
    let intent = sandbox.intent(&id).await;
    assert_eq!(
        (&intent["status"], &intent["refundedAmount"]),
        (&json!("Captured"), &json!(400))
    );
    assert_eq!(event_types(&intent), ["Captured", "Refunded"]);

    assert_eq!(
        refund(&sandbox, &id, "two", json!({"amount": 601})).await.0,
        400
    );
    assert_eq!(
        refund(&sandbox, &id, "two", json!({"amount": 600})).await.0,
        200
    );
    let intent = sandbox.intent(&id).await;
    assert_eq!(
        (&intent["status"], &intent["refundedAmount"]),
        (&json!("Refunded"), &json!(1000))
    );
    assert_eq!(
        refund(&sandbox, &id, "three", json!({"amount": 1})).await.0,
        400
    );

    let webhooks = receiver.wait_for(3).await;
    assert_eq!(
        webhooks.len(),
        3,
        "a partial refund does not change the status"
    );
    assert_eq!(
        webhooks[2].summary(),
        "payment_intent.status_updated Refunded"
    );

    let path = format!("/payment-intents/refunds/{}", text(&first["refundId"]));
    assert_eq!(sandbox.get(&path).await, (200, first));
    assert_eq!(sandbox.get("/payment-intents/refunds/unknown").await.0, 400);
}

#[tokio::test]
async fn a_repeated_key_returns_the_same_refund() {
    let sandbox = TestSandbox::start().await;
    let id = paid(&sandbox).await;
    let (_, first) = refund(&sandbox, &id, "key", json!({"amount": 400})).await;
    let updated = sandbox.intent(&id).await["updatedAt"].clone();
    assert_eq!(
        refund(&sandbox, &id, "key", json!({"amount": 400})).await,
        (200, first)
    );
    assert_eq!(
        refund(&sandbox, &id, "key", json!({"amount": 300})).await.0,
        400
    );
    let intent = sandbox.intent(&id).await;
    assert_eq!(intent["refundedAmount"], 400);
    assert_eq!(intent["updatedAt"], updated);

    let other = paid(&sandbox).await;
    assert_eq!(
        refund(&sandbox, &other, "key", json!({"amount": 300}))
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn a_refund_requires_a_key_and_a_payment() {
    let sandbox = TestSandbox::start().await;
    let id = paid(&sandbox).await;
    let path = format!("/payment-intents/{id}/refunds");
    assert_eq!(sandbox.post(&path, &json!({"amount": 1})).await.0, 400);
    assert_eq!(
        refund(&sandbox, &id, &"k".repeat(101), json!({"amount": 1}))
            .await
            .0,
        400
    );
    assert_eq!(
        refund(&sandbox, &id, "k", json!({"amount": 0})).await.0,
        400
    );
    let long = json!({"amount": 1, "refundReason": "r".repeat(1025)});
    assert_eq!(refund(&sandbox, &id, "k", long).await.0, 400);

    let unpaid = sandbox.create_simple().await;
    assert_eq!(
        refund(&sandbox, &unpaid, "k", json!({"amount": 1})).await.0,
        400
    );
    assert_eq!(
        refund(&sandbox, "pi_unknown", "k", json!({"amount": 1}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn an_authorization_can_be_reversed() {
    let sandbox = TestSandbox::start().await;
    let id = authorized(&sandbox).await;
    sandbox
        .control("clock", &json!({"advanceSeconds": 2 * DAY}))
        .await;
    assert_eq!(reverse(&sandbox, &id).await, 200);
    assert_eq!(sandbox.intent(&id).await["status"], "Reversed");
    assert_eq!(reverse(&sandbox, &id).await, 409);
    assert_eq!(capture(&sandbox, &id, json!({"amount": 1})).await.0, 409);
    assert_eq!(
        refund(&sandbox, &id, "k", json!({"amount": 1})).await.0,
        400
    );
}

#[tokio::test]
async fn a_captured_payment_can_be_reversed_on_the_same_day() {
    let sandbox = TestSandbox::start().await;
    sandbox.start_new_day().await;
    let id = paid(&sandbox).await;
    let late = paid(&sandbox).await;
    assert_eq!(reverse(&sandbox, &id).await, 200);
    assert_eq!(sandbox.intent(&id).await["status"], "Reversed");
    sandbox
        .control("clock", &json!({"advanceSeconds": DAY}))
        .await;
    assert_eq!(reverse(&sandbox, &late).await, 409);
    assert_eq!(reverse(&sandbox, &sandbox.create_simple().await).await, 409);
    assert_eq!(reverse(&sandbox, "pi_unknown").await, 400);

    let refunded = paid(&sandbox).await;
    refund(&sandbox, &refunded, "k", json!({"amount": 1})).await;
    assert_eq!(reverse(&sandbox, &refunded).await, 409);
}

#[tokio::test]
async fn the_amount_changes_only_if_the_intent_allows_it() {
    let sandbox = TestSandbox::start().await;
    let path = |id: &str| format!("/payment-intents/{id}/amount");
    let body = json!({
        "amount": {"value": 2500, "currencyCode": "GBP"},
        "itemLines": [{"name": "Tea", "amountTotal": {"value": 2500, "currencyCode": "GBP"}}],
    });
    let fixed = sandbox.create_simple().await;
    assert_eq!(sandbox.post(&path(&fixed), &body).await.0, 405);

    let mut request = ten_pounds();
    request["config"] = json!({"payment": {"customAmountAllowed": true}});
    let id = id(&sandbox.create(&request).await);
    let (status, intent) = sandbox.post(&path(&id), &body).await;
    assert_eq!(status, 200, "{intent}");
    assert_eq!(intent["amount"]["value"], 2500);
    assert_eq!(intent["totalAmount"]["value"], 2500);
    assert_eq!(intent["requestedAmount"]["value"], 1000);
    assert_eq!(intent["itemLines"][0]["name"], "Tea");
    let euros = json!({"amount": {"value": 1, "currencyCode": "EUR"}});
    assert_eq!(sandbox.post(&path(&id), &euros).await.0, 400);
    let nothing = json!({"amount": {"value": 0, "currencyCode": "GBP"}});
    assert_eq!(sandbox.post(&path(&id), &nothing).await.0, 400);
    sandbox.pay(&id).await;
    assert_eq!(sandbox.post(&path(&id), &body).await.0, 400);
}

#[tokio::test]
async fn the_tip_changes_only_if_the_intent_allows_it() {
    let sandbox = TestSandbox::start().await;
    let path = |id: &str| format!("/payment-intents/{id}/tips-amount");
    let body = json!({"tipsAmount": {"value": 150, "currencyCode": "GBP"}});
    let fixed = sandbox.create_simple().await;
    assert_eq!(sandbox.post(&path(&fixed), &body).await.0, 405);

    let mut request = ten_pounds();
    request["config"] = json!({"payment": {"tipsAllowed": true}});
    let id = id(&sandbox.create(&request).await);
    let (status, intent) = sandbox.post(&path(&id), &body).await;
    assert_eq!(
        (status, &intent["totalAmount"]["value"]),
        (200, &json!(1150))
    );
    assert_eq!(
        sandbox
            .post("/payment-intents/pi_unknown/tips-amount", &body)
            .await
            .0,
        400
    );
    sandbox.pay(&id).await;
    assert_eq!(sandbox.post(&path(&id), &body).await.0, 400);
}

#[tokio::test]
async fn a_receipt_causes_an_event() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    let path = format!("/payment-intents/{id}/receipt");
    let body = json!({"emails": ["jo@example.com"]});
    assert_eq!(sandbox.post(&path, &body).await.0, 400);
    sandbox.pay(&id).await;
    receiver.wait_for(2).await;
    assert_eq!(sandbox.post(&path, &body).await, (204, Value::Null));
    let webhooks = receiver.wait_for(3).await;
    assert_eq!(
        webhooks[2].summary(),
        "payment_intent.send-receipt Captured"
    );
    assert_eq!(sandbox.post(&path, &json!({"emails": []})).await.0, 400);
    assert_eq!(
        sandbox.post(&path, &json!({"emails": ["nobody"]})).await.0,
        400
    );
    assert_eq!(
        sandbox
            .post("/payment-intents/pi_unknown/receipt", &body)
            .await
            .0,
        404
    );
}
