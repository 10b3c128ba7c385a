//! The background holds on: no answer of Dojo's ends a job, no wake-up is lost, other programs' intents are in nobody's
//! way, and much work at once is done in few calls.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

use crate::support::{
    QUICK, Service, TestApp, empty_database, eventually, eventually_within, for_each_case,
    new_database, program, ten_pounds, text,
};

/// Another service on the same database, with a quick background and these settings on top.
async fn another(app: &TestApp, more: &[(&str, &str)]) -> Service {
    let settings = [&QUICK[..], more].concat();
    Service::start(&app.database_url, &app.sandbox.url, &settings).await
}

/// When this job last made progress, by its metric.
async fn progress(app: &TestApp, job: &str) -> f64 {
    let name = format!(r#"job_last_progress_timestamp_seconds{{account="default",job="{job}"}}"#);
    app.metric(&name).await
}

/// An intent that another program made with the same key.
async fn foreign(app: &TestApp) -> Value {
    let body = json!({"amount": {"value": 100, "currencyCode": "GBP"}, "reference": "theirs"});
    let intent = app.sandbox.api(Method::POST, "/payment-intents", &body);
    intent.await["id"].clone()
}

/// A link that was paid while no webhook came, not due for a look.
async fn paid_unheard(app: &TestApp) -> Value {
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.sandbox.clear("webhook-faults").await;
    sqlx::query("UPDATE payment_links SET due_at = now() + interval '1 hour'")
        .execute(&app.pool)
        .await
        .unwrap();
    link
}

#[tokio::test]
async fn no_retry_after_ends_a_job_or_a_request() {
    let absurd = [
        "18446744073709551615",
        "99999999999999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ];
    for_each_case(&absurd, &[], async |app, retry_after| {
        let fault = json!({"status": 429, "retryAfter": retry_after});
        app.sandbox.next("create", "status", fault.clone()).await;
        let refused = app.create(&ten_pounds("Order 1")).await;
        let wait: u64 = refused.header("retry-after").parse().unwrap();
        assert!(wait <= 3600, "{retry_after}: {wait}");
        refused.problem(503, "dojo-not-reached");

        // The next time the background meets it.
        app.sandbox.next("create", "cutBefore", json!({})).await;
        app.create(&ten_pounds("Order 2")).await.expect(504);
        app.sandbox.next("create", "status", fault).await;
        eventually("the background was told to wait", async || {
            let busy = r#"jobs_total{job="creation_recovery",outcome="busy"}"#;
            (app.metric(busy).await >= 1.0).then_some(())
        })
        .await;
        let before = progress(&app, "creation_recovery").await;
        eventually("the job goes on", async || {
            (progress(&app, "creation_recovery").await > before).then_some(())
        })
        .await;
        assert!(!app.service.log().contains("a panic"), "{retry_after}");
    })
    .await;
}

#[tokio::test]
async fn a_retry_after_that_says_nothing_is_none() {
    for_each_case(&["-5", "1e9", "ü", ""], &[], async |app, retry_after| {
        app.sandbox.drop_webhooks().await;
        app.sandbox.next("create", "cutBefore", json!({})).await;
        app.create_with_key("a", &ten_pounds("Order 1"))
            .await
            .expect(504);
        let fault = json!({"status": 429, "retryAfter": retry_after, "count": 2});
        app.sandbox.next("create", "status", fault).await;
        app.the_only_link("a", &ten_pounds("Order 1")).await;
    })
    .await;
}

#[tokio::test]
async fn an_idle_job_shows_that_it_is_alive() {
    let app = TestApp::quick(&[("POLL_INTERVAL", "1h")]).await;
    for job in [
        "creation_recovery",
        "reconciliation",
        "orphaned_intents",
        "operation_recovery",
        "backlog",
    ] {
        let first = eventually("it has begun", async || {
            Some(progress(&app, job).await).filter(|at| *at > 0.0)
        })
        .await;
        eventually("it is still alive", async || {
            (progress(&app, job).await > first).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn intents_that_dojo_refuses_to_show_are_in_nobodys_way_and_given_up() {
    let refusals = [400, 401, 403, 404, 405, 408, 409, 422, 500];
    for_each_case(&refusals, &[], async |app, status| {
        let theirs = join_all((0..6).map(async |_| {
            let id = foreign(&app).await;
            let fault = json!({"operation": "get", "kind": "status", "status": status, "share": 1.0,
                "paymentIntentId": id});
            app.sandbox.control("faults", fault).await;
            id
        }))
        .await;
        let due = "UPDATE payment_intents SET due_at = now() WHERE due_at IS NOT NULL";
        let asked = async |times: usize| {
            eventually(&format!("each was asked for {times} times"), async || {
                sqlx::query(due).execute(&app.pool).await.unwrap();
                let gets = app.sandbox.requests("get").await;
                let asked = theirs.iter().all(|id| {
                    let path = format!("/payment-intents/{}", text(id));
                    gets.iter().filter(|get| get["path"] == path.as_str()).count() >= times
                });
                asked.then_some(())
            })
            .await;
        };
        asked(2).await;

        // All other work of the account goes on.
        let link = paid_unheard(&app).await;
        app.all_are_due().await;
        app.link_with_status(&link["id"], "Captured").await;
        let log = app.service.log();
        assert!(!log.contains("Dojo is in trouble"), "{status}: {log}");

        // Each is left alone for longer each time, and in the end for good.
        asked(4).await;
        eventually("they are left alone", async || {
            let soonest: Option<f64> = sqlx::query_scalar(
                "SELECT extract(epoch FROM min(due_at) - now())::float8 FROM payment_intents
                 WHERE payment_link_id IS NULL",
            )
            .fetch_one(&app.pool)
            .await
            .unwrap();
            soonest.filter(|soonest| *soonest > 15.0)
        })
        .await;
        let old = "UPDATE payment_intents SET first_seen_at = now() - interval '2 days', due_at = now()
                   WHERE payment_link_id IS NULL";
        sqlx::query(old).execute(&app.pool).await.unwrap();
        eventually("they are given up", async || {
            let left: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM payment_intents WHERE payment_link_id IS NULL AND due_at IS NOT NULL",
            )
            .fetch_one(&app.pool)
            .await
            .unwrap();
            (left == 0).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_intent_over_which_dojo_breaks_is_in_nobodys_way() {
    for_each_case(&[408, 500], &[], async |app, status| {
        let theirs = foreign(&app).await;
        let fault = json!({"operation": "get", "kind": "status", "status": status, "share": 1.0,
            "paymentIntentId": theirs});
        app.sandbox.control("faults", fault).await;
        eventually("it was asked for again and again", async || {
            sqlx::query("UPDATE payment_intents SET due_at = now() WHERE due_at IS NOT NULL")
                .execute(&app.pool)
                .await
                .unwrap();
            (app.sandbox.requests("get").await.len() >= 6).then_some(())
        })
        .await;
        let log = app.service.log();
        assert!(!log.contains("Dojo is in trouble"), "{status}: {log}");
    })
    .await;
}

#[tokio::test]
async fn a_key_that_dojo_refuses_still_pauses_its_account() {
    let app = TestApp::quick(&[]).await;
    let link = paid_unheard(&app).await;
    for operation in ["get", "search"] {
        let fault = json!({"operation": operation, "kind": "status", "status": 403, "share": 1.0});
        app.sandbox.control("faults", fault).await;
    }
    for _ in 0..4 {
        foreign(&app).await;
    }
    eventually("its background pauses", async || {
        let due = "UPDATE payment_intents SET due_at = now() WHERE due_at IS NOT NULL";
        sqlx::query(due).execute(&app.pool).await.unwrap();
        app.all_are_due().await;
        app.service
            .log()
            .contains("Dojo is in trouble")
            .then_some(())
    })
    .await;
    app.sandbox.clear("faults").await;
    app.link_with_status(&link["id"], "Captured").await;
}

/// A way to Postgres on which the answer to a statement can be held up.
struct SlowWay {
    url: String,
    waiting: watch::Receiver<bool>,
    hold: watch::Sender<bool>,
}

impl SlowWay {
    /// Whoever sends a statement with these words waits for its answer until [`SlowWay::let_go`].
    async fn to(database_url: &str, words: &'static str) -> Self {
        let url = url::Url::parse(database_url).unwrap();
        let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hold, _) = watch::channel(true);
        let (strike, waiting) = watch::channel(false);
        tokio::spawn({
            let hold = hold.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let server = TcpStream::connect(&target).await.unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let (seen, words_seen) = watch::channel(false);
                    tokio::spawn(pass_on(from_client, to_server, words, seen));
                    tokio::spawn(pass_back(
                        from_server,
                        to_client,
                        words_seen,
                        hold.subscribe(),
                        strike.clone(),
                    ));
                }
            }
        });
        let mut url = url;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(address.port())).unwrap();
        Self {
            url: url.into(),
            waiting,
            hold,
        }
    }

    fn let_go(&self) {
        self.hold.send_replace(false);
    }
}

/// Hands on what the client sends. `seen` tells once it has sent the words and then something more: a statement is sent
/// to be parsed first, and to be carried out next.
async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    words: &str,
    seen: watch::Sender<bool>,
) {
    let (mut buffer, mut parsed) = (vec![0; 64 * 1024], false);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if parsed {
            seen.send_replace(true);
        }
        let sent = String::from_utf8_lossy(&buffer[..read]);
        parsed = parsed || sent.contains(words);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn pass_back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    words_seen: watch::Receiver<bool>,
    mut hold: watch::Receiver<bool>,
    strike: watch::Sender<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if *words_seen.borrow() && *hold.borrow() {
            strike.send_replace(true);
            let _ = hold.wait_for(|hold| !hold).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_webhook_that_comes_while_a_claim_is_under_way_is_followed_by_a_read_at_once() {
    let mut app = TestApp::with(&[]).await;
    let link = paid_unheard(&app).await;
    let mut way = SlowWay::to(&app.database_url, "status NOT IN ('Pending', 'Failed')").await;
    // The claim of links that are due finds none, and its answer takes its time.
    let settings = [&QUICK[..], &[("POLL_INTERVAL", "1h")]].concat();
    app.service = Service::start(&way.url, &app.sandbox.url, &settings).await;
    way.waiting.wait_for(|waiting| *waiting).await.unwrap();

    let body = json!({
        "id": "evt_1", "event": "payment_intent.status_updated", "accountId": "acc_1",
        "createdAt": "2026-11-24T12:00:00Z",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured", "captureMode": "Auto"},
    });
    app.deliver(&body.to_string()).await.expect(204);
    way.let_go();
    // Only Dojo's own answer has the payment's details.
    eventually("Dojo was asked", async || {
        let link = app.link(&link["id"]).await;
        (!link["payment"].is_null()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn claiming_lost_creations_reads_past_nothing_else_that_is_due() {
    let app = TestApp::with(&[]).await;
    app.created().await;
    sqlx::query(
        "INSERT INTO payment_links (id, account, environment, status, request, reference, currency, amount,
                                    payment_intent_id, url, created_by, due_at, leased_until)
         SELECT gen_random_uuid(), account, environment, status, request, reference, currency, amount,
                'pi_' || n, url, created_by, now() - interval '1 hour', now() + interval '1 hour'
         FROM payment_links, generate_series(1, 20000) AS n",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    sqlx::query("ANALYZE payment_links")
        .execute(&app.pool)
        .await
        .unwrap();
    app.sandbox.next("create", "cutAfter", json!({})).await;
    app.create_with_key("a", &ten_pounds("Order 2"))
        .await
        .expect(504);
    let _jobs = another(&app, &[]).await;
    app.the_only_link("a", &ten_pounds("Order 2")).await;
    // Prepared statements get a plan for any parameters after a few times; that has to be this one too.
    eventually("the index of lost creations is used", async || {
        let scans: i64 = sqlx::query_scalar(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'payment_links_unsettled'",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        (scans >= 30).then_some(())
    })
    .await;
}

/// Runs `migrate` on this database.
async fn migrate(url: &str) -> std::process::Output {
    let mut command = tokio::process::Command::from(program());
    command.arg("migrate").env("DATABASE_URL", url);
    command.output().await.unwrap()
}

#[tokio::test]
async fn replicas_migrate_an_empty_database_together() {
    let url = empty_database().await;
    for output in join_all((0..4).map(|_| migrate(&url))).await {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
    }
}

#[tokio::test]
async fn an_index_that_was_not_finished_is_built_again() {
    let app = TestApp::on(new_database().await, &[]).await;
    for statement in [
        "DELETE FROM _sqlx_migrations WHERE version = 13",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'payment_links_unsettled'::regclass",
    ] {
        sqlx::query(statement).execute(&app.pool).await.unwrap();
    }
    let output = migrate(&app.database_url).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let valid: bool = sqlx::query_scalar(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'payment_links_unsettled'::regclass",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert!(valid);
}

/// Loses the answers to this many creations in this way, while no background runs.
async fn lose_many(app: &TestApp, kind: &str, count: usize) -> Vec<String> {
    app.sandbox.drop_webhooks().await;
    let fault = json!({"operation": "create", "kind": kind, "count": count});
    app.sandbox.control("faults", fault).await;
    let orders: Vec<_> = (0..count).map(|n| format!("Order {n}")).collect();
    join_all(orders.iter().map(async |order| {
        app.create_with_key(order, &ten_pounds(order))
            .await
            .expect(504);
    }))
    .await;
    sqlx::query("UPDATE payment_links SET due_at = now()")
        .execute(&app.pool)
        .await
        .unwrap();
    orders
}

#[tokio::test]
async fn lost_creations_of_the_same_time_are_found_by_one_search() {
    let app = TestApp::with(&[]).await;
    let orders = lose_many(&app, "cutAfter", 20).await;
    app.sandbox
        .control("payment-intents", json!({"count": 230}))
        .await;
    let _jobs = another(&app, &[]).await;
    for order in &orders {
        app.the_only_link(order, &ten_pounds(order)).await;
    }
    assert_eq!(app.sandbox.creations().await.len(), 20);
    let pages = app.sandbox.requests("search").await.len();
    assert_eq!(pages, 3, "pages of 100 for 250 intents, once for all links");
}

#[tokio::test]
async fn second_intents_of_links_of_the_same_time_are_searched_for_together() {
    let app = TestApp::with(&[]).await;
    // Nothing was created the first time, so that Dojo is asked again.
    let orders = lose_many(&app, "cutBefore", 20).await;
    let jobs = another(&app, &[]).await;
    for order in &orders {
        app.the_only_link(order, &ten_pounds(order)).await;
    }
    drop(jobs);
    app.sandbox.clear("requests").await;
    sqlx::query("UPDATE payment_links SET due_at = now(), leased_until = NULL")
        .execute(&app.pool)
        .await
        .unwrap();
    let _jobs = another(&app, &[]).await;
    eventually("all have been read and searched for", async || {
        let reads = app.sandbox.requests("get").await.len();
        let searches = app.sandbox.requests("search").await.len();
        (reads == 20 && searches > 0).then_some(())
    })
    .await;
    // One for what can be read by pages, and one for second intents.
    let searches = app.sandbox.requests("search").await.len();
    assert!(searches <= 2, "{searches} searches for 20 links");
}

#[tokio::test]
async fn lost_creations_are_found_among_very_many_intents_though_a_page_fails() {
    let app = TestApp::with(&[]).await;
    // These lie behind all others, for the newest are shown first.
    let orders = lose_many(&app, "cutAfter", 3).await;
    app.sandbox
        .control("payment-intents", json!({"count": 10_100}))
        .await;
    // Two that were never made: only a search through all of them proves that.
    for order in ["Order 3", "Order 4"] {
        app.sandbox.next("create", "cutBefore", json!({})).await;
        app.create_with_key(order, &ten_pounds(order))
            .await
            .expect(504);
    }
    let fault = json!({"operation": "search", "kind": "status", "status": 500, "share": 0.02});
    app.sandbox.control("faults", fault).await;
    let _jobs = another(&app, &[("BACKGROUND_RATE", "1000")]).await;
    let orders = orders.iter().map(String::as_str);
    for order in orders.chain(["Order 3", "Order 4"]) {
        eventually_within(Duration::from_mins(1), "it is settled", async || {
            let answer = app.create_with_key(order, &ten_pounds(order)).await;
            (answer.status == 201).then_some(())
        })
        .await;
        let alive = app.links_about(order).await;
        assert_eq!(alive.len(), 1);
        assert_eq!(alive[0]["status"], "Created");
    }
    assert_eq!(app.sandbox.creations().await.len(), 7);
}

#[tokio::test]
async fn no_lease_runs_out_in_a_queue() {
    let app = TestApp::with(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    let orders: Vec<_> = (0..40).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    join_all(orders.iter().map(async |body| {
        app.create(body).await.expect(201);
    }))
    .await;
    sqlx::query("UPDATE payment_links SET due_at = now() - interval '1 minute'")
        .execute(&app.pool)
        .await
        .unwrap();
    // Ten seconds of work for one replica, under leases of four.
    let slow = json!({"operation": "get", "kind": "latency", "latencyMs": 500, "share": 1.0});
    app.sandbox.control("faults", slow).await;
    let few = [("BACKGROUND_CONCURRENCY", "2")];
    let began = OffsetDateTime::now_utc();
    let _jobs = [another(&app, &few).await, another(&app, &few).await];
    eventually("all have been read", async || {
        let unread: i64 =
            sqlx::query_scalar("SELECT count(*) FROM payment_links WHERE due_at <= now()")
                .fetch_one(&app.pool)
                .await
                .unwrap();
        (unread == 0).then_some(())
    })
    .await;
    assert!(OffsetDateTime::now_utc() - began > Duration::from_secs(4));
    let mut reads: BTreeMap<String, usize> = BTreeMap::new();
    for get in app.sandbox.requests("get").await {
        *reads.entry(text(&get["path"]).to_owned()).or_default() += 1;
    }
    assert_eq!(reads.len(), 40);
    assert!(reads.values().all(|times| *times == 1), "{reads:#?}");
}
