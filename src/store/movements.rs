//! The books: booking what the feed reports, and reading it.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{Error, PgPool, PgTransaction, from_json, parse_stored};
use crate::payment_link::{
    Currency, Money, MovementId, OperationId, Payment, PaymentLinkId,
    movement::{
        Booked, BusinessDays, DailyTotal, Evidence, MetadataKeys, MoneyOperation,
        MoneyOperationKind, Movement, NewMovement, Report, Reported, book,
    },
};

/// How many events are examined in one transaction.
const BATCH: i64 = 1000;

/// What a call of [`book_events`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BookedEvents {
    /// How many events were examined.
    pub examined: i64,
    /// How many events are not booked yet, as far as is known.
    pub behind: i64,
}

/// Books what the next events of the feed report. Does nothing if another replica is doing so.
///
/// Events and the books change in different transactions, but the place up to which the feed is booked moves with the
/// movements. So each event is booked once. What can't be read stops the books rather than being left out.
pub async fn book_events(pool: &PgPool, days: &BusinessDays) -> Result<BookedEvents, Error> {
    let behind = sqlx::query_scalar!(
        r#"SELECT feed.head - books.feed_position AS "behind!" FROM feed, books"#
    )
    .fetch_one(pool)
    .await?;
    let nothing = BookedEvents {
        examined: 0,
        behind,
    };
    if behind <= 0 {
        return Ok(nothing);
    }
    let mut transaction = pool.begin().await?;
    // In a statement of its own, so that the next one sees what the last one to hold the lock has booked.
    let books = sqlx::query!("SELECT feed_position, head FROM books FOR UPDATE SKIP LOCKED")
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(books) = books else {
        return Ok(nothing);
    };
    let events = sqlx::query!(
        "SELECT position, id, type, account, payment_link_id, occurred_at, event FROM feed_events
         WHERE position > $1 ORDER BY position LIMIT $2",
        books.feed_position,
        BATCH
    )
    .fetch_all(&mut *transaction)
    .await?;
    let Some(last) = events.last().map(|event| event.position) else {
        return Ok(nothing);
    };
    let examined = i64::try_from(events.len()).unwrap_or(BATCH);

    let (mut reports, mut operations) = (Vec::new(), Vec::new());
    for event in events {
        if event.r#type == "operation.succeeded" {
            operations.extend(operation_of(&event.event));
        } else if let Some(what) = reported(&event.r#type, event.event["reason"].as_str()) {
            let stored: StoredEvent = from_json(event.event)?;
            let currency = stored.amount.currency_code;
            let value = |money: Money| money.value.clamp(-Money::MAX, Money::MAX);
            reports.push(EventReport {
                event_id: event.id,
                account: event.account,
                link_id: event.payment_link_id,
                currency,
                report: Report {
                    what,
                    at: event.occurred_at,
                    captured: value(stored.captured_amount),
                    refunded: value(stored.refunded_amount),
                    total: value(stored.total_amount.unwrap_or(stored.amount)),
                },
            });
        }
    }
    let mut links = known_of(&mut transaction, &reports).await?;
    let mut rows = Rows::default();
    let mut head = books.head;
    for report in &reports {
        let known = links.entry(report.link_id).or_default();
        for movement in book(&report.report, &known.booked, &known.evidence) {
            head += 1;
            known.booked.push(movement.booked.clone());
            rows.push(head, report, movement);
        }
    }
    rows.insert(&mut transaction, days).await?;
    attribute(&mut transaction, &operations).await?;
    // What is booked now needs no filling in.
    sqlx::query!(
        "UPDATE books SET feed_position = $1, head = $2, filled_in = CASE WHEN filled_in = head THEN $2 ELSE filled_in END",
        last,
        head
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(BookedEvents {
        examined,
        behind: behind - examined,
    })
}

/// How many movements are looked at in one call of [`fill_in`].
const FILL_IN_BATCH: i64 = 500;

