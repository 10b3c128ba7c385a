//! Versions of Dojo's API, and paths.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{KEY, TestSandbox, id, send, ten_pounds};

async fn create(sandbox: &TestSandbox, version: &str, body: &Value) -> (u16, Value) {
    sandbox
        .call_as(KEY, version, Method::POST, "/payment-intents", body)
        .await
}

#[tokio::test]
async fn any_date_means_the_newest_version_up_to_it() {
    let sandbox = TestSandbox::start().await;
    let mut lines = ten_pounds();
    lines["itemLines"] = json!([{"caption": "Tea", "amountTotal": ten_pounds()["amount"]}]);
    // 2024-02-05 replaced `caption` with `name`.
    for (version, plain, with_captions) in [
        ("2022-01-03", 200, 200),
        ("2022-04-07", 200, 200),
        ("2022-07-04", 200, 200),
        ("2024-02-04", 200, 200),
        ("2024-02-05", 200, 400),
        ("2025-12-24", 200, 400),
        ("2026-02-27", 200, 400),
        ("2031-01-01", 200, 400),
        ("2026-13-01", 400, 400),
        ("newest", 400, 400),
    ] {
        assert_eq!(
            create(&sandbox, version, &ten_pounds()).await.0,
            plain,
            "{version}"
        );
        assert_eq!(
            create(&sandbox, version, &lines).await.0,
            with_captions,
            "{version}"
        );
    }
}

#[tokio::test]
async fn a_member_is_unknown_before_the_version_that_added_it() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds();
    body["isNotOnlineCheckout"] = json!(true);
    assert_eq!(create(&sandbox, "2026-02-27", &body).await.0, 200);
    let (status, problem) = create(&sandbox, "2025-09-10", &body).await;
    assert_eq!(status, 400);
    assert!(
        problem["errors"]["IsNotOnlineCheckout"].is_array(),
        "{problem}"
    );
}

#[tokio::test]
async fn the_first_version_has_captions_and_flat_payment_details() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds();
    body["itemLines"] = json!([{
        "id": "1", "quantity": 4, "caption": "Dog socks", "amountTotal": ten_pounds()["amount"],
    }]);
    let (status, created) = create(&sandbox, "2022-04-07", &body).await;
    assert_eq!(status, 200, "{created}");
    assert_eq!(created["itemLines"], body["itemLines"]);
    let intent = id(&created);
    sandbox.pay(&intent).await;

    let path = format!("/payment-intents/{intent}");
    let (_, old) = sandbox
        .call_as(KEY, "2022-04-07", Method::GET, &path, &Value::Null)
        .await;
    assert_eq!(old["paymentDetails"]["cardNumber"], "52000000****1005");
    assert_eq!(old["paymentDetails"]["card"], Value::Null);
    let search = "/payment-intents/search";
    let (_, page) = sandbox
        .call_as(KEY, "2022-04-07", Method::POST, search, &json!({}))
        .await;
    assert_eq!(page["data"][0], old);

    let new = sandbox.intent(&intent).await;
    assert_eq!(new["itemLines"][0]["name"], "Dog socks");
    assert_eq!(
        new["paymentDetails"]["card"]["cardNumber"],
        "52000000****1005"
    );
}

#[tokio::test]
async fn the_first_version_has_auto_expire_at() {
    let sandbox = TestSandbox::start().await;
    let now = sandbox.control_get("clock").await["now"].clone();
    let now = crate::support::text(&now);
    let mut body = ten_pounds();
    body["captureMode"] = json!("manual");
    body["autoExpireAction"] = json!("Capture");
    body["autoExpireAt"] = json!(now);
    let (status, problem) = create(&sandbox, "2022-07-04", &body).await;
    assert_eq!(status, 400);
    assert!(problem["errors"]["AutoExpireAt"].is_array(), "{problem}");

    body["autoExpireAt"] = json!("2999-01-01T00:00:00.0000000Z");
    assert_eq!(create(&sandbox, "2024-02-05", &body).await.0, 400);
    let (status, created) = create(&sandbox, "2022-07-04", &body).await;
    assert_eq!(status, 200, "{created}");
    assert_eq!(created["captureMode"], "Manual");
    assert_eq!(created["autoExpireAt"], body["autoExpireAt"]);
    let intent = id(&created);
    sandbox.pay(&intent).await;
    // Far beyond the usual seven days of an authorization.
    sandbox
        .control("clock", &json!({"advanceSeconds": 30 * 86_400}))
        .await;
    let (_, later) = sandbox
        .call_as(
            KEY,
            "2022-07-04",
            Method::GET,
            &format!("/payment-intents/{intent}"),
            &Value::Null,
        )
        .await;
    assert_eq!(later["status"], "Authorized");
    let listed = sandbox
        .control(&format!("payment-intents/{intent}/expire"), &json!({}))
        .await;
    assert_eq!(listed["status"], "Captured");
}

#[tokio::test]
async fn a_trailing_slash_is_ignored() {
    let sandbox = TestSandbox::start().await;
    let (status, intent) = sandbox
        .post("/payment-intents/?trace=1", &ten_pounds())
        .await;
    assert_eq!(status, 200, "{intent}");
    let path = format!("/payment-intents/{}/", id(&intent));
    assert_eq!(
        sandbox.get(&format!("{path}?returnCanceled=true")).await.0,
        200
    );
    assert_eq!(sandbox.get("/webhooks/").await, (200, json!([])));
    assert_eq!(sandbox.get("/webhooks/events/").await.0, 200);
    // Faults recognize the operation.
    sandbox
        .control(
            "faults",
            &json!({"operation": "get", "kind": "status", "status": 503}),
        )
        .await;
    assert_eq!(sandbox.get(&path).await.0, 503);
    assert_eq!(sandbox.get("/").await.0, 404);
}

#[tokio::test]
async fn an_unknown_intent_returns_the_documented_status() {
    let sandbox = TestSandbox::start().await;
    let money = &ten_pounds()["amount"];
    for (operation, body, unknown) in [
        ("captures", json!({"amount": 1}), 400),
        ("refunds", json!({"amount": 1}), 400),
        ("reversal", json!({}), 400),
        ("amount", json!({"amount": money}), 400),
        ("tips-amount", json!({"tipsAmount": money}), 400),
        ("receipt", json!({"emails": ["jo@example.com"]}), 404),
    ] {
        let request = sandbox
            .api(
                Method::POST,
                &format!("/payment-intents/pi_unknown/{operation}"),
            )
            .header("idempotencyKey", "k");
        let (status, problem) = send(request.json(&body)).await;
        assert_eq!(status, unknown, "{operation}: {problem}");
        assert_eq!(
            problem["detail"],
            "There is no payment intent with this id."
        );
    }
    assert_eq!(sandbox.delete("/payment-intents/pi_unknown").await.0, 404);
    assert_eq!(sandbox.get("/payment-intents/pi_unknown").await.0, 404);
}
