//! The database side of creating a link: saving it before Dojo is called, and the outcome afterwards.
//!
//! Each function is one short transaction. None of them is open while Dojo is called.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{
    Error, PgPool, from_json,
    leases::{Lease, LeaseRequest},
    timeline::record,
    to_json,
};
use crate::payment_link::{
    Environment, Failure, NewPaymentLink, PaymentLinkId, Status,
    timeline::{Cause, Kind},
};

/// A link to be saved.
#[derive(Debug)]
pub struct Draft<'a> {
    pub id: PaymentLinkId,
    pub environment: Environment,
    pub new: &'a NewPaymentLink,
    /// The name of the client that requested it.
    pub created_by: &'a str,
    pub cause: &'a Cause,
    /// How long no other worker may work on the link: longer than creating it at Dojo can take.
    pub lease: Duration,
}

/// An `Idempotency-Key` that came with a request.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// The client that it belongs to.
    pub client_id: Uuid,
    pub key: String,
    /// SHA-256 of the request.
    pub request_hash: [u8; 32],
}

/// Whether a request to create a link is new or a repetition.
#[derive(Debug)]
pub enum Admission {
    /// The link is saved. Dojo must be called before this lease expires.
    New(Lease),
    /// An earlier request had the same idempotency key.
    Repeated(Earlier),
}

/// An earlier request with the same idempotency key.
#[derive(Debug)]
pub enum Earlier {
    Same(EarlierRequest),
    /// It was a different request, so the key must not be used for this one.
    Other,
}

/// The state of an earlier, identical request.
#[derive(Debug)]
pub struct EarlierRequest {
    pub link_id: PaymentLinkId,
    /// The response, byte for byte, if the link was created.
    pub response_body: Option<String>,
    /// Why the link was not created, if it failed.
    pub failure: Option<Failure>,
}

