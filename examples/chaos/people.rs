//! The people around the service: callers who request links and retry, customers who pay or don't, a merchant who cancels in
//! Dojo's portal, and readers of links.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    operators::{self, Payment, RequestedOperation},
    promise::{Promise, broken},
    stage::{Replica, Result, Stage},
    trouble::Trouble,
};

/// How many orders are placed in a second, on average.
const RATE: f64 = 8.0;

/// What the people did, and the responses they got.
#[derive(Default)]
pub struct Books {
    pub orders: RefCell<Vec<Rc<Order>>>,
    links: RefCell<Vec<String>>,
    pub requests: Cell<u64>,
    pub readings: Cell<u64>,
    pub lies: Cell<u64>,
    pub operations: RefCell<Vec<Rc<RequestedOperation>>>,
    /// What was refunded in Dojo's portal, by intent.
    pub portal_refunds: RefCell<HashMap<String, Vec<PortalRefund>>>,
}

/// A refund that was not requested from the service.
#[derive(Debug)]
pub struct PortalRefund {
    /// It was made between these two times.
    pub requested_at: OffsetDateTime,
    pub done_at: OffsetDateTime,
    /// Minor units.
    pub amount: i64,
}

/// A link that somebody requests: one idempotency key, one body, and the outcome.
pub struct Order {
    pub key: String,
    body: Value,
    outcome: RefCell<Option<Outcome>>,
    /// The link that a 504 named. The outcome must be this link's.
    named: RefCell<Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Link {
        id: String,
        intent: String,
    },
    Failed {
        id: String,
    },
    /// The order expired before the service received the first request.
    TooLate,
}

/// The result of one request.
enum Answer {
    Settled(Outcome),
    Again(Duration),
}

impl Order {
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }

    /// Sends one request.
    async fn ask(&self, stage: &Stage, replica: &Replica, books: &Books) -> Result<Answer> {
        books.requests.set(books.requests.get() + 1);
        let soon = Duration::from_millis(300);
        let request = stage
            .http
            .post(format!("{}/v1/payment-links", replica.url))
            .bearer_auth(stage.key())
            .header("idempotency-key", &self.key)
            .json(&self.body);
        let Ok(answer) = request.send().await else {
            return Ok(Answer::Again(soon));
        };
        let status = answer.status();
        let Ok(body) = answer.json::<Value>().await else {
            return Ok(Answer::Again(soon));
        };
        let kind = text(&body["type"]).rsplit('#').next().unwrap_or_default();
        let named = || text(&body["paymentLinkId"]).to_owned();
        let outcome = match (status.as_u16(), kind) {
            (201, _) => Outcome::Link {
                id: text(&body["id"]).to_owned(),
                intent: text(&body["paymentIntentId"]).to_owned(),
            },
            (422, "rejected-by-dojo") | (409, "not-created") => Outcome::Failed { id: named() },
            (422, "invalid-request") if self.expires() => Outcome::TooLate,
            (504, _) => {
                self.named.borrow_mut().get_or_insert_with(named);
                return Ok(Answer::Again(soon * 2));
            }
            (409, "request-in-progress") | (429 | 503, _) | (502, "dojo-key-rejected") => {
                return Ok(Answer::Again(soon));
            }
            (401, _) if stage.has(Trouble::RotatedKeys) => return Ok(Answer::Again(soon)),
            _ => {
                let what = format!("responded {status} to a valid request: {body}");
                return broken(Promise::Answers, &self.key, what);
            }
        };
        self.note(outcome, books)
    }

    fn note(&self, outcome: Outcome, books: &Books) -> Result<Answer> {
        let known = self.outcome.replace(Some(outcome.clone()));
        if let Some(known) = known.as_ref().filter(|known| **known != outcome) {
            let what = format!("was answered {known:?}, and later {outcome:?}");
            return broken(Promise::OneIntent, &self.key, what);
        }
        let id = match &outcome {
            Outcome::Link { id, .. } | Outcome::Failed { id } => Some(id),
            Outcome::TooLate => None,
        };
        if let Some(named) = self.named.borrow().as_ref()
            && Some(named) != id
        {
            let what = format!("a 504 named {named}, and the outcome is {outcome:?}");
            return broken(Promise::OneIntent, &self.key, what);
        }
        if let (Outcome::Link { id, .. }, None) = (&outcome, known) {
            books.links.borrow_mut().push(id.clone());
        }
        Ok(Answer::Settled(outcome))
    }

    fn expires(&self) -> bool {
        self.body.get("expireAt").is_some()
    }

    /// Retries until there is an outcome, or until `patience` is over, as a well-behaved caller does.
    async fn insist(
        &self,
        stage: &Stage,
        books: &Books,
        rng: &mut StdRng,
        patience: Duration,
    ) -> Result<Option<Outcome>> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            match self.ask(stage, stage.any_replica(rng), books).await? {
                Answer::Settled(outcome) => return Ok(Some(outcome)),
                Answer::Again(wait) => sleep(wait.mul_f64(rng.random_range(0.5..1.5))).await,
            }
        }
        Ok(None)
    }
}

