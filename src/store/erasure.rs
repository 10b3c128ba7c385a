//! Erasing a link's personal data from every table. [`super::personal_data`] lists the columns.
//!
//! An erasure is one transaction, which first locks the link. Everything else that could write about the link then either has
//! committed, and is seen, or waits and sees afterwards that the link is erased:
//!
//! - An operation, a webhook, a renewal and a repeated creation lock the link's row or change it.
//! - A request that repeats a key waits for the key, and then finds what remains of it (see `migrations/0031_erasure.sql`).
//! - The job that books movements locks their links before it reads their metadata.
//! - The sequencer of the feed holds the lock on the feed's row, which the erasure takes before it changes events.
//! - A replica that stores responses to callbacks updates the endpoint's row, which the erasure locks.
//!
//! The keys come after the link, although operations lock them the other way round. Nothing waits for a link while it holds a
//! key that leads to one: whoever finds such a key ends its transaction and reads the outcome.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction,
    links::{self, Place, select_links},
    parse_stored,
    timeline::{kind_word, record},
    to_json,
};
use crate::payment_link::{
    MessageId, MessageStatus, PaymentLink, PaymentLinkId, Status,
    erasure::{
        NotErasable, PersonalMetadata, erase_action, erase_detail, erase_event, erase_failure,
        erase_request, erase_row,
    },
    timeline::{Cause, Kind, MessageDetail},
};

/// How often an erasure is tried if something else that runs at the same time is in its way.
const TRIES: usize = 4;

/// A link whose personal data is erased.
#[derive(Debug)]
pub struct Erased {
    /// The link as it is now.
    pub link: PaymentLink,
    /// Whether it had been erased before.
    pub again: bool,
}

/// Erases a link's personal data, unless something about the link is open. `None` if there is no such link.
///
/// A link that was erased before is erased again, whatever is open about it: since then, a caller may have sent something
/// personal, such as the reason for a refund. What an open operation needs stays, and so does its key.
pub async fn erase(
    pool: &PgPool,
    id: PaymentLinkId,
    personal: &PersonalMetadata,
    cause: &Cause,
) -> Result<Option<Result<Erased, NotErasable>>, Error> {
    let mut tries = 1;
    let erased = loop {
        let erased = try_to_erase(pool, id, personal, Request::Caller(cause)).await;
        match erased {
            Err(error) if error.is_contention() && tries < TRIES => tries += 1,
            erased => break erased?,
        }
    };
    let again = match erased {
        Some(Ok(again)) => again,
        Some(Err(why)) => return Ok(Some(Err(why))),
        None => return Ok(None),
    };
    if !again {
        metrics::counter!("erased_links_total", "cause" => cause.name()).increment(1);
    }
    let link = links::find(pool, id).await?;
    Ok(link.map(|link| Ok(Erased { link, again })))
}

/// Erases what was stored about an erased link since then, except for keys: a request whose response was lost may still be
/// repeated. Does nothing if the link isn't erased.
pub async fn erase_again(
    pool: &PgPool,
    id: PaymentLinkId,
    personal: &PersonalMetadata,
) -> Result<(), Error> {
    try_to_erase(pool, id, personal, Request::Upkeep).await?;
    Ok(())
}

/// Whether [`erase`] would erase the link's personal data, and whether it had been erased before. Changes nothing. `None` if
/// there is no such link.
pub async fn check(
    pool: &PgPool,
    id: PaymentLinkId,
) -> Result<Option<Result<bool, NotErasable>>, Error> {
    let Some(link) = links::find(pool, id).await? else {
        return Ok(None);
    };
    if link.erased_at.is_some() {
        return Ok(Some(Ok(true)));
    }
    let open = open_work(pool, id).await?;
    Ok(Some(link.check_erasable(&open).map(|()| false)))
}

/// Why a link is erased.
#[derive(Debug, Clone, Copy)]
enum Request<'a> {
    /// Somebody wants it to be.
    Caller(&'a Cause),
    /// It was before, and something may have been stored since.
    Upkeep,
}

