//! Operations on a payment: saving one before Dojo is called, and storing its outcome.
//!
//! As in [`super::creation`], each function is one short transaction, and no transaction is open while Dojo is called.

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction,
    creation::{IdempotencyKey, Retry, progress},
    from_json,
    leases::{Lease, LeaseRequest},
    links::select_links,
    parse_stored,
    timeline::record,
    to_json,
};
use crate::payment_link::{
    Failure, OperationId, PaymentLink, PaymentLinkId, Progress,
    operation::{
        Action, Operation, OperationStatus, OurCapture,
        permission::{Denial, OtherOperations},
    },
    refundable::{OurRefund, Refunds},
    timeline::{Cause, Kind, OperationDetail},
};

/// An operation to save.
#[derive(Debug)]
pub struct NewOperation<'a> {
    pub id: OperationId,
    pub link_id: PaymentLinkId,
    /// What was requested. Amounts may be missing.
    pub action: &'a Action,
    /// The idempotency key to send to Dojo with each attempt.
    pub dojo_key: Option<&'a str>,
    /// The name of the client that requested it.
    pub created_by: &'a str,
    pub cause: &'a Cause,
    /// How long no other worker may work on it. Longer than the call to Dojo can take.
    pub lease: Duration,
}

/// The result of [`save`].
#[derive(Debug)]
pub enum SaveOutcome {
    /// The operation is saved, and Dojo is to be called.
    Saved(Box<SavedOperation>),
    /// The rules forbid it. Nothing is saved, and the idempotency key is free.
    Denied(Denial),
    /// There was an earlier request with this key.
    Earlier(Box<EarlierRequest>),
    /// There was an earlier request with this key, and it requested something else.
    KeyReused,
    /// There was an earlier request with this key. Its link's personal data was erased, and the key with it.
    Erased,
    NoSuchLink,
}

/// An operation for which Dojo is to be called.
#[derive(Debug)]
pub struct SavedOperation {
    pub lease: Lease,
    /// What to request from Dojo, with all amounts filled in.
    pub action: Action,
    pub payment_intent_id: String,
}

/// The outcome of an earlier request with the same key.
#[derive(Debug)]
pub struct EarlierRequest {
    /// The operation that it led to.
    pub operation_id: OperationId,
    pub status: OperationStatus,
    /// Whether the link was read from Dojo after the operation.
    pub is_read_back: bool,
    /// Why the operation failed, if it did.
    pub failure: Option<Failure>,
    /// If the outcome isn't known yet, what is known about it.
    pub progress: Progress,
}

/// Saves an operation as `Pending`, unless its idempotency key shows that it is a repetition, or `permit` denies it.
///
/// The link is locked meanwhile. So each of any number of concurrent requests sees what those before it have reserved, and
/// together they never refund more than was captured.
pub async fn save(
    pool: &PgPool,
    new: &NewOperation<'_>,
    key: Option<&IdempotencyKey>,
    permit: impl Fn(&mut Action, &PaymentLink, &OtherOperations) -> Result<(), Denial>,
) -> Result<SaveOutcome, Error> {
    // As for a creation: a key that is taken may be free again by the time it is read.
    for _ in 0..3 {
        let mut transaction = pool.begin().await?;
        if let Some(key) = key
            && !claim_key(&mut transaction, key).await?
        {
            drop(transaction);
            match earlier_request(pool, key).await? {
                Some(earlier) => return Ok(earlier),
                None => continue,
            }
        }
        return save_permitted(transaction, new, key, permit).await;
    }
    Err(Error::Unreadable(
        "an idempotency key that changes all the time".to_owned(),
    ))
}

