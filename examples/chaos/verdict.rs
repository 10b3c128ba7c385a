//! The end of a run: waits until everything has settled, and compares what the service says with what Dojo has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use dojo_payment_links::payment_link::PaymentLinkId;
use serde_json::Value;
use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::{
    feed, operators,
    people::{Books, Outcome, text},
    promise::{Promise, broken},
    stage::{Result, Stage},
};

/// How long settling may take. The leases of a killed replica must expire first, and the background pauses after Dojo was in
/// trouble.
const SETTLED_WITHIN: Duration = Duration::from_secs(100);

/// Waits until nothing is on its way, pending, due or in conflict, and each link that can still change has been reconciled
/// after `reconciled_after`.
pub async fn settled(stage: &Stage, reconciled_after: OffsetDateTime) -> Result {
    let patience = stage.patience(SETTLED_WITHIN);
    let limit = Instant::now() + patience;
    loop {
        // A message that the mail server refused waits for up to half an hour. This changes when it is sent, and not whether.
        sqlx::query(
            "UPDATE messages SET due_at = now() WHERE due_at > now() AND leased_until IS NULL",
        )
        .execute(&stage.database.pool)
        .await?;
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
             UNION ALL SELECT concat_ws(' ', 'intent', id) FROM payment_intents WHERE due_at IS NOT NULL
             UNION ALL SELECT concat_ws(' ', 'message', id) FROM messages WHERE due_at IS NOT NULL
             UNION ALL SELECT concat_ws(' ', 'reminder', id) FROM reminders WHERE due_at <= now()
             UNION ALL SELECT concat_ws(' ', 'change', entry_id) FROM feed_outbox
             UNION ALL SELECT concat_ws(' ', 'events after', feed_position) FROM books, feed WHERE feed_position < feed.head",
        )
        .bind(reconciled_after)
        .fetch_all(&stage.database.pool)
        .await?;
        if on_their_way == 0 && unsettled.is_empty() {
            return Ok(());
        }
        if Instant::now() > limit {
            let about = unsettled.first().map_or("webhooks", String::as_str);
            let what = format!(
                "not settled within {patience:?} without trouble; nor are {} others, with {on_their_way} webhooks on their way",
                unsettled.len().saturating_sub(1)
            );
            return broken(Promise::Heals, about, what);
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Checks that every link that can still change has a due time, and makes all of them due. Returns when it did.
pub async fn make_all_due(pool: &PgPool) -> Result<OffsetDateTime> {
    let forgotten: Option<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', id, status) FROM payment_links
         WHERE due_at IS NULL AND status IN ('Pending', 'Created', 'Authorized', 'Captured') LIMIT 1",
    )
    .fetch_optional(pool)
    .await?;
    if let Some(link) = forgotten {
        let what = "can still change, and will never be reconciled";
        return broken(Promise::Heals, link, what);
    }
    sqlx::query("UPDATE reminders SET due_at = now()")
        .execute(pool)
        .await?;
    // Links whose webhooks were lost are reconciled within minutes to hours. This changes when, and not whether.
    sqlx::query("UPDATE payment_links SET due_at = now() WHERE due_at IS NOT NULL")
        .execute(pool)
        .await?;
    Ok(OffsetDateTime::now_utc())
}

#[derive(FromRow)]
struct Link {
    id: String,
    status: String,
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

/// What the run found in the end.
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
    pub events: usize,
    done: HashMap<&'static str, usize>,
}

impl Findings {
    /// How many operations of this kind were done.
    pub fn done(&self, operation: &str) -> usize {
        self.done.get(operation).copied().unwrap_or_default()
    }
}

/// Checks every promise that can be judged at the end against what the sandbox knows.
pub async fn judge(stage: &Stage, books: &Books, readers: &[feed::Reader]) -> Result<Findings> {
    let pool = &stage.database.pool;
    let intents = stage.dojo.look("payment-intents").await?;
    let deliveries = stage.dojo.look("deliveries").await?;
    let links: Vec<Link> = sqlx::query_as("SELECT id::text, status FROM payment_links")
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
    let all_links = all_links(stage).await?;
    agreement(&all_links, &intents)?;
    let events = feed::judge(stage, readers, &all_links).await?;
    booked(pool, &all_links).await?;
    explained(&links, &timeline)?;
    operators::judge(books, &intents)?;
    let present = acknowledged(pool, &deliveries).await?;
    told(pool).await?;
    let requests = stage.dojo.look("requests").await?;
    operators::never_too_much(books, &requests)?;

    let entries = |wanted: &dyn Fn(&Entry) -> bool| timeline.iter().filter(|e| wanted(e)).count();
    Ok(Findings {
        events,
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

/// One key leads to one live intent, which is the one in the caller's response.
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
            let what = format!("Dojo has the live intents {alive:?}, and the caller got {told:?}");
            return broken(Promise::OneIntent, &order.key, what);
        }
        if let Some((intent, id)) = told
            && !made.iter().any(|one| one["id"] == intent)
        {
            return broken(
                Promise::OneIntent,
                id,
                format!("{intent} does not exist at Dojo"),
            );
        }
    }
    Ok(())
}

/// A link's movements add up to what was captured and refunded.
async fn booked(pool: &PgPool, links: &[Value]) -> Result {
    let sums: Vec<(uuid::Uuid, i64, i64)> = sqlx::query_as(
        "SELECT payment_link_id, coalesce(sum(net) FILTER (WHERE type NOT LIKE 'refund%'), 0)::bigint,
                coalesce(-sum(net) FILTER (WHERE type LIKE 'refund%'), 0)::bigint
         FROM movements GROUP BY payment_link_id",
    )
    .fetch_all(pool)
    .await?;
    let sums: HashMap<_, _> = sums
        .into_iter()
        .map(|(id, captured, refunded)| (id, (captured, refunded)))
        .collect();
    for link in links {
        let id: PaymentLinkId = text(&link["id"]).parse()?;
        let amount = |name: &str| link[name]["value"].as_i64().unwrap_or_default();
        let reported = (amount("capturedAmount"), amount("refundedAmount"));
        let booked = sums.get(&id.uuid()).copied().unwrap_or_default();
        if booked != reported {
            let what = format!("captured and refunded {reported:?}, and booked {booked:?}");
            return broken(Promise::Booked, text(&link["id"]), what);
        }
    }
    Ok(())
}

/// A caller whose order was rejected as expired has no intent at Dojo.
async fn keys(pool: &PgPool, books: &Books) -> Result {
    let taken: Vec<String> = sqlx::query_scalar(
        "SELECT key FROM idempotency_keys JOIN payment_links ON payment_links.id = payment_link_id
             WHERE status <> 'Failed'",
    )
    .fetch_all(pool)
    .await?;
    let taken: HashSet<String> = taken.into_iter().collect();
    for order in books.orders.borrow().iter() {
        if order.outcome() == Some(Outcome::TooLate) && taken.contains(&order.key) {
            let what = "its link exists, and a retry was rejected because it has expired";
            return broken(Promise::OneIntent, &order.key, what);
        }
    }
    Ok(())
}

/// Every link, as callers read it.
async fn all_links(stage: &Stage) -> Result<Vec<Value>> {
    let mut links = Vec::new();
    let mut after = Value::Null;
    loop {
        let replica = &stage.replicas[links.len() / 100 % stage.replicas.len()];
        let mut url = format!("{}/v1/payment-links?limit=100", replica.url);
        if let Some(after) = after.as_str() {
            url = format!("{url}&after={after}");
        }
        let request = stage.http.get(url).bearer_auth(stage.key());
        let mut page: Value = request.send().await?.error_for_status()?.json().await?;
        after = page["after"].take();
        links.extend(page["data"].as_array().into_iter().flatten().cloned());
        if page["hasMore"] == false {
            return Ok(links);
        }
    }
}

/// What a link or an intent says about money: its status, amounts and captures.
#[derive(Debug, PartialEq)]
struct Figures<'a> {
    status: &'a str,
    total: Option<i64>,
    captured: Option<i64>,
    refunded: Option<i64>,
    /// Id, amount and tip of each capture, sorted.
    captures: Vec<(&'a str, i64, i64)>,
}

impl<'a> Figures<'a> {
    fn of_link(link: &'a Value) -> Self {
        Self {
            status: text(&link["status"]),
            total: link["totalAmount"]["value"].as_i64(),
            captured: link["capturedAmount"]["value"].as_i64(),
            refunded: link["refundedAmount"]["value"].as_i64(),
            captures: captures(link),
        }
    }

    fn of_intent(intent: &'a Value) -> Self {
        let (status, parts) = (text(&intent["status"]), captures(intent));
        let total = intent["totalAmount"]["value"].as_i64();
        let captured = match status {
            "Captured" | "Refunded" if parts.is_empty() => total,
            "Captured" | "Refunded" => {
                Some(parts.iter().map(|(_, amount, tip)| amount + tip).sum())
            }
            _ => Some(0),
        };
        Self {
            status,
            total,
            captured,
            refunded: intent["refundedAmount"].as_i64(),
            captures: parts,
        }
    }
}

fn captures(of: &Value) -> Vec<(&str, i64, i64)> {
    let captures = of["captures"].as_array().into_iter().flatten();
    let mut captures: Vec<_> = captures
        .map(|capture| {
            // Dojo has plain numbers, and we have amounts with a currency.
            let number = |name: &str| {
                let amount = &capture[name];
                amount
                    .as_i64()
                    .or(amount["value"].as_i64())
                    .unwrap_or_default()
            };
            (text(&capture["id"]), number("amount"), number("tipsAmount"))
        })
        .collect();
    captures.sort_unstable();
    captures
}

/// Every link says what Dojo says about its intent, and that Dojo confirmed it. Every intent has a link.
fn agreement(links: &[Value], intents: &[Value]) -> Result {
    let by_intent: BTreeMap<&str, &Value> = links
        .iter()
        .filter_map(|link| Some((link["paymentIntentId"].as_str()?, link)))
        .collect();
    for intent in intents {
        let id = text(&intent["id"]);
        let Some(link) = by_intent.get(id) else {
            if is_alive(intent) {
                let what = format!("is {} at Dojo, and no link has it", intent["status"]);
                return broken(Promise::Heals, id, what);
            }
            continue;
        };
        let (here, there) = (Figures::of_link(link), Figures::of_intent(intent));
        if here != there {
            let what = format!("is {here:?} here and {there:?} at Dojo ({id})");
            return broken(Promise::Converges, text(&link["id"]), what);
        }
        if link["confirmed"] != true {
            let what = format!("is {} here and at Dojo, and not confirmed", here.status);
            return broken(Promise::Converges, text(&link["id"]), what);
        }
    }
    let known: BTreeSet<&str> = intents.iter().map(|intent| text(&intent["id"])).collect();
    match by_intent.iter().find(|(id, _)| !known.contains(*id)) {
        Some((id, link)) => broken(
            Promise::Converges,
            text(&link["id"]),
            format!("has {id}, unknown to Dojo"),
        ),
        None => Ok(()),
    }
}

/// Each link's timeline is a chain that ends in the link's status, and has no event twice.
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

/// Every webhook that was acknowledged is stored. Returns how many are stored.
async fn acknowledged(pool: &PgPool, deliveries: &[Value]) -> Result<usize> {
    let present: Vec<String> = sqlx::query_scalar("SELECT dedup_key FROM webhook_events")
        .fetch_all(pool)
        .await?;
    let present: HashSet<String> = present.into_iter().collect();
    for delivery in deliveries.iter().filter(|one| was_acknowledged(one)) {
        let event = text(&delivery["eventId"]);
        if !present.contains(event) {
            return broken(Promise::Durable, event, "was acknowledged, and is missing");
        }
    }
    Ok(present.len())
}

/// Every webhook about a link's intent is in the link's timeline.
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
            format!("its timeline lacks {event}"),
        ),
        None => Ok(()),
    }
}
