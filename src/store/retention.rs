//! Removing old data of other kinds than [`super::pruning`]: messages, the bodies of webhooks, and stored responses. And whose
//! turn it is to remove events and personal data.
//!
//! Each kind has a row in the table `retention`, which says where its pass is and when it goes on. As in [`super::pruning`], a
//! batch is a short transaction, and replicas take turns.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool, PgTransaction,
    links::Place as LinkPlace,
    pruning::{BETWEEN_PASSES, rest},
};
use crate::payment_link::Status;

/// How many rows a batch examines.
const BATCH: i64 = 500;

/// How long a replica that takes a turn with [`claim`] may take. If it dies, another one goes on after that.
const TURN: Duration = Duration::from_mins(2);

/// A kind of old data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Messages,
    WebhookBodies,
    StoredResponses,
}

/// A kind of old data that is removed by several transactions in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongKind {
    Events,
    Links,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::WebhookBodies => "webhookBodies",
            Self::StoredResponses => "storedResponses",
        }
    }
}

impl LongKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Links => "links",
        }
    }
}

/// Where a pass is. Webhooks are numbered, messages have ids that sort by time, and stored responses are found by an index that
/// contains nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    pub position: i64,
    pub id: Uuid,
}

/// How many rows a batch removed or emptied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub messages: u64,
    pub webhook_bodies: u64,
    pub responses_to_creations: u64,
    pub responses_to_operations: u64,
}

/// What a batch did.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    pub removed: Removed,
    /// Where the next batch begins.
    pub place: Place,
    /// Whether there may be more.
    pub more: bool,
    /// How long to leave the database alone before the next batch.
    pub rest: Duration,
}

/// What to do with the rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Remove,
    Count,
}

