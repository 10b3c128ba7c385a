//! The feed: numbering what has been committed, and reading it in that order.
//!
//! `migrations/0025_feed.sql` says why positions are not assigned by the transactions that make the changes.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::postgres::{PgListener, PgPoolOptions};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool, from_json, links::Row, timeline::StoredEntry};
use crate::payment_link::{
    PaymentLinkId,
    feed::{Change, Event},
};

/// How many changes are numbered in one transaction.
const BATCH: i64 = 1000;

/// How many positions a read with a filter examines at most, so that a filter that matches little can't make a read long.
const SCAN: i64 = 10_000;

/// Where Postgres announces that the feed has new events.
const CHANNEL: &str = "feed";

/// What a call of [`sequence`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sequenced {
    /// Whether more may be waiting.
    pub more: bool,
    /// How long ago the oldest change that got its position was recorded, in seconds. `None` if none did.
    pub delay: Option<f64>,
}

impl Sequenced {
    const NOTHING: Self = Self {
        more: false,
        delay: None,
    };
}

/// Moves committed changes from the outbox to the feed, each as its events, and numbers these. Does nothing if another
/// replica is doing so.
///
/// A change that can't be read stops the feed rather than being left out: the transaction fails until a version that can read
/// it runs.
pub async fn sequence(pool: &PgPool) -> Result<Sequenced, Error> {
    let oldest = sqlx::query_scalar!("SELECT entry_id FROM feed_outbox ORDER BY entry_id LIMIT 1")
        .fetch_optional(pool)
        .await?;
    if oldest.is_none() {
        return Ok(Sequenced::NOTHING);
    }
    let mut transaction = pool.begin().await?;
    // In a statement of its own: the snapshot of the next one is taken with the lock held, so it contains everything that the
    // sequencer before this one left.
    //
    // The outbox has few rows and, until it is vacuumed, room for very many. So the planner must not choose to scan all of it.
    let head = sqlx::query_scalar!(
        "SELECT head FROM feed
         WHERE set_config('enable_seqscan', 'off', true) IS NOT NULL
         FOR UPDATE SKIP LOCKED"
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(mut head) = head else {
        return Ok(Sequenced::NOTHING);
    };
    // Of a link's changes, those that are visible include all earlier ones, because each was made while the link was locked.
    //
    // OFFSET keeps the subquery apart, so that each entry is looked up by its id. Merging both by id, which is what the planner
    // chooses otherwise, reads the timelines of all links from the beginning.
    let rows = sqlx::query!(
        "SELECT entry.id, entry.kind, entry.status_before, entry.status_after, entry.cause, entry.detail,
                entry.occurred_at, outbox.link
         FROM (SELECT entry_id, link FROM feed_outbox ORDER BY entry_id LIMIT $1) outbox
         CROSS JOIN LATERAL (SELECT * FROM payment_link_events WHERE id = outbox.entry_id OFFSET 0) entry
         ORDER BY outbox.entry_id",
        BATCH
    )
    .fetch_all(&mut *transaction)
    .await?;

    let more = i64::try_from(rows.len()) == Ok(BATCH);
    let oldest = rows.first().map(|row| row.occurred_at);
    let (mut entries, mut events) = (Vec::new(), Vec::new());
    for row in rows {
        entries.push(row.id);
        let entry = StoredEntry {
            id: row.id,
            kind: row.kind,
            status_before: row.status_before,
            status_after: row.status_after,
            cause: row.cause,
            detail: row.detail,
            occurred_at: row.occurred_at,
        };
        events.extend(events_of(entry, row.link)?);
    }

    let mut columns = Columns::default();
    for event in &events {
        head += 1;
        columns.push(head, event)?;
    }
    let delay = sqlx::query_scalar!(
        r#"WITH taken AS (
             DELETE FROM feed_outbox WHERE entry_id = ANY($1)
         ), numbered AS (
             INSERT INTO feed_events (position, id, type, account, payment_link_id, occurred_at, event)
             SELECT position, id, type, account, link_id, occurred_at, event::json
             FROM unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::timestamptz[], $8::text[])
                 AS new (position, id, type, account, link_id, occurred_at, event)
         )
         UPDATE feed SET head = $9
         RETURNING CASE WHEN pg_notify($10, $9::bigint::text) IS NOT NULL
                        THEN extract(epoch FROM clock_timestamp() - $11::timestamptz)::float8 END AS delay"#,
        &entries,
        &columns.position,
        &columns.id,
        &columns.kind as &[&str],
        &columns.account as &[&str],
        &columns.link_id,
        &columns.occurred_at,
        &columns.event,
        head,
        CHANNEL,
        oldest
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Sequenced { more, delay })
}

