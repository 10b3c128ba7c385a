//! The database's side of an operation on a payment: saving it before Dojo is asked, and what came of it after.
//!
//! Like [`super::creation`]: each function is one short transaction, and none is open while Dojo is called.

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction,
    creation::{IdempotencyKey, Retry},
    from_json,
    leases::{Lease, LeaseRequest, claim, release},
    links::select_links,
    timeline::record,
    to_json, word,
};
use crate::payment_link::{
    Failure, OperationId, PaymentLink, PaymentLinkId, SettlementWindow,
    operation::{Action, Lost, Objection, Operation, OperationStatus, Others},
    refundable::{OurRefund, Refunds},
    timeline::{Cause, Kind},
};

/// An operation to be saved.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Its id.
    pub id: OperationId,
    /// The link that it is about.
    pub link_id: PaymentLinkId,
    /// What was asked for; amounts may be left out.
    pub action: &'a Action,
    /// The key that goes to Dojo with each try.
    pub dojo_key: Option<&'a str>,
    /// The name of the client that asked.
    pub created_by: &'a str,
    /// Why it is done.
    pub cause: &'a Cause,
    /// How long nobody else may work on it: longer than asking Dojo can take.
    pub lease: Duration,
}

/// What a request for an operation finds.
#[derive(Debug)]
pub enum Begun {
    /// It is saved; Dojo is to be asked.
    New(Box<Saved>),
    /// The rules forbid it. Nothing is saved, and the idempotency key is free.
    Objected(Objection),
    /// A request with this key was here before.
    Known(Box<Known>),
    /// A request with this key was here before and asked for something else.
    Mismatch,
    /// There is no such link.
    NoSuchLink,
}

/// An operation that Dojo is to be asked for.
#[derive(Debug)]
pub struct Saved {
    pub lease: Lease,
    /// What to ask, all amounts filled in.
    pub action: Action,
    /// The intent that it is about.
    pub payment_intent_id: String,
}

/// Where an earlier request with the same key stands.
#[derive(Debug)]
pub struct Known {
    /// The operation that it led to.
    pub id: OperationId,
    /// Where that stands.
    pub status: OperationStatus,
    /// What was answered, word for word, if the link could be read back.
    pub response_body: Option<String>,
    /// Why it was not done, if so.
    pub failure: Option<Failure>,
}

/// Saves an operation as `Pending`, unless its idempotency key says that it is a repetition, or `permit` objects.
///
/// The link is locked meanwhile, so that of any number of requests each sees what those before it have promised:
/// together they never give back more than was taken.
pub async fn begin(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
    permit: impl Fn(&mut Action, &PaymentLink, &Others) -> Result<(), Objection>,
) -> Result<Begun, Error> {
    // As in `creation::begin`: a key that is taken may be free again by the time it is read.
    for _ in 0..3 {
        let mut transaction = pool.begin().await?;
        if let Some(key) = key
            && !claim_key(&mut transaction, key).await?
        {
            drop(transaction);
            match known(pool, key).await? {
                Some(begun) => return Ok(begun),
                None => continue,
            }
        }
        return save(transaction, draft, key, permit).await;
    }
    Err(Error::Unreadable(
        "an idempotency key that changes hands all the time".to_owned(),
    ))
}

/// Claims a key for the operation that is saved in the same transaction. `false`: it is taken.
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
    .await?;
    Ok(claimed.rows_affected() == 1)
}

