//! The database's side of creating a link: saving it before Dojo is asked, and what came of it after.
//!
//! Each function is one short transaction. None of them is open while Dojo is called.

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction, from_json,
    leases::{Lease, LeaseRequest, claim, release},
    links::select_links,
    timeline::record,
    to_json,
    webhooks::judge,
};
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
    /// The name of the client that asked.
    pub created_by: &'a str,
    /// Why it is made.
    pub cause: &'a Cause,
    /// How long nobody else may work on it: longer than creating it at Dojo can take.
    pub lease: Duration,
}

/// An `Idempotency-Key` that came with a request.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// The client that it belongs to.
    pub client_id: Uuid,
    /// The key.
    pub key: String,
    /// SHA-256 of what was asked for.
    pub request_hash: [u8; 32],
}

/// What a request to create a link finds.
#[derive(Debug)]
pub enum Begun {
    /// The link is saved; Dojo is to be asked before this lease is over.
    New(Lease),
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
    // A key that was taken a moment ago may be free by the time it is read: its first try came to nothing. It
    // can be seen so again only if yet another request took it in between.
    for _ in 0..3 {
        if let Some(lease) = save(pool, draft, key).await? {
            return Ok(Begun::New(lease));
        }
        if let Some(key) = key
            && let Some(begun) = known(pool, key).await?
        {
            return Ok(begun);
        }
    }
    Ok(Begun::Known(Known {
        link_id: draft.id,
        response_body: None,
        failure: None,
    }))
}

/// Claims the key and saves the link, both or neither. The lease on the link, or `None` if the key is taken.
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

/// What an earlier request with this key came to. `None`: there was none, or it came to nothing and left the key
/// free.
pub async fn known(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Begun>, Error> {
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
        return Ok(Some(Begun::Mismatch));
    }
    let Some(link_id) = row.link_id else {
        return Ok(None);
    };
    Ok(Some(Begun::Known(Known {
        link_id: PaymentLinkId::from_uuid(link_id),
        response_body: row.response_body,
        failure: row.failure.map(from_json).transpose()?,
    })))
}

/// What confirming a link came to.
#[derive(Debug)]
pub struct Adopted {
    /// The link as it is now.
    pub link: PaymentLink,
    /// Whether the link has another intent already, so that this one is to be canceled.
    pub surplus: bool,
    /// Whether this gave the link its intent, and Dojo reports another amount of it than was asked for.
    pub mismatch: bool,
}