/// Stores what older movements say about their link and the card, a few at a time. An earlier version booked them without it.
/// Returns whether there may be more. Does nothing if another replica is doing so.
pub async fn fill_in(pool: &PgPool) -> Result<bool, Error> {
    let is_filled_in =
        sqlx::query_scalar!(r#"SELECT filled_in >= head AS "is_filled_in!" FROM books"#)
            .fetch_one(pool)
            .await?;
    if is_filled_in {
        return Ok(false);
    }
    let mut transaction = pool.begin().await?;
    let books = sqlx::query!(
        "SELECT head, filled_in FROM books WHERE filled_in < head FOR UPDATE SKIP LOCKED"
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(books) = books else {
        return Ok(false);
    };
    let until = books.head.min(books.filled_in + FILL_IN_BATCH);
    // The lock makes an erasure either wait and see what is filled in, or be seen.
    sqlx::query!(
        "WITH link AS (
             SELECT id, reference, request -> 'metadata' AS metadata, payment FROM payment_links
             WHERE id = ANY(ARRAY(
                 SELECT payment_link_id FROM movements
                 WHERE position > $1 AND position <= $2 AND reference IS NULL
             ))
             ORDER BY id FOR KEY SHARE
         )
         UPDATE movements
         SET reference = link.reference,
             metadata = CASE jsonb_typeof(link.metadata) WHEN 'object' THEN link.metadata ELSE '{}' END,
             auth_code = link.payment ->> 'authCode', last4 = link.payment ->> 'last4'
         FROM link
         WHERE link.id = movements.payment_link_id AND position > $1 AND position <= $2
           AND movements.reference IS NULL",
        books.filled_in,
        until
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("UPDATE books SET filled_in = $1", until)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(until < books.head)
}

/// Events of the feed that are not booked yet.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    pub events: i64,
    /// For how long the oldest has waited, in seconds.
    pub lag: f64,
}

/// The events of the feed that are not booked yet.
pub async fn backlog(pool: &PgPool) -> Result<Backlog, Error> {
    let row = sqlx::query!(
        r#"SELECT feed.head - books.feed_position AS "events!",
                  coalesce((SELECT extract(epoch FROM now() - occurred_at) FROM feed_events
                            WHERE position > books.feed_position ORDER BY position LIMIT 1), 0)::float8 AS "lag!"
           FROM feed, books"#
    )
    .fetch_one(pool)
    .await?;
    Ok(Backlog {
        events: row.events,
        lag: row.lag.max(0.0),
    })
}

/// The operation that an event is about.
fn operation_of(event: &Value) -> Option<Uuid> {
    let id: OperationId = event["operation"]["operationId"].as_str()?.parse().ok()?;
    Some(id.uuid())
}

/// Names the operation of movements that were booked before it was known to have succeeded.
async fn attribute(transaction: &mut PgTransaction, operations: &[Uuid]) -> Result<(), Error> {
    if operations.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "UPDATE movements SET operation_id = found.id, actor = found.created_by
         FROM (
             SELECT DISTINCT ON (movement.position) movement.position, operation.id, operation.created_by
             FROM operations operation
             JOIN LATERAL (
                 SELECT position FROM movements
                 WHERE payment_link_id = operation.payment_link_id AND type = operation.kind
                   AND (type = 'reversal' OR amount = operation.amount
                            + coalesce((operation.action #>> '{request,tipsAmount,value}')::bigint, 0))
                   AND operation_id IS NULL
                   AND occurred_at >= operation.created_at - interval '1 minute'
                 ORDER BY position LIMIT 1
             ) movement ON true
             WHERE operation.id = ANY($1) AND operation.status = 'Succeeded'
               AND operation.kind IN ('refund', 'capture', 'reversal')
               AND NOT EXISTS (SELECT FROM movements WHERE operation_id = operation.id)
             ORDER BY movement.position, operation.id
         ) found
         WHERE movements.position = found.position",
        operations
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// What an event of this type reports to the books, if anything.
fn reported(kind: &str, reason: Option<&str>) -> Option<Reported> {
    match (kind, reason) {
        ("payment_link.captured", _) => Some(Reported::Captured),
        ("payment_link.refunded", _) => Some(Reported::Refunded),
        ("payment_link.reversed", _) => Some(Reported::Reversed),
        // An intent may have been paid before it was found.
        ("payment_link.created", _)
        | ("payment_link.attention_required", Some("amountDecreased")) => Some(Reported::Totals),
        _ => None,
    }
}

/// What the books need of an event.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredEvent {
    amount: Money,
    total_amount: Option<Money>,
    captured_amount: Money,
    refunded_amount: Money,
}

struct EventReport {
    event_id: Uuid,
    account: String,
    link_id: Uuid,
    currency: Currency,
    report: Report,
}

/// What is known about a link.
#[derive(Default)]
struct Known {
    booked: Vec<Booked>,
    evidence: Evidence,
}

async fn known_of(
    transaction: &mut PgTransaction,
    reports: &[EventReport],
) -> Result<HashMap<Uuid, Known>, Error> {
    let mut links: HashMap<_, Known> = HashMap::new();
    let ids: Vec<_> = reports.iter().map(|report| report.link_id).collect();
    if ids.is_empty() {
        return Ok(links);
    }
    // Locked, so that no link is erased before its movements are inserted: they contain its metadata. Webhooks lock links in this
    // order, too.
    let rows = sqlx::query!(
        "SELECT id, created_at, payment, captures FROM payment_links WHERE id = ANY($1) ORDER BY id FOR KEY SHARE",
        &ids
    )
    .fetch_all(&mut **transaction)
    .await?;
    for row in rows {
        let payment: Option<Payment> = row.payment.map(from_json).transpose()?;
        let evidence = &mut links.entry(row.id).or_default().evidence;
        evidence.created_at = Some(row.created_at);
        evidence.paid_at = payment.and_then(|payment| payment.transaction_date_time);
        evidence.captures = from_json(row.captures)?;
    }
    let rows = sqlx::query!(
        r#"SELECT id, payment_link_id, kind, amount, dojo_id, created_by, created_at,
                  coalesce(completed_at, created_at) AS "succeeded_at!"
           FROM operations
           WHERE payment_link_id = ANY($1) AND kind IN ('capture', 'refund', 'reversal') AND status = 'Succeeded'
           ORDER BY id"#,
        &ids
    )
    .fetch_all(&mut **transaction)
    .await?;
    for row in rows {
        let kind = match row.kind.as_str() {
            "capture" => MoneyOperationKind::Capture,
            "refund" => MoneyOperationKind::Refund,
            _ => MoneyOperationKind::Reversal,
        };
        let operations = &mut links
            .entry(row.payment_link_id)
            .or_default()
            .evidence
            .operations;
        operations.push(MoneyOperation {
            id: OperationId::from_uuid(row.id),
            kind,
            amount: row.amount.unwrap_or(0),
            created_at: row.created_at,
            succeeded_at: row.succeeded_at,
            dojo_id: row.dojo_id,
            client: row.created_by,
        });
    }
    let rows = sqlx::query!(
        "SELECT payment_link_id, type, net, capture_id, operation_id FROM movements
         WHERE payment_link_id = ANY($1) ORDER BY position",
        &ids
    )
    .fetch_all(&mut **transaction)
    .await?;
    for row in rows {
        links
            .entry(row.payment_link_id)
            .or_default()
            .booked
            .push(Booked {
                kind: parse_stored(&row.r#type)?,
                net: row.net,
                capture_id: row.capture_id,
                operation_id: row.operation_id.map(OperationId::from_uuid),
            });
    }
    Ok(links)
}

/// Movements as columns: one element of each vector per movement.
#[derive(Default)]
struct Rows {
    position: Vec<i64>,
    id: Vec<Uuid>,
    kind: Vec<&'static str>,
    account: Vec<String>,
    link_id: Vec<Uuid>,
    event_id: Vec<Uuid>,
    currency: Vec<&'static str>,
    amount: Vec<i64>,
    net: Vec<i64>,
    occurred_at: Vec<OffsetDateTime>,
    dated_by: Vec<&'static str>,
    capture_id: Vec<Option<String>>,
    operation_id: Vec<Option<Uuid>>,
    actor: Vec<Option<String>>,
}

impl Rows {
    fn push(&mut self, position: i64, report: &EventReport, movement: NewMovement) {
        self.position.push(position);
        self.id.push(MovementId::new().uuid());
        self.kind.push(movement.booked.kind.as_str());
        self.account.push(report.account.clone());
        self.link_id.push(report.link_id);
        self.event_id.push(report.event_id);
        self.currency.push(report.currency.code());
        self.amount.push(movement.amount);
        self.net.push(movement.booked.net);
        self.occurred_at.push(movement.occurred_at);
        self.dated_by.push(movement.dated_by.as_str());
        self.capture_id.push(movement.booked.capture_id);
        self.operation_id
            .push(movement.booked.operation_id.map(|id| id.uuid()));
        self.actor.push(movement.actor);
    }

    async fn insert(
        &self,
        transaction: &mut PgTransaction,
        days: &BusinessDays,
    ) -> Result<(), Error> {
        if self.position.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "INSERT INTO movements (
                 position, id, type, account, payment_link_id, event_id, currency, amount, net, occurred_at, dated_by,
                 business_day, capture_id, operation_id, actor, reference, metadata, auth_code, last4)
             SELECT position, new.id, type, new.account, link_id, event_id, new.currency, new.amount, net, occurred_at, dated_by,
                    business_day(occurred_at, $15, $16), capture_id, operation_id, actor, link.reference,
                    CASE jsonb_typeof(link.request -> 'metadata') WHEN 'object' THEN link.request -> 'metadata'
                         ELSE '{}' END,
                    link.payment ->> 'authCode', link.payment ->> 'last4'
             FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::uuid[], $7::text[],
                         $8::bigint[], $9::bigint[], $10::timestamptz[], $11::text[], $12::text[], $13::uuid[],
                         $14::text[])
                 AS new (position, id, type, account, link_id, event_id, currency, amount, net, occurred_at, dated_by,
                         capture_id, operation_id, actor)
             -- If the link were missing, the foreign key would reject the movement.
             LEFT JOIN payment_links link ON link.id = link_id",
            &self.position,
            &self.id,
            &self.kind as &[&str],
            &self.account,
            &self.link_id,
            &self.event_id,
            &self.currency as &[&str],
            &self.amount,
            &self.net,
            &self.occurred_at,
            &self.dated_by as &[&str],
            &self.capture_id as &[Option<String>],
            &self.operation_id as &[Option<Uuid>],
            &self.actor as &[Option<String>],
            days.time_zone,
            days.cutoff
        )
        .execute(&mut **transaction)
        .await?;
        Ok(())
    }
}

/// Whether Postgres knows a time zone of this name.
pub async fn knows_time_zone(pool: &PgPool, name: &str) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = $1) AS "known!""#,
        name
    )
    .fetch_one(pool)
    .await?)
}

