//! Pruning: removing old webhooks, and the timeline entries that say nothing without them.
//!
//! A pass walks through `webhook_events` in the order of its primary key, which is the order of arrival, in batches. Each
//! batch is a short transaction. A link's timeline entries are found through the index of its timeline. So no pass reads a
//! whole table, and none needs an index of its own.

use std::time::{Duration, Instant};

use super::{Error, PgPool, PgTransaction};
use crate::payment_link::{Status, Verdict, pruning::is_spent, timeline::Kind};

/// How many webhooks a batch examines. A batch takes some ten milliseconds.
const BATCH: i64 = 500;

/// After a batch, nothing is removed for this many times as long as the batch took. So pruning takes at most a fifth of the
/// time of one connection, and slows down with the database.
const REST: u32 = 4;
const SHORTEST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// The time between the end of a pass of the service and the start of the next one.
pub(super) const BETWEEN_PASSES: Duration = Duration::from_hours(6);

/// How many rows were removed from each table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub webhook_events: u64,
    pub payment_link_events: u64,
}

/// What a batch did.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    pub removed: Removed,
    /// Where the next batch begins. `None` if nothing older is left.
    pub next: Option<i64>,
    /// How long to leave the database alone before the next batch.
    pub rest: Duration,
}

/// Removes the next batch of the pass that all replicas share. `None` if another replica is removing one, or if the next
/// one isn't due yet.
///
/// The row in `pruning` says where the pass is. It is locked for the time of the batch only, and without waiting. So
/// replicas take turns, none does what another one has done, and a replica that dies in the middle of a batch leaves
/// nothing behind.
pub async fn next_batch(pool: &PgPool, older_than: Duration) -> Result<Option<Batch>, Error> {
    let mut transaction = pool.begin().await?;
    let position = sqlx::query_scalar!(
        "SELECT position FROM pruning WHERE due_at <= now() FOR UPDATE SKIP LOCKED"
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(position) = position else {
        return Ok(None);
    };
    let batch = remove(&mut transaction, position, older_than).await?;
    let wait = batch.next.map_or(BETWEEN_PASSES, |_| batch.rest);
    sqlx::query!(
        "UPDATE pruning SET position = $1, due_at = clock_timestamp() + make_interval(secs => $2)",
        batch.next.unwrap_or(0),
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
    after: i64,
    older_than: Duration,
) -> Result<Option<Batch>, Error> {
    let mut transaction = pool.begin().await?;
    let turn = sqlx::query!("SELECT position FROM pruning FOR UPDATE SKIP LOCKED")
        .fetch_optional(&mut *transaction)
        .await?;
    if turn.is_none() {
        return Ok(None);
    }
    let batch = remove(&mut transaction, after, older_than).await?;
    transaction.commit().await?;
    Ok(Some(batch))
}

/// Selects what can be removed of the webhooks `$ids`, and the timeline entries that go with them. `$lock` follows the
/// selection of the webhooks, and `$take` and `$give` surround the name of each table and the conditions on its rows.
macro_rules! prunable {
    ($lock:tt, $take:tt, $give:tt, $ids:expr, $older_than:expr) => {{
        let spent = Spent::new();
        sqlx::query!(
            "WITH prunable AS MATERIALIZED (
                 SELECT event.id, event.payment_link_id, event.dedup_key
                 FROM webhook_events event
                 LEFT JOIN payment_links link ON link.id = event.payment_link_id
                 LEFT JOIN payment_intents intent ON intent.id = event.payment_intent_id
                 WHERE event.id = ANY($1)
                   -- Dojo is no longer sending it.
                   AND event.last_received_at < now() - make_interval(secs => $2)
                   AND CASE
                       -- What is unknown is null here, and keeps the row.
                       WHEN event.payment_link_id IS NOT NULL THEN
                           link.updated_at < now() - make_interval(secs => $2)
                           AND link.due_at IS NULL
                           AND (link.leased_until IS NULL OR link.leased_until <= now())
                           -- Dojo itself confirmed the status. `disputed_since` is when a conflict began.
                           AND link.dojo_status = link.status
                           AND link.unsettled_status IS NULL AND link.disputed_since IS NULL
                           AND EXISTS (
                               SELECT FROM unnest($3::text[], $4::text[]) AS spent (status, reported)
                               WHERE spent.status = link.status
                                 AND (event.payment_status IS NULL OR spent.reported = event.payment_status)
                           )
                           -- An aggregate, because Postgres may read the whole table for `NOT EXISTS`.
                           AND NOT (
                               SELECT coalesce(bool_or(
                                          operations.status IN ('Pending', 'Unconfirmed')
                                          OR operations.due_at IS NOT NULL
                                          OR coalesce(operations.completed_at, operations.created_at)
                                             >= now() - make_interval(secs => $2)), false)
                               FROM operations WHERE operations.payment_link_id = link.id
                           )
                       WHEN event.payment_intent_id IS NOT NULL THEN
                           -- Nobody traces the intent any more.
                           intent.id IS NOT NULL AND intent.due_at IS NULL
                           AND (intent.leased_until IS NULL OR intent.leased_until <= now())
                       ELSE true
                   END
                 " + $lock + "
             ), entry AS (
                 " + $take + " payment_link_events entry
                 WHERE entry.payment_link_id = ANY(ARRAY(SELECT payment_link_id FROM prunable))
                   -- `IS TRUE` makes this a hash table. As a join, it would compare each entry with each webhook.
                   AND ((entry.payment_link_id, entry.cause ->> 'eventId')
                        IN (SELECT payment_link_id, dedup_key FROM prunable)) IS TRUE
                   AND entry.kind = $5 AND entry.status_before = entry.status_after
                   AND entry.detail ->> 'verdict' = ANY($6)
                 " + $give + "
             ), event AS (
                 " + $take + " webhook_events event WHERE event.id IN (SELECT id FROM prunable)
                 " + $give + "
             )
             SELECT (SELECT count(*) FROM event) AS \"webhook_events!\",
                    (SELECT count(*) FROM entry) AS \"payment_link_events!\"",
            $ids,
            $older_than.as_secs_f64(),
            &spent.status as &[&str],
            &spent.reported as &[&str],
            Kind::Webhook.as_str(),
            // The other verdicts that change nothing say that something is unclear, so somebody may ask about them.
            &[Verdict::Unchanged.name(), Verdict::Stale.name()] as &[&str],
        )
    }};
}

/// Examines the batch behind `after`, and removes what is older than `older_than` and about a link that can no longer
/// change, or about no link and no intent that is being traced.
///
/// A webhook's timeline entry is removed with it, unless it changed the status or contradicted it. All other entries stay.
///
/// It is safe to remove a webhook because no decision reads it, except for two:
///
/// - Whether a webhook is a copy. Dojo may send a removed webhook again, however late. It is then stored and judged like a
///   new one. It can't move the link ([`is_spent`]). It adds an entry to the timeline and makes the link due, so the link is
///   read from Dojo once more.
/// - What arrived before a link had its intent ([`super::adoption::adopt_intent`]). An intent that is no longer traced has no
///   link that waits for it. If a link adopts it after all, its status is the one that Dojo reports at that moment, and the
///   removed webhooks were older.
///
/// The links aren't locked: if one of them starts to change meanwhile, both remain true.
async fn remove(
    transaction: &mut PgTransaction,
    after: i64,
    older_than: Duration,
) -> Result<Batch, Error> {
    let start = Instant::now();
    let (ids, next) = examine(&mut **transaction, after, older_than).await?;
    if ids.is_empty() {
        return Ok(Batch::new(Removed::default(), next, start));
    }
    // The planner must not guess how many rows a range of ids has. With a list of ids, it always takes the indexes.
    // Rows that are locked, by a copy of the webhook that is arriving, are left to the next pass: so this never waits for
    // a lock while it holds others.
    let row = prunable!(
        "FOR UPDATE OF event SKIP LOCKED",
        "DELETE FROM",
        "RETURNING 1",
        &ids,
        older_than
    )
    .fetch_one(&mut **transaction)
    .await?;
    let removed = Removed::new(row.webhook_events, row.payment_link_events);
    Ok(Batch::new(removed, next, start))
}

/// Like [`batch`], but only counts what would be removed. Writes nothing and locks nothing.
pub async fn preview(pool: &PgPool, after: i64, older_than: Duration) -> Result<Batch, Error> {
    let start = Instant::now();
    let (ids, next) = examine(pool, after, older_than).await?;
    let row = prunable!("", "SELECT FROM", "", &ids, older_than)
        .fetch_one(pool)
        .await?;
    let removed = Removed::new(row.webhook_events, row.payment_link_events);
    Ok(Batch::new(removed, next, start))
}

/// The old webhooks of the batch behind `after`, and where the next batch begins. It is the last one if none of its webhooks
/// is old.
async fn examine<'e>(
    executor: impl sqlx::Executor<'e, Database = sqlx::Postgres>,
    after: i64,
    older_than: Duration,
) -> Result<(Vec<i64>, Option<i64>), Error> {
    // A condition on the time would make this read on to the end of the table.
    let rows = sqlx::query!(
        r#"SELECT id, received_at < now() - make_interval(secs => $2) AS "is_old!"
           FROM webhook_events WHERE id > $1 ORDER BY id LIMIT $3"#,
        after,
        older_than.as_secs_f64(),
        BATCH
    )
    .fetch_all(executor)
    .await?;
    let old: Vec<_> = rows
        .iter()
        .filter(|row| row.is_old)
        .map(|row| row.id)
        .collect();
    let is_full = i64::try_from(rows.len()) == Ok(BATCH);
    let last = rows.last().map(|row| row.id);
    let next = last.filter(|_| is_full && !old.is_empty());
    Ok((old, next))
}

