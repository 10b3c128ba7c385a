//! What no caller and no stranger can do: take up all calls to Dojo, send requests without a limit, fill the log, or find out
//! which accounts exist.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    commands::create_api_key,
    support::{Answer, TestApp, eventually, send, ten_pounds, text},
};

#[tokio::test]
async fn reconciling_on_request_counts_as_a_call_to_dojo() {
    let app = TestApp::with(&[("MAX_CREATIONS", "1")]).await;
    let link = app.created().await;
    let slow = json!({"latencyMs": 1500});
    app.sandbox.next("get", "latency", slow).await;
    let reconciling = app.refresh(&link["id"]);
    let others = async {
        eventually("Dojo receives the read", async || {
            app.sandbox.requests("get").await.pop()
        })
        .await;
        for answer in [
            app.create(&ten_pounds("Order 2")).await,
            app.operate(&link, "cancel", &Value::Null).await,
            app.refresh(&link["id"]).await,
        ] {
            assert_eq!(answer.header("retry-after"), "1");
            answer.problem(503, "overloaded");
        }
        // Requests that need no call to Dojo still work.
        app.link(&link["id"]).await;
    };
    let (reconciled, ()) = tokio::join!(reconciling, others);
    reconciled.expect(200);
    app.refresh(&link["id"]).await.expect(200);
    app.create(&ten_pounds("Order 2")).await.expect(201);
}

#[tokio::test]
async fn reconciling_on_request_searches_a_few_pages_and_the_job_the_rest() {
    // No webhooks and no response, so the creation is retried and there may be a surplus intent.
    let app = TestApp::with(&[]).await;
    let mut jobs = app.another(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox
        .next("create", "status", json!({"status": 500}))
        .await;
    let link = app.the_only_link("a", &ten_pounds("Order 1")).await;
    assert_eq!(app.told(&link["id"], "creationRetried").await.len(), 1);
    jobs.kill().await;
    let due = async || -> f64 {
        sqlx::query_scalar("SELECT extract(epoch FROM due_at)::float8 FROM payment_links")
            .fetch_one(&app.pool)
            .await
            .unwrap()
    };
    // More intents than a few pages. The link's second intent is the oldest, which search returns last.
    let mut second = ten_pounds("Order 1");
    second["metadata"] = json!({"paymentLinkId": link["id"]});
    app.sandbox
        .api(Method::POST, "/payment-intents", &second)
        .await;
    for _ in 0..12 {
        let foreign = ten_pounds("Foreign");
        let intents = (0..50).map(|_| app.sandbox.api(Method::POST, "/payment-intents", &foreign));
        join_all(intents).await;
    }
    // Sooner than a link that was just reconciled is due again.
    app.all_are_due().await;
    let due_before = due().await;

    // The caller's search stops before its end.
    let response = app.refresh(&link["id"]).await.expect(200);
    let incomplete =
        "the search for a surplus intent was not completed; a background job will repeat it";
    let request_id = response.header("x-request-id");
    let logged = app.logged(incomplete).await;
    assert!(logged[0].contains(request_id), "{logged:?}");
    assert!(app.told(&link["id"], "surplusFound").await.is_empty());
    let postponed = due().await - due_before;
    assert!(
        postponed < 0.001,
        "the background's search is {postponed} s later"
    );

    let _jobs = app.another(&[]).await;
    eventually("the surplus intent is found", async || {
        app.told(&link["id"], "surplusFound").await.pop()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_its_rate_limit_gets_429_and_others_do_not() {
    let app = TestApp::with(&[("CLIENT_RATE", "5")]).await;
    let other = create_api_key(&app, "orders", "links:read");
    let read = || app.get("/v1/payment-links");
    let answers = join_all((0..40).map(|_| read())).await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert!(taken.len() >= 5 && refused.len() >= 10, "{}", taken.len());
    for answer in refused {
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.header("cache-control"), "no-store");
        answer.problem(429, "rate-limited");
    }

    let others = app.anonymous(Method::GET, "/v1/payment-links");
    send(others.bearer_auth(&other)).await.expect(200);
    // The limit applies to the client, whichever scope a request needs. Nothing is done beyond it.
    let body = ten_pounds("Order 1");
    let creations = join_all((0..20).map(|_| app.create(&body))).await;
    let made = creations.iter().filter(|answer| answer.status == 201);
    assert_eq!(made.count(), app.sandbox.creations().await.len());
    assert!(creations.iter().any(|answer| answer.status == 429));
    // Requests without a valid key get 401, however many there are: only clients are limited.
    for _ in 0..20 {
        let nobody = app.anonymous(Method::GET, "/v1/payment-links");
        let made_up = nobody.bearer_auth(format!("dpl_{}", "0".repeat(64)));
        send(made_up).await.problem(401, "unauthenticated");
    }
    eventually("it may send again", async || {
        (read().await.status == 200).then_some(())
    })
    .await;
}

/// What a response shows to its receiver, except for what differs between any two requests.
fn seen(answer: &Answer) -> (u16, Vec<(String, String)>, Value) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "date" | "x-request-id" | "content-length"))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    let mut body = answer.json();
    for field in ["instance", "requestId"] {
        body[field] = Value::Null;
    }
    (answer.status.as_u16(), headers, body)
}

