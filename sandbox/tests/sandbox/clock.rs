//! What time brings about.

use dojo_sandbox::Settings;
use reqwest::Method;
use serde_json::json;

use crate::support::{Receiver, Rig, event_types, id, ten_pounds, ten_pounds_manual};

const DAY: u64 = 86_400;

async fn advance(rig: &Rig, seconds: u64) {
    rig.control("clock", &json!({"advanceSeconds": seconds}))
        .await;
}

#[tokio::test]
async fn an_unpaid_intent_is_voided_after_thirty_days() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    receiver.wait_for(1).await;
    advance(&rig, 30 * DAY - 60).await;
    assert_eq!(rig.intent(&id).await["status"], "Created");
    advance(&rig, 60).await;
    assert_eq!(rig.intent(&id).await["status"], "Canceled");
    let told = receiver.wait_for(2).await;
    assert_eq!(told[1].says(), "payment_intent.status_updated Canceled");
    assert_eq!(rig.look("clock").await["advancedSeconds"], 30 * DAY);
}

#[tokio::test]
async fn an_intent_says_itself_when_it_expires() {
    let rig = Rig::start().await;
    let now = rig.look("clock").await["now"]
        .as_str()
        .expect("a time")
        .to_owned();
    let mut body = ten_pounds();
    let next_year = now[..4].parse::<u16>().expect("a year") + 1;
    body["expireAt"] = json!(format!("{next_year}{}", &now[4..]));
    let id = id(&rig.create(&body).await);
    advance(&rig, 31 * DAY).await;
    assert_eq!(rig.intent(&id).await["status"], "Created");
    advance(&rig, 336 * DAY).await;
    assert_eq!(rig.intent(&id).await["status"], "Canceled");
}

#[tokio::test]
async fn a_paid_intent_does_not_expire() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    advance(&rig, 400 * DAY).await;
    assert_eq!(rig.intent(&id).await["status"], "Captured");
}

#[tokio::test]
async fn an_authorization_ends_as_its_maker_wished() {
    let rig = Rig::start().await;
    for (action, status, event) in [
        ("Capture", "Captured", "Captured"),
        ("Release", "Reversed", "Reversed"),
    ] {
        let mut body = ten_pounds_manual(action);
        body["autoExpireIn"] = json!("01:00:00");
        let id = id(&rig.create(&body).await);
        rig.pay(&id).await;
        advance(&rig, 3500).await;
        assert_eq!(rig.intent(&id).await["status"], "Authorized");
        advance(&rig, 100).await;
        let intent = rig.intent(&id).await;
        assert_eq!(intent["status"], status);
        assert_eq!(event_types(&intent), ["Authorized", event]);
        assert!(intent["paymentDetails"].is_object());
    }
}

#[tokio::test]
async fn an_authorization_lasts_seven_days_and_is_then_reversed() {
    let rig = Rig::start().await;
    let id = id(&rig.create(&ten_pounds_manual("Capture")).await);
    rig.pay(&id).await;
    advance(&rig, 7 * DAY - 60).await;
    assert_eq!(rig.intent(&id).await["status"], "Authorized");
    advance(&rig, 60).await;
    assert_eq!(rig.intent(&id).await["status"], "Reversed");
}

#[tokio::test]
async fn the_clock_only_goes_ahead() {
    let rig = Rig::with(Settings::default()).await;
    assert_eq!(
        rig.try_control("clock", &json!({"advanceSeconds": -1}))
            .await
            .0,
        400
    );
    assert_eq!(
        rig.try_control("clock", &json!({"advanceSeconds": 1e12}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn the_date_of_answers_follows_the_clock() {
    let rig = Rig::start().await;
    let date = async || {
        let answer = rig.api(Method::GET, "/webhooks/events").send().await;
        let headers = answer.expect("an answer").headers().clone();
        let date = headers["date"].to_str().expect("text").to_owned();
        assert!(date.ends_with(" GMT"), "{date}");
        date
    };
    let before = date().await;
    advance(&rig, 400 * DAY).await;
    let after = date().await;
    let year = |date: &str| date[12..16].parse::<u16>().expect("a year");
    assert!(
        (1..=2).contains(&(year(&after) - year(&before))),
        "{before} {after}"
    );
}
