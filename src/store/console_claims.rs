//! How much of a payment one person may move at the console without the approval of another.
//!
//! Captures of one link count together, and so do its refunds. What counts is what was moved, what is under way, and what is
//! about to be: a claim is stored before the request is sent, so that two requests at the same moment see each other.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction, from_json,
    operations::{captures_of, refunds_of},
};
use crate::payment_link::{
    Capture, PaymentLinkId,
    operation::{ActionKind, OurCapture, captured_and_under_way},
    refundable::Refunds,
};

/// How long a claim counts if nothing ends it. Longer than it takes a request to save its operation.
const LONGEST: Duration = Duration::from_mins(5);

/// A capture or a refund that one person is about to request.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The client of the person.
    pub client_id: Uuid,
    pub idempotency_key: &'a str,
    pub link_id: PaymentLinkId,
    pub kind: ActionKind,
    /// In minor units, including tips.
    pub amount: i64,
}

/// How much was moved by operations of this kind, and is under way, in minor units.
pub async fn moved(pool: &PgPool, link_id: PaymentLinkId, kind: ActionKind) -> Result<i64, Error> {
    let mut transaction = pool.begin().await?;
    moved_in(&mut transaction, link_id, kind).await
}

/// Whether one person may request an operation alone.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    /// It would exceed the limit.
    Refused,
    /// It counts from now on. The time identifies the claim.
    Claimed(OffsetDateTime),
    /// A request with the same key has claimed it, which may still be under way. Their claim ends by itself.
    Repeated,
}

/// Claims an amount, if it doesn't exceed the limit together with what was moved, what is under way, and what others claim.
///
/// The link is locked meanwhile, as when an operation is saved. So of any number of requests at the same moment, each counts
/// those before it. Of several with the same key, one takes effect, and it isn't known which, so the largest amount counts.
pub async fn claim(pool: &PgPool, claim: &Claim<'_>, limit: i64) -> Result<Verdict, Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query!(
        "SELECT id FROM payment_links WHERE id = $1 FOR UPDATE",
        claim.link_id.uuid()
    )
    .fetch_optional(&mut *transaction)
    .await?;
    // In statements of their own, which see what was committed while this one waited for the lock.
    let moved = moved_in(&mut transaction, claim.link_id, claim.kind).await?;
    let claimed = claimed_by_others(&mut transaction, claim).await?;
    let total = [moved, claimed, claim.amount]
        .into_iter()
        .fold(0, i64::saturating_add);
    if total > limit {
        return Ok(Verdict::Refused);
    }
    sqlx::query!(
        "DELETE FROM console_claims WHERE (client_id, idempotency_key) IN (
             SELECT client_id, idempotency_key FROM console_claims
             WHERE claimed_at <= now() - make_interval(secs => $1)
             FOR UPDATE SKIP LOCKED
         )",
        LONGEST.as_secs_f64()
    )
    .execute(&mut *transaction)
    .await?;
    // A repetition changes the time, so that the request before it no longer ends the claim.
    let stored = sqlx::query!(
        r#"INSERT INTO console_claims AS claim (client_id, idempotency_key, payment_link_id, kind, amount)
           VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (client_id, idempotency_key) DO UPDATE SET
               amount = greatest(claim.amount, EXCLUDED.amount), claimed_at = now()
               WHERE claim.payment_link_id = EXCLUDED.payment_link_id AND claim.kind = EXCLUDED.kind
           RETURNING claimed_at, xmax = 0 AS "is_new!""#,
        claim.client_id,
        claim.idempotency_key,
        claim.link_id.uuid(),
        claim.kind.as_str(),
        claim.amount
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(match stored {
        Some(row) if row.is_new => Verdict::Claimed(row.claimed_at),
        Some(_) => Verdict::Repeated,
        // The key belongs to another form.
        None => Verdict::Refused,
    })
}

/// Ends the claim of this time, whose request has ended. What it has led to counts from now on.
pub async fn release(
    pool: &PgPool,
    client_id: Uuid,
    idempotency_key: &str,
    claimed_at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "DELETE FROM console_claims WHERE client_id = $1 AND idempotency_key = $2 AND claimed_at = $3",
        client_id,
        idempotency_key,
        claimed_at
    )
    .execute(pool)
    .await?;
    Ok(())
}

async fn moved_in(
    transaction: &mut PgTransaction,
    link_id: PaymentLinkId,
    kind: ActionKind,
) -> Result<i64, Error> {
    let row = sqlx::query!(
        "SELECT refunded_amount, refunds_elsewhere, captures FROM payment_links WHERE id = $1",
        link_id.uuid()
    )
    .fetch_one(&mut **transaction)
    .await?;
    match kind {
        ActionKind::Refund => {
            let refunds = Refunds {
                ours: refunds_of(&mut **transaction, link_id).await?,
                elsewhere: row.refunds_elsewhere,
                read_at: None,
            };
            Ok(refunds.at_least(row.refunded_amount))
        }
        ActionKind::Capture => {
            let captures: Vec<Capture> = from_json(row.captures)?;
            let ours: Vec<OurCapture> = captures_of(&mut **transaction, link_id).await?;
            Ok(captured_and_under_way(&captures, &ours))
        }
        _ => Ok(0),
    }
}

/// What other requests claim whose operations aren't saved yet.
async fn claimed_by_others(
    transaction: &mut PgTransaction,
    claim: &Claim<'_>,
) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT coalesce(sum(amount), 0)::bigint AS "sum!" FROM console_claims other
           WHERE payment_link_id = $1 AND kind = $2 AND (client_id, idempotency_key) <> ($3, $4)
             AND claimed_at > now() - make_interval(secs => $5)
             AND NOT EXISTS (
                 SELECT FROM idempotency_keys
                 WHERE api_key_id = other.client_id AND key = other.idempotency_key AND operation_id IS NOT NULL
             )"#,
        claim.link_id.uuid(),
        claim.kind.as_str(),
        claim.client_id,
        claim.idempotency_key,
        LONGEST.as_secs_f64()
    )
    .fetch_one(&mut **transaction)
    .await?)
}
