//! Giving a link the payment intent that Dojo created for it.
//!
//! Usually the intent is new here and all is well with it. Then one statement does everything. If not, a transaction of several
//! statements does.

use serde::Serialize;
use time::OffsetDateTime;

use super::{
    Error, PgPool, PgTransaction,
    links::{self, select_links},
    microseconds,
    timeline::{count_status_change, record},
    to_json,
    webhooks::judge,
};
use crate::{
    dojo::PaymentIntent,
    payment_link::{
        Attempt, Capture, Payment, PaymentLink, PaymentLinkId, ReportedAmount, Status, Verdict,
        timeline::{Cause, CreatedDetail, Kind, MismatchDetail, WebhookDetail},
    },
};

#[derive(Debug)]
pub struct Adopted {
    /// The link as it is now.
    pub link: PaymentLink,
    /// Whether the link already has another intent, so that this one must be canceled.
    pub surplus: bool,
    /// Whether the link got its intent now, and Dojo reports an amount for it other than the requested one.
    pub mismatch: bool,
    /// Whether webhooks about the intent had arrived before, so that the link is due for reconciliation at once.
    pub has_early_webhooks: bool,
}

/// What an intent sets in its link's row, by the names that the statement knows.
#[derive(Debug, Serialize)]
struct Columns<'a> {
    payment_intent_id: &'a str,
    url: &'a str,
    status: &'a str,
    dojo_status: Option<&'a str>,
    unsettled_status: Option<&'a str>,
    #[serde(serialize_with = "microseconds::serialize_option")]
    dojo_updated_at: Option<OffsetDateTime>,
    amount: Option<&'a ReportedAmount>,
    total: Option<&'a ReportedAmount>,
    refunded_amount: i64,
    captures: &'a [Capture],
    payment: Option<Payment>,
    attempts: Vec<Attempt>,
    #[serde(serialize_with = "microseconds::serialize_option")]
    expire_at: Option<OffsetDateTime>,
}

/// Makes a pending link's row show the intent, and records that. `$condition` says when to do nothing instead, and `$owned`
/// stores whose the intent is. The number of affected rows is 1, or 0 if nothing was done.
macro_rules! adopt {
    ($id:expr, $intent:expr, $columns:expr, $cause:expr, $condition:tt, $owned:tt) => {
        record!(
            Kind::Created,
            $cause,
            "WITH adopted AS (
                 UPDATE payment_links link
                 SET payment_intent_id = new.payment_intent_id, url = new.url, status = new.status,
                     dojo_status = new.dojo_status, unsettled_status = new.unsettled_status,
                     dojo_updated_at = new.dojo_updated_at,
                     -- In another currency it would be read as an amount of this one.
                     total_amount = CASE WHEN new.total->>'currencyCode' = link.currency
                                         THEN (new.total->>'value')::bigint END,
                     mismatch = CASE WHEN new.amount
                                          <> jsonb_build_object('value', link.amount, 'currencyCode', link.currency)
                                     THEN new.amount END,
                     refunded_amount = new.refunded_amount, captures = new.captures,
                     payment = new.payment, attempts = new.attempts,
                     expire_at = coalesce(new.expire_at, link.expire_at),
                     -- The customer's secret was for Dojo, and has no further use here.
                     request = link.request #- '{customer,secret}',
                     due_at = now() + interval '10 seconds', leased_until = NULL, revision = link.revision + 1,
                     synced_at = now(), updated_at = now()
                 FROM jsonb_to_record($4::jsonb) AS new (
                     payment_intent_id text, url text, status text, dojo_status text, unsettled_status text,
                     dojo_updated_at timestamptz, amount jsonb, total jsonb, refunded_amount bigint, captures jsonb,
                     payment jsonb, attempts jsonb, expire_at timestamptz
                 )
                 WHERE link.id = $3 AND link.status = 'Pending'"
                + $condition
                + "
                 RETURNING link.id, link.account, link.payment_intent_id, link.status
             ), owned AS ("
                + $owned
                + "), entry AS (
                 SELECT id AS link_id, 'Pending' AS before, status AS after, $5::jsonb AS detail FROM adopted
             )",
            $id.uuid(),
            to_json($columns)?,
            to_json(&CreatedDetail {
                payment_intent_id: &$intent.id,
                reported: &$intent.status,
            })?,
        )
    };
}

