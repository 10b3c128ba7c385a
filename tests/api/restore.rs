//! A restore to an earlier moment: what repairs itself and what does not, as docs/operations.md says.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    commands::{create_api_key, revoke_api_key},
    support::{TestApp, eventually, ten_pounds, text},
};

/// Copies the database, as a backup does. Returns the copy's URL.
async fn backup(database_url: &str) -> String {
    let name = database_url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap();
    let copy = format!("{name}_backup");
    let mut elsewhere = PgConnection::connect(&database_url.replace(name, "postgres"))
        .await
        .unwrap();
    // Copying requires that nothing else is connected.
    sqlx::query("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1")
        .bind(name)
        .execute(&mut elsewhere)
        .await
        .unwrap();
    let statement = format!("CREATE DATABASE {copy} TEMPLATE {name}");
    sqlx::query(AssertSqlSafe(statement))
        .execute(&mut elsewhere)
        .await
        .unwrap();
    database_url.replace(name, &copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_known_links_are_reconciled_and_later_ones_left_alone() {
    let mut before = TestApp::quick(&[]).await;
    let known = before.created().await;
    create_api_key(&before, "reader", "links:read");
    before.service.kill().await;
    let copy = backup(&before.database_url).await;
    before.restart().await;

    // Changes that are not in the backup: a payment, a link with an idempotency key, an API key that is revoked.
    revoke_api_key(&before, "reader");
    let lost = before
        .create_with_key("order-2", &ten_pounds("Order 2"))
        .await;
    let lost = lost.expect(201).json();
    before.sandbox.pay(&known["paymentIntentId"]).await;
    before.link_with_status(&known["id"], "Captured").await;
    before.service.kill().await;

    before.database_url = copy;
    before.pool.close().await;
    before.restart().await;
    let after = before;
    let pool = sqlx::PgPool::connect(&after.database_url).await.unwrap();
    // The next reconciliation may be hours away, because its webhook was still expected.
    sqlx::query("UPDATE payment_links SET due_at = now() WHERE due_at IS NOT NULL")
        .execute(&pool)
        .await
        .unwrap();
    after.link_with_status(&known["id"], "Captured").await;
    after
        .get(&format!("/v1/payment-links/{}", text(&lost["id"])))
        .await
        .expect(404);

    // The customer pays the link that is missing here. The webhook is stored, and nothing else happens.
    after.sandbox.pay(&lost["paymentIntentId"]).await;
    eventually("its intent was read and left alone", async || {
        let settled: Option<bool> = sqlx::query_scalar(
            "SELECT due_at IS NULL FROM payment_intents WHERE id = $1 AND payment_link_id IS NULL",
        )
        .bind(text(&lost["paymentIntentId"]))
        .fetch_optional(&pool)
        .await
        .unwrap();
        settled.unwrap_or_default().then_some(())
    })
    .await;
    let found: Vec<(String, String)> = sqlx::query_as(
        "SELECT payment_intent_id, max(payment_status) FROM webhook_events
         WHERE payment_link_id IS NULL AND payment_intent_id IS NOT NULL GROUP BY payment_intent_id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let id = text(&lost["paymentIntentId"]).to_owned();
    assert_eq!(found, [(id, "Captured".to_owned())]);
    let intent = after.sandbox.intent(&lost["paymentIntentId"]).await;
    assert_eq!(intent["status"], "Captured");
    assert_eq!(intent["metadata"]["paymentLinkId"], lost["id"]);

    // Repeating a request from that time creates a second link, and a revoked key is active again.
    let again = after
        .create_with_key("order-2", &ten_pounds("Order 2"))
        .await;
    assert_ne!(
        again.expect(201).json()["paymentIntentId"],
        lost["paymentIntentId"]
    );
    let active: Vec<String> =
        sqlx::query_scalar("SELECT name FROM api_keys WHERE revoked_at IS NULL ORDER BY name")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(active, ["bootstrap", "reader"]);
}