/// Returns whether the link had been erased before.
async fn try_to_erase(
    pool: &PgPool,
    id: PaymentLinkId,
    personal: &PersonalMetadata,
    request: Request<'_>,
) -> Result<Option<Result<bool, NotErasable>>, Error> {
    let mut transaction = pool.begin().await?;
    let row = select_links!("WHERE id = $1 FOR UPDATE", id.uuid())
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let (stored_request, stored_failure) = (row.request.clone(), row.failure.clone());
    let link = row.into_link()?;
    let again = link.erased_at.is_some();
    match request {
        Request::Upkeep if !again => return Ok(Some(Ok(false))),
        Request::Caller(_) if !again => {
            // In a statement of its own, which sees what was committed while this one waited for the lock.
            let open = open_work(&mut *transaction, id).await?;
            if let Err(why) = link.check_erasable(&open) {
                return Ok(Some(Err(why)));
            }
        }
        _ => {}
    }
    let mut erasure = Erasure {
        transaction,
        link: &link,
        personal,
    };
    let closed = erasure.operations().await?;
    if let Request::Caller(_) = request {
        erasure.keys(&closed).await?;
    }
    erasure.webhooks_and_timeline().await?;
    erasure.messages().await?;
    erasure.approvals().await?;
    erasure.link(stored_request, stored_failure).await?;
    if let Request::Caller(cause) = request
        && !again
    {
        erasure.record(cause).await?;
    }
    // Last, because others wait for these locks.
    erasure.feed().await?;
    erasure.callbacks().await?;
    erasure.transaction.commit().await?;
    Ok(Some(Ok(again)))
}

/// What is open about a link besides its own state.
async fn open_work(
    executor: impl sqlx::PgExecutor<'_>,
    id: PaymentLinkId,
) -> Result<Vec<NotErasable>, Error> {
    let row = sqlx::query!(
        r#"SELECT EXISTS (
                      SELECT FROM operations
                      WHERE payment_link_id = $1 AND (status IN ('Pending', 'Unconfirmed') OR due_at IS NOT NULL)
                  ) AS "operation!",
                  EXISTS (
                      -- Being sent at this moment.
                      SELECT FROM messages
                      WHERE payment_link_id = $1 AND status = 'Pending' AND handed_over_at IS NOT NULL
                        AND leased_until > now()
                  ) AS "message!",
                  EXISTS (SELECT FROM payment_intents WHERE surplus_of = $1 AND due_at IS NOT NULL) AS "surplus!",
                  EXISTS (
                      SELECT FROM renewals JOIN payment_links successor ON successor.id = successor_id
                      WHERE replaced_id = $1 AND successor.status = $2
                  ) AS "renewal!",
                  EXISTS (
                      SELECT FROM payment_links WHERE id = $1 AND status = $3 AND due_at IS NOT NULL
                  ) AS "late_intent!""#,
        id.uuid(),
        Status::Pending.as_str(),
        Status::Failed.as_str()
    )
    .fetch_one(executor)
    .await?;
    let open = [
        (row.late_intent, NotErasable::NotCreatedYet),
        (row.operation, NotErasable::OperationOpen),
        (row.message, NotErasable::MessageBeingSent),
        (row.surplus, NotErasable::SurplusOpen),
        (row.renewal, NotErasable::BeingRenewed),
    ];
    let open = open.into_iter().filter(|(is_open, _)| *is_open);
    Ok(open.map(|(_, why)| why).collect())
}

/// An erasure in progress. Its link is locked.
struct Erasure<'a> {
    transaction: PgTransaction,
    link: &'a PaymentLink,
    personal: &'a PersonalMetadata,
}

/// A row whose JSON has changed.
#[derive(Serialize)]
struct Changed {
    id: i64,
    value: Value,
}

/// The value with what is personal erased, if that makes a difference.
fn erased(mut value: Value, erase: impl Fn(&mut Value)) -> Option<Value> {
    let before = value.clone();
    erase(&mut value);
    (value != before).then_some(value)
}

/// Those of these rows that contain something personal, without it.
fn changed_rows(
    rows: impl Iterator<Item = (i64, Value)>,
    erase: impl Fn(&mut Value),
) -> Vec<Changed> {
    rows.filter_map(|(id, value)| {
        let value = erased(value, &erase)?;
        Some(Changed { id, value })
    })
    .collect()
}