async fn save(
    mut transaction: PgTransaction,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
    permit: impl Fn(&mut Action, &PaymentLink, &Others) -> Result<(), Objection>,
) -> Result<Begun, Error> {
    let row = select_links!("WHERE id = $1 FOR UPDATE", draft.link_id.uuid())
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(row) = row else {
        return Ok(Begun::NoSuchLink);
    };
    let link = row.into_link()?;
    // Statements of their own, which see what was committed while the lock was waited for.
    let others = others(&mut transaction, link.id).await?;

    let mut action = draft.action.clone();
    if let Err(objection) = permit(&mut action, &link, &others) {
        return Ok(Begun::Objected(objection));
    }
    let payment_intent_id = link.payment_intent_id.ok_or_else(|| {
        Error::Unreadable("a link without an intent that is neither Pending nor Failed".to_owned())
    })?;

    let lease = LeaseRequest::new(draft.lease);
    let saved = record!(
        Kind::OperationRequested,
        draft.cause,
        r#"WITH operation AS (
             INSERT INTO operations
                 (id, payment_link_id, account, kind, action, amount, status, dojo_key, created_by,
                  leased_until, asked_until, due_at)
             SELECT $3, $4, $5, $6, $7, $8, $9, $10, $11, lease.until, lease.until, now()
             FROM (SELECT now() + make_interval(secs => $12) AS until) AS lease
             RETURNING id, leased_until
         ), overtaken AS (
             -- A look that is under way does not know that Dojo's amount may be another one from now on.
             UPDATE payment_links SET revision = revision + 1 WHERE id = $4 AND $6 = 'amount'
         ), keyed AS (
             UPDATE idempotency_keys SET operation_id = $3 WHERE api_key_id = $13 AND key = $14
         ), entry AS (
             SELECT $4 AS link_id, $15 AS before, $15 AS after, $16::jsonb AS detail
         )"# => r#"
         SELECT leased_until AS "until!" FROM operation"#,
        draft.id.uuid(),
        link.id.uuid(),
        link.account,
        action.kind(),
        to_json(&action)?,
        action.amount().map(|amount| amount.value),
        OperationStatus::Pending.as_str(),
        draft.dojo_key,
        draft.created_by,
        lease.seconds(),
        key.map(|key| key.client_id),
        key.map(|key| key.key.as_str()),
        link.status.as_str(),
        json!({"operationId": draft.id, "operation": action.kind(), "amount": action.amount()}),
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Begun::New(Box::new(Saved {
        lease: lease.granted(saved.until),
        action,
        payment_intent_id,
    })))
}

/// What else goes on with a payment whose link is locked.
async fn others(transaction: &mut PgTransaction, link_id: PaymentLinkId) -> Result<Others, Error> {
    let ours = refunds_of(&mut **transaction, link_id).await?;
    let row = sqlx::query!(
        r#"SELECT refunds_elsewhere, refunds_read_at,
                  EXISTS (SELECT FROM operations
                          WHERE payment_link_id = $1 AND kind NOT IN ('refund', 'receipt') AND status = 'Pending')
                      AS "change_running!"
           FROM payment_links WHERE id = $1"#,
        link_id.uuid()
    )
    .fetch_one(&mut **transaction)
    .await?;
    Ok(Others {
        refunds: Refunds {
            ours,
            elsewhere: row.refunds_elsewhere,
            read_at: row.refunds_read_at,
        },
        change_running: row.change_running,
    })
}

/// The refunds of a link that have not failed.
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
            status: word(&row.status)?,
            completed_at: row.completed_at,
        })
    })
    .collect()
}

/// What an earlier request with this key came to. `None`: there was none, or it came to nothing and left the key
/// free.
pub async fn known(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Begun>, Error> {
    let row = sqlx::query!(
        r#"SELECT known.request_hash, operation.id AS "id?", operation.status AS "status?",
                  operation.response_body, operation.failure
           FROM idempotency_keys known LEFT JOIN operations operation ON operation.id = known.operation_id
           WHERE known.api_key_id = $1 AND known.key = $2"#,
        key.client_id,
        key.key
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.request_hash != key.request_hash {
        return Ok(Some(Begun::Mismatch));
    }
    let (Some(id), Some(status)) = (row.id, row.status) else {
        return Ok(None);
    };
    Ok(Some(Begun::Known(Box::new(Known {
        id: OperationId::from_uuid(id),
        status: word(&status)?,
        response_body: row.response_body,
        failure: row.failure.map(from_json).transpose()?,
    }))))
}

/// Notes that Dojo is about to be asked, and for a capture which others Dojo has, so that the new one can be told from
/// them. `false`: the lease is over, so Dojo must not be asked.
pub async fn about_to_ask(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    captures: Option<&[String]>,
) -> Result<bool, Error> {
    let noted = sqlx::query!(
        "UPDATE operations SET captures_before = $3
         WHERE id = $1 AND status = 'Pending' AND leased_until = $2 AND leased_until > now()",
        id.uuid(),
        lease.until,
        captures
    )
    .execute(pool)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Records that Dojo performed an operation, and makes the link due for reconciliation. A new amount is from now on the
/// requested one.
///
/// If the operation may change the payment's status, Dojo's status is unknown until the next read, and the link isn't
/// confirmed until then. A read that began before the operation is discarded, except for refunds: several may be under way,
/// and each would discard the reads of the others.
///
/// A capture that had been given up is that one only if it is no other's: `false` if it is, or may be.
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
                        -- A later one whose id is not known may be the one that is there.
                        OR (other.dojo_id IS NULL AND other.status <> 'Failed' AND other.id > $3))
             ))
             RETURNING id, payment_link_id, kind, action, amount, dojo_id,
                       kind IN ('cancel', 'capture', 'refund', 'reversal') AS moves
         ), link AS (
             UPDATE payment_links link
             SET due_at = now(),
                 amount = CASE WHEN done.kind = 'amount' THEN done.amount ELSE link.amount END,
                 request = CASE WHEN done.kind = 'amount' THEN link.request || (done.action->'request')
                                ELSE link.request END,
                 mismatch = CASE WHEN done.kind = 'amount' THEN NULL ELSE link.mismatch END,
                 unsettled_status = CASE WHEN done.moves THEN '' ELSE link.unsettled_status END,
                 -- Rows of an earlier version lack it. Their status is then also what Dojo said last.
                 dojo_status = CASE WHEN done.moves AND link.unsettled_status IS NULL
                                    THEN coalesce(link.dojo_status, link.status) ELSE link.dojo_status END,
                 -- A read that is under way compares with the amount, or shows the status, of before.
                 revision = link.revision + (done.kind IN ('amount', 'cancel', 'capture', 'reversal'))::int,
                 updated_at = CASE WHEN done.kind = 'amount' THEN now() ELSE link.updated_at END
             FROM done WHERE link.id = done.payment_link_id
             RETURNING link.id, link.status
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $6::text, 'operation', done.kind, 'dojoId', done.dojo_id)
                        AS detail
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

