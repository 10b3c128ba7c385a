//! Recovery of lost operations: which are due, and what is recorded about them until their outcome is known or given up.

use std::time::Duration;

use time::OffsetDateTime;
use tracing::error;

use super::{
    Error, PgPool, from_json,
    leases::{Lease, LeaseRequest, claim, release},
    timeline::record,
    to_json,
};
use crate::payment_link::{
    Failure, OperationId, PaymentLinkId, SettlementWindow,
    operation::{Action, OperationStatus, recovery::LostOperation},
    timeline::{Cause, Kind},
};

/// A claimed operation: one whose outcome isn't known, or a capture that was recorded as failed and may appear late.
#[derive(Debug, Clone)]
pub struct ClaimedOperation {
    pub id: OperationId,
    pub link_id: PaymentLinkId,
    pub payment_intent_id: String,
    /// Whether it was recorded as failed already.
    pub has_failed: bool,
    pub action: Action,
    /// The idempotency key to send to Dojo with each attempt.
    pub dojo_key: Option<String>,
    /// When it was requested.
    pub created_at: OffsetDateTime,
    /// Until when a call to Dojo for it may have been sent.
    pub sent_until: Option<OffsetDateTime>,
    pub lease: Lease,
    /// The database's time when it was claimed.
    pub now: OffsetDateTime,
    // The following are described at `LostOperation`.
    captures_before: Option<Vec<String>>,
    made_refunds: i64,
    settled_refunds: i64,
    earlier_pending_refunds: i64,
    had_requested_amount: bool,
}

impl ClaimedOperation {
    /// The time since it was requested.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.since(self.created_at)
    }

    fn since(&self, at: OffsetDateTime) -> Duration {
        Duration::try_from(self.now - at).unwrap_or_default()
    }

    /// What the rules need to know about it.
    #[must_use]
    pub fn lost(&self) -> LostOperation<'_> {
        LostOperation {
            action: &self.action,
            captures_before: self.captures_before.as_deref(),
            made_refunds: self.made_refunds,
            settled_refunds: self.settled_refunds,
            earlier_pending_refunds: self.earlier_pending_refunds,
            had_requested_amount: self.had_requested_amount,
            since_sent: self.since(self.sent_until.unwrap_or(self.created_at)),
            age: self.age(),
        }
    }
}