/// Places orders until `until`. Returns when the last caller has an outcome or has given up.
pub async fn callers(stage: &Stage, books: &Books, mut rng: StdRng, until: Instant) -> Result {
    let mut under_way = FuturesUnordered::new();
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let order = Rc::new(order(number, &mut rng)?);
        books.orders.borrow_mut().push(Rc::clone(&order));
        under_way.push(story(
            stage,
            books,
            order,
            StdRng::from_rng(&mut rng),
            until,
        ));
        let next = sleep(Duration::from_secs_f64(rng.random_range(0.0..2.0 / RATE)));
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                Some(ended) = under_way.next() => ended?,
            }
        }
    }
    while let Some(ended) = under_way.next().await {
        ended?;
    }
    Ok(())
}

fn order(number: u32, rng: &mut StdRng) -> Result<Order> {
    let key = format!("order-{number}");
    let currency = if rng.random_bool(0.8) { "GBP" } else { "EUR" };
    let mut body = json!({
        "amount": {"value": rng.random_range(100..100_000), "currencyCode": currency},
        "reference": format!("Order {number}"),
        "metadata": {"order": key},
    });
    if rng.random_bool(0.2) {
        body["captureMode"] = json!("Manual");
        body["autoExpireAction"] = json!("Release");
    }
    if rng.random_bool(0.1) {
        let at = OffsetDateTime::now_utc() + Duration::from_secs(rng.random_range(3..20));
        body["expireAt"] = json!(at.format(&Rfc3339)?);
    }
    if rng.random_bool(0.3) {
        body["send"] = json!({"email": format!("{key}@example.com")});
        if body.get("expireAt").is_none() {
            body["reminders"] = json!([{"after": "P1D"}, {"beforeExpiry": "PT1M"}]);
        }
    }
    Ok(Order {
        key,
        body,
        outcome: RefCell::default(),
        named: RefCell::default(),
    })
}

/// One order, from the first request to the payment.
async fn story(
    stage: &Stage,
    books: &Books,
    order: Rc<Order>,
    mut rng: StdRng,
    until: Instant,
) -> Result {
    let left = until.saturating_duration_since(Instant::now());
    // Some callers give up early. Their orders are requested again at the end.
    let patience = if rng.random_bool(0.15) {
        Duration::from_millis(rng.random_range(100..1500))
    } else {
        left + Duration::from_secs(2)
    };
    // A double click, a queue that delivers twice, a retry that overtakes: copies of the request, on any replica.
    let copies = *[1, 1, 1, 2, 3].choose(&mut rng).unwrap_or(&1);
    let mut copies: Vec<StdRng> = (0..copies).map(|_| StdRng::from_rng(&mut rng)).collect();
    let asked = copies
        .iter_mut()
        .map(|rng| order.insist(stage, books, rng, patience));
    for answer in join_all(asked).await {
        answer?;
    }
    let Some(Outcome::Link { intent, id }) = order.outcome() else {
        return Ok(());
    };
    sleep(Duration::from_millis(rng.random_range(0..3000))).await;
    if rng.random_bool(0.4) {
        return managed(stage, books, &order, &id, &intent, &mut rng).await;
    }
    customer(stage, books, &order, &intent, &mut rng).await
}

