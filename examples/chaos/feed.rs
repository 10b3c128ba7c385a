//! Readers of the feed: each reads on from the place that it has stored, from any replica, whatever happens.

use std::{cell::RefCell, collections::HashSet, time::Duration};

use dojo_payment_links::payment_link::PaymentLinkId;
use rand::{RngExt, rngs::StdRng};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    people::text,
    promise::{Promise, broken},
    stage::{Replica, Result, Stage},
    trouble::Trouble,
};

#[derive(Default)]
pub struct Reader {
    /// All events so far, in the order in which they were read.
    events: RefCell<Vec<Value>>,
    after: RefCell<Option<String>>,
}

impl Reader {
    /// Follows the feed from any replica.
    pub async fn follow(&self, stage: &Stage, mut rng: StdRng, until: Instant) -> Result {
        while Instant::now() < until {
            let wait = rng.random_range(0..3);
            let replica = stage.any_replica(&mut rng);
            if self.read(stage, replica, wait).await?.is_none() {
                sleep(Duration::from_millis(rng.random_range(50..300))).await;
            }
        }
        Ok(())
    }

    /// Reads the rest of the feed, when nothing goes wrong and nothing more happens.
    async fn finish(&self, stage: &Stage) -> Result {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            if self.read(stage, &stage.replicas[0], 0).await? == Some(0) {
                return Ok(());
            }
            if Instant::now() > limit {
                let what = "the feed can't be read to its end";
                return broken(Promise::InOrder, "GET /v1/events", what);
            }
        }
    }

    /// Reads on. Returns the number of new events, or `None` if there was no response.
    async fn read(&self, stage: &Stage, replica: &Replica, wait: u32) -> Result<Option<usize>> {
        let mut url = format!("{}/v1/events?limit=100&wait={wait}", replica.url);
        if let Some(after) = &*self.after.borrow() {
            url = format!("{url}&after={after}");
        }
        let request = stage.http.get(url).bearer_auth(stage.key());
        let Ok(answer) = request.send().await else {
            return Ok(None);
        };
        let status = answer.status();
        let Ok(mut page) = answer.json::<Value>().await else {
            return Ok(None);
        };
        match status {
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => return Ok(None),
            StatusCode::UNAUTHORIZED if stage.has(Trouble::RotatedKeys) => return Ok(None),
            status => {
                let what = format!("responded {status} to a reader: {page}");
                return broken(Promise::Answers, "GET /v1/events", what);
            }
        }
        let Value::Array(new) = page["data"].take() else {
            return broken(Promise::Answers, "GET /v1/events", "no data");
        };
        // Together, as a reader that stores both in one transaction would.
        self.after
            .replace(page["after"].as_str().map(str::to_owned));
        let count = new.len();
        self.events.borrow_mut().extend(new);
        Ok(Some(count))
    }
}

/// Checks that every reader has read every event once, in the same order, and that the events say what became of each link.
/// Returns the number of events.
pub async fn judge(stage: &Stage, readers: &[Reader], links: &[Value]) -> Result<usize> {
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT event->>'id' FROM feed_events ORDER BY position")
            .fetch_all(&stage.database.pool)
            .await?;
    for (number, reader) in readers.iter().enumerate() {
        reader.finish(stage).await?;
        let events = reader.events.borrow();
        let read: Vec<_> = events.iter().map(|event| text(&event["id"])).collect();
        if read != stored {
            let at = read.iter().zip(&stored).position(|(a, b)| a != b);
            let what = format!(
                "read {} events of {}, different from number {at:?}",
                read.len(),
                stored.len()
            );
            return broken(Promise::InOrder, format!("reader {number}"), what);
        }
        let ids: HashSet<_> = read.iter().collect();
        if ids.len() != read.len() {
            let what = "an event was read twice";
            return broken(Promise::InOrder, format!("reader {number}"), what);
        }
    }
    // Dojo's contradictions can take back what was published.
    let contradicted: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT payment_link_id::text FROM payment_link_events WHERE kind = 'conflictingResponse'",
    )
    .fetch_all(&stage.database.pool)
    .await?;
    let Some(reader) = readers.first() else {
        return Ok(0);
    };
    let events = reader.events.borrow();
    for link in links {
        let about: Vec<_> = events
            .iter()
            .filter(|event| event["paymentLinkId"] == link["id"])
            .collect();
        told(link, &about, !contradicted.contains(&link_uuid(link)))?;
    }
    Ok(events.len())
}

/// A link's id as it is stored.
fn link_uuid(link: &Value) -> String {
    let id = text(&link["id"]).parse::<PaymentLinkId>();
    id.map(|id| id.uuid().to_string()).unwrap_or_default()
}

/// Checks what the feed says about a link.
fn told(link: &Value, events: &[&Value], is_certain: bool) -> Result {
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    let id = text(&link["id"]);
    let revisions: Vec<_> = events
        .iter()
        .map(|event| event["revision"].as_i64())
        .collect();
    if !revisions.is_sorted() {
        let what = format!("its events are out of order: {revisions:?}");
        return broken(Promise::InOrder, id, what);
    }
    let created = of("payment_link.created");
    if created != usize::from(!link["paymentIntentId"].is_null()) {
        let what = format!("its creation was told {created} times");
        return broken(Promise::InOrder, id, what);
    }
    let money = |value: &Value| value["value"].as_i64().unwrap_or(0);
    let total = |kind: &str, member: &str| -> i64 {
        let told = events.iter().filter(|event| event["type"] == kind);
        told.map(|event| money(&event[member])).sum()
    };
    let captured = total("payment_link.captured", "captured");
    let refunded = total("payment_link.refunded", "refunded");
    let is_paid = matches!(text(&link["status"]), "Captured" | "Refunded");
    let says = (
        money(&link["capturedAmount"]),
        money(&link["refundedAmount"]),
    );
    if is_certain && is_paid && (captured, refunded) != says {
        let what =
            format!("{says:?} was captured and refunded, and {captured} and {refunded} was told");
        return broken(Promise::InOrder, id, what);
    }
    Ok(())
}