/// Claims up to `limit` operations that are due for recovery. No other worker can claim them until the
/// lease expires. `window` is how long Dojo's responses may lag.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
    window: SettlementWindow,
) -> Result<Vec<ClaimedOperation>, Error> {
    let lease = LeaseRequest::new(lease);
    let rows = claim!(
        "operations",
        // While another capture is under way, a new capture at Dojo can't be assigned to either.
        "(status = 'Pending' OR NOT EXISTS (
              SELECT FROM operations other
              WHERE other.payment_link_id = operations.payment_link_id AND other.kind = 'capture'
                AND other.status = 'Pending'
          ))",
        r#"
         SELECT claimed.id, claimed.payment_link_id, link.payment_intent_id AS "payment_intent_id!",
                claimed.status = 'Failed' AS "has_failed!", claimed.action, claimed.dojo_key,
                -- NULL concatenated with an array would be that array.
                CASE WHEN claimed.captures_before IS NOT NULL THEN claimed.captures_before || ARRAY(
                    SELECT dojo_id FROM operations other
                    WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'capture'
                      AND other.id <> claimed.id AND other.dojo_id IS NOT NULL
                ) END AS captures_before,
                coalesce((SELECT sum(amount) FROM operations other
                          WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'refund'
                            AND other.id <> claimed.id AND other.status = 'Succeeded'), 0)::bigint
                    AS "made_refunds!",
                coalesce((SELECT sum(amount) FROM operations other
                          WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'refund'
                            AND other.id <> claimed.id AND other.status = 'Succeeded'
                            AND other.completed_at <= now() - make_interval(secs => $4)), 0)::bigint
                    AS "settled_refunds!",
                coalesce((SELECT sum(amount) FROM operations other
                          WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'refund'
                            AND other.id < claimed.id AND other.status = 'Pending'), 0)::bigint
                    AS "earlier_pending_refunds!",
                CASE claimed.kind WHEN 'amount' THEN link.amount = claimed.amount
                                  WHEN 'tipsAmount' THEN coalesce(link.tips_amount, 0) = claimed.amount
                                  ELSE false END AS "had_requested_amount!",
                claimed.created_at, claimed.asked_until, claimed.leased_until AS "leased_until!", now() AS "now!"
         FROM claimed JOIN payment_links link ON link.id = claimed.payment_link_id"#,
        account,
        lease,
        limit,
        window.length().as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let id = OperationId::from_uuid(row.id);
            // An unreadable operation must not block the others. Its lease expires.
            let action = from_json(row.action)
                .inspect_err(
                    |error| error!(operation_id = %id, %error, "an operation is unreadable"),
                )
                .ok()?;
            Some(ClaimedOperation {
                id,
                link_id: PaymentLinkId::from_uuid(row.payment_link_id),
                payment_intent_id: row.payment_intent_id,
                has_failed: row.has_failed,
                action,
                dojo_key: row.dojo_key,
                created_at: row.created_at,
                // The column has the former name of `sent_until`.
                sent_until: row.asked_until,
                lease: lease.granted(row.leased_until),
                now: row.now,
                captures_before: row.captures_before,
                made_refunds: row.made_refunds,
                settled_refunds: row.settled_refunds,
                earlier_pending_refunds: row.earlier_pending_refunds,
                had_requested_amount: row.had_requested_amount,
            })
        })
        .collect())
}

/// An account's operations whose outcome isn't known and that nobody is working on.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    pub operations: i64,
    /// How long ago the oldest was requested, in seconds.
    pub lag: f64,
}

pub async fn backlog(pool: &PgPool, account: &str) -> Result<Backlog, Error> {
    Ok(sqlx::query_as!(
        Backlog,
        r#"SELECT count(*) AS "operations!",
                  coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS "lag!"
           FROM operations
           WHERE account = $1 AND due_at IS NOT NULL AND status = 'Pending'
             AND (leased_until IS NULL OR leased_until <= now())"#,
        account
    )
    .fetch_one(pool)
    .await?)
}

/// Records under a new lease that an operation is about to be sent to Dojo again. `None` if its outcome has become
/// known or another worker has claimed it in the meantime, so that Dojo must not be called.
pub async fn begin_repetition(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    new_lease: Duration,
) -> Result<Option<Lease>, Error> {
    let new_lease = LeaseRequest::new(new_lease);
    let until = sqlx::query_scalar!(
        r#"UPDATE operations
           SET leased_until = now() + make_interval(secs => $3), asked_until = now() + make_interval(secs => $3)
           WHERE id = $1 AND status = 'Pending' AND leased_until = $2 AND leased_until > now()
           RETURNING leased_until AS "until!""#,
        id.uuid(),
        lease.until,
        new_lease.seconds()
    )
    .fetch_optional(pool)
    .await?;
    Ok(until.map(|until| new_lease.granted(until)))
}

