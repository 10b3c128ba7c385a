//! The work on callbacks: which replica serves an endpoint, what to send to it, and what became of that.
//!
//! A replica claims an endpoint and not single deliveries. So one place knows what is in flight to the endpoint: there are
//! never more deliveries than permitted, and never two of one link. An event that is delivered at once costs one row, which
//! is written with the outcome.

use std::time::Duration;

use secrecy::SecretString;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Error, PgPool,
    leases::{Lease, LeaseRequest},
    parse_stored,
};
use crate::{
    callbacks::{
        client::{Attempt, Outcome},
        endpoint::{
            Delivery, DeliveryStatus, EndpointId, EndpointStatus, FIRST_WAIT, LONGEST_FAILURE,
            LastAttempt, PauseReason, Target,
        },
        signature::SigningSecret,
    },
    payment_link::{EventId, PaymentLinkId},
};

/// An endpoint that this replica serves.
#[derive(Debug, Clone, Copy)]
pub struct Claimed {
    pub id: EndpointId,
    pub lease: Lease,
}

/// Claims up to `limit` active endpoints that no replica serves.
pub async fn claim(pool: &PgPool, length: Duration, limit: i64) -> Result<Vec<Claimed>, Error> {
    let request = LeaseRequest::new(length);
    let rows = sqlx::query!(
        r#"UPDATE callback_endpoints SET leased_until = now() + make_interval(secs => $1)
           WHERE id IN (
               SELECT id FROM callback_endpoints
               WHERE status = 'Active' AND deleted_at IS NULL AND (leased_until IS NULL OR leased_until <= now())
               LIMIT $2
               FOR UPDATE SKIP LOCKED
           )
           RETURNING id, leased_until AS "until!""#,
        request.seconds(),
        limit
    )
    .fetch_all(pool)
    .await?;
    let claimed = rows.into_iter().map(|row| Claimed {
        id: EndpointId::from_uuid(row.id),
        lease: request.granted(row.until),
    });
    Ok(claimed.collect())
}

/// Gives an endpoint back, so that another replica can claim it at once.
pub async fn release(pool: &PgPool, claimed: &Claimed) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE callback_endpoints SET leased_until = NULL WHERE id = $1 AND leased_until = $2",
        claimed.id.uuid(),
        claimed.lease.until
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// How many events of the feed are examined at a time.
const SCAN: i64 = 1000;

/// How many deliveries of an endpoint may wait. With that many, no more of the feed is read until some of them are delivered
/// or have failed.
const MOST_PENDING: i64 = 10_000;

/// A place in the feed up to which a replica has read, in a generation of the endpoint's deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub generation: i32,
    pub position: i64,
}

/// What there is to do for an endpoint.
#[derive(Debug)]
pub struct Work {
    pub target: Target,
    /// Whether the endpoint is active. Otherwise, `items` is empty.
    pub is_active: bool,
    /// How far the feed has been read. In another generation than that of the call, reading began again.
    pub place: Place,
    /// Whether the feed may contain more that can be read at once.
    pub more: bool,
    /// Whether so many deliveries wait that no more of the feed is read.
    pub is_full: bool,
    pub items: Vec<Item>,
}

/// An event to send.
#[derive(Debug, Clone)]
pub struct Item {
    pub position: i64,
    pub event_id: EventId,
    pub kind: String,
    pub link_id: PaymentLinkId,
    /// The event itself, as JSON.
    pub event: String,
    /// How many attempts have failed.
    pub attempts: u16,
    /// Whether it is a delivery that has waited, as opposed to an event that was just read.
    pub is_due: bool,
    /// Whether an earlier event of the same link waits for its next attempt.
    pub is_behind: bool,
    pub generation: i32,
}

