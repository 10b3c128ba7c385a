//! Giving a link the payment intent that Dojo created for it.
//!
//! Usually the intent is new here and all is well with it. Then one statement does everything. If not, a transaction of several
//! statements does.

use std::iter;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction,
    links::{self, select_links},
    microseconds,
    timeline::{NewEntry, count_status_change, record, record_each},
    to_json,
    webhooks::{is_news, judge},
};
use crate::{
    dojo::PaymentIntent,
    payment_link::{
        Attempt, Capture, MessageId, Payment, PaymentLink, PaymentLinkId, ReportedAmount, Status,
        Verdict,
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
    /// Whether webhooks that arrived before may say more than the intent does, so that the link is due for reconciliation at
    /// once.
    pub has_early_news: bool,
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
    /// When the link is read again, in seconds from now.
    next_read: u32,
    /// How often the link's status changes.
    changes: u32,
    /// The id of the email to the customer, if the link was requested with one.
    message_id: Uuid,
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
    let adoption = Adoption {
        id,
        intent,
        url,
        cause,
    };
    if adoption.of_new_intent(pool).await?
        && let Some(link) = links::find(pool, id).await?
    {
        return Ok(Adopted {
            link,
            surplus: false,
            mismatch: false,
            has_early_news: false,
        });
    }
    adoption.of_any_intent(pool).await
}

struct Adoption<'a> {
    id: PaymentLinkId,
    intent: &'a PaymentIntent,
    /// The page to pay the intent on.
    url: &'a str,
    cause: &'a Cause,
}

/// Makes a pending link's row show the intent, and records that. `$condition` says when to do nothing instead, and `$owned`
/// stores whose the intent is. Returns a row if anything was done.
macro_rules! adopt {
    ($adoption:expr, $entries:expr, $columns:expr, $condition:tt, $owned:tt $(, $argument:expr)*) => {
        record_each!(
            $entries,
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
                     due_at = now() + make_interval(secs => new.next_read), leased_until = NULL,
                     revision = link.revision + new.changes,
                     synced_at = now(), updated_at = now()
                 FROM jsonb_to_record($3::jsonb) AS new (
                     payment_intent_id text, url text, status text, dojo_status text, unsettled_status text,
                     dojo_updated_at timestamptz, amount jsonb, total jsonb, refunded_amount bigint, captures jsonb,
                     payment jsonb, attempts jsonb, expire_at timestamptz, next_read integer, changes integer,
                     message_id uuid
                 )
                 WHERE link.id = $2 AND link.status = 'Pending' "
                + $condition
                + "
                 RETURNING link.id, link.account, link.payment_intent_id, link.request, link.created_by,
                           link.created_at, link.expire_at, new.message_id
             ), owned AS ("
                + $owned
                + "), reminded AS (
                 INSERT INTO reminders (payment_link_id, number, account, due_at)
                 SELECT adopted.id, listed.number - 1, adopted.account, listed.due_at
                 FROM adopted CROSS JOIN LATERAL (
                     -- Postgres reads ISO 8601 durations.
                     SELECT number, coalesce(adopted.created_at + (reminder ->> 'after')::interval,
                                             adopted.expire_at - (reminder ->> 'beforeExpiry')::interval) AS due_at
                     FROM jsonb_array_elements(adopted.request -> 'reminders')
                         WITH ORDINALITY AS all_of_them (reminder, number)
                 ) AS listed
                 WHERE listed.due_at > now()
             ), sent AS (
                 INSERT INTO messages
                     (id, payment_link_id, account, channel, purpose, recipient, note, locale, status, created_by, due_at)
                 SELECT message_id, id, account, 'email', 'creation', request #>> '{send,email}',
                        request #>> '{send,note}', coalesce(request #>> '{send,locale}', 'en'), 'Pending', created_by, now()
                 FROM adopted WHERE request #>> '{send,email}' IS NOT NULL
             ), changed AS (SELECT id AS link_id FROM adopted)" => "SELECT id FROM adopted",
            $adoption.id.uuid(),
            to_json($columns)?
            $(, $argument)*
        )
    };
}