impl Erasure<'_> {
    /// The operations whose outcome is known. Returns their ids.
    async fn operations(&mut self) -> Result<Vec<Uuid>, Error> {
        #[derive(Serialize)]
        struct ChangedOperation {
            id: Uuid,
            action: Value,
            failure: Option<Value>,
        }

        let rows = sqlx::query!(
            r#"SELECT id, action, failure, response_body IS NOT NULL AS "has_response!" FROM operations
               WHERE payment_link_id = $1 AND status IN ('Succeeded', 'Failed') AND due_at IS NULL"#,
            self.link.id.uuid()
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let closed = rows.iter().map(|row| row.id).collect();
        let mut changed = Vec::new();
        for row in rows {
            let action = erased(row.action.clone(), erase_action);
            let failure = row.failure.clone();
            let failure = failure.and_then(|failure| erased(failure, erase_failure));
            if action.is_some() || failure.is_some() || row.has_response {
                changed.push(ChangedOperation {
                    id: row.id,
                    action: action.unwrap_or(row.action),
                    failure: failure.or(row.failure),
                });
            }
        }
        sqlx::query!(
            "UPDATE operations SET action = changed.action, failure = changed.failure, response_body = NULL,
                    -- A stored response says that the link was read from Dojo after the operation.
                    read_back_at = CASE WHEN response_body IS NOT NULL THEN coalesce(read_back_at, completed_at, now())
                                        ELSE read_back_at END
             FROM jsonb_to_recordset($1::jsonb) AS changed (id uuid, action jsonb, failure jsonb)
             WHERE operations.id = changed.id",
            to_json(&changed)?
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(closed)
    }

    /// The keys that led to the link or to these operations. Those that were left free again are forgotten: nothing was done
    /// with them. One that a request is using right now leads to an operation after the erasure.
    async fn keys(&mut self, operations: &[Uuid]) -> Result<(), Error> {
        sqlx::query!(
            r#"UPDATE idempotency_keys
               SET key = erased_key(api_key_id, key), request_hash = '', response_body = NULL
               WHERE payment_link_id = $1 AND key NOT LIKE '"%'"#,
            self.link.id.uuid()
        )
        .execute(&mut *self.transaction)
        .await?;
        sqlx::query!(
            r#"UPDATE idempotency_keys
               SET key = erased_key(api_key_id, key), request_hash = '', response_body = NULL
               WHERE operation_id = ANY($1) AND key NOT LIKE '"%'"#,
            operations
        )
        .execute(&mut *self.transaction)
        .await?;
        sqlx::query!(
            "DELETE FROM idempotency_keys WHERE (api_key_id, key) IN (
                 SELECT api_key_id, key FROM idempotency_keys
                 WHERE freed_from = $1
                   AND payment_link_id IS NULL AND operation_id IS NULL AND message_id IS NULL
                 FOR UPDATE SKIP LOCKED
             )",
            self.link.id.uuid()
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// The bodies of the webhooks about the link's intents, and Dojo's words in its timeline.
    ///
    /// Webhooks come first: pruning locks them before it removes entries.
    async fn webhooks_and_timeline(&mut self) -> Result<(), Error> {
        let id = self.link.id.uuid();
        let entries = sqlx::query!(
            "SELECT id, kind, cause ->> 'eventId' AS event_id, detail FROM payment_link_events
             WHERE payment_link_id = $1",
            id
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        // Each webhook of a link has an entry in its timeline. With a list of keys, the planner always takes the index.
        let events: Vec<_> = entries
            .iter()
            .filter(|entry| entry.kind == kind_word(Kind::Webhook))
            .filter_map(|entry| entry.event_id.clone())
            .collect();
        sqlx::query!(
            "UPDATE webhook_events SET body = '' WHERE account = $1 AND dedup_key = ANY($2) AND body <> ''",
            self.link.account,
            &events
        )
        .execute(&mut *self.transaction)
        .await?;
        // Those that are in no timeline: about a surplus intent, or from another account's address.
        sqlx::query!(
            "UPDATE webhook_events SET body = ''
             WHERE payment_link_id IS NULL AND body <> '' AND payment_intent_id = ANY(ARRAY(
                 SELECT id FROM payment_intents WHERE surplus_of = $1 UNION ALL SELECT $2::text
             ))",
            id,
            self.link.payment_intent_id.as_deref()
        )
        .execute(&mut *self.transaction)
        .await?;

        let changed = entries.into_iter().filter_map(|entry| {
            let detail = erased(entry.detail?, |detail| erase_detail(&entry.kind, detail))?;
            Some(Changed {
                id: entry.id,
                value: detail,
            })
        });
        let changed: Vec<_> = changed.collect();
        if !changed.is_empty() {
            sqlx::query!(
                "UPDATE payment_link_events entry SET detail = changed.value
                 FROM jsonb_to_recordset($1::jsonb) AS changed (id bigint, value jsonb)
                 WHERE entry.id = changed.id",
                to_json(&changed)?
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(())
    }

    /// The messages that are no longer to be sent.
    ///
    /// Nobody can pay the link, so a message that waits is canceled. Whoever works on it can't hand it over any more.
    async fn messages(&mut self) -> Result<(), Error> {
        self.end_messages(MessageStatus::Canceled, "the link was erased", false)
            .await?;
        let reason = "this service failed before it had stored the mail server's response";
        self.end_messages(MessageStatus::Unknown, reason, true)
            .await?;
        sqlx::query!(
            "UPDATE messages SET recipient = NULL, note = NULL
             WHERE payment_link_id = $1 AND status <> 'Pending' AND (recipient IS NOT NULL OR note IS NOT NULL)",
            self.link.id.uuid()
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// The requests that wait at the console for a second person. What waits can no longer be approved.
    async fn approvals(&mut self) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE console_approvals
             SET body = NULL, status = CASE WHEN status = 'Pending' THEN 'Erased' ELSE status END
             WHERE payment_link_id = $1 AND body IS NOT NULL",
            self.link.id.uuid()
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Ends the messages that wait: those that may have been sent, or the others.
    async fn end_messages(
        &mut self,
        status: MessageStatus,
        reason: &str,
        handed_over: bool,
    ) -> Result<(), Error> {
        let kind = match status {
            MessageStatus::Unknown => Kind::MessageUnknown,
            _ => Kind::MessageCanceled,
        };
        let waiting = sqlx::query!(
            "SELECT id, channel, purpose FROM messages
             WHERE payment_link_id = $1 AND status = 'Pending' AND (handed_over_at IS NOT NULL) = $2
               AND (handed_over_at IS NULL OR leased_until IS NULL OR leased_until <= now())",
            self.link.id.uuid(),
            handed_over
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        for message in waiting {
            let detail = MessageDetail {
                message_id: MessageId::from_uuid(message.id),
                channel: parse_stored(&message.channel)?,
                purpose: parse_stored(&message.purpose)?,
                reason: Some(reason),
            };
            record!(
                kind,
                &Cause::Delivery,
                "WITH ended AS (
                     UPDATE messages
                     SET status = $3, failure = $4, completed_at = now(), due_at = NULL, leased_until = NULL
                     WHERE id = $5 AND status = 'Pending' AND (handed_over_at IS NOT NULL) = $6
                     RETURNING payment_link_id
                 ), entry AS (
                     SELECT payment_link_id AS link_id, $7 AS before, $7 AS after, $8::jsonb AS detail FROM ended
                 )",
                status.as_str(),
                reason,
                message.id,
                handed_over,
                self.link.status.as_str(),
                to_json(&detail)?
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(())
    }

    /// The link itself, and its metadata in the books, which a trigger reduces to what the link keeps.
    async fn link(&mut self, mut request: Value, mut failure: Option<Value>) -> Result<(), Error> {
        erase_request(&mut request, self.personal);
        if let Some(failure) = &mut failure {
            erase_failure(failure);
        }
        sqlx::query!(
            "UPDATE payment_links
             SET request = $2, failure = $3, erased_at = coalesce(erased_at, now()),
                 updated_at = CASE WHEN erased_at IS NULL THEN now() ELSE updated_at END,
                 revision = revision + (erased_at IS NULL)::int
             WHERE id = $1 AND (erased_at IS NULL OR request <> $2 OR failure IS DISTINCT FROM $3)",
            self.link.id.uuid(),
            request,
            failure
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    async fn record(&mut self, cause: &Cause) -> Result<(), Error> {
        record!(
            Kind::Erased,
            cause,
            "WITH entry AS (
                 SELECT id AS link_id, status AS before, status AS after, NULL::jsonb AS detail
                 FROM payment_links WHERE id = $3
             )",
            self.link.id.uuid()
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// The events of the feed, and what waits to become one.
    async fn feed(&mut self) -> Result<(), Error> {
        let (id, personal) = (self.link.id.uuid(), self.personal);
        // The outbox has few rows and, until it is vacuumed, room for very many. So the planner must not choose to scan it.
        sqlx::query!(
            "SELECT head FROM feed WHERE set_config('enable_seqscan', 'off', true) IS NOT NULL FOR UPDATE"
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        let waiting = sqlx::query!(
            "SELECT entry_id, link FROM feed_outbox
             WHERE entry_id = ANY(ARRAY(SELECT id FROM payment_link_events WHERE payment_link_id = $1))",
            id
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let waiting = waiting.into_iter().map(|row| (row.entry_id, row.link));
        let changed = changed_rows(waiting, |link| erase_row(link, personal));
        if !changed.is_empty() {
            sqlx::query!(
                "UPDATE feed_outbox SET link = changed.value
                 FROM jsonb_to_recordset($1::jsonb) AS changed (id bigint, value jsonb)
                 WHERE entry_id = changed.id",
                to_json(&changed)?
            )
            .execute(&mut *self.transaction)
            .await?;
        }

        let events = sqlx::query!(
            r#"SELECT position, event::jsonb AS "event!" FROM feed_events WHERE payment_link_id = $1"#,
            id
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let events = events.into_iter().map(|row| (row.position, row.event));
        let changed = changed_rows(events, |event| erase_event(event, personal));
        if !changed.is_empty() {
            sqlx::query!(
                "UPDATE feed_events SET event = changed.value
                 FROM jsonb_to_recordset($1::jsonb) AS changed (id bigint, value json)
                 WHERE position = changed.id",
                to_json(&changed)?
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(())
    }

    /// What the receivers of callbacks responded.
    async fn callbacks(&mut self) -> Result<(), Error> {
        sqlx::query!("SELECT id FROM callback_endpoints ORDER BY id FOR NO KEY UPDATE")
            .fetch_all(&mut *self.transaction)
            .await?;
        sqlx::query!(
            "UPDATE callback_deliveries SET response_body = NULL
             WHERE payment_link_id = $1 AND response_body IS NOT NULL",
            self.link.id.uuid()
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }
}

/// The links that are about the customer with this email address: whose customer has it, or which were sent to it. Oldest
/// first.
pub async fn links_of_email(pool: &PgPool, email: &str) -> Result<Vec<PaymentLinkId>, Error> {
    let ids = sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM payment_links WHERE lower(request #>> '{customer,emailAddress}') = lower($1)
           UNION
           SELECT id FROM payment_links WHERE lower(request #>> '{send,email}') = lower($1)
           UNION
           SELECT payment_link_id FROM messages WHERE lower(recipient) = lower($1)
           ORDER BY 1"#,
        email
    )
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().map(PaymentLinkId::from_uuid).collect())
}

/// Up to `limit` links behind `after` that haven't changed for this long and aren't erased, in the order of their last change.
/// Whether they can be erased isn't checked. Returns where the search ended as well, or `None` if nothing older is left.
pub async fn unchanged_for(
    pool: &PgPool,
    after: Place,
    older_than: Duration,
    limit: i64,
) -> Result<(Vec<PaymentLinkId>, Option<Place>), Error> {
    let rows = sqlx::query!(
        r#"SELECT id, updated_at, erased_at IS NULL AND status <> ALL($4) AS "is_candidate!"
           FROM payment_links
           WHERE (updated_at, id) > ($1, $2) AND updated_at < now() - make_interval(secs => $3)
           ORDER BY updated_at, id
           LIMIT $5"#,
        after.at,
        after.id,
        older_than.as_secs_f64(),
        &[Status::Pending, Status::Created, Status::Authorized].map(Status::as_str) as &[&str],
        limit
    )
    .fetch_all(pool)
    .await?;
    let is_full = i64::try_from(rows.len()) == Ok(limit);
    let next = rows.last().filter(|_| is_full).map(|row| Place {
        at: row.updated_at,
        id: row.id,
    });
    let candidates = rows.into_iter().filter(|row| row.is_candidate);
    let ids = candidates.map(|row| PaymentLinkId::from_uuid(row.id));
    Ok((ids.collect(), next))
}

/// Where [`unchanged_for`] begins.
#[must_use]
pub fn beginning() -> Place {
    Place {
        at: OffsetDateTime::UNIX_EPOCH,
        id: Uuid::nil(),
    }
}
