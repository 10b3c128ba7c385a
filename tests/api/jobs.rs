//! Background jobs: no response from Dojo stops one, no wake-up is lost, other programs' intents don't hold up the account,
//! and much work at once takes few calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::Duration,
};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{
    QUICK, Service, TestApp, empty_database, eventually, eventually_within, for_each_case,
    new_database, program, slow_way::SlowWay, ten_pounds, text, within,
};

/// Settings under which a call to Dojo, and so the work under a lease, may take very long.
const PATIENT: [(&str, &str); 1] = [("DOJO_TIMEOUT", "60s")];

/// When this job last made progress, according to its metric.
async fn progress(app: &TestApp, job: &str) -> f64 {
    // It works for all accounts.
    let account = if job == "pruning" { "" } else { "default" };
    let name =
        format!(r#"job_last_progress_timestamp_seconds{{account="{account}",job_name="{job}"}}"#);
    app.metric(&name).await
}

/// Creates an intent as another program would, with the same key.
async fn foreign(app: &TestApp) -> Value {
    let body = json!({"amount": {"value": 100, "currencyCode": "GBP"}, "reference": "theirs"});
    let intent = app.sandbox.api(Method::POST, "/payment-intents", &body);
    intent.await["id"].clone()
}

/// A link that was paid while webhooks were lost. It is not due for reconciliation.
async fn paid_without_webhook(app: &TestApp) -> Value {
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
async fn no_retry_after_value_stops_a_job_or_a_request() {
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

        // Then in the background.
        app.sandbox.next("create", "cutBefore", json!({})).await;
        app.create(&ten_pounds("Order 2")).await.expect(504);
        app.sandbox.next("create", "status", fault).await;
        eventually("the background gets the 429", async || {
            let busy = r#"jobs_total{job_name="creation_recovery",outcome="busy"}"#;
            (app.metric(busy).await >= 1.0).then_some(())
        })
        .await;
        let before = progress(&app, "creation_recovery").await;
        eventually("the job makes progress", async || {
            (progress(&app, "creation_recovery").await > before).then_some(())
        })
        .await;
        assert!(!app.service.log().contains("a panic"), "{retry_after}");
    })
    .await;
}

