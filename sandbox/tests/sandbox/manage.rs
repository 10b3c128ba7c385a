//! Managing a payment: captures, refunds, reversals, amounts, tips, receipts.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, Rig, answer, event_types, id, ten_pounds, ten_pounds_manual, text};

const DAY: u64 = 86_400;

async fn authorized(rig: &Rig) -> String {
    let id = id(&rig.create(&ten_pounds_manual("Release")).await);
    rig.pay(&id).await;
    id
}

async fn paid(rig: &Rig) -> String {
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    id
}

async fn capture(rig: &Rig, id: &str, body: Value) -> (u16, Value) {
    rig.post(&format!("/payment-intents/{id}/captures"), &body)
        .await
}

async fn refund(rig: &Rig, id: &str, key: &str, body: Value) -> (u16, Value) {
    let request = rig.api(Method::POST, &format!("/payment-intents/{id}/refunds"));
    answer(request.header("idempotencyKey", key).json(&body)).await
}

async fn reverse(rig: &Rig, id: &str) -> u16 {
    rig.post(&format!("/payment-intents/{id}/reversal"), &json!({}))
        .await
        .0
}

#[tokio::test]
async fn an_authorization_is_captured_whole() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = authorized(&rig).await;
    receiver.wait_for(2).await;
    let (status, answer) = capture(&rig, &id, json!({"amount": 1000})).await;
    assert_eq!(status, 200, "{answer}");
    let intent = rig.intent(&id).await;
    assert_eq!(intent["status"], "Captured");
    assert_eq!(intent["captures"][0]["id"], answer["captureId"]);
    assert_eq!(intent["captures"][0]["status"], "Successful");
    assert!(intent["paymentDetails"].is_object());
    let told = receiver.wait_for(3).await;
    assert_eq!(told[2].says(), "payment_intent.status_updated Captured");
    assert_eq!(capture(&rig, &id, json!({"amount": 1})).await.0, 409);
}

#[tokio::test]
async fn an_authorization_is_captured_in_parts_but_not_beyond_the_whole() {
    let rig = Rig::start().await;
    let id = authorized(&rig).await;
    assert_eq!(capture(&rig, &id, json!({"amount": 400})).await.0, 200);
    assert_eq!(rig.intent(&id).await["status"], "Captured");
    assert_eq!(capture(&rig, &id, json!({"amount": 601})).await.0, 409);
    assert_eq!(capture(&rig, &id, json!({"amount": 500})).await.0, 200);
    // Only what was taken can be given back.
    assert_eq!(refund(&rig, &id, "a", json!({"amount": 901})).await.0, 400);
    assert_eq!(refund(&rig, &id, "b", json!({"amount": 900})).await.0, 200);
    let intent = rig.intent(&id).await;
    assert_eq!(
        (&intent["status"], &intent["refundedAmount"]),
        (&json!("Refunded"), &json!(900))
    );
    assert_eq!(capture(&rig, &id, json!({"amount": 100})).await.0, 409);
}

#[tokio::test]
async fn what_is_left_of_an_authorization_lapses() {
    let rig = Rig::start().await;
    let id = authorized(&rig).await;
    assert_eq!(capture(&rig, &id, json!({"amount": 400})).await.0, 200);
    rig.control("clock", &json!({"advanceSeconds": 7 * DAY}))
        .await;
    assert_eq!(rig.intent(&id).await["status"], "Captured");
    assert_eq!(capture(&rig, &id, json!({"amount": 600})).await.0, 409);
}

#[tokio::test]
async fn only_an_authorization_can_be_captured() {
    let rig = Rig::start().await;
    let unpaid = id(&rig.create(&ten_pounds_manual("Capture")).await);
    assert_eq!(capture(&rig, &unpaid, json!({"amount": 1000})).await.0, 409);
    let auto = paid(&rig).await;
    assert_eq!(capture(&rig, &auto, json!({"amount": 1000})).await.0, 409);
    for body in [
        json!({}),
        json!({"amount": 0}),
        json!({"amount": 1.5}),
        json!({"amount": 1, "x": 1}),
    ] {
        assert_eq!(capture(&rig, &auto, body).await.0, 400);
    }
    assert_eq!(
        capture(&rig, "pi_unknown", json!({"amount": 1})).await.0,
        400
    );
}

