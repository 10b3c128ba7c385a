//! Trouble with the database that is not an outage: silent connections, frozen replicas, read-only servers, and locks.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::net::TcpListener;

use crate::{
    commands::{api_keys, error_of as refused, output_of as told},
    support::{
        Answer, DOJO_KEY, Service, TestApp, WEBHOOK_SECRET, eventually, eventually_within,
        new_database, port_of, pounds, program, proxy::Proxy, send, ten_pounds, text, through,
        within,
    },
};

/// How long a service may take to serve again, and how many connections it has.
const LIMIT: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 10;

/// A service with quick background jobs, which reaches its database through a proxy.
async fn behind_a_proxy(settings: &[(&str, &str)]) -> (TestApp, Proxy) {
    let database = new_database().await;
    let proxy = Proxy::to(port_of(&database)).await;
    let app = TestApp::quick_on(through(proxy.port, &database), settings).await;
    // The test itself connects directly.
    let app = app.with_database(&database);
    (app, proxy)
}

/// Keeps every connection of the service busy with reads for as long as the lock exists.
async fn all_are_busy(
    app: &TestApp,
    link: &Value,
) -> (
    sqlx::PgTransaction<'static>,
    Vec<tokio::task::JoinHandle<Answer>>,
) {
    let lock = app.lock("LOCK TABLE payment_links").await;
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    let mut reads = Vec::new();
    eventually("every connection is busy", async || {
        reads.push(tokio::spawn(send(app.request(Method::GET, &path))));
        (app.waiting_for_locks().await == CONNECTIONS).then_some(())
    })
    .await;
    (lock, reads)
}