/// Saves a link as `Pending`, unless its idempotency key was used before.
///
/// A primary key in Postgres decides, so exactly one of any number of requests with the same key, on any number of replicas,
/// is the first. A key whose last request provably created nothing is free for the same request.
pub async fn begin(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Admission, Error> {
    // A key that was in use a moment ago may be free by the time it is read, because its first request failed. That can
    // happen again only if yet another request used it in between.
    for _ in 0..3 {
        if let Some(lease) = save(pool, draft, key).await? {
            return Ok(Admission::New(lease));
        }
        if let Some(key) = key
            && let Some(earlier) = earlier(pool, key).await?
        {
            return Ok(Admission::Repeated(earlier));
        }
    }
    Ok(Admission::Repeated(Earlier::Same(EarlierRequest {
        link_id: draft.id,
        response_body: None,
        failure: None,
    })))
}

/// Claims the key and saves the link, both or neither. Returns the lease on the link, or `None` if the key is in use.
async fn save(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Option<Lease>, Error> {
    let Draft { id, new, .. } = draft;
    let lease = LeaseRequest::new(draft.lease);
    let saved = record!(
        Kind::Requested,
        draft.cause,
        r#"
        WITH claim AS (
            INSERT INTO idempotency_keys AS known (api_key_id, key, request_hash, payment_link_id)
            SELECT $3, $4, $5, $6 WHERE $4::text IS NOT NULL
            ON CONFLICT (api_key_id, key) DO UPDATE SET payment_link_id = EXCLUDED.payment_link_id
                WHERE known.payment_link_id IS NULL AND known.request_hash = EXCLUDED.request_hash
            RETURNING true
        ), link AS (
            INSERT INTO payment_links
                (id, account, environment, status, request, reference, currency, amount, tips_amount,
                 expire_at, created_by, due_at, leased_until, asked_until)
            SELECT $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, now(), lease.until, lease.until
            FROM (SELECT now() + make_interval(secs => $17) AS until) AS lease
            WHERE $4::text IS NULL OR EXISTS (SELECT FROM claim)
            RETURNING id, status, leased_until
        ), entry AS (
            SELECT id AS link_id, NULL AS before, status AS after, NULL::jsonb AS detail FROM link
        )"# => r#"
        SELECT leased_until AS "until!" FROM link"#,
        key.map(|key| key.client_id),
        key.map(|key| key.key.as_str()),
        key.map(|key| key.request_hash.as_slice()),
        id.uuid(),
        new.account,
        draft.environment.as_str(),
        Status::Pending.as_str(),
        to_json(new)?,
        new.terms.reference,
        new.amount.currency_code.code(),
        new.amount.value,
        new.tips_amount.map(|tips| tips.value),
        new.terms.expire_at,
        draft.created_by,
        lease.seconds(),
    )
    .fetch_optional(pool)
    .await?;
    Ok(saved.map(|row| lease.granted(row.until)))
}

/// The earlier request with this key. `None` if there was none, or if it failed and left the key free.
pub async fn earlier(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Earlier>, Error> {
    let row = sqlx::query!(
        r#"SELECT known.request_hash, known.payment_link_id AS "link_id?", known.response_body, link.failure
           FROM idempotency_keys known LEFT JOIN payment_links link ON link.id = known.payment_link_id
           WHERE known.api_key_id = $1 AND known.key = $2"#,
        key.client_id,
        key.key
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.request_hash != key.request_hash {
        return Ok(Some(Earlier::Other));
    }
    let Some(link_id) = row.link_id else {
        return Ok(None);
    };
    Ok(Some(Earlier::Same(EarlierRequest {
        link_id: PaymentLinkId::from_uuid(link_id),
        response_body: row.response_body,
        failure: row.failure.map(from_json).transpose()?,
    })))
}

/// Whether a request with the same idempotency key may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Retries get the same failure.
    Final,
    /// The key is free for another attempt.
    Allowed,
}

/// Marks a pending link as failed. This requires proof that nothing was created, obtained under `lease`. Returns `false`, and
/// changes nothing, if the link is no longer under that lease: another worker has taken it over, and its result stands.
///
/// `late_check` is how long to wait before searching once more for an intent that appears late, if a response was lost before.
pub async fn fail(
    pool: &PgPool,
    id: PaymentLinkId,
    lease: Lease,
    failure: &Failure,
    retry: Retry,
    late_check: Option<Duration>,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = record!(
        Kind::Failed,
        cause,
        "WITH failed AS (
             UPDATE payment_links
             SET status = 'Failed', failure = $5, updated_at = now(), leased_until = NULL,
                 due_at = now() + make_interval(secs => $7),
                 revision = revision + 1, request = request #- '{customer,secret}'
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING id, status, failure
         ), freed AS (
             UPDATE idempotency_keys SET payment_link_id = NULL
             WHERE $6 AND payment_link_id IN (SELECT id FROM failed)
         ), entry AS (
             SELECT id AS link_id, 'Pending' AS before, status AS after, failure AS detail FROM failed
         )",
        id.uuid(),
        lease.until,
        to_json(failure)?,
        retry == Retry::Allowed,
        late_check.map(|wait| wait.as_secs_f64()),
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Stores that Dojo's response was lost. The link stays pending, and creation recovery finds out what happened.
///
/// Has no effect if the link is no longer under `lease`, the one under which Dojo was called.
pub async fn record_lost_response(
    pool: &PgPool,
    id: PaymentLinkId,
    lease: Lease,
    reason: &str,
    cause: &Cause,
) -> Result<(), Error> {
    record!(
        Kind::ResponseLost,
        cause,
        "WITH released AS (
             UPDATE payment_links
             SET leased_until = NULL, asked_until = now(), due_at = now() + interval '1 second'
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING id, status
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, $5::jsonb AS detail FROM released
         )",
        id.uuid(),
        lease.until,
        json!({"reason": reason})
    )
    .execute(pool)
    .await?;
    Ok(())
}
