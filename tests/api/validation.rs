//! Invalid requests: one response lists every fault, and nothing is sent to Dojo.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{API_KEY, TestApp, eventually, send, ten_pounds, text};

/// The sorted pointers of a problem's `errors`.
fn pointers(problem: &Value) -> Vec<String> {
    let faults = problem["errors"].as_array().unwrap();
    let mut pointers: Vec<_> = faults
        .iter()
        .map(|fault| text(&fault["pointer"]).to_owned())
        .collect();
    pointers.sort();
    pointers
}

#[tokio::test]
async fn one_response_lists_every_fault() {
    let app = TestApp::start().await;
    let body = json!({
        "amount": {"value": 0, "currencyCode": "USD", "cents": 1},
        "reference": "x".repeat(61),
        "description": 5,
        "color": "red",
        "captureMode": "Manual",
        "customer": {"emailAddress": "x".repeat(255), "title": "Dr"},
        "billingAddress": {"city": "London"},
        "config": {"redirectUrl": "not a url", "payment": {"tipsAllowed": "yes"}},
        "itemLines": [{"name": "Ticket"}, {"amountTotal": {"value": "1", "currencyCode": "GBP"}}],
        "paymentMethods": ["Cash"],
        "expireAt": "tomorrow",
        "autoExpireIn": "10 minutes",
        "metadata": {"paymentLinkId": "mine", "n": 1},
        "account": "nobody",
    });
    let problem = app.create(&body).await.problem(422, "invalid-request");
    assert_eq!(
        pointers(&problem),
        [
            "/account",
            "/amount/cents",
            "/amount/currencyCode",
            "/amount/value",
            "/autoExpireAction",
            "/autoExpireIn",
            "/billingAddress/countryCode",
            "/color",
            "/config/payment/tipsAllowed",
            "/config/redirectUrl",
            "/customer/emailAddress",
            "/customer/title",
            "/description",
            "/expireAt",
            "/itemLines/0/amountTotal",
            "/itemLines/1/amountTotal/currencyCode",
            "/itemLines/1/amountTotal/value",
            "/metadata/n",
            "/metadata/paymentLinkId",
            "/paymentMethods/0",
            "/reference",
        ]
    );
    assert!(app.sandbox.creations().await.is_empty());
    assert!(
        app.get("/v1/payment-links").await.json()["data"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn every_documented_limit_is_enforced() {
    let app = TestApp::start().await;
    let long = |n: usize| json!("x".repeat(n + 1));
    let money = json!({"value": 1, "currencyCode": "GBP"});
    let cases = [
        ("/amount", Value::Null),
        ("/amount/value", json!(-1)),
        ("/amount/value", json!(0)),
        ("/amount/value", json!(1.5)),
        ("/amount/value", json!(9_223_372_036_854_775_808_u64)),
        ("/amount/currencyCode", json!("gbp")),
        ("/tipsAmount", json!({"value": -1, "currencyCode": "GBP"})),
        ("/tipsAmount", json!({"value": 1, "currencyCode": "EUR"})),
        ("/reference", json!("")),
        ("/reference", long(60)),
        ("/reference", json!("nul \u{0} byte")),
        ("/description", long(4096)),
        ("/captureMode", json!("Later")),
        ("/customer", json!({"phoneNumber": "x".repeat(51)})),
        ("/customer", json!({"emailAddress": "x".repeat(255)})),
        ("/billingAddress", json!({"countryCode": "x".repeat(11)})),
        (
            "/billingAddress",
            json!({"countryCode": "GB", "address4": "x".repeat(101)}),
        ),
        (
            "/billingAddress",
            json!({"countryCode": "GB", "postcode": "x".repeat(51)}),
        ),
        ("/shippingDetails", json!({"name": "x".repeat(101)})),
        (
            "/shippingDetails",
            json!({"deliveryNotes": "x".repeat(1025)}),
        ),
        ("/shippingDetails", json!({"address": {}})),
        ("/cardHolderNotPresent", json!("no")),
        ("/config", json!({"title": "x".repeat(101)})),
        ("/config", json!({"cancelUrl": "/relative"})),
        ("/config", json!({"redirectUrl": "javascript:alert(1)"})),
        ("/requestSecurity", json!({"userAgent": "x".repeat(301)})),
        ("/requestSecurity", json!({"ipAddress": "x".repeat(71)})),
        ("/requestSecurity", json!({"device": "x".repeat(121)})),
        (
            "/itemLines",
            json!([{"amountTotal": money, "id": "x".repeat(61)}]),
        ),
        (
            "/itemLines",
            json!([{"amountTotal": money, "name": "x".repeat(101)}]),
        ),
        (
            "/itemLines",
            json!([{"amountTotal": money, "plu": "x".repeat(201)}]),
        ),
        (
            "/itemLines",
            json!([{"amountTotal": money, "quantity": 2_147_483_648_i64}]),
        ),
        (
            "/itemLines",
            json!([{"amountTotal": money, "modifiers": [{"id": "1", "name": "n", "quantity": 1}]}]),
        ),
        (
            "/taxLines",
            json!([{"amountTotal": money, "caption": "x".repeat(101)}]),
        ),
        (
            "/taxLines",
            json!([{"amountTotal": money, "affectedPlu": "x".repeat(201)}]),
        ),
        ("/actionLink", json!({"url": "https://a.example"})),
        (
            "/actionLink",
            json!({"url": "https://a.example", "label": "x".repeat(61)}),
        ),
        (
            "/actionLink",
            json!({"url": "https://a.example", "label": "x", "fileName": "x".repeat(257)}),
        ),
        ("/expireAt", json!("2020-01-01T00:00:00Z")),
        ("/expireAt", json!("9999-12-31T23:59:59-12:00")),
        (
            "/cashbackAmount",
            json!({"value": 9_223_372_036_854_775_808_u64, "currencyCode": "GBP"}),
        ),
        ("/captureMode", Value::Null),
        ("/autoExpireIn", json!("00:00:30")),
        ("/autoExpireIn", json!("7.00:00:00")),
        ("/autoExpireAction", json!("Refund")),
        ("/metadata", json!({"paymentLinkId": "mine"})),
        ("/orderDetails", json!({"availabilityDate": "soon"})),
        ("/isNotOnlineCheckout", json!(1)),
        ("/cashbackAmount", json!({"value": 1})),
    ];
    for (pointer, value) in cases {
        let mut body = ten_pounds("Order 1");
        match pointer.rsplit_once('/') {
            Some((parent, name)) => body.pointer_mut(parent).unwrap()[name] = value.clone(),
            None => unreachable!("pointers start with a slash"),
        }
        let response = app.create(&body).await;
        assert_eq!(response.status, 422, "{pointer} {value}: {}", response.text);
        let found = pointers(&response.problem(422, "invalid-request"));
        assert!(
            found.iter().all(|at| at.starts_with(pointer)),
            "{pointer}: {found:?}"
        );
    }
    assert!(app.sandbox.creations().await.is_empty());
}

#[tokio::test]
async fn values_at_the_limits_are_accepted() {
    let app = TestApp::start().await;
    let mut body = ten_pounds(&"é".repeat(60));
    body["description"] = json!("x".repeat(4096));
    body["captureMode"] = json!("Manual");
    body["autoExpireIn"] = json!("00:00:31");
    body["autoExpireAction"] = json!("Release");
    body["customer"] = Value::Null;
    let link = app.create(&body).await.expect(201).json();
    assert_eq!(link["reference"], body["reference"]);
}

#[tokio::test]
async fn a_response_lists_at_most_100_faults() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order 1");
    body["itemLines"] = json!(vec![0; 10_000]);
    let problem = app.create(&body).await.problem(422, "invalid-request");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn a_whole_number_may_have_a_decimal_point() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order 1");
    body["amount"]["value"] = json!(1000.0);
    assert_eq!(
        app.create(&body).await.expect(201).json()["amount"]["value"],
        1000
    );
}

#[tokio::test]
async fn faults_do_not_repeat_the_invalid_value() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order 1");
    body["customer"] = json!({"emailAddress": "a".repeat(250) + "@x.example"});
    let response = app.create(&body).await.expect(422);
    assert!(!response.text.contains("@x.example"));
}

#[tokio::test]
async fn invalid_json_is_400_and_another_content_type_is_415() {
    let app = TestApp::start().await;
    let post = |body: &'static str, kind: &'static str| {
        send(
            app.request(Method::POST, "/v1/payment-links")
                .header("content-type", kind)
                .body(body),
        )
    };
    let problem = post("{\"amount\": ", "application/json")
        .await
        .problem(400, "malformed-json");
    assert!(text(&problem["detail"]).contains("line 1"), "{problem}");
    post("", "application/json")
        .await
        .problem(400, "malformed-json");
    post("{}", "text/plain")
        .await
        .problem(415, "unsupported-media-type");
    post("[]", "application/json; charset=utf-8")
        .await
        .problem(422, "invalid-request");
    post("null", "application/json")
        .await
        .problem(422, "invalid-request");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order 1");
    body["description"] = json!("x".repeat(300 * 1024));
    app.create(&body).await.problem(413, "body-too-large");
}

#[tokio::test]
async fn every_v1_route_requires_an_api_key_with_the_scope() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    let reader = crate::commands::create_api_key(&app, "reader", "links:read");
    let writer = crate::commands::create_api_key(&app, "writer", "links:write");
    let create = || {
        app.anonymous(Method::POST, "/v1/payment-links")
            .json(&ten_pounds("Order 2"))
    };

    for path in ["/v1/payment-links", &path, &format!("{path}/events")] {
        let request = || app.anonymous(Method::GET, path);
        let response = send(request()).await;
        assert_eq!(response.header("www-authenticate"), "Bearer");
        response.problem(401, "unauthenticated");
        for wrong in ["dpl_wrong", "", &API_KEY[..API_KEY.len() - 1]] {
            send(request().bearer_auth(wrong))
                .await
                .problem(401, "unauthenticated");
        }
        send(request().header("authorization", format!("Basic {API_KEY}")))
            .await
            .expect(401);
        send(request().bearer_auth(&writer))
            .await
            .problem(403, "forbidden");
        send(request().bearer_auth(&reader)).await.expect(200);
    }
    send(create()).await.problem(401, "unauthenticated");
    let problem = send(create().bearer_auth(&reader))
        .await
        .problem(403, "forbidden");
    assert!(text(&problem["detail"]).contains("links:write"));
    send(create().bearer_auth(&writer)).await.expect(201);

    crate::commands::revoke_api_key(&app, "writer");
    // A replica may use what it knows of a key for a moment longer.
    let answer = eventually("the revoked key is rejected", async || {
        let answer = send(create().bearer_auth(&writer)).await;
        (answer.status == 401).then_some(answer)
    });
    answer.await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn unknown_paths_and_ids_return_404() {
    let app = TestApp::start().await;
    for path in [
        "/",
        "/v1",
        "/v1/payment-links/",
        "/v1/payment-links/plink_01kaz8v4wce7q8m6s5gq9nq2fd",
        "/v1/payment-links/plink_01kaz8v4wce7q8m6s5gq9nq2fd/events",
        "/v1/payment-links/order_01kaz8v4wce7q8m6s5gq9nq2fd",
        "/v1/payment-links/%00",
        "/v1/payment-links/%FF",
    ] {
        let problem = app.get(path).await.problem(404, "not-found");
        assert_eq!(problem["instance"], path);
    }
    let response = send(app.request(Method::DELETE, "/v1/payment-links")).await;
    assert!(response.header("allow").contains("POST"));
    response.problem(405, "method-not-allowed");
}