/// A payment that is managed only through the service.
async fn managed(
    stage: &Stage,
    books: &Books,
    order: &Order,
    link: &str,
    intent: &str,
    rng: &mut StdRng,
) -> Result {
    let payment = Payment {
        link,
        intent,
        amount: order.body["amount"]["value"].as_i64().unwrap_or(1),
        currency: text(&order.body["amount"]["currencyCode"]),
    };
    if rng.random_bool(0.2) {
        return operators::cancel(stage, books, &payment, rng).await;
    }
    let paid = format!("payment-intents/{intent}/pay");
    if !stage.dojo.control(&paid, json!({})).await? {
        return Ok(());
    }
    let is_manual = order.body["captureMode"] == "Manual";
    operators::manage(stage, books, &payment, is_manual, rng).await
}

/// What happens to an intent at Dojo.
async fn customer(
    stage: &Stage,
    books: &Books,
    order: &Order,
    intent: &str,
    rng: &mut StdRng,
) -> Result {
    let dojo = &stage.dojo;
    let act = async |what: &str| {
        dojo.control(&format!("payment-intents/{intent}/{what}"), json!({}))
            .await
    };
    let amount = order.body["amount"]["value"].as_i64().unwrap_or(1);
    let mut pause = rng.random_range(0..1500);
    let mut rest = async || {
        pause = (pause * 7 + 311) % 1500;
        sleep(Duration::from_millis(pause)).await;
    };
    match rng.random_range(0..100) {
        0..50 => {
            for stumble in ["decline", "challenge"] {
                if rng.random_bool(0.15) {
                    act(stumble).await?;
                    rest().await;
                }
            }
            if !act("pay").await? {
                return Ok(());
            }
            rest().await;
            if order.body["captureMode"] == "Manual" && rng.random_bool(0.6) {
                let captured = json!({"amount": amount});
                dojo.by_hand(Method::POST, &format!("{intent}/captures"), captured)
                    .await;
                rest().await;
            }
            match rng.random_range(0..10) {
                0..2 => {
                    let part = rng.random_range(1..=amount);
                    let refund =
                        json!({"amount": if rng.random_bool(0.5) { amount } else { part }});
                    dojo.by_hand(Method::POST, &format!("{intent}/refunds"), refund)
                        .await;
                }
                2 => {
                    dojo.by_hand(Method::POST, &format!("{intent}/reversal"), json!({}))
                        .await;
                }
                _ => {}
            }
        }
        50..60 => drop(act("decline").await?),
        60..68 => drop(act("expire").await?),
        68..76 => dojo.by_hand(Method::DELETE, intent, Value::Null).await,
        _ => {}
    }
    // Signed, and false, as a bug at Dojo might cause. Only a stolen secret says "paid" (see `Trouble::Forgeries`).
    if rng.random_bool(0.1) {
        books.lies.set(books.lies.get() + 1);
        let word = *["Created", "Canceled", "Voided"]
            .choose(rng)
            .unwrap_or(&"Voided");
        let lie = json!({"paymentIntentId": intent, "status": word});
        dojo.control("webhooks/deliver", lie).await?;
    }
    Ok(())
}

/// Cancels young intents in Dojo's portal, including some that no link has yet.
pub async fn merchant(stage: &Stage, mut rng: StdRng, until: Instant) -> Result {
    while Instant::now() < until {
        sleep(Duration::from_millis(rng.random_range(1000..4000))).await;
        let intents = stage.dojo.look("payment-intents").await?;
        let young = &intents[intents.len().saturating_sub(5)..];
        if let Some(intent) = young.choose(&mut rng) {
            let id = text(&intent["id"]);
            stage.dojo.by_hand(Method::DELETE, id, Value::Null).await;
        }
    }
    Ok(())
}