/// Waits until everything works: creations, reads, webhooks, readiness, and each kind of background work.
async fn everything_works(app: &TestApp, since: Instant) {
    let left = || LIMIT.saturating_sub(since.elapsed());
    let link = eventually_within(left(), "links are created", async || {
        let answer = app.create(&ten_pounds("Afterwards")).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    let event = json!({"id": "evt_afterwards", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}});
    eventually_within(left(), "webhooks are stored", async || {
        (app.deliver(&event.to_string()).await.status == 204).then_some(())
    })
    .await;
    eventually_within(left(), "it is ready", async || {
        (app.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    // One after the other on every connection that there may still be.
    for read in join_all((0..2 * CONNECTIONS).map(|_| app.link(&link["id"]))).await {
        assert_eq!(read["id"], link["id"]);
    }

    app.sandbox.drop_webhooks().await;
    let orphan = an_orphaned_intent(app).await;
    let lost = async {
        app.sandbox.next("create", "cutAfter", json!({})).await;
        app.try_to_create("lost", &ten_pounds("Lost"))
            .await
            .unwrap();
        within(
            left(),
            "a lost creation is recovered",
            app.the_only_link("lost", &ten_pounds("Lost")),
        )
        .await
    };
    let looked_at = async {
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.all_are_due().await;
        eventually_within(left(), "the link is reconciled", async || {
            (app.link(&link["id"]).await["status"] == "Captured").then_some(())
        })
        .await;
        app.sandbox.next("refund", "cutAfter", json!({})).await;
        let body = json!({"amount": pounds(100)});
        app.operate_with_key("refund", &link, "refunds", &body)
            .await;
        let refunded = app.operation_outcome("refund", &link, "refunds", &body);
        within(left(), "a lost operation is recovered", refunded)
            .await
            .expect(200);
    };
    tokio::join!(lost, looked_at);
    eventually_within(left(), "the orphaned intent is resolved", async || {
        let due = "SELECT due_at IS NULL FROM payment_intents WHERE id = $1";
        let traced: bool = sqlx::query_scalar(due)
            .bind(&orphan)
            .fetch_one(&app.pool)
            .await
            .unwrap();
        traced.then_some(())
    })
    .await;
    println!("everything works after {:?}", since.elapsed());
}

/// Creates an intent of another program, and delivers a webhook about it: an orphaned intent.
async fn an_orphaned_intent(app: &TestApp) -> String {
    let body = json!({"amount": pounds(500), "reference": "Not ours"});
    let intent = app
        .sandbox
        .api(Method::POST, "/payment-intents", &body)
        .await;
    let event = json!({"id": "evt_orphaned", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": intent["id"], "paymentStatus": "Created"}});
    app.deliver(&event.to_string()).await.expect(204);
    text(&intent["id"]).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_go_silent_while_idle_are_replaced() {
    // A connection that was used a moment ago isn't tested before it is used, so a statement must notice.
    let settings = [("DATABASE_STATEMENT_TIMEOUT", "5s")];
    let (app, proxy) = behind_a_proxy(&settings).await;
    let link = app.created().await;
    let (lock, reads) = all_are_busy(&app, &link).await;
    drop(lock);
    for read in reads {
        read.await.unwrap();
    }
    assert!(proxy.silence() >= CONNECTIONS);
    everything_works(&app, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_go_silent_while_busy_are_closed() {
    let settings = [("DATABASE_STATEMENT_TIMEOUT", "5s")];
    let (app, proxy) = behind_a_proxy(&settings).await;
    let link = app.created().await;
    let (lock, reads) = all_are_busy(&app, &link).await;
    assert!(proxy.silence() >= CONNECTIONS);
    let since = Instant::now();
    drop(lock);
    everything_works(&app, since).await;
    for read in reads {
        // Each got a response in time.
        let answer = read.await.unwrap();
        assert!(
            [200, 503].contains(&answer.status.as_u16()),
            "{}",
            answer.text
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_frozen_in_a_transaction_holds_up_others_only_briefly() {
    let mut app = TestApp::quick(&[]).await;
    let healthy = Service::start(&app.database_url, &app.sandbox.url, &[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    // The creation waits with the link's row locked.
    let lock = app.block_adoption().await;
    let asking = tokio::spawn(send(
        app.request(Method::POST, "/v1/payment-links")
            .header("idempotency-key", "a")
            .json(&body),
    ));
    app.adoption_is_blocked().await;
    app.service.freeze();
    // The statement ends, and the transaction stays open because the replica can't commit it.
    drop(lock);
    let frozen = std::mem::replace(&mut app.service, healthy);
    let intent = app.sandbox.first_intent().await;
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": intent["id"], "paymentStatus": "Created"}})
    .to_string();
    // In less time than a lease, and with each attempt shorter than a statement may take.
    eventually_within(
        Duration::from_secs(25),
        "the link's webhook is stored",
        async || {
            let asked = Instant::now();
            let answer = app.deliver(&event).await;
            assert!(
                asked.elapsed() < Duration::from_secs(9),
                "it kept a connection for {:?}",
                asked.elapsed()
            );
            (answer.status == 204).then_some(())
        },
    )
    .await;

    frozen.thaw();
    let _ = asking.await.unwrap();
    let healthy = std::mem::replace(&mut app.service, frozen);
    let link = app.the_only_link("a", &body).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let paid = app.read_until_confirmed(&link["id"]).await;
    assert_eq!(paid["status"], "Captured");
    drop(healthy);
}

/// A connection of the test, which keeps its settings whatever is set for new ones.
async fn by_hand(app: &TestApp) -> PgConnection {
    PgConnection::connect(&app.database_url).await.unwrap()
}

async fn execute(connection: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(connection)
        .await
        .unwrap();
}

/// Changes the settings of new sessions on the database, and ends the sessions of the service.
async fn reset(connection: &mut PgConnection, change: &str) {
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    execute(connection, &format!("ALTER DATABASE {name} {change}")).await;
    execute(
        connection,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'dojo-payment-links'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_connections_are_all_in_use_is_ready() {
    let app = TestApp::with(&[("DATABASE_MAX_CONNECTIONS", "1")]).await;
    let link = app.created().await;
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}})
    .to_string();
    let mut connection = by_hand(&app).await;
    execute(&mut connection, "BEGIN").await;
    execute(&mut connection, "SELECT FROM payment_links FOR UPDATE").await;
    // Each of them waits for the lock, with the only connection, for as long as the lock timeout allows.
    let webhooks = async {
        for _ in 0..3 {
            app.deliver(&event).await.expect(503);
        }
    };
    let probes = async {
        let mut ready = 0;
        while ready < 20 {
            app.get("/readyz").await.expect(200);
            ready += 1;
        }
    };
    tokio::join!(webhooks, async {
        eventually("a webhook waits for the lock", async || {
            let waiting: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                 AND application_name = 'dojo-payment-links' AND datname = current_database())",
            )
            .fetch_one(&app.pool)
            .await
            .unwrap();
            waiting.then_some(())
        })
        .await;
        probes.await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_not_ready_until_it_accepts_writes_again() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}})
    .to_string();
    let mut connection = by_hand(&app).await;
    reset(&mut connection, "SET default_transaction_read_only = on").await;
    eventually("it says why it is not ready", async || {
        let answer = app.get("/readyz").await;
        (answer.status == 503 && answer.text.contains("read-only")).then_some(())
    })
    .await;
    app.deliver(&event)
        .await
        .problem(503, "database-unavailable");
    app.create(&ten_pounds("Order 2"))
        .await
        .problem(503, "database-unavailable");
    assert_eq!(
        app.link(&link["id"]).await["id"],
        link["id"],
        "reading still works"
    );

    // Connections that are already open stay read-only, like connections to a primary that was demoted.
    let name = app.database_url.rsplit('/').next().unwrap();
    execute(
        &mut connection,
        &format!("ALTER DATABASE {name} RESET default_transaction_read_only"),
    )
    .await;
    eventually("webhooks are stored again", async || {
        (app.deliver(&event).await.status == 204).then_some(())
    })
    .await;
    app.get("/readyz").await.expect(200);
    app.create(&ten_pounds("Order 2")).await.expect(201);
    let discards = r#"database_connections_discarded_total{reason="read_only"}"#;
    assert!(app.metric(discards).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_stays_read_only_its_connections_are_kept() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}})
    .to_string();
    let mut connection = by_hand(&app).await;
    reset(&mut connection, "SET default_transaction_read_only = on").await;
    let began = Instant::now();
    for _ in 0..100 {
        app.deliver(&event)
            .await
            .problem(503, "database-unavailable");
    }
    let discards = r#"database_connections_discarded_total{reason="read_only"}"#;
    let discards = app.metric(discards).await;
    // At most once a second.
    assert!(discards >= 1.0 && discards <= 1.0 + began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_an_outage_that_an_operator_can_end() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let mut connection = by_hand(&app).await;
    execute(&mut connection, "CREATE ROLE without_permissions").await;
    reset(&mut connection, "SET role = without_permissions").await;
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    for _ in 0..2 {
        let answer = app.get(&path).await;
        answer.problem(503, "database-unavailable");
    }
    let order = ten_pounds("Order 2");
    let answer = app.create_with_key("a", &order).await;
    answer.problem(503, "database-unavailable");
    assert_eq!(app.sandbox.creations().await.len(), 1);
    eventually("it is not ready", async || {
        (app.get("/readyz").await.status == 503).then_some(())
    })
    .await;

    reset(&mut connection, "RESET role").await;
    eventually_within(LIMIT, "it serves again", async || {
        (app.create_with_key("a", &order).await.status == 201).then_some(())
    })
    .await;
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_database_is_an_outage_until_its_name_is_back() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let (server, name) = app.database_url.rsplit_once('/').unwrap();
    let mut connection = PgConnection::connect(&format!("{server}/postgres"))
        .await
        .unwrap();
    let rename = |from: &str, to: &str| {
        format!(
            "ALTER DATABASE {from} ALLOW_CONNECTIONS false;
             SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{from}';
             ALTER DATABASE {from} RENAME TO {to};
             ALTER DATABASE {to} ALLOW_CONNECTIONS true"
        )
    };
    let elsewhere = format!("{name}_elsewhere");
    for statement in rename(name, &elsewhere).split(';') {
        execute(&mut connection, statement).await;
    }
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    for _ in 0..2 {
        app.get(&path).await.problem(503, "database-unavailable");
    }
    app.get("/readyz").await.expect(503);
    for statement in rename(&elsewhere, name).split(';') {
        execute(&mut connection, statement).await;
    }
    eventually_within(LIMIT, "it serves again", async || {
        (app.get(&path).await.status == 200).then_some(())
    })
    .await;
    app.create(&ten_pounds("Order 2")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_check_writes_nothing() {
    let app = TestApp::start().await;
    app.get("/readyz").await.expect(200);
    let mut connection = by_hand(&app).await;
    execute(&mut connection, "DELETE FROM deployment").await;
    let problem = app.get("/readyz").await.problem(503, "not-ready");
    assert!(
        text(&problem["detail"]).contains("has not been assigned to an environment"),
        "{problem}"
    );
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM deployment")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_for_a_lock_does_not_hold_up_webhooks() {
    let app = TestApp::start().await;
    let link = app.created().await;
    // The state before migration 6, which locks the links.
    let mut connection = by_hand(&app).await;
    execute(
        &mut connection,
        "DROP TABLE deployment CASCADE; DELETE FROM _sqlx_migrations WHERE version = 6",
    )
    .await;
    let long = app
        .lock("UPDATE payment_links SET updated_at = updated_at WHERE false")
        .await;
    let migrate = || {
        let mut command = program();
        command
            .arg("migrate")
            .env("DATABASE_URL", &app.database_url);
        command
    };
    let mut migrating = tokio::process::Command::from(migrate())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    app.blocked("ALTER TABLE payment_links").await;
    let mut kept = 0;
    let mut throttle = tokio::time::interval(Duration::from_millis(50));
    while migrating.try_wait().unwrap().is_none() {
        let event = json!({"id": format!("evt_{kept}"), "event": "payment_intent.status_updated",
            "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}});
        app.deliver(&event.to_string()).await.expect(204);
        kept += 1;
        throttle.tick().await;
    }
    assert!(kept > 20, "{kept} webhooks while it waited");
    let output = migrating.wait_with_output().await.unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("migration 6") && words.contains("holds a lock"),
        "{words}"
    );

    drop(long);
    told(&mut migrate());
    execute(
        &mut connection,
        "INSERT INTO deployment VALUES (DEFAULT, 'sandbox') ON CONFLICT DO NOTHING",
    )
    .await;
    app.get("/readyz").await.expect(200);
}

/// The links' later migrations, and how to undo them.
const LATER_MIGRATIONS: [(i64, &str); 2] = [
    (10, "ALTER TABLE payment_links DROP COLUMN unsettled_status"),
    (
        11,
        "ALTER TABLE payment_links DROP COLUMN refunds_elsewhere, DROP COLUMN refunds_read_at",
    ),
];

/// A database without one of [`LATER_MIGRATIONS`], and two links in it. The first is one that migration 10 changes.
async fn database_before(version: i64, undo: &str) -> (TestApp, PgConnection) {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    for order in ["Order 1", "Order 2"] {
        app.create(&ten_pounds(order)).await.expect(201);
    }
    let mut connection = by_hand(&app).await;
    execute(
        &mut connection,
        &format!(
            "UPDATE payment_links SET status = 'Refunded', due_at = NULL WHERE reference = 'Order 1';
             {undo}; DELETE FROM _sqlx_migrations WHERE version = {version}"
        ),
    )
    .await;
    (app, connection)
}

fn migrating(app: &TestApp) -> tokio::process::Child {
    let mut command = program();
    command
        .arg("migrate")
        .env("DATABASE_URL", &app.database_url);
    tokio::process::Command::from(command)
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn later_migrations_that_wait_for_a_lock_do_not_hold_up_writes() {
    join_all(LATER_MIGRATIONS.map(async |(version, undo)| {
        let (app, mut writer) = database_before(version, undo).await;
        execute(&mut writer, "SET lock_timeout = '3s'").await;
        let long = app
            .lock("UPDATE payment_links SET updated_at = updated_at WHERE false")
            .await;
        let migrating = migrating(&app);
        app.blocked("ALTER TABLE payment_links").await;
        let began = Instant::now();
        // Longer than any of them would wait, if they waited for as long as it takes.
        while began.elapsed() < Duration::from_secs(5) {
            // As webhooks do; it fails after three seconds.
            let write = "UPDATE payment_links SET updated_at = now() WHERE reference = 'Order 2'";
            execute(&mut writer, write).await;
        }
        drop(long);
        let output = migrating.wait_with_output().await.unwrap();
        let output_text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success(),
            "migration {version}: {output_text}"
        );
        assert!(
            output_text.contains("trying again"),
            "migration {version}: {output_text}"
        );
        app.get("/readyz").await.expect(200);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_deadlocks_with_a_webhook_is_retried() {
    let [(version, undo), _] = LATER_MIGRATIONS;
    let (app, mut webhook) = database_before(version, undo).await;
    let name = app.database_url.rsplit('/').next().unwrap();
    execute(
        &mut webhook,
        &format!(
            "UPDATE payment_links SET status = 'Refunded', due_at = NULL;
             ALTER DATABASE {name} SET deadlock_timeout = '50ms';
             SET deadlock_timeout = '1h'"
        ),
    )
    .await;
    let links: Vec<String> =
        sqlx::query_scalar("SELECT reference FROM payment_links ORDER BY ctid")
            .fetch_all(&app.pool)
            .await
            .unwrap();
    let write = "UPDATE payment_links SET updated_at = now() WHERE";
    execute(&mut webhook, &format!("BEGIN; {write} false")).await;
    // The migration changes the first link and waits for the second. The webhook waits for the first. Once the second is
    // free, the migration waits for the table, which the webhook has a lock on.
    let second = format!(
        "SELECT FROM payment_links WHERE reference = '{}' FOR UPDATE",
        links[1]
    );
    let second = app.lock(&second).await;
    let migrating = migrating(&app);
    app.blocked("UPDATE payment_links SET due_at").await;
    let write = format!("{write} reference = '{}'; COMMIT", links[0]);
    let goes_on = async {
        app.blocked(&write).await;
        drop(second);
    };
    tokio::join!(execute(&mut webhook, &write), goes_on);
    let output = migrating.wait_with_output().await.unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    app.get("/readyz").await.expect(200);
}

/// What each command that needs the database says when it can't use it within `limit`.
async fn said(url: &str, limit: &str) -> Vec<String> {
    let words = [
        vec!["serve"],
        vec!["migrate"],
        vec!["api-keys", "list"],
        vec!["operations", "unconfirmed"],
        vec!["check", "--json"],
    ]
    .map(|arguments| {
        let mut command = program();
        command
            .args(&arguments)
            .env("DATABASE_URL", url)
            .env("DATABASE_ACQUIRE_TIMEOUT", limit)
            .env("DOJO_API_KEY", DOJO_KEY)
            .env("DOJO_API_URL", "http://127.0.0.1:9")
            .env("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET)
            .env("LISTEN_ADDR", "127.0.0.1:0");
        let checks = arguments[0] == "check";
        tokio::task::spawn_blocking(move || {
            if checks {
                of_the_database(&command.output().unwrap().stdout)
            } else {
                refused(&mut command)
            }
        })
    });
    join_all(words)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

/// What the report of `check` says about the database, which must have failed.
fn of_the_database(report: &[u8]) -> String {
    let report: Value = serde_json::from_slice(report).unwrap();
    let line = &report["checks"][1];
    assert_eq!(
        (&line["name"], &line["outcome"]),
        (&json!("database"), &json!("failed")),
        "{report}"
    );
    format!("{}; {}", text(&line["detail"]), text(&line["fix"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_says_what_is_wrong_with_the_database_and_how_to_fix_it() {
    let app = TestApp::start().await;
    let name = app.database_url.rsplit('/').next().unwrap();
    let port = port_of(&app.database_url);
    let mut connection = by_hand(&app).await;
    let user = format!("u{}", uuid::Uuid::now_v7().simple());
    // The tests' shared server accepts any password; a server of its own, in another test, doesn't.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    execute(
        &mut connection,
        &format!("CREATE ROLE {user} LOGIN; REVOKE CONNECT ON DATABASE {name} FROM public"),
    )
    .await;
    let cases = [
        (
            format!("postgres://postgres:hush@127.0.0.1:{closed}/orders"),
            format!("database \"orders\" at 127.0.0.1:{closed} as user \"postgres\" (DATABASE_URL)"),
            "check that Postgres is running, and the host and port in DATABASE_URL",
        ),
        (
            format!("postgres://postgres:hush@127.0.0.1:{}/orders", silent.local_addr().unwrap().port()),
            "no response within 3 s".to_owned(),
            "check that Postgres is running",
        ),
        (
            // A resolver without a network may not respond at all.
            "postgres://postgres:hush@nowhere.invalid/orders".to_owned(),
            "at nowhere.invalid:5432 as user \"postgres\" (DATABASE_URL): error communicating with database: ".to_owned(),
            "check that Postgres is running, and the host and port in DATABASE_URL",
        ),
        (
            format!("postgres://postgres:hush@127.0.0.1:{port}/no_such"),
            format!("there is no such database: database \"no_such\" at 127.0.0.1:{port} as user \"postgres\""),
            "CREATE DATABASE \"no_such\" OWNER \"postgres\"",
        ),
        (
            format!("postgres://nobody:hush@127.0.0.1:{port}/{name}"),
            "cannot log in: ".to_owned(),
            "correct the user in DATABASE_URL, or create it",
        ),
        (
            format!("postgres://{user}:hush@127.0.0.1:{port}/{name}"),
            "the user lacks a privilege: ".to_owned(),
            "make this one the owner: ALTER DATABASE",
        ),
    ];
    for (said, (url, problem, remedy)) in join_all(cases.iter().map(|(url, ..)| said(url, "3s")))
        .await
        .into_iter()
        .zip(&cases)
    {
        for words in said {
            assert!(
                words.contains(problem) && words.contains(remedy),
                "{url}: {words}"
            );
            assert!(
                !words.contains("hush") && !words.contains("at line"),
                "{words}"
            );
            assert!(
                words.trim_end().lines().last().unwrap().contains(problem),
                "reported last, in one line: {words}"
            );
        }
    }
    execute(&mut connection, &format!("DROP ROLE {user}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported_as_such() {
    let postgres = tokio::task::spawn_blocking(crate::support::postgres::Postgres::start)
        .await
        .unwrap();
    let mut connection = PgConnection::connect(&postgres.url("postgres"))
        .await
        .unwrap();
    execute(
        &mut connection,
        "CREATE ROLE orders LOGIN PASSWORD 'right';
         COPY (SELECT 'host all orders 127.0.0.1/32 scram-sha-256'
               UNION ALL SELECT 'host all all 127.0.0.1/32 trust') TO PROGRAM 'cat >pg_hba.conf';
         SELECT pg_reload_conf()",
    )
    .await;
    let url = postgres
        .url("postgres")
        .replace("postgres@", "orders:hush@");
    eventually("the server requires the password", async || {
        PgConnection::connect(&url).await.err()
    })
    .await;
    for words in said(&url, "20s").await {
        assert!(
            words.contains("cannot log in: database \"postgres\" at 127.0.0.1:"),
            "{words}"
        );
        assert!(
            words.contains("password authentication failed for user \"orders\""),
            "{words}"
        );
        assert!(
            words.contains("correct the user or the password in DATABASE_URL"),
            "{words}"
        );
        assert!(
            !words.contains("hush") && !words.contains("at line"),
            "{words}"
        );
    }
    // A user who may log in and nothing else gets a clear message, and so does one who forgot to migrate.
    let url = postgres
        .url("postgres")
        .replace("postgres@", "orders:right@");
    let words = refused(program().arg("migrate").env("DATABASE_URL", &url));
    assert!(
        words.contains("the user lacks a privilege: ")
            && words.contains("permission denied for schema public"),
        "{words}"
    );
    let words = refused(api_keys(&url).arg("list"));
    assert!(words.contains("run dojo-payment-links migrate"), "{words}");
}

#[tokio::test]
async fn clients_that_give_up_do_not_open_more_connections() {
    let settings = [("DATABASE_MAX_CONNECTIONS", "3"), ("RUN_JOBS", "false")];
    let app = TestApp::with(&settings).await;
    let link = app.created().await;
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    let lock = app
        .lock("LOCK TABLE payment_links IN ACCESS EXCLUSIVE MODE")
        .await;
    for _ in 0..20 {
        let pause = Duration::from_millis(50);
        let answers = join_all((0..5).map(|_| tokio::time::timeout(pause, app.get(&path)))).await;
        assert!(answers.iter().all(Result::is_err));
    }
    let sessions: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'dojo-payment-links'",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert!(sessions <= 3 + 2, "{sessions} sessions");
    drop(lock);
    app.get(&path).await.expect(200);
}
