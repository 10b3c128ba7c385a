//! The end: waits until all is settled, and compares everything that the service says with what Dojo has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use serde_json::Value;
use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::{
    operators,
    people::{Books, Outcome, text},
    promise::{Promise, broken},
    stage::{Result, Stage},
};

/// How long settling may take. A replica that was killed holds what it had claimed until its lease is over, and the
/// background leaves a Dojo alone that has just been in trouble.
const SETTLED_WITHIN: Duration = Duration::from_secs(100);

/// Waits until nothing is on its way, pending, due or in dispute any more, and each link that can still change has
/// been looked at after `looked_at`.
pub async fn settled(stage: &Stage, looked_at: OffsetDateTime) -> Result {
    let patience = stage.patience(SETTLED_WITHIN);
    let limit = Instant::now() + patience;
    loop {
        let deliveries = stage.dojo.look("deliveries").await?;
        let on_their_way = deliveries
            .iter()
            .filter(|delivery| delivery["state"] == "pending")
            .count();
        let unsettled: Vec<String> = sqlx::query_scalar(
            "SELECT concat_ws(' ', 'link', id, status) FROM payment_links
             WHERE status = 'Pending' OR due_at <= now() OR disputed_since IS NOT NULL
                OR (due_at IS NOT NULL AND synced_at < $1)
             UNION ALL SELECT concat_ws(' ', 'operation', id, kind) FROM operations
                 WHERE status = 'Pending' OR due_at IS NOT NULL
             UNION ALL SELECT concat_ws(' ', 'intent', id) FROM payment_intents WHERE due_at IS NOT NULL",
        )
        .bind(looked_at)
        .fetch_all(&stage.database.pool)
        .await?;
        if on_their_way == 0 && unsettled.is_empty() {
            return Ok(());
        }
        if Instant::now() > limit {
            let about = unsettled.first().map_or("webhooks", String::as_str);
            let what = format!(
                "not settled within {patience:?} of calm; nor are {} others, with {on_their_way} webhooks on their way",
                unsettled.len().saturating_sub(1)
            );
            return broken(Promise::Heals, about, what);
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Sees that every link that can still change is on the schedule, and brings the schedule forward. Returns when.
pub async fn look_at_all(pool: &PgPool) -> Result<OffsetDateTime> {
    let forgotten: Option<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', id, status) FROM payment_links
         WHERE due_at IS NULL AND status IN ('Pending', 'Created', 'Authorized', 'Captured') LIMIT 1",
    )
    .fetch_optional(pool)
    .await?;
    if let Some(link) = forgotten {
        let what = "can still change, and nobody will ever look at it";
        return broken(Promise::Heals, link, what);
    }
    // Links whose webhooks were lost would be looked at within minutes to hours. This changes when, and not whether.
    sqlx::query("UPDATE payment_links SET due_at = now() WHERE due_at IS NOT NULL")
        .execute(pool)
        .await?;
    Ok(OffsetDateTime::now_utc())
}

#[derive(FromRow)]
struct Link {
    id: String,
    status: String,
    payment_intent_id: Option<String>,
    total_amount: Option<i64>,
    refunded_amount: i64,
}

#[derive(FromRow)]
struct Entry {
    link: String,
    kind: String,
    status_before: Option<String>,
    status_after: String,
    event_id: Option<String>,
    verdict: Option<String>,
    cause: String,
}

/// What there was in the end.
#[derive(Default)]
pub struct Findings {
    pub links: usize,
    pub failed: usize,
    pub alive: usize,
    pub surplus: usize,
    pub webhooks: usize,
    pub acknowledged: usize,
    pub present: usize,
    pub call_faults: usize,
    pub webhook_faults: usize,
    pub contradictions: usize,
    pub disputes: usize,
    pub recoveries: usize,
    pub lost_operations: usize,
    done: HashMap<&'static str, usize>,
}

impl Findings {
    /// How many operations of this kind were done.
    pub fn done(&self, operation: &str) -> usize {
        self.done.get(operation).copied().unwrap_or_default()
    }
}

/// Holds every promise that can be judged at the end against what the sandbox knows.
pub async fn judge(stage: &Stage, books: &Books) -> Result<Findings> {
    let pool = &stage.database.pool;
    let intents = stage.dojo.look("payment-intents").await?;
    let deliveries = stage.dojo.look("deliveries").await?;
    let links: Vec<Link> = sqlx::query_as(
        "SELECT id::text, status, payment_intent_id, total_amount, refunded_amount FROM payment_links",
    )
    .fetch_all(pool)
    .await?;
    let timeline: Vec<Entry> = sqlx::query_as(
        "SELECT payment_link_id::text AS link, kind, status_before, status_after,
                cause->>'eventId' AS event_id, detail->>'verdict' AS verdict, cause->>'type' AS cause
         FROM payment_link_events ORDER BY id",
    )
    .fetch_all(pool)
    .await?;

    outcomes(books, &intents)?;
    keys(pool, books).await?;
    agreement(&links, &intents)?;
    explained(&links, &timeline)?;
    operators::judge(books, &intents)?;
    let present = acknowledged(pool, &deliveries).await?;
    told(pool).await?;
    let requests = stage.dojo.look("requests").await?;
    operators::never_too_much(books, &requests)?;

    let entries = |wanted: &dyn Fn(&Entry) -> bool| timeline.iter().filter(|e| wanted(e)).count();
    Ok(Findings {
        links: links.len(),
        failed: links.iter().filter(|link| link.status == "Failed").count(),
        alive: intents.iter().filter(|intent| is_alive(intent)).count(),
        surplus: entries(&|entry| entry.kind == "surplusCanceled"),
        webhooks: deliveries.len(),
        acknowledged: deliveries
            .iter()
            .filter(|one| was_acknowledged(one))
            .count(),
        present,
        call_faults: requests
            .iter()
            .filter(|one| !one["fault"].is_null())
            .count(),
        webhook_faults: deliveries
            .iter()
            .filter(|one| !one["fault"].is_null())
            .count(),
        contradictions: entries(&|entry| entry.verdict.as_deref() == Some("contradictory")),
        disputes: entries(&|entry| entry.kind == "conflictingResponse"),
        recoveries: entries(&|entry| entry.kind == "created" && entry.cause == "recovery"),
        lost_operations: entries(&|entry| {
            entry.kind.starts_with("operation") && entry.cause == "recovery"
        }),
        done: ["captures", "refunds", "reversal", "cancel"]
            .into_iter()
            .map(|operation| {
                let operations = books.operations.borrow();
                let done = operations
                    .iter()
                    .filter(|one| one.is(operation, operators::Outcome::Done));
                (operation, done.count())
            })
            .collect(),
    })
}

fn is_alive(intent: &Value) -> bool {
    intent["status"] != "Canceled"
}

/// One key, one living intent, and the one that its caller was told of.
fn outcomes(books: &Books, intents: &[Value]) -> Result {
    let mut by_key: HashMap<&str, Vec<&Value>> = HashMap::new();
    for intent in intents {
        let key = text(&intent["metadata"]["order"]);
        by_key.entry(key).or_default().push(intent);
    }
    for order in books.orders.borrow().iter() {
        let made = by_key
            .get(order.key.as_str())
            .map_or(&[][..], Vec::as_slice);
        let alive: Vec<&str> = made
            .iter()
            .filter(|intent| is_alive(intent))
            .map(|intent| text(&intent["id"]))
            .collect();
        let told = match order.outcome() {
            Some(Outcome::Link { intent, id }) => Some((intent, id)),
            _ => None,
        };
        let right = match (&alive[..], &told) {
            ([], _) => true,
            ([one], Some((intent, _))) => one == intent,
            _ => false,
        };
        if !right {
            let what = format!("Dojo has {alive:?} alive, and the caller was told {told:?}");
            return broken(Promise::OneIntent, &order.key, what);
        }
        if let Some((intent, id)) = told
            && !made.iter().any(|one| one["id"] == intent)
        {
            return broken(Promise::OneIntent, id, format!("Dojo knows no {intent}"));
        }
    }
    Ok(())
}

/// A caller who was told that it is too late has nothing at Dojo to worry about.
async fn keys(pool: &PgPool, books: &Books) -> Result {
    let taken: Vec<String> =
        sqlx::query_scalar("SELECT key FROM idempotency_keys WHERE payment_link_id IS NOT NULL")
            .fetch_all(pool)
            .await?;
    let taken: HashSet<String> = taken.into_iter().collect();
    for order in books.orders.borrow().iter() {
        if order.outcome() == Some(Outcome::TooLate) && taken.contains(&order.key) {
            let what = "its link exists, and a repetition was refused because it has expired";
            return broken(Promise::OneIntent, &order.key, what);
        }
    }
    Ok(())
}

/// Every link says what Dojo says of its intent, and every intent has a link that says so.
fn agreement(links: &[Link], intents: &[Value]) -> Result {
    let by_intent: BTreeMap<&str, &Link> = links
        .iter()
        .filter_map(|link| Some((link.payment_intent_id.as_deref()?, link)))
        .collect();
    for intent in intents {
        let id = text(&intent["id"]);
        let Some(link) = by_intent.get(id) else {
            if is_alive(intent) {
                let what = format!("is {} at Dojo, and no link says so", intent["status"]);
                return broken(Promise::Heals, id, what);
            }
            continue;
        };
        let here = (
            link.status.as_str(),
            link.total_amount,
            Some(link.refunded_amount),
        );
        let there = (
            text(&intent["status"]),
            intent["totalAmount"]["value"].as_i64(),
            intent["refundedAmount"].as_i64(),
        );
        if here != there {
            let what = format!("is {here:?} here and {there:?} at Dojo ({id})");
            return broken(Promise::Converges, &link.id, what);
        }
    }
    let known: BTreeSet<&str> = intents.iter().map(|intent| text(&intent["id"])).collect();
    match by_intent.iter().find(|(id, _)| !known.contains(*id)) {
        Some((id, link)) => broken(
            Promise::Converges,
            &link.id,
            format!("has {id}, unknown to Dojo"),
        ),
        None => Ok(()),
    }
}

/// Entries chain, the last one ends where the link is, and no event is told of twice.
fn explained(links: &[Link], timeline: &[Entry]) -> Result {
    let mut at: HashMap<&str, &str> = HashMap::new();
    let mut events = HashSet::new();
    for entry in timeline {
        let before = at.insert(&entry.link, &entry.status_after);
        if before != entry.status_before.as_deref() {
            let what = format!(
                "its timeline was at {before:?} when `{}` took it from {:?} to {}",
                entry.kind, entry.status_before, entry.status_after
            );
            return broken(Promise::Explained, &entry.link, what);
        }
        if let Some(event) = &entry.event_id
            && !events.insert(event)
        {
            return broken(
                Promise::Explained,
                &entry.link,
                format!("tells of {event} twice"),
            );
        }
    }
    for link in links {
        let told = at.get(link.id.as_str());
        if told != Some(&link.status.as_str()) {
            let what = format!("is {}, and its timeline ends at {told:?}", link.status);
            return broken(Promise::Explained, &link.id, what);
        }
    }
    Ok(())
}

fn was_acknowledged(delivery: &Value) -> bool {
    let attempts = delivery["attempts"].as_array();
    attempts.into_iter().flatten().any(|attempt| {
        let status = attempt["status"].as_u64();
        status.is_some_and(|status| (200..300).contains(&status))
    })
}

/// Every webhook that was acknowledged is there. How many are.
async fn acknowledged(pool: &PgPool, deliveries: &[Value]) -> Result<usize> {
    let present: Vec<String> = sqlx::query_scalar("SELECT dedup_key FROM webhook_events")
        .fetch_all(pool)
        .await?;
    let present: HashSet<String> = present.into_iter().collect();
    for delivery in deliveries.iter().filter(|one| was_acknowledged(one)) {
        let event = text(&delivery["eventId"]);
        if !present.contains(event) {
            return broken(Promise::Durable, event, "was acknowledged, and is gone");
        }
    }
    Ok(present.len())
}

/// Every webhook about a link's intent stands in the link's timeline.
async fn told(pool: &PgPool) -> Result {
    let untold: Option<(String, String)> = sqlx::query_as(
        "SELECT link.id::text, event.dedup_key
         FROM webhook_events event JOIN payment_links link USING (payment_intent_id)
         WHERE NOT EXISTS (
             SELECT FROM payment_link_events told
             WHERE told.payment_link_id = link.id AND told.cause->>'eventId' = event.dedup_key
         ) LIMIT 1",
    )
    .fetch_optional(pool)
    .await?;
    match untold {
        Some((link, event)) => broken(
            Promise::Explained,
            link,
            format!("does not tell of {event}"),
        ),
        None => Ok(()),
    }
}