/// Reads links, reconciles one now and then, and compares what the service says with what Dojo ever had.
pub async fn reader(stage: &Stage, books: &Books, mut rng: StdRng, until: Instant) -> Result {
    while Instant::now() < until {
        sleep(Duration::from_millis(rng.random_range(20..120))).await;
        let id = books.links.borrow().choose(&mut rng).cloned();
        let Some(id) = id else {
            continue;
        };
        let replica = stage.any_replica(&mut rng);
        let link = format!("{}/v1/payment-links/{id}", replica.url);
        let is_refresh = rng.random_bool(0.1);
        let request = if is_refresh {
            stage.http.post(format!("{link}/refresh"))
        } else {
            stage.http.get(link)
        };
        let Ok(answer) = request.bearer_auth(stage.key()).send().await else {
            continue;
        };
        let status = answer.status();
        let Ok(link) = answer.json::<Value>().await else {
            continue;
        };
        match status {
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::BAD_GATEWAY
            | StatusCode::TOO_MANY_REQUESTS => continue,
            StatusCode::UNAUTHORIZED if stage.has(Trouble::RotatedKeys) => continue,
            // Conflicting responses from Dojo stay ambiguous for a while.
            StatusCode::CONFLICT if is_refresh => continue,
            status => {
                let what = format!("responded {status} to a reader: {link}");
                return broken(Promise::Answers, id, what);
            }
        }
        books.readings.set(books.readings.get() + 1);
        truthful(stage, &id, &link).await?;
    }
    Ok(())
}

/// Checks that a link says nothing that was never true at Dojo. Dojo is read after the service: what wasn't true there by
/// then, the service couldn't know.
async fn truthful(stage: &Stage, id: &str, link: &Value) -> Result {
    let told = text(&link["status"]);
    let confirmed = link["confirmed"] == true && !matches!(told, "Pending" | "Failed");
    let paid = matches!(told, "Authorized" | "Captured");
    // A forged webhook moves a link, which is not confirmed then.
    let is_claimed = paid && !stage.has(Trouble::Forgeries);
    let captured = link["capturedAmount"]["value"].as_i64().unwrap_or(0);
    if !(confirmed || is_claimed || captured > 0) {
        return Ok(());
    }
    let intents = format!("payment-intents?metadata.paymentLinkId={id}");
    let intents = stage.dojo.look(&intents).await?;
    let mine = intents
        .iter()
        .find(|intent| intent["id"] == link["paymentIntentId"]);
    let ever_was = |status| mine.is_some_and(|intent| ever_was(intent, status));
    if (confirmed || is_claimed) && !ever_was(told) {
        let promise = if paid {
            Promise::NeverPaidBefore
        } else {
            Promise::Confirmed
        };
        let what = format!("read as {told} while Dojo has {mine:?}");
        return broken(promise, id, what);
    }
    if captured > 0 && !ever_was("Captured") {
        let what = format!("read with {captured} captured while Dojo has {mine:?}");
        return broken(Promise::NeverPaidBefore, id, what);
    }
    Ok(())
}

/// Whether an intent is or has been in this status, according to its history.
fn ever_was(intent: &Value, status: &str) -> bool {
    let entries = |name: &str| intent[name].as_array().into_iter().flatten();
    status == "Created"
        || intent["status"] == status
        || entries("paymentEvents").any(|event| event["eventType"] == status)
        || (status == "Captured" && entries("captures").next().is_some())
}

/// Sends the request for every order once more, to learn the outcome of all of them.
pub async fn ask_for_all(stage: &Stage, books: &Books, mut rng: StdRng) -> Result {
    let orders = books.orders.borrow().clone();
    let asked = orders.iter().map(|order| {
        let mut rng = StdRng::from_rng(&mut rng);
        async move {
            let patience = Duration::from_secs(40);
            match order.insist(stage, books, &mut rng, patience).await? {
                Some(_) => Ok(()),
                None => broken(
                    Promise::OneIntent,
                    &order.key,
                    format!(
                        "no outcome within {patience:?} of retrying, although there is no trouble"
                    ),
                ),
            }
        }
    });
    let asked = futures_util::stream::iter(asked).buffer_unordered(8);
    tokio::pin!(asked);
    let all = async {
        while let Some(answer) = asked.next().await {
            answer?;
        }
        Ok(())
    };
    timeout(Duration::from_mins(2), all)
        .await
        .map_err(|_| "requesting all orders took too long")?
}

/// A JSON string's text; empty for anything else.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
