//! Messages: saving one, and the steps of its delivery.
//!
//! A message is saved with what requests it, so it is neither lost nor sent for nothing (a transactional outbox). Each function
//! is one short transaction, and none is open while the mail server is called.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool,
    creation::IdempotencyKey,
    leases::{Lease, LeaseRequest, claim, release},
    parse_stored,
    timeline::record,
    to_json,
};
use crate::payment_link::{
    Channel, Message, MessageId, MessageStatus, PaymentLinkId, Purpose, Status,
    timeline::{Cause, Kind, MessageDetail},
};

/// A message to be saved.
#[derive(Clone, Copy)]
pub struct Draft<'a> {
    pub id: MessageId,
    pub link_id: PaymentLinkId,
    pub channel: Channel,
    pub to: &'a str,
    pub locale: &'a str,
    pub note: Option<&'a str>,
    /// The name of the client that requested it.
    pub created_by: &'a str,
    pub cause: &'a Cause,
}

/// Whether a request for a message is new or a repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    New,
    /// An earlier request with the same idempotency key led to this message.
    Repeated(MessageId),
    /// The idempotency key was used for a different request.
    KeyReused,
    /// The personal data of the link was erased, and the key with it, if it was used before.
    Erased,
}

/// Saves a message of the purpose [`Purpose::Request`], unless its idempotency key was used before.
///
/// Claims the key before it locks the link, like operations, so that the two never wait for each other.
pub async fn save(
    pool: &PgPool,
    draft: &Draft<'_>,
    key: &IdempotencyKey,
) -> Result<Admission, Error> {
    let mut transaction = pool.begin().await?;
    let claimed = sqlx::query!(
        "INSERT INTO idempotency_keys (api_key_id, key, request_hash, payment_link_id, message_id)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (api_key_id, key) DO NOTHING",
        key.client_id,
        key.key,
        key.request_hash.as_slice(),
        draft.link_id.uuid(),
        draft.id.uuid()
    )
    .execute(&mut *transaction)
    .await
    .map_err(Error::from);
    match claimed {
        Ok(claimed) if claimed.rows_affected() == 1 => {}
        Ok(_) => {
            drop(transaction);
            // A key that led to nothing belongs to another request.
            let earlier = earlier(pool, key).await?;
            return Ok(earlier.unwrap_or(Admission::KeyReused));
        }
        Err(error) if error.is_erased_key() => return Ok(Admission::Erased),
        Err(error) => return Err(error),
    }
    let detail = MessageDetail {
        message_id: draft.id,
        channel: draft.channel,
        purpose: Purpose::Request,
        reason: None,
    };
    let saved = record!(
        Kind::MessageRequested,
        draft.cause,
        r#"WITH link AS MATERIALIZED (
             -- Locked, so that the entry has the status that the link has when it is written, and the link isn't erased meanwhile.
             SELECT id, account, status FROM payment_links WHERE id = $3 AND erased_at IS NULL FOR UPDATE
         ), message AS (
             INSERT INTO messages
                 (id, payment_link_id, account, channel, purpose, recipient, note, locale, status, created_by, due_at)
             SELECT $4, id, account, $5, $6, $7, $8, $9, $10, $11, now() FROM link
             RETURNING id
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, $12::jsonb AS detail FROM link
         )"# => "SELECT id FROM message",
        draft.link_id.uuid(),
        draft.id.uuid(),
        draft.channel.as_str(),
        Purpose::Request.as_str(),
        draft.to,
        draft.note,
        draft.locale,
        MessageStatus::Pending.as_str(),
        draft.created_by,
        to_json(&detail)?
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if saved.is_none() {
        // Dropping the transaction frees the key.
        return Ok(Admission::Erased);
    }
    transaction.commit().await?;
    Ok(Admission::New)
}

/// What an earlier request with this key led to. `None` if there was none.
pub async fn earlier(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Admission>, Error> {
    let row = sqlx::query!(
        r#"SELECT request_hash, message_id, key <> $2 AS "is_erased!" FROM idempotency_keys
           WHERE api_key_id = $1 AND key IN ($2, erased_key($1, $2))"#,
        key.client_id,
        key.key
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| match row.message_id {
        _ if row.is_erased => Admission::Erased,
        Some(id) if row.request_hash == key.request_hash => {
            Admission::Repeated(MessageId::from_uuid(id))
        }
        _ => Admission::KeyReused,
    }))
}

