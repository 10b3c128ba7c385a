//! The database side of creating a link: saving it before Dojo is called, and the outcome afterwards.
//!
//! Each function is one short transaction. None of them is open while Dojo is called.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::{
    Error, PgPool, from_json,
    leases::{Lease, LeaseRequest},
    parse_stored,
    timeline::{count_status_change, record},
    to_json,
};
use crate::payment_link::{
    Environment, Failure, NewPaymentLink, PaymentLinkId, Progress, ShortCode, Status,
    timeline::{Cause, Kind, ResponseLostDetail},
};

/// A link to be saved.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    pub id: PaymentLinkId,
    pub environment: Environment,
    pub new: &'a NewPaymentLink,
    /// The name of the client that requested it.
    pub created_by: &'a str,
    pub cause: &'a Cause,
    /// How long no other worker may work on the link: longer than creating it at Dojo can take.
    pub lease: Duration,
    /// The base URL of the link's short address. Without it, the link gets none.
    pub short_url_base: Option<&'a str>,
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
    New(PaymentLinkId, Lease),
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
    pub state: CreationState,
}

/// How far the creation of a link is.
#[derive(Debug)]
pub enum CreationState {
    /// The outcome isn't known yet.
    Pending(Progress),
    /// Nothing was created.
    Failed(Failure),
    Created,
}

/// Saves a link as `Pending`, unless its idempotency key was used before.
///
/// A primary key in Postgres decides, so exactly one of any number of requests with the same key, on any number of replicas,
/// is the first. If the earlier request failed for a reason that may pass, its link is used again.
pub async fn begin(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Admission, Error> {
    // A key that was in use a moment ago may be free by the time it is read, because its first request failed. That can
    // happen again only if yet another request used it in between.
    for _ in 0..3 {
        if let Some(lease) = save(pool, draft, key).await? {
            return Ok(Admission::New(draft.id, lease));
        }
        let Some(key) = key else { continue };
        let Some(earlier) = earlier(pool, key).await? else {
            continue;
        };
        if let Earlier::Same(EarlierRequest {
            link_id,
            state: CreationState::Failed(failure),
        }) = &earlier
            && !failure.reason.is_final()
        {
            let id = *link_id;
            if let Some(lease) = reopen(pool, &Draft { id, ..*draft }).await? {
                return Ok(Admission::New(id, lease));
            }
            // Another copy of this request was faster.
            continue;
        }
        return Ok(Admission::Repeated(earlier));
    }
    Ok(Admission::Repeated(Earlier::Same(EarlierRequest {
        link_id: draft.id,
        state: CreationState::Pending(Progress::default()),
    })))
}

/// Makes a link whose creation failed pending again, for a repetition of the request. Returns the lease on it, or `None` if
/// another repetition was faster.
async fn reopen(pool: &PgPool, draft: &Draft<'_>) -> Result<Option<Lease>, Error> {
    let lease = LeaseRequest::new(draft.lease);
    let reopened = record!(
        Kind::Requested,
        draft.cause,
        r#"WITH link AS (
             UPDATE payment_links
             SET status = 'Pending', failure = NULL, request = $4, updated_at = now(), revision = revision + 1,
                 due_at = now(), leased_until = now() + make_interval(secs => $5),
                 asked_until = now() + make_interval(secs => $5)
             WHERE id = $3 AND status = 'Failed' AND NOT failure->>'reason' = ANY($6)
             RETURNING id, status, leased_until
         ), entry AS (
             SELECT id AS link_id, 'Failed' AS before, status AS after, NULL::jsonb AS detail FROM link
         )"# => r#"
         SELECT leased_until AS "until!" FROM link"#,
        draft.id.uuid(),
        to_json(draft.new)?,
        lease.seconds(),
        &["rejected", "refused", "notCreated", "notDone"] as &[&str]
    )
    .fetch_optional(pool)
    .await?;
    Ok(reopened.map(|row| {
        count_status_change(Status::Pending, draft.cause.name());
        lease.granted(row.until)
    }))
}