#[tokio::test]
async fn webhooks_for_unknown_and_known_accounts_get_the_same_response() {
    let app = TestApp::start().await;
    let deliver = async |path: &str, signature: Option<&str>, body: &str| {
        let mut request = app.anonymous(Method::POST, path).body(body.to_owned());
        if let Some(signature) = signature {
            request = request.header("dojo-signature", signature);
        }
        send(request).await
    };
    // A signature made with a secret that is in the source code is not valid either.
    let made_up = dojo_sandbox::signature::sign("no webhook is signed with this", b"{}");
    let large = "x".repeat(300 * 1024);
    for (signature, body) in [
        (None, "{}"),
        (Some(""), "{}"),
        (Some("sha256=00"), "{}"),
        (Some(made_up.as_str()), "{}"),
        (Some(made_up.as_str()), large.as_str()),
    ] {
        let real = deliver("/webhooks/dojo/default", signature, body).await;
        let unknown = deliver("/webhooks/dojo/leeds", signature, body).await;
        assert_eq!(seen(&real), seen(&unknown));
        assert!(matches!(real.status.as_u16(), 401 | 413));
    }
    assert_eq!(app.stored_webhooks().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_fill_the_log() {
    let mut app = TestApp::start().await;
    for _ in 0..50 {
        app.deliver_signed("{}", "sha256=00").await.expect(401);
        for path in ["/webhooks/dojo/leeds", "/webhooks/dojo/york"] {
            let unknown = app.anonymous(Method::POST, path).body("{}");
            send(unknown).await.expect(401);
        }
        let anonymous = app.anonymous(Method::GET, "/v1/payment-links");
        send(anonymous).await.expect(401);
        let nowhere = app.anonymous(Method::GET, "/admin.php");
        send(nowhere).await.expect(404);
    }
    // Each request of a client and each genuine webhook has a line.
    for n in 0..3 {
        app.get("/v1/payment-links").await.expect(200);
        let genuine = format!(r#"{{"id":"evt_{n}","event":"terminal.moved","data":{{}}}}"#);
        app.deliver(&genuine).await.expect(204);
    }
    let refused = r#"webhooks_total{verdict="rejected"}"#;
    assert!((app.metric(refused).await - 150.0).abs() < 0.5);

    app.service.terminate();
    assert!(app.service.ended().await.success());
    app.logged(r#""message":"stopped""#).await;
    let log = app.service.log();
    let lines = |words: &[&str]| -> Vec<&str> {
        log.lines()
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .collect()
    };
    let [first, sum] = lines(&["WARN", "without a valid signature"])[..] else {
        panic!("not two lines: {log}");
    };
    assert!(first.contains(r#""account":"default""#), "{first}");
    assert!(
        sum.contains(r#""account":"default""#) && sum.contains(r#""more":49"#),
        "{sum}"
    );
    let [_, sum] = lines(&["WARN", "for an unknown account"])[..] else {
        panic!("not two lines: {log}");
    };
    assert!(sum.contains(r#""more":99"#), "{sum}");
    for (route, status) in [("/v1/payment-links", "401"), ("none", "404")] {
        let route = format!(r#""route":"{route}""#);
        let status = format!(r#""status":{status}"#);
        let [first, sum] = lines(&[&route, &status])[..] else {
            panic!("not two lines: {log}");
        };
        assert!(
            first.contains(r#""message":"request completed""#),
            "{first}"
        );
        assert!(sum.contains(r#""more":49"#), "{sum}");
    }
    let answered = r#""message":"request completed""#;
    assert_eq!(lines(&[answered, r#""status":401"#]).len(), 1, "{log}");
    assert_eq!(lines(&[answered, r#""client":"bootstrap""#]).len(), 3);
    assert_eq!(lines(&[answered, r#""status":204"#]).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_keys_cannot_fill_the_log_during_a_database_outage() {
    let app = TestApp::start().await;
    sqlx::query("ALTER TABLE api_keys RENAME TO hidden")
        .execute(&app.pool)
        .await
        .unwrap();
    for _ in 0..20 {
        let nobody = app.anonymous(Method::GET, "/v1/payment-links");
        let made_up = nobody.bearer_auth(format!("dpl_{}", "0".repeat(64)));
        send(made_up).await.problem(503, "database-unavailable");
    }
    let failures = app.logged("a request failed").await;
    assert_eq!(failures.len(), 1, "{failures:#?}");
    assert!(failures[0].contains("api_keys"), "{}", failures[0]);
}

#[tokio::test]
async fn responses_must_not_be_stored_by_caches() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    for answer in [
        app.create(&ten_pounds("Order 2")).await.expect(201),
        app.get(&path).await.expect(200),
        app.get(&format!("{path}/events")).await.expect(200),
        app.get("/v1/payment-links").await.expect(200),
        app.refresh(&link["id"]).await.expect(200),
        app.create(&json!({})).await.expect(422),
        app.get("/v1/nothing").await.expect(404),
        send(app.anonymous(Method::GET, &path)).await.expect(401),
        send(app.request(Method::PATCH, &path)).await.expect(405),
        app.deliver_signed("{}", "").await.expect(401),
    ] {
        assert_eq!(
            answer.header("cache-control"),
            "no-store",
            "{}",
            answer.text
        );
    }
    let page = app.get("/openapi.yaml").await.expect(200);
    assert_eq!(page.header("cache-control"), "");
}