#[tokio::test]
async fn tips_are_captured_as_far_as_they_are_agreed_or_allowed() {
    let rig = Rig::start().await;
    let id = authorized(&rig).await;
    assert_eq!(
        capture(&rig, &id, json!({"amount": 1000, "tipsAmount": 100}))
            .await
            .0,
        409
    );

    let mut body = ten_pounds_manual("Release");
    body["config"] = json!({"payment": {"tipsAllowed": true}});
    let id = crate::support::id(&rig.create(&body).await);
    rig.pay(&id).await;
    assert_eq!(
        capture(&rig, &id, json!({"amount": 1000, "tipsAmount": 100}))
            .await
            .0,
        200
    );
    let intent = rig.intent(&id).await;
    assert_eq!(intent["tipsAmount"]["value"], 100);
    assert_eq!(intent["totalAmount"]["value"], 1100);
    assert_eq!(
        refund(&rig, &id, "all", json!({"amount": 1100})).await.0,
        200
    );
}

#[tokio::test]
async fn a_payment_is_refunded_in_parts_until_nothing_is_left() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = paid(&rig).await;
    receiver.wait_for(2).await;

    let body = json!({"amount": 400, "refundReason": "Cold tea", "notes": "Sorry"});
    let (status, first) = refund(&rig, &id, "one", body).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["paymentIntentId"], id.as_str());
    assert_eq!(first["refundReason"], "Cold tea");
    let intent = rig.intent(&id).await;
    assert_eq!(
        (&intent["status"], &intent["refundedAmount"]),
        (&json!("Captured"), &json!(400))
    );
    assert_eq!(event_types(&intent), ["Captured", "Refunded"]);

    assert_eq!(
        refund(&rig, &id, "two", json!({"amount": 601})).await.0,
        400
    );
    assert_eq!(
        refund(&rig, &id, "two", json!({"amount": 600})).await.0,
        200
    );
    let intent = rig.intent(&id).await;
    assert_eq!(
        (&intent["status"], &intent["refundedAmount"]),
        (&json!("Refunded"), &json!(1000))
    );
    assert_eq!(
        refund(&rig, &id, "three", json!({"amount": 1})).await.0,
        400
    );

    let told = receiver.wait_for(3).await;
    assert_eq!(told.len(), 3, "a part of a refund is no change of status");
    assert_eq!(told[2].says(), "payment_intent.status_updated Refunded");

    let path = format!("/payment-intents/refunds/{}", text(&first["refundId"]));
    assert_eq!(rig.get(&path).await, (200, first));
    assert_eq!(rig.get("/payment-intents/refunds/unknown").await.0, 400);
}

#[tokio::test]
async fn the_same_key_is_the_same_refund() {
    let rig = Rig::start().await;
    let id = paid(&rig).await;
    let (_, first) = refund(&rig, &id, "key", json!({"amount": 400})).await;
    let updated = rig.intent(&id).await["updatedAt"].clone();
    assert_eq!(
        refund(&rig, &id, "key", json!({"amount": 400})).await,
        (200, first)
    );
    assert_eq!(
        refund(&rig, &id, "key", json!({"amount": 300})).await.0,
        400
    );
    let intent = rig.intent(&id).await;
    assert_eq!(intent["refundedAmount"], 400);
    assert_eq!(intent["updatedAt"], updated);

    let other = paid(&rig).await;
    assert_eq!(
        refund(&rig, &other, "key", json!({"amount": 300})).await.0,
        200
    );
}