impl Removed {
    fn new(webhook_events: i64, payment_link_events: i64) -> Self {
        // Counts are never negative.
        Self {
            webhook_events: webhook_events.unsigned_abs(),
            payment_link_events: payment_link_events.unsigned_abs(),
        }
    }
}

impl Batch {
    fn new(removed: Removed, next: Option<i64>, start: Instant) -> Self {
        Self {
            removed,
            next,
            rest: rest(start),
        }
    }
}

/// How long to leave the database alone after a batch that began then.
#[must_use]
pub fn rest(start: Instant) -> Duration {
    (start.elapsed() * REST).clamp(SHORTEST_REST, LONGEST_REST)
}

/// Every pair of a link's status and a reported one for which a webhook is spent. A reported status that this version
/// doesn't know is in none of them, because a later version may know it.
#[derive(Debug, Default)]
struct Spent {
    status: Vec<&'static str>,
    reported: Vec<&'static str>,
}

impl Spent {
    fn new() -> Self {
        let mut spent = Self::default();
        for status in Status::ALL {
            for reported in Status::ALL {
                if Status::from_dojo(reported.as_str()).is_some() && is_spent(status, reported) {
                    spent.status.push(status.as_str());
                    spent.reported.push(reported.as_str());
                }
            }
        }
        spent
    }
}