/// The events that a change consists of. `link` is its link's row as the change left it.
fn events_of(entry: StoredEntry, link: serde_json::Value) -> Result<Vec<Event>, Error> {
    let LinkThen {
        row,
        revision,
        dojo_updated_at,
    } = from_json(link)?;
    let accepted = row
        .status
        .parse()
        .ok()
        .and_then(|status| row.accepted_status(status));
    let (entry, link) = (entry.into_entry()?, row.into_link()?);
    let change = Change {
        entry: &entry,
        link: &link,
        accepted,
        dojo_updated_at,
        revision,
    };
    change
        .events()
        .map_err(|error| Error::Unreadable(error.to_string()))
}

/// A link's row as it is in the outbox.
#[derive(Deserialize)]
struct LinkThen {
    #[serde(flatten)]
    row: Row,
    revision: i64,
    #[serde(default, with = "time::serde::rfc3339::option")]
    dojo_updated_at: Option<OffsetDateTime>,
}

/// Events as columns: one element of each vector per event.
#[derive(Default)]
struct Columns<'a> {
    position: Vec<i64>,
    id: Vec<Uuid>,
    kind: Vec<&'a str>,
    account: Vec<&'a str>,
    link_id: Vec<Uuid>,
    occurred_at: Vec<OffsetDateTime>,
    event: Vec<String>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, position: i64, event: &'a Event) -> Result<(), Error> {
        let json =
            serde_json::to_string(event).map_err(|error| Error::Unreadable(error.to_string()))?;
        self.position.push(position);
        self.id.push(event.id.uuid());
        self.kind.push(event.happening.word());
        self.account.push(&event.account);
        self.link_id.push(event.payment_link_id.uuid());
        self.occurred_at.push(event.occurred_at);
        self.event.push(json);
        Ok(())
    }
}

/// A place in the feed: just behind the event at `position`.
///
/// `id` is that event's id; at position 0, it is the feed's own. So a cursor from another database, or from before a backup
/// was restored, is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub position: i64,
    pub id: Uuid,
}

/// The position and the id, in hex. Callers pass it back unread.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.position, self.id.simple())
    }
}

/// The text is not a [`Cursor`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be the after of an earlier response")]
pub struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (position, id) = text.split_once('-').ok_or(NotACursor)?;
        let position = i64::from_str_radix(position, 16)
            .ok()
            .filter(|position| *position >= 0)
            .ok_or(NotACursor)?;
        let id = Uuid::try_parse(id).map_err(|_| NotACursor)?;
        Ok(Self { position, id })
    }
}

/// Which events to read. A filter that is `None` matches every event.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Events of any of these accounts: those that the caller may see.
    pub open: Option<&'a [String]>,
    pub account: Option<String>,
    pub types: Option<Vec<String>>,
    pub link: Option<PaymentLinkId>,
}

/// A part of the feed.
#[derive(Debug)]
pub struct Page {
    /// The events, as they were stored.
    pub events: Vec<Box<RawValue>>,
    /// Where to continue.
    pub after: Cursor,
    /// Whether the feed goes on behind `after`.
    pub more: bool,
}

/// Why nothing can be read from a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Events behind it have been removed.
    Pruned,
    /// It is not a place in this feed: it comes from another database, or from one that a backup has replaced.
    Foreign,
}