impl Adoption<'_> {
    /// Adopts an intent that no webhook and nothing else has mentioned before, for the requested amount. Does nothing, and
    /// returns `false`, unless the intent is such a one and the link is pending.
    ///
    /// A webhook writes the intent's row before its own. So if this inserts that row, no webhook was here before, and those
    /// that come later find the link on it.
    async fn of_new_intent(&self, pool: &PgPool) -> Result<bool, Error> {
        let adopted = adopt!(
            self,
            &self.entries(&[])?,
            &self.columns(&[]),
            "AND NOT EXISTS (SELECT FROM payment_intents intent WHERE intent.id = new.payment_intent_id)
             AND (new.amount = jsonb_build_object('value', link.amount, 'currencyCode', link.currency)) IS NOT FALSE",
            "INSERT INTO payment_intents (id, account, payment_link_id) SELECT payment_intent_id, account, id FROM adopted"
        )
        .fetch_optional(pool)
        .await
        .map_err(Error::from);
        match adopted {
            Ok(None) => Ok(false),
            Ok(Some(_)) => {
                self.count(&[]);
                Ok(true)
            }
            // Something else inserted the row at the same moment.
            Err(error) if error.is_unique_violation() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adopts an intent about which anything may be known already.
    async fn of_any_intent(&self, pool: &PgPool) -> Result<Adopted, Error> {
        let mut transaction = pool.begin().await?;

        // Before everything else, so that a webhook for this intent runs wholly before or wholly after what follows (see
        // `webhooks::record`).
        //
        // Locks in the same order as `of_new_intent`: first a pending link, then the intent. Webhooks lock an intent first,
        // but then only links that aren't pending.
        let owner = sqlx::query_scalar!(
            r#"WITH pending AS MATERIALIZED (
                 SELECT account FROM payment_links WHERE id = $2 AND status = 'Pending' FOR UPDATE
               )
               INSERT INTO payment_intents (id, account)
               SELECT $1, account FROM pending
               UNION ALL
               SELECT $1, account FROM payment_links WHERE id = $2 AND NOT EXISTS (SELECT FROM pending)
               -- The account whose own key returned the intent has it, at whichever account's address a webhook about it
               -- arrived before.
               ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), account = EXCLUDED.account
               RETURNING coalesce(payment_link_id, surplus_of) AS "owner?""#,
            self.intent.id,
            self.id.uuid()
        )
        .fetch_optional(&mut *transaction)
        .await?
        .flatten();
        if let Some(owner) = owner.filter(|owner| *owner != self.id.uuid()) {
            // It is not this link's to send out or to cancel. Dropping the transaction undoes the insert.
            return Err(Error::IntentOfAnotherLink {
                payment_intent_id: self.intent.id.clone(),
                owner: PaymentLinkId::from_uuid(owner),
            });
        }

        let early = self.early_webhooks(&mut transaction).await?;
        let ids: Vec<_> = early.iter().map(|webhook| webhook.id).collect();
        let is_new = adopt!(
            self,
            &self.entries(&early)?,
            &self.columns(&early),
            "",
            "UPDATE payment_intents intent SET payment_link_id = adopted.id, due_at = NULL
             FROM adopted WHERE intent.id = adopted.payment_intent_id
             ), claimed AS (
             UPDATE webhook_events event SET payment_link_id = adopted.id FROM adopted WHERE event.id = ANY($4)",
            &ids
        )
        .fetch_optional(&mut *transaction)
        .await?
        .is_some();

        // Locked, so that the entries below have the status that the link has then.
        let link = select_links!("WHERE id = $1 FOR UPDATE", self.id.uuid())
            .fetch_one(&mut *transaction)
            .await?
            .into_link()?;
        let surplus = link.payment_intent_id.as_ref() != Some(&self.intent.id);
        let mismatch = is_new && link.reported_amount.is_some();
        if mismatch {
            record_mismatch(&mut transaction, &link, self.cause).await?;
        }
        if surplus {
            mark_surplus(&mut transaction, &link, &self.intent.id, self.cause).await?;
        }
        transaction.commit().await?;
        if is_new {
            self.count(&early);
        }
        Ok(Adopted {
            link,
            surplus,
            mismatch,
            has_early_news: is_new && has_news(&early),
        })
    }

    /// The webhooks that arrived before the link had its intent, in the order of their arrival, and what each means for the
    /// status that the intent was created with.
    async fn early_webhooks(
        &self,
        transaction: &mut PgTransaction,
    ) -> Result<Vec<EarlyWebhook>, Error> {
        let rows = sqlx::query!(
            "SELECT event.id, event.dedup_key, event.event_type, event.payment_status AS reported
             FROM payment_links link JOIN webhook_events event ON event.account = link.account
             WHERE link.id = $1 AND event.payment_intent_id = $2 AND event.payment_link_id IS NULL
             ORDER BY event.id",
            self.id.uuid(),
            self.intent.id
        )
        .fetch_all(&mut **transaction)
        .await?;
        let mut status = self.created_as();
        rows.into_iter()
            .map(|row| {
                let event_type = row.event_type.unwrap_or_default();
                let verdict = judge(status, &event_type, row.reported.as_deref());
                let before = status;
                let is_news = self.intent.known_status().is_none()
                    || is_news(before, &event_type, row.reported.as_deref());
                if let Verdict::Moved(after) = verdict {
                    status = after;
                }
                Ok(EarlyWebhook {
                    id: row.id,
                    cause: Cause::Webhook {
                        event_id: row.dedup_key,
                    },
                    before,
                    after: status,
                    is_news,
                    detail: to_json(&WebhookDetail {
                        verdict: verdict.name(),
                        reported: row.reported.as_deref(),
                        event: Some(&event_type),
                    })?,
                })
            })
            .collect()
    }

    fn created_as(&self) -> Status {
        // A word that isn't known here still proves that there is an intent.
        self.intent.known_status().unwrap_or(Status::Created)
    }

    fn columns(&self, early: &[EarlyWebhook]) -> Columns<'_> {
        let Self { intent, url, .. } = self;
        let known = intent.known_status();
        let status = early.last().map_or(self.created_as(), |last| last.after);
        Columns {
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
            // A webhook says nothing about money, so the intent is read at once.
            next_read: if has_news(early) { 0 } else { 10 },
            changes: if status == self.created_as() { 1 } else { 2 },
            message_id: MessageId::new().uuid(),
        }
    }

    fn entries<'e>(&'e self, early: &'e [EarlyWebhook]) -> Result<Vec<NewEntry<'e>>, Error> {
        let created = NewEntry {
            kind: Kind::Created,
            before: Status::Pending,
            after: self.created_as(),
            cause: self.cause,
            detail: to_json(&CreatedDetail {
                payment_intent_id: &self.intent.id,
                reported: &self.intent.status,
            })?,
        };
        let webhooks = early.iter().map(|webhook| NewEntry {
            kind: Kind::Webhook,
            before: webhook.before,
            after: webhook.after,
            cause: &webhook.cause,
            detail: webhook.detail.clone(),
        });
        Ok(iter::once(created).chain(webhooks).collect())
    }

    /// Counts the changes of the link's status, once they are committed.
    fn count(&self, early: &[EarlyWebhook]) {
        count_status_change(self.created_as(), self.cause.name());
        for webhook in early
            .iter()
            .filter(|webhook| webhook.after != webhook.before)
        {
            count_status_change(webhook.after, webhook.cause.name());
        }
    }
}

/// A webhook that arrived before its link had its intent, and what it does to the link's status.
#[derive(Debug)]
struct EarlyWebhook {
    /// In `webhook_events`.
    id: i64,
    cause: Cause,
    before: Status,
    after: Status,
    /// Whether it may say more than the intent does.
    is_news: bool,
    detail: Value,
}

fn has_news(early: &[EarlyWebhook]) -> bool {
    early.iter().any(|webhook| webhook.is_news)
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
