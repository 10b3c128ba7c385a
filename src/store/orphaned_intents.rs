//! Intents that no link is known for, and intents that are one too many.

use std::time::Duration;

use serde_json::json;

use super::{Error, PgPool, to_json};
use crate::payment_link::{
    PaymentLinkId,
    timeline::{Cause, Kind},
};

/// An intent that has to be asked about, claimed.
#[derive(Debug, Clone)]
pub struct OrphanedIntent {
    /// Dojo's id for it.
    pub id: String,
    /// The link that it is one too many for. `None`: it is not known whose it is.
    pub surplus_of: Option<PaymentLinkId>,
    /// Whether it was first heard of less than a day ago.
    pub recent: bool,
}

/// Claims up to `limit` intents that are due. Nobody else gets them until the lease is over.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<OrphanedIntent>, Error> {
    let rows = sqlx::query!(
        r#"UPDATE payment_intents SET leased_until = now() + make_interval(secs => $2)
         WHERE id IN (
             SELECT id FROM payment_intents
             WHERE due_at <= now() AND account = $1 AND (leased_until IS NULL OR leased_until <= now())
             ORDER BY due_at
             LIMIT $3
             FOR UPDATE SKIP LOCKED
         )
         RETURNING id, surplus_of, first_seen_at > now() - interval '1 day' AS "recent!""#,
        account,
        lease.as_secs_f64(),
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| OrphanedIntent {
            id: row.id,
            surplus_of: row.surplus_of.map(PaymentLinkId::from_uuid),
            recent: row.recent,
        })
        .collect())
}

/// Notes that there is nothing more to do about an intent.
pub async fn settle(pool: &PgPool, id: &str) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE payment_intents SET due_at = NULL, leased_until = NULL
         WHERE id = $1 AND surplus_of IS NULL",
        id
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Gives an intent back, to be asked about again after `wait`.
pub async fn ask_later(pool: &PgPool, id: &str, wait: Duration) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE payment_intents SET due_at = now() + make_interval(secs => $2), leased_until = NULL
         WHERE id = $1 AND due_at IS NOT NULL",
        id,
        wait.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Settles a surplus intent and tells of it in its link's timeline, once.
pub async fn settle_surplus(
    pool: &PgPool,
    id: &str,
    kind: Kind,
    cause: &Cause,
) -> Result<(), Error> {
    sqlx::query!(
        "WITH settled AS (
             UPDATE payment_intents SET due_at = NULL, leased_until = NULL
             WHERE id = $1 AND due_at IS NOT NULL AND surplus_of IS NOT NULL
             RETURNING surplus_of
         ), link AS (
             -- Locked, so that the entry tells of the status that the link has when it is written.
             SELECT id, status FROM payment_links WHERE id IN (SELECT surplus_of FROM settled) FOR UPDATE
         )
         INSERT INTO payment_link_events
             (payment_link_id, kind, status_before, status_after, cause, detail)
         SELECT link.id, $2, link.status, link.status, $3, $4
         FROM link",
        id,
        kind.as_str(),
        to_json(cause)?,
        json!({"paymentIntentId": id})
    )
    .execute(pool)
    .await?;
    Ok(())
}