/// Records that the response to a repetition was lost, too. The operation is due again after `wait`. The timeline has an entry
/// for the first lost response only.
pub async fn lose_response_again(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE operations
         SET leased_until = NULL, asked_until = now(), due_at = now() + make_interval(secs => $3)
         WHERE id = $1 AND status = 'Pending' AND leased_until = $2",
        id.uuid(),
        lease.until,
        wait.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Records that a repetition did nothing at Dojo, as if it had not been sent. The operation is due again after `wait`.
pub async fn undo_repetition(
    pool: &PgPool,
    operation: &ClaimedOperation,
    lease: Lease,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE operations
         SET leased_until = NULL, asked_until = $4, due_at = now() + make_interval(secs => $3)
         WHERE id = $1 AND status = 'Pending' AND leased_until = $2",
        operation.id.uuid(),
        lease.until,
        wait.as_secs_f64(),
        operation.sent_until
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Releases a claimed operation, to be claimed again after `wait` (`None` if there is nothing more to find out).
pub async fn release(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    wait: Option<Duration>,
) -> Result<(), Error> {
    release!(
        "operations",
        "status IN ('Pending', 'Failed')",
        id.uuid(),
        lease,
        wait
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Gives up finding out whether an operation was performed. What it may have refunded stays reserved. Returns `false` if it
/// is no longer under the lease.
pub async fn give_up(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = record!(
        Kind::OperationUnconfirmed,
        cause,
        "WITH given_up AS (
             UPDATE operations
             SET status = $5, completed_at = now(), leased_until = NULL, due_at = NULL
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING payment_link_id, kind, amount
         ), link AS (
             UPDATE payment_links SET due_at = now() WHERE id IN (SELECT payment_link_id FROM given_up)
             RETURNING id, status, currency
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $6::text, 'operation', given_up.kind,
                        'amount', CASE WHEN given_up.amount IS NOT NULL THEN jsonb_build_object(
                            'value', given_up.amount, 'currencyCode', link.currency) END) AS detail
             FROM given_up JOIN link ON true
         )",
        id.uuid(),
        lease.until,
        OperationStatus::Unconfirmed.as_str(),
        id.to_string()
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// An `Unconfirmed` operation, for a person to check.
#[derive(Debug)]
pub struct UnconfirmedOperation {
    pub id: OperationId,
    pub link_id: PaymentLinkId,
    pub account: String,
    pub payment_intent_id: String,
    pub action: Action,
    /// The name of the client that requested it.
    pub created_by: String,
    pub created_at: OffsetDateTime,
}

/// All `Unconfirmed` operations, oldest first.
pub async fn unconfirmed(pool: &PgPool) -> Result<Vec<UnconfirmedOperation>, Error> {
    sqlx::query!(
        r#"SELECT operation.id, link.id AS link_id, operation.account, operation.action,
                  link.payment_intent_id AS "payment_intent_id!", operation.created_by, operation.created_at
           FROM operations operation JOIN payment_links link ON link.id = operation.payment_link_id
           WHERE operation.status = 'Unconfirmed'
           ORDER BY operation.id"#
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(|row| {
        Ok(UnconfirmedOperation {
            id: OperationId::from_uuid(row.id),
            link_id: PaymentLinkId::from_uuid(row.link_id),
            account: row.account,
            payment_intent_id: row.payment_intent_id,
            action: from_json(row.action)?,
            created_by: row.created_by,
            created_at: row.created_at,
        })
    })
    .collect()
}

/// Records that a person found that an `Unconfirmed` operation was not performed. What it reserved is free again. Returns
/// `false` if the operation isn't `Unconfirmed`.
pub async fn fail_unconfirmed(
    pool: &PgPool,
    id: OperationId,
    failure: &Failure,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = record!(
        Kind::OperationFailed,
        cause,
        "WITH failed AS (
             UPDATE operations SET status = $4, failure = $5, completed_at = now()
             WHERE id = $3 AND status = 'Unconfirmed'
             RETURNING payment_link_id, kind, amount
         ), link AS (
             UPDATE payment_links SET due_at = now() WHERE id IN (SELECT payment_link_id FROM failed)
             RETURNING id, status, currency
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $6::text, 'operation', failed.kind, 'failure', $5::jsonb,
                        'amount', CASE WHEN failed.amount IS NOT NULL THEN jsonb_build_object(
                            'value', failed.amount, 'currencyCode', link.currency) END) AS detail
             FROM failed JOIN link ON true
         )",
        id.uuid(),
        OperationStatus::Failed.as_str(),
        to_json(failure)?,
        id.to_string()
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}
