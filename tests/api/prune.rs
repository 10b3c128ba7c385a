//! Pruning: what is removed of what is old, what stays, and that nothing depends on what was removed.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::{
    commands::{error_of, output_of},
    support::{Service, TestApp, client, event, eventually, program, send, ten_pounds, text},
};

/// The command `prune`, for everything that is more than 400 days old.
fn prune(app: &TestApp) -> Command {
    let mut command = program();
    command
        .args(["prune", "--older-than", "400d"])
        .env("DATABASE_URL", &app.database_url);
    command
}

/// What the command prints.
fn report(webhooks: u64, entries: u64) -> String {
    format!(
        "webhook_events\t{webhooks}\npayment_link_events\t{entries}\nmessages\t0\nfeed_events\t0\ncallback_deliveries\t0\n"
    )
}

async fn deliver(app: &TestApp, id: &str, link: &Value, status: &str) {
    app.deliver(&event(id, link, status)).await.expect(204);
}

async fn run(app: &TestApp, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&app.pool)
        .await
        .unwrap();
}

/// Makes everything 500 days older, and lets the schedule of reconciliation end, as it does half a year after a payment.
async fn time_passes(app: &TestApp) {
    for statement in [
        "UPDATE webhook_events SET received_at = received_at - interval '500 days',
                                   last_received_at = last_received_at - interval '500 days'",
        "UPDATE payment_links SET due_at = NULL, leased_until = NULL, updated_at = updated_at - interval '500 days'",
        "UPDATE payment_intents SET due_at = NULL, leased_until = NULL",
        "UPDATE operations SET created_at = created_at - interval '500 days',
                               completed_at = completed_at - interval '500 days'",
    ] {
        run(app, statement).await;
    }
}

/// The ids of the stored webhooks, in alphabetical order.
async fn stored(app: &TestApp) -> Vec<String> {
    sqlx::query_scalar("SELECT dedup_key FROM webhook_events ORDER BY dedup_key")
        .fetch_all(&app.pool)
        .await
        .unwrap()
}

/// Stores this many old events that are about nothing that the service knows.
async fn many_old_webhooks(pool: &PgPool, count: i32) {
    sqlx::query(
        "INSERT INTO webhook_events (account, dedup_key, body, problem, received_at, last_received_at)
         SELECT 'default', 'old_' || n, '', 'not JSON', at, at
         FROM (SELECT n, now() - interval '500 days' + n * interval '1 second' AS at
               FROM generate_series(1, $1) AS n) AS old",
    )
    .bind(count)
    .execute(pool)
    .await
    .unwrap();
}

/// Waits until all of [`many_old_webhooks`] are removed.
async fn nothing_old_is_left(app: &TestApp) {
    eventually("everything old is removed", async || {
        let old: i64 =
            sqlx::query_scalar("SELECT count(*) FROM webhook_events WHERE dedup_key LIKE 'old%'")
                .fetch_one(&app.pool)
                .await
                .unwrap();
        (old == 0).then_some(())
    })
    .await;
}

/// How many webhooks this replica says that it has removed.
async fn removed_by(service: &Service) -> u64 {
    let name = r#"pruned_rows_total{table="webhook_events"} "#;
    let metrics = send(client().get(format!("{}/metrics", service.url))).await;
    let metrics = metrics.expect(200).text;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value
        .expect("the counter is there from the start")
        .parse()
        .unwrap()
}

