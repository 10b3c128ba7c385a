//! Playing the customer from a test.

use serde_json::{Value, json};

use crate::support::{Receiver, Rig, event_types, id, ten_pounds};

#[tokio::test]
async fn it_says_that_it_is_well() {
    let rig = Rig::start().await;
    assert_eq!(rig.look("health").await, json!({"status": "ok"}));
}

#[tokio::test]
async fn a_declined_intent_can_still_be_paid() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let declined = rig
        .control(&format!("payment-intents/{id}/decline"), &json!({}))
        .await;
    assert_eq!(declined["status"], "Created");
    assert_eq!(event_types(&declined), ["Declined"]);
    assert_eq!(event_types(&rig.pay(&id).await), ["Declined", "Captured"]);
}

#[tokio::test]
async fn a_challenge_waits_until_it_is_passed() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let challenged = rig
        .control(&format!("payment-intents/{id}/challenge"), &json!({}))
        .await;
    assert_eq!(challenged["status"], "Created");
    let paid = rig.pay(&id).await;
    assert_eq!(event_types(&paid), ["AuthChallenged", "Captured"]);
    assert_eq!(paid["paymentDetails"]["card"]["last4PAN"], "1096");
}

#[tokio::test]
async fn any_card_can_be_presented() {
    let rig = Rig::start().await;
    for (card, status, events) in [
        (
            "5200 0000 0000 1096",
            "Captured",
            vec!["AuthChallenged", "Captured"],
        ),
        ("4456530000001013", "Created", vec!["Declined"]),
        ("4111111111111111", "Created", vec!["Declined"]),
    ] {
        let id = rig.create_simple().await;
        let path = format!("payment-intents/{id}/pay");
        let intent = rig.control(&path, &json!({"card": card})).await;
        assert_eq!(intent["status"], status, "{card}");
        assert_eq!(event_types(&intent), events, "{card}");
    }
}

#[tokio::test]
async fn what_the_state_forbids_is_a_conflict() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    for action in ["pay", "decline", "challenge", "expire"] {
        let path = format!("payment-intents/{id}/{action}");
        assert_eq!(rig.try_control(&path, &json!({})).await.0, 409, "{action}");
    }
    assert_eq!(
        rig.try_control("payment-intents/pi_unknown/pay", &json!({}))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_refund_in_the_portal_can_be_partial_and_is_told_like_any_other() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    let path = format!("payment-intents/{id}/refund");
    assert_eq!(rig.try_control(&path, &json!({"amount": 1})).await.0, 409);
    rig.pay(&id).await;
    assert_eq!(rig.try_control(&path, &json!({"amount": 0})).await.0, 400);
    let partly = rig.control(&path, &json!({"amount": 400})).await;
    assert_eq!(
        (&partly["status"], &partly["refundedAmount"]),
        (&json!("Captured"), &json!(400))
    );
    assert_eq!(rig.try_control(&path, &json!({"amount": 601})).await.0, 409);
    // What is left.
    let fully = rig.control(&path, &json!({})).await;
    assert_eq!(
        (&fully["status"], &fully["refundedAmount"]),
        (&json!("Refunded"), &json!(1000))
    );
    let told = receiver.wait_for(3).await;
    assert_eq!(told.len(), 3, "a part of a refund is no change of status");
    assert_eq!(told[2].says(), "payment_intent.status_updated Refunded");
    assert_eq!(rig.try_control(&path, &json!({})).await.0, 409);
}

#[tokio::test]
async fn a_status_and_an_amount_can_be_forced() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;
    let id = rig.create_simple().await;
    receiver.wait_for(1).await;
    let path = format!("payment-intents/{id}");
    rig.control(&format!("{path}/status"), &json!({"status": "Pondering"}))
        .await;
    rig.control(&format!("{path}/amount"), &json!({"amount": 1}))
        .await;
    let intent = rig.intent(&id).await;
    assert_eq!(intent["status"], "Pondering");
    assert_eq!(intent["totalAmount"]["value"], 1);
    let told = receiver.wait_for(2).await;
    assert_eq!(told[1].says(), "payment_intent.status_updated Pondering");
}

#[tokio::test]
async fn all_intents_can_be_listed_and_found_by_metadata() {
    let rig = Rig::start().await;
    let first = rig.create_simple().await;
    let mut body = ten_pounds();
    body["metadata"] = json!({"key": "k1"});
    let second = id(&rig.create(&body).await);
    rig.delete(&format!("/payment-intents/{first}")).await;
    let ids = |list: &Value| {
        list.as_array()
            .expect("a list")
            .iter()
            .map(id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(&rig.look("payment-intents").await),
        [first, second.clone()]
    );
    assert_eq!(
        ids(&rig.look("payment-intents?metadata.key=k1").await),
        [second]
    );
    assert!(ids(&rig.look("payment-intents?metadata.key=k2").await).is_empty());
}