/// Keeps the answer for repetitions of the request.
pub async fn keep_answer(pool: &PgPool, id: OperationId, body: &str) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE operations SET response_body = $2 WHERE id = $1 AND response_body IS NULL",
        id.uuid(),
        body
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Marks an operation as not done, which is only ever done on proof and under the lease that the proof was got under.
/// `false` if that is over. The link is looked at: it is not what it was taken for.
///
/// `watch`: where an answer was lost before, look once more after that long whether it has been done after all.
pub async fn fail(
    pool: &PgPool,
    id: OperationId,
    lease: Lease,
    failure: &Failure,
    retry: Retry,
    watch: Option<Duration>,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = record!(
        Kind::OperationFailed,
        cause,
        "WITH failed AS (
             UPDATE operations
             SET status = $5, failure = $6, completed_at = now(), leased_until = NULL,
                 due_at = now() + make_interval(secs => $8)
             WHERE id = $3 AND status = 'Pending' AND leased_until = $4
             RETURNING id, payment_link_id, kind
         ), freed AS (
             UPDATE idempotency_keys SET operation_id = NULL
             WHERE $7 AND operation_id IN (SELECT id FROM failed)
         ), link AS (
             UPDATE payment_links SET due_at = now() WHERE id IN (SELECT payment_link_id FROM failed)
             RETURNING id, status
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $9::text, 'operation', failed.kind, 'failure', $6::jsonb)
                        AS detail
             FROM failed JOIN link ON true
         )",
        id.uuid(),
        lease.until,
        OperationStatus::Failed.as_str(),
        to_json(failure)?,
        retry == Retry::Allowed,
        watch.map(|watch| watch.as_secs_f64()),
        id.to_string()
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Notes that Dojo's answer was lost; what became of it is found out in the background.
pub async fn unanswered(
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

/// Notes that Dojo's answer was lost once more; it is asked again after `wait`. The timeline tells of the first time.
pub async fn unanswered_again(
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

/// Notes that a try came to nothing at Dojo, and gives the operation back, to be seen to after `wait`. When Dojo may last
/// have been asked is again what it was before.
pub async fn not_asked(
    pool: &PgPool,
    unsettled: &Unsettled,
    lease: Lease,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE operations
         SET leased_until = NULL, asked_until = $4, due_at = now() + make_interval(secs => $3)
         WHERE id = $1 AND status = 'Pending' AND leased_until = $2",
        unsettled.id.uuid(),
        lease.until,
        wait.as_secs_f64(),
        unsettled.asked_until
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Gives up finding out what became of an operation. What it may have given back stays reserved. `false`: the lease
/// is over.
pub async fn unconfirmed(
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
             RETURNING payment_link_id, kind
         ), link AS (
             UPDATE payment_links SET due_at = now() WHERE id IN (SELECT payment_link_id FROM given_up)
             RETURNING id, status
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $6::text, 'operation', given_up.kind) AS detail
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

/// An operation of which nobody can tell whether it was done, for people who look.
#[derive(Debug)]
pub struct InDoubt {
    /// The operation.
    pub id: OperationId,
    /// Its link.
    pub link_id: PaymentLinkId,
    /// The Dojo account.
    pub account: String,
    /// The intent that it is about.
    pub payment_intent_id: String,
    /// What was asked for.
    pub action: Action,
    /// The name of the client that asked.
    pub created_by: String,
    /// When.
    pub created_at: OffsetDateTime,
}

/// Every such operation, oldest first.
pub async fn in_doubt(pool: &PgPool) -> Result<Vec<InDoubt>, Error> {
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
        Ok(InDoubt {
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

/// Notes that a person found that an operation in doubt was not done: what it reserved is free again. `false` if it is
/// not in doubt.
pub async fn was_not_done(
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
             RETURNING payment_link_id, kind
         ), link AS (
             UPDATE payment_links SET due_at = now() WHERE id IN (SELECT payment_link_id FROM failed)
             RETURNING id, status
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after,
                    jsonb_build_object('operationId', $6::text, 'operation', failed.kind, 'failure', $5::jsonb)
                        AS detail
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

/// An operation whose outcome nobody knows or works on, or a capture that was given up and may come to light late,
/// claimed.
#[derive(Debug, Clone)]
pub struct Unsettled {
    /// The operation.
    pub id: OperationId,
    /// Its link.
    pub link_id: PaymentLinkId,
    /// The intent that it is about.
    pub payment_intent_id: String,
    /// Whether it was given up already.
    pub failed: bool,
    /// What was asked for.
    pub action: Action,
    /// The key that goes to Dojo with each try.
    pub dojo_key: Option<String>,
    /// The captures that are not this one: those of before it, and those of other operations. `None`: Dojo was not
    /// asked.
    pub captures_before: Option<Vec<String>>,
    /// What other refunds of the link that went through this service have given back, those of just now left out: a
    /// copy of Dojo's data may not show them yet.
    pub other_refunds: i64,
    /// The same, those of just now included.
    pub done_refunds: i64,
    /// What refunds that were requested before this one, and whose outcome is not known either, may give back.
    pub earlier_refunds: i64,
    /// Whether the link has the amount or the tip that is asked for, as it is held here.
    pub was_so: bool,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// Until when a request to do it may have left.
    pub asked_until: Option<OffsetDateTime>,
    pub lease: Lease,
    /// The database's time.
    pub now: OffsetDateTime,
}

impl Unsettled {
    /// Since it was asked for.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.since(self.created_at)
    }

    fn since(&self, at: OffsetDateTime) -> Duration {
        Duration::try_from(self.now - at).unwrap_or_default()
    }

    /// What the rules want to know about it.
    #[must_use]
    pub fn lost(&self) -> Lost<'_> {
        Lost {
            action: &self.action,
            captures_before: self.captures_before.as_deref(),
            other_refunds: self.other_refunds,
            done_refunds: self.done_refunds,
            earlier_refunds: self.earlier_refunds,
            was_so: self.was_so,
            since_asked: self.since(self.asked_until.unwrap_or(self.created_at)),
            age: self.age(),
        }
    }
}

/// Claims up to `limit` such operations that are due. Nobody else gets them until the lease is over. `window`: how long
/// Dojo's answers may lag behind.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
    window: SettlementWindow,
) -> Result<Vec<Unsettled>, Error> {
    let lease = LeaseRequest::new(lease);
    let rows = claim!(
        "operations",
        // While another capture is under way, nobody can tell whose a new one is.
        "(status = 'Pending' OR NOT EXISTS (
              SELECT FROM operations other
              WHERE other.payment_link_id = operations.payment_link_id AND other.kind = 'capture'
                AND other.status = 'Pending'
          ))",
        r#"
         SELECT claimed.id, claimed.payment_link_id, link.payment_intent_id AS "payment_intent_id!",
                claimed.status = 'Failed' AS "failed!", claimed.action, claimed.dojo_key,
                -- NULL concatenated with an array would be that array.
                CASE WHEN claimed.captures_before IS NOT NULL THEN claimed.captures_before || ARRAY(
                    SELECT dojo_id FROM operations other
                    WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'capture'
                      AND other.id <> claimed.id AND other.dojo_id IS NOT NULL
                ) END AS captures_before,
                coalesce((SELECT sum(amount) FROM operations other
                          WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'refund'
                            AND other.id <> claimed.id AND other.status = 'Succeeded'
                            AND other.completed_at <= now() - make_interval(secs => $4)), 0)::bigint
                    AS "other_refunds!",
                coalesce((SELECT sum(amount) FROM operations other
                          WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'refund'
                            AND other.id <> claimed.id AND other.status = 'Succeeded'), 0)::bigint
                    AS "done_refunds!",
                coalesce((SELECT sum(amount) FROM operations other
                          WHERE other.payment_link_id = claimed.payment_link_id AND other.kind = 'refund'
                            AND other.id < claimed.id AND other.status = 'Pending'), 0)::bigint
                    AS "earlier_refunds!",
                CASE claimed.kind WHEN 'amount' THEN link.amount = claimed.amount
                                  WHEN 'tipsAmount' THEN coalesce(link.tips_amount, 0) = claimed.amount
                                  ELSE false END AS "was_so!",
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
            // One that cannot be read must not hold up the others; its lease runs out.
            let action = from_json(row.action)
                .inspect_err(|error| tracing::error!(operation_id = %id, %error, "an operation is unreadable"))
                .ok()?;
            Some(Unsettled {
                id,
                link_id: PaymentLinkId::from_uuid(row.payment_link_id),
                payment_intent_id: row.payment_intent_id,
                failed: row.failed,
                action,
                dojo_key: row.dojo_key,
                captures_before: row.captures_before,
                other_refunds: row.other_refunds,
                done_refunds: row.done_refunds,
                earlier_refunds: row.earlier_refunds,
                was_so: row.was_so,
                created_at: row.created_at,
                asked_until: row.asked_until,
                lease: lease.granted(row.leased_until),
                now: row.now,
            })
        })
        .collect())
}

