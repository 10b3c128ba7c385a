//! What subscribers are told, and what can go wrong on the way.

use dojo_sandbox::signature::sign;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Arrival, Receiver, Rig, SECRET, answer, eventually, text};

async fn delivery(rig: &Rig, state: &str) -> Value {
    eventually(&format!("a delivery that is {state}"), async || {
        let deliveries = rig.look("deliveries").await;
        let found = deliveries
            .as_array()?
            .iter()
            .find(|delivery| delivery["state"] == state)?;
        Some(found.clone())
    })
    .await
}

#[tokio::test]
async fn a_webhook_is_thin_and_signed() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    let arrival = receiver.wait_for(1).await.remove(0);

    assert_eq!(arrival.signature, Some(sign(SECRET, &arrival.raw)));
    let members: Vec<&String> = arrival
        .body
        .as_object()
        .expect("an object")
        .keys()
        .collect();
    assert_eq!(members, ["accountId", "createdAt", "data", "event", "id"]);
    assert_eq!(arrival.body["event"], "payment_intent.created");
    assert!(text(&arrival.body["id"]).starts_with("evt_"));
    assert!(text(&arrival.body["accountId"]).starts_with("acc_"));
    assert_eq!(
        text(&arrival.body["createdAt"]).len(),
        "2022-01-31T10:46:46.3202622Z".len()
    );
    assert_eq!(
        arrival.body["data"],
        json!({"paymentIntentId": id, "paymentStatus": "Created", "captureMode": "Auto"})
    );
}

#[tokio::test]
async fn each_change_of_status_is_told_and_nothing_else() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    receiver.wait_for(1).await;
    rig.control(&format!("payment-intents/{id}/decline"), &json!({}))
        .await;
    rig.control(
        &format!("payment-intents/{id}/amount"),
        &json!({"amount": 900}),
    )
    .await;
    rig.pay(&id).await;
    let told: Vec<String> = receiver
        .wait_for(2)
        .await
        .iter()
        .map(Arrival::says)
        .collect();
    assert_eq!(
        told,
        [
            "payment_intent.created Created",
            "payment_intent.status_updated Captured"
        ]
    );
}

#[tokio::test]
async fn a_refused_webhook_comes_again_with_the_same_body() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    receiver.refuse(2);
    rig.create_simple().await;
    let delivered = delivery(&rig, "delivered").await;
    let statuses: Vec<&Value> = attempts(&delivered)
        .map(|attempt| &attempt["status"])
        .collect();
    assert_eq!(statuses, [503, 503, 204]);
    let arrivals = receiver.arrivals();
    assert!(
        arrivals
            .iter()
            .all(|arrival| arrival.raw == arrivals[0].raw)
    );
}

#[tokio::test]
async fn a_webhook_refused_too_often_is_given_up_until_somebody_asks() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control("webhook-retries", &json!({"attempts": 3, "baseDelayMs": 1}))
        .await;
    receiver.refuse(3);
    rig.create_simple().await;
    let given_up = delivery(&rig, "gaveUp").await;
    assert_eq!(attempts(&given_up).count(), 3);

    let path = format!("deliveries/{}/redeliver", text(&given_up["eventId"]));
    rig.control(&path, &json!({})).await;
    let delivered = delivery(&rig, "delivered").await;
    assert_eq!(attempts(&delivered).count(), 4);
    assert_eq!(delivered["eventId"], given_up["eventId"]);
    assert_eq!(
        rig.try_control("deliveries/evt_unknown/redeliver", &json!({}))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn nobody_listening_is_recorded_as_an_error() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control("webhook-retries", &json!({"attempts": 2, "baseDelayMs": 1}))
        .await;
    drop(receiver);
    rig.create_simple().await;
    let given_up = delivery(&rig, "gaveUp").await;
    assert!(
        attempts(&given_up).all(|attempt| attempt["error"].is_string()),
        "{given_up}"
    );
}

#[tokio::test]
async fn a_dropped_webhook_never_arrives() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let fault = json!({"kind": "drop", "event": "payment_intent.created"});
    rig.control("webhook-faults", &fault).await;
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    let arrivals = receiver.wait_for(1).await;
    assert_eq!(arrivals[0].says(), "payment_intent.status_updated Captured");
    let dropped = delivery(&rig, "dropped").await;
    assert_eq!(attempts(&dropped).count(), 0);
    assert_eq!(rig.look("webhook-faults").await, json!([]));
}

#[tokio::test]
async fn a_doubled_webhook_arrives_twice() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control("webhook-faults", &json!({"kind": "double"}))
        .await;
    rig.create_simple().await;
    let arrivals = receiver.wait_for(2).await;
    assert_eq!(arrivals[0].raw, arrivals[1].raw);
}

#[tokio::test]
async fn a_reordered_webhook_is_overtaken_by_the_next() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control(
        "webhook-faults",
        &json!({"kind": "reorder", "delayMs": 60000}),
    )
    .await;
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    let told: Vec<String> = receiver
        .wait_for(2)
        .await
        .iter()
        .map(Arrival::says)
        .collect();
    assert_eq!(
        told,
        [
            "payment_intent.status_updated Captured",
            "payment_intent.created Created"
        ]
    );
}

#[tokio::test]
async fn held_webhooks_are_sent_when_the_faults_are_cleared() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control(
        "webhook-faults",
        &json!({"kind": "reorder", "delayMs": 60000}),
    )
    .await;
    rig.create_simple().await;
    rig.clear("webhook-faults").await;
    receiver.wait_for(1).await;
}

#[tokio::test]
async fn a_delayed_webhook_arrives_after_a_later_one() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control("webhook-faults", &json!({"kind": "delay", "delayMs": 1500}))
        .await;
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    let told: Vec<String> = receiver
        .wait_for(2)
        .await
        .iter()
        .map(Arrival::says)
        .collect();
    assert_eq!(
        told,
        [
            "payment_intent.status_updated Captured",
            "payment_intent.created Created"
        ]
    );
}

#[tokio::test]
async fn an_event_can_claim_anything() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    receiver.wait_for(1).await;
    let claim = json!({"paymentIntentId": id, "status": "Exploded", "event": "payment_intent.new"});
    let answer = rig.control("webhooks/deliver", &claim).await;
    let arrival = receiver.wait_for(2).await.remove(1);
    assert_eq!(arrival.says(), "payment_intent.new Exploded");
    assert_eq!(arrival.body["id"], answer["eventId"]);
    assert_eq!(arrival.signature, Some(sign(SECRET, &arrival.raw)));
    assert_eq!(rig.intent(&id).await["status"], "Created");
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_receiver_that_is_gone() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    rig.control("webhook-retries", &json!({"baseDelayMs": 60000}))
        .await;
    drop(receiver);
    rig.create_simple().await;
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, rig.sandbox.stop())
        .await
        .expect("stopped in time");
}

#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused() {
    let rig = Rig::start().await;
    for fault in [
        json!({"kind": "lose"}),
        json!({"kind": "delay"}),
        json!({"kind": "drop", "share": 2}),
    ] {
        assert_eq!(
            rig.try_control("webhook-faults", &fault).await.0,
            400,
            "{fault}"
        );
    }
    assert_eq!(
        answer(rig.request(Method::GET, "/_sandbox/unheard"))
            .await
            .0,
        404
    );
}

fn attempts(delivery: &Value) -> impl Iterator<Item = &Value> {
    delivery["attempts"].as_array().expect("attempts").iter()
}
