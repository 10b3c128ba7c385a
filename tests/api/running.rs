//! Starting, running through trouble, and stopping.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    DOJO_KEY, QUICK, Service, TestApp, empty_database, eventually, new_database,
    postgres::Postgres, program, send, ten_pounds, text, within,
};

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness_are_reported() {
    let mut app = TestApp::start().await;
    assert_eq!(app.get("/healthz").await.expect(200).text, "ok");
    assert_eq!(app.get("/readyz").await.expect(200).text, "ready");
    assert!(is_alive(&app));
    app.service.kill().await;
    assert!(!is_alive(&app));
}

/// The container's health check, which decides whether the service is restarted.
fn is_alive(app: &TestApp) -> bool {
    let address = app.service.url.trim_start_matches("http://");
    let asked = program()
        .arg("healthcheck")
        .env("LISTEN_ADDR", address)
        .status();
    asked.unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_listened_on_is_reported_with_a_remedy() {
    let app = TestApp::start().await;
    let taken = app.service.url.trim_start_matches("http://").to_owned();
    for (address, problem) in [
        (
            taken.as_str(),
            "is in use: stop the process that listens there or choose another address",
        ),
        (
            "192.0.2.1:8080",
            "is not an address of this machine: choose one of its own, or 0.0.0.0 for all",
        ),
    ] {
        let output = program()
            .arg("serve")
            .env("DATABASE_URL", &app.database_url)
            .env("DOJO_API_KEY", DOJO_KEY)
            .env("LISTEN_ADDR", address)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(
            log.contains(&format!("LISTEN_ADDR {address} {problem}")),
            "{log}"
        );
    }
}

#[tokio::test]
async fn an_unmigrated_database_is_not_ready() {
    let settings = [("MIGRATE_ON_START", "false"), ("BOOTSTRAP_API_KEY", "")];
    let app = TestApp::on(empty_database().await, &settings).await;
    app.get("/healthz").await.expect(200);
    app.get("/readyz").await.problem(503, "not-ready");
}

/// A service that doesn't migrate, on a database without migrations.
async fn unmigrated(database: &str) -> TestApp {
    let settings = [("MIGRATE_ON_START", "false")];
    TestApp::on(database.to_owned(), &settings).await
}

fn migrate(database: &str) {
    let migrated = program()
        .arg("migrate")
        .env("DATABASE_URL", database)
        .status()
        .unwrap();
    assert!(migrated.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_migrated_later_is_claimed_before_the_service_is_ready() {
    let database = empty_database().await;
    let app = unmigrated(&database).await;
    app.get("/readyz").await.problem(503, "not-ready");
    app.deliver("{}").await.problem(503, "database-unavailable");

    migrate(&database);
    eventually("it is ready", async || {
        (app.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let held: String = sqlx::query_scalar("SELECT environment FROM deployment")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(held, "sandbox");
    eventually("the bootstrap key works", async || {
        (app.get("/v1/payment-links").await.status == 200).then_some(())
    })
    .await;
    let real = program()
        .arg("serve")
        .env("DATABASE_URL", &database)
        .env("DOJO_API_KEY", "sk_prod_1")
        .env("DOJO_API_URL", "https://127.0.0.1:9")
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .output()
        .unwrap();
    assert!(!real.status.success());
    let told = String::from_utf8(real.stderr).unwrap();
    assert!(
        told.contains(
            "DOJO_API_KEY configures production, but the database contains sandbox links"
        ),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_a_database_of_the_other_environment_is_never_ready() {
    let database = new_database().await;
    let mut other = PgConnection::connect(&database).await.unwrap();
    let hide = "ALTER TABLE deployment RENAME TO hidden";
    sqlx::raw_sql(hide).execute(&mut other).await.unwrap();
    let app = unmigrated(&database).await;
    app.get("/readyz").await.problem(503, "not-ready");
    let taken = "BEGIN; ALTER TABLE hidden RENAME TO deployment;
                 INSERT INTO deployment (environment) VALUES ('production'); COMMIT";
    sqlx::raw_sql(taken).execute(&mut other).await.unwrap();
    eventually("it says why it is not ready", async || {
        let problem = app.get("/readyz").await.problem(503, "not-ready");
        let detail = problem["detail"].as_str().unwrap();
        detail.contains("the other environment").then_some(())
    })
    .await;
}

#[tokio::test]
async fn many_replicas_can_start_at_once_on_an_empty_database() {
    let database = empty_database().await;
    let start = || Service::start(&database, "http://127.0.0.1:9", &[]);
    let replicas = tokio::join!(start(), start(), start(), start());
    drop(replicas);
}

#[tokio::test]
async fn on_sigterm_requests_in_flight_are_finished() {
    let mut app = TestApp::start().await;
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 1000}))
        .await;
    let body = ten_pounds("Order 1");
    let request = app.request(Method::POST, "/v1/payment-links").json(&body);
    let in_flight = tokio::spawn(send(request));
    eventually("the link is stored", async || pending_link(&app).await).await;

    app.service.terminate();
    eventually("it accepts no more connections", async || {
        let address = app.service.url.trim_start_matches("http://");
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    let link = in_flight.await.unwrap().expect(201).json();
    assert_eq!(link["status"], "Created");
    assert!(app.service.ended().await.success());
    app.logged(r#""message":"stopped""#).await;
}

async fn pending_link(app: &TestApp) -> Option<()> {
    let pending: i64 =
        sqlx::query_scalar("SELECT count(*) FROM payment_links WHERE status = 'Pending'")
            .fetch_one(&app.pool)
            .await
            .unwrap();
    (pending > 0).then_some(())
}

#[tokio::test]
async fn it_stops_within_the_limit_even_if_dojo_hangs() {
    let mut app = TestApp::with(&[("SHUTDOWN_TIMEOUT", "1s"), ("DOJO_TIMEOUT", "60s")]).await;
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 60_000}))
        .await;
    let body = ten_pounds("Order 1");
    let request = app.request(Method::POST, "/v1/payment-links").json(&body);
    let in_flight = tokio::spawn(request.send());
    eventually("the link is stored", async || pending_link(&app).await).await;
    app.service.terminate();
    within(
        Duration::from_millis(2500),
        "it leaves",
        app.service.ended(),
    )
    .await;
    assert!(in_flight.await.unwrap().is_err());
}

#[tokio::test]
async fn creations_beyond_the_limit_are_503_and_nothing_is_done() {
    let app = TestApp::with(&[("MAX_CREATIONS", "1")]).await;
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 1000}))
        .await;
    let body = ten_pounds("Order 1");
    let first = app.create_with_key("order-1", &body);
    let second = async {
        eventually("the first one is in progress", async || {
            pending_link(&app).await
        })
        .await;
        let answer = app.create_with_key("order-2", &body).await;
        assert_eq!(answer.header("retry-after"), "1");
        answer.problem(503, "overloaded");
    };
    let (first, ()) = tokio::join!(first, second);
    first.expect(201);
    app.create_with_key("order-2", &body).await.expect(201);
    assert_eq!(app.sandbox.intents().await.len(), 2);
}

#[tokio::test]
async fn a_creation_that_takes_too_long_is_504_and_is_finished() {
    let app = TestApp::with(&[("REQUEST_TIMEOUT", "6s"), ("DOJO_TIMEOUT", "30s")]).await;
    // Two seconds after its own limit, the request is cut off with a 503. That happens if the machine is too busy to respond
    // in between, but not three times.
    let mut attempts = ["order-1", "order-2", "order-3"].into_iter();
    let (key, problem) = loop {
        let key = attempts
            .next()
            .expect("the service responds before a request is cut off");
        app.sandbox
            .next("create", "latency", json!({"latencyMs": 12_000}))
            .await;
        let answer = app.create_with_key(key, &ten_pounds("Order 1")).await;
        if answer.status != 503 {
            break (key, answer.problem(504, "outcome-unknown"));
        }
        answer.problem(503, "timed-out");
    };
    let link = eventually("the outcome is known", async || {
        let answer = app.create_with_key(key, &ten_pounds("Order 1")).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    assert_eq!(link["status"], "Created");
    assert_eq!(link["id"], problem["paymentLinkId"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_database_during_a_creation_is_504_and_nothing_is_lost() {
    let mut postgres = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let settings = [("RUN_JOBS", "true"), ("POLL_INTERVAL", "100ms")];
    let app = TestApp::on(postgres.url("postgres"), &settings).await;
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 2000}))
        .await;
    let body = ten_pounds("Order 1");
    let creating = app.create_with_key("order-1", &body);
    let stopping = async {
        eventually("Dojo has created the intent", async || {
            app.sandbox.intents().await.pop()
        })
        .await;
        tokio::task::block_in_place(|| postgres.stop());
    };
    let (answer, ()) = tokio::join!(creating, stopping);
    let problem = answer.problem(504, "outcome-unknown");

    tokio::task::block_in_place(|| postgres.resume());
    let link = eventually("the outcome is known", async || {
        let answer = app.create_with_key("order-1", &body).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    assert_eq!(link["id"], problem["paymentLinkId"]);
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_it_responds_503_and_recovers_without_a_restart() {
    let mut postgres = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let settings = [("DATABASE_ACQUIRE_TIMEOUT", "1s")];
    let app = TestApp::on(postgres.url("postgres"), &settings).await;
    let link = app.created().await;
    let webhook = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured"}})
    .to_string();

    tokio::task::block_in_place(|| postgres.stop());
    app.get("/healthz").await.expect(200);
    assert!(is_alive(&app), "a restart would not help");
    app.get("/readyz").await.problem(503, "not-ready");
    app.deliver(&webhook)
        .await
        .problem(503, "database-unavailable");
    let body = ten_pounds("Order 2");
    let answer = app.create_with_key("order-2", &body).await;
    assert_ne!(answer.header("retry-after"), "");
    assert!(!answer.text.contains("postgres"), "{}", answer.text);
    answer.problem(503, "database-unavailable");

    tokio::task::block_in_place(|| postgres.resume());
    eventually("it is ready again", async || {
        (app.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    app.deliver(&webhook).await.expect(204);
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    assert_eq!(
        app.sandbox.intents().await.len(),
        1,
        "nothing was created at Dojo that could not be stored"
    );
    let again = app.create_with_key("order-2", &body).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "");
}

#[tokio::test]
async fn a_read_only_database_is_503_and_a_later_retry_succeeds() {
    let app = TestApp::start().await;
    let link = app.created().await;
    eventually("the webhook about the creation has arrived", async || {
        (app.stored_webhooks().await == 1).then_some(())
    })
    .await;
    let webhook = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured"}})
    .to_string();
    let mut operator = PgConnection::connect(&app.database_url).await.unwrap();

    set_read_only(&mut operator, true).await;
    let order = ten_pounds("Order 2");
    for what in ["the webhook", "the order"] {
        eventually(
            &format!("{what} meets the read-only database"),
            async || {
                let answer = match what {
                    "the webhook" => app.deliver(&webhook).await,
                    _ => app.create_with_key("a", &order).await,
                };
                assert_ne!(answer.header("retry-after"), "");
                // The first attempts may meet connections that were cut.
                let problem = answer.problem(503, "database-unavailable");
                let id = problem["requestId"].as_str().unwrap();
                let log = app.service.log();
                let mut lines = log.lines().filter(|line| line.contains(id));
                lines.any(|line| line.contains("read-only")).then_some(())
            },
        )
        .await;
    }
    // The first attempts may meet connections that were cut.
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    let status = async || {
        eventually("the link is read", async || {
            let answer = app.get(&path).await;
            (answer.status == 200).then(|| text(&answer.json()["status"]).to_owned())
        })
        .await
    };
    assert_eq!(status().await, "Created");
    assert_eq!(app.sandbox.creations().await.len(), 1);

    set_read_only(&mut operator, false).await;
    eventually("the webhook is stored", async || {
        (app.deliver(&webhook).await.status == 204).then_some(())
    })
    .await;
    assert_eq!(status().await, "Captured");
    let outcome = app.outcome("a", &order).await.expect(201).json();
    assert_eq!(outcome["status"], "Created");
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

/// Makes all other connections to this database read-only, as those to a standby are, or writable again.
async fn set_read_only(operator: &mut PgConnection, only: bool) {
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut *operator)
        .await
        .unwrap();
    let statement = format!("ALTER DATABASE {name} SET default_transaction_read_only = {only}");
    sqlx::query(AssertSqlSafe(statement))
        .execute(&mut *operator)
        .await
        .unwrap();
    sqlx::query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .execute(&mut *operator)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_request_head_that_is_too_large_or_never_ends_is_rejected() {
    let app = TestApp::start().await;
    let large = app
        .request(Method::GET, "/healthz")
        .header("x-large", "x".repeat(64 * 1024));
    let refused = large.send().await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status() == 431));
    let mut many = app.request(Method::GET, "/healthz");
    for n in 0..100 {
        many = many.header(format!("x-{n}"), "x");
    }
    assert_eq!(many.send().await.unwrap().status(), 431);

    let address = app.service.url.trim_start_matches("http://");
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let cut = within(
        Duration::from_secs(20),
        "it is cut",
        slow.read_to_end(&mut rest),
    )
    .await;
    assert!(cut.is_err() || rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"));
    let cut = within(
        Duration::from_secs(20),
        "one that never begins too",
        silent.read_to_end(&mut rest),
    )
    .await;
    assert!(cut.is_err() || rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_log_line_names_the_environment() {
    let mut app = TestApp::with(&[&QUICK[..], &[("LOG_FILTER", "debug")]].concat()).await;
    app.service.kill().await;
    app.restart().await;
    app.sandbox.send_webhooks_to(&app.service.url).await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    app.deliver_signed("{}", "sha256=00").await.expect(401);
    app.sandbox.next("create", "cutBefore", json!({})).await;
    let order = ten_pounds("Order 2");
    app.create_with_key("a", &order).await.expect(504);
    app.outcome("a", &order).await.expect(201);
    app.service.terminate();
    assert!(app.service.ended().await.success());
    app.logged(r#""message":"stopped""#).await;

    // Before the accounts have been read, the environment is unknown.
    let log = app.service.log();
    let log = &log[log.find(r#"{"environment""#).unwrap()..];
    for words in ["sqlx::query", r#""name":"job""#, r#""name":"request""#] {
        assert!(log.contains(words), "nothing of {words}: {log}");
    }
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["environment"], "sandbox", "{line}");
        assert_eq!(line.matches("\"environment\":").count(), 1, "{line}");
    }
}

#[tokio::test]
async fn the_metrics_count_what_happens() {
    let app = TestApp::start().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    app.deliver_signed("{}", "sha256=00").await.expect(401);
    let made_up = Method::from_bytes(b"MADEUP").unwrap();
    send(app.request(made_up, "/healthz")).await.expect(405);
    let metrics = app.get("/metrics").await.expect(200).text;
    for line in [
        r#"http_requests_total{method="POST",route="/v1/payment-links",status="201"} 1"#,
        r#"dojo_requests_total{operation="create",outcome="ok"} 1"#,
        r#"payment_links_total{outcome="created"} 1"#,
        r#"webhooks_total{verdict="applied"} 1"#,
        r#"webhooks_total{verdict="rejected"} 1"#,
        r#"link_status_changes_total{status="Pending",cause="request"} 1"#,
        r#"link_status_changes_total{status="Created",cause="request"} 1"#,
        r#"link_status_changes_total{status="Captured",cause="webhook"} 1"#,
        r#"link_status_changes_total{status="Captured",cause="reconciliation"} 0"#,
        "surplus_paid_total 0",
        r#"database_connections{state="used"} "#,
        "database_connections_max 10",
        "database_acquire_duration_seconds_bucket{",
        concat!(
            r#"dojo_payment_links_build_info{version=""#,
            env!("CARGO_PKG_VERSION"),
            r#""} 1"#
        ),
        "dojo_request_duration_seconds_bucket{",
    ] {
        assert!(metrics.contains(line), "{line} is missing from\n{metrics}");
    }
    for endless in ["plink_", "MADEUP", "Order 1"] {
        assert!(!metrics.contains(endless), "a label with unlimited values");
    }
}
