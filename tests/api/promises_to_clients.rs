//! What client programs rely on: retries, waiting, filters, entity tags, and machine-readable problems.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, TestApp, manual, pounds, send, ten_pounds, text};

impl TestApp {
    /// `POST /v1/payment-links` with an idempotency key and `Prefer: wait`.
    async fn create_and_wait(&self, key: &str, body: &Value, seconds: u32) -> Answer {
        let request = self.request(Method::POST, "/v1/payment-links");
        let request = request
            .header("idempotency-key", key)
            .header("prefer", format!("respond-async, wait={seconds}"));
        send(request.json(body)).await
    }

    async fn ids(&self, query: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/payment-links?{query}")).await;
        let page = page.expect(200).json();
        let links = page["data"].as_array().unwrap();
        links.iter().map(|link| link["id"].clone()).collect()
    }
}

#[tokio::test]
async fn a_lost_creation_can_be_waited_for() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let answer = app.create_and_wait("a", &ten_pounds("Order 1"), 25).await;
    assert_eq!(answer.header("preference-applied"), "wait=25");
    let link = answer.expect(201).json();
    assert_eq!(link["status"], "Created");
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn the_wait_ends_when_the_outcome_stays_unknown() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("create", "cutBefore", json!({})).await;
    let answer = app.create_and_wait("a", &ten_pounds("Order 1"), 1).await;
    let problem = answer.problem(409, "request-in-progress");
    assert!(text(&problem["detail"]).contains("was lost"), "{problem}");
}

#[tokio::test]
async fn a_wait_ends_before_the_request_times_out() {
    let app = TestApp::with(&[("REQUEST_TIMEOUT", "10s"), ("DOJO_TIMEOUT", "1s")]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("create", "cutBefore", json!({})).await;
    app.create_and_wait("a", &ten_pounds("Order 1"), 20)
        .await
        .problem(409, "request-in-progress");
}

#[tokio::test]
async fn retry_after_grows_while_the_outcome_of_a_creation_is_unknown() {
    // The default settlement window is two minutes, so the outcome stays unknown during the test.
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("create", "cutBefore", json!({})).await;
    let body = ten_pounds("Order 1");
    let link = app
        .create_with_key("a", &body)
        .await
        .problem(504, "outcome-unknown")["paymentLinkId"]
        .clone();
    sqlx::query("UPDATE payment_links SET asked_until = now() - interval '40 seconds'")
        .execute(&app.pool)
        .await
        .unwrap();
    let answer = app.create_with_key("a", &body).await;
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((15..=25).contains(&wait), "{wait}");
    let problem = answer.problem(409, "request-in-progress");
    assert_eq!(problem["paymentLinkId"], link);
    assert!(
        text(&problem["detail"]).contains("lost 40 s ago"),
        "{problem}"
    );
}

#[tokio::test]
async fn a_repeated_operation_gets_dojos_figures_once_they_can_be_read() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox
        .control(
            "faults",
            json!({"operation": "get", "kind": "status", "status": 500, "share": 1.0}),
        )
        .await;
    let nothing = json!({});
    let first = app.operate_with_key("a", &link, "reversal", &nothing).await;
    let first = first.expect(202).json();
    assert_eq!(first["operation"]["status"], "Succeeded");
    assert_eq!(first["capturedAmount"], pounds(1000));
    assert_eq!(first["confirmed"], false);
    let again = app.operate_with_key("a", &link, "reversal", &nothing).await;
    assert_eq!(again.expect(202).json()["confirmed"], false);

    app.sandbox.clear("faults").await;
    let again = app.operate_with_key("a", &link, "reversal", &nothing).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let again = again.expect(200).json();
    assert_eq!(again["operation"], first["operation"]);
    assert_eq!(again["status"], "Reversed");
    assert_eq!(again["capturedAmount"], pounds(0));
    assert_eq!(app.sandbox.requests("reversal").await.len(), 1);
}

#[tokio::test]
async fn what_is_not_possible_says_what_is() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let too_much = json!({"amount": pounds(1001)});
    let problem = app.operate_with_key("a", &link, "refunds", &too_much).await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(problem["remaining"], pounds(1000));
    assert_eq!(
        problem["allowedActions"],
        json!(["refund", "reversal", "receipt"])
    );

    let link = app.create(&manual("Order 2")).await.expect(201).json();
    let problem = app.operate(&link, "captures", &json!({})).await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(problem["remaining"], Value::Null);
    assert_eq!(
        problem["allowedActions"],
        json!(["cancel", "amount", "tipsAmount"])
    );
}

#[tokio::test]
async fn operations_are_found_by_id_status_and_account() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let refunded = app
        .operate_with_key("a", &link, "refunds", &json!({"amount": pounds(300)}))
        .await;
    let id = refunded.header("operation-id").to_owned();
    let operation = refunded.expect(200).json()["operation"].clone();
    assert_eq!(operation["id"], json!(id));
    assert_eq!(operation["paymentLinkId"], link["id"]);
    let found = app.get(&format!("/v1/operations/{id}")).await;
    assert_eq!(found.expect(200).json(), operation);
    for (query, expected) in [
        ("", vec![&operation]),
        ("?status=Succeeded&status=Failed", vec![&operation]),
        ("?status=Unconfirmed", vec![]),
        ("?account=default", vec![&operation]),
        ("?account=leeds", vec![]),
    ] {
        let page = app.get(&format!("/v1/operations{query}")).await;
        let page = page.expect(200).json();
        assert_eq!(page["data"], json!(expected), "{query}");
    }
    for unknown in ["op_01kaz8v4wce7q8m6s5gq9nq2fd", "1"] {
        app.get(&format!("/v1/operations/{unknown}"))
            .await
            .problem(404, "not-found");
    }
}

