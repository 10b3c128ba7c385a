//! SIGKILL at every step at which it could hurt. Whatever the step, the caller's repetition gets one link, and
//! that link has one intent at Dojo.

use serde_json::{Value, json};

use crate::support::{TestApp, TestSandbox, eventually, ten_pounds, text};

/// Asks for a link and kills the service as soon as `step` is reached.
async fn die_while_creating<T>(
    app: &mut TestApp,
    body: &Value,
    step: impl AsyncFnOnce(&TestApp) -> T,
) -> T {
    let reached = {
        let asking = app.try_to_create("a", body);
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => panic!("it should have died before: {answer:?}"),
            reached = step(app) => reached,
        }
    };
    app.service.kill().await;
    reached
}

/// Waits for a creation to be under way at Dojo, done or not.
async fn dojo_is_asked(sandbox: &TestSandbox, times: usize) {
    eventually("Dojo is asked", async || {
        (sandbox.creations().await.len() >= times).then_some(())
    })
    .await;
}

async fn link_count(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn killed_before_saving_nothing_has_happened() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let lock = app.lock("LOCK TABLE payment_links IN SHARE MODE").await;
    let statement = die_while_creating(&mut app, &body, async |app| {
        app.blocked("WITH claim AS").await
    })
    .await;
    // With the machine: not even Postgres goes on with what it was told.
    app.disconnect(statement).await;
    drop(lock);
    app.restart().await;
    assert_eq!(link_count(&app).await, 0);
    assert!(app.sandbox.creations().await.is_empty());

    app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn killed_while_saving_what_postgres_saved_all_the_same_is_seen_through() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    // Saving refers to the client, and waits for it at its very end.
    let lock = app.lock("SELECT FROM clients FOR UPDATE").await;
    die_while_creating(&mut app, &body, async |app| {
        app.blocked("WITH claim AS").await
    })
    .await;
    assert!(app.sandbox.creations().await.is_empty());
    // Postgres has its orders, and carries them out although nobody waits for it any more.
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
async fn killed_after_saving_a_request_that_dojo_never_worked_on_is_made_again() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    app.sandbox
        .next("create", "cutBefore", json!({"latencyMs": 2000}))
        .await;
    die_while_creating(&mut app, &body, async |app| {
        dojo_is_asked(&app.sandbox, 1).await;
    })
    .await;
    assert!(app.sandbox.intents().await.is_empty());
    app.restart().await;

    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.told(&link["id"], "creationRetried").await.len(), 1);
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

#[tokio::test]
async fn killed_after_saving_a_request_that_dojo_works_on_later_is_found() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 2000}))
        .await;
    die_while_creating(&mut app, &body, async |app| {
        dojo_is_asked(&app.sandbox, 1).await;
    })
    .await;
    assert!(app.sandbox.intents().await.is_empty());
    app.restart().await;

    app.the_only_link("a", &body).await;
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn killed_after_dojo_acted_the_intent_is_found() {
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
async fn killed_after_dojo_acted_what_was_paid_meanwhile_is_not_lost() {
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
async fn killed_after_dojo_answered_the_intent_is_found() {
    let mut app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    // Its webhook stands before the same lock, and dies with the service: Dojo has to send it again.
    let lock = app.lock("LOCK TABLE payment_intents IN SHARE MODE").await;
    die_while_creating(&mut app, &body, async |app| {
        app.blocked("INSERT INTO payment_intents (id, account) SELECT $1, account")
            .await;
        app.blocked("WITH intent AS").await;
    })
    .await;
    drop(lock);
    app.restart().await;

    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(app.told(&link["id"], "created").await.len(), 1);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn killed_before_the_commit_none_of_it_stands_and_all_of_it_is_done_again() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    // The key's row is there once the link is saved; its answer is the last statement before the commit.
    app.sandbox
        .next("create", "latency", json!({"latencyMs": 500}))
        .await;
    let lock = die_while_creating(&mut app, &body, async |app| {
        dojo_is_asked(&app.sandbox, 1).await;
        let lock = app.lock("SELECT FROM idempotency_keys FOR UPDATE").await;
        app.blocked("UPDATE idempotency_keys SET response_body")
            .await;
        lock
    })
    .await;
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
async fn killed_while_it_creates_a_lost_intent_again_the_second_try_is_found() {
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
async fn killed_while_it_cancels_a_second_intent_that_is_done_and_told_once() {
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
    eventually("it is told", async || {
        app.told(&link["id"], "surplusCanceled").await.pop()
    })
    .await;
    assert_eq!(app.told(&link["id"], "surplusCanceled").await.len(), 1);
    assert_eq!(app.told(&link["id"], "surplusFound").await.len(), 1);
}

/// Pays a link whose row is locked, kills the service over the webhook, and lets it come back. Dojo sends the
/// webhook again, for nobody acknowledged it.
async fn die_over_a_webhook(postgres_goes_on: bool) {
    let mut app = TestApp::quick(&[("RUN_JOBS", "false")]).await;
    let link = app.created().await;
    eventually("the webhook of its creation is here", async || {
        app.told(&link["id"], "webhook").await.pop()
    })
    .await;
    let lock = app.lock("SELECT FROM payment_links FOR UPDATE").await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let statement = app.blocked("WITH intent AS").await;
    app.service.kill().await;
    if !postgres_goes_on {
        app.disconnect(statement).await;
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
    assert_eq!(of_this, ["applied"], "once, whoever came first");
}

#[tokio::test]
async fn killed_over_a_webhook_that_was_not_stored_its_redelivery_is_applied() {
    die_over_a_webhook(false).await;
}

#[tokio::test]
async fn killed_over_a_webhook_that_was_stored_its_redelivery_changes_nothing() {
    die_over_a_webhook(true).await;
}

#[tokio::test]
async fn killed_while_it_looks_at_dojo_the_link_is_looked_at_by_the_next() {
    let mut app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.sandbox
        .next("get", "latencyAfter", json!({"latencyMs": 5000}))
        .await;
    app.all_are_due().await;
    eventually("it looks", async || app.sandbox.requests("get").await.pop()).await;
    app.service.kill().await;
    // Of the database: by the time that a busy machine has started the service again, the lease may be over.
    let held: String = sqlx::query_scalar("SELECT status FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(held, "Created");
    app.restart().await;
    app.link_with_status(&link["id"], "Captured").await;
    assert_eq!(app.told(&link["id"], "reconciled").await.len(), 1);
}
