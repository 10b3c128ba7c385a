//! What Dojo's published samples send, and what Dojo's own tests of them expect.
//!
//! The samples are at <https://github.com/dojo-engineering/dojo-samples>, the PHP client at
//! <https://github.com/dojo-engineering/Dojo.PHP>. The bodies here have the same members and values.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{KEY, TestSandbox, id, ten_pounds};

async fn post(sandbox: &TestSandbox, version: &str, path: &str, body: Value) -> Value {
    let (status, response) = sandbox
        .call_as(KEY, version, Method::POST, path, &body)
        .await;
    assert_eq!(status, 200, "{version} {path}: {response}");
    response
}

#[tokio::test]
async fn the_getting_started_and_payment_links_samples_create_intents() {
    let sandbox = TestSandbox::start().await;
    post(&sandbox, "2024-02-05", "/payment-intents", ten_pounds()).await;
    let mut body = ten_pounds();
    body["paymentSource"] = json!("payment-links");
    let intent = post(&sandbox, "2022-04-07", "/payment-intents/", body).await;
    assert_eq!(intent["paymentSource"], "payment-links");
}

#[tokio::test]
async fn the_manual_capture_samples_leave_out_the_auto_expire_action() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds();
    body["captureMode"] = json!("Manual");
    for version in ["2022-05-26", "2022-07-04"] {
        for path in ["/payment-intents", "/payment-intents/"] {
            let intent = post(&sandbox, version, path, body.clone()).await;
            assert_eq!(intent["captureMode"], "Manual");
            assert_eq!(sandbox.pay(&id(&intent)).await["status"], "Authorized");
        }
    }
    // The helper of the samples' tests writes it in lower case.
    body["captureMode"] = json!("manual");
    let intent = post(&sandbox, "2024-01-15", "/payment-intents", body.clone()).await;
    assert_eq!(intent["captureMode"], "Manual");
    // Later versions require it.
    body["captureMode"] = json!("Manual");
    let (status, problem) = sandbox.post("/payment-intents", &body).await;
    assert_eq!(status, 400);
    assert!(
        problem["errors"]["AutoExpireAction"].is_array(),
        "{problem}"
    );
}

#[tokio::test]
async fn the_php_and_powershell_samples_send_a_time_without_an_offset() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds();
    body["description"] = json!("Demo payment intent");
    body["captureMode"] = json!("Manual");
    body["autoExpireAction"] = json!("Release");
    // The samples say 2023, which has passed.
    body["autoExpireAt"] = json!("2923-12-01T00:00:00");
    let intent = post(&sandbox, "2022-07-04", "/payment-intents", body.clone()).await;
    assert_eq!(intent["autoExpireAt"], "2923-12-01T00:00:00.0000000Z");

    body["autoExpireAt"] = json!("2023-12-01T00:00:00");
    let (status, problem) = sandbox
        .call_as(KEY, "2022-07-04", Method::POST, "/payment-intents", &body)
        .await;
    assert_eq!(status, 400);
    assert!(problem["errors"]["AutoExpireAt"].is_array(), "{problem}");
}

#[tokio::test]
async fn the_configuration_samples_create_intents() {
    let sandbox = TestSandbox::start().await;
    let pounds = |value: u32| json!({"value": value, "currencyCode": "GBP"});
    let required = json!({"collectionRequired": true});
    for (version, members) in [
        ("2022-04-07", json!({"paymentMethods": ["Card", "Wallet"]})),
        (
            "2024-01-15",
            json!({"config": {
                "customerEmail": required, "billingAddress": required, "shippingDetails": required,
            }}),
        ),
        (
            "2022-04-07",
            json!({"config": {"redirectUrl": "http://mymerchantsite.com/checkout/success_pay"}}),
        ),
        (
            "2022-04-07",
            json!({
                "itemLines": [
                    {"id": "item 1", "quantity": 4, "caption": "Dog socks", "amountTotal": pounds(400)},
                    {"id": "item 5", "quantity": 1, "caption": "Dog bandana", "amountTotal": pounds(600)},
                ],
                "taxLines": [
                    {"id": "vat", "caption": "VAT", "subCaption": "10%", "amountTotal": pounds(10)},
                    {"id": "delivery", "caption": "Delivery", "amountTotal": pounds(500)},
                ],
                "config": {"details": {"showTotal": true}},
            }),
        ),
    ] {
        let mut body = ten_pounds();
        for (name, value) in members.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let intent = post(&sandbox, version, "/payment-intents", body.clone()).await;
        for name in ["itemLines", "taxLines", "paymentMethods"] {
            if !body[name].is_null() {
                assert_eq!(intent[name], body[name]);
            }
        }
    }
}

