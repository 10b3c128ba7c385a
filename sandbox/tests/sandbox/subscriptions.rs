//! Managing webhook subscriptions and their secrets.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, TestSandbox, id, send, text};
use dojo_sandbox::signature::sign;

async fn subscribe(sandbox: &TestSandbox, url: &str, events: &[&str]) -> (u16, Value) {
    sandbox
        .post(
            "/webhooks",
            &json!({"events": events, "url": url, "description": "A test"}),
        )
        .await
}

#[tokio::test]
async fn an_account_subscribes_to_offered_events() {
    let sandbox = TestSandbox::start().await;
    let (_, offered) = sandbox.get("/webhooks/events").await;
    assert_eq!(
        offered,
        json!([{
            "model": "PaymentIntent",
            "events": [
                "payment_intent.created",
                "payment_intent.status_updated",
                "payment_intent.send-receipt",
            ],
        }])
    );

    let url = "http://localhost:1/hook";
    let (status, subscription) = subscribe(&sandbox, url, &["payment_intent.created"]).await;
    assert_eq!(status, 200, "{subscription}");
    assert_eq!(subscription["secrets"][0]["isActive"], true);
    assert_eq!(sandbox.get("/webhooks").await, (200, json!([subscription])));

    let second = ["payment_intent.status_updated", "payment_intent.created"];
    assert_eq!(subscribe(&sandbox, url, &second).await.0, 409);
    assert_eq!(
        subscribe(&sandbox, url, &["payment_intent.lost"]).await.0,
        400
    );
    assert_eq!(
        subscribe(
            &sandbox,
            "ftp://localhost",
            &["payment_intent.status_updated"]
        )
        .await
        .0,
        400
    );
}

#[tokio::test]
async fn a_subscription_can_be_changed_and_deleted() {
    let sandbox = TestSandbox::start().await;
    let (_, subscription) = subscribe(
        &sandbox,
        "http://localhost:1/hook",
        &["payment_intent.created"],
    )
    .await;
    let path = format!("/webhooks/{}", id(&subscription));

    let change =
        json!({"url": "http://localhost:2/hook", "events": ["payment_intent.status_updated"]});
    let (status, changed) = send(sandbox.api(Method::PATCH, &path).json(&change)).await;
    assert_eq!((status, &changed["url"]), (200, &change["url"]));
    assert_eq!(changed["events"], change["events"]);
    assert_eq!(changed["description"], "A test");

    assert_eq!(sandbox.delete(&path).await.0, 204);
    assert_eq!(sandbox.delete(&path).await.0, 404);
    assert_eq!(sandbox.get("/webhooks").await.1, json!([]));
}

#[tokio::test]
async fn a_new_secret_signs_after_its_activation() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::start().await;
    let (_, subscription) = subscribe(&sandbox, &receiver.url, &["payment_intent.created"]).await;
    let path = format!("/webhooks/{}/secrets", id(&subscription));
    let first = text(&subscription["secrets"][0]["value"]);

    let (status, secrets) = sandbox.post(&path, &json!({})).await;
    assert_eq!((status, &secrets["id"]), (200, &subscription["id"]));
    assert_eq!(secrets["secrets"][1]["isActive"], false);
    let second = text(&secrets["secrets"][1]["value"]);
    sandbox.create_simple().await;
    let webhooks = receiver.wait_for(1).await;
    assert_eq!(webhooks[0].signature, Some(sign(&first, &webhooks[0].raw)));

    let activate = format!("{path}/{}/activate", text(&secrets["secrets"][1]["id"]));
    assert_eq!(send(sandbox.api(Method::PUT, &activate)).await.0, 204);
    sandbox.create_simple().await;
    let webhooks = receiver.wait_for(2).await;
    assert_eq!(webhooks[1].signature, Some(sign(&second, &webhooks[1].raw)));

    let old = format!("{path}/{}", text(&secrets["secrets"][0]["id"]));
    assert_eq!(sandbox.delete(&old).await.0, 204);
    assert_eq!(sandbox.delete(&old).await.0, 404);
    let (_, left) = sandbox.get(&path).await;
    assert_eq!(left["secrets"].as_array().map(Vec::len), Some(1));
    assert_eq!(left["secrets"][0]["isActive"], true);
}

#[tokio::test]
async fn the_offered_events_can_be_limited() {
    let sandbox = TestSandbox::start().await;
    let less = json!({"events": ["payment_intent.created"]});
    sandbox.control("offered-events", &less).await;
    assert_eq!(sandbox.control_get("offered-events").await, less);
    assert_eq!(
        sandbox.get("/webhooks/events").await.1[0]["events"],
        less["events"]
    );
    let url = "http://localhost:1/hook";
    assert_eq!(
        subscribe(&sandbox, url, &["payment_intent.status_updated"])
            .await
            .0,
        400
    );
    assert_eq!(
        subscribe(&sandbox, url, &["payment_intent.created"])
            .await
            .0,
        200
    );
    let unknown = json!({"events": ["payment_intent.unknown"]});
    assert_eq!(
        sandbox.control_response("offered-events", &unknown).await.0,
        400
    );
}

#[tokio::test]
async fn a_new_secret_can_become_active_at_once() {
    let sandbox = TestSandbox::start().await;
    let url = "http://localhost:1/hook";
    let (_, subscription) = subscribe(&sandbox, url, &["payment_intent.created"]).await;
    sandbox.control("new-secrets", &json!({"sign": true})).await;
    let path = format!("/webhooks/{}/secrets", id(&subscription));
    let (_, made) = sandbox.post(&path, &json!({})).await;
    assert_eq!(made["secrets"][0]["isActive"], false);
    assert_eq!(made["secrets"][1]["isActive"], true);
}