/// Up to `limit` events behind `after` that match the filter. Without `after`, it begins with the oldest event there is.
pub async fn read(
    pool: &PgPool,
    after: Option<Cursor>,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Result<Page, Unusable>, Error> {
    // One statement, so that nothing is removed between the check of the cursor and the read behind it.
    let rows = sqlx::query!(
        r#"WITH place AS MATERIALIZED (
             SELECT feed.*, coalesce($1, pruned) AS position,
                    -- An index leads to the events of one link.
                    CASE WHEN $6::uuid IS NOT NULL THEN head ELSE least(head, least(coalesce($1, pruned), head) + $2) END AS until
             FROM feed LIMIT 1
           )
           SELECT place.id AS feed_id, place.head, place.pruned, place.pruned_id,
                  place.until AS "until!",
                  (SELECT id FROM feed_events WHERE position = place.position) AS start_id,
                  (SELECT id FROM feed_events WHERE position = place.until) AS until_id,
                  found.position AS "position?", found.id AS "id?", found.event AS "event?"
           FROM place LEFT JOIN LATERAL (
               SELECT event.position, event.id, event.event::text
               FROM feed_events event
               WHERE event.position > place.position AND event.position <= place.until
                 AND ($3::text[] IS NULL OR event.account = ANY($3))
                 AND ($4::text IS NULL OR event.account = $4)
                 AND ($5::text[] IS NULL OR event.type = ANY($5))
                 AND ($6::uuid IS NULL OR event.payment_link_id = $6)
               ORDER BY event.position
               LIMIT $7
           ) found ON true
           ORDER BY found.position"#,
        after.map(|after| after.position),
        SCAN,
        filter.open,
        filter.account.as_deref(),
        filter.types.as_deref(),
        filter.link.map(|link| link.uuid()),
        limit
    )
    .fetch_all(pool)
    .await?;

    let Some(place) = rows.first() else {
        return Err(Error::Unreadable("there is no feed".to_owned()));
    };
    let begin = Cursor {
        position: place.pruned,
        id: place.pruned_id.unwrap_or(place.feed_id),
    };
    let start = after.unwrap_or(begin);
    if start.position < begin.position {
        return Ok(Err(Unusable::Pruned));
    }
    let found = if start.position == begin.position {
        Some(begin.id)
    } else {
        place.start_id
    };
    if found != Some(start.id) {
        return Ok(Err(Unusable::Foreign));
    }

    let head = place.head;
    let until = Cursor {
        position: place.until,
        id: place.until_id.unwrap_or(start.id),
    };
    let mut last = start;
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        let (Some(position), Some(id), Some(event)) = (row.position, row.id, row.event) else {
            break;
        };
        last = Cursor { position, id };
        let event =
            RawValue::from_string(event).map_err(|error| Error::Unreadable(error.to_string()))?;
        events.push(event);
    }
    let is_full = i64::try_from(events.len()) == Ok(limit);
    let after = if is_full { last } else { until };
    Ok(Ok(Page {
        events,
        after,
        more: after.position < head,
    }))
}

/// Whether there are events after this position: about the link or, without one, about any link of the accounts `open` (`None`:
/// all accounts). If very many events follow the position, returns true without looking at them.
pub async fn has_events(
    pool: &PgPool,
    after: i64,
    open: Option<&[String]>,
    link: Option<PaymentLinkId>,
) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT CASE WHEN head - $1 > $2 THEN true ELSE EXISTS (
               SELECT FROM feed_events
               WHERE position > $1 AND ($3::text[] IS NULL OR account = ANY($3)) AND ($4::uuid IS NULL OR payment_link_id = $4)
           ) END AS "has_events!"
           FROM feed"#,
        after,
        SCAN,
        open,
        link.map(|link| link.uuid())
    )
    .fetch_one(pool)
    .await?)
}

/// The place behind the newest event.
pub async fn end(pool: &PgPool) -> Result<Cursor, Error> {
    let row = sqlx::query!(
        r#"SELECT head, coalesce((SELECT id FROM feed_events WHERE position = head), pruned_id, id) AS "id!" FROM feed"#
    )
    .fetch_one(pool)
    .await?;
    Ok(Cursor {
        position: row.head,
        id: row.id,
    })
}