/// Gives a pending link the intent that Dojo created for it, applies what webhooks told of that intent
/// before, and keeps the answer for repetitions of the request.
///
/// A link that is no longer pending stays as it is. If it has another intent, or came to nothing, this one is
/// surplus, and marked to be canceled. An intent that belongs to another link, as its own or as surplus, is left alone:
/// [`Error::IntentOfAnotherLink`].
pub async fn adopt_intent(
    pool: &PgPool,
    id: PaymentLinkId,
    intent: &PaymentIntent,
    url: &str,
    cause: &Cause,
) -> Result<Adopted, Error> {
    let mut transaction = pool.begin().await?;

    // First of all, so that a webhook for this intent runs wholly before or wholly after what follows
    // (see `webhooks::record`).
    let owner = sqlx::query_scalar!(
        r#"INSERT INTO payment_intents (id, account)
           SELECT $1, account FROM payment_links WHERE id = $2
           -- Whose it is, the answer to the account's own key tells, whatever door a webhook about it came to before.
           ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), account = EXCLUDED.account
           RETURNING coalesce(payment_link_id, surplus_of) AS "owner?""#,
        intent.id,
        id.uuid()
    )
    .fetch_optional(&mut *transaction)
    .await?
    .flatten();
    if let Some(owner) = owner.filter(|owner| *owner != id.uuid()) {
        // Neither this link's to hand out nor its to cancel. Dropping the transaction undoes the above.
        return Err(Error::IntentOfAnotherLink {
            payment_intent_id: intent.id.clone(),
            owner: PaymentLinkId::from_uuid(owner),
        });
    }

    // A word that we do not know still proves that there is an intent.
    let known = intent.known_status();
    let status = known.unwrap_or(Status::Created);
    let total = intent.total_amount.as_ref();
    let amount = intent.amount.as_ref();
    let confirmed = sqlx::query!(
        "UPDATE payment_links
         SET status = $2, payment_intent_id = $3, url = $4, refunded_amount = $6,
             -- In another currency it would be read as an amount of this one.
             total_amount = CASE WHEN currency = $12 THEN $5::bigint END,
             mismatch = CASE WHEN (amount, currency) <> ($13, $14)
                             THEN jsonb_build_object('value', $13::bigint, 'currencyCode', $14::text) END,
             expire_at = coalesce($7, expire_at), payment = $8, attempts = $9, captures = $15,
             dojo_updated_at = $10, dojo_status = $11, unsettled_status = $16,
             due_at = now() + interval '10 seconds', leased_until = NULL, revision = revision + 1,
             -- The customer's secret was Dojo's to know, and has no further use here.
             request = request #- '{customer,secret}',
             synced_at = now(), updated_at = now()
         WHERE id = $1 AND status = 'Pending'",
        id.uuid(),
        status.as_str(),
        intent.id,
        url,
        total.map(|total| total.value),
        intent.refunded_amount.unwrap_or(0),
        intent.expire_at,
        intent.payment().as_ref().map(to_json).transpose()?,
        to_json(&intent.attempts())?,
        intent.updated_at,
        known.map(Status::as_str),
        total.map(|total| total.currency_code.as_str()),
        amount.map(|amount| amount.value),
        amount.map(|amount| amount.currency_code.as_str()),
        to_json(&intent.captures.as_deref().unwrap_or_default())?,
        known.is_none().then_some(intent.status.as_str()),
    )
    .execute(&mut *transaction)
    .await?;

    if confirmed.rows_affected() == 1 {
        record!(
            Kind::Created,
            cause,
            "WITH owned AS (
                 UPDATE payment_intents SET payment_link_id = $3, due_at = NULL WHERE id = $6
             ), entry AS (
                 SELECT $3 AS link_id, 'Pending' AS before, $4 AS after, $5::jsonb AS detail
             )",
            id.uuid(),
            status.as_str(),
            json!({"paymentIntentId": intent.id, "reported": intent.status}),
            intent.id
        )
        .execute(&mut *transaction)
        .await?;
        apply_early_webhooks(&mut transaction, id, &intent.id, status).await?;
    }

    // Locked, so that what is told below is told of the status that it has then.
    let link = select_links!("WHERE id = $1 FOR UPDATE", id.uuid())
        .fetch_one(&mut *transaction)
        .await?
        .into_link()?;
    let surplus = link.payment_intent_id.as_ref() != Some(&intent.id);
    let mismatch = confirmed.rows_affected() == 1 && link.reported_amount.is_some();
    if mismatch {
        record_mismatch(&mut transaction, &link, cause).await?;
    }
    if surplus {
        mark_surplus(&mut transaction, &link, &intent.id, cause).await?;
    } else {
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
    }
    transaction.commit().await?;
    Ok(Adopted {
        link,
        surplus,
        mismatch,
    })
}

