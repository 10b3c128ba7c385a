//! The last check of the background: with the others frozen, each replica must get every kind of background work done. That
//! finds a job that no longer runs.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    people::text,
    promise::{Promise, broken},
    stage::{Replica, Result, Stage},
};

/// How long a job may take for one item. Creation recovery first waits for `RECOVERY_SETTLE`.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks that each replica does background work while the others can't.
pub async fn each_replica_works(stage: &Stage) -> Result {
    for (number, replica) in stage.replicas.iter().enumerate() {
        let others = || stage.replicas.iter().filter(|one| one.name != replica.name);
        for other in others() {
            other.shut_off(true);
            other.freeze().await?;
        }
        let works = works(stage, replica, number).await;
        stage
            .dojo
            .control("search-lag", json!({"seconds": 0}))
            .await?;
        for other in others() {
            other.thaw().await?;
            other.shut_off(false);
        }
        works?;
    }
    Ok(())
}

async fn works(stage: &Stage, replica: &Replica, number: usize) -> Result {
    let dojo = &stage.dojo;
    let order = format!("alone-{number}");

    // The response is lost and search doesn't show the intent, so creation recovery creates it again.
    dojo.control("search-lag", json!({"seconds": 600})).await?;
    dojo.control("faults", json!({"operation": "create", "kind": "cutAfter"}))
        .await?;
    let wanted = json!({
        "amount": {"value": 1000, "currencyCode": "GBP"}, "reference": order,
        "metadata": {"order": order},
    });
    let link = outcome(
        stage,
        replica,
        "creation_recovery",
        &order,
        "/v1/payment-links",
        &wanted,
    )
    .await?;
    let (id, intent) = (text(&link["id"]), text(&link["paymentIntentId"]));

    // The webhook is lost and the link is due, so reconciliation must find the payment.
    let unheard = json!({"kind": "drop", "event": "payment_intent.status_updated", "count": 1});
    dojo.control("webhook-faults", unheard).await?;
    dojo.control(&format!("payment-intents/{intent}/pay"), json!({}))
        .await?;
    sqlx::query("UPDATE payment_links SET due_at = now() WHERE payment_intent_id = $1")
        .bind(intent)
        .execute(&stage.database.pool)
        .await?;
    eventually(stage, replica, "reconciliation", async || {
        let captured: Option<bool> = sqlx::query_scalar(
            "SELECT status = 'Captured' FROM payment_links WHERE payment_intent_id = $1",
        )
        .bind(intent)
        .fetch_optional(&stage.database.pool)
        .await?;
        Ok(captured == Some(true))
    })
    .await?;

    // The response to a refund is lost, so operation recovery must resolve it.
    dojo.control("faults", json!({"operation": "refund", "kind": "cutAfter"}))
        .await?;
    let refund = json!({"amount": {"value": 400, "currencyCode": "GBP"}});
    let path = format!("/v1/payment-links/{id}/refunds");
    outcome(stage, replica, "operation_recovery", &order, &path, &refund).await?;

    // The intent that was created first is surplus, so the job `orphaned_intents` must cancel it.
    eventually(stage, replica, "orphaned_intents", async || {
        let path = format!("payment-intents?metadata.order={order}");
        let intents = dojo.look(&path).await?;
        let mut others = intents.iter().filter(|one| one["id"] != intent);
        Ok(others.all(|other| other["status"] == "Canceled"))
    })
    .await?;

    // There is an old webhook, which came before all others. The job `pruning` must remove it, although it has just ended a
    // pass.
    sqlx::query(
        "WITH turn AS (UPDATE pruning SET position = -2, due_at = now())
         INSERT INTO webhook_events (id, account, dedup_key, body, received_at, last_received_at)
         OVERRIDING SYSTEM VALUE
         VALUES (-1, 'default', 'old', '', now() - interval '500 days', now() - interval '500 days')",
    )
    .execute(&stage.database.pool)
    .await?;
    eventually(stage, replica, "pruning", async || {
        let removed =
            sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM webhook_events WHERE id = -1)");
        let removed: bool = removed.fetch_one(&stage.database.pool).await?;
        Ok(removed)
    })
    .await
}

/// Repeats the request until its outcome is known, which is up to `job`.
async fn outcome(
    stage: &Stage,
    replica: &Replica,
    job: &str,
    key: &str,
    path: &str,
    body: &Value,
) -> Result<Value> {
    let mut link = Value::Null;
    eventually(stage, replica, job, async || {
        let request = stage.http.post(format!("{}{path}", replica.url));
        let request = request.bearer_auth(stage.key());
        let Ok(answer) = request
            .header("idempotency-key", format!("{key} {path}"))
            .json(body)
            .send()
            .await
        else {
            return Ok(false);
        };
        let known = matches!(answer.status(), StatusCode::OK | StatusCode::CREATED);
        if known {
            link = answer.json().await?;
        }
        Ok(known)
    })
    .await?;
    Ok(link)
}

async fn eventually(
    stage: &Stage,
    replica: &Replica,
    job: &str,
    mut happened: impl AsyncFnMut() -> Result<bool>,
) -> Result {
    let patience = stage.patience(PATIENCE);
    let limit = Instant::now() + patience;
    while !happened().await? {
        if Instant::now() > limit {
            let what = format!("its job `{job}` got nothing done in {patience:?} without trouble");
            return broken(Promise::JobsGoOn, &replica.name, what);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
