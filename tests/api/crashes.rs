//! SIGKILL at every step where it could do harm. Whatever the step, the caller's retry gets one link, and that link has one
//! intent at Dojo.

use serde_json::{Value, json};

use crate::support::{TestApp, TestSandbox, eventually, ten_pounds, text};

/// Requests a link and kills the service as soon as `step` is reached.
async fn die_while_creating<T>(
    app: &mut TestApp,
    body: &Value,
    step: impl AsyncFnOnce(&TestApp) -> T,
) -> T {
    let reached = {
        let asking = app.try_to_create("a", body);
        tokio::pin!(asking);
        tokio::select! {
            response = &mut asking => panic!("the step was not reached before the response: {response:?}"),
            reached = step(app) => reached,
        }
    };
    app.service.kill().await;
    reached
}

/// Waits until Dojo has received a request to create an intent, whether it has created one or not.
async fn creation_reaches_dojo(sandbox: &TestSandbox) {
    eventually("the creation reaches Dojo", async || {
        sandbox.creations().await.pop()
    })
    .await;
}

/// Waits until this many sessions of the service wait for a lock on a table, or on one of its rows. Returns their pids.
async fn waiting_for_lock(app: &TestApp, table: &str, sessions: usize) -> Vec<i32> {
    let what = format!("{sessions} sessions wait for a lock on {table}");
    eventually(&what, async || {
        let pids: Vec<i32> = sqlx::query_scalar(
            // A session that waits for a row holds a lock on the tuple, and waits for the transaction that locked the row.
            "SELECT DISTINCT activity.pid FROM pg_stat_activity activity JOIN pg_locks lock USING (pid)
             WHERE activity.datname = current_database() AND activity.application_name = 'dojo-payment-links'
               AND activity.wait_event_type = 'Lock' AND lock.relation = $1::regclass
               AND (lock.locktype = 'tuple' OR NOT lock.granted)",
        )
        .bind(table)
        .fetch_all(&app.pool)
        .await
        .unwrap();
        (pids.len() >= sessions).then_some(pids)
    })
    .await
}

async fn link_count(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn nothing_happens_when_killed_before_the_link_is_saved() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let lock = app.lock("LOCK TABLE idempotency_keys IN SHARE MODE").await;
    let waiting = die_while_creating(&mut app, &body, async |app| {
        waiting_for_lock(app, "idempotency_keys", 1).await
    })
    .await;
    // As if the whole machine died: Postgres doesn't finish the statement either.
    app.disconnect(waiting[0]).await;
    drop(lock);
    app.restart().await;
    assert_eq!(link_count(&app).await, 0);
    assert!(app.sandbox.creations().await.is_empty());

    app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn creation_recovers_when_killed_before_postgres_saves_the_link() {
    // The lease must last until a busy machine has restarted the service.
    let mut app = TestApp::quick(&[("DOJO_TIMEOUT", "5s")]).await;
    let body = ten_pounds("Order 1");
    // The saved key refers to the client. Postgres checks that at the end of the statement.
    let lock = app.lock("SELECT FROM clients FOR UPDATE").await;
    die_while_creating(&mut app, &body, async |app| {
        waiting_for_lock(app, "clients", 1).await
    })
    .await;
    assert!(app.sandbox.creations().await.is_empty());
    // Postgres finishes the statement although its client is dead.
    drop(lock);
    eventually("the link is saved", async || {
        (link_count(&app).await == 1).then_some(())
    })
    .await;
    app.restart().await;
    let waiting = app.create_with_key("a", &body).await;
    waiting.problem(409, "request-in-progress");

    app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn creation_is_retried_when_killed_and_dojo_did_nothing() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    app.sandbox
        .next("create", "cutBefore", json!({"latencyMs": 2000}))
        .await;
    die_while_creating(&mut app, &body, async |app| {
        creation_reaches_dojo(&app.sandbox).await;
    })
    .await;
    assert!(app.sandbox.intents().await.is_empty());
    app.restart().await;

    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.told(&link["id"], "creationRetried").await.len(), 1);
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

#[tokio::test]
async fn intent_is_found_when_killed_before_dojo_creates_it() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 2000}))
        .await;
    die_while_creating(&mut app, &body, async |app| {
        creation_reaches_dojo(&app.sandbox).await;
    })
    .await;
    assert!(app.sandbox.intents().await.is_empty());
    app.restart().await;

    app.the_only_link("a", &body).await;
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn intent_is_found_when_killed_after_dojo_creates_it() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 5000}))
        .await;
    let intent = die_while_creating(&mut app, &body, async |app| {
        app.sandbox.first_intent().await
    })
    .await;
    app.restart().await;

    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["paymentIntentId"], intent["id"]);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn payment_is_found_when_made_while_the_service_is_dead() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 5000}))
        .await;
    let intent = die_while_creating(&mut app, &body, async |app| {
        app.sandbox.first_intent().await
    })
    .await;
    app.sandbox.pay(&intent["id"]).await;
    app.restart().await;

    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["paymentIntentId"], intent["id"]);
    assert_eq!(link["status"], "Captured");
}