/// The business day that has begun and hasn't ended.
pub async fn current_day(pool: &PgPool, days: &BusinessDays) -> Result<Date, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT business_day(now(), $1, $2) AS "day!""#,
        days.time_zone,
        days.cutoff
    )
    .fetch_one(pool)
    .await?)
}

/// Which movements to read. A filter that is `None` matches every movement.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Movements of any of these accounts: those that the caller may see.
    pub open: Option<Vec<String>>,
    pub account: Option<String>,
    pub types: Option<Vec<String>>,
    pub link: Option<PaymentLinkId>,
    /// On this business day or later.
    pub from: Option<Date>,
    /// On this business day or earlier.
    pub to: Option<Date>,
    /// The links' metadata entries to return.
    pub metadata: MetadataKeys,
}

/// A place in a list of movements: just behind the one with this business day and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub business_day: Date,
    pub position: i64,
}

impl Place {
    /// The place behind a movement.
    #[must_use]
    pub fn behind(movement: &Movement) -> Self {
        Self {
            business_day: movement.business_day,
            position: movement.position,
        }
    }
}

/// Up to `limit` movements behind `after`, in the order of their business days.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<Movement>, Error> {
    let rows = sqlx::query!(
        r#"SELECT movement.position, movement.id, movement.type, movement.currency, movement.amount, movement.net,
                  movement.occurred_at, movement.dated_by, movement.business_day, movement.recorded_at, movement.account,
                  movement.payment_link_id, link.payment_intent_id, movement.capture_id, movement.operation_id,
                  movement.actor,
                  -- What is not stored with the movement is as the link has it now.
                  coalesce(movement.reference, link.reference) AS "reference!",
                  coalesce(movement.auth_code, link.payment ->> 'authCode') AS auth_code,
                  coalesce(movement.last4, link.payment ->> 'last4') AS last4,
                  (SELECT coalesce(jsonb_object_agg(key, value), '{}')
                   FROM jsonb_each(coalesce(movement.metadata, CASE jsonb_typeof(link.request -> 'metadata')
                                                               WHEN 'object' THEN link.request -> 'metadata' END))
                   WHERE key = ANY($8)) AS "metadata!"
           FROM movements movement JOIN payment_links link ON link.id = movement.payment_link_id
           WHERE ($1::date IS NULL OR (movement.business_day, movement.position) > ($1, $2))
             AND ($3::date IS NULL OR movement.business_day >= $3)
             AND ($4::date IS NULL OR movement.business_day <= $4)
             AND ($5::text IS NULL OR movement.account = $5)
             AND ($6::text[] IS NULL OR movement.account = ANY($6))
             AND ($7::text[] IS NULL OR movement.type = ANY($7))
             AND ($9::uuid IS NULL OR movement.payment_link_id = $9)
           ORDER BY movement.business_day, movement.position
           LIMIT $10"#,
        after.map(|place| place.business_day),
        after.map(|place| place.position),
        filter.from,
        filter.to,
        filter.account.as_deref(),
        filter.open.as_deref(),
        filter.types.as_deref(),
        filter.metadata.keys(),
        filter.link.map(|link| link.uuid()),
        limit
    )
    .fetch_all(pool)
    .await?;
    let movements = rows.into_iter().map(|row| {
        let currency_code = parse_stored(&row.currency)?;
        let money = |value| Money {
            value,
            currency_code,
        };
        Ok(Movement {
            position: row.position,
            id: MovementId::from_uuid(row.id),
            kind: parse_stored(&row.r#type)?,
            amount: money(row.amount),
            net: money(row.net),
            occurred_at: row.occurred_at,
            dated_by: parse_stored(&row.dated_by)?,
            business_day: row.business_day,
            recorded_at: row.recorded_at,
            account: row.account,
            payment_link_id: PaymentLinkId::from_uuid(row.payment_link_id),
            payment_intent_id: row.payment_intent_id,
            reference: row.reference,
            metadata: from_json(row.metadata)?,
            auth_code: row.auth_code,
            last4: row.last4,
            capture_id: row.capture_id,
            operation_id: row.operation_id.map(OperationId::from_uuid),
            actor: row.actor,
        })
    });
    movements.collect()
}

