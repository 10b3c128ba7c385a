//! The feed: how soon a reader gets a change that was committed.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use serde_json::Value;
use sqlx::{AssertSqlSafe, postgres::PgPoolOptions};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::webhooks;
use crate::{
    Result,
    database::{Database, Size},
    http::{Connection, request},
    lab::{API_KEY, Lab, Program},
    load::milliseconds,
    report::{Limit, RowReport, Unit},
};

const WRITERS: usize = 8;
/// Of all writers together.
const CHANGES_PER_SECOND: u32 = 2000;
/// How long a reader waits at most for what must be there in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn delay(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let service = database.start_service(lab).await?;
    let length = lab.scale.round + lab.scale.warm_up;
    // When each change was committed, by its number.
    let committed = RefCell::new(Vec::new());
    let (written, delays) = tokio::try_join!(
        write(&database, length, &committed),
        read(&service, length, &committed)
    )?;
    service.stop().await?;
    if delays.len() != written {
        return Err(format!(
            "{written} changes were committed, {} were read",
            delays.len()
        )
        .into());
    }
    let mut delays: Vec<_> = delays.into_iter().map(milliseconds).collect();
    delays.sort_by(f64::total_cmp);
    let at = |share: usize| delays.get(delays.len() * share / 100).copied();
    let (p50, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let rate = written as f64 / length.as_secs_f64();
    report.figure("changes", rate, Unit::PerSecond);
    report.figure("from a commit to its reader, p50", p50, Unit::Milliseconds);
    report.goal(
        "from a commit to its reader, p99, at 2,000 changes per second",
        Limit::AtMost(100.0),
        p99,
        Unit::Milliseconds,
    );
    cost(lab, report, &database).await
}

/// Compares the intake of webhooks with what it is if changes aren't published.
async fn cost(lab: &Lab, report: &mut RowReport<'_>, database: &Database) -> Result {
    let trigger = async |change: &str| {
        let change = format!("ALTER TABLE payment_link_events {change} TRIGGER feed_change");
        sqlx::query(AssertSqlSafe(change))
            .execute(&database.pool)
            .await
    };
    let (mut with, mut without) = (vec![], vec![]);
    for _ in 0..lab.scale.rounds {
        with.push(webhooks::service(lab, database).await?);
        trigger("DISABLE").await?;
        let measured = webhooks::service(lab, database).await;
        trigger("ENABLE").await?;
        without.push(measured?);
    }
    let with = report.median("webhooks with the feed, events", &with, Unit::PerSecond);
    let without = report.median("webhooks without it, events", &without, Unit::PerSecond);
    report.goal(
        "webhooks with the feed, compared with those without it",
        Limit::AtLeast(0.9),
        with / without,
        Unit::Times,
    );
    Ok(())
}

/// Changes links at a steady rate, each in a transaction of its own. Returns the number of changes.
pub async fn write(
    database: &Database,
    length: Duration,
    committed: &RefCell<Vec<Option<Instant>>>,
) -> Result<usize> {
    let connections = PgPoolOptions::new()
        .max_connections(u32::try_from(WRITERS)?)
        .connect(&database.url)
        .await?;
    let links: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM payment_links LIMIT 5000")
        .fetch_all(&connections)
        .await?;
    let pace = Duration::from_secs(1) * u32::try_from(WRITERS)? / CHANGES_PER_SECOND;
    let until = Instant::now() + length;
    let writers = (0..WRITERS).map(async |_| {
        let mut ticks = interval(pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while Instant::now() < until {
            ticks.tick().await;
            let number = committed.borrow().len();
            committed.borrow_mut().push(None);
            sqlx::query(
                "WITH link AS (
                     UPDATE payment_links SET revision = revision + 1 WHERE id = $1 RETURNING id, status
                 )
                 INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
                 SELECT id, 'amountMismatch', status, status, '{\"type\": \"reconciliation\"}',
                        jsonb_build_object('number', $2::bigint)
                 FROM link",
            )
            .bind(links[number % links.len()])
            .bind(i64::try_from(number)?)
            .execute(&connections)
            .await?;
            committed.borrow_mut()[number] = Some(Instant::now());
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    });
    try_join_all(writers).await?;
    Ok(committed.borrow().len())
}

/// Follows the feed until every change has been read. Returns how long after its commit each was read.
async fn read(
    service: &Program,
    length: Duration,
    committed: &RefCell<Vec<Option<Instant>>>,
) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(service.address).await?;
    let headers = [("authorization", &*format!("Bearer {API_KEY}"))];
    let begin = Instant::now();
    let mut delays = Vec::new();
    let mut after = String::new();
    loop {
        let path =
            format!("/v1/events?limit=100&wait=1&types=payment_link.attention_required{after}");
        let response = connection
            .call(&request("GET", &path, &headers, ""))
            .await?;
        if response.status != 200 {
            return Err(format!("a reader got {}", response.status).into());
        }
        let arrived = Instant::now();
        let page: Value = serde_json::from_slice(response.body)?;
        for event in page["data"].as_array().into_iter().flatten() {
            let number = event["detail"]["number"].as_u64().unwrap_or(u64::MAX);
            let at = committed.borrow().get(usize::try_from(number)?).copied();
            // A reader may get a change before its writer has noticed that it is committed.
            let at = at.flatten().unwrap_or(arrived);
            delays.push(arrived.saturating_duration_since(at));
        }
        after = format!("&after={}", page["after"].as_str().unwrap_or_default());
        let is_over = begin.elapsed() > length + Duration::from_secs(1);
        if is_over && delays.len() >= committed.borrow().len()
            || begin.elapsed() > length + PATIENCE
        {
            return Ok(delays);
        }
    }
}