/// Gives a pending link the intent that Dojo created for it, and applies the webhooks about that intent that arrived
/// before.
///
/// A link that is no longer pending stays as it is. If it has another intent, or has failed, this one is surplus and is
/// marked to be canceled. An intent that belongs to another link, as its own or as surplus, is left alone:
/// [`Error::IntentOfAnotherLink`].
pub async fn adopt_intent(
    pool: &PgPool,
    id: PaymentLinkId,
    intent: &PaymentIntent,
    url: &str,
    cause: &Cause,
) -> Result<Adopted, Error> {
    let known = intent.known_status();
    // A word that isn't known here still proves that there is an intent.
    let status = known.unwrap_or(Status::Created);
    let columns = Columns {
        payment_intent_id: &intent.id,
        url,
        status: status.as_str(),
        dojo_status: known.map(Status::as_str),
        unsettled_status: known.is_none().then_some(intent.status.as_str()),
        dojo_updated_at: intent.updated_at,
        amount: intent.amount.as_ref(),
        total: intent.total_amount.as_ref(),
        refunded_amount: intent.refunded_amount.unwrap_or(0),
        captures: intent.captures.as_deref().unwrap_or_default(),
        payment: intent.payment(),
        attempts: intent.attempts(),
        expire_at: intent.expire_at,
    };
    if adopt_new_intent(pool, id, intent, &columns, cause).await? {
        count_status_change(status, cause.name());
        if let Some(link) = links::find(pool, id).await? {
            return Ok(Adopted {
                link,
                surplus: false,
                mismatch: false,
                has_early_webhooks: false,
            });
        }
    }
    adopt_any_intent(pool, id, intent, status, &columns, cause).await
}