/// A place in a list of totals: just behind those of this day, account and currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TotalsPlace {
    pub business_day: Date,
    pub account: String,
    pub currency: Currency,
}

/// Up to `limit` totals behind `after`: of each business day, account and currency, in this order.
pub async fn daily_totals(
    pool: &PgPool,
    filter: &Filter,
    after: Option<&TotalsPlace>,
    limit: i64,
) -> Result<Vec<DailyTotal>, Error> {
    let rows = sqlx::query!(
        r#"SELECT business_day, account, currency,
                  coalesce(sum(net) FILTER (WHERE type = 'capture'), 0)::bigint AS "captured!",
                  coalesce(-sum(net) FILTER (WHERE type = 'refund'), 0)::bigint AS "refunded!",
                  coalesce(-sum(net) FILTER (WHERE type = 'reversal'), 0)::bigint AS "reversed!",
                  coalesce(sum(net) FILTER (WHERE type LIKE '%Correction'), 0)::bigint AS "corrected!",
                  sum(net)::bigint AS "net!", count(*) AS "movements!"
           FROM movements
           WHERE ($1::date IS NULL OR business_day >= $1)
             AND ($2::date IS NULL OR business_day <= $2)
             AND ($3::text IS NULL OR account = $3)
             AND ($4::text[] IS NULL OR account = ANY($4))
             AND ($5::date IS NULL OR business_day >= $5 AND (business_day, account, currency) > ($5, $6, $7))
           GROUP BY business_day, account, currency
           ORDER BY business_day, account, currency
           LIMIT $8"#,
        filter.from,
        filter.to,
        filter.account.as_deref(),
        filter.open.as_deref(),
        after.map(|place| place.business_day),
        after.map(|place| place.account.as_str()),
        after.map(|place| place.currency.code()),
        limit
    )
    .fetch_all(pool)
    .await?;
    let totals = rows.into_iter().map(|row| {
        let currency_code = parse_stored(&row.currency)?;
        let money = |value| Money {
            value,
            currency_code,
        };
        Ok(DailyTotal {
            business_day: row.business_day,
            account: row.account,
            captured: money(row.captured),
            refunded: money(row.refunded),
            reversed: money(row.reversed),
            corrected: money(row.corrected),
            net: money(row.net),
            movements: row.movements,
        })
    });
    totals.collect()
}