/// How many events are removed in one transaction.
const PRUNE: i64 = 1000;

/// Removes the oldest events, as far as they are older than `older_than`, booked, and no callback endpoint is going to get them.
/// Returns how many, and whether there may be more.
pub async fn prune(pool: &PgPool, older_than: Duration) -> Result<(u64, bool), Error> {
    let mut transaction = pool.begin().await?;
    // In a statement of its own: the next one sees every replay that locked the row before.
    sqlx::query!("SELECT id FROM feed FOR UPDATE")
        .fetch_one(&mut *transaction)
        .await?;
    // Only a row of old events up to the first that is not: what remains has no gaps.
    let removed = sqlx::query_scalar!(
        r#"WITH oldest AS MATERIALIZED (
             SELECT position, occurred_at < now() - make_interval(secs => $1) AS is_old
             FROM feed_events
             -- Without it, each batch would step over what the earlier ones have removed.
             WHERE position > (SELECT pruned FROM feed)
             ORDER BY position LIMIT $2
           ), needed AS MATERIALIZED (
             SELECT min(least(position + 1, (
                 SELECT min(delivery.position) FROM callback_deliveries delivery
                 WHERE delivery.endpoint_id = endpoint.id AND delivery.status = 'Pending'
             ))) AS position
             FROM callback_endpoints endpoint WHERE deleted_at IS NULL
           ), removed AS (
             DELETE FROM feed_events WHERE position IN (
                 SELECT oldest.position FROM oldest, needed
                 WHERE oldest.position < coalesce((SELECT min(position) FROM oldest WHERE NOT is_old), 9223372036854775807)
                   AND oldest.position < coalesce(needed.position, 9223372036854775807)
                   AND oldest.position <= (SELECT feed_position FROM books)
             )
             RETURNING position, id
           ), moved AS (
             UPDATE feed SET pruned = newest.position, pruned_id = newest.id
             FROM (SELECT position, id FROM removed ORDER BY position DESC LIMIT 1) newest
             WHERE feed.pruned < newest.position
           )
           SELECT count(*) AS "count!" FROM removed"#,
        older_than.as_secs_f64(),
        PRUNE
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok((removed.unsigned_abs(), removed == PRUNE))
}

/// How many events [`prune`] would remove, in all.
pub async fn prunable(pool: &PgPool, older_than: Duration) -> Result<u64, Error> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM feed_events
           WHERE position < coalesce(least(
               (SELECT min(position) FROM feed_events WHERE occurred_at >= now() - make_interval(secs => $1)),
               (SELECT feed_position + 1 FROM books),
               (SELECT min(least(position + 1, (
                    SELECT min(delivery.position) FROM callback_deliveries delivery
                    WHERE delivery.endpoint_id = endpoint.id AND delivery.status = 'Pending')))
                FROM callback_endpoints endpoint WHERE deleted_at IS NULL)
           ), 9223372036854775807)"#,
        older_than.as_secs_f64()
    )
    .fetch_one(pool)
    .await?;
    Ok(count.unsigned_abs())
}

/// The position of the newest event.
pub async fn head(pool: &PgPool) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!("SELECT head FROM feed")
        .fetch_one(pool)
        .await?)
}

/// Receives the announcements of new events, over a connection of its own.
pub struct Announcements(PgListener);

impl Announcements {
    pub async fn subscribe(pool: &PgPool) -> Result<Self, Error> {
        let connections = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(pool.acquire_timeout())
            .connect_lazy_with(pool.options());
        let mut listener = PgListener::connect_with(&connections).await?;
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// Waits for the next announcement: the position of the newest event. `None` if some may have been missed.
    pub async fn next(&mut self) -> Result<Option<i64>, Error> {
        let announced = self.0.try_recv().await?;
        Ok(announced.and_then(|announced| announced.payload().parse().ok()))
    }
}
