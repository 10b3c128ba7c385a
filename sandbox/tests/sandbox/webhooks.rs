//! Webhook deliveries, and faults in them.

use dojo_sandbox::signature::sign;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, SECRET, TestSandbox, eventually, send, text};

/// A sandbox with a fault in its webhook deliveries.
async fn with_fault(fault: &Value) -> (Receiver, TestSandbox) {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    sandbox.control("webhook-faults", fault).await;
    (receiver, sandbox)
}

/// Waits for a delivery in this state.
async fn delivery(sandbox: &TestSandbox, state: &str) -> Value {
    eventually(&format!("a delivery that is {state}"), async || {
        let deliveries = sandbox.control_get("deliveries").await;
        let found = deliveries
            .as_array()?
            .iter()
            .find(|delivery| delivery["state"] == state)?;
        Some(found.clone())
    })
    .await
}

#[tokio::test]
async fn a_webhook_has_the_documented_members_and_a_signature() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    let webhook = receiver.wait_for(1).await.remove(0);

    assert_eq!(webhook.signature, Some(sign(SECRET, &webhook.raw)));
    let members: Vec<&String> = webhook
        .body
        .as_object()
        .expect("an object")
        .keys()
        .collect();
    assert_eq!(members, ["accountId", "createdAt", "data", "event", "id"]);
    assert_eq!(webhook.body["event"], "payment_intent.created");
    assert!(text(&webhook.body["id"]).starts_with("evt_"));
    assert!(text(&webhook.body["accountId"]).starts_with("acc_"));
    assert_eq!(
        text(&webhook.body["createdAt"]).len(),
        "2022-01-31T10:46:46.3202622Z".len()
    );
    assert_eq!(
        webhook.body["data"],
        json!({"paymentIntentId": id, "paymentStatus": "Created", "captureMode": "Auto"})
    );
}

#[tokio::test]
async fn only_changes_of_the_status_cause_webhooks() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    receiver.wait_for(1).await;
    sandbox
        .control(&format!("payment-intents/{id}/decline"), &json!({}))
        .await;
    sandbox
        .control(
            &format!("payment-intents/{id}/amount"),
            &json!({"amount": 900}),
        )
        .await;
    sandbox.pay(&id).await;
    assert_eq!(
        receiver.summaries(2).await,
        [
            "payment_intent.created Created",
            "payment_intent.status_updated Captured"
        ]
    );
}

#[tokio::test]
async fn a_rejected_webhook_is_retried_with_the_same_body() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    receiver.reject_next(2);
    sandbox.create_simple().await;
    let delivered = delivery(&sandbox, "delivered").await;
    let statuses: Vec<&Value> = attempts(&delivered)
        .map(|attempt| &attempt["status"])
        .collect();
    assert_eq!(statuses, [503, 503, 204]);
    let webhooks = receiver.received();
    assert!(
        webhooks
            .iter()
            .all(|webhook| webhook.raw == webhooks[0].raw)
    );
}

#[tokio::test]
async fn a_webhook_is_given_up_after_the_last_attempt_and_can_be_redelivered() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    sandbox
        .control("webhook-retries", &json!({"attempts": 3, "baseDelayMs": 1}))
        .await;
    receiver.reject_next(3);
    sandbox.create_simple().await;
    let given_up = delivery(&sandbox, "gaveUp").await;
    assert_eq!(attempts(&given_up).count(), 3);

    let path = format!("deliveries/{}/redeliver", text(&given_up["eventId"]));
    sandbox.control(&path, &json!({})).await;
    let delivered = delivery(&sandbox, "delivered").await;
    assert_eq!(attempts(&delivered).count(), 4);
    assert_eq!(delivered["eventId"], given_up["eventId"]);
    assert_eq!(
        sandbox
            .control_response("deliveries/evt_unknown/redeliver", &json!({}))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_refused_connection_is_recorded_as_an_error() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    sandbox
        .control("webhook-retries", &json!({"attempts": 2, "baseDelayMs": 1}))
        .await;
    drop(receiver);
    sandbox.create_simple().await;
    let given_up = delivery(&sandbox, "gaveUp").await;
    assert!(
        attempts(&given_up).all(|attempt| attempt["error"].is_string()),
        "{given_up}"
    );
}

