//! The database's side of creating a link: saving it before Dojo is asked, and what came of it after.
//!
//! Each function is one short transaction. None of them is open while Dojo is called.

use serde_json::{Value, json};
use sqlx::{PgPool, PgTransaction};
use uuid::Uuid;

use super::{Error, from_json, links::select_links, to_json};
use crate::{
    dojo::PaymentIntent,
    payment_link::{
        Environment, Failure, NewPaymentLink, PaymentLink, PaymentLinkId, Status, Verdict,
        timeline::{Cause, Kind},
    },
};

/// A link to be saved.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Its id.
    pub id: PaymentLinkId,
    /// Whether real money moves.
    pub environment: Environment,
    /// What the caller asked for.
    pub new: &'a NewPaymentLink,
    /// The name of the API key that asked.
    pub created_by: &'a str,
    /// Why it is made.
    pub cause: &'a Cause,
}

/// An `Idempotency-Key` that came with a request.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// The API key that it belongs to.
    pub api_key_id: Uuid,
    /// The key.
    pub key: String,
    /// SHA-256 of what was asked for.
    pub request_hash: [u8; 32],
}

/// What a request to create a link finds.
#[derive(Debug)]
pub enum Begun {
    /// The link is saved; Dojo is to be asked.
    New,
    /// A request with this key was here before.
    Known(Known),
    /// A request with this key was here before and asked for something else.
    Mismatch,
}

/// Where an earlier request with the same key stands.
#[derive(Debug)]
pub struct Known {
    /// The link that it led to.
    pub link_id: PaymentLinkId,
    /// What was answered, word for word, if it came to a link.
    pub response_body: Option<String>,
    /// Why it came to nothing, if it did.
    pub failure: Option<Failure>,
}

