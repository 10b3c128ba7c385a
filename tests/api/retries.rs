//! What `docs/guide.md` and `docs/problems.md` say about repeating a request: which problems it solves, what it gets, and for
//! how long.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    commands::create_api_key,
    support::{
        API_KEY, Answer, SETTLE, Service, TestApp, eventually, manual, pounds, received_at, send,
        ten_pounds, text,
    },
};

/// Repeats a request that did nothing, and checks that now it is carried out.
async fn is_carried_out(app: &TestApp, key: &str, body: &Value) -> Answer {
    let answer = app.create_with_key(key, body).await.expect(201);
    assert_eq!(answer.header("idempotent-replayed"), "", "{key}");
    let intents = app
        .sandbox
        .live_intents_about(text(&body["reference"]))
        .await;
    assert_eq!(intents.len(), 1, "{key}");
    answer
}

#[tokio::test]
async fn a_key_is_kept_however_old_it_is() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let link = app.create_with_key("link", &body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    let part = json!({"amount": pounds(300)});
    let refund = app.operate_with_key("refund", &link, "refunds", &part);
    let refund = refund.await.expect(200).header("operation-id").to_owned();

    app.service.kill().await;
    for age in [
        "UPDATE idempotency_keys SET created_at = created_at - interval '10 years'",
        "UPDATE payment_links SET created_at = created_at - interval '10 years'",
        "UPDATE operations SET created_at = created_at - interval '10 years'",
    ] {
        sqlx::query(age).execute(&app.pool).await.unwrap();
    }
    app.restart().await;
    // Background jobs look at everything once more.
    let synced = app.link(&link["id"]).await["syncedAt"].clone();
    app.all_are_due().await;
    eventually("the link is reconciled", async || {
        (app.link(&link["id"]).await["syncedAt"] != synced).then_some(())
    })
    .await;

    let again = app.create_with_key("link", &body).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json()["id"], link["id"]);
    assert_eq!(again.json()["refundedAmount"], pounds(300));
    let again = app.operate_with_key("refund", &link, "refunds", &part);
    let again = again.await.expect(200);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.header("operation-id"), refund);
    assert_eq!(app.sandbox.intents().await.len(), 1);
    assert_eq!(app.sandbox.requests("refund").await.len(), 1);
}

#[tokio::test]
async fn a_request_that_must_be_fixed_leaves_its_key_free() {
    let app = TestApp::start().await;
    let reader = create_api_key(&app, "reader", "links:read");
    let path = "/v1/payment-links";
    let body = ten_pounds("Order 1");
    // The longest possible key.
    let key = "x".repeat(255);
    let request = || app.request(Method::POST, path);
    let wrong = [
        (
            request().header("content-type", "application/json"),
            "{",
            400,
            "malformed-json",
        ),
        (
            app.anonymous(Method::POST, path),
            "{}",
            401,
            "unauthenticated",
        ),
        (request(), "{}", 415, "unsupported-media-type"),
        (request().json(&json!({})), "", 422, "invalid-request"),
        (
            request().json(&json!({"reference": "x".repeat(300_000)})),
            "",
            413,
            "body-too-large",
        ),
    ];
    for (request, text, status, slug) in wrong {
        let request = request.header("idempotency-key", &key);
        let request = if text.is_empty() {
            request
        } else {
            request.body(text)
        };
        send(request).await.problem(status, slug);
    }
    let forbidden = app.anonymous(Method::POST, path).bearer_auth(reader);
    let forbidden = forbidden.header("idempotency-key", &key).json(&body);
    send(forbidden).await.problem(403, "forbidden");
    let link = is_carried_out(&app, &key, &body).await.json();

    app.operate_with_key("a", &link, "captures", &json!({}))
        .await
        .problem(409, "not-possible");
    let unknown = json!({"id": "plink_01kaz8v4wce7q8m6s5gq9nq2fd"});
    app.operate_with_key("a", &unknown, "cancel", &Value::Null)
        .await
        .problem(404, "not-found");
    let canceled = app.operate_with_key("a", &link, "cancel", &Value::Null);
    let canceled = canceled.await.expect(200);
    assert_eq!(canceled.header("idempotent-replayed"), "");

    // Once the payment allows it, the same request succeeds with the same key.
    let link = app.create(&manual("Order 2")).await.expect(201).json();
    let part = json!({"amount": pounds(300)});
    app.operate_with_key("b", &link, "captures", &part)
        .await
        .problem(409, "not-possible");
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.operate_with_key("b", &link, "captures", &part)
        .await
        .expect(200);
}