#[tokio::test]
async fn links_are_found_by_what_is_known_about_them() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order A-1");
    body["metadata"] = json!({"order": "236", "shop": "leeds"});
    body["customer"] = json!({"emailAddress": "Ann@Example.com"});
    let a = app.create(&body).await.expect(201).json();
    let mut body = ten_pounds("Order A_1");
    body["amount"] = pounds(1200);
    body["metadata"] = json!({"order": "237"});
    let b = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&b["paymentIntentId"]).await;
    app.link_with_status(&b["id"], "Captured").await;
    let b = app.refresh(&b["id"]).await.expect(200).json();
    let last4 = text(&b["payment"]["last4"]);
    let operation = app.operate_with_key("a", &b, "refunds", &json!({})).await;
    let operation = operation.expect(200).json()["operation"]["id"].clone();
    let (a_id, b_id) = (a["id"].clone(), b["id"].clone());
    for (query, expected) in [
        ("metadata[order]=236".to_owned(), vec![&a_id]),
        (
            "metadata%5Border%5D=236&metadata[shop]=leeds".to_owned(),
            vec![&a_id],
        ),
        ("metadata[order]=236&metadata[shop]=york".to_owned(), vec![]),
        (
            "metadata=order:236&metadata=shop:leeds".to_owned(),
            vec![&a_id],
        ),
        ("metadata=order:236&metadata[shop]=york".to_owned(), vec![]),
        ("customerEmail=ann%40example.COM".to_owned(), vec![&a_id]),
        (format!("cardLast4={last4}"), vec![&b_id]),
        ("amount=1200".to_owned(), vec![&b_id]),
        (
            "status=Created&status=Refunded".to_owned(),
            vec![&b_id, &a_id],
        ),
        ("q=Order+A".to_owned(), vec![&b_id, &a_id]),
        // Neither character is a wildcard.
        ("q=Order+A_".to_owned(), vec![&b_id]),
        ("q=Order+A%25".to_owned(), vec![]),
        (format!("q={}", text(&a_id)), vec![&a_id]),
        (format!("q={}", text(&operation)), vec![&b_id]),
        (format!("q={}", text(&b["paymentIntentId"])), vec![&b_id]),
        (
            format!("updatedAfter={}", text(&b["updatedAt"])),
            vec![&b_id],
        ),
    ] {
        let found = app.ids(&query).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{query}");
    }
    for invalid in [
        "cardLast4=12a4",
        "amount=-1",
        "metadata[a]=1&metadata[a]=2",
        "metadata=1",
        "status=Created&status=Paid",
        "sort=amount",
        "q=",
    ] {
        app.get(&format!("/v1/payment-links?{invalid}"))
            .await
            .problem(422, "invalid-request");
    }
}

#[tokio::test]
async fn polling_an_unchanged_link_costs_no_body() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    let first = app.get(&path).await.expect(200);
    let tag = first.header("etag").to_owned();
    let poll = async |tags: &str| {
        let request = app.request(Method::GET, &path);
        send(request.header("if-none-match", tags)).await
    };
    let unchanged = poll(&format!("\"other\", W/{tag}")).await.expect(304);
    assert_eq!(
        (unchanged.text.as_str(), unchanged.header("etag")),
        ("", tag.as_str())
    );
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    let changed = poll(&tag).await.expect(200);
    assert_ne!(changed.header("etag"), tag);
}

#[tokio::test]
async fn times_always_have_the_same_width() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order 1");
    body["expireAt"] = json!("2099-12-31T23:59:59+01:00");
    let link = app.create(&body).await.expect(201).json();
    for name in ["createdAt", "updatedAt", "syncedAt", "expireAt"] {
        assert_eq!(
            text(&link[name]).len(),
            "2099-12-31T22:59:59.000000Z".len(),
            "{name}"
        );
    }
}

/// The document and the service agree on the scope of every call.
#[tokio::test]
async fn the_document_names_the_scope_of_every_call() {
    let app = TestApp::start().await;
    let reader = crate::commands::create_api_key(&app, "reader", "links:read");
    let manager = crate::commands::create_api_key(&app, "manager", "payments:manage");
    let document: Value = yaml_serde::from_str(include_str!("../../openapi.yaml")).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, call) in item.as_object().unwrap() {
            if !path.starts_with("/v1/") {
                continue;
            }
            let scope = text(&call["security"][0]["apiKey"][0]);
            assert!(text(&call["description"]).contains(&format!("scope `{scope}`")));
            let url = path.replace("{id}", "plink_01kaz8v4wce7q8m6s5gq9nq2fd");
            let request = app.anonymous(method.to_uppercase().parse().unwrap(), &url);
            let lacks_it = if scope == "links:read" {
                &manager
            } else {
                &reader
            };
            let answer = send(request.bearer_auth(lacks_it)).await;
            let problem = answer.problem(403, "forbidden");
            assert!(
                text(&problem["detail"]).contains(scope),
                "{method} {path}: {problem}"
            );
        }
    }
}