#[tokio::test]
async fn a_dropped_webhook_never_arrives() {
    let fault = json!({"kind": "drop", "event": "payment_intent.created"});
    let (receiver, sandbox) = with_fault(&fault).await;
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    let webhooks = receiver.wait_for(1).await;
    assert_eq!(
        webhooks[0].summary(),
        "payment_intent.status_updated Captured"
    );
    let dropped = delivery(&sandbox, "dropped").await;
    assert_eq!(attempts(&dropped).count(), 0);
    assert_eq!(sandbox.control_get("webhook-faults").await, json!([]));
}

#[tokio::test]
async fn a_doubled_webhook_arrives_twice() {
    let (receiver, sandbox) = with_fault(&json!({"kind": "double"})).await;
    sandbox.create_simple().await;
    let webhooks = receiver.wait_for(2).await;
    assert_eq!(webhooks[0].raw, webhooks[1].raw);
}

#[tokio::test]
async fn a_reordered_webhook_is_overtaken_by_the_next() {
    let fault = json!({"kind": "reorder", "delayMs": 60000});
    let (receiver, sandbox) = with_fault(&fault).await;
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    assert_eq!(
        receiver.summaries(2).await,
        [
            "payment_intent.status_updated Captured",
            "payment_intent.created Created"
        ]
    );
}

#[tokio::test]
async fn clearing_the_faults_sends_reordered_webhooks() {
    let fault = json!({"kind": "reorder", "delayMs": 60000});
    let (receiver, sandbox) = with_fault(&fault).await;
    sandbox.create_simple().await;
    sandbox.control_delete("webhook-faults").await;
    receiver.wait_for(1).await;
}

#[tokio::test]
async fn a_delayed_webhook_arrives_after_a_later_one() {
    let (receiver, sandbox) = with_fault(&json!({"kind": "delay", "delayMs": 1500})).await;
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    assert_eq!(
        receiver.summaries(2).await,
        [
            "payment_intent.status_updated Captured",
            "payment_intent.created Created"
        ]
    );
}

#[tokio::test]
async fn an_event_can_have_any_content() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    receiver.wait_for(1).await;
    let forged =
        json!({"paymentIntentId": id, "status": "Exploded", "event": "payment_intent.new"});
    let response = sandbox.control("webhooks/deliver", &forged).await;
    let webhook = receiver.wait_for(2).await.remove(1);
    assert_eq!(webhook.summary(), "payment_intent.new Exploded");
    assert_eq!(webhook.body["id"], response["eventId"]);
    assert_eq!(webhook.signature, Some(sign(SECRET, &webhook.raw)));
    assert_eq!(sandbox.intent(&id).await["status"], "Created");
}

#[tokio::test]
async fn stopping_does_not_wait_for_retries() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    sandbox
        .control("webhook-retries", &json!({"baseDelayMs": 60000}))
        .await;
    drop(receiver);
    sandbox.create_simple().await;
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, sandbox.server.stop())
        .await
        .expect("stopped in time");
}

#[tokio::test]
async fn an_invalid_fault_is_rejected() {
    let sandbox = TestSandbox::start().await;
    for fault in [
        json!({"kind": "lose"}),
        json!({"kind": "delay"}),
        json!({"kind": "drop", "share": 2}),
    ] {
        assert_eq!(
            sandbox.control_response("webhook-faults", &fault).await.0,
            400,
            "{fault}"
        );
    }
    assert_eq!(
        send(sandbox.request(Method::GET, "/_sandbox/unknown"))
            .await
            .0,
        404
    );
}

fn attempts(delivery: &Value) -> impl Iterator<Item = &Value> {
    delivery["attempts"].as_array().expect("attempts").iter()
}
