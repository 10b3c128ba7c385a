//! Expiry, and the sandbox's clock.

use dojo_sandbox::Settings;
use reqwest::Method;
use serde_json::json;

use crate::support::{Receiver, TestSandbox, event_types, id, ten_pounds, ten_pounds_manual};

const DAY: u64 = 86_400;

async fn advance(sandbox: &TestSandbox, seconds: u64) {
    sandbox
        .control("clock", &json!({"advanceSeconds": seconds}))
        .await;
}

#[tokio::test]
async fn an_unpaid_intent_is_voided_after_thirty_days() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    receiver.wait_for(1).await;
    advance(&sandbox, 30 * DAY - 60).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Created");
    advance(&sandbox, 60).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Canceled");
    let webhooks = receiver.wait_for(2).await;
    assert_eq!(
        webhooks[1].summary(),
        "payment_intent.status_updated Canceled"
    );
    assert_eq!(
        sandbox.control_get("clock").await["advancedSeconds"],
        30 * DAY
    );
}

#[tokio::test]
async fn an_intent_expires_at_its_expire_at() {
    let sandbox = TestSandbox::start().await;
    let now = sandbox.control_get("clock").await["now"]
        .as_str()
        .expect("a time")
        .to_owned();
    let mut body = ten_pounds();
    let next_year = now[..4].parse::<u16>().expect("a year") + 1;
    body["expireAt"] = json!(format!("{next_year}{}", &now[4..]));
    let id = id(&sandbox.create(&body).await);
    advance(&sandbox, 31 * DAY).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Created");
    advance(&sandbox, 336 * DAY).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Canceled");
}

#[tokio::test]
async fn a_paid_intent_does_not_expire() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    advance(&sandbox, 400 * DAY).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Captured");
}

#[tokio::test]
async fn an_authorization_ends_with_its_auto_expire_action() {
    let sandbox = TestSandbox::start().await;
    for (action, status, event) in [
        ("Capture", "Captured", "Captured"),
        ("Release", "Reversed", "Reversed"),
    ] {
        let mut body = ten_pounds_manual(action);
        body["autoExpireIn"] = json!("01:00:00");
        let id = id(&sandbox.create(&body).await);
        sandbox.pay(&id).await;
        advance(&sandbox, 3500).await;
        assert_eq!(sandbox.intent(&id).await["status"], "Authorized");
        advance(&sandbox, 100).await;
        let intent = sandbox.intent(&id).await;
        assert_eq!(intent["status"], status);
        assert_eq!(event_types(&intent), ["Authorized", event]);
        assert!(intent["paymentDetails"].is_object());
    }
}

#[tokio::test]
async fn an_authorization_is_reversed_after_seven_days() {
    let sandbox = TestSandbox::start().await;
    let id = id(&sandbox.create(&ten_pounds_manual("Capture")).await);
    sandbox.pay(&id).await;
    advance(&sandbox, 7 * DAY - 60).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Authorized");
    advance(&sandbox, 60).await;
    assert_eq!(sandbox.intent(&id).await["status"], "Reversed");
}

#[tokio::test]
async fn the_clock_only_moves_forward() {
    let sandbox = TestSandbox::with_settings(Settings::default()).await;
    assert_eq!(
        sandbox
            .control_response("clock", &json!({"advanceSeconds": -1}))
            .await
            .0,
        400
    );
    assert_eq!(
        sandbox
            .control_response("clock", &json!({"advanceSeconds": 1e12}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn the_date_of_responses_follows_the_clock() {
    let sandbox = TestSandbox::start().await;
    let date = async || {
        let response = sandbox.api(Method::GET, "/webhooks/events").send().await;
        let headers = response.expect("a response").headers().clone();
        let date = headers["date"].to_str().expect("text").to_owned();
        assert!(date.ends_with(" GMT"), "{date}");
        date
    };
    let before = date().await;
    advance(&sandbox, 400 * DAY).await;
    let after = date().await;
    let year = |date: &str| date[12..16].parse::<u16>().expect("a year");
    assert!(
        (1..=2).contains(&(year(&after) - year(&before))),
        "{before} {after}"
    );
}