#[tokio::test]
async fn the_samples_manage_a_payment() {
    let sandbox = TestSandbox::start().await;
    let create = async |mode: &str| {
        let body = json!({
            "amount": {"value": 500, "currencyCode": "GBP"},
            "captureMode": mode,
            "reference": "Order 245",
            "config": {"payment": {"customAmountAllowed": true, "tipsAllowed": true}},
        });
        let intent = post(&sandbox, "2024-01-15", "/payment-intents", body).await;
        format!("/payment-intents/{}", id(&intent))
    };
    let pounds = |value: u32| json!({"value": value, "currencyCode": "GBP"});

    let path = create("Auto").await;
    let amount = json!({"amount": pounds(1000)});
    let changed = post(&sandbox, "2022-04-07", &format!("{path}/amount"), amount).await;
    assert_eq!(changed["amount"]["value"], 1000);
    // 2022-01-03 is before the first version.
    let tips = json!({"tipsAmount": pounds(200)});
    let changed = post(&sandbox, "2022-01-03", &format!("{path}/tips-amount"), tips).await;
    assert_eq!(
        (&changed["status"], &changed["tipsAmount"]["value"]),
        (&json!("Created"), &json!(200))
    );
    let (status, canceled) = sandbox
        .call_as(KEY, "2022-04-07", Method::DELETE, &path, &Value::Null)
        .await;
    assert_eq!((status, &canceled["status"]), (200, &json!("Canceled")));

    let path = create("manual").await;
    sandbox
        .pay(path.trim_start_matches("/payment-intents/"))
        .await;
    let captures = format!("{path}/captures");
    let capture = post(&sandbox, "2022-04-07", &captures, json!({"amount": 500})).await;
    assert!(capture["captureId"].is_string(), "{capture}");
    let refund =
        json!({"amount": 500, "refundReason": "Demo refund", "notes": "Duplicate transaction"});
    let refund = post(&sandbox, "2024-02-05", &format!("{path}/refunds"), refund).await;
    assert!(refund["refundId"].is_string(), "{refund}");

    let path = create("manual").await;
    sandbox
        .pay(path.trim_start_matches("/payment-intents/"))
        .await;
    let reversal = format!("{path}/reversal");
    let reversal = post(&sandbox, "2024-01-15", &reversal, Value::Null).await;
    assert!(reversal["reversalId"].is_string(), "{reversal}");
}

#[tokio::test]
async fn the_webhook_samples_subscribe() {
    let sandbox = TestSandbox::start().await;
    let body = json!({
        "events": ["payment_intent.status_updated"],
        "url": "https://example.com/incoming-events",
    });
    for (version, path) in [("2022-04-07", "/webhooks"), ("2024-01-15", "/webhooks/")] {
        let subscription = post(&sandbox, version, path, body.clone()).await;
        let path = format!("/webhooks/{}", id(&subscription));
        let (status, _) = sandbox
            .call_as(KEY, version, Method::DELETE, &path, &Value::Null)
            .await;
        assert_eq!(status, 204);
    }
}

/// The README names the statuses that Dojo's tests expect and the sandbox doesn't return.
#[tokio::test]
async fn the_php_clients_calls_about_unknown_ids_are_rejected() {
    let sandbox = TestSandbox::start().await;
    for version in ["2022-04-07", "2025-09-10"] {
        for (method, path, body, expected) in [
            (
                Method::POST,
                "/payment-intents/pi_sandbox_T/reversal",
                Value::Null,
                400,
            ),
            (
                Method::POST,
                "/payment-intents/pi_sandbox_T/refunds",
                json!({}),
                400,
            ),
            (
                Method::POST,
                "/payment-intents/pi_sandbox_T/captures",
                json!({}),
                400,
            ),
            (
                Method::POST,
                "/payment-intents/pi_sandbox_T/captures",
                json!({"amount": 1000}),
                400,
            ),
            (Method::POST, "/customers/id/secret", Value::Null, 404),
            (
                Method::DELETE,
                "/webhooks/sub_id/secrets/sec_id",
                Value::Null,
                404,
            ),
        ] {
            let (status, problem) = sandbox.call_as(KEY, version, method, path, &body).await;
            assert_eq!(status, expected, "{version} {path}: {problem}");
        }
    }
}
