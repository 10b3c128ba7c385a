//! The daily reconciliation of the books with Dojo's list of transactions: which day is due, what to compare, and the result.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{
    Error, PgPool, from_json,
    leases::{Lease, LeaseRequest},
    parse_stored, to_json,
};
use crate::{
    dojo::Window,
    payment_link::{
        Money, MovementId, OperationId, PaymentLinkId,
        daily_reconciliation::{
            ComparedDay, ComparedMovement, Comparison, DailyReconciliation, DayState,
            DifferenceCounts, DifferenceKind,
        },
        movement::BusinessDays,
    },
};

/// How many differences of a day are stored whole. All are counted.
const STORED: usize = 1000;

/// A business day of an account that is to be compared.
#[derive(Debug, Clone)]
pub struct DueDay {
    pub day: Date,
    pub lease: Lease,
}

/// Claims the oldest business day of an account that is due.
///
/// A day is due two hours after its end, and again for some days: Dojo may list a transaction late, and differences may be
/// resolved. The first day is that of the account's first link, but at most a month ago. No day is due while the books are
/// behind the feed.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    days: &BusinessDays,
    lease: Duration,
) -> Result<Option<DueDay>, Error> {
    sqlx::query!(
        "WITH closed AS (
             SELECT business_day(now() - interval '2 hours', $2, $3) AS until,
                    (SELECT business_day(min(created_at), $2, $3) FROM payment_links WHERE account = $1) AS since
         )
         INSERT INTO daily_reconciliations (account, business_day, due_at)
         SELECT $1, day::date, now()
         FROM closed, generate_series(greatest(since, until - 31), until - 1, interval '1 day') day
         WHERE since IS NOT NULL
           AND NOT EXISTS (SELECT FROM daily_reconciliations WHERE account = $1 AND business_day = day::date)
         ON CONFLICT DO NOTHING",
        account,
        days.time_zone,
        days.cutoff
    )
    .execute(pool)
    .await?;
    let request = LeaseRequest::new(lease);
    let claimed = sqlx::query!(
        r#"UPDATE daily_reconciliations SET leased_until = now() + make_interval(secs => $2)
           WHERE account = $1 AND business_day = (
               SELECT business_day FROM daily_reconciliations
               WHERE account = $1 AND due_at <= now() AND (leased_until IS NULL OR leased_until <= now())
                 AND NOT EXISTS (
                     SELECT FROM feed_events
                     WHERE position > (SELECT feed_position FROM books) AND occurred_at < now() - interval '1 minute'
                 )
               ORDER BY business_day LIMIT 1
               FOR UPDATE SKIP LOCKED
           )
           RETURNING business_day, leased_until AS "until!""#,
        account,
        request.seconds()
    )
    .fetch_optional(pool)
    .await?;
    Ok(claimed.map(|row| DueDay {
        day: row.business_day,
        lease: request.granted(row.until),
    }))
}

/// Releases a claimed day, to be compared after `wait`. It stays due, so that how long it has been due is known.
pub async fn release(
    pool: &PgPool,
    account: &str,
    due: &DueDay,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE daily_reconciliations SET leased_until = now() + make_interval(secs => $4)
         WHERE account = $1 AND business_day = $2 AND leased_until = $3",
        account,
        due.day,
        due.lease.until,
        wait.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// When a business day begins and ends.
pub async fn span(pool: &PgPool, days: &BusinessDays, day: Date) -> Result<Window, Error> {
    let row = sqlx::query!(
        r#"SELECT business_day_start($1, $2, $3) AS "start!", business_day_start($1 + 1, $2, $3) AS "end!""#,
        day,
        days.time_zone,
        days.cutoff
    )
    .fetch_one(pool)
    .await?;
    Ok(Window {
        start: row.start,
        end: row.end,
    })
}

/// Which of these intents belong to a link of the account.
pub async fn of_our_links(
    pool: &PgPool,
    account: &str,
    intents: &[String],
) -> Result<HashSet<String>, Error> {
    let ids = sqlx::query_scalar!(
        r#"SELECT payment_intent_id AS "id!" FROM payment_links WHERE account = $1 AND payment_intent_id = ANY($2)
           UNION
           SELECT id FROM payment_intents
           WHERE account = $1 AND id = ANY($2) AND (payment_link_id IS NOT NULL OR surplus_of IS NOT NULL)"#,
        account,
        intents
    )
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().collect())
}