/// Claims a key for the operation that is saved in the same transaction. Returns `false` if it is taken, or was erased.
async fn claim_key(transaction: &mut PgTransaction, key: &IdempotencyKey) -> Result<bool, Error> {
    let claimed = sqlx::query!(
        "INSERT INTO idempotency_keys AS known (api_key_id, key, request_hash) VALUES ($1, $2, $3)
         ON CONFLICT (api_key_id, key) DO UPDATE SET request_hash = known.request_hash
             WHERE known.payment_link_id IS NULL AND known.operation_id IS NULL
               AND known.request_hash = EXCLUDED.request_hash",
        key.client_id,
        key.key,
        key.request_hash.as_slice()
    )
    .execute(&mut **transaction)
    .await
    .map_err(Error::from);
    match claimed {
        Ok(claimed) => Ok(claimed.rows_affected() == 1),
        Err(error) if error.is_erased_key() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn save_permitted(
    mut transaction: PgTransaction,
    new: &NewOperation<'_>,
    key: Option<&IdempotencyKey>,
    permit: impl Fn(&mut Action, &PaymentLink, &OtherOperations) -> Result<(), Denial>,
) -> Result<SaveOutcome, Error> {
    let row = select_links!("WHERE id = $1 FOR UPDATE", new.link_id.uuid())
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(row) = row else {
        return Ok(SaveOutcome::NoSuchLink);
    };
    let link = row.into_link()?;
    // In statements of their own, which see what was committed while this one waited for the lock.
    let others = other_operations(&mut transaction, link.id).await?;

    let mut action = new.action.clone();
    if let Err(denial) = permit(&mut action, &link, &others) {
        return Ok(SaveOutcome::Denied(denial));
    }
    let payment_intent_id = link.payment_intent_id.ok_or_else(|| {
        Error::Unreadable("a link without an intent that is neither Pending nor Failed".to_owned())
    })?;

    let lease = LeaseRequest::new(new.lease);
    let saved = record!(
        Kind::OperationRequested,
        new.cause,
        r#"WITH operation AS (
             INSERT INTO operations
                 (id, payment_link_id, account, kind, action, amount, status, dojo_key, created_by,
                  leased_until, asked_until, due_at)
             SELECT $3, $4, $5, $6, $7, $8, $9, $10, $11, lease.until, lease.until, now()
             FROM (SELECT now() + make_interval(secs => $12) AS until) AS lease
             RETURNING id, leased_until
         ), outdated AS (
             -- A read that is under way doesn't know that Dojo's amount may change from now on.
             UPDATE payment_links SET revision = revision + 1 WHERE id = $4 AND $6 = 'amount'
         ), keyed AS (
             UPDATE idempotency_keys SET operation_id = $3 WHERE api_key_id = $13 AND key = $14
         ), entry AS (
             SELECT $4 AS link_id, $15 AS before, $15 AS after, $16::jsonb AS detail
         )"# => r#"
         SELECT leased_until AS "until!" FROM operation"#,
        // Which operation
        new.id.uuid(),
        link.id.uuid(),
        link.account,
        // What it does
        action.kind().as_str(),
        to_json(&action)?,
        action.amount().map(|amount| amount.value),
        OperationStatus::Pending.as_str(),
        new.dojo_key,
        new.created_by,
        lease.seconds(),
        // The idempotency key
        key.map(|key| key.client_id),
        key.map(|key| key.key.as_str()),
        // The timeline entry
        link.status.as_str(),
        to_json(&OperationDetail {
            operation_id: new.id,
            operation: action.kind(),
            amount: action.amount(),
            dojo_id: None,
            failure: None,
            reason: None,
        })?,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(SaveOutcome::Saved(Box::new(SavedOperation {
        lease: lease.granted(saved.until),
        action,
        payment_intent_id,
    })))
}

/// The other operations on a payment whose link is locked.
async fn other_operations(
    transaction: &mut PgTransaction,
    link_id: PaymentLinkId,
) -> Result<OtherOperations, Error> {
    let ours = refunds_of(&mut **transaction, link_id).await?;
    let row = sqlx::query!(
        r#"SELECT refunds_elsewhere, refunds_read_at,
                  EXISTS (SELECT FROM operations
                          WHERE payment_link_id = $1 AND kind NOT IN ('refund', 'receipt') AND status = 'Pending')
                      AS "change_is_pending!"
           FROM payment_links WHERE id = $1"#,
        link_id.uuid()
    )
    .fetch_one(&mut **transaction)
    .await?;
    Ok(OtherOperations {
        refunds: Refunds {
            ours,
            elsewhere: row.refunds_elsewhere,
            read_at: row.refunds_read_at,
        },
        change_is_pending: row.change_is_pending,
    })
}

/// The refunds of a link that haven't failed.
pub(super) async fn refunds_of(
    executor: impl sqlx::PgExecutor<'_>,
    link_id: PaymentLinkId,
) -> Result<Vec<OurRefund>, Error> {
    sqlx::query!(
        r#"SELECT amount AS "amount!", status, completed_at FROM operations
           WHERE payment_link_id = $1 AND kind = 'refund' AND status <> 'Failed'"#,
        link_id.uuid()
    )
    .fetch_all(executor)
    .await?
    .into_iter()
    .map(|row| {
        Ok(OurRefund {
            amount: row.amount,
            status: parse_stored(&row.status)?,
            completed_at: row.completed_at,
        })
    })
    .collect()
}

/// The captures of a link that haven't failed.
pub(super) async fn captures_of(
    executor: impl sqlx::PgExecutor<'_>,
    link_id: PaymentLinkId,
) -> Result<Vec<OurCapture>, Error> {
    let rows = sqlx::query!(
        "SELECT action, dojo_id FROM operations
         WHERE payment_link_id = $1 AND kind = 'capture' AND status <> 'Failed'",
        link_id.uuid()
    )
    .fetch_all(executor)
    .await?;
    let captures = rows.into_iter().map(|row| {
        let action: Action = from_json(row.action)?;
        Ok(OurCapture {
            amount: action.moved().map_or(0, |money| money.value),
            dojo_id: row.dojo_id,
        })
    });
    captures.collect()
}

/// The outcome of an earlier request with this key. `None`: there was none, or it left the key free because nothing was done.
pub async fn earlier_request(
    pool: &PgPool,
    key: &IdempotencyKey,
) -> Result<Option<SaveOutcome>, Error> {
    let row = sqlx::query!(
        r#"SELECT known.request_hash, known.key <> $2 AS "is_erased!", operation.id AS "id?", operation.status AS "status?",
                  (operation.read_back_at IS NOT NULL OR operation.response_body IS NOT NULL) AS "is_read_back!",
                  operation.failure,
                  extract(epoch FROM now() - operation.asked_until)::float8 AS since_sent,
                  extract(epoch FROM operation.due_at - now())::float8 AS until_next
           FROM idempotency_keys known LEFT JOIN operations operation ON operation.id = known.operation_id
           WHERE known.api_key_id = $1 AND known.key IN ($2, erased_key($1, $2))"#,
        key.client_id,
        key.key
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.is_erased {
        return Ok(Some(SaveOutcome::Erased));
    }
    if row.request_hash != key.request_hash {
        return Ok(Some(SaveOutcome::KeyReused));
    }
    let (Some(id), Some(status)) = (row.id, row.status) else {
        return Ok(None);
    };
    Ok(Some(SaveOutcome::Earlier(Box::new(EarlierRequest {
        operation_id: OperationId::from_uuid(id),
        status: parse_stored(&status)?,
        is_read_back: row.is_read_back,
        progress: progress(row.since_sent, row.until_next),
        failure: row.failure.map(from_json).transpose()?,
    }))))
}

/// Checks that Dojo may still be called for an operation. For a capture, stores which captures Dojo already has, so that the
/// new one can be distinguished from them. Returns `false` if the lease has expired, so that Dojo must not be called.
pub async fn prepare_call(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    captures: Option<&[String]>,
) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "UPDATE operations SET captures_before = $3
         WHERE id = $1 AND status = 'Pending' AND leased_until = $2 AND leased_until > now()",
        id.uuid(),
        lease.until,
        captures
    )
    .execute(pool)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// Whether another operation on this link has this id at Dojo.
pub async fn is_of_another(
    pool: &PgPool,
    id: OperationId,
    link_id: PaymentLinkId,
    dojo_id: &str,
) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM operations WHERE payment_link_id = $1 AND id <> $2 AND dojo_id = $3
           ) AS "exists!""#,
        link_id.uuid(),
        id.uuid(),
        dojo_id
    )
    .fetch_one(pool)
    .await?)
}

