//! Orphaned intents, which no link claims, and surplus intents.

use std::time::Duration;

use super::{
    Error, PgPool,
    leases::{Lease, LeaseRequest, claim, release},
    timeline::{kind_word, record},
    to_json,
};
use crate::payment_link::{
    PaymentLinkId,
    timeline::{Cause, Kind, SurplusDetail},
};

/// A claimed intent that must be read from Dojo.
#[derive(Debug, Clone)]
pub struct OrphanedIntent {
    pub id: String,
    /// The link that it is surplus for. `None`: it is not known whose it is.
    pub surplus_of: Option<PaymentLinkId>,
    /// Since it was first seen here.
    pub age: Duration,
    pub lease: Lease,
}

/// Claims up to `limit` intents that are due.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<OrphanedIntent>, Error> {
    let lease = LeaseRequest::new(lease);
    let rows = claim!(
        "payment_intents",
        "true",
        r#"SELECT id, surplus_of, extract(epoch FROM now() - first_seen_at)::float8 AS "age!",
                  leased_until AS "leased_until!"
           FROM claimed"#,
        account,
        lease,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| OrphanedIntent {
            id: row.id,
            surplus_of: row.surplus_of.map(PaymentLinkId::from_uuid),
            age: Duration::from_secs_f64(row.age.max(0.0)),
            lease: lease.granted(row.leased_until),
        })
        .collect())
}

/// Stores that there is nothing more to do about an orphaned intent.
pub async fn resolve(pool: &PgPool, id: &str) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE payment_intents SET due_at = NULL, leased_until = NULL
         WHERE id = $1 AND surplus_of IS NULL",
        id
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Releases an intent, to be read again after `wait`.
pub async fn release(pool: &PgPool, orphan: &OrphanedIntent, wait: Duration) -> Result<(), Error> {
    release!(
        "payment_intents",
        "due_at IS NOT NULL",
        orphan.id,
        orphan.lease,
        Some(wait)
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What is known about the surplus intents of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surplus {
    /// There are none, or all are canceled.
    None,
    /// One may still be paid.
    Open,
    /// One was paid.
    Paid,
}

/// Whether surplus intents of this link can be paid, or were.
pub async fn surplus(pool: &PgPool, id: PaymentLinkId) -> Result<Surplus, Error> {
    let row = sqlx::query!(
        r#"SELECT EXISTS (
               SELECT FROM payment_intents WHERE surplus_of = $1 AND due_at IS NOT NULL
           ) AS "open!", EXISTS (
               SELECT FROM payment_link_events WHERE payment_link_id = $1 AND kind = $2
           ) AS "paid!""#,
        id.uuid(),
        kind_word(Kind::SurplusPaid)
    )
    .fetch_one(pool)
    .await?;
    Ok(match row {
        row if row.paid => Surplus::Paid,
        row if row.open => Surplus::Open,
        _ => Surplus::None,
    })
}

/// Stores that there is nothing more to do about a surplus intent, and records `kind` in its link's timeline, once.
pub async fn resolve_surplus(
    pool: &PgPool,
    id: &str,
    kind: Kind,
    cause: &Cause,
) -> Result<(), Error> {
    record!(
        kind,
        cause,
        "WITH resolved AS (
             UPDATE payment_intents SET due_at = NULL, leased_until = NULL
             WHERE id = $3 AND due_at IS NOT NULL AND surplus_of IS NOT NULL
             RETURNING surplus_of
         ), link AS (
             -- Locked, so that the entry has the status that the link has when it is written.
             SELECT id, status FROM payment_links WHERE id IN (SELECT surplus_of FROM resolved) FOR UPDATE
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, $4::jsonb AS detail FROM link
         )",
        id,
        to_json(&SurplusDetail {
            payment_intent_id: id
        })?
    )
    .execute(pool)
    .await?;
    Ok(())
}