#[tokio::test]
async fn a_retry_after_that_is_not_valid_is_ignored() {
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
    let app = TestApp::quick(&[("POLL_INTERVAL", "1h"), ("PRUNE_OLDER_THAN", "400d")]).await;
    let jobs = [
        "creation_recovery",
        "reconciliation",
        "orphaned_intents",
        "operation_recovery",
        "backlog",
        "pruning",
    ];
    join_all(jobs.map(async |job| {
        let first = eventually("it has started", async || {
            Some(progress(&app, job).await).filter(|at| *at > 0.0)
        })
        .await;
        eventually("it is still alive", async || {
            (progress(&app, job).await > first).then_some(())
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn a_job_that_cannot_claim_its_work_makes_no_progress_and_is_counted() {
    let app = TestApp::quick(&[]).await;
    let failed = async |job: &str| {
        app.metric(&format!(
            r#"jobs_total{{job_name="{job}",outcome="database"}}"#
        ))
        .await
    };
    let rename = async |from: &str, to: &str| {
        let rename = format!("ALTER TABLE operations RENAME COLUMN {from} TO {to}");
        sqlx::query(AssertSqlSafe(rename))
            .execute(&app.pool)
            .await
            .unwrap();
    };
    rename("due_at", "hidden").await;
    let broken = ["operation_recovery", "backlog"];
    for job in broken {
        eventually("its queries fail", async || {
            (failed(job).await >= 1.0).then_some(())
        })
        .await;
    }
    let before = join_all(broken.map(|job| progress(&app, job))).await;
    let attempts = failed("operation_recovery").await;
    eventually("it keeps trying", async || {
        (failed("operation_recovery").await >= attempts + 5.0).then_some(())
    })
    .await;
    for job in ["creation_recovery", "reconciliation", "orphaned_intents"] {
        let earlier = progress(&app, job).await;
        eventually("the other jobs make progress", async || {
            (progress(&app, job).await > earlier).then_some(())
        })
        .await;
        assert!(failed(job).await < 0.5, "{job}");
    }
    assert_eq!(
        join_all(broken.map(|job| progress(&app, job))).await,
        before
    );
    app.get("/readyz").await.expect(200);

    rename("hidden", "due_at").await;
    for (job, before) in broken.into_iter().zip(before) {
        eventually("it makes progress again", async || {
            (progress(&app, job).await > before).then_some(())
        })
        .await;
        // The log has one line for the first failure and one for the end of the failures.
        let job = format!(r#""job":"{job}""#);
        let lines = async |words: &str| {
            let lines = app.logged(words).await;
            lines.iter().filter(|line| line.contains(&job)).count()
        };
        eventually("the log says that it works again", async || {
            (lines("for work again").await == 1).then_some(())
        })
        .await;
        assert_eq!(lines("cannot query the database").await, 1);
    }
}

#[tokio::test]
async fn intents_that_dojo_does_not_show_hold_up_nothing_and_are_given_up() {
    let refusals = [400, 401, 403, 404, 405, 408, 409, 422, 500];
    // Calls that take long because the machine is busy must not look like an outage of Dojo.
    for_each_case(&refusals, &PATIENT, async |app, status| {
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
            eventually(&format!("each was read {times} times"), async || {
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

        // All other work of the account continues.
        let link = paid_without_webhook(&app).await;
        app.all_are_due().await;
        app.link_with_status(&link["id"], "Captured").await;
        let log = app.service.log();
        assert!(!log.contains("calls to Dojo keep failing"), "{status}: {log}");

        // Each is read less and less often, and in the end no more.
        asked(4).await;
        eventually("the next attempts are far apart", async || {
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
                   WHERE payment_link_id IS NULL AND due_at IS NOT NULL";
        eventually("they are given up", async || {
            // Repeated, because a read that was under way sets `due_at` again.
            sqlx::query(old).execute(&app.pool).await.unwrap();
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
async fn an_intent_over_which_dojo_fails_does_not_pause_the_account() {
    for_each_case(&[408, 500], &PATIENT, async |app, status| {
        let theirs = foreign(&app).await;
        let fault = json!({"operation": "get", "kind": "status", "status": status, "share": 1.0,
            "paymentIntentId": theirs});
        app.sandbox.control("faults", fault).await;
        eventually("it was read several times", async || {
            sqlx::query("UPDATE payment_intents SET due_at = now() WHERE due_at IS NOT NULL")
                .execute(&app.pool)
                .await
                .unwrap();
            (app.sandbox.requests("get").await.len() >= 6).then_some(())
        })
        .await;
        let log = app.service.log();
        assert!(
            !log.contains("calls to Dojo keep failing"),
            "{status}: {log}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_key_that_dojo_rejects_pauses_its_account() {
    let app = TestApp::quick(&[]).await;
    let link = paid_without_webhook(&app).await;
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
            .contains("calls to Dojo keep failing")
            .then_some(())
    })
    .await;
    app.sandbox.clear("faults").await;
    app.link_with_status(&link["id"], "Captured").await;
}

#[tokio::test]
async fn a_webhook_during_a_claim_is_followed_by_a_read_at_once() {
    let mut app = TestApp::with(&[]).await;
    let link = paid_without_webhook(&app).await;
    // On a busy machine it would be due by schedule, and leased by the claim whose response is delayed.
    sqlx::query("UPDATE payment_links SET due_at = now() + interval '1 hour'")
        .execute(&app.pool)
        .await
        .unwrap();
    let mut way = SlowWay::to(&app.database_url, "status NOT IN ('Pending', 'Failed')").await;
    // The claim of links that are due finds none, and its response is delayed.
    let settings = [&QUICK[..], &[("POLL_INTERVAL", "1h")]].concat();
    app.service = Service::start(&way.url, &app.sandbox.url, &settings).await;
    way.holds().await;

    let body = json!({
        "id": "evt_1", "event": "payment_intent.status_updated", "accountId": "acc_1",
        "createdAt": "2026-11-24T12:00:00Z",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured", "captureMode": "Auto"},
    });
    app.deliver(&body.to_string()).await.expect(204);
    way.let_go();
    // On a busy machine the read itself may time out, and the next one would come after an hour.
    eventually("Dojo is asked about the link", async || {
        let reads = app.sandbox.requests("get").await;
        (!reads.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn claiming_lost_creations_does_not_scan_other_links_that_are_due() {
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
    let _jobs = app.another(&[]).await;
    app.the_only_link("a", &ten_pounds("Order 2")).await;
    // After a few executions, a prepared statement gets a plan for any parameters. That must be this plan too.
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
async fn an_unfinished_index_is_rebuilt() {
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

/// Makes the migration pending that builds an index beside running writes.
async fn forget_the_index_migration(app: &TestApp) {
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 13")
        .execute(&app.pool)
        .await
        .unwrap();
}

/// The statement that an operator runs by hand before the upgrade.
fn build_by_hand() -> AssertSqlSafe<&'static str> {
    AssertSqlSafe(include_str!("../../migrations/0013_unsettled_links.sql"))
}

async fn index_is_valid(app: &TestApp) -> bool {
    sqlx::query_scalar(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('payment_links_unsettled')",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn an_index_that_was_built_by_hand_before_the_upgrade_is_kept() {
    let app = TestApp::on(new_database().await, &[]).await;
    forget_the_index_migration(&app).await;
    let of_index = "SELECT 'payment_links_unsettled'::regclass::oid::bigint";
    let before: i64 = sqlx::query_scalar(of_index)
        .fetch_one(&app.pool)
        .await
        .unwrap();
    let output = migrate(&app.database_url).await;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let after: i64 = sqlx::query_scalar(of_index)
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(after, before);
}

#[tokio::test]
async fn an_index_build_waits_for_an_open_transaction_without_starting_over() {
    let app = TestApp::on(new_database().await, &[]).await;
    forget_the_index_migration(&app).await;
    sqlx::query("DROP INDEX payment_links_unsettled")
        .execute(&app.pool)
        .await
        .unwrap();
    let open = app
        .lock("UPDATE payment_links SET updated_at = now() WHERE false")
        .await;
    let migrating = async {
        let output = migrate(&app.database_url).await;
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let waiting = async {
        // For longer than other statements of a migration wait for a lock.
        eventually("the build waits", async || {
            sqlx::query_scalar::<_, i32>(
                "SELECT pid FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE '%CREATE INDEX CONCURRENTLY%'
                   AND wait_event_type = 'Lock' AND query_start < now() - interval '2 seconds'",
            )
            .fetch_optional(&app.pool)
            .await
            .unwrap()
        })
        .await;
        drop(open);
    };
    let ((migrated, log), ()) = tokio::join!(migrating, waiting);
    assert!(migrated, "{log}");
    assert!(!log.contains("trying again"), "{log}");
    assert!(index_is_valid(&app).await);
}

#[tokio::test]
async fn an_index_that_is_being_built_by_hand_is_waited_for() {
    let app = TestApp::on(new_database().await, &[]).await;
    forget_the_index_migration(&app).await;
    sqlx::query("DROP INDEX payment_links_unsettled")
        .execute(&app.pool)
        .await
        .unwrap();
    let open = app
        .lock("UPDATE payment_links SET updated_at = now() WHERE false")
        .await;
    let building = async {
        sqlx::raw_sql(build_by_hand())
            .execute(&app.pool)
            .await
            .unwrap();
    };
    let migrating = async {
        app.blocked("CREATE INDEX CONCURRENTLY").await;
        let mut command = tokio::process::Command::from(program());
        command
            .arg("migrate")
            .env("DATABASE_URL", &app.database_url)
            .env("LOG_FORMAT", "json")
            .stderr(Stdio::piped());
        let mut migrating = command.spawn().unwrap();
        let mut log = BufReader::new(migrating.stderr.take().unwrap()).lines();
        let mut lines = Vec::new();
        within(Duration::from_mins(1), "it says that it waits", async {
            while let Some(line) = log.next_line().await.unwrap() {
                lines.push(line);
                if lines.last().unwrap().contains("is building this index") {
                    return;
                }
            }
            panic!("it ended: {lines:#?}");
        })
        .await;
        drop(open);
        assert!(migrating.wait().await.unwrap().success());
    };
    tokio::join!(building, migrating);
    assert!(index_is_valid(&app).await);
}

/// Loses the responses to this many creations in this way, while no background job runs.
async fn lose_many(app: &TestApp, kind: &str, count: usize) -> Vec<String> {
    app.sandbox.drop_webhooks().await;
    let fault = json!({"operation": "create", "kind": kind, "count": count});
    app.sandbox.control("faults", fault).await;
    let orders: Vec<_> = (0..count).map(|n| format!("Order {n}")).collect();
    join_all(orders.iter().map(async |order| {
        // While the machine is busy, the database may not respond in time. Nothing was done then.
        eventually("the response is lost", async || {
            let answer = app.create_with_key(order, &ten_pounds(order)).await;
            (answer.status != 503).then(|| answer.expect(504))
        })
        .await;
    }))
    .await;
    sqlx::query("UPDATE payment_links SET due_at = now()")
        .execute(&app.pool)
        .await
        .unwrap();
    orders
}

#[tokio::test]
async fn lost_creations_of_many_links_are_found_by_one_search() {
    let app = TestApp::with(&[]).await;
    let orders = lose_many(&app, "cutAfter", 20).await;
    app.sandbox
        .control("payment-intents", json!({"count": 230}))
        .await;
    // Reconciliation searches as well, and on a slow machine it would begin before the test ends.
    sqlx::raw_sql(
        "CREATE FUNCTION not_due() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN NEW.due_at := now() + interval '1 hour'; RETURN NEW; END $$;
         CREATE TRIGGER not_due BEFORE UPDATE ON payment_links
             FOR EACH ROW WHEN (NEW.status = 'Created') EXECUTE FUNCTION not_due()",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    // No call times out and no lease expires, however slow the machine is.
    let _jobs = app.another(&PATIENT).await;
    for order in &orders {
        app.the_only_link(order, &ten_pounds(order)).await;
    }
    assert_eq!(app.sandbox.creations().await.len(), 20);
    let pages = app.sandbox.requests("search").await.len();
    assert_eq!(
        pages, 3,
        "250 intents are three pages of 100, read once for all links"
    );
}

#[tokio::test]
async fn surplus_intents_of_many_links_are_found_by_one_search() {
    let app = TestApp::with(&[]).await;
    // Nothing was created the first time, so the creations are retried.
    let orders = lose_many(&app, "cutBefore", 20).await;
    let jobs = app.another(&[]).await;
    for order in &orders {
        app.the_only_link(order, &ten_pounds(order)).await;
    }
    drop(jobs);
    app.sandbox.clear("requests").await;
    sqlx::query("UPDATE payment_links SET due_at = now(), leased_until = NULL")
        .execute(&app.pool)
        .await
        .unwrap();
    let _jobs = app.another(&PATIENT).await;
    eventually("all have been read and searched for", async || {
        let reads = app.sandbox.requests("get").await;
        let read: BTreeSet<&str> = reads.iter().map(|read| text(&read["path"])).collect();
        let searches = app.sandbox.requests("search").await.len();
        (read.len() == 20 && searches > 0).then_some(())
    })
    .await;
    // One search for the sweep, and one for surplus intents.
    let searches = app.sandbox.requests("search").await.len();
    assert!(searches <= 2, "{searches} searches for 20 links");
}

#[tokio::test]
async fn lost_creations_are_found_among_very_many_intents_although_a_page_fails() {
    let app = TestApp::with(&[]).await;
    // These come after all others, because search returns the newest first.
    let orders = lose_many(&app, "cutAfter", 3).await;
    app.sandbox
        .control("payment-intents", json!({"count": 10_100}))
        .await;
    // Two that were never created. Only a search through all intents proves that.
    for order in ["Order 3", "Order 4"] {
        app.sandbox.next("create", "cutBefore", json!({})).await;
        // While the machine is busy, the database may not respond in time. Nothing was done then.
        eventually("the response is lost", async || {
            let answer = app.create_with_key(order, &ten_pounds(order)).await;
            (answer.status != 503).then(|| answer.expect(504))
        })
        .await;
    }
    let fault = json!({"operation": "search", "kind": "status", "status": 500, "share": 0.02});
    app.sandbox.control("faults", fault).await;
    let _jobs = app
        .another(&[("BACKGROUND_RATE", "1000"), ("DOJO_TIMEOUT", "10s")])
        .await;
    let orders = orders.iter().map(String::as_str);
    for order in orders.chain(["Order 3", "Order 4"]) {
        eventually_within(
            Duration::from_mins(3),
            "the creation is resolved",
            async || {
                let answer = app.create_with_key(order, &ten_pounds(order)).await;
                (answer.status == 201).then_some(())
            },
        )
        .await;
        let alive = app.links_about(order).await;
        assert_eq!(alive.len(), 1);
        assert_eq!(alive[0]["status"], "Created");
    }
    assert_eq!(app.sandbox.creations().await.len(), 7);
}

#[tokio::test]
async fn no_lease_expires_in_a_queue() {
    let app = TestApp::with(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    let orders: Vec<_> = (0..40).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    for batch in orders.chunks(5) {
        join_all(batch.iter().map(async |body| {
            app.create(body).await.expect(201);
        }))
        .await;
    }
    sqlx::query("UPDATE payment_links SET due_at = now() - interval '1 minute'")
        .execute(&app.pool)
        .await
        .unwrap();
    // Ten seconds of work for one replica, under leases of four seconds.
    let slow = json!({"operation": "get", "kind": "latency", "latencyMs": 500, "share": 1.0});
    app.sandbox.control("faults", slow).await;
    let few = [("BACKGROUND_CONCURRENCY", "2")];
    let began = OffsetDateTime::now_utc();
    let _jobs = [app.another(&few).await, app.another(&few).await];
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