/// Returns what to send to an endpoint: up to `retries` deliveries that are due, and up to `new` events behind `from`, which
/// is `None` in the first call. Leaves out due deliveries of the links `busy`. `None` if the lease has ended.
pub async fn next(
    pool: &PgPool,
    claimed: &Claimed,
    from: Option<Place>,
    busy: &[Uuid],
    retries: i64,
    new: i64,
) -> Result<Option<Work>, Error> {
    let rows = sqlx::query!(
        r#"WITH endpoint AS MATERIALIZED (
               SELECT endpoint.*, head,
                      CASE WHEN generation = $3 THEN $4::bigint ELSE endpoint.position END AS read_from,
                      (SELECT count(*) FROM callback_deliveries
                       WHERE endpoint_id = $1 AND status = 'Pending') >= $8 AS is_full
               FROM callback_endpoints endpoint, feed
               WHERE endpoint.id = $1 AND leased_until = $2
           ), due AS (
               SELECT delivery.position, delivery.attempts
               FROM endpoint, callback_deliveries delivery
               WHERE delivery.endpoint_id = $1 AND delivery.status = 'Pending' AND delivery.due_at <= now()
                 AND endpoint.status = 'Active' AND deleted_at IS NULL
                 AND delivery.payment_link_id <> ALL($5)
                 AND NOT EXISTS (
                     SELECT FROM callback_deliveries earlier
                     WHERE earlier.endpoint_id = $1 AND earlier.status = 'Pending'
                       AND earlier.payment_link_id = delivery.payment_link_id AND earlier.position < delivery.position)
               ORDER BY delivery.due_at
               LIMIT $6
           ), scanned AS MATERIALIZED (
               SELECT event.*
               FROM endpoint, feed_events event
               WHERE endpoint.status = 'Active' AND deleted_at IS NULL AND NOT is_full AND $7::bigint > 0
                 AND event.position > read_from AND event.position <= read_from + $9::bigint
           ), new AS (
               SELECT event.position, 0::smallint AS attempts
               FROM endpoint, scanned event
               WHERE (types IS NULL OR event.type = ANY(types))
                 AND (accounts IS NULL OR event.account = ANY(accounts))
                 AND NOT EXISTS (
                     SELECT FROM callback_deliveries delivery
                     WHERE delivery.endpoint_id = $1 AND delivery.position = event.position
                       AND (delivery.generation = endpoint.generation OR delivery.status = 'Pending'))
               ORDER BY event.position
               LIMIT $7
           )
           SELECT url, header_name, header_value, secret,
                  CASE WHEN previous_secrets_end_at > now() THEN previous_secrets ELSE '{}' END AS "previous_secrets!",
                  endpoint.is_full AS "is_full!",
                  endpoint.status = 'Active' AND deleted_at IS NULL AS "is_active!", generation,
                  head, read_from AS "read_from!",
                  coalesce((SELECT max(position) FROM scanned), read_from) AS "scanned_to!",
                  (SELECT count(*) FROM new) AS "new!",
                  event.position AS "position?", event.id AS "event_id?", event.type AS "type?",
                  event.payment_link_id AS "link_id?", event.event::text AS "event?",
                  found.attempts AS "attempts?", found.is_new AS "is_new?",
                  EXISTS (
                      SELECT FROM callback_deliveries earlier
                      WHERE earlier.endpoint_id = $1 AND earlier.status = 'Pending'
                        AND earlier.payment_link_id = event.payment_link_id AND earlier.position < event.position
                  ) AS "is_behind!"
           FROM endpoint
           LEFT JOIN (
               SELECT position, attempts, false AS is_new FROM due UNION ALL SELECT position, attempts, true FROM new
           ) found ON true
           LEFT JOIN feed_events event ON event.position = found.position
           ORDER BY event.position"#,
        claimed.id.uuid(),
        claimed.lease.until,
        from.map(|from| from.generation),
        from.map(|from| from.position),
        busy,
        retries,
        new,
        MOST_PENDING,
        SCAN
    )
    .fetch_all(pool)
    .await?;

    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let stored = StoredTarget {
        url: &first.url,
        header_name: first.header_name.as_deref(),
        header_value: first.header_value.as_deref(),
        secret: &first.secret,
        previous_secrets: &first.previous_secrets,
    };
    let mut work = Work {
        target: stored.read()?,
        is_active: first.is_active,
        place: Place {
            generation: first.generation,
            position: first.scanned_to,
        },
        is_full: first.is_full,
        more: first.scanned_to > first.read_from && first.scanned_to < first.head,
        items: Vec::new(),
    };
    let found_new = first.new;
    let mut last_new = None;
    let mut found_due = 0;
    for row in rows {
        let (Some(position), Some(event_id), Some(kind), Some(link_id), Some(event)) = (
            row.position,
            row.event_id,
            row.r#type,
            row.link_id,
            row.event,
        ) else {
            continue;
        };
        if row.is_new == Some(true) {
            last_new = Some(position);
        } else {
            found_due += 1;
        }
        work.items.push(Item {
            position,
            event_id: EventId::from_uuid(event_id),
            kind,
            link_id: PaymentLinkId::from_uuid(link_id),
            event,
            attempts: to_u16(row.attempts.unwrap_or_default()),
            is_due: row.is_new == Some(false),
            is_behind: row.is_behind,
            generation: work.place.generation,
        });
    }
    // Where the limit ended the selection, what follows hasn't been looked at.
    if let Some(last_new) = last_new.filter(|_| found_new == new) {
        work.more |= last_new < work.place.position;
        work.place.position = last_new;
    }
    work.more |= retries > 0 && found_due == retries;
    Ok(Some(work))
}