/// A row of `messages`, as callers see it.
struct Row {
    id: Uuid,
    payment_link_id: Uuid,
    channel: String,
    purpose: String,
    status: String,
    failure: Option<String>,
    attempts: i32,
    recipient: Option<String>,
    locale: String,
    note: Option<String>,
    created_by: String,
    created_at: OffsetDateTime,
    completed_at: Option<OffsetDateTime>,
}

/// Selects messages as [`Row`]s. `$rest` follows `FROM messages`.
macro_rules! select_messages {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            "SELECT id, payment_link_id, channel, purpose, status, failure, attempts, recipient, locale, note, created_by,
                    created_at, completed_at
             FROM messages "
                + $rest
            $(, $argument)*
        )
    };
}

impl Row {
    fn into_message(self) -> Result<Message, Error> {
        Ok(Message {
            id: MessageId::from_uuid(self.id),
            payment_link_id: PaymentLinkId::from_uuid(self.payment_link_id),
            channel: parse_stored(&self.channel)?,
            purpose: parse_stored(&self.purpose)?,
            status: parse_stored(&self.status)?,
            failure: self.failure,
            attempts: self.attempts,
            to: self.recipient,
            locale: self.locale,
            note: self.note,
            created_by: self.created_by,
            created_at: self.created_at,
            completed_at: self.completed_at,
        })
    }
}

/// The message with this id, if it belongs to this link.
pub async fn find(
    pool: &PgPool,
    link_id: PaymentLinkId,
    id: MessageId,
) -> Result<Option<Message>, Error> {
    select_messages!(
        "WHERE id = $1 AND payment_link_id = $2",
        id.uuid(),
        link_id.uuid()
    )
    .fetch_optional(pool)
    .await?
    .map(Row::into_message)
    .transpose()
}

/// Up to `limit` messages of a link behind `after`, oldest first.
pub async fn of_link(
    pool: &PgPool,
    link_id: PaymentLinkId,
    after: Option<MessageId>,
    limit: i64,
) -> Result<Vec<Message>, Error> {
    select_messages!(
        "WHERE payment_link_id = $1 AND ($2::uuid IS NULL OR id > $2)
         ORDER BY id LIMIT $3",
        link_id.uuid(),
        after.map(|after| after.uuid()),
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_message)
    .collect()
}

/// A claimed message that is to be sent.
#[derive(Clone)]
pub struct DueMessage {
    pub id: MessageId,
    pub link_id: PaymentLinkId,
    pub channel: Channel,
    pub purpose: Purpose,
    pub to: String,
    pub locale: String,
    pub note: Option<String>,
    /// The number of earlier attempts.
    pub attempts: u32,
    /// What happened to the last one.
    pub failure: Option<String>,
    /// Whether an earlier attempt ended without an outcome after the message may have been sent.
    pub is_handed_over: bool,
    /// Since it was requested.
    pub age: Duration,
    pub created_at: OffsetDateTime,
    pub lease: Lease,
}

/// Claims up to `limit` messages that are due.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<DueMessage>, Error> {
    let lease = LeaseRequest::new(lease);
    let rows = claim!(
        "messages",
        "recipient IS NOT NULL",
        r#"SELECT id, payment_link_id, channel, purpose, recipient AS "recipient!", locale, note, attempts, failure,
                  handed_over_at IS NOT NULL AS "is_handed_over!",
                  extract(epoch FROM now() - created_at)::float8 AS "age!", created_at,
                  leased_until AS "leased_until!"
           FROM claimed"#,
        account,
        lease,
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(DueMessage {
                id: MessageId::from_uuid(row.id),
                link_id: PaymentLinkId::from_uuid(row.payment_link_id),
                channel: parse_stored(&row.channel)?,
                purpose: parse_stored(&row.purpose)?,
                to: row.recipient,
                locale: row.locale,
                note: row.note,
                attempts: row.attempts.unsigned_abs(),
                failure: row.failure,
                is_handed_over: row.is_handed_over,
                age: Duration::from_secs_f64(row.age.max(0.0)),
                created_at: row.created_at,
                lease: lease.granted(row.leased_until),
            })
        })
        .collect()
}

