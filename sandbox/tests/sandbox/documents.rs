//! Whether the sandbox's answers are what Dojo's OpenAPI file says. The file is Dojo's and not part
//! of this project, so this runs on demand:
//! `DOJO_OPENAPI=openapi.json cargo test -p dojo-sandbox -- --include-ignored`
//!
//! Where the file is named, the answers in every other test are held to it as well: see [`Rig`].

use std::sync::Arc;

use dojo_sandbox::document::Document;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, Rig, answer, id, ten_pounds, ten_pounds_manual};

fn at_hand() -> Arc<Document> {
    let document = Document::at_hand().expect("a readable file");
    document.expect("DOJO_OPENAPI names Dojo's OpenAPI file")
}

#[track_caller]
fn check(schema: &str, value: &Value) {
    let faults = at_hand().faults_of(schema, value);
    assert!(faults.is_empty(), "{schema}: {faults:#?}\n{value:#}");
}

/// Dojo's own examples show members that its schema does not list; they are there too.
#[track_caller]
fn check_intent(intent: &Value) {
    check("PaymentIntent", intent);
    assert!(intent["paymentEvents"].is_array(), "{intent:#}");
    assert!(intent["paymentSource"].is_string(), "{intent:#}");
    assert!(intent["config"]["branding"].is_object(), "{intent:#}");
    assert!(intent["config"]["tradingName"].is_string(), "{intent:#}");
}

#[tokio::test]
#[ignore = "needs Dojo's OpenAPI file"]
async fn answers_are_of_the_documented_shapes() {
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;

    let mut body = ten_pounds_manual("Capture");
    body["autoExpireIn"] = json!("1.00:00:00");
    body["billingAddress"] = json!({"countryCode": "GB", "city": "Leeds"});
    body["customer"] = json!({"emailAddress": "jo@example.com", "secret": "s", "savedCardId": "c"});
    body["itemLines"] =
        json!([{"name": "Tea", "quantity": 1, "amountTotal": ten_pounds()["amount"]}]);
    body["taxLines"] = json!([{"caption": "VAT", "amountTotal": ten_pounds()["amount"]}]);
    body["config"] = json!({"title": "Tea", "payment": {"tipsAllowed": true}});
    body["generateRemoteToken"] = json!(true);
    let manual = rig.create(&body).await;
    check_intent(&manual);
    check_intent(&rig.pay(&id(&manual)).await);
    rig.control("clock", &json!({"advanceSeconds": 86_400}))
        .await;
    check_intent(&rig.intent(&id(&manual)).await);

    let auto = rig.create(&ten_pounds()).await;
    check_intent(&auto);
    let path = format!("payment-intents/{}", id(&auto));
    check_intent(&rig.control(&format!("{path}/decline"), &json!({})).await);
    check_intent(&rig.control(&format!("{path}/challenge"), &json!({})).await);
    check_intent(&rig.pay(&id(&auto)).await);

    let path = format!("/payment-intents/{}", id(&auto));
    let refund = rig
        .api(Method::POST, &format!("{path}/refunds"))
        .header("idempotencyKey", "r");
    let (_, refund) = answer(refund.json(&json!({"amount": 400, "notes": "Cold"}))).await;
    check("Refund", &refund);
    check_intent(&rig.intent(&id(&auto)).await);

    let open = id(&rig.create(&ten_pounds_manual("Release")).await);
    rig.pay(&open).await;
    let path = format!("/payment-intents/{open}");
    let capture = json!({"amount": 400});
    check(
        "Capture",
        &rig.post(&format!("{path}/captures"), &capture).await.1,
    );
    check_intent(&rig.intent(&open).await);

    let reversed = rig.create_simple().await;
    rig.pay(&reversed).await;
    let path = format!("/payment-intents/{reversed}/reversal");
    check("Reversal", &rig.post(&path, &json!({})).await.1);
    check_intent(&rig.intent(&reversed).await);

    let canceled = rig.create_simple().await;
    check_intent(&rig.delete(&format!("/payment-intents/{canceled}")).await.1);

    let (_, page) = rig
        .post("/payment-intents/search", &json!({"cursor": {"limit": 2}}))
        .await;
    for intent in page["data"].as_array().expect("a list") {
        check_intent(intent);
    }
    check("PagedResultOfPaymentIntent", &page);

    let (_, subscriptions) = rig.get("/webhooks").await;
    check("Subscription", &subscriptions[0]);
    for events in rig
        .get("/webhooks/events")
        .await
        .1
        .as_array()
        .expect("a list")
    {
        check("WebhookEvents", events);
    }
    let secrets = format!("/webhooks/{}/secrets", id(&subscriptions[0]));
    check("SecretsResponse", &rig.post(&secrets, &json!({})).await.1);

    let (_, problem) = rig.post("/payment-intents", &json!({"unheard": 1})).await;
    check("ProblemDetails", &problem);
    check("ErrorResponse", &problem);
    check("ErrorResponse", &rig.delete("/webhooks/ws_unknown").await.1);
}

#[tokio::test]
#[ignore = "needs Dojo's OpenAPI file"]
async fn what_the_file_does_not_allow_is_found() {
    let rig = Rig::start().await;
    let mut intent = rig.create(&ten_pounds()).await;
    intent["amount"]["value"] = json!("10.00");
    intent["unheard"] = json!(1);
    let faults = at_hand().faults_of("PaymentIntent", &intent).join("\n");
    assert!(
        faults.contains(r#"/amount/value: "10.00" is not of type "integer""#),
        "{faults}"
    );
    assert!(faults.contains("'unheard' was unexpected"), "{faults}");

    for (body, fault) in [
        (
            json!({"reference": "Order 1"}),
            r#""amount" is a required property"#,
        ),
        (
            json!({"amount": {"value": 1000, "currencyCode": ""}, "reference": "Order 1"}),
            "body/amount/currencyCode",
        ),
        (
            json!({"amount": {"value": 1000, "currencyCode": "GBP"}, "reference": "r".repeat(61)}),
            "body/reference",
        ),
        (
            json!({"amount": {"value": 1000, "currencyCode": "GBP"}, "reference": "Order 1", "account": "a"}),
            "'account' was unexpected",
        ),
    ] {
        let request = axum::http::Request::post("/payment-intents")
            .header("authorization", "Basic sk_sandbox_1")
            .header("content-type", "application/json")
            .body(body.to_string().into())
            .expect("a request");
        let faults = at_hand().faults_of_request(&request).join("\n");
        assert!(faults.contains(fault), "{fault} is missing from {faults}");
        assert!(faults.contains("header version: is missing"), "{faults}");
    }
}
