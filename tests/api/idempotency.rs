//! One key, one intent: no matter how often, how fast, and to how many replicas a request is sent.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Service, TestApp, ten_pounds, text};

#[tokio::test]
async fn a_retry_gets_the_link_as_it_is_now() {
    let app = TestApp::start().await;
    let first = app
        .create_with_key("order-1", &ten_pounds("Order 1"))
        .await
        .expect(201);
    assert_eq!(first.header("idempotent-replayed"), "");
    app.sandbox.pay(&first.json()["paymentIntentId"]).await;
    app.link_with_status(&first.json()["id"], "Captured").await;

    // However the body is written.
    let reordered = json!({"reference": "Order 1", "captureMode": "Auto", "account": "default",
                           "amount": {"currencyCode": "GBP", "value": 1000}});
    for (key, body) in [
        ("order-1", ten_pounds("Order 1")),
        ("\"order-1\"", reordered),
    ] {
        let again = app.create_with_key(key, &body).await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.header("content-type"), first.header("content-type"));
        assert_eq!(again.json()["id"], first.json()["id"]);
        assert_eq!(again.json()["status"], "Captured");
    }
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn fifty_concurrent_requests_with_one_key_create_one_intent() {
    let app = TestApp::start().await;
    // A second replica on the same database takes half of them.
    let replica = Service::start(&app.database_url, &app.sandbox.url, &[]).await;
    let request = |n: usize| {
        let service = if n.is_multiple_of(2) {
            &app.service.url
        } else {
            &replica.url
        };
        let request = reqwest::Client::new()
            .post(format!("{service}/v1/payment-links"))
            .bearer_auth(crate::support::API_KEY)
            .header("idempotency-key", "order-1")
            .json(&ten_pounds("Order 1"));
        crate::support::send(request)
    };
    let responses = join_all((0..50).map(request)).await;

    let mut links = Vec::new();
    let mut first = 0;
    for response in responses {
        match response.status.as_u16() {
            201 => {
                first += usize::from(response.header("idempotent-replayed").is_empty());
                links.push(response.json()["id"].clone());
            }
            409 => {
                assert_eq!(response.header("retry-after"), "1");
                links.push(response.problem(409, "request-in-progress")["paymentLinkId"].clone());
            }
            other => panic!("{other}: {}", response.text),
        }
    }
    assert_eq!(first, 1, "one of them created the link");
    assert!(links.iter().all(|link| link == &links[0]), "{links:?}");
    assert_eq!(app.sandbox.intents().await.len(), 1);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn the_same_key_with_another_request_is_rejected() {
    let app = TestApp::start().await;
    app.create_with_key("order-1", &ten_pounds("Order 1"))
        .await
        .expect(201);
    app.create_with_key("order-1", &ten_pounds("Order 2"))
        .await
        .problem(422, "idempotency-key-reused");
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn an_invalid_key_is_rejected() {
    let app = TestApp::start().await;
    for key in ["", "\"\"", &"x".repeat(256)] {
        let problem = app
            .create_with_key(key, &ten_pounds("Order 1"))
            .await
            .problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "Idempotency-Key");
    }
    assert!(app.sandbox.intents().await.is_empty());
}

#[tokio::test]
async fn two_keys_are_rejected() {
    let app = TestApp::start().await;
    let request = app
        .request(reqwest::Method::POST, "/v1/payment-links")
        .header("idempotency-key", "a")
        .header("idempotency-key", "b")
        .json(&json!({"reference": ""}));
    let problem = crate::support::send(request)
        .await
        .problem(422, "invalid-request");
    assert_eq!(
        problem["errors"].as_array().unwrap().len(),
        3,
        "in addition to all other faults: {problem}"
    );
}

#[tokio::test]
async fn a_retry_gets_the_outcome_even_if_the_request_has_expired() {
    let app = TestApp::start().await;
    let soon = time::OffsetDateTime::now_utc() + time::Duration::seconds(10);
    let mut body = ten_pounds("Order 1");
    body["expireAt"] = json!(
        soon.format(&time::format_description::well_known::Rfc3339)
            .unwrap()
    );
    let link = app
        .create_with_key("order-1", &body)
        .await
        .expect(201)
        .json();
    crate::support::eventually("the expiry is in the past", async || {
        (time::OffsetDateTime::now_utc() > soon).then_some(())
    })
    .await;
    let again = app.create_with_key("order-1", &body).await.expect(201);
    assert_eq!(again.json()["id"], link["id"]);
    app.create_with_key("order-2", &body)
        .await
        .problem(422, "invalid-request");
}

#[tokio::test]
async fn a_key_freed_while_retries_wait_is_not_reported_as_reused() {
    let app = TestApp::start().await;
    // Dojo's `Retry-After` is too long to try again within a request.
    let fault = json!({"operation": "create", "kind": "status", "status": 429, "retryAfter": 60, "share": 1.0});
    app.sandbox.control("faults", fault).await;
    for round in 0..20 {
        let key = format!("order-{round}");
        let body = ten_pounds("Order 1");
        let responses = join_all((0..8).map(|_| app.create_with_key(&key, &body))).await;
        for response in responses {
            assert!(
                matches!(response.status.as_u16(), 503 | 409),
                "{}: {}",
                response.status,
                response.text
            );
        }
    }
}

#[tokio::test]
async fn a_key_belongs_to_its_client() {
    let app = TestApp::start().await;
    let other = crate::commands::create_api_key(&app, "orders", "links:read,links:write");
    let first = app
        .create_with_key("order-1", &ten_pounds("Order 1"))
        .await
        .expect(201)
        .json();
    let request = app
        .anonymous(reqwest::Method::POST, "/v1/payment-links")
        .bearer_auth(other)
        .header("idempotency-key", "order-1")
        .json(&ten_pounds("Order 2"));
    let second = crate::support::send(request).await.expect(201).json();
    assert_ne!(text(&first["id"]), text(&second["id"]));
    assert_eq!(second["createdBy"], "orders");
}

#[tokio::test]
async fn requests_without_a_key_create_a_link_each() {
    let app = TestApp::start().await;
    app.created().await;
    app.created().await;
    assert_eq!(app.sandbox.intents().await.len(), 2);
}

#[tokio::test]
async fn a_caller_that_hangs_up_loses_nothing() {
    let app = TestApp::start().await;
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 500}))
        .await;
    let impatient = reqwest::Client::builder()
        .timeout(std::time::Duration::from_millis(200))
        .build()
        .unwrap()
        .post(format!("{}/v1/payment-links", app.service.url))
        .bearer_auth(crate::support::API_KEY)
        .header("idempotency-key", "order-1")
        .json(&ten_pounds("Order 1"));
    assert!(impatient.send().await.unwrap_err().is_timeout());

    let link = crate::support::eventually("the outcome is known", async || {
        let response = app.create_with_key("order-1", &ten_pounds("Order 1")).await;
        (response.status == 201).then(|| response.json())
    })
    .await;
    assert_eq!(link["status"], "Created");
    assert_eq!(app.sandbox.creations().await.len(), 1);
}