/// Stores that the message is about to be sent to the mail server. Returns `false` if it must not be sent now: the lease is lost
/// or doesn't last for `needed`, or the link is no longer unpaid.
///
/// The lease may still end before the message is sent. Whoever claims the message then finds this mark, and doesn't send the
/// message.
pub async fn hand_over(
    pool: &PgPool,
    message: &DueMessage,
    needed: Duration,
) -> Result<bool, Error> {
    let marked = sqlx::query!(
        "UPDATE messages SET handed_over_at = now(), attempts = attempts + 1
         WHERE id = $1 AND leased_until = $2 AND leased_until > now() + make_interval(secs => $3)
           AND handed_over_at IS NULL
           AND EXISTS (SELECT FROM payment_links link WHERE link.id = payment_link_id AND link.status = $4)",
        message.id.uuid(),
        message.lease.until,
        needed.as_secs_f64(),
        Status::Created.as_str()
    )
    .execute(pool)
    .await?;
    Ok(marked.rows_affected() == 1)
}

/// Stores that an attempt failed although the mail server provably didn't accept the message, which is to be sent again after
/// `wait`.
pub async fn retry(
    pool: &PgPool,
    message: &DueMessage,
    reason: &str,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE messages
         SET handed_over_at = NULL, failure = $3, due_at = now() + make_interval(secs => $4), leased_until = NULL
         WHERE id = $1 AND leased_until = $2",
        message.id.uuid(),
        message.lease.until,
        reason,
        wait.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Stores the outcome of a message, which isn't due any more, and records it in the link's timeline. Returns `false` if the lease
/// is lost: then the worker that claimed the message next stores an outcome.
pub async fn finish(
    pool: &PgPool,
    message: &DueMessage,
    status: MessageStatus,
    reason: Option<&str>,
) -> Result<bool, Error> {
    let kind = match status {
        MessageStatus::Pending => {
            return Err(Error::Unreadable("an outcome that is none".to_owned()));
        }
        MessageStatus::Sent => Kind::MessageSent,
        MessageStatus::Failed => Kind::MessageFailed,
        MessageStatus::Canceled => Kind::MessageCanceled,
        MessageStatus::Unknown => Kind::MessageUnknown,
    };
    let detail = MessageDetail {
        message_id: message.id,
        channel: message.channel,
        purpose: message.purpose,
        reason,
    };
    let finished = record!(
        kind,
        &Cause::Delivery,
        "WITH link AS MATERIALIZED (
             -- Locked, so that the entry has the status that the link has when it is written.
             SELECT id, status FROM payment_links WHERE id = $3 FOR UPDATE
         ), finished AS (
             UPDATE messages
             SET status = $6, failure = $7, completed_at = now(), due_at = NULL, leased_until = NULL
             FROM link
             WHERE messages.payment_link_id = link.id AND messages.id = $4 AND messages.leased_until = $5
             RETURNING messages.id
         ), entry AS (
             SELECT link.id AS link_id, link.status AS before, link.status AS after, $8::jsonb AS detail
             FROM link, finished
         )",
        message.link_id.uuid(),
        message.id.uuid(),
        message.lease.until,
        status.as_str(),
        reason,
        to_json(&detail)?
    )
    .execute(pool)
    .await?;
    Ok(finished.rows_affected() == 1)
}

/// Releases a message, to be claimed again after `wait`.
pub async fn release(pool: &PgPool, message: &DueMessage, wait: Duration) -> Result<(), Error> {
    release!(
        "messages",
        "due_at IS NOT NULL",
        message.id.uuid(),
        message.lease,
        Some(wait)
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// How many messages wait.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    pub messages: i64,
    /// How long ago the oldest one was requested, in seconds.
    pub lag: f64,
}

/// The messages of this account that wait.
pub async fn backlog(pool: &PgPool, account: &str) -> Result<Backlog, Error> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "messages!",
                  coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS "lag!"
           FROM messages WHERE account = $1 AND due_at IS NOT NULL"#,
        account
    )
    .fetch_one(pool)
    .await?;
    Ok(Backlog {
        messages: row.messages,
        lag: row.lag.max(0.0),
    })
}
