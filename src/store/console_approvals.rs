//! Operations that a second person must approve at the console.

use std::{str::FromStr, time::Duration};

use serde_json::Value;
use sqlx::{PgExecutor, postgres::PgQueryResult};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction,
    console_audit::{self, NewEntry},
    parse_stored,
};
use crate::payment_link::{Money, OperationId, PaymentLinkId};

/// An operation to be approved.
#[derive(Debug, Clone, Copy)]
pub struct NewApproval<'a> {
    pub id: Uuid,
    pub link_id: PaymentLinkId,
    pub account: &'a str,
    /// What it does, as in `operations.kind`.
    pub kind: &'a str,
    pub amount: Money,
    /// The body of the request.
    pub body: Option<&'a Value>,
    pub idempotency_key: &'a str,
    /// The id of the client of the person who requests it.
    pub requested_by: Uuid,
    /// How long it waits.
    pub expires_in: Duration,
}

/// Where an approval stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalStatus {
    Pending,
    Approved,
    Rejected,
    /// Its request was erased, together with the link's personal data.
    Erased,
}

impl FromStr for ApprovalStatus {
    type Err = UnknownApprovalStatus;

    fn from_str(word: &str) -> Result<Self, UnknownApprovalStatus> {
        match word {
            "Pending" => Ok(Self::Pending),
            "Approved" => Ok(Self::Approved),
            "Rejected" => Ok(Self::Rejected),
            "Erased" => Ok(Self::Erased),
            _ => Err(UnknownApprovalStatus),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown status of an approval")]
pub struct UnknownApprovalStatus;

/// A stored approval.
#[derive(Debug)]
pub struct Approval {
    pub id: Uuid,
    pub link_id: PaymentLinkId,
    pub account: String,
    pub kind: String,
    pub amount: Money,
    pub body: Option<Value>,
    pub idempotency_key: String,
    /// The client of the person who requested it, by id and name.
    pub requested_by: (Uuid, String),
    pub requested_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    /// Whether it can no longer be approved: it is too late by the database's clock, or the person who requested it has no active
    /// key with which they could request it now. The proxy alone knows what the people may do for whom it vouches.
    pub is_expired: bool,
    pub status: ApprovalStatus,
    /// The name of the client of the person who decided.
    pub decided_by: Option<String>,
    pub decided_at: Option<OffsetDateTime>,
    /// What became of the approved operation. `None`: it isn't known yet.
    pub outcome: Option<String>,
    pub operation_id: Option<OperationId>,
}

/// A row of `console_approvals`, with the names of its clients.
struct Row {
    id: Uuid,
    payment_link_id: Uuid,
    account: String,
    kind: String,
    amount: i64,
    currency: String,
    body: Option<Value>,
    idempotency_key: String,
    requested_by: Uuid,
    requester: String,
    requested_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    is_expired: bool,
    status: String,
    decider: Option<String>,
    decided_at: Option<OffsetDateTime>,
    outcome: Option<String>,
    operation_id: Option<Uuid>,
}

impl Row {
    fn into_approval(self) -> Result<Approval, Error> {
        Ok(Approval {
            id: self.id,
            link_id: PaymentLinkId::from_uuid(self.payment_link_id),
            account: self.account,
            kind: self.kind,
            amount: Money {
                value: self.amount,
                currency_code: parse_stored(&self.currency)?,
            },
            body: self.body,
            idempotency_key: self.idempotency_key,
            requested_by: (self.requested_by, self.requester),
            requested_at: self.requested_at,
            expires_at: self.expires_at,
            is_expired: self.is_expired,
            status: parse_stored(&self.status)?,
            decided_by: self.decider,
            decided_at: self.decided_at,
            outcome: self.outcome,
            operation_id: self.operation_id.map(OperationId::from_uuid),
        })
    }
}

/// Selects approvals as [`Row`]s. `$rest` follows the join.
macro_rules! select_approvals {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            "SELECT approval.id, payment_link_id, account, kind, amount, currency, body, idempotency_key, requested_by,
                    requester.name AS requester, requested_at, expires_at,
                    (expires_at <= now() OR NOT (requester.name LIKE 'console:%' OR EXISTS (
                        SELECT FROM api_keys key WHERE key.client_id = requester.id
                            AND (key.revoked_at IS NULL OR key.revoked_at > now())
                            AND 'payments:manage' = ANY(key.scopes)
                            AND (key.accounts IS NULL OR approval.account = ANY(key.accounts))))) AS \"is_expired!\",
                    status,
                    (SELECT name FROM clients WHERE id = decided_by) AS decider, decided_at, outcome, operation_id
             FROM console_approvals approval JOIN clients requester ON requester.id = approval.requested_by "
                + $rest
            $(, $argument)*
        )
    };
}

/// Saves an operation to be approved. The person who repeats the request gets the same approval. `None`: the key was used for
/// another request.
pub async fn request(pool: &PgPool, new: &NewApproval<'_>) -> Result<Option<Uuid>, Error> {
    sqlx::query!(
        "INSERT INTO console_approvals
             (id, payment_link_id, account, kind, amount, currency, body, idempotency_key, requested_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $10))
         ON CONFLICT (requested_by, idempotency_key) DO NOTHING",
        new.id,
        new.link_id.uuid(),
        new.account,
        new.kind,
        new.amount.value,
        new.amount.currency_code.code(),
        new.body as Option<&Value>,
        new.idempotency_key,
        new.requested_by,
        new.expires_in.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(sqlx::query_scalar!(
        "SELECT id FROM console_approvals
         WHERE requested_by = $1 AND idempotency_key = $2 AND payment_link_id = $3 AND kind = $4 AND amount = $5
           AND body IS NOT DISTINCT FROM $6",
        new.requested_by,
        new.idempotency_key,
        new.link_id.uuid(),
        new.kind,
        new.amount.value,
        new.body as Option<&Value>
    )
    .fetch_optional(pool)
    .await?)
}

pub async fn find(pool: &PgPool, id: Uuid) -> Result<Option<Approval>, Error> {
    select_approvals!("WHERE approval.id = $1", id)
        .fetch_optional(pool)
        .await?
        .map(Row::into_approval)
        .transpose()
}

/// Up to `limit` approvals that wait for a decision, or whose operation's outcome isn't known, the oldest first. If `open` is
/// given, only those about these accounts.
pub async fn waiting(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<Approval>, Error> {
    select_approvals!(
        "WHERE (status = 'Pending' OR (status = 'Approved' AND outcome IS NULL))
           AND NOT (status = 'Pending' AND expires_at <= now())
           AND ($1::text[] IS NULL OR account = ANY($1))
         ORDER BY approval.id
         LIMIT $2",
        open,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_approval)
    .collect()
}

/// Up to `limit` approvals, newest first. If `open` is given, only those about these accounts.
pub async fn newest(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<Approval>, Error> {
    select_approvals!(
        "WHERE $1::text[] IS NULL OR account = ANY($1) ORDER BY approval.id DESC LIMIT $2",
        open,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_approval)
    .collect()
}

/// Up to `limit` approvals about a link, newest first.
pub async fn of_link(
    pool: &PgPool,
    link_id: PaymentLinkId,
    limit: i64,
) -> Result<Vec<Approval>, Error> {
    select_approvals!(
        "WHERE payment_link_id = $1 ORDER BY approval.id DESC LIMIT $2",
        link_id.uuid(),
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_approval)
    .collect()
}

/// Commits a change of an approval together with its entry in the audit list, so that there is never one without the other.
/// Returns whether there was a change.
async fn commit_with(
    mut transaction: PgTransaction,
    changed: &PgQueryResult,
    entry: &NewEntry<'_>,
) -> Result<bool, Error> {
    if changed.rows_affected() == 0 {
        return Ok(false);
    }
    console_audit::insert(&mut *transaction, entry).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Approves an operation, if it still waits and another person requested it, who may still do so. Of any number of people, one
/// does, and `entry` says so.
pub async fn approve(
    pool: &PgPool,
    id: Uuid,
    by: Uuid,
    entry: &NewEntry<'_>,
) -> Result<bool, Error> {
    let mut transaction = pool.begin().await?;
    let approved = sqlx::query!(
        "UPDATE console_approvals approval SET status = 'Approved', decided_by = $2, decided_at = now()
         FROM clients requester
         WHERE approval.id = $1 AND status = 'Pending' AND expires_at > now() AND requested_by <> $2
           AND requester.id = requested_by
           -- As in `is_expired`.
           AND (requester.name LIKE 'console:%' OR EXISTS (
               SELECT FROM api_keys key WHERE key.client_id = requester.id
                   AND (key.revoked_at IS NULL OR key.revoked_at > now())
                   AND 'payments:manage' = ANY(key.scopes)
                   AND (key.accounts IS NULL OR approval.account = ANY(key.accounts))))",
        id,
        by
    )
    .execute(&mut *transaction)
    .await?;
    commit_with(transaction, &approved, entry).await
}

/// Rejects an operation, if it still waits, and records `entry`. Whoever requested it may do so as well.
pub async fn reject(
    pool: &PgPool,
    id: Uuid,
    by: Uuid,
    entry: &NewEntry<'_>,
) -> Result<bool, Error> {
    let mut transaction = pool.begin().await?;
    let rejected = sqlx::query!(
        "UPDATE console_approvals SET status = 'Rejected', decided_by = $2, decided_at = now()
         WHERE id = $1 AND status = 'Pending'",
        id,
        by
    )
    .execute(&mut *transaction)
    .await?;
    commit_with(transaction, &rejected, entry).await
}

/// Stores that an approved operation isn't carried out, and why, and records `entry`. Nothing was requested for it.
pub async fn give_up(
    pool: &PgPool,
    id: Uuid,
    outcome: &str,
    entry: &NewEntry<'_>,
) -> Result<bool, Error> {
    let mut transaction = pool.begin().await?;
    let ended = end(&mut *transaction, id, outcome, None).await?;
    commit_with(transaction, &ended, entry).await
}

/// Stores what became of an approved operation.
pub async fn finish(
    pool: &PgPool,
    id: Uuid,
    outcome: &str,
    operation_id: Option<OperationId>,
) -> Result<(), Error> {
    end(pool, id, outcome, operation_id).await?;
    Ok(())
}

/// Stores the outcome of an approved operation that has none yet.
async fn end(
    executor: impl PgExecutor<'_>,
    id: Uuid,
    outcome: &str,
    operation_id: Option<OperationId>,
) -> Result<PgQueryResult, Error> {
    let ended = sqlx::query!(
        "UPDATE console_approvals SET outcome = $2, operation_id = $3
         WHERE id = $1 AND status = 'Approved' AND outcome IS NULL",
        id,
        outcome,
        operation_id.map(|id| id.uuid()) as Option<Uuid>
    )
    .execute(executor)
    .await?;
    Ok(ended)
}