#[tokio::test]
async fn a_request_that_dojo_did_nothing_about_is_carried_out_when_it_is_repeated() {
    let app = TestApp::with(&[("DOJO_TIMEOUT", "1s")]).await;
    for (key, fault, status, slug) in [
        (
            "busy",
            json!({"status": 429, "retryAfter": 60}),
            503,
            "dojo-not-reached",
        ),
        ("key", json!({"status": 401}), 502, "dojo-key-rejected"),
        ("misrouted", json!({"status": 404}), 502, "dojo-misrouted"),
    ] {
        let body = ten_pounds(key);
        app.sandbox.next("create", "status", fault).await;
        let answer = app.create_with_key(key, &body).await;
        let retry_after = answer.header("retry-after").to_owned();
        assert_eq!(retry_after.is_empty(), status == 502, "{key}");
        let failed = answer.problem(status, slug)["paymentLinkId"].clone();
        let link = is_carried_out(&app, key, &body).await.json();
        assert_eq!(link["id"], failed, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limited_request_is_carried_out_when_it_is_repeated() {
    let app = TestApp::with(&[("CLIENT_RATE", "1")]).await;
    let body = ten_pounds("Order 1");
    eventually("the limit is reached", async || {
        let read = app.get("/v1/payment-links?limit=1").await;
        if read.status != 429 {
            return None;
        }
        // A machine that is this slow may have waited long enough for another request.
        let answer = app.create_with_key("a", &body).await;
        (answer.status == 429).then_some(answer)
    })
    .await
    .problem(429, "rate-limited");
    let first = eventually("it may send again", async || {
        let answer = app.create_with_key("a", &body).await;
        (answer.status != 429).then_some(answer)
    })
    .await
    .expect(201);
    assert!(!first.json()["id"].is_null());
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn a_request_that_was_cut_off_is_carried_out_when_it_is_repeated() {
    let app = TestApp::start().await;
    let body = ten_pounds("Order 1");
    let address = app.service.url.strip_prefix("http://").unwrap().to_owned();
    let whole = body.to_string();
    let answer = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(&address).unwrap();
        connection
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        write!(
            connection,
            "POST /v1/payment-links HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {API_KEY}\r\n\
             Content-Type: application/json\r\nIdempotency-Key: a\r\nContent-Length: {}\r\n\r\n{}",
            whole.len(),
            &whole[..10]
        )
        .unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    })
    .await
    .unwrap();
    assert!(
        answer.contains("/docs/problems#body-incomplete"),
        "{answer}"
    );
    is_carried_out(&app, "a", &body).await;
}

#[tokio::test]
async fn after_an_internal_error_the_same_request_is_carried_out() {
    let app = TestApp::start().await;
    for statement in [
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''broken''; END'",
        "CREATE TRIGGER broken BEFORE INSERT ON payment_links EXECUTE FUNCTION fail()",
    ] {
        sqlx::query(statement).execute(&app.pool).await.unwrap();
    }
    let body = ten_pounds("Order 1");
    app.create_with_key("a", &body)
        .await
        .problem(500, "internal-error");
    sqlx::query("DROP TRIGGER broken ON payment_links")
        .execute(&app.pool)
        .await
        .unwrap();
    is_carried_out(&app, "a", &body).await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_gets_a_response_and_its_repetition_the_outcome() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let settings = [("REQUEST_TIMEOUT", "100ms")];
    let hasty = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let part = json!({"amount": pounds(300)});
    let lock = app
        .lock("LOCK TABLE payment_links IN ACCESS EXCLUSIVE MODE")
        .await;
    let path = format!("/v1/payment-links/{}/refunds", text(&link["id"]));
    let refund = crate::support::client()
        .post(format!("{}{path}", hasty.url))
        .bearer_auth(API_KEY)
        .header("idempotency-key", "a")
        .json(&part);
    // It arrives although the lock is still there: 2 seconds after the time limit at the latest.
    send(refund).await.problem(503, "timed-out");
    lock.rollback().await.unwrap();
    app.operate_with_key("a", &link, "refunds", &part)
        .await
        .expect(200);
    assert_eq!(app.sandbox.requests("refund").await.len(), 1);
}

#[tokio::test]
async fn an_outcome_stays_unknown_while_dojo_cannot_be_reached() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let outage = json!({"operation": "any", "kind": "status", "status": 503, "share": 1.0});
    app.sandbox.control("faults", outage).await;
    let body = ten_pounds("Order 1");
    let lost = app.create_with_key("a", &body).await;
    assert_ne!(lost.header("retry-after"), "");
    let id = lost.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    eventually("the settlement window is over", async || {
        let creation = received_at(&app.sandbox.creations().await[0]);
        let search = app.sandbox.requests("search").await.pop()?;
        (received_at(&search) > creation + SETTLE * 2).then_some(())
    })
    .await;
    let meanwhile = app.create_with_key("a", &body).await;
    assert_ne!(meanwhile.header("retry-after"), "");
    meanwhile.problem(409, "request-in-progress");

    app.sandbox.clear("faults").await;
    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["id"], id);
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn a_lost_operation_can_be_waited_for() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("refund", "cutAfter", json!({})).await;
    let path = format!("/v1/payment-links/{}/refunds", text(&link["id"]));
    let refund = app
        .request(Method::POST, &path)
        .header("idempotency-key", "a")
        .header("prefer", "wait=25")
        .json(&json!({"amount": pounds(300)}));
    let answer = send(refund).await.expect(200);
    assert_eq!(answer.header("preference-applied"), "wait=25");
    assert_eq!(answer.json()["operation"]["status"], "Succeeded");
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(intent["refundedAmount"], 300);
}

#[tokio::test]
async fn a_request_waits_for_25_seconds_at_most() {
    let app = TestApp::start().await;
    let request = app.request(Method::POST, "/v1/payment-links");
    let request = request.header("prefer", "wait=600");
    let answer = send(request.json(&ten_pounds("Order 1"))).await.expect(201);
    assert_eq!(answer.header("preference-applied"), "wait=25");
}