/// Adopts an intent that no webhook and nothing else has mentioned before, for the requested amount. Does nothing, and returns
/// `false`, unless the intent is such a one and the link is pending.
///
/// A webhook writes the intent's row before its own. So if this inserts that row, no webhook was here before, and those that
/// come later find the link on it.
async fn adopt_new_intent(
    pool: &PgPool,
    id: PaymentLinkId,
    intent: &PaymentIntent,
    columns: &Columns<'_>,
    cause: &Cause,
) -> Result<bool, Error> {
    let recorded = adopt!(
        id,
        intent,
        columns,
        cause,
        "AND NOT EXISTS (SELECT FROM payment_intents intent WHERE intent.id = new.payment_intent_id)
         AND (new.amount = jsonb_build_object('value', link.amount, 'currencyCode', link.currency)) IS NOT FALSE",
        "INSERT INTO payment_intents (id, account, payment_link_id) SELECT payment_intent_id, account, id FROM adopted"
    )
    .execute(pool)
    .await
    .map_err(Error::from);
    match recorded {
        Ok(done) => Ok(done.rows_affected() == 1),
        // Something else inserted the row at the same moment.
        Err(error) if error.is_unique_violation() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Adopts an intent about which anything may be known already.
async fn adopt_any_intent(
    pool: &PgPool,
    id: PaymentLinkId,
    intent: &PaymentIntent,
    status: Status,
    columns: &Columns<'_>,
    cause: &Cause,
) -> Result<Adopted, Error> {
    let mut transaction = pool.begin().await?;

    // In the same order as in `adopt_new_intent`: first the link, then the intent. Webhooks lock an intent first, but then only
    // links that aren't pending.
    sqlx::query!(
        "SELECT FROM payment_links WHERE id = $1 AND status = 'Pending' FOR UPDATE",
        id.uuid()
    )
    .execute(&mut *transaction)
    .await?;
    // Before everything else, so that a webhook for this intent runs wholly before or wholly after what follows (see
    // `webhooks::record`).
    let owner = sqlx::query_scalar!(
        r#"INSERT INTO payment_intents (id, account)
           SELECT $1, account FROM payment_links WHERE id = $2
           -- The account whose own key returned the intent has it, at whichever account's address a webhook about it
           -- arrived before.
           ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), account = EXCLUDED.account
           RETURNING coalesce(payment_link_id, surplus_of) AS "owner?""#,
        intent.id,
        id.uuid()
    )
    .fetch_optional(&mut *transaction)
    .await?
    .flatten();
    if let Some(owner) = owner.filter(|owner| *owner != id.uuid()) {
        // It is not this link's to send out or to cancel. Dropping the transaction undoes the insert.
        return Err(Error::IntentOfAnotherLink {
            payment_intent_id: intent.id.clone(),
            owner: PaymentLinkId::from_uuid(owner),
        });
    }

    let recorded = adopt!(
        id,
        intent,
        columns,
        cause,
        "",
        "UPDATE payment_intents intent SET payment_link_id = adopted.id, due_at = NULL
         FROM adopted WHERE intent.id = adopted.payment_intent_id"
    )
    .execute(&mut *transaction)
    .await?;
    let is_new = recorded.rows_affected() == 1;
    let early = if is_new {
        apply_early_webhooks(&mut transaction, id, &intent.id, status).await?
    } else {
        EarlyWebhooks::default()
    };

    // Locked, so that the entries below have the status that the link has then.
    let link = select_links!("WHERE id = $1 FOR UPDATE", id.uuid())
        .fetch_one(&mut *transaction)
        .await?
        .into_link()?;
    let surplus = link.payment_intent_id.as_ref() != Some(&intent.id);
    let mismatch = is_new && link.reported_amount.is_some();
    if mismatch {
        record_mismatch(&mut transaction, &link, cause).await?;
    }
    if surplus {
        mark_surplus(&mut transaction, &link, &intent.id, cause).await?;
    }
    transaction.commit().await?;
    if is_new {
        count_status_change(status, cause.name());
    }
    for (status, cause) in &early.changes {
        count_status_change(*status, cause.name());
    }
    Ok(Adopted {
        link,
        surplus,
        mismatch,
        has_early_webhooks: early.any,
    })
}

/// Records that Dojo reports an amount other than the requested one.
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
        to_json(&MismatchDetail {
            requested: link.amount,
            reported: link.reported_amount.as_ref(),
        })?
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Marks an intent as surplus, to be canceled at once. Records it once.
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

/// The webhooks that arrived before their link had its intent.
#[derive(Debug, Default)]
struct EarlyWebhooks {
    any: bool,
    /// The statuses to which they moved the link.
    changes: Vec<(Status, Cause)>,
}

/// Applies the webhooks that arrived before the link had its intent, in the order of their arrival.
async fn apply_early_webhooks(
    transaction: &mut PgTransaction,
    id: PaymentLinkId,
    payment_intent_id: &str,
    created_as: Status,
) -> Result<EarlyWebhooks, Error> {
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
    if early.is_empty() {
        return Ok(EarlyWebhooks::default());
    }
    early.sort_by_key(|event| event.id);

    let mut status = created_as;
    let mut changes = Vec::new();
    for event in early {
        let event_type = event.event_type.unwrap_or_default();
        let verdict = judge(status, &event_type, event.reported.as_deref());
        let before = status;
        let cause = Cause::Webhook {
            event_id: event.dedup_key,
        };
        if let Verdict::Moved(after) = verdict {
            status = after;
        }
        record!(
            Kind::Webhook,
            &cause,
            "WITH entry AS (SELECT $3::uuid AS link_id, $4 AS before, $5 AS after, $6::jsonb AS detail)",
            id.uuid(),
            before.as_str(),
            status.as_str(),
            to_json(&WebhookDetail {
                verdict: verdict.name(),
                reported: event.reported.as_deref(),
                event: Some(&event_type),
            })?
        )
        .execute(&mut **transaction)
        .await?;
        if status != before {
            changes.push((status, cause));
        }
    }
    sqlx::query!(
        "UPDATE payment_links
         SET status = $2, due_at = now(), revision = revision + $3::int,
             -- As in `webhooks::record`.
             unsettled_status = CASE WHEN $3 = 0 OR dojo_status IS NULL THEN unsettled_status END
         WHERE id = $1",
        id.uuid(),
        status.as_str(),
        i32::from(status != created_as)
    )
    .execute(&mut **transaction)
    .await?;
    Ok(EarlyWebhooks { any: true, changes })
}