/// How many operations of an account have an outcome that is not known, and nobody who is just asking Dojo for it.
pub async fn backlog(pool: &PgPool, account: &str) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM operations
           WHERE account = $1 AND due_at IS NOT NULL AND status = 'Pending'
             AND (leased_until IS NULL OR leased_until <= now())"#,
        account
    )
    .fetch_one(pool)
    .await?)
}

/// Notes that Dojo is about to be asked again, under a new lease. `None`: somebody else has settled or claimed it
/// meanwhile, so Dojo must not be asked.
pub async fn ask_again(
    pool: &PgPool,
    id: OperationId,
    held: Lease,
    lease: Duration,
) -> Result<Option<Lease>, Error> {
    let lease = LeaseRequest::new(lease);
    let until = sqlx::query_scalar!(
        r#"UPDATE operations
           SET leased_until = now() + make_interval(secs => $3), asked_until = now() + make_interval(secs => $3)
           WHERE id = $1 AND status = 'Pending' AND leased_until = $2 AND leased_until > now()
           RETURNING leased_until AS "until!""#,
        id.uuid(),
        held.until,
        lease.seconds()
    )
    .fetch_optional(pool)
    .await?;
    Ok(until.map(|until| lease.granted(until)))
}

/// Gives a claimed operation back, to be seen to after `wait`; `None`: there is nothing more to find out.
pub async fn give_back(
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

/// Up to `limit` operations on a link behind the operation `after`, oldest first.
pub async fn list(
    pool: &PgPool,
    link_id: PaymentLinkId,
    after: Option<OperationId>,
    limit: i64,
) -> Result<Vec<Operation>, Error> {
    sqlx::query!(
        "SELECT id, action, status, dojo_id, failure, created_by, created_at, completed_at
         FROM operations
         WHERE payment_link_id = $1 AND ($2::uuid IS NULL OR id > $2)
         ORDER BY id
         LIMIT $3",
        link_id.uuid(),
        after.map(|after| after.uuid()) as Option<Uuid>,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(|row| {
        Ok(Operation {
            id: OperationId::from_uuid(row.id),
            status: word(&row.status)?,
            dojo_id: row.dojo_id,
            failure: row.failure.map(from_json).transpose()?,
            created_by: row.created_by,
            created_at: row.created_at,
            completed_at: row.completed_at,
            action: from_json(row.action)?,
        })
    })
    .collect()
}