#[tokio::test]
async fn intent_is_found_when_killed_before_its_adoption_and_its_webhook_are_stored() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let lock = app.lock("LOCK TABLE payment_intents IN SHARE MODE").await;
    die_while_creating(&mut app, &body, async |app| {
        // The adoption, the webhook, which Dojo must send again, and the background's claim of orphaned intents.
        waiting_for_lock(app, "payment_intents", 3).await
    })
    .await;
    drop(lock);
    app.restart().await;

    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.told(&link["id"], "created").await.len(), 1);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn adoption_is_repeated_when_killed_before_its_commit() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    let lock = app.block_adoption().await;
    let adoption = die_while_creating(&mut app, &body, async |app| {
        app.blocked("WITH adopted AS").await
    })
    .await;
    app.disconnect(adoption).await;
    drop(lock);
    let statuses: Vec<String> = sqlx::query_scalar("SELECT status FROM payment_links")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    assert_eq!(statuses, ["Pending"]);
    app.restart().await;

    let link = app.the_only_link("a", &body).await;
    assert_eq!(app.told(&link["id"], "created").await.len(), 1);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn intent_is_found_when_killed_during_the_retry_of_its_creation() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    app.sandbox.next("create", "cutBefore", json!({})).await;
    app.create_with_key("a", &body)
        .await
        .problem(504, "outcome-unknown");
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 5000}))
        .await;
    let intent = app.sandbox.first_intent().await;
    app.service.kill().await;
    app.restart().await;

    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["paymentIntentId"], intent["id"]);
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

#[tokio::test]
async fn surplus_intent_is_canceled_and_recorded_once_when_killed_meanwhile() {
    let mut app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.search_lags(600.0).await;
    let body = ten_pounds("Order 1");
    app.sandbox.next("create", "cutAfter", json!({})).await;
    app.sandbox
        .next("cancel", "latencyAfter", json!({"latencyMs": 5000}))
        .await;
    app.create_with_key("a", &body)
        .await
        .problem(504, "outcome-unknown");
    eventually("the second intent is being canceled", async || {
        let calls = app.sandbox.requests("cancel").await;
        (calls.len() == 1).then_some(())
    })
    .await;
    app.service.kill().await;
    app.restart().await;

    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    eventually("it is recorded", async || {
        app.told(&link["id"], "surplusCanceled").await.pop()
    })
    .await;
    assert_eq!(app.told(&link["id"], "surplusCanceled").await.len(), 1);
    assert_eq!(app.told(&link["id"], "surplusFound").await.len(), 1);
}

/// Whether Postgres finishes the statement of a service that was killed.
#[derive(PartialEq)]
enum Statement {
    Finished,
    RolledBack,
}

/// Pays a link whose row is locked, kills the service while it stores the webhook, and restarts it. Dojo sends the webhook
/// again because nobody acknowledged it.
async fn die_over_a_webhook(statement: Statement) {
    let mut app = TestApp::quick(&[("RUN_JOBS", "false")]).await;
    let link = app.created().await;
    eventually("the webhook about its creation is stored", async || {
        app.told(&link["id"], "webhook").await.pop()
    })
    .await;
    let lock = app.lock("SELECT FROM payment_links FOR UPDATE").await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let waiting = waiting_for_lock(&app, "payment_links", 1).await;
    app.service.kill().await;
    if statement == Statement::RolledBack {
        app.disconnect(waiting[0]).await;
    }
    drop(lock);
    app.restart().await;

    let delivery = eventually("Dojo's redelivery is acknowledged", async || {
        let deliveries = app.sandbox.look("deliveries").await;
        let last = deliveries.as_array().unwrap().last().unwrap().clone();
        (last["state"] == "delivered").then_some(last)
    })
    .await;
    assert!(delivery["attempts"].as_array().unwrap().len() >= 2);
    let paid = app.link_with_status(&link["id"], "Captured").await;
    assert_eq!(paid["status"], "Captured");
    let webhooks = app.told(&link["id"], "webhook").await;
    let of_this: Vec<_> = webhooks
        .iter()
        .filter(|entry| entry["cause"]["eventId"] == delivery["eventId"])
        .map(|entry| text(&entry["detail"]["verdict"]))
        .collect();
    assert_eq!(
        of_this,
        ["applied"],
        "once, whichever copy was stored first"
    );
}

#[tokio::test]
async fn redelivery_is_applied_when_killed_before_the_webhook_is_stored() {
    die_over_a_webhook(Statement::RolledBack).await;
}

#[tokio::test]
async fn redelivery_changes_nothing_when_killed_after_the_webhook_is_stored() {
    die_over_a_webhook(Statement::Finished).await;
}

#[tokio::test]
async fn link_is_reconciled_when_killed_during_an_earlier_read() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.sandbox
        .next("get", "latencyAfter", json!({"latencyMs": 5000}))
        .await;
    app.all_are_due().await;
    eventually("the intent is being read", async || {
        app.sandbox.requests("get").await.pop()
    })
    .await;
    app.service.kill().await;
    // Read from the database: by the time that a busy machine has restarted the service, the lease may be over.
    let stored: String = sqlx::query_scalar("SELECT status FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(stored, "Created");
    app.restart().await;
    app.link_with_status(&link["id"], "Captured").await;
    assert_eq!(app.told(&link["id"], "reconciled").await.len(), 1);
}
