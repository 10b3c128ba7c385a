//! The control API for payment intents.

use serde_json::{Value, json};

use crate::support::{Receiver, TestSandbox, event_types, id, ten_pounds};

#[tokio::test]
async fn the_health_check_succeeds() {
    let sandbox = TestSandbox::start().await;
    assert_eq!(sandbox.control_get("health").await, json!({"status": "ok"}));
}

#[tokio::test]
async fn a_declined_intent_can_still_be_paid() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let declined = sandbox
        .control(&format!("payment-intents/{id}/decline"), &json!({}))
        .await;
    assert_eq!(declined["status"], "Created");
    assert_eq!(event_types(&declined), ["Declined"]);
    assert_eq!(
        event_types(&sandbox.pay(&id).await),
        ["Declined", "Captured"]
    );
}

#[tokio::test]
async fn a_challenge_waits_until_it_is_passed() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let challenged = sandbox
        .control(&format!("payment-intents/{id}/challenge"), &json!({}))
        .await;
    assert_eq!(challenged["status"], "Created");
    let paid = sandbox.pay(&id).await;
    assert_eq!(event_types(&paid), ["AuthChallenged", "Captured"]);
    assert_eq!(paid["paymentDetails"]["card"]["last4PAN"], "1096");
}

#[tokio::test]
async fn any_card_can_be_used() {
    let sandbox = TestSandbox::start().await;
    for (card, status, events) in [
        (
            "5200 0000 0000 1096",
            "Captured",
            vec!["AuthChallenged", "Captured"],
        ),
        ("4456530000001013", "Created", vec!["Declined"]),
        ("4111111111111111", "Created", vec!["Declined"]),
    ] {
        let id = sandbox.create_simple().await;
        let path = format!("payment-intents/{id}/pay");
        let intent = sandbox.control(&path, &json!({"card": card})).await;
        assert_eq!(intent["status"], status, "{card}");
        assert_eq!(event_types(&intent), events, "{card}");
    }
}

#[tokio::test]
async fn what_the_status_forbids_is_a_conflict() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    for action in ["pay", "decline", "challenge", "expire"] {
        let path = format!("payment-intents/{id}/{action}");
        assert_eq!(
            sandbox.control_response(&path, &json!({})).await.0,
            409,
            "{action}"
        );
    }
    assert_eq!(
        sandbox
            .control_response("payment-intents/pi_unknown/pay", &json!({}))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_portal_refund_can_be_partial_and_causes_webhooks() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    let path = format!("payment-intents/{id}/refund");
    assert_eq!(
        sandbox
            .control_response(&path, &json!({"amount": 1}))
            .await
            .0,
        409
    );
    sandbox.pay(&id).await;
    assert_eq!(
        sandbox
            .control_response(&path, &json!({"amount": 0}))
            .await
            .0,
        400
    );
    let partly = sandbox.control(&path, &json!({"amount": 400})).await;
    assert_eq!(
        (&partly["status"], &partly["refundedAmount"]),
        (&json!("Captured"), &json!(400))
    );
    assert_eq!(
        sandbox
            .control_response(&path, &json!({"amount": 601}))
            .await
            .0,
        409
    );
    // Everything that is left.
    let fully = sandbox.control(&path, &json!({})).await;
    assert_eq!(
        (&fully["status"], &fully["refundedAmount"]),
        (&json!("Refunded"), &json!(1000))
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
    assert_eq!(sandbox.control_response(&path, &json!({})).await.0, 409);
}

#[tokio::test]
async fn any_status_and_amount_can_be_set() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let id = sandbox.create_simple().await;
    receiver.wait_for(1).await;
    let path = format!("payment-intents/{id}");
    sandbox
        .control(&format!("{path}/status"), &json!({"status": "Pondering"}))
        .await;
    sandbox
        .control(&format!("{path}/amount"), &json!({"amount": 1}))
        .await;
    let intent = sandbox.intent(&id).await;
    assert_eq!(intent["status"], "Pondering");
    assert_eq!(intent["totalAmount"]["value"], 1);
    let webhooks = receiver.wait_for(2).await;
    assert_eq!(
        webhooks[1].summary(),
        "payment_intent.status_updated Pondering"
    );
}

#[tokio::test]
async fn intents_can_be_listed_and_filtered_by_metadata() {
    let sandbox = TestSandbox::start().await;
    let first = sandbox.create_simple().await;
    let mut body = ten_pounds();
    body["metadata"] = json!({"key": "k1"});
    let second = id(&sandbox.create(&body).await);
    sandbox.delete(&format!("/payment-intents/{first}")).await;
    let ids = |list: &Value| {
        list.as_array()
            .expect("a list")
            .iter()
            .map(id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(&sandbox.control_get("payment-intents").await),
        [first, second.clone()]
    );
    assert_eq!(
        ids(&sandbox.control_get("payment-intents?metadata.key=k1").await),
        [second]
    );
    assert!(ids(&sandbox.control_get("payment-intents?metadata.key=k2").await).is_empty());
}

#[tokio::test]
async fn intents_with_chosen_ids_exist_without_having_been_announced() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;
    let ids = ["pi_sandbox_first", "pi_sandbox_second"];
    let body = json!({"ids": ids, "status": "Captured", "apiKey": crate::support::KEY});
    let added = sandbox.control("payment-intents", &body).await;
    assert_eq!(added, json!({"count": 2}));
    for id in ids {
        let intent = sandbox.intent(id).await;
        assert_eq!(intent["id"], id);
        assert_eq!(intent["status"], "Captured");
    }
    assert_eq!(sandbox.control_get("deliveries").await, json!([]));

    let (status, _) = sandbox.control_response("payment-intents", &body).await;
    assert_eq!(status, 409);
}