/// Records that Dojo performed an operation, which is true no matter who finds it out, and makes the link due for
/// reconciliation. If the operation changed the link's amount, the link has the new amount from now on.
///
/// If the operation may have changed the payment's status, Dojo's status is unknown until the next read, and the link isn't
/// confirmed until then. A read that began before the operation is discarded, except for refunds: several may be under way,
/// and each would discard the reads of the others.
///
/// A capture that was recorded as failed is only the one with this id if that id can't belong to another capture. Returns
/// `false` if it does, or may.
pub async fn succeed(
    pool: &PgPool,
    id: OperationId,
    dojo_id: Option<&str>,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = record!(
        Kind::OperationSucceeded,
        cause,
        "WITH done AS (
             UPDATE operations
             SET status = $4, dojo_id = coalesce($5, dojo_id), failure = NULL, completed_at = now(),
                 leased_until = NULL, due_at = NULL
             WHERE id = $3 AND status <> $4 AND NOT (status = 'Failed' AND kind = 'capture' AND EXISTS (
                 SELECT FROM operations other
                 WHERE other.payment_link_id = operations.payment_link_id AND other.kind = 'capture'
                   AND other.id <> $3 AND (other.status = 'Pending' OR other.dojo_id = $5
                        -- The capture may be a later one whose id isn't known.
                        OR (other.dojo_id IS NULL AND other.status <> 'Failed' AND other.id > $3))
             ))
             RETURNING id, payment_link_id, kind, action, amount, dojo_id,
                       kind IN ('cancel', 'capture', 'refund', 'reversal') AS changes_status
         ), link AS (
             UPDATE payment_links link
             SET due_at = now(),
                 amount = CASE WHEN done.kind = 'amount' THEN done.amount ELSE link.amount END,
                 request = CASE WHEN done.kind = 'amount' THEN link.request || (done.action->'request')
                                ELSE link.request END,
                 mismatch = CASE WHEN done.kind = 'amount' THEN NULL ELSE link.mismatch END,
                 unsettled_status = CASE WHEN done.changes_status THEN '' ELSE link.unsettled_status END,
                 -- Missing in rows from an earlier version, whose status is then also Dojo's latest one.
                 dojo_status = CASE WHEN done.changes_status AND link.unsettled_status IS NULL
                                    THEN coalesce(link.dojo_status, link.status) ELSE link.dojo_status END,
                 -- A read that is under way compares with the earlier amount, or shows the earlier status.
                 revision = link.revision + (done.kind IN ('amount', 'cancel', 'capture', 'reversal'))::int,
                 updated_at = CASE WHEN done.kind = 'amount' THEN now() ELSE link.updated_at END
             FROM done WHERE link.id = done.payment_link_id
             RETURNING link.id, link.status, link.currency
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $6::text, 'operation', done.kind, 'dojoId', done.dojo_id,
                        'amount', CASE WHEN done.amount IS NOT NULL THEN jsonb_build_object(
                            'value', done.amount, 'currencyCode', link.currency) END) AS detail
             FROM done JOIN link ON true
         )",
        id.uuid(),
        OperationStatus::Succeeded.as_str(),
        dojo_id,
        id.to_string()
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Stores that the link was read from Dojo after the operation, so that it shows the operation's effect.
pub async fn record_read_back(pool: &PgPool, id: OperationId) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE operations SET read_back_at = now() WHERE id = $1 AND read_back_at IS NULL",
        id.uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The failure of an operation.