/// Saves a link as `Pending`, unless its idempotency key says that this is a repetition.
///
/// The key's primary key in Postgres decides, so exactly one of any number of requests on any number of
/// replicas is the first. A key whose last try provably created nothing is free again for the same request.
pub async fn begin(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Begun, Error> {
    let Draft { id, new, .. } = draft;
    let saved = sqlx::query_scalar!(
        r#"
        WITH claim AS (
            INSERT INTO idempotency_keys AS known (api_key_id, key, request_hash, payment_link_id)
            SELECT $1, $2, $3, $4 WHERE $2::text IS NOT NULL
            ON CONFLICT (api_key_id, key) DO UPDATE SET payment_link_id = EXCLUDED.payment_link_id
                WHERE known.payment_link_id IS NULL AND known.request_hash = EXCLUDED.request_hash
            RETURNING true
        ), link AS (
            INSERT INTO payment_links
                (id, account, environment, status, request, reference, currency, amount, tips_amount,
                 expire_at, created_by)
            SELECT $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14
            WHERE $2::text IS NULL OR EXISTS (SELECT FROM claim)
            RETURNING id
        ), told AS (
            INSERT INTO payment_link_events (payment_link_id, kind, status_after, cause)
            SELECT id, $15, $7, $16 FROM link
        )
        SELECT EXISTS (SELECT FROM link) AS "saved!"
        "#,
        key.map(|key| key.api_key_id),
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
        Kind::Requested.as_str(),
        to_json(draft.cause)?,
    )
    .fetch_one(pool)
    .await?;

    match key {
        Some(key) if !saved => known(pool, key).await,
        _ => Ok(Begun::New),
    }
}

async fn known(pool: &PgPool, key: &IdempotencyKey) -> Result<Begun, Error> {
    let row = sqlx::query!(
        r#"SELECT known.request_hash, known.payment_link_id AS "link_id?", known.response_body, link.failure
           FROM idempotency_keys known LEFT JOIN payment_links link ON link.id = known.payment_link_id
           WHERE known.api_key_id = $1 AND known.key = $2"#,
        key.api_key_id,
        key.key
    )
    .fetch_one(pool)
    .await?;
    let Some(link_id) = row.link_id.filter(|_| row.request_hash == key.request_hash) else {
        return Ok(Begun::Mismatch);
    };
    Ok(Begun::Known(Known {
        link_id: PaymentLinkId::from_uuid(link_id),
        response_body: row.response_body,
        failure: row.failure.map(from_json).transpose()?,
    }))
}

/// Gives a pending link the intent that Dojo created for it, applies what webhooks told of that intent
/// before, and keeps the answer for repetitions of the request. A link that is no longer pending is
/// answered as it is.
pub async fn confirm(
    pool: &PgPool,
    id: PaymentLinkId,
    intent: &PaymentIntent,
    url: &str,
    cause: &Cause,
) -> Result<PaymentLink, Error> {
    let cause = to_json(cause)?;
    let mut transaction = pool.begin().await?;

    // First of all, so that a webhook for this intent runs wholly before or wholly after what follows
    // (see `webhooks::record`).
    sqlx::query!(
        "INSERT INTO payment_intents AS known (id, account, payment_link_id)
         SELECT $1, account, id FROM payment_links WHERE id = $2
         ON CONFLICT (id) DO UPDATE SET payment_link_id = EXCLUDED.payment_link_id, last_seen_at = now()",
        intent.id,
        id.uuid()
    )
    .execute(&mut *transaction)
    .await?;

    let reported = Status::from_dojo(&intent.status);
    // A word that we do not know still proves that there is an intent.
    let status = reported.unwrap_or(Status::Created);
    let confirmed = sqlx::query!(
        "UPDATE payment_links
         SET status = $2, payment_intent_id = $3, url = $4, amount = coalesce($5, amount),
             tips_amount = coalesce($6, tips_amount), total_amount = $7, refunded_amount = $8,
             expire_at = coalesce($9, expire_at), payment = $10, attempts = $11,
             due_at = CASE WHEN $12 THEN now() END,
             -- The customer's secret was Dojo's to know, and has no further use here.
             request = request #- '{customer,secret}',
             synced_at = now(), updated_at = now()
         WHERE id = $1 AND status = 'Pending'",
        id.uuid(),
        status.as_str(),
        intent.id,
        url,
        intent.amount.map(|amount| amount.value),
        intent.tips_amount.map(|amount| amount.value),
        intent.total_amount.map(|amount| amount.value),
        intent.refunded_amount,
        intent.expire_at,
        intent.payment().as_ref().map(to_json).transpose()?,
        to_json(&intent.attempts())?,
        reported.is_none(),
    )
    .execute(&mut *transaction)
    .await?;

    if confirmed.rows_affected() == 1 {
        sqlx::query!(
            "INSERT INTO payment_link_events
                 (payment_link_id, kind, status_before, status_after, cause, detail)
             VALUES ($1, $2, 'Pending', $3, $4, $5)",
            id.uuid(),
            Kind::Confirmed.as_str(),
            status.as_str(),
            cause,
            json!({"paymentIntentId": intent.id, "reported": intent.status})
        )
        .execute(&mut *transaction)
        .await?;
        apply_early_webhooks(&mut transaction, id, &intent.id, status).await?;
    }

    let link = select_links!("WHERE id = $1", id.uuid())
        .fetch_one(&mut *transaction)
        .await?
        .into_link()?;
    let body =
        serde_json::to_string(&link).map_err(|error| Error::Unreadable(error.to_string()))?;
    sqlx::query!(
        "UPDATE idempotency_keys SET response_body = $2
         WHERE payment_link_id = $1 AND response_body IS NULL",
        id.uuid(),
        body
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(link)
}

/// Judges the webhooks that came before the link knew its intent, in the order of their arrival.
async fn apply_early_webhooks(
    transaction: &mut PgTransaction<'_>,
    id: PaymentLinkId,
    payment_intent_id: &str,
    mut status: Status,
) -> Result<(), Error> {
    let mut early = sqlx::query!(
        r#"UPDATE webhook_events event SET payment_link_id = link.id
           FROM payment_links link
           WHERE link.id = $1 AND event.account = link.account
             AND event.payment_intent_id = $2 AND event.payment_link_id IS NULL
           RETURNING event.id, event.dedup_key, event.event_type, event.payment_status AS reported"#,
        id.uuid(),
        payment_intent_id
    )
    .fetch_all(&mut **transaction)
    .await?;
    early.sort_by_key(|event| event.id);

    let confirmed_as = status;
    let mut fresh_look = false;
    for event in early {
        let Some(reported) = event.reported else {
            continue;
        };
        let verdict = status.judge(Status::from_dojo(&reported));
        let before = status;
        if let Verdict::Moved(after) = verdict {
            status = after;
        }
        fresh_look |= verdict.needs_fresh_look();
        sqlx::query!(
            "INSERT INTO payment_link_events
                 (payment_link_id, kind, status_before, status_after, cause, detail)
             VALUES ($1, $2, $3, $4, $5, $6)",
            id.uuid(),
            Kind::Webhook.as_str(),
            before.as_str(),
            status.as_str(),
            to_json(&Cause::Webhook {
                event_id: event.dedup_key
            })?,
            json!({"verdict": verdict.name(), "reported": reported, "event": event.event_type})
        )
        .execute(&mut **transaction)
        .await?;
    }
    if status != confirmed_as || fresh_look {
        sqlx::query!(
            "UPDATE payment_links
             SET status = $2, due_at = CASE WHEN $3 THEN now() ELSE due_at END
             WHERE id = $1",
            id.uuid(),
            status.as_str(),
            fresh_look
        )
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Whether a request with the same idempotency key may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The failure is the answer, also to repetitions.
    Final,
    /// The key is free for another try.
    Allowed,
}

/// Marks a pending link as come to nothing, which is only ever done on proof.
pub async fn fail(
    pool: &PgPool,
    id: PaymentLinkId,
    failure: &Failure,
    retry: Retry,
    cause: &Cause,
) -> Result<(), Error> {
    sqlx::query!(
        "WITH failed AS (
             UPDATE payment_links
             SET status = $2, failure = $3, updated_at = now(), due_at = NULL,
                 request = request #- '{customer,secret}'
             WHERE id = $1 AND status = 'Pending'
             RETURNING id
         ), freed AS (
             UPDATE idempotency_keys SET payment_link_id = NULL
             WHERE $4 AND payment_link_id IN (SELECT id FROM failed)
         )
         INSERT INTO payment_link_events
             (payment_link_id, kind, status_before, status_after, cause, detail)
         SELECT id, $5, 'Pending', $2, $6, $3 FROM failed",
        id.uuid(),
        Status::Failed.as_str(),
        to_json(failure)?,
        retry == Retry::Allowed,
        Kind::Failed.as_str(),
        to_json(cause)?,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes that Dojo's answer was lost and the link stays pending until it is known what happened.
pub async fn unanswered(
    pool: &PgPool,
    id: PaymentLinkId,
    reason: &str,
    cause: &Cause,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO payment_link_events
             (payment_link_id, kind, status_before, status_after, cause, detail)
         VALUES ($1, $2, 'Pending', 'Pending', $3, $4)",
        id.uuid(),
        Kind::Unanswered.as_str(),
        to_json(cause)?,
        Value::from_iter([("reason", reason)]),
    )
    .execute(pool)
    .await?;
    Ok(())
}
