//! Managing webhook subscriptions and their secrets.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, Rig, answer, id, text};
use dojo_sandbox::signature::sign;

async fn subscribe(rig: &Rig, url: &str, events: &[&str]) -> (u16, Value) {
    rig.post(
        "/webhooks",
        &json!({"events": events, "url": url, "description": "A test"}),
    )
    .await
}

#[tokio::test]
async fn an_account_subscribes_to_what_it_is_offered() {
    let rig = Rig::start().await;
    let (_, offered) = rig.get("/webhooks/events").await;
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
    let (status, subscription) = subscribe(&rig, url, &["payment_intent.created"]).await;
    assert_eq!(status, 200, "{subscription}");
    assert_eq!(subscription["secrets"][0]["isActive"], true);
    assert_eq!(rig.get("/webhooks").await, (200, json!([subscription])));

    let second = ["payment_intent.status_updated", "payment_intent.created"];
    assert_eq!(subscribe(&rig, url, &second).await.0, 409);
    assert_eq!(subscribe(&rig, url, &["payment_intent.lost"]).await.0, 400);
    assert_eq!(
        subscribe(&rig, "ftp://localhost", &["payment_intent.status_updated"])
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn a_subscription_changes_and_ends() {
    let rig = Rig::start().await;
    let (_, subscription) =
        subscribe(&rig, "http://localhost:1/hook", &["payment_intent.created"]).await;
    let path = format!("/webhooks/{}", id(&subscription));

    let change =
        json!({"url": "http://localhost:2/hook", "events": ["payment_intent.status_updated"]});
    let (status, changed) = answer(rig.api(Method::PATCH, &path).json(&change)).await;
    assert_eq!((status, &changed["url"]), (200, &change["url"]));
    assert_eq!(changed["events"], change["events"]);
    assert_eq!(changed["description"], "A test");

    assert_eq!(rig.delete(&path).await.0, 204);
    assert_eq!(rig.delete(&path).await.0, 404);
    assert_eq!(rig.get("/webhooks").await.1, json!([]));
}

#[tokio::test]
async fn a_rotated_secret_signs_once_it_is_activated() {
    let receiver = Receiver::start().await;
    let rig = Rig::start().await;
    let (_, subscription) = subscribe(&rig, &receiver.url, &["payment_intent.created"]).await;
    let path = format!("/webhooks/{}/secrets", id(&subscription));
    let first = text(&subscription["secrets"][0]["value"]);

    let (status, secrets) = rig.post(&path, &json!({})).await;
    assert_eq!((status, &secrets["id"]), (200, &subscription["id"]));
    assert_eq!(secrets["secrets"][1]["isActive"], false);
    let second = text(&secrets["secrets"][1]["value"]);
    rig.create_simple().await;
    let arrivals = receiver.wait_for(1).await;
    assert_eq!(arrivals[0].signature, Some(sign(&first, &arrivals[0].raw)));

    let activate = format!("{path}/{}/activate", text(&secrets["secrets"][1]["id"]));
    assert_eq!(answer(rig.api(Method::PUT, &activate)).await.0, 204);
    rig.create_simple().await;
    let arrivals = receiver.wait_for(2).await;
    assert_eq!(arrivals[1].signature, Some(sign(&second, &arrivals[1].raw)));

    let old = format!("{path}/{}", text(&secrets["secrets"][0]["id"]));
    assert_eq!(rig.delete(&old).await.0, 204);
    assert_eq!(rig.delete(&old).await.0, 404);
    let (_, left) = rig.get(&path).await;
    assert_eq!(left["secrets"].as_array().map(Vec::len), Some(1));
    assert_eq!(left["secrets"][0]["isActive"], true);
}

#[tokio::test]
async fn an_account_can_be_told_to_offer_less() {
    let rig = Rig::start().await;
    let less = json!({"events": ["payment_intent.created"]});
    rig.control("offered-events", &less).await;
    assert_eq!(rig.look("offered-events").await, less);
    assert_eq!(
        rig.get("/webhooks/events").await.1[0]["events"],
        less["events"]
    );
    let url = "http://localhost:1/hook";
    assert_eq!(
        subscribe(&rig, url, &["payment_intent.status_updated"])
            .await
            .0,
        400
    );
    assert_eq!(
        subscribe(&rig, url, &["payment_intent.created"]).await.0,
        200
    );
    let unheard = json!({"events": ["payment_intent.unheard"]});
    assert_eq!(rig.try_control("offered-events", &unheard).await.0, 400);
}

#[tokio::test]
async fn a_new_secret_can_be_told_to_sign_at_once() {
    let rig = Rig::start().await;
    let url = "http://localhost:1/hook";
    let (_, subscription) = subscribe(&rig, url, &["payment_intent.created"]).await;
    rig.control("new-secrets", &json!({"sign": true})).await;
    let path = format!("/webhooks/{}/secrets", id(&subscription));
    let (_, made) = rig.post(&path, &json!({})).await;
    assert_eq!(made["secrets"][0]["isActive"], false);
    assert_eq!(made["secrets"][1]["isActive"], true);
}