/// Removes the next batch of the pass that all replicas share. `None` if it is another replica's turn, or if the next batch
/// isn't due yet.
pub async fn next_batch(
    pool: &PgPool,
    kind: Kind,
    older_than: Duration,
) -> Result<Option<Batch>, Error> {
    let mut transaction = pool.begin().await?;
    let place = sqlx::query_as!(
        Place,
        "SELECT position, id FROM retention WHERE kind = $1 AND due_at <= now() FOR UPDATE SKIP LOCKED",
        kind.as_str()
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(place) = place else {
        return Ok(None);
    };
    let batch = examine(&mut transaction, kind, place, older_than, Mode::Remove).await?;
    // All earlier bodies are empty by then. A message may have been kept because its link could still change.
    let next = if batch.more || kind == Kind::WebhookBodies {
        batch.place
    } else {
        Place::default()
    };
    let wait = if batch.more {
        batch.rest
    } else {
        BETWEEN_PASSES
    };
    sqlx::query!(
        "UPDATE retention SET position = $2, id = $3, due_at = clock_timestamp() + make_interval(secs => $4)
         WHERE kind = $1",
        kind.as_str(),
        next.position,
        next.id,
        wait.as_secs_f64()
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(batch))
}

/// Removes the batch behind `after`, for a caller that keeps track of its pass itself. `None` if somebody else is removing a
/// batch, so that there is never more than one at a time.
pub async fn batch(
    pool: &PgPool,
    kind: Kind,
    after: Place,
    older_than: Duration,
) -> Result<Option<Batch>, Error> {
    let mut transaction = pool.begin().await?;
    let turn = sqlx::query!(
        "SELECT kind FROM retention WHERE kind = $1 FOR UPDATE SKIP LOCKED",
        kind.as_str()
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if turn.is_none() {
        return Ok(None);
    }
    let batch = examine(&mut transaction, kind, after, older_than, Mode::Remove).await?;
    transaction.commit().await?;
    Ok(Some(batch))
}

/// Like [`batch`], but only counts what would be removed.
pub async fn preview(
    pool: &PgPool,
    kind: Kind,
    after: Place,
    older_than: Duration,
) -> Result<Batch, Error> {
    let mut transaction = pool.begin().await?;
    examine(&mut transaction, kind, after, older_than, Mode::Count).await
}

async fn examine(
    transaction: &mut PgTransaction,
    kind: Kind,
    after: Place,
    older_than: Duration,
    mode: Mode,
) -> Result<Batch, Error> {
    let start = std::time::Instant::now();
    let examined = match kind {
        Kind::Messages => messages(transaction, after, older_than, mode).await?,
        Kind::WebhookBodies => webhook_bodies(transaction, after, older_than, mode).await?,
        Kind::StoredResponses => stored_responses(transaction, older_than, mode).await?,
    };
    Ok(Batch {
        removed: examined.removed,
        place: examined.place,
        more: examined.more,
        rest: rest(start),
    })
}

struct Examined {
    removed: Removed,
    place: Place,
    more: bool,
}

/// Removes messages that are older than `older_than` and about a link that can't change any more.
async fn messages(
    transaction: &mut PgTransaction,
    after: Place,
    older_than: Duration,
    mode: Mode,
) -> Result<Examined, Error> {
    let rows = sqlx::query!(
        r#"SELECT id, created_at < now() - make_interval(secs => $2) AS "is_old!"
           FROM messages WHERE id > $1 ORDER BY id LIMIT $3"#,
        after.id,
        older_than.as_secs_f64(),
        BATCH
    )
    .fetch_all(&mut **transaction)
    .await?;
    let old = rows.iter().filter(|row| row.is_old).map(|row| row.id);
    let old: Vec<_> = old.collect();
    let removable = sqlx::query_scalar!(
        "SELECT message.id
         FROM messages message JOIN payment_links link ON link.id = message.payment_link_id
         WHERE message.id = ANY($1) AND message.status <> 'Pending'
           AND link.status <> ALL($3)
           AND link.updated_at < now() - make_interval(secs => $2)
           AND link.due_at IS NULL AND (link.leased_until IS NULL OR link.leased_until <= now())
           AND (link.status = $4
                OR (link.dojo_status = link.status AND link.unsettled_status IS NULL AND link.disputed_since IS NULL))
           AND NOT EXISTS (
               SELECT FROM operations
               WHERE payment_link_id = link.id
                 AND (operations.status IN ('Pending', 'Unconfirmed') OR operations.due_at IS NOT NULL))",
        &old,
        older_than.as_secs_f64(),
        &[Status::Pending, Status::Created, Status::Authorized].map(Status::as_str) as &[&str],
        Status::Failed.as_str()
    )
    .fetch_all(&mut **transaction)
    .await?;
    if mode == Mode::Remove {
        sqlx::query!("DELETE FROM messages WHERE id = ANY($1)", &removable)
            .execute(&mut **transaction)
            .await?;
    }
    let is_full = i64::try_from(rows.len()) == Ok(BATCH);
    Ok(Examined {
        removed: Removed {
            messages: count(removable.len()),
            ..Removed::default()
        },
        place: Place {
            id: rows.last().map_or(after.id, |row| row.id),
            ..after
        },
        more: is_full && !old.is_empty(),
    })
}

/// Empties the bodies of webhooks that are older than `older_than`. What was understood of them is in other columns, and so is
/// the key that recognizes a copy.
async fn webhook_bodies(
    transaction: &mut PgTransaction,
    after: Place,
    older_than: Duration,
    mode: Mode,
) -> Result<Examined, Error> {
    // As in `pruning::examine`: a condition on the time would make this read on to the end of the table.
    let rows = sqlx::query!(
        r#"SELECT id, received_at < now() - make_interval(secs => $2) AS "is_old!", body <> '' AS "has_body!"
           FROM webhook_events WHERE id > $1 ORDER BY id LIMIT $3"#,
        after.position,
        older_than.as_secs_f64(),
        BATCH
    )
    .fetch_all(&mut **transaction)
    .await?;
    // Up to the first that isn't old, because the next pass begins there.
    let is_full = i64::try_from(rows.len()) == Ok(BATCH);
    let old: Vec<_> = rows.iter().take_while(|row| row.is_old).collect();
    let with_body = old.iter().filter(|row| row.has_body).map(|row| row.id);
    let with_body: Vec<_> = with_body.collect();
    if mode == Mode::Remove && !with_body.is_empty() {
        sqlx::query!(
            "UPDATE webhook_events SET body = '' WHERE id = ANY($1)",
            &with_body
        )
        .execute(&mut **transaction)
        .await?;
    }
    Ok(Examined {
        removed: Removed {
            webhook_bodies: count(with_body.len()),
            ..Removed::default()
        },
        place: Place {
            position: old.last().map_or(after.position, |row| row.id),
            ..after
        },
        more: is_full && old.len() == rows.len(),
    })
}

/// Removes responses that earlier versions stored. Nothing reads those to creations. One to an operation also says that the
/// link was read from Dojo afterwards.
async fn stored_responses(
    transaction: &mut PgTransaction,
    older_than: Duration,
    mode: Mode,
) -> Result<Examined, Error> {
    let age = older_than.as_secs_f64();
    let (creations, operations) = if mode == Mode::Remove {
        let creations = sqlx::query!(
            "UPDATE idempotency_keys SET response_body = NULL WHERE (api_key_id, key) IN (
                 SELECT api_key_id, key FROM idempotency_keys
                 WHERE response_body IS NOT NULL AND created_at < now() - make_interval(secs => $1)
                 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
            age,
            BATCH
        )
        .execute(&mut **transaction)
        .await?;
        let operations = sqlx::query!(
            "UPDATE operations
             SET response_body = NULL, read_back_at = coalesce(read_back_at, completed_at, created_at)
             WHERE id IN (
                 SELECT id FROM operations
                 WHERE response_body IS NOT NULL AND created_at < now() - make_interval(secs => $1)
                 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
            age,
            BATCH
        )
        .execute(&mut **transaction)
        .await?;
        (creations.rows_affected(), operations.rows_affected())
    } else {
        let row = sqlx::query!(
            r#"SELECT (SELECT count(*) FROM idempotency_keys
                       WHERE response_body IS NOT NULL AND created_at < now() - make_interval(secs => $1)) AS "creations!",
                      (SELECT count(*) FROM operations
                       WHERE response_body IS NOT NULL AND created_at < now() - make_interval(secs => $1)) AS "operations!""#,
            age
        )
        .fetch_one(&mut **transaction)
        .await?;
        (row.creations.unsigned_abs(), row.operations.unsigned_abs())
    };
    let is_full = |rows| i64::try_from(rows) == Ok(BATCH);
    Ok(Examined {
        removed: Removed {
            responses_to_creations: creations,
            responses_to_operations: operations,
            ..Removed::default()
        },
        place: Place::default(),
        more: mode == Mode::Remove && (is_full(creations) || is_full(operations)),
    })
}

/// Takes the turn of a kind, if it is due and no other replica has it. Returns where the pass is.
pub async fn claim(pool: &PgPool, kind: LongKind) -> Result<Option<LinkPlace>, Error> {
    let row = sqlx::query!(
        "UPDATE retention SET due_at = clock_timestamp() + make_interval(secs => $2)
         WHERE kind = $1 AND due_at <= now()
         RETURNING at, id",
        kind.as_str(),
        TURN.as_secs_f64()
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| LinkPlace {
        at: row.at,
        id: row.id,
    }))
}

/// Ends the turn of a kind. The pass goes on at `next` after `rest`. If `next` is `None`, it has ended.
pub async fn end_turn(
    pool: &PgPool,
    kind: LongKind,
    next: Option<LinkPlace>,
    rest: Duration,
) -> Result<(), Error> {
    let wait = next.map_or(BETWEEN_PASSES, |_| rest);
    sqlx::query!(
        "UPDATE retention SET at = $2, id = $3, due_at = clock_timestamp() + make_interval(secs => $4)
         WHERE kind = $1",
        kind.as_str(),
        next.map_or(OffsetDateTime::UNIX_EPOCH, |next| next.at),
        next.map_or(Uuid::nil(), |next| next.id),
        wait.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}