/// A [`Target`] as it is stored.
struct StoredTarget<'a> {
    url: &'a str,
    header_name: Option<&'a str>,
    header_value: Option<&'a str>,
    secret: &'a str,
    previous_secrets: &'a [String],
}

impl StoredTarget<'_> {
    fn read(self) -> Result<Target, Error> {
        let secret = |text: &str| {
            SigningSecret::parse(text)
                .ok_or_else(|| Error::Unreadable("a signing secret".to_owned()))
        };
        let header = self.header_name.zip(self.header_value);
        Ok(Target {
            url: parse_stored(self.url)?,
            header: header.map(|(name, value)| (name.to_owned(), SecretString::from(value))),
            secret: secret(self.secret)?,
            previous_secrets: self
                .previous_secrets
                .iter()
                .map(|text| secret(text))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// What becomes of a delivery.
#[derive(Debug, Clone)]
pub struct Record {
    pub position: i64,
    pub event_id: EventId,
    pub kind: String,
    pub link_id: PaymentLinkId,
    pub generation: i32,
    pub status: DeliveryStatus,
    pub attempts: u16,
    /// How long to wait before the next attempt.
    pub wait: Duration,
    /// `None` if none was made, or if it is still going on.
    pub attempt: Option<Attempt>,
}

/// What the recorded attempts say about the endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Health {
    pub succeeded: bool,
    pub failed: bool,
    /// It responded with status 410.
    pub gone: bool,
}

/// What is known about an endpoint after its deliveries were recorded.
#[derive(Debug, Clone, Copy)]
pub struct Recorded {
    pub lease: Lease,
    /// Why the endpoint is paused, if it is.
    pub paused: Option<PauseReason>,
}

/// Stores what became of deliveries, and that every event up to `place` has a row or isn't wanted. Renews the lease. `None`,
/// and nothing is stored, if the lease has ended: the replica that claims the endpoint next sends the events again.
pub async fn record(
    pool: &PgPool,
    claimed: &Claimed,
    place: Place,
    health: Health,
    records: &[Record],
) -> Result<Option<Recorded>, Error> {
    let request = LeaseRequest::new(claimed.lease.length());
    let columns = Columns::of(records);
    let row = sqlx::query!(
        r#"WITH endpoint AS (
               UPDATE callback_endpoints SET
                   leased_until = now() + make_interval(secs => $3),
                   position = CASE WHEN generation = $4 THEN greatest(position, $5) ELSE position END,
                   last_success_at = CASE WHEN $6 THEN now() ELSE last_success_at END,
                   failing_since = CASE WHEN $6 THEN NULL WHEN $7 THEN coalesce(failing_since, now()) ELSE failing_since END,
                   pause_reason = CASE
                       WHEN pause_reason IS NOT NULL THEN pause_reason
                       WHEN $8 THEN 'Gone'
                       WHEN $7 AND NOT $6 AND failing_since < now() - make_interval(secs => $9) THEN 'NoSuccess'
                   END,
                   status = CASE
                       WHEN $8 OR $7 AND NOT $6 AND failing_since < now() - make_interval(secs => $9) THEN 'Paused'
                       ELSE status
                   END
               WHERE id = $1 AND leased_until = $2
               RETURNING leased_until, pause_reason
           ), recorded AS (
               INSERT INTO callback_deliveries AS stored
                   (endpoint_id, position, event_id, type, payment_link_id, generation, status, attempts, due_at,
                    attempted_at, outcome, response_status, response_body, milliseconds)
               SELECT $1, position, event_id, type, link_id, generation, status, attempts, now() + make_interval(secs => wait),
                      CASE WHEN outcome IS NOT NULL THEN now() END, outcome, response_status, response_body, milliseconds
               FROM endpoint, unnest($10::bigint[], $11::uuid[], $12::text[], $13::uuid[], $14::int[], $15::text[],
                                     $16::smallint[], $17::float8[], $18::text[], $19::smallint[], $20::text[], $21::int[])
                   AS record (position, event_id, type, link_id, generation, status, attempts, wait, outcome,
                              response_status, response_body, milliseconds)
               ON CONFLICT (endpoint_id, position) DO UPDATE SET
                   generation = EXCLUDED.generation,
                   -- If the delivery got all its attempts back while this one was under way, this is the first of them.
                   (status, attempts, due_at) = (
                       SELECT CASE WHEN is_reset THEN 'Pending' ELSE EXCLUDED.status END,
                              CASE WHEN is_reset THEN 1 ELSE EXCLUDED.attempts END,
                              CASE WHEN is_reset THEN now() + make_interval(secs => $22) ELSE EXCLUDED.due_at END
                       FROM (SELECT stored.status = 'Pending' AND stored.attempts < EXCLUDED.attempts - 1
                                    AND EXCLUDED.outcome IS NOT NULL AND EXCLUDED.status <> 'Delivered' AS is_reset) reset
                   ),
                   -- A row without an outcome says only that the delivery waits, or is under way.
                   attempted_at = coalesce(EXCLUDED.attempted_at, stored.attempted_at),
                   outcome = coalesce(EXCLUDED.outcome, stored.outcome),
                   response_status = CASE WHEN EXCLUDED.outcome IS NULL THEN stored.response_status
                                          ELSE EXCLUDED.response_status END,
                   response_body = CASE WHEN EXCLUDED.outcome IS NULL THEN stored.response_body
                                        ELSE EXCLUDED.response_body END,
                   milliseconds = coalesce(EXCLUDED.milliseconds, stored.milliseconds)
               WHERE stored.generation <= EXCLUDED.generation
           )
           SELECT leased_until AS "until!", pause_reason FROM endpoint"#,
        claimed.id.uuid(),
        claimed.lease.until,
        request.seconds(),
        place.generation,
        place.position,
        health.succeeded,
        health.failed,
        health.gone,
        LONGEST_FAILURE.as_secs_f64(),
        &columns.position,
        &columns.event_id,
        &columns.kind as &[&str],
        &columns.link_id,
        &columns.generation,
        &columns.status as &[&str],
        &columns.attempts,
        &columns.wait,
        &columns.outcome as &[Option<&str>],
        &columns.response_status as &[Option<i16>],
        &columns.response_body as &[Option<&str>],
        &columns.milliseconds as &[Option<i32>],
        FIRST_WAIT.as_secs_f64(),
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    Ok(Some(Recorded {
        lease: request.granted(row.until),
        paused: row.pause_reason.as_deref().map(parse_stored).transpose()?,
    }))
}

/// Records as columns: one element of each vector per record.
#[derive(Default)]
struct Columns<'a> {
    position: Vec<i64>,
    event_id: Vec<Uuid>,
    kind: Vec<&'a str>,
    link_id: Vec<Uuid>,
    generation: Vec<i32>,
    status: Vec<&'static str>,
    attempts: Vec<i16>,
    wait: Vec<f64>,
    outcome: Vec<Option<&'static str>>,
    response_status: Vec<Option<i16>>,
    response_body: Vec<Option<&'a str>>,
    milliseconds: Vec<Option<i32>>,
}

impl<'a> Columns<'a> {
    fn of(records: &'a [Record]) -> Self {
        let mut columns = Self::default();
        for record in records {
            let attempt = record.attempt.as_ref();
            columns.position.push(record.position);
            columns.event_id.push(record.event_id.uuid());
            columns.kind.push(&record.kind);
            columns.link_id.push(record.link_id.uuid());
            columns.generation.push(record.generation);
            columns.status.push(record.status.as_str());
            columns.attempts.push(to_i16(record.attempts));
            columns.wait.push(record.wait.as_secs_f64());
            columns
                .outcome
                .push(attempt.map(|attempt| attempt.outcome.name()));
            let status = attempt.and_then(|attempt| attempt.status);
            columns.response_status.push(status.map(to_i16));
            let body = attempt.and_then(|attempt| attempt.body.as_deref());
            columns.response_body.push(body);
            let took = attempt.map(|attempt| i32::try_from(attempt.duration.as_millis()));
            columns
                .milliseconds
                .push(took.map(|took| took.unwrap_or(i32::MAX)));
        }
        columns
    }
}

fn to_i16(number: u16) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

fn to_u16(number: i16) -> u16 {
    u16::try_from(number).unwrap_or_default()
}

/// A row of `callback_deliveries`, as it is listed.
struct Row {
    position: i64,
    event_id: Uuid,
    kind: String,
    payment_link_id: Uuid,
    status: String,
    attempts: i16,
    due_at: OffsetDateTime,
    attempted_at: Option<OffsetDateTime>,
    outcome: Option<String>,
    response_status: Option<i16>,
    response_body: Option<String>,
    milliseconds: Option<i32>,
}

/// A query for the rows of the endpoint `$id` before a position, newest first, that also meet `$condition`.
macro_rules! deliveries {
    ($condition:tt, $id:expr, $statuses:expr, $before:expr, $limit:expr $(, $more:expr)?) => {
        sqlx::query_as!(
            Row,
            "SELECT position, event_id, type AS kind, payment_link_id, status, attempts, due_at, attempted_at, outcome,
                    response_status, response_body, milliseconds
             FROM callback_deliveries
             WHERE endpoint_id = $1 AND ($2::text[] IS NULL OR status = ANY($2)) AND ($3::bigint IS NULL OR position < $3)
               AND " + $condition + "
             ORDER BY position DESC
             LIMIT $4",
            $id.uuid(),
            $statuses,
            $before,
            $limit
            $(, $more)?
        )
    };
}

/// The endpoint's deliveries with one of these statuses before a position, newest first. If a link is given, only those of
/// events about it.
pub async fn list(
    pool: &PgPool,
    id: EndpointId,
    statuses: Option<&[String]>,
    link_id: Option<PaymentLinkId>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Delivery>, Error> {
    let delivered = DeliveryStatus::Delivered.as_str();
    let without_delivered =
        statuses.is_some_and(|statuses| statuses.iter().all(|status| status != delivered));
    // Postgres uses the index of a link, and the one of what was not delivered, only if the condition is literal.
    let rows = if let Some(link_id) = link_id {
        let link_id = link_id.uuid();
        deliveries!("payment_link_id = $5", id, statuses, before, limit, link_id)
            .fetch_all(pool)
            .await?
    } else if without_delivered {
        deliveries!("status <> 'Delivered'", id, statuses, before, limit)
            .fetch_all(pool)
            .await?
    } else {
        deliveries!("true", id, statuses, before, limit)
            .fetch_all(pool)
            .await?
    };
    let deliveries = rows.into_iter().map(|row| {
        let status = parse_stored(&row.status)?;
        let last_attempt = row.attempted_at.map(|at| LastAttempt {
            at,
            outcome: row.outcome.unwrap_or_default(),
            response_status: row.response_status.map(to_u16),
            response_body: row.response_body,
            milliseconds: row
                .milliseconds
                .and_then(|took| u32::try_from(took).ok())
                .unwrap_or_default(),
        });
        Ok(Delivery {
            event_id: EventId::from_uuid(row.event_id),
            kind: row.kind,
            payment_link_id: PaymentLinkId::from_uuid(row.payment_link_id),
            status,
            attempts: to_u16(row.attempts),
            next_attempt_at: (status == DeliveryStatus::Pending).then_some(row.due_at),
            last_attempt,
            position: row.position,
        })
    });
    deliveries.collect()
}

/// How far behind an endpoint is.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    pub id: EndpointId,
    pub status: EndpointStatus,
    /// How many deliveries wait for another attempt.
    pub pending: i64,
    /// How many deliveries failed and were not replayed.
    pub failed: i64,
    /// The age of the oldest event that the endpoint hasn't got, in seconds. 0 if there is none.
    pub lag: f64,
}

/// How far behind every endpoint is.
pub async fn backlog(pool: &PgPool) -> Result<Vec<Backlog>, Error> {
    let rows = sqlx::query!(
        r#"SELECT endpoint.id, status,
                  (SELECT count(*) FROM callback_deliveries
                   WHERE endpoint_id = endpoint.id AND status = 'Pending') AS "pending!",
                  (SELECT count(*) FROM callback_deliveries
                   WHERE endpoint_id = endpoint.id AND status = 'Failed') AS "failed!",
                  greatest(0, extract(epoch FROM now() - (
                      SELECT occurred_at FROM feed_events WHERE position = least(
                          (SELECT min(position) FROM callback_deliveries
                           WHERE endpoint_id = endpoint.id AND status = 'Pending'),
                          CASE WHEN endpoint.position < head THEN endpoint.position + 1 END)
                  )))::float8 AS "lag!"
           FROM callback_endpoints endpoint, feed
           WHERE deleted_at IS NULL"#
    )
    .fetch_all(pool)
    .await?;
    let backlogs = rows.into_iter().map(|row| {
        Ok(Backlog {
            id: EndpointId::from_uuid(row.id),
            status: parse_stored(&row.status)?,
            pending: row.pending,
            failed: row.failed,
            lag: row.lag,
        })
    });
    backlogs.collect()
}

/// Where to send a test. The endpoint may be paused. `None` if there is none with this id, or if it gets events of other accounts
/// than `open`.
pub async fn target(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
) -> Result<Option<Target>, Error> {
    let row = sqlx::query!(
        r#"SELECT url, header_name, header_value, secret,
                  CASE WHEN previous_secrets_end_at > now() THEN previous_secrets ELSE '{}' END AS "previous_secrets!"
           FROM callback_endpoints
           WHERE id = $1 AND deleted_at IS NULL AND ($2::text[] IS NULL OR accounts <@ $2)"#,
        id.uuid(),
        open
    )
    .fetch_optional(pool)
    .await?;
    let target = row.map(|row| {
        StoredTarget {
            url: &row.url,
            header_name: row.header_name.as_deref(),
            header_value: row.header_value.as_deref(),
            secret: &row.secret,
            previous_secrets: &row.previous_secrets,
        }
        .read()
    });
    target.transpose()
}

/// How many rows are removed in one transaction.
const PRUNE: i64 = 1000;

/// Removes deliveries that ended, as far as they are older than `older_than`. Returns how many, and whether there may be
/// more.
pub async fn prune(pool: &PgPool, older_than: Duration) -> Result<(u64, bool), Error> {
    let removed = sqlx::query!(
        "DELETE FROM callback_deliveries WHERE (endpoint_id, position) IN (
             SELECT delivery.endpoint_id, delivery.position
             FROM callback_endpoints endpoint CROSS JOIN LATERAL (
                 SELECT * FROM callback_deliveries
                 WHERE endpoint_id = endpoint.id AND position <= endpoint.position
                 ORDER BY position LIMIT $2
             ) delivery
             WHERE delivery.status <> 'Pending' AND attempted_at < now() - make_interval(secs => $1)
             LIMIT $2
         )
         -- Again, because a replay may have committed since the selection.
         AND status <> 'Pending'",
        older_than.as_secs_f64(),
        PRUNE
    )
    .execute(pool)
    .await?
    .rows_affected();
    Ok((removed, i64::try_from(removed) == Ok(PRUNE)))
}

/// How many deliveries [`prune`] would remove, in all.
pub async fn prunable(pool: &PgPool, older_than: Duration) -> Result<u64, Error> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM callback_endpoints endpoint JOIN callback_deliveries delivery ON delivery.endpoint_id = endpoint.id
           WHERE delivery.position <= endpoint.position AND delivery.status <> 'Pending'
             AND attempted_at < now() - make_interval(secs => $1)"#,
        older_than.as_secs_f64()
    )
    .fetch_one(pool)
    .await?;
    Ok(count.unsigned_abs())
}

impl Health {
    /// Adds what an attempt says about its endpoint.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => self.succeeded = true,
            Outcome::Gone => (self.failed, self.gone) = (true, true),
            _ => self.failed = true,
        }
    }
}