/// A paid link over 10.00 GBP with one webhook of each verdict but two, all from the test.
async fn link_with_a_history(app: &TestApp) -> Value {
    let link = app.created().await;
    deliver(app, "evt_unchanged", &link, "Created").await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    deliver(app, "evt_applied", &link, "Captured").await;
    deliver(app, "evt_stale", &link, "Authorized").await;
    deliver(app, "evt_contradictory", &link, "Canceled").await;
    app.read_until_confirmed(&link["id"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn old_webhooks_are_removed_and_only_entries_that_changed_nothing_go_with_them() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let link = link_with_a_history(&app).await;
    let id = &link["id"];
    let before = app.timeline(id).await;

    // Nothing is old enough yet.
    assert_eq!(output_of(&mut prune(&app)), report(0, 0));
    time_passes(&app).await;
    let aged = app.link(id).await;
    assert_eq!(output_of(prune(&app).arg("--dry-run")), report(4, 2));
    assert_eq!(app.stored_webhooks().await, 4);
    assert_eq!(app.timeline(id).await, before);

    assert_eq!(output_of(&mut prune(&app)), report(4, 2));
    assert_eq!(app.stored_webhooks().await, 0);
    let gone = ["unchanged", "stale"];
    let expected: Vec<_> = before
        .iter()
        .filter(|entry| !gone.contains(&entry["detail"]["verdict"].as_str().unwrap_or_default()))
        .collect();
    let after = app.timeline(id).await;
    assert_eq!(after.iter().collect::<Vec<_>>(), expected);
    for kind in ["requested", "created", "reconciled"] {
        assert!(after.iter().any(|entry| entry["type"] == kind), "{kind}");
    }
    assert_eq!(app.link(id).await, aged);
    assert_eq!(output_of(&mut prune(&app)), report(0, 0));

    // Each page that a client was about to read begins where it would have.
    for entry in &before {
        let path = format!(
            "/v1/payment-links/{}/events?limit=1&after={}",
            text(id),
            text(&entry["id"])
        );
        let page = app.get(&path).await.expect(200).json();
        let number = |entry: &Value| text(&entry["id"]).parse::<i64>().unwrap();
        let rest: Vec<_> = after
            .iter()
            .filter(|later| number(later) > number(entry))
            .collect();
        assert_eq!(page["data"].get(0), rest.first().copied(), "{entry}");
        assert_eq!(page["hasMore"], rest.len() > 1, "{entry}");
    }

    // The payment can still be refunded, and that is in the timeline too.
    let refund = json!({"amount": {"value": 400, "currencyCode": "GBP"}});
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    let entries = app.operation_entries(&link).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_a_link_that_can_still_change_stays() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let operation = |columns: &str, values: &str| {
        format!(
            "INSERT INTO operations (id, payment_link_id, account, kind, action, created_by, {columns})
             SELECT gen_random_uuid(), id, account, 'cancel', '{{}}', 'orders', {values} FROM payment_links
             WHERE payment_intent_id = $INTENT"
        )
    };
    let link =
        |set: &str| format!("UPDATE payment_links SET {set} WHERE payment_intent_id = $INTENT");
    let webhook =
        |set: &str| format!("UPDATE webhook_events SET {set} WHERE payment_intent_id = $INTENT");
    let days = "now() - interval '500 days'";
    let cases = [
        ("nothing", "SELECT".to_owned(), false),
        ("it is due", link("due_at = now() + interval '1 day'"), true),
        (
            "it is leased",
            link("leased_until = now() + interval '1 minute'"),
            true,
        ),
        (
            "a lease has ended",
            link("leased_until = now() - interval '1 day'"),
            false,
        ),
        (
            "it changed lately",
            link("updated_at = now() - interval '399 days'"),
            true,
        ),
        ("it is in doubt", link("unsettled_status = ''"), true),
        ("responses conflict", link("disputed_since = now()"), true),
        (
            "only a webhook said so",
            link("dojo_status = 'Created'"),
            true,
        ),
        ("nobody confirmed it", link("dojo_status = NULL"), true),
        (
            "the webhook came again",
            webhook("last_received_at = now() - interval '399 days'"),
            true,
        ),
        (
            "the webhook is not old",
            webhook("received_at = now() - interval '399 days'"),
            true,
        ),
        (
            "a copy would move it",
            webhook("payment_status = 'Refunded'"),
            true,
        ),
        (
            "a later version may know it",
            webhook("payment_status = 'ChargedBack'"),
            true,
        ),
        (
            "no status was reported",
            webhook("payment_status = NULL"),
            false,
        ),
        (
            "an operation is pending",
            operation("status, created_at", &format!("'Pending', {days}")),
            true,
        ),
        (
            "an operation is unconfirmed",
            operation(
                "status, created_at, completed_at",
                &format!("'Unconfirmed', {days}, {days}"),
            ),
            true,
        ),
        (
            "a capture may turn up",
            operation(
                "status, created_at, completed_at, due_at",
                &format!("'Failed', {days}, {days}, now()"),
            ),
            true,
        ),
        (
            "an operation ended lately",
            operation(
                "status, created_at, completed_at",
                &format!("'Succeeded', {days}, now()"),
            ),
            true,
        ),
        (
            "an operation ended long ago",
            operation(
                "status, created_at, completed_at",
                &format!("'Succeeded', {days}, {days}"),
            ),
            false,
        ),
    ];
    let mut links = Vec::new();
    for (number, _) in cases.iter().enumerate() {
        let link = app.paid().await;
        deliver(&app, &format!("evt_{number:02}"), &link, "Captured").await;
        links.push(link);
    }
    time_passes(&app).await;
    for ((_, statement, _), link) in cases.iter().zip(&links) {
        let intent = format!("'{}'", text(&link["paymentIntentId"]));
        run(&app, &statement.replace("$INTENT", &intent)).await;
    }

    let kept: Vec<_> = cases.iter().map(|(_, _, kept)| *kept).collect();
    let removed = kept.iter().filter(|kept| !**kept).count();
    let removed = u64::try_from(removed).unwrap();
    assert_eq!(output_of(&mut prune(&app)), report(removed, removed));
    let stored = stored(&app).await;
    for (number, (what, _, kept)) in cases.iter().enumerate() {
        let is_stored = stored.contains(&format!("evt_{number:02}"));
        assert_eq!(is_stored, *kept, "{what}: the webhook");
        let entries = app.told(&links[number]["id"], "webhook").await;
        assert_eq!(!entries.is_empty(), *kept, "{what}: its entry");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_about_no_link_stay_while_their_intent_is_traced() {
    let app = TestApp::start().await;
    for intent in ["pi_traced", "pi_leased", "pi_resolved"] {
        let link = json!({"paymentIntentId": intent});
        deliver(&app, &format!("evt_{intent}"), &link, "Captured").await;
    }
    app.deliver("not JSON").await.expect(204);
    time_passes(&app).await;
    app.deliver("not JSON either").await.expect(204);
    run(
        &app,
        "UPDATE payment_intents SET due_at = now() + interval '1 hour' WHERE id = 'pi_traced'",
    )
    .await;
    run(
        &app,
        "UPDATE payment_intents SET leased_until = now() + interval '1 hour' WHERE id = 'pi_leased'",
    )
    .await;

    assert_eq!(output_of(&mut prune(&app)), report(2, 0));
    let stored = stored(&app).await;
    assert_eq!(stored.len(), 3, "{stored:?}");
    assert_eq!(stored[..2], ["evt_pi_leased", "evt_pi_traced"]);

    // Intents stay known, so a copy of a removed webhook is not traced again.
    let link = json!({"paymentIntentId": "pi_resolved"});
    deliver(&app, "evt_pi_resolved", &link, "Captured").await;
    let due: bool = sqlx::query_scalar(
        "SELECT due_at IS NOT NULL FROM payment_intents WHERE id = 'pi_resolved'",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert!(!due);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_removed_webhook_does_not_move_the_link() {
    let app = TestApp::with(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.drop_webhooks().await;
    let link = link_with_a_history(&app).await;
    // A forgery that Dojo's own responses overruled.
    deliver(&app, "evt_forged", &link, "Refunded").await;
    assert_eq!(app.link(&link["id"]).await["status"], "Refunded");
    let link = app.read_until_confirmed(&link["id"]).await;
    assert_eq!(link["status"], "Captured");
    time_passes(&app).await;
    let aged = app.link(&link["id"]).await;

    assert_eq!(output_of(&mut prune(&app)), report(4, 2));
    assert_eq!(stored(&app).await, ["evt_forged"]);
    for (id, status) in [
        ("evt_unchanged", "Created"),
        ("evt_applied", "Captured"),
        ("evt_stale", "Authorized"),
        ("evt_contradictory", "Canceled"),
        ("evt_forged", "Refunded"),
    ] {
        deliver(&app, id, &link, status).await;
        assert_eq!(app.link(&link["id"]).await, aged, "{id}");
    }
    // They are stored like new ones, and the link is read from Dojo once more. Until then they stay.
    assert_eq!(app.stored_webhooks().await, 5);
    let due: bool = sqlx::query_scalar("SELECT due_at <= now() FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert!(due);
    assert_eq!(output_of(&mut prune(&app)), report(0, 0));
    app.read_until_confirmed(&link["id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commands_at_once_remove_each_row_once() {
    let app = TestApp::start().await;
    many_old_webhooks(&app.pool, 3000).await;
    let start = || {
        prune(&app)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let both = [start(), start()];
    let counts = both.map(|one| {
        let output = one.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().next().unwrap();
        let (_, count) = line.split_once('\t').unwrap();
        count.parse::<u64>().unwrap()
    });
    assert_eq!(counts.iter().sum::<u64>(), 3000, "{counts:?}");
    assert_eq!(app.stored_webhooks().await, 0);
}

#[tokio::test]
async fn replicas_share_the_work_while_webhooks_arrive() {
    let app = TestApp::quick(&[("PRUNE_OLDER_THAN", "400d")]).await;
    let other = app.another(&[("PRUNE_OLDER_THAN", "400d")]).await;
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    let removed_before = removed_by(&app.service).await + removed_by(&other).await;
    many_old_webhooks(&app.pool, 5000).await;
    // The first pass is over. The next one would begin hours later.
    run(&app, "UPDATE pruning SET due_at = now(), position = 0").await;

    let delivered = async {
        for number in 0..100 {
            deliver(&app, &format!("evt_{number}"), &link, "Created").await;
        }
    };
    tokio::join!(delivered, nothing_old_is_left(&app));
    assert_eq!(app.stored_webhooks().await, 100);
    let entries: i64 =
        sqlx::query_scalar("SELECT count(*) FROM payment_link_events WHERE kind = 'webhook'")
            .fetch_one(&app.pool)
            .await
            .unwrap();
    assert_eq!(entries, 100);
    eventually("each removed row was counted once", async || {
        let removed = removed_by(&app.service).await + removed_by(&other).await;
        (removed - removed_before == 5000).then_some(())
    })
    .await;
    // Then the pass is over.
    eventually("the next pass is hours away", async || {
        let over: bool = sqlx::query_scalar(
            "SELECT position = 0 AND due_at > now() + interval '5 hours' FROM pruning",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        over.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_does_not_wait_while_another_one_removes_a_batch() {
    let app = TestApp::start().await;
    many_old_webhooks(&app.pool, 10).await;
    let turn = app.lock("SELECT FROM pruning FOR UPDATE").await;
    let worker = app.another(&[("PRUNE_OLDER_THAN", "400d")]).await;
    let line = r#"job_last_progress_timestamp_seconds{account="",job_name="pruning"} "#;
    let progress = async || {
        let metrics = send(client().get(format!("{}/metrics", worker.url))).await;
        let metrics = metrics.expect(200).text;
        let value = metrics.lines().find_map(|found| found.strip_prefix(line));
        value.unwrap().parse::<f64>().unwrap()
    };
    let first = progress().await;
    eventually("it has found that it is not its turn", async || {
        let waits: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
               AND wait_event_type = 'Lock')",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        assert!(!waits);
        (progress().await > first + 1.0).then_some(())
    })
    .await;
    assert_eq!(app.stored_webhooks().await, 10);
    drop(turn);
    nothing_old_is_left(&app).await;
}

#[tokio::test]
async fn a_replica_that_is_killed_in_the_middle_of_a_batch_leaves_nothing_behind() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let link = link_with_a_history(&app).await;
    time_passes(&app).await;
    let entries = app.timeline(&link["id"]).await.len();
    many_old_webhooks(&app.pool, 1200).await;
    // Whoever deletes webhooks waits there.
    run(
        &app,
        "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END'",
    )
    .await;
    run(
        &app,
        "CREATE TRIGGER gate AFTER DELETE ON webhook_events FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate()",
    )
    .await;
    let gate = app.lock("SELECT pg_advisory_xact_lock(77)").await;
    let mut worker = app.another(&[("PRUNE_OLDER_THAN", "400d")]).await;
    let session = app.blocked("WITH prunable AS").await;
    worker.kill().await;
    app.disconnect(session).await;
    drop(gate);
    assert_eq!(app.stored_webhooks().await, 1204);
    assert_eq!(app.timeline(&link["id"]).await.len(), entries);

    // Another replica goes on at once.
    let heir = app.another(&[("PRUNE_OLDER_THAN", "400d")]).await;
    nothing_old_is_left(&app).await;
    assert_eq!(app.stored_webhooks().await, 0);
    assert_eq!(app.timeline(&link["id"]).await.len(), entries - 2);
    eventually("each removed row was counted", async || {
        (removed_by(&heir).await == 1204).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_age_below_a_month_is_rejected() {
    let app = TestApp::start().await;
    for age in ["29d", "0s", "400", "-400d", "21y"] {
        let mut command = program();
        command
            .args(["prune", &format!("--older-than={age}")])
            .env("DATABASE_URL", &app.database_url);
        let error = error_of(&mut command);
        assert!(
            error.contains("--older-than must be a duration such as 400d"),
            "{age}: {error}"
        );
    }
    let nothing = error_of(
        program()
            .arg("prune")
            .env("DATABASE_URL", &app.database_url),
    );
    assert!(nothing.contains("--older-than"), "{nothing}");
    let mut oldest = program();
    oldest
        .args(["prune", "--older-than", "20y", "--dry-run"])
        .env("DATABASE_URL", &app.database_url);
    output_of(&mut oldest);
}

/// The command `prune` for some kinds of data.
fn prune_kinds(app: &TestApp, arguments: &[&str]) -> Command {
    let mut command = program();
    command
        .arg("prune")
        .args(arguments)
        .env("DATABASE_URL", &app.database_url);
    command
}

async fn number(app: &TestApp, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

/// Stores a response with every key and operation, as versions before migration 14 did, and makes everything 200 days old.
async fn with_old_responses(app: &TestApp) {
    for statement in [
        "UPDATE idempotency_keys SET response_body = '{}', created_at = created_at - interval '200 days'",
        "UPDATE operations SET response_body = '{}', read_back_at = NULL, created_at = created_at - interval '200 days'",
        "UPDATE webhook_events SET received_at = received_at - interval '200 days'",
    ] {
        run(app, statement).await;
    }
}

const BODIES: &str = "SELECT count(*) FROM webhook_events WHERE body <> ''";
const RESPONSES: &str =
    "SELECT (SELECT count(*) FROM idempotency_keys WHERE response_body IS NOT NULL)
                              + (SELECT count(*) FROM operations WHERE response_body IS NOT NULL)";

#[tokio::test(flavor = "multi_thread")]
async fn the_bodies_of_webhooks_and_stored_responses_expire_and_the_rows_stay() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let link = app
        .create_with_key("link-1", &ten_pounds("Order 1"))
        .await
        .expect(201)
        .json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    let refund = json!({"amount": {"value": 400, "currencyCode": "GBP"}});
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    for (id, status) in [("evt_1", "Captured"), ("evt_2", "Created")] {
        deliver(&app, id, &link, status).await;
    }
    // Some that say nothing, so that there is more than one batch.
    many_old_webhooks(&app.pool, 700).await;
    run(
        &app,
        "UPDATE webhook_events SET body = 'x' WHERE dedup_key LIKE 'old%'",
    )
    .await;
    with_old_responses(&app).await;
    deliver(&app, "evt_new", &link, "Captured").await;

    let kinds = [
        "--webhook-bodies-older-than=180d",
        "--stored-responses-older-than=180d",
    ];
    let expected = "webhook_events.body\t702\nidempotency_keys.response_body\t2\noperations.response_body\t1\n";
    let dry = [&kinds[..], &["--dry-run"]].concat();
    assert_eq!(output_of(&mut prune_kinds(&app, &dry)), expected);
    assert_eq!(number(&app, BODIES).await, 703);
    assert_eq!(output_of(&mut prune_kinds(&app, &kinds)), expected);
    assert_eq!(number(&app, BODIES).await, 1, "the new one");
    assert_eq!(number(&app, RESPONSES).await, 0);
    assert_eq!(app.stored_webhooks().await, 703);

    // Nothing depends on them: a copy is recognized, and requests are repeated.
    let before = app.timeline(&link["id"]).await;
    deliver(&app, "evt_1", &link, "Captured").await;
    assert_eq!(app.timeline(&link["id"]).await, before);
    let again = app
        .create_with_key("link-1", &ten_pounds("Order 1"))
        .await
        .expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let reads = app.sandbox.requests("get").await.len();
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    assert_eq!(
        app.sandbox.requests("get").await.len(),
        reads,
        "the link was read after the refund, so it isn't read again"
    );
}

#[tokio::test]
async fn by_default_the_service_removes_old_bodies_and_responses_and_nothing_else() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let link = app
        .create_with_key("link-1", &ten_pounds("Order 1"))
        .await
        .expect(201)
        .json();
    deliver(&app, "evt_1", &link, "Created").await;
    with_old_responses(&app).await;
    many_old_webhooks(&app.pool, 3).await;
    deliver(&app, "evt_2", &link, "Created").await;
    let mut worker = app.another(&[]).await;
    eventually("old bodies and responses are gone", async || {
        let gone = number(&app, RESPONSES).await == 0 && number(&app, BODIES).await == 1;
        gone.then_some(())
    })
    .await;
    assert_eq!(app.stored_webhooks().await, 5);
    eventually("they were counted", async || {
        let metrics = send(client().get(format!("{}/metrics", worker.url))).await;
        let metrics = metrics.expect(200).text;
        [
            r#"expired_bodies_total{table="webhook_events"} 1"#,
            r#"expired_bodies_total{table="idempotency_keys"} 1"#,
        ]
        .iter()
        .all(|line| metrics.contains(line))
        .then_some(())
    })
    .await;

    // What becomes old later is found as well.
    run(
        &app,
        "UPDATE webhook_events SET received_at = received_at - interval '200 days' WHERE dedup_key = 'evt_2'",
    )
    .await;
    run(&app, "UPDATE retention SET due_at = now()").await;
    eventually("the other body is gone", async || {
        (number(&app, BODIES).await == 0).then_some(())
    })
    .await;
    let never = [
        ("WEBHOOK_BODIES_OLDER_THAN", "never"),
        ("STORED_RESPONSES_OLDER_THAN", "never"),
    ];
    worker.kill().await;
    run(&app, "UPDATE webhook_events SET body = 'x'").await;
    run(&app, "UPDATE retention SET due_at = now(), position = 0").await;
    let worker = app.another(&never).await;
    let metric = r#"job_last_progress_timestamp_seconds{account="",job_name="pruning"} "#;
    let progress = async || {
        let metrics = send(client().get(format!("{}/metrics", worker.url))).await;
        let metrics = metrics.expect(200).text;
        let value = metrics.lines().find_map(|found| found.strip_prefix(metric));
        value.unwrap().parse::<f64>().unwrap()
    };
    let first = progress().await;
    eventually("the job has looked for work", async || {
        (progress().await > first + 1.0).then_some(())
    })
    .await;
    assert_eq!(number(&app, BODIES).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_messages_about_links_that_can_no_longer_change_are_removed() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let (paid, due, open) = (app.paid().await, app.paid().await, app.paid().await);
    run(
        &app,
        "INSERT INTO messages (id, payment_link_id, account, channel, purpose, recipient, locale, status, created_by, created_at)
         SELECT gen_random_uuid(), id, account, 'email', 'request', 'a@b', 'en', 'Sent', 'orders', at
         FROM payment_links, (VALUES (now()), (now() - interval '500 days')) AS times (at)",
    )
    .await;
    time_passes(&app).await;
    let id = |link: &Value| text(&link["paymentIntentId"]).to_owned();
    run(
        &app,
        &format!(
            "UPDATE payment_links SET due_at = now() WHERE payment_intent_id = '{}'",
            id(&due)
        ),
    )
    .await;
    run(
        &app,
        &format!(
            "INSERT INTO operations (id, payment_link_id, account, kind, action, created_by, status, created_at)
             SELECT gen_random_uuid(), id, account, 'cancel', '{{}}', 'orders', 'Pending', now() - interval '500 days'
             FROM payment_links WHERE payment_intent_id = '{}'",
            id(&open)
        ),
    )
    .await;
    let kind = ["--messages-older-than=400d"];
    let dry = [&kind[..], &["--dry-run"]].concat();
    assert_eq!(output_of(&mut prune_kinds(&app, &dry)), "messages\t1\n");
    assert_eq!(output_of(&mut prune_kinds(&app, &kind)), "messages\t1\n");
    let left = format!(
        "SELECT count(*) FROM messages JOIN payment_links link ON link.id = payment_link_id
         WHERE link.payment_intent_id = '{}'",
        id(&paid)
    );
    assert_eq!(number(&app, &left).await, 1, "the new one");
    assert_eq!(number(&app, "SELECT count(*) FROM messages").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn personal_data_of_links_that_have_not_changed_for_long_is_erased_if_that_is_wanted() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let mut body = ten_pounds("Order 1");
    body["customer"] = json!({"emailAddress": "ann@example.com"});
    let unpaid = app.create(&body).await.expect(201).json();
    let mut paid = Vec::new();
    for _ in 0..4 {
        let link = app.create(&body).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        paid.push(app.read_until_confirmed(&link["id"]).await);
    }
    time_passes(&app).await;
    run(
        &app,
        &format!(
            "UPDATE payment_links SET updated_at = now() WHERE payment_intent_id = '{}'",
            text(&paid[0]["paymentIntentId"])
        ),
    )
    .await;
    run(
        &app,
        &format!(
            "UPDATE payment_links SET dojo_status = 'Created' WHERE payment_intent_id = '{}'",
            text(&paid[1]["paymentIntentId"])
        ),
    )
    .await;

    let kind = ["--erase-older-than=400d"];
    let dry = [&kind[..], &["--dry-run"]].concat();
    assert_eq!(output_of(&mut prune_kinds(&app, &dry)), "erased links\t2\n");
    let worker = app
        .another(&[("ERASE_OLDER_THAN", "400d"), ("PERSONAL_METADATA", "guest")])
        .await;
    for link in &paid[2..] {
        let erased = eventually("it is erased", async || {
            let link = app.link(&link["id"]).await;
            link["erasedAt"].is_string().then_some(link)
        })
        .await;
        assert_eq!(erased.get("customer"), None);
        let entries = app.told(&link["id"], "erased").await;
        assert_eq!(entries[0]["cause"], json!({"type": "retention"}));
    }
    eventually("they were counted", async || {
        let metrics = send(client().get(format!("{}/metrics", worker.url))).await;
        let line = r#"erased_links_total{cause="retention"} 2"#;
        metrics.expect(200).text.contains(line).then_some(())
    })
    .await;
    for link in [&unpaid, &paid[0], &paid[1]] {
        assert_eq!(app.link(&link["id"]).await["erasedAt"], Value::Null);
    }
    drop(worker);
    assert_eq!(
        output_of(&mut prune_kinds(&app, &kind)),
        "erased links\t0\n"
    );
}