/// The movements of a business day, and all others of these intents. `listed` is the time whose transactions are compared.
pub async fn movements(
    pool: &PgPool,
    account: &str,
    day: Date,
    listed: Window,
    intents: &[String],
) -> Result<Vec<ComparedMovement>, Error> {
    let rows = sqlx::query!(
        r#"SELECT movement.id, movement.type, movement.currency, movement.amount, movement.occurred_at,
                  movement.dated_by, movement.payment_link_id, link.payment_intent_id AS "payment_intent_id!",
                  coalesce(movement.reference, link.reference) AS "reference!", movement.net,
                  movement.operation_id, movement.business_day = $2 AS "is_of_day!",
                  (SELECT coalesce(jsonb_agg(jsonb_build_object(
                              'transactionId', pair.transaction_id, 'amount', pair.amount,
                              'isInWindow', pair.transaction_at >= $4 AND pair.transaction_at < $5)), '[]')
                   FROM matched_transactions pair WHERE pair.movement_id = movement.id) AS "pairs!"
           FROM payment_links link JOIN movements movement ON movement.payment_link_id = link.id
           WHERE link.id IN (
                     SELECT payment_link_id FROM movements WHERE account = $1 AND business_day = $2
                     UNION
                     SELECT id FROM payment_links WHERE account = $1 AND payment_intent_id = ANY($3)
                 )
             AND link.payment_intent_id IS NOT NULL
           ORDER BY movement.position"#,
        account,
        day,
        intents,
        listed.start,
        listed.end
    )
    .fetch_all(pool)
    .await?;
    let movements = rows.into_iter().map(|row| {
        Ok(ComparedMovement {
            id: MovementId::from_uuid(row.id),
            kind: parse_stored(&row.r#type)?,
            amount: Money {
                value: row.amount,
                currency_code: parse_stored(&row.currency)?,
            },
            occurred_at: row.occurred_at,
            dated_by: parse_stored(&row.dated_by)?,
            payment_link_id: PaymentLinkId::from_uuid(row.payment_link_id),
            payment_intent_id: row.payment_intent_id,
            reference: row.reference,
            net: row.net,
            is_requested: row.operation_id.is_some(),
            pairs: from_json(row.pairs)?,
            is_of_day: row.is_of_day,
        })
    });
    movements.collect()
}

/// Stores the result of comparing a day: what was matched, and when movements occurred by Dojo's list. Links behind
/// differences become due, so that they are read from Dojo. The day is due again while that may change something.
pub async fn save(
    pool: &PgPool,
    account: &str,
    days: &BusinessDays,
    day: Date,
    comparison: &Comparison,
) -> Result<(), Error> {
    let state = if comparison.differences.is_empty() {
        DayState::Agrees
    } else {
        DayState::Differs
    };
    let stored: Vec<_> = comparison.differences.iter().take(STORED).collect();
    let (dated, times): (Vec<Uuid>, Vec<OffsetDateTime>) = comparison
        .dates
        .iter()
        .map(|(id, at)| (id.uuid(), *at))
        .unzip();
    let (mut transactions, mut made_at) = (Vec::new(), Vec::new());
    let (mut movements, mut amounts) = (Vec::new(), Vec::new());
    for pair in &comparison.pairs {
        transactions.push(pair.transaction_id.clone());
        made_at.push(pair.transaction_at);
        movements.push(pair.movement_id.uuid());
        amounts.push(pair.amount);
    }
    let unread: Vec<_> = comparison
        .differences
        .iter()
        .filter_map(|difference| difference.transaction.as_ref()?.payment_intent_id.clone())
        .collect();
    sqlx::query!(
        "WITH dated AS (
             UPDATE movements SET occurred_at = date.at, business_day = business_day(date.at, $3, $4),
                                  dated_by = 'transaction'
             FROM unnest($10::uuid[], $11::timestamptz[]) AS date (id, at)
             WHERE movements.id = date.id AND movements.dated_by <> 'transaction'
         ), matched AS (
             INSERT INTO matched_transactions (account, transaction_id, transaction_at, movement_id, amount)
             SELECT $1, transaction_id, transaction_at, movement_id, amount
             FROM unnest($12::text[], $13::timestamptz[], $14::uuid[], $15::bigint[])
                 AS pair (transaction_id, transaction_at, movement_id, amount)
             ON CONFLICT (account, transaction_id) DO UPDATE
             SET transaction_at = excluded.transaction_at, movement_id = excluded.movement_id,
                 amount = excluded.amount
         ), due AS (
             UPDATE payment_links SET due_at = least(due_at, now())
             WHERE account = $1 AND payment_intent_id = ANY($16) AND status NOT IN ('Pending', 'Failed')
         )
         INSERT INTO daily_reconciliations (account, business_day, state, reconciled_at, transactions, matched,
                                            difference_count, differences, due_at)
         SELECT $1, $2::date, $5::text, now(), $6::bigint, $7::bigint, $8::bigint, $9::jsonb,
                CASE WHEN $5 = 'Differs' AND now() < business_day_start($2 + 8, $3, $4) THEN now() + interval '6 hours'
                     WHEN $5 = 'Agrees' AND now() < business_day_start($2 + 4, $3, $4) THEN now() + interval '24 hours'
                END
         ON CONFLICT (business_day, account) DO UPDATE
         SET state = excluded.state, reconciled_at = excluded.reconciled_at, transactions = excluded.transactions,
             matched = excluded.matched, difference_count = excluded.difference_count,
             differences = excluded.differences, due_at = excluded.due_at, leased_until = NULL",
        account,
        day,
        days.time_zone,
        days.cutoff,
        state.as_str(),
        i64::try_from(comparison.listed).unwrap_or(i64::MAX),
        i64::try_from(comparison.matched).unwrap_or(i64::MAX),
        i64::try_from(comparison.differences.len()).unwrap_or(i64::MAX),
        to_json(&stored)?,
        &dated,
        &times,
        &transactions,
        &made_at,
        &movements,
        &amounts,
        &unread
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A transaction that may be the outcome of an `Unconfirmed` operation.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    pub payment_intent_id: &'a str,
    /// `capture` or `refund`.
    pub kind: &'static str,
    pub currency: &'a str,
    /// Minor units. Dojo doesn't document whether it includes the tip.
    pub amount: i64,
    /// Minor units.
    pub tips: i64,
    pub at: OffsetDateTime,
    /// Whether it can prove an operation. Otherwise it only makes others ambiguous.
    pub is_proof: bool,
}

/// The `Unconfirmed` captures and refunds that these transactions prove. They must be all of the time `listed`.
///
/// A transaction proves an operation if it has the same amount and tip, was made while the operation's first request may have
/// reached Dojo, and neither another such transaction nor another operation could be meant. Even one that moved no money, such as
/// a declined one, could be meant. So the whole time in which the request may have reached Dojo must have been listed.
pub async fn proven_operations(
    pool: &PgPool,
    account: &str,
    listed: Window,
    evidence: &[Evidence<'_>],
) -> Result<Vec<OperationId>, Error> {
    let (mut intents, mut kinds, mut currencies) = (Vec::new(), Vec::new(), Vec::new());
    let (mut amounts, mut tips, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let mut proofs = Vec::new();
    for transaction in evidence {
        intents.push(transaction.payment_intent_id);
        kinds.push(transaction.kind);
        currencies.push(transaction.currency);
        amounts.push(transaction.amount);
        tips.push(transaction.tips);
        times.push(transaction.at);
        proofs.push(transaction.is_proof);
    }
    let ids = sqlx::query_scalar!(
        r#"SELECT operation.id AS "id!"
           FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[], $8::boolean[])
               AS listed (intent, kind, currency, amount, tips, at, is_proof)
           JOIN payment_links link ON link.payment_intent_id = listed.intent AND link.account = $1
           JOIN operations operation
               ON operation.payment_link_id = link.id AND operation.kind = listed.kind
              AND operation.status = 'Unconfirmed'
           CROSS JOIN LATERAL (
               SELECT operation.created_at - interval '1 minute' AS since,
                      least(operation.asked_until, operation.created_at + interval '10 minutes') + interval '1 minute' AS until,
                      coalesce((operation.action #>> '{request,tipsAmount,value}')::bigint, 0) AS tips
           ) requested
           WHERE listed.at BETWEEN requested.since AND requested.until
             AND requested.since >= $9 AND requested.until <= $10
             AND listed.amount IN (operation.amount, operation.amount + requested.tips)
           GROUP BY operation.id
           HAVING count(*) = 1
              AND bool_and(listed.is_proof AND listed.currency = link.currency AND listed.tips = requested.tips)
              AND NOT bool_or(EXISTS (
                  SELECT FROM operations other
                  WHERE other.payment_link_id = link.id AND other.kind = listed.kind AND other.id <> operation.id
                    -- One that failed is still looked for at Dojo while it is due.
                    AND (other.status <> 'Failed' OR other.due_at IS NOT NULL)
                    AND (other.amount = operation.amount OR listed.amount IN (
                        other.amount,
                        other.amount + coalesce((other.action #>> '{request,tipsAmount,value}')::bigint, 0)))
              ))"#,
        account,
        &intents as &[&str],
        &kinds as &[&str],
        &currencies as &[&str],
        &amounts,
        &tips,
        &times,
        &proofs,
        listed.start,
        listed.end
    )
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().map(OperationId::from_uuid).collect())
}

/// Stores that Dojo's transactions of a day can't be read. They are asked for again a day later, for a week.
pub async fn unavailable(pool: &PgPool, account: &str, day: Date) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO daily_reconciliations (account, business_day, state, reconciled_at)
         VALUES ($1, $2::date, 'Unavailable', now())
         ON CONFLICT (business_day, account) DO UPDATE
         SET state = excluded.state, reconciled_at = excluded.reconciled_at, transactions = 0, matched = 0,
             difference_count = 0, differences = '[]', leased_until = NULL,
             due_at = CASE WHEN now() < $2::date + interval '8 days' THEN now() + interval '24 hours' END",
        account,
        day
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The results of a business day, by account.
pub async fn find(
    pool: &PgPool,
    day: Date,
    open: Option<&[String]>,
    account: Option<&str>,
) -> Result<Vec<DailyReconciliation>, Error> {
    let rows = sqlx::query!(
        r#"SELECT account, business_day, state AS "state!", reconciled_at AS "reconciled_at!", transactions, matched,
                  difference_count, differences
           FROM daily_reconciliations
           WHERE business_day = $1 AND state IS NOT NULL
             AND ($2::text[] IS NULL OR account = ANY($2)) AND ($3::text IS NULL OR account = $3)
           ORDER BY account"#,
        day,
        open,
        account
    )
    .fetch_all(pool)
    .await?;
    let results = rows.into_iter().map(|row| {
        Ok(DailyReconciliation {
            business_day: row.business_day,
            account: row.account,
            state: parse_stored(&row.state)?,
            reconciled_at: row.reconciled_at,
            transactions: row.transactions,
            matched: row.matched,
            difference_count: row.difference_count,
            differences: from_json(row.differences)?,
        })
    });
    results.collect()
}

/// Which results to list. A filter that is `None` matches every result.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Results of any of these accounts: those that the caller may see.
    pub open: Option<Vec<String>>,
    pub account: Option<String>,
    pub states: Option<Vec<String>>,
    /// Of this business day or later.
    pub from: Option<Date>,
    /// Of this business day or earlier.
    pub to: Option<Date>,
}

/// A place in a list of results: just behind that of this day and account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub business_day: Date,
    pub account: String,
}

/// A row of `daily_reconciliations` that has a result, without its differences.
struct DayRow {
    account: String,
    business_day: Date,
    state: String,
    reconciled_at: OffsetDateTime,
    transactions: i64,
    matched: i64,
    difference_count: i64,
    kinds: Value,
}

impl DayRow {
    fn into_day(self) -> Result<ComparedDay, Error> {
        let number = |kind: DifferenceKind| self.kinds[kind.as_str()].as_i64().unwrap_or(0);
        Ok(ComparedDay {
            business_day: self.business_day,
            state: parse_stored(&self.state)?,
            reconciled_at: self.reconciled_at,
            transactions: self.transactions,
            matched: self.matched,
            difference_count: self.difference_count,
            kinds: DifferenceCounts {
                only_here: number(DifferenceKind::OnlyHere),
                only_at_dojo: number(DifferenceKind::OnlyAtDojo),
                different_amount: number(DifferenceKind::DifferentAmount),
                held: number(DifferenceKind::Held),
            },
            account: self.account,
        })
    }
}

/// Selects results as [`DayRow`]s. `$rest` follows the table.
macro_rules! select_days {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            DayRow,
            "SELECT account, business_day, state AS \"state!\", reconciled_at AS \"reconciled_at!\", transactions, matched,
                    difference_count,
                    (SELECT coalesce(jsonb_object_agg(kind, number) FILTER (WHERE kind IS NOT NULL), '{}')
                     FROM (SELECT difference ->> 'kind' AS kind, count(*) AS number
                           FROM jsonb_array_elements(differences) difference GROUP BY 1) AS found) AS \"kinds!\"
             FROM daily_reconciliations "
                + $rest
            $(, $argument)*
        )
    };
}

/// Up to `limit` results behind `after`, by business day and account.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    after: Option<&Place>,
    limit: i64,
) -> Result<Vec<ComparedDay>, Error> {
    let rows = select_days!(
        "WHERE state IS NOT NULL
           AND ($1::text[] IS NULL OR account = ANY($1))
           AND ($2::text IS NULL OR account = $2)
           AND ($3::text[] IS NULL OR state = ANY($3))
           AND ($4::date IS NULL OR business_day >= $4)
           AND ($5::date IS NULL OR business_day <= $5)
           AND ($6::date IS NULL OR (business_day, account) > ($6, $7))
         ORDER BY business_day, account
         LIMIT $8",
        filter.open.as_deref(),
        filter.account.as_deref(),
        filter.states.as_deref(),
        filter.from,
        filter.to,
        after.map(|place| place.business_day),
        after.map(|place| place.account.as_str()),
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(DayRow::into_day).collect()
}

/// Up to `limit` results of days that differ, of this business day or later, newest first. If `open` is given, only those of
/// these accounts.
pub async fn newest_differing(
    pool: &PgPool,
    open: Option<&[String]>,
    since: Date,
    limit: i64,
) -> Result<Vec<ComparedDay>, Error> {
    let rows = select_days!(
        "WHERE state = 'Differs' AND business_day >= $1 AND ($2::text[] IS NULL OR account = ANY($2))
         ORDER BY business_day DESC, account
         LIMIT $3",
        since,
        open,
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(DayRow::into_day).collect()
}

/// How the books of an account differ from Dojo's list.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// How many of the last differences that were stored are of each kind, of days that ended more than a day ago. Later ones
    /// may resolve themselves.
    pub differences: [(DifferenceKind, i64); 4],
    /// Since when the oldest day is due, in seconds.
    pub lag: f64,
}

impl Default for Summary {
    /// There are no differences, and nothing is due.
    fn default() -> Self {
        Self {
            differences: DifferenceKind::ALL.map(|kind| (kind, 0)),
            lag: 0.0,
        }
    }
}

/// How the books of an account differ from Dojo's list, over the last nine days.
pub async fn summary(pool: &PgPool, account: &str) -> Result<Summary, Error> {
    let row = sqlx::query!(
        r#"SELECT coalesce(jsonb_object_agg(kind, number) FILTER (WHERE kind IS NOT NULL), '{}') AS "kinds!",
                  (SELECT coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8 FROM daily_reconciliations
                   WHERE account = $1 AND due_at <= now()) AS "lag!"
           FROM (
               SELECT difference ->> 'kind' AS kind, count(*) AS number
               FROM daily_reconciliations, jsonb_array_elements(differences) difference
               WHERE account = $1 AND business_day > (now() - interval '10 days')::date
                 AND business_day < (now() - interval '1 day')::date
               GROUP BY 1
           ) AS found"#,
        account
    )
    .fetch_one(pool)
    .await?;
    let number = |kind: DifferenceKind| row.kinds[kind.as_str()].as_i64().unwrap_or(0);
    Ok(Summary {
        differences: DifferenceKind::ALL.map(|kind| (kind, number(kind))),
        lag: row.lag,
    })
}