#[tokio::test]
async fn a_refund_needs_a_key_and_something_to_refund() {
    let rig = Rig::start().await;
    let id = paid(&rig).await;
    let path = format!("/payment-intents/{id}/refunds");
    assert_eq!(rig.post(&path, &json!({"amount": 1})).await.0, 400);
    assert_eq!(
        refund(&rig, &id, &"k".repeat(101), json!({"amount": 1}))
            .await
            .0,
        400
    );
    assert_eq!(refund(&rig, &id, "k", json!({"amount": 0})).await.0, 400);
    let long = json!({"amount": 1, "refundReason": "r".repeat(1025)});
    assert_eq!(refund(&rig, &id, "k", long).await.0, 400);

    let unpaid = rig.create_simple().await;
    assert_eq!(
        refund(&rig, &unpaid, "k", json!({"amount": 1})).await.0,
        400
    );
    assert_eq!(
        refund(&rig, "pi_unknown", "k", json!({"amount": 1}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn an_authorization_can_be_reversed() {
    let rig = Rig::start().await;
    let id = authorized(&rig).await;
    rig.control("clock", &json!({"advanceSeconds": 2 * DAY}))
        .await;
    assert_eq!(reverse(&rig, &id).await, 200);
    assert_eq!(rig.intent(&id).await["status"], "Reversed");
    assert_eq!(reverse(&rig, &id).await, 409);
    assert_eq!(capture(&rig, &id, json!({"amount": 1})).await.0, 409);
    assert_eq!(refund(&rig, &id, "k", json!({"amount": 1})).await.0, 400);
}

#[tokio::test]
async fn a_captured_payment_can_be_reversed_on_its_day() {
    let rig = Rig::start().await;
    // Begin a day, so that it cannot end in the middle of this.
    let now = text(&rig.look("clock").await["now"]);
    let part = |range: std::ops::Range<usize>| now[range].parse::<u64>().expect("a number");
    let passed = part(11..13) * 3600 + part(14..16) * 60 + part(17..19);
    rig.control("clock", &json!({"advanceSeconds": DAY - passed + 60}))
        .await;

    let id = paid(&rig).await;
    let late = paid(&rig).await;
    assert_eq!(reverse(&rig, &id).await, 200);
    assert_eq!(rig.intent(&id).await["status"], "Reversed");
    rig.control("clock", &json!({"advanceSeconds": DAY})).await;
    assert_eq!(reverse(&rig, &late).await, 409);
    assert_eq!(reverse(&rig, &rig.create_simple().await).await, 409);
    assert_eq!(reverse(&rig, "pi_unknown").await, 400);

    let refunded = paid(&rig).await;
    refund(&rig, &refunded, "k", json!({"amount": 1})).await;
    assert_eq!(reverse(&rig, &refunded).await, 409);
}

#[tokio::test]
async fn the_amount_changes_only_where_that_was_allowed() {
    let rig = Rig::start().await;
    let path = |id: &str| format!("/payment-intents/{id}/amount");
    let body = json!({
        "amount": {"value": 2500, "currencyCode": "GBP"},
        "itemLines": [{"name": "Tea", "amountTotal": {"value": 2500, "currencyCode": "GBP"}}],
    });
    let fixed = rig.create_simple().await;
    assert_eq!(rig.post(&path(&fixed), &body).await.0, 405);

    let mut request = ten_pounds();
    request["config"] = json!({"payment": {"customAmountAllowed": true}});
    let id = id(&rig.create(&request).await);
    let (status, intent) = rig.post(&path(&id), &body).await;
    assert_eq!(status, 200, "{intent}");
    assert_eq!(intent["amount"]["value"], 2500);
    assert_eq!(intent["totalAmount"]["value"], 2500);
    assert_eq!(intent["requestedAmount"]["value"], 1000);
    assert_eq!(intent["itemLines"][0]["name"], "Tea");
    let euros = json!({"amount": {"value": 1, "currencyCode": "EUR"}});
    assert_eq!(rig.post(&path(&id), &euros).await.0, 400);
    let nothing = json!({"amount": {"value": 0, "currencyCode": "GBP"}});
    assert_eq!(rig.post(&path(&id), &nothing).await.0, 400);
    rig.pay(&id).await;
    assert_eq!(rig.post(&path(&id), &body).await.0, 400);
}

#[tokio::test]
async fn the_tip_changes_only_where_that_was_allowed() {
    let rig = Rig::start().await;
    let path = |id: &str| format!("/payment-intents/{id}/tips-amount");
    let body = json!({"tipsAmount": {"value": 150, "currencyCode": "GBP"}});
    let fixed = rig.create_simple().await;
    assert_eq!(rig.post(&path(&fixed), &body).await.0, 405);

    let mut request = ten_pounds();
    request["config"] = json!({"payment": {"tipsAllowed": true}});
    let id = id(&rig.create(&request).await);
    let (status, intent) = rig.post(&path(&id), &body).await;
    assert_eq!(
        (status, &intent["totalAmount"]["value"]),
        (200, &json!(1150))
    );
    assert_eq!(
        rig.post("/payment-intents/pi_unknown/tips-amount", &body)
            .await
            .0,
        400
    );
    rig.pay(&id).await;
    assert_eq!(rig.post(&path(&id), &body).await.0, 400);
}

#[tokio::test]
async fn a_receipt_is_told_as_an_event() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    let path = format!("/payment-intents/{id}/receipt");
    let body = json!({"emails": ["jo@example.com"]});
    assert_eq!(rig.post(&path, &body).await.0, 400);
    rig.pay(&id).await;
    receiver.wait_for(2).await;
    assert_eq!(rig.post(&path, &body).await, (204, Value::Null));
    let told = receiver.wait_for(3).await;
    assert_eq!(told[2].says(), "payment_intent.send-receipt Captured");
    assert_eq!(rig.post(&path, &json!({"emails": []})).await.0, 400);
    assert_eq!(rig.post(&path, &json!({"emails": ["nobody"]})).await.0, 400);
    assert_eq!(
        rig.post("/payment-intents/pi_unknown/receipt", &body)
            .await
            .0,
        404
    );
}
