//! Creating, reading and canceling payment intents.

use dojo_sandbox::Settings;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{TestSandbox, event_types, id, send, ten_pounds, ten_pounds_manual, text};

#[tokio::test]
async fn a_new_intent_has_all_members_and_can_be_read() {
    let sandbox = TestSandbox::start().await;
    let intent = sandbox
        .create(&json!({
            "amount": {"value": 1000, "currencyCode": "GBP"},
            "tipsAmount": {"value": 150, "currencyCode": "GBP"},
            "reference": "Order 234",
            "description": "A demo",
            "paymentSource": "payment-links",
            "metadata": {"site": "7"},
            "customer": {"emailAddress": "jo@example.com", "secret": "not to be shown"},
        }))
        .await;

    let id = id(&intent);
    assert!(
        id.starts_with("pi_sandbox_") && id.len() == "pi_sandbox_".len() + 22,
        "{id}"
    );
    assert_eq!(intent["status"], "Created");
    assert_eq!(intent["captureMode"], "Auto");
    assert_eq!(
        intent["totalAmount"],
        json!({"value": 1150, "currencyCode": "GBP"})
    );
    assert_eq!(intent["refundedAmount"], 0);
    assert_eq!(intent["paymentSource"], "payment-links");
    assert_eq!(intent["metadata"], json!({"site": "7"}));
    assert_eq!(
        intent["customer"],
        json!({"emailAddress": "jo@example.com"})
    );
    assert_eq!(
        intent["paymentLink"],
        json!(format!("{}/checkout/{id}", sandbox.server.url()))
    );
    let created = text(&intent["createdAt"]);
    assert_eq!(
        created.len(),
        "2022-01-31T10:46:46.3202622Z".len(),
        "{created}"
    );
    assert_eq!(intent["updatedAt"], created);
    assert_eq!(
        sandbox.get(&format!("/payment-intents/{id}")).await,
        (200, intent)
    );
}

#[tokio::test]
async fn links_start_with_the_public_url() {
    let public_url = Some("https://pay.example.com/".to_owned());
    let sandbox = TestSandbox::with_settings(Settings {
        public_url,
        ..Settings::default()
    })
    .await;
    let intent = sandbox.create(&ten_pounds()).await;
    assert_eq!(
        intent["paymentLink"],
        json!(format!("https://pay.example.com/checkout/{}", id(&intent)))
    );
}

#[tokio::test]
async fn repeating_a_creation_creates_a_second_intent() {
    let sandbox = TestSandbox::start().await;
    let create = || {
        let request = sandbox
            .api(Method::POST, "/payment-intents")
            .json(&ten_pounds());
        send(request.header("idempotencyKey", "the same"))
    };
    assert_ne!(id(&create().await.1), id(&create().await.1));
}