#[derive(Debug, Clone, Copy)]
pub struct OperationFailure<'a> {
    pub id: OperationId,
    /// The lease under which it was proved that the operation was not performed.
    pub lease: Lease,
    pub failure: &'a Failure,
    pub retry: Retry,
    /// Check once more after this long whether it was performed after all. For a capture whose response was lost.
    pub check_again: Option<Duration>,
    pub cause: &'a Cause,
}

/// Records that an operation was not performed. Requires proof. Returns `false` if the operation is no longer under
/// the lease under which it was found. The link becomes due for reconciliation, because its state isn't what it was assumed to be.
pub async fn fail(pool: &PgPool, failed: OperationFailure<'_>) -> Result<bool, Error> {
    let recorded = record!(
        Kind::OperationFailed,
        failed.cause,
        "WITH failed AS (
             UPDATE operations
             SET status = $5, failure = $6, completed_at = now(), leased_until = NULL,
                 due_at = now() + make_interval(secs => $8)
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING id, payment_link_id, kind, amount
         ), freed AS (
             -- The key is then found by its link, should the link's personal data be erased.
             UPDATE idempotency_keys SET operation_id = NULL, freed_from = failed.payment_link_id
             FROM failed WHERE $7 AND operation_id = failed.id
         ), link AS (
             UPDATE payment_links SET due_at = now() WHERE id IN (SELECT payment_link_id FROM failed)
             RETURNING id, status, currency
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $9::text, 'operation', failed.kind, 'failure', $6::jsonb,
                        'amount', CASE WHEN failed.amount IS NOT NULL THEN jsonb_build_object(
                            'value', failed.amount, 'currencyCode', link.currency) END) AS detail
             FROM failed JOIN link ON true
         )",
        failed.id.uuid(),
        failed.lease.until,
        OperationStatus::Failed.as_str(),
        to_json(failed.failure)?,
        failed.retry == Retry::Allowed,
        failed.check_again.map(|wait| wait.as_secs_f64()),
        failed.id.to_string()
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Records that Dojo's response was lost, and leaves the operation to recovery.
pub async fn lose_response(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    reason: &str,
    cause: &Cause,
) -> Result<(), Error> {
    record!(
        Kind::OperationResponseLost,
        cause,
        "WITH released AS (
             UPDATE operations
             SET leased_until = NULL, asked_until = now(), due_at = now() + interval '1 second'
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING payment_link_id, kind
         ), link AS (
             SELECT id, status FROM payment_links
             WHERE id IN (SELECT payment_link_id FROM released) FOR UPDATE
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $5::text, 'operation', released.kind, 'reason', $6::text)
                        AS detail
             FROM released JOIN link ON true
         )",
        id.uuid(),
        lease.until,
        id.to_string(),
        reason
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A row of `operations`, as far as callers see it.
#[derive(Debug)]
struct Row {
    id: Uuid,
    payment_link_id: Uuid,
    account: String,
    action: Value,
    status: String,
    dojo_id: Option<String>,
    failure: Option<Value>,
    created_by: String,
    created_at: OffsetDateTime,
    completed_at: Option<OffsetDateTime>,
}