/// Records that Dojo reports another amount than the requested one.
async fn record_mismatch(
    transaction: &mut PgTransaction,
    link: &PaymentLink,
    cause: &Cause,
) -> Result<(), Error> {
    record!(
        Kind::AmountMismatch,
        cause,
        "WITH entry AS (SELECT $3::uuid AS link_id, $4 AS before, $4 AS after, $5::jsonb AS detail)",
        link.id.uuid(),
        link.status.as_str(),
        json!({"asked": link.amount, "reported": link.reported_amount})
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Marks an intent as one too many, to be canceled at once. Tells of it once.
async fn mark_surplus(
    transaction: &mut PgTransaction,
    link: &PaymentLink,
    payment_intent_id: &str,
    cause: &Cause,
) -> Result<(), Error> {
    record!(
        Kind::SurplusFound,
        cause,
        "WITH marked AS (
             UPDATE payment_intents SET surplus_of = $3, due_at = now(), leased_until = NULL
             WHERE id = $4 AND surplus_of IS NULL
             RETURNING id, surplus_of
         ), entry AS (
             SELECT surplus_of AS link_id, $5 AS before, $5 AS after,
                    jsonb_build_object('paymentIntentId', id) AS detail
             FROM marked
         )",
        link.id.uuid(),
        payment_intent_id,
        link.status.as_str()
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Judges the webhooks that came before the link knew its intent, in the order of their arrival.
async fn apply_early_webhooks(
    transaction: &mut PgTransaction,
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
    let any = !early.is_empty();
    for event in early {
        let event_type = event.event_type.unwrap_or_default();
        let verdict = judge(status, &event_type, event.reported.as_deref());
        let before = status;
        if let Verdict::Moved(after) = verdict {
            status = after;
        }
        record!(
            Kind::Webhook,
            &Cause::Webhook {
                event_id: event.dedup_key
            },
            "WITH entry AS (SELECT $3::uuid AS link_id, $4 AS before, $5 AS after, $6::jsonb AS detail)",
            id.uuid(),
            before.as_str(),
            status.as_str(),
            json!({"verdict": verdict.name(), "reported": event.reported, "event": event_type})
        )
        .execute(&mut **transaction)
        .await?;
    }
    if any {
        sqlx::query!(
            "UPDATE payment_links
             SET status = $2, due_at = now(), revision = revision + $3::int,
                 unsettled_status = CASE WHEN $3 = 0 THEN unsettled_status END
             WHERE id = $1",
            id.uuid(),
            status.as_str(),
            i32::from(status != confirmed_as)
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

/// Marks a pending link as come to nothing, which is only ever done on proof and under the lease that the proof was
/// got under. `false` if that is over: somebody else sees to the link, and what they write stays.
///
/// `watch`: where an answer was lost before, look once more after that long whether an intent has come to light.
pub async fn fail(
    pool: &PgPool,
    id: PaymentLinkId,
    lease: Lease,
    failure: &Failure,
    retry: Retry,
    watch: Option<Duration>,
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
        watch.map(|watch| watch.as_secs_f64()),
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Notes that Dojo's answer was lost: the link stays pending, and recovery may look for what became of it.
///
/// `lease` is the one that the creation was done under. Whoever overslept it has no say any more, here and below.
pub async fn unanswered(
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

/// A pending link whose creation nobody works on, or one that failed after an answer was lost, claimed.
#[derive(Debug, Clone)]
pub struct Unsettled {
    /// The link.
    pub id: PaymentLinkId,
    /// Whether it has failed already, so that an intent that comes to light is one too many.
    pub failed: bool,
    /// What was asked for.
    pub new: NewPaymentLink,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// Until when a request to create it may have left; `None`: none ever did.
    pub asked_until: Option<OffsetDateTime>,
    /// The claim: until it runs out nobody else works on the link.
    pub lease: Lease,
    /// The database's time: the replicas' own clocks may differ.
    pub now: OffsetDateTime,
}

/// Claims up to `limit` such links that are due. Nobody else gets them until the lease is over; whoever
/// dies with them loses them then.
pub async fn claim_unsettled(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<Unsettled>, Error> {
    let lease = LeaseRequest::new(lease);
    claim!(
        "payment_links",
        "status IN ('Pending', 'Failed')",
        r#"SELECT id, status = 'Failed' AS "failed!", request, created_at, asked_until,
                  leased_until AS "leased_until!", now() AS "now!"
           FROM claimed"#,
        account,
        lease,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .filter_map(|row| {
        let id = PaymentLinkId::from_uuid(row.id);
        // One that cannot be read must not hold up the others; its lease runs out.
        let new = from_json(row.request)
            .inspect_err(
                |error| tracing::error!(link_id = %id, %error, "a pending link is unreadable"),
            )
            .ok()?;
        Some(Ok(Unsettled {
            id,
            failed: row.failed,
            new,
            created_at: row.created_at,
            asked_until: row.asked_until,
            lease: lease.granted(row.leased_until),
            now: row.now,
        }))
    })
    .collect()
}

/// Gives a claimed link back, to be looked at again after `wait`; `None`: there is nothing more to look for.
pub async fn give_back(
    pool: &PgPool,
    id: PaymentLinkId,
    lease: Lease,
    wait: Option<Duration>,
) -> Result<(), Error> {
    release!(
        "payment_links",
        "status IN ('Pending', 'Failed')",
        id.uuid(),
        lease,
        wait
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes that Dojo was not reached after all, and gives the link back, to be tried again after `wait`. What may have
/// left before this try stays known.
pub async fn not_asked(
    pool: &PgPool,
    unsettled: &Unsettled,
    lease: Lease,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE payment_links
         SET leased_until = NULL, asked_until = $4, due_at = now() + make_interval(secs => $2)
         WHERE id = $1 AND status = 'Pending' AND leased_until = $3",
        unsettled.id.uuid(),
        wait.as_secs_f64(),
        lease.until,
        unsettled.asked_until
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes that Dojo is about to be asked to create a claimed pending link again, under a new lease. `None`:
/// somebody else has settled or claimed it meanwhile, so Dojo must not be asked.
pub async fn ask_again(
    pool: &PgPool,
    unsettled: &Unsettled,
    lease: Duration,
    cause: &Cause,
) -> Result<Option<Lease>, Error> {
    let lease = LeaseRequest::new(lease);
    let asking = record!(
        Kind::CreationRetried,
        cause,
        r#"WITH asking AS (
             UPDATE payment_links
             SET leased_until = now() + make_interval(secs => $4),
                 asked_until = now() + make_interval(secs => $4)
             WHERE id = $3 AND status = 'Pending' AND leased_until = $5 AND leased_until > now()
             RETURNING id, status, leased_until
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, NULL::jsonb AS detail FROM asking
         )"# => r#"
         SELECT leased_until AS "until!" FROM asking"#,
        unsettled.id.uuid(),
        lease.seconds(),
        unsettled.lease.until
    )
    .fetch_optional(pool)
    .await?;
    Ok(asking.map(|row| lease.granted(row.until)))
}