#[tokio::test]
async fn a_call_requires_a_valid_key() {
    let sandbox = TestSandbox::start().await;
    for key in [
        None,
        Some("Basic"),
        Some("Basic sk_prod_x"),
        Some("Bearer sk_sandbox_x"),
    ] {
        let mut request = sandbox.request(Method::GET, "/payment-intents/pi_1");
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        let (status, problem) = send(request.header("version", "2026-02-27")).await;
        assert_eq!((status, &problem["status"]), (401, &json!(401)), "{key:?}");
        assert!(
            problem["traceId"].is_string() && problem["title"].is_string(),
            "{problem}"
        );
    }

    let api_key = Some("sk_sandbox_the_one".to_owned());
    let sandbox = TestSandbox::with_settings(Settings {
        api_key,
        ..Settings::default()
    })
    .await;
    assert_eq!(sandbox.get("/payment-intents/pi_1").await.0, 401);
    let request = sandbox
        .request(Method::GET, "/payment-intents/pi_1")
        .header("version", "2026-02-27");
    assert_eq!(
        send(request.header("authorization", "Basic sk_sandbox_the_one"))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_call_requires_a_version_that_is_a_date() {
    let sandbox = TestSandbox::start().await;
    let call = async |version: Option<&str>| {
        let mut request = sandbox.request(Method::GET, "/payment-intents/pi_1");
        if let Some(version) = version {
            request = request.header("version", version);
        }
        send(request.header("authorization", "Basic sk_sandbox_x"))
            .await
            .0
    };
    assert_eq!(call(None).await, 400);
    assert_eq!(call(Some("latest")).await, 400);
    assert_eq!(call(Some("2019-01-01")).await, 404);
    assert_eq!(call(Some("2025-09-10")).await, 404);
}

#[tokio::test]
async fn all_errors_are_reported_at_once() {
    let sandbox = TestSandbox::start().await;
    let (status, problem) = sandbox
        .post(
            "/payment-intents",
            &json!({
                "amount": {"value": 0, "currencyCode": "USD"},
                "reference": "x".repeat(61),
                "description": "x".repeat(4097),
                "captureMode": "Manual",
                "autoExpireIn": "soon",
                "expireAt": "2001-01-01T00:00:00Z",
                "metadata": {"number": 1},
                "config": {"redirectUrl": "not a url", "colour": "red"},
                "itemLines": [{"name": "Tea"}],
                "billingAddress": {"city": "Leeds"},
                "unknown": true,
            }),
        )
        .await;
    assert_eq!(status, 400);
    assert_eq!(problem["title"], "One or more validation errors occurred.");
    let fields: Vec<&String> = problem["errors"]
        .as_object()
        .expect("errors")
        .keys()
        .collect();
    assert_eq!(
        fields,
        [
            "Amount.CurrencyCode",
            "Amount.Value",
            "AutoExpireAction",
            "AutoExpireIn",
            "BillingAddress.CountryCode",
            "Config.Colour",
            "Config.RedirectUrl",
            "Description",
            "ExpireAt",
            "ItemLines[0].AmountTotal",
            "Metadata.Number",
            "Reference",
            "Unknown",
        ]
    );
    assert_eq!(sandbox.control_get("payment-intents").await, json!([]));
}

#[tokio::test]
async fn a_body_that_is_not_valid_json_is_rejected() {
    let sandbox = TestSandbox::start().await;
    let request = sandbox
        .api(Method::POST, "/payment-intents")
        .body("{\"amount\":");
    let (status, problem) = send(request).await;
    assert_eq!((status, problem["errors"]["$"].is_array()), (400, true));
    assert_eq!(sandbox.post("/payment-intents", &Value::Null).await.0, 400);
}

#[tokio::test]
async fn pascal_case_is_accepted_as_in_dojos_own_example() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds();
    body["captureMode"] = json!("Manual");
    body["AutoExpireAction"] = json!("Capture");
    body["AutoExpireIn"] = json!("00:00:55");
    let intent = sandbox.create(&body).await;
    assert_eq!(intent["autoExpireIn"], "00:00:55");
    assert_eq!(intent["autoExpireAction"], "Capture");
}

#[tokio::test]
async fn a_paid_intent_has_payment_details() {
    let sandbox = TestSandbox::start().await;
    let created = sandbox.create(&ten_pounds()).await;
    let paid = sandbox.pay(&id(&created)).await;
    assert_eq!(paid["status"], "Captured");
    assert_eq!(event_types(&paid), ["Captured"]);
    let details = &paid["paymentDetails"];
    assert_eq!(details["card"]["cardNumber"], "52000000****1005");
    assert_eq!(details["card"]["last4PAN"], "1005");
    assert_eq!(details["authCode"].as_str().map(str::len), Some(6));
    assert!(text(&paid["updatedAt"]) > text(&created["updatedAt"]));
}

#[tokio::test]
async fn manual_capture_only_authorizes() {
    let sandbox = TestSandbox::start().await;
    let paid = sandbox
        .pay(&id(&sandbox.create(&ten_pounds_manual("Release")).await))
        .await;
    assert_eq!(paid["status"], "Authorized");
    assert_eq!(event_types(&paid), ["Authorized"]);
    assert!(paid["paymentDetails"].is_null());
}

#[tokio::test]
async fn a_canceled_intent_is_returned_only_on_request() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let (status, canceled) = sandbox.delete(&format!("/payment-intents/{id}")).await;
    assert_eq!((status, &canceled["status"]), (200, &json!("Canceled")));
    assert_eq!(sandbox.get(&format!("/payment-intents/{id}")).await.0, 404);
    assert_eq!(
        sandbox
            .get(&format!("/payment-intents/{id}?returnCanceled=true"))
            .await,
        (200, canceled)
    );
    assert_eq!(
        sandbox.delete(&format!("/payment-intents/{id}")).await.0,
        400
    );
}

#[tokio::test]
async fn a_paid_intent_cant_be_canceled() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    sandbox.pay(&id).await;
    assert_eq!(
        sandbox.delete(&format!("/payment-intents/{id}")).await.0,
        400
    );
    assert_eq!(sandbox.intent(&id).await["status"], "Captured");
}

#[tokio::test]
async fn unknown_objects_and_paths_are_not_found() {
    let sandbox = TestSandbox::start().await;
    assert_eq!(
        sandbox.get("/payment-intents/pi_sandbox_unknown").await.0,
        404
    );
    assert_eq!(
        sandbox
            .delete("/payment-intents/pi_sandbox_unknown")
            .await
            .0,
        404
    );
    assert_eq!(sandbox.get("/customers/cust_1").await.0, 404);
    assert_eq!(sandbox.get("/payment-intents").await.0, 405);
}
