//! Checks the sandbox's responses against Dojo's OpenAPI file. The file is not part of this repository, so these tests
//! only run on request: `DOJO_OPENAPI=openapi.json cargo test -p dojo-sandbox -- --include-ignored`
//!
//! With `DOJO_OPENAPI`, every other test checks its responses as well: see [`TestSandbox`].

use std::sync::Arc;

use openapi_guard::Document;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, TestSandbox, id, send, ten_pounds, ten_pounds_manual};

fn document() -> Arc<Document> {
    let document = Document::from_env().expect("a readable file");
    document.expect("DOJO_OPENAPI names Dojo's OpenAPI file")
}

#[track_caller]
fn check(schema: &str, value: &Value) {
    let violations = document().schema_violations(schema, value);
    assert!(
        violations.is_empty(),
        "{schema}: {violations:#?}\n{value:#}"
    );
}

/// Also checks the members that Dojo's own examples show and its schema doesn't list.
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
async fn responses_match_their_schemas() {
    let receiver = Receiver::start().await;
    let sandbox = TestSandbox::with_receiver(&receiver).await;

    let mut body = ten_pounds_manual("Capture");
    body["autoExpireIn"] = json!("1.00:00:00");
    body["billingAddress"] = json!({"countryCode": "GB", "city": "Leeds"});
    body["customer"] = json!({"emailAddress": "jo@example.com", "secret": "s", "savedCardId": "c"});
    body["itemLines"] =
        json!([{"name": "Tea", "quantity": 1, "amountTotal": ten_pounds()["amount"]}]);
    body["taxLines"] = json!([{"caption": "VAT", "amountTotal": ten_pounds()["amount"]}]);
    body["config"] = json!({"title": "Tea", "payment": {"tipsAllowed": true}});
    body["generateRemoteToken"] = json!(true);
    let manual = sandbox.create(&body).await;
    check_intent(&manual);
    check_intent(&sandbox.pay(&id(&manual)).await);
    sandbox
        .control("clock", &json!({"advanceSeconds": 86_400}))
        .await;
    check_intent(&sandbox.intent(&id(&manual)).await);

    let auto = sandbox.create(&ten_pounds()).await;
    check_intent(&auto);
    let path = format!("payment-intents/{}", id(&auto));
    check_intent(
        &sandbox
            .control(&format!("{path}/decline"), &json!({}))
            .await,
    );
    check_intent(
        &sandbox
            .control(&format!("{path}/challenge"), &json!({}))
            .await,
    );
    check_intent(&sandbox.pay(&id(&auto)).await);

    let path = format!("/payment-intents/{}", id(&auto));
    let refund = sandbox
        .api(Method::POST, &format!("{path}/refunds"))
        .header("idempotencyKey", "r");
    let (_, refund) = send(refund.json(&json!({"amount": 400, "notes": "Cold"}))).await;
    check("Refund", &refund);
    check_intent(&sandbox.intent(&id(&auto)).await);

    let open = id(&sandbox.create(&ten_pounds_manual("Release")).await);
    sandbox.pay(&open).await;
    let path = format!("/payment-intents/{open}");
    let capture = json!({"amount": 400});
    check(
        "Capture",
        &sandbox.post(&format!("{path}/captures"), &capture).await.1,
    );
    check_intent(&sandbox.intent(&open).await);

    let reversed = sandbox.create_simple().await;
    sandbox.pay(&reversed).await;
    let path = format!("/payment-intents/{reversed}/reversal");
    check("Reversal", &sandbox.post(&path, &json!({})).await.1);
    check_intent(&sandbox.intent(&reversed).await);

    let canceled = sandbox.create_simple().await;
    check_intent(
        &sandbox
            .delete(&format!("/payment-intents/{canceled}"))
            .await
            .1,
    );

    let (_, page) = sandbox
        .post("/payment-intents/search", &json!({"cursor": {"limit": 2}}))
        .await;
    for intent in page["data"].as_array().expect("a list") {
        check_intent(intent);
    }
    check("PagedResultOfPaymentIntent", &page);

    let (_, subscriptions) = sandbox.get("/webhooks").await;
    check("Subscription", &subscriptions[0]);
    for events in sandbox
        .get("/webhooks/events")
        .await
        .1
        .as_array()
        .expect("a list")
    {
        check("WebhookEvents", events);
    }
    let secrets = format!("/webhooks/{}/secrets", id(&subscriptions[0]));
    check(
        "SecretsResponse",
        &sandbox.post(&secrets, &json!({})).await.1,
    );

    let (_, problem) = sandbox
        .post("/payment-intents", &json!({"unknown": 1}))
        .await;
    check("ProblemDetails", &problem);
    check("ErrorResponse", &problem);
    check(
        "ErrorResponse",
        &sandbox.delete("/webhooks/ws_unknown").await.1,
    );
}

#[tokio::test]
#[ignore = "needs Dojo's OpenAPI file"]
async fn violations_of_the_file_are_found() {
    let sandbox = TestSandbox::start().await;
    let mut intent = sandbox.create(&ten_pounds()).await;
    intent["amount"]["value"] = json!("10.00");
    intent["unknown"] = json!(1);
    let violations = document()
        .schema_violations("PaymentIntent", &intent)
        .join("\n");
    assert!(
        violations.contains(r#"/amount/value: "10.00" is not of type "integer""#),
        "{violations}"
    );
    assert!(
        violations.contains("'unknown' was unexpected"),
        "{violations}"
    );

    for (body, violation) in [
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
        let violations = document().request_violations(&request).join("\n");
        assert!(
            violations.contains(violation),
            "{violation} is missing from {violations}"
        );
        assert!(
            violations.contains("header version: is missing"),
            "{violations}"
        );
    }
}