/// Claims the key and saves the link, both or neither. Returns the lease on the link, or `None` if the key is in use.
async fn save(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Option<Lease>, Error> {
    let Draft { id, new, .. } = draft;
    let code = ShortCode::generate();
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
        ), address AS (
            INSERT INTO short_addresses (code, base_url, payment_link_id)
            SELECT $18, $19, id FROM link WHERE $19::text IS NOT NULL
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
        code.as_str(),
        draft.short_url_base,
    )
    .fetch_optional(pool)
    .await?;
    Ok(saved.map(|row| {
        count_status_change(Status::Pending, draft.cause.name());
        lease.granted(row.until)
    }))
}

/// The earlier request with this key. `None` if there was none.
pub async fn earlier(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Earlier>, Error> {
    let row = sqlx::query!(
        r#"SELECT known.request_hash, link.id AS "link_id?", link.status AS "status?", link.failure,
                  extract(epoch FROM now() - link.asked_until)::float8 AS since_sent,
                  extract(epoch FROM link.due_at - now())::float8 AS until_next
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
    let (Some(link_id), Some(status)) = (row.link_id, row.status) else {
        return Ok(None);
    };
    Ok(Some(Earlier::Same(EarlierRequest {
        link_id: PaymentLinkId::from_uuid(link_id),
        state: creation_state(
            &status,
            row.failure,
            progress(row.since_sent, row.until_next),
        )?,
    })))
}

/// How far the creation of this link is. `None` if there is no such link.
pub async fn state_of(pool: &PgPool, id: PaymentLinkId) -> Result<Option<CreationState>, Error> {
    let row = sqlx::query!(
        r#"SELECT status, failure, extract(epoch FROM now() - asked_until)::float8 AS since_sent,
                  extract(epoch FROM due_at - now())::float8 AS until_next
           FROM payment_links WHERE id = $1"#,
        id.uuid()
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        creation_state(
            &row.status,
            row.failure,
            progress(row.since_sent, row.until_next),
        )
    })
    .transpose()
}

fn creation_state(
    status: &str,
    failure: Option<Value>,
    progress: Progress,
) -> Result<CreationState, Error> {
    Ok(match parse_stored(status)? {
        Status::Pending => CreationState::Pending(progress),
        Status::Failed => CreationState::Failed(from_json(failure.unwrap_or_default())?),
        _ => CreationState::Created,
    })
}

/// `since_sent` is negative while a call may be under way. It is the time since the column `asked_until`, which has the
/// former name of `sent_until`.
pub(super) fn progress(since_sent: Option<f64>, until_next: Option<f64>) -> Progress {
    let positive = |seconds: Option<f64>| {
        Duration::try_from_secs_f64(seconds.unwrap_or(0.0).max(0.0)).unwrap_or_default()
    };
    Progress {
        since_sent: positive(since_sent),
        until_next: positive(until_next),
        is_lost: since_sent.is_some_and(|since| since >= 0.0),
    }
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
    late_check: Option<Duration>,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = record!(
        Kind::Failed,
        cause,
        "WITH failed AS (
             UPDATE payment_links
             SET status = 'Failed', failure = $5, updated_at = now(), leased_until = NULL,
                 due_at = now() + make_interval(secs => $6),
                 revision = revision + 1, request = request #- '{customer,secret}'
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING id, status, failure
         ), entry AS (
             SELECT id AS link_id, 'Pending' AS before, status AS after, failure AS detail FROM failed
         )",
        id.uuid(),
        lease.until,
        to_json(failure)?,
        late_check.map(|wait| wait.as_secs_f64()),
    )
    .execute(pool)
    .await?;
    let failed = recorded.rows_affected() == 1;
    if failed {
        count_status_change(Status::Failed, cause.name());
    }
    Ok(failed)
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
        to_json(&ResponseLostDetail { reason })?
    )
    .execute(pool)
    .await?;
    Ok(())
}
