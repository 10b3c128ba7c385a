//! Creating, reading and canceling payment intents.

use dojo_sandbox::Settings;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Rig, answer, event_types, id, ten_pounds, ten_pounds_manual, text};

#[tokio::test]
async fn a_new_intent_is_whole_and_can_be_read_back() {
    let rig = Rig::start().await;
    let intent = rig
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
        json!(format!("{}/checkout/{id}", rig.sandbox.url()))
    );
    let created = text(&intent["createdAt"]);
    assert_eq!(
        created.len(),
        "2022-01-31T10:46:46.3202622Z".len(),
        "{created}"
    );
    assert_eq!(intent["updatedAt"], created);
    assert_eq!(
        rig.get(&format!("/payment-intents/{id}")).await,
        (200, intent)
    );
}

#[tokio::test]
async fn links_begin_with_the_public_url() {
    let public_url = Some("https://pay.example.com/".to_owned());
    let rig = Rig::with(Settings {
        public_url,
        ..Settings::default()
    })
    .await;
    let intent = rig.create(&ten_pounds()).await;
    assert_eq!(
        intent["paymentLink"],
        json!(format!("https://pay.example.com/checkout/{}", id(&intent)))
    );
}

#[tokio::test]
async fn the_same_request_twice_is_two_intents_even_with_an_idempotency_key() {
    let rig = Rig::start().await;
    let create = || {
        let request = rig
            .api(Method::POST, "/payment-intents")
            .json(&ten_pounds());
        answer(request.header("idempotencyKey", "the same"))
    };
    assert_ne!(id(&create().await.1), id(&create().await.1));
}

#[tokio::test]
async fn a_call_needs_the_key() {
    let rig = Rig::start().await;
    for key in [
        None,
        Some("Basic"),
        Some("Basic sk_prod_x"),
        Some("Bearer sk_sandbox_x"),
    ] {
        let mut request = rig.request(Method::GET, "/payment-intents/pi_1");
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        let (status, problem) = answer(request.header("version", "2026-02-27")).await;
        assert_eq!((status, &problem["status"]), (401, &json!(401)), "{key:?}");
        assert!(
            problem["traceId"].is_string() && problem["title"].is_string(),
            "{problem}"
        );
    }

    let api_key = Some("sk_sandbox_the_one".to_owned());
    let rig = Rig::with(Settings {
        api_key,
        ..Settings::default()
    })
    .await;
    assert_eq!(rig.get("/payment-intents/pi_1").await.0, 401);
    let request = rig
        .request(Method::GET, "/payment-intents/pi_1")
        .header("version", "2026-02-27");
    assert_eq!(
        answer(request.header("authorization", "Basic sk_sandbox_the_one"))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_call_needs_a_version_that_is_a_date() {
    let rig = Rig::start().await;
    let call = async |version: Option<&str>| {
        let mut request = rig.request(Method::GET, "/payment-intents/pi_1");
        if let Some(version) = version {
            request = request.header("version", version);
        }
        answer(request.header("authorization", "Basic sk_sandbox_x"))
            .await
            .0
    };
    assert_eq!(call(None).await, 400);
    assert_eq!(call(Some("latest")).await, 400);
    assert_eq!(call(Some("2019-01-01")).await, 404);
    assert_eq!(call(Some("2025-09-10")).await, 404);
}

#[tokio::test]
async fn every_fault_is_named() {
    let rig = Rig::start().await;
    let (status, problem) = rig
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
                "unheard": true,
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
            "Unheard",
        ]
    );
    assert_eq!(rig.look("payment-intents").await, json!([]));
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused() {
    let rig = Rig::start().await;
    let request = rig
        .api(Method::POST, "/payment-intents")
        .body("{\"amount\":");
    let (status, problem) = answer(request).await;
    assert_eq!((status, problem["errors"]["$"].is_array()), (400, true));
    assert_eq!(rig.post("/payment-intents", &Value::Null).await.0, 400);
}

#[tokio::test]
async fn reads_the_pascal_case_of_dojos_own_example() {
    let rig = Rig::start().await;
    let mut body = ten_pounds();
    body["captureMode"] = json!("Manual");
    body["AutoExpireAction"] = json!("Capture");
    body["AutoExpireIn"] = json!("00:00:55");
    let intent = rig.create(&body).await;
    assert_eq!(intent["autoExpireIn"], "00:00:55");
    assert_eq!(intent["autoExpireAction"], "Capture");
}

#[tokio::test]
async fn a_paid_intent_shows_how_it_was_paid() {
    let rig = Rig::start().await;
    let created = rig.create(&ten_pounds()).await;
    let paid = rig.pay(&id(&created)).await;
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
    let rig = Rig::start().await;
    let paid = rig
        .pay(&id(&rig.create(&ten_pounds_manual("Release")).await))
        .await;
    assert_eq!(paid["status"], "Authorized");
    assert_eq!(event_types(&paid), ["Authorized"]);
    assert!(paid["paymentDetails"].is_null());
}

#[tokio::test]
async fn a_canceled_intent_shows_only_to_whoever_asks_for_it() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let (status, canceled) = rig.delete(&format!("/payment-intents/{id}")).await;
    assert_eq!((status, &canceled["status"]), (200, &json!("Canceled")));
    assert_eq!(rig.get(&format!("/payment-intents/{id}")).await.0, 404);
    assert_eq!(
        rig.get(&format!("/payment-intents/{id}?returnCanceled=true"))
            .await,
        (200, canceled)
    );
    assert_eq!(rig.delete(&format!("/payment-intents/{id}")).await.0, 400);
}

#[tokio::test]
async fn what_is_paid_cannot_be_canceled() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    rig.pay(&id).await;
    assert_eq!(rig.delete(&format!("/payment-intents/{id}")).await.0, 400);
    assert_eq!(rig.intent(&id).await["status"], "Captured");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/payment-intents/pi_sandbox_unknown").await.0, 404);
    assert_eq!(
        rig.delete("/payment-intents/pi_sandbox_unknown").await.0,
        404
    );
    assert_eq!(rig.get("/customers/cust_1").await.0, 404);
    assert_eq!(rig.get("/payment-intents").await.0, 405);
}
