//! The database side of creating a link: saving it before Dojo is called, and the outcome afterwards.
//!
//! Each function is one short transaction. None of them is open while Dojo is called.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Executor, Postgres};
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction, from_json,
    leases::{Lease, LeaseRequest},
    parse_stored,
    timeline::{count_status_change, record},
    to_json,
};
use crate::payment_link::{
    Environment, Failure, NewPaymentLink, PaymentLinkId, Progress, ShortCode, Status,
    timeline::{Cause, Kind, RenewalDetail, ResponseLostDetail},
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
    /// The link whose place this one takes.
    pub replaces: Option<PaymentLinkId>,
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
    /// Another link has taken the place already, and has not failed.
    Taken(Successor),
    /// The personal data of the link whose place it should take was erased, so the terms may lack something.
    ReplacedErased,
}

/// What became of an attempt to save a link.
enum Saved {
    Leased(Lease),
    /// The idempotency key is in use.
    KeyInUse,
    /// Another link has taken the place already, and has not failed.
    Taken(Successor),
    ReplacedErased,
}

impl From<Option<Lease>> for Saved {
    fn from(lease: Option<Lease>) -> Self {
        lease.map_or(Self::KeyInUse, Self::Leased)
    }
}

/// An earlier request with the same idempotency key.
#[derive(Debug)]
pub enum Earlier {
    Same(EarlierRequest),
    /// It was a different request, so the key must not be used for this one.
    Other,
    /// Its link's personal data was erased, and the key with it.
    Erased,
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
        let saved = match draft.replaces {
            Some(replaced) => renew(pool, draft, replaced, key).await?,
            None => save(pool, draft, key).await?.into(),
        };
        if let Saved::Leased(lease) = saved {
            return Ok(admitted(draft.id, lease, draft.cause));
        }
        let earlier = match key {
            Some(key) => earlier(pool, key).await?,
            None => None,
        };
        let Some(earlier) = earlier else {
            match saved {
                Saved::Taken(by) => return Ok(Admission::Taken(by)),
                Saved::ReplacedErased => return Ok(Admission::ReplacedErased),
                Saved::Leased(_) | Saved::KeyInUse => continue,
            }
        };
        if let Earlier::Same(EarlierRequest {
            link_id,
            state: CreationState::Failed(failure),
        }) = &earlier
            && !failure.reason.is_final()
        {
            let again = Draft {
                id: *link_id,
                ..*draft
            };
            let reopened = match draft.replaces {
                Some(replaced) => reopen_successor(pool, &again, replaced).await?,
                None => reopen(pool, &again).await?.into(),
            };
            match reopened {
                Saved::Leased(lease) => return Ok(admitted(*link_id, lease, draft.cause)),
                Saved::Taken(by) => return Ok(Admission::Taken(by)),
                Saved::ReplacedErased => return Ok(Admission::ReplacedErased),
                Saved::KeyInUse => {}
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

fn admitted(id: PaymentLinkId, lease: Lease, cause: &Cause) -> Admission {
    count_status_change(Status::Pending, cause.name());
    Admission::New(id, lease)
}

/// Makes a link whose creation failed pending again, for a repetition of the request. Returns the lease on it, or `None` if
/// another repetition was faster.
async fn reopen(
    executor: impl Executor<'_, Database = Postgres>,
    draft: &Draft<'_>,
) -> Result<Option<Lease>, Error> {
    let lease = LeaseRequest::new(draft.lease);
    let reopened = record!(
        Kind::Requested,
        draft.cause,
        r#"WITH link AS (
             UPDATE payment_links
             SET status = 'Pending', failure = NULL, request = $4, updated_at = now(), revision = revision + 1,
                 due_at = now(), leased_until = now() + make_interval(secs => $5),
                 asked_until = now() + make_interval(secs => $5)
             WHERE id = $3 AND status = 'Failed' AND NOT failure->>'reason' = ANY($6) AND erased_at IS NULL
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
    .fetch_optional(executor)
    .await?;
    Ok(reopened.map(|row| lease.granted(row.until)))
}

/// Claims the key and saves the link, both or neither. Returns the lease on the link, or `None` if the key is in use, or was
/// erased.
async fn save(
    executor: impl Executor<'_, Database = Postgres>,
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
    .fetch_optional(executor)
    .await
    .map_err(Error::from);
    match saved {
        Ok(saved) => Ok(saved.map(|row| lease.granted(row.until))),
        Err(error) if error.is_erased_key() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The link that was requested to take the place of another.
#[derive(Debug, Clone, Copy)]
pub struct Successor {
    pub id: PaymentLinkId,
    pub status: Status,
}

/// A link that is being replaced, and locked.
struct Replaced {
    successor: Option<Successor>,
    is_erased: bool,
}

/// Locks a link for as long as the transaction is open, so that only one of several requests renews it.
async fn lock_replaced(
    transaction: &mut PgTransaction,
    replaced: PaymentLinkId,
) -> Result<Replaced, Error> {
    let is_erased = sqlx::query_scalar!(
        r#"SELECT erased_at IS NOT NULL AS "is_erased!" FROM payment_links WHERE id = $1 FOR UPDATE"#,
        replaced.uuid()
    )
    .fetch_one(&mut **transaction)
    .await?;
    // In a statement of its own, which sees what the holder of the lock before this one has done.
    let successor = sqlx::query!(
        "SELECT link.id, link.status
         FROM renewals JOIN payment_links link ON link.id = successor_id
         WHERE replaced_id = $1",
        replaced.uuid()
    )
    .fetch_optional(&mut **transaction)
    .await?;
    let successor = successor.map(|row| {
        Ok::<_, Error>(Successor {
            id: PaymentLinkId::from_uuid(row.id),
            status: parse_stored(&row.status)?,
        })
    });
    Ok(Replaced {
        successor: successor.transpose()?,
        is_erased,
    })
}

/// Saves a link that takes the place of another.
async fn renew(
    pool: &PgPool,
    draft: &Draft<'_>,
    replaced: PaymentLinkId,
    key: Option<&IdempotencyKey>,
) -> Result<Saved, Error> {
    let mut transaction = pool.begin().await?;
    // Claims the key before it locks the link, like operations, so that the two never wait for each other.
    let without_address = Draft {
        short_url_base: None,
        ..*draft
    };
    let Some(lease) = save(&mut *transaction, &without_address, key).await? else {
        return Ok(Saved::KeyInUse);
    };
    let locked = lock_replaced(&mut transaction, replaced).await?;
    let failed = match locked.successor {
        Some(successor) if successor.status != Status::Failed => {
            // Dropping the transaction undoes the insert.
            return Ok(Saved::Taken(successor));
        }
        failed => failed,
    };
    if locked.is_erased {
        return Ok(Saved::ReplacedErased);
    }
    take_place(&mut transaction, draft, replaced, failed).await?;
    transaction.commit().await?;
    Ok(Saved::Leased(lease))
}

/// As [`reopen`], for a link that takes the place of another, unless yet another one has taken it since.
async fn reopen_successor(
    pool: &PgPool,
    draft: &Draft<'_>,
    replaced: PaymentLinkId,
) -> Result<Saved, Error> {
    let mut transaction = pool.begin().await?;
    let locked = lock_replaced(&mut transaction, replaced).await?;
    match locked.successor {
        Some(other) if other.id != draft.id && other.status != Status::Failed => {
            return Ok(Saved::Taken(other));
        }
        _ if locked.is_erased => return Ok(Saved::ReplacedErased),
        Some(other) if other.id != draft.id => {
            take_place(&mut transaction, draft, replaced, Some(other)).await?;
        }
        _ => {}
    }
    let reopened = reopen(&mut *transaction, draft).await?;
    transaction.commit().await?;
    Ok(reopened.into())
}

/// Stores that a link takes the place of another, which is locked, and of the successor that failed before, if there was one.
/// It gets the short address of the two, or a new one if they have none.
async fn take_place(
    transaction: &mut PgTransaction,
    draft: &Draft<'_>,
    replaced: PaymentLinkId,
    failed: Option<Successor>,
) -> Result<(), Error> {
    let mut before = vec![replaced.uuid()];
    before.extend(failed.map(|failed| failed.id.uuid()));
    let code = ShortCode::generate();
    let detail = RenewalDetail {
        payment_link_id: draft.id,
    };
    record!(
        Kind::RenewalRequested,
        draft.cause,
        "WITH renewal AS (
             INSERT INTO renewals (replaced_id, successor_id) VALUES ($3, $4)
             ON CONFLICT (replaced_id) DO UPDATE SET successor_id = EXCLUDED.successor_id
         ), moved AS (
             UPDATE short_addresses SET payment_link_id = $4 WHERE payment_link_id = ANY($5)
             RETURNING code
         ), given AS (
             INSERT INTO short_addresses (code, base_url, payment_link_id)
             SELECT $6, $7, $4 WHERE $7::text IS NOT NULL AND NOT EXISTS (SELECT FROM moved)
         ), replaced AS (
             UPDATE payment_links SET updated_at = now(), revision = revision + 1 WHERE id = $3
             RETURNING id, status
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, $8::jsonb AS detail FROM replaced
         )",
        replaced.uuid(),
        draft.id.uuid(),
        &before,
        code.as_str(),
        draft.short_url_base,
        to_json(&detail)?
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// The earlier request with this key. `None` if there was none.
pub async fn earlier(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Earlier>, Error> {
    let row = sqlx::query!(
        r#"SELECT known.request_hash, known.key <> $2 AS "is_erased!",
                  link.id AS "link_id?", link.status AS "status?", link.failure,
                  extract(epoch FROM now() - link.asked_until)::float8 AS since_sent,
                  extract(epoch FROM link.due_at - now())::float8 AS until_next
           FROM idempotency_keys known LEFT JOIN payment_links link ON link.id = known.payment_link_id
           WHERE known.api_key_id = $1 AND known.key IN ($2, erased_key($1, $2))"#,
        key.client_id,
        key.key
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.is_erased {
        return Ok(Some(Earlier::Erased));
    }
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