/// Selects operations as [`Row`]s. `$rest` follows `FROM operations`.
macro_rules! select_operations {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            "SELECT id, payment_link_id, account, action, status, dojo_id, failure, created_by, created_at, completed_at
             FROM operations "
                + $rest
            $(, $argument)*
        )
    };
}

impl Row {
    fn into_operation(self) -> Result<Operation, Error> {
        Ok(Operation {
            id: OperationId::from_uuid(self.id),
            payment_link_id: PaymentLinkId::from_uuid(self.payment_link_id),
            account: self.account,
            status: parse_stored(&self.status)?,
            dojo_id: self.dojo_id,
            failure: self.failure.map(from_json).transpose()?,
            created_by: self.created_by,
            created_at: self.created_at,
            completed_at: self.completed_at,
            action: from_json(self.action)?,
        })
    }
}

pub async fn find(pool: &PgPool, id: OperationId) -> Result<Option<Operation>, Error> {
    select_operations!("WHERE id = $1", id.uuid())
        .fetch_optional(pool)
        .await?
        .map(Row::into_operation)
        .transpose()
}

/// Up to `limit` operations on a link after the operation `after`, oldest first.
pub async fn of_link(
    pool: &PgPool,
    link_id: PaymentLinkId,
    after: Option<OperationId>,
    limit: i64,
) -> Result<Vec<Operation>, Error> {
    select_operations!(
        "WHERE payment_link_id = $1 AND ($2::uuid IS NULL OR id > $2)
         ORDER BY id
         LIMIT $3",
        link_id.uuid(),
        after.map(|after| after.uuid()) as Option<Uuid>,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_operation)
    .collect()
}

/// Which operations to list. A filter that is `None` matches every operation.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Operations of any of these accounts: those that the caller may see.
    pub open: Option<&'a [String]>,
    pub account: Option<String>,
    /// Operations with any of these statuses.
    pub statuses: Option<Vec<String>>,
}

/// Up to `limit` operations of all links, newest first, behind the operation `after`.
pub async fn list(
    pool: &PgPool,
    filter: &Filter<'_>,
    after: Option<OperationId>,
    limit: i64,
) -> Result<Vec<Operation>, Error> {
    select_operations!(
        "WHERE ($1::uuid IS NULL OR id < $1)
           AND ($2::text[] IS NULL OR status = ANY($2))
           AND ($3::text IS NULL OR account = $3)
           AND ($4::text[] IS NULL OR account = ANY($4))
         ORDER BY id DESC
         LIMIT $5",
        after.map(|after| after.uuid()) as Option<Uuid>,
        filter.statuses.as_deref(),
        filter.account.as_deref(),
        filter.open,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_operation)
    .collect()
}

/// Up to `limit` operations with this status, `Pending` or `Unconfirmed`, that were requested longer ago than this, oldest first.
/// If `open` is given, only those about links of these accounts.
pub async fn oldest_open(
    pool: &PgPool,
    status: OperationStatus,
    open: Option<&[String]>,
    ago: Duration,
    limit: i64,
) -> Result<Vec<Operation>, Error> {
    // The index has these statuses only. A condition on a parameter alone couldn't use it.
    select_operations!(
        "WHERE status IN ('Pending', 'Unconfirmed') AND status = $1
           AND created_at < now() - make_interval(secs => $2)
           AND ($3::text[] IS NULL OR account = ANY($3))
         ORDER BY id
         LIMIT $4",
        status.as_str(),
        ago.as_secs_f64(),
        open,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_operation)
    .collect()
}
