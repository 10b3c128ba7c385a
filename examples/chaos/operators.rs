//! Operators, who manage payments through the service: they capture, refund, reverse and cancel, and retry until they know
//! the outcome. In the end, Dojo must have exactly what the service reported, and nothing twice.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, sleep};

use crate::{
    people::{Books, PortalRefund, text},
    promise::{Promise, broken},
    stage::{Replica, Result, Stage},
    trouble::Trouble,
};

/// An operation that an operator requests: one idempotency key, one body, and the reported outcome.
pub struct RequestedOperation {
    key: String,
    link: String,
    intent: String,
    operation: &'static str,
    body: Value,
    outcome: RefCell<Option<Outcome>>,
    /// Whether a request may have been saved without the operator learning of it, even if another one was not possible.
    is_in_doubt: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    NotDone,
    /// The rules forbid it. The key is free, and the same request may be allowed later.
    NotPossible,
    Unconfirmed,
}

impl RequestedOperation {
    pub fn is(&self, operation: &str, outcome: Outcome) -> bool {
        self.operation == operation && *self.outcome.borrow() == Some(outcome)
    }

    /// Minor units.
    fn amount(&self) -> i64 {
        self.body["amount"]["value"].as_i64().unwrap_or_default()
    }

    /// Requests it once. `None`: the outcome isn't known yet.
    async fn request(&self, stage: &Stage, replica: &Replica) -> Result<Option<Outcome>> {
        let outcome = self.try_to_request(stage, replica).await?;
        match outcome {
            None => self.is_in_doubt.set(true),
            // It says nothing about a request that was sent at the same time.
            Some(Outcome::NotPossible) => {}
            Some(_) => self.is_in_doubt.set(false),
        }
        Ok(outcome)
    }

    async fn try_to_request(&self, stage: &Stage, replica: &Replica) -> Result<Option<Outcome>> {
        let path = format!(
            "{}/v1/payment-links/{}/{}",
            replica.url, self.link, self.operation
        );
        let request = stage
            .http
            .post(path)
            .bearer_auth(stage.key())
            .header("idempotency-key", &self.key)
            .json(&self.body);
        let Ok(response) = request.send().await else {
            return Ok(None);
        };
        let status = response.status();
        let is_temporary = response.headers().contains_key("retry-after");
        let Ok(body) = response.json::<Value>().await else {
            return Ok(None);
        };
        let kind = text(&body["type"]).rsplit('#').next().unwrap_or_default();
        let outcome = match (status.as_u16(), kind) {
            (200 | 202, _) => Outcome::Done,
            (409, _) if is_temporary => return Ok(None),
            (401, _) if stage.has(Trouble::RotatedKeys) => return Ok(None),
            (409, "not-possible") => Outcome::NotPossible,
            (409, "rejected-by-dojo" | "not-done") => Outcome::NotDone,
            (409, "outcome-unconfirmed") => Outcome::Unconfirmed,
            (
                409,
                "request-in-progress" | "operation-in-progress" | "refundable-amount-unclear",
            )
            | (429 | 503 | 504, _)
            | (502, "dojo-key-rejected") => return Ok(None),
            _ => {
                let what = format!("{} returned {status}: {body}", self.operation);
                return broken(Promise::Answers, &self.link, what);
            }
        };
        let known = self.outcome.replace(Some(outcome));
        match known {
            Some(known) if known != outcome && known != Outcome::NotPossible => {
                let what = format!(
                    "{} {} was reported as {known:?}, and later as {outcome:?}",
                    self.operation, self.key
                );
                broken(Promise::OneOperation, &self.link, what)
            }
            _ => Ok(Some(outcome)),
        }
    }

    /// Retries until there is an outcome, or until `limit` is over.
    async fn retry(
        &self,
        stage: &Stage,
        rng: &mut StdRng,
        limit: Duration,
    ) -> Result<Option<Outcome>> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(outcome) = self.request(stage, stage.any_replica(rng)).await? {
                return Ok(Some(outcome));
            }
            sleep(Duration::from_millis(rng.random_range(150..500))).await;
        }
        Ok(None)
    }
}

/// A payment to manage.
pub struct Payment<'a> {
    pub link: &'a str,
    pub intent: &'a str,
    /// Minor units.
    pub amount: i64,
    pub currency: &'a str,
}

/// Performs random operations on a payment. Each is requested once, or twice at the same time. A payment with manual capture
/// is captured first.
pub async fn manage(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    is_manual: bool,
    rng: &mut StdRng,
) -> Result {
    let money = |value: i64| json!({"amount": {"value": value, "currencyCode": payment.currency}});
    let half = (payment.amount / 2).max(1);
    if is_manual {
        if rng.random_bool(0.2) {
            return request_all(stage, books, payment, vec![("reversal", json!({}))], rng).await;
        }
        request_all(stage, books, payment, vec![("captures", money(half))], rng).await?;
        if payment.amount > half {
            let rest = money(payment.amount - half);
            request_all(stage, books, payment, vec![("captures", rest)], rng).await?;
        }
    }
    match rng.random_range(0..4) {
        0 => request_all(stage, books, payment, vec![("reversal", json!({}))], rng).await,
        // More than there is to refund, all at the same time.
        1 | 2 => {
            let part = (payment.amount / 4).max(1);
            let refunds = (0..6).map(|_| ("refunds", money(part))).collect();
            if !stage.has(Trouble::PortalRefunds) {
                return request_all(stage, books, payment, refunds, rng).await;
            }
            let mut portal_rng = StdRng::from_rng(rng);
            let portal = refund_in_portal(stage, books, payment, &mut portal_rng);
            let ours = async {
                sleep(Duration::from_millis(rng.random_range(0..6000))).await;
                request_all(stage, books, payment, refunds, rng).await
            };
            tokio::try_join!(portal, ours).map(drop)
        }
        _ => Ok(()),
    }
}

/// Refunds parts of a payment in Dojo's portal, independently of our refunds.
async fn refund_in_portal(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    rng: &mut StdRng,
) -> Result {
    for _ in 0..rng.random_range(1..=3) {
        sleep(Duration::from_millis(rng.random_range(0..3000))).await;
        let amount = rng.random_range(1..=(payment.amount / 3).max(1));
        let path = format!("payment-intents/{}/refund", payment.intent);
        let requested_at = OffsetDateTime::now_utc();
        if stage.dojo.control(&path, json!({"amount": amount})).await? {
            let refund = PortalRefund {
                requested_at,
                done_at: OffsetDateTime::now_utc(),
                amount,
            };
            let mut refunds = books.portal_refunds.borrow_mut();
            refunds
                .entry(payment.intent.to_owned())
                .or_default()
                .push(refund);
        }
    }
    Ok(())
}

/// Cancels an unpaid link.
pub async fn cancel(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    rng: &mut StdRng,
) -> Result {
    request_all(stage, books, payment, vec![("cancel", json!({}))], rng).await
}

async fn request_all(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    operations: Vec<(&'static str, Value)>,
    rng: &mut StdRng,
) -> Result {
    let mut requests = Vec::new();
    for (name, body) in operations {
        let number = books.operations.borrow().len();
        let operation = Rc::new(RequestedOperation {
            key: format!("operation-{number}"),
            link: payment.link.to_owned(),
            intent: payment.intent.to_owned(),
            operation: name,
            body,
            outcome: RefCell::default(),
            is_in_doubt: Cell::default(),
        });
        books.operations.borrow_mut().push(Rc::clone(&operation));
        for _ in 0..rng.random_range(1..=2) {
            let (operation, mut rng) = (Rc::clone(&operation), StdRng::from_rng(rng));
            let limit = Duration::from_millis(rng.random_range(500..8000));
            requests.push(async move { operation.retry(stage, &mut rng, limit).await });
        }
    }
    for outcome in join_all(requests).await {
        outcome?;
    }
    Ok(())
}

/// Repeats every request, to learn the outcomes that are still unknown, and to check that known outcomes stay the same.
pub async fn ask_for_all(stage: &Stage, books: &Books, rng: &mut StdRng) -> Result {
    let operations = books.operations.borrow().clone();
    for some in operations.chunks(8) {
        let requests = some.iter().map(|operation| {
            let mut rng = StdRng::from_rng(rng);
            async move {
                // A request that was not possible was not saved, so this would be a new request.
                let is_not_possible = *operation.outcome.borrow() == Some(Outcome::NotPossible);
                if is_not_possible && !operation.is_in_doubt.get() {
                    return Ok(());
                }
                let limit = Duration::from_secs(40);
                match operation.retry(stage, &mut rng, limit).await? {
                    Some(_) => Ok(()),
                    None => broken(
                        Promise::OneOperation,
                        &operation.key,
                        format!("no outcome within {limit:?}, although there is no trouble"),
                    ),
                }
            }
        });
        for outcome in join_all(requests).await {
            outcome?;
        }
    }
    Ok(())
}

/// Dojo performed what the service reported as done, exactly as often as reported, and nothing else.
pub fn judge(books: &Books, intents: &[Value]) -> Result {
    let mut by_intent: HashMap<String, Vec<Rc<RequestedOperation>>> = HashMap::new();
    for operation in books.operations.borrow().iter() {
        by_intent
            .entry(operation.intent.clone())
            .or_default()
            .push(Rc::clone(operation));
    }
    for intent in intents {
        let Some(operations) = by_intent.get(text(&intent["id"])) else {
            continue;
        };
        let of = |operation: &str, outcome| {
            let amounts = operations.iter().filter(|one| one.is(operation, outcome));
            amounts.map(|one| one.amount()).collect::<Vec<_>>()
        };
        let parts = intent["captures"].as_array().into_iter().flatten();
        let mut captured: Vec<_> = parts.filter_map(|one| one["amount"].as_i64()).collect();
        let mut reported = of("captures", Outcome::Done);
        captured.sort_unstable();
        reported.sort_unstable();
        if captured != reported {
            let what = format!("Dojo has captured {captured:?}, and {reported:?} was reported");
            return broken(Promise::OneOperation, text(&intent["id"]), what);
        }
        let refunded = intent["refundedAmount"].as_i64().unwrap_or_default();
        let portal = books.portal_refunds.borrow();
        let portal = portal.get(text(&intent["id"])).into_iter().flatten();
        let portal: i64 = portal.map(|refund| refund.amount).sum();
        let least = portal + of("refunds", Outcome::Done).iter().sum::<i64>();
        let most = least + of("refunds", Outcome::Unconfirmed).iter().sum::<i64>();
        if !(least..=most).contains(&refunded) {
            let what = format!("Dojo has refunded {refunded}, and {least} to {most} was reported");
            return broken(Promise::OneOperation, text(&intent["id"]), what);
        }
        for (operation, status) in [("cancel", "Canceled"), ("reversal", "Reversed")] {
            let is_done = operations
                .iter()
                .any(|one| one.is(operation, Outcome::Done));
            if is_done && intent["status"] != status {
                let what = format!(
                    "{operation} was reported as done, and the status is {}",
                    intent["status"]
                );
                return broken(Promise::OneOperation, text(&intent["id"]), what);
            }
        }
    }
    Ok(())
}

/// For how long before a refund the service need not know of portal refunds: it reads the payment and sends the refund within
/// three time limits of a call.
const UNKNOWN_FOR: Duration = Duration::from_secs(4);

/// Dojo rejected none of our refunds for lack of funds.
///
/// One case can't be avoided. If what Dojo shows as refunded may include a lost refund, the service sends it again to find out.
/// If others refunded that much, Dojo must reject a refund that it never made.
pub fn never_too_much(books: &Books, requests: &[Value]) -> Result {
    let ours: Vec<_> = requests
        .iter()
        .filter_map(OurRefund::from_request)
        .collect();
    let mut keys = HashSet::new();
    let portal = books.portal_refunds.borrow();
    for refund in &ours {
        let is_first = keys.insert(refund.key);
        if !refund.is_rejected {
            continue;
        }
        let portal = portal.get(refund.intent).into_iter().flatten();
        let mut portal = portal
            .filter(|theirs| theirs.requested_at < refund.at)
            .peekable();
        let is_excused = if is_first {
            portal.any(|theirs| theirs.done_at >= refund.at - UNKNOWN_FOR)
        } else {
            // Without portal refunds all of ours fit. Those of ours that Dojo made count, too: the service may not know yet
            // that they are in what Dojo shows.
            let others: HashMap<_, _> = ours
                .iter()
                .filter(|other| other.is_made && other.intent == refund.intent)
                .filter(|other| other.at < refund.at && other.key != refund.key)
                .map(|other| (other.key, other.amount))
                .collect();
            portal.peek().is_some()
                && portal.map(|theirs| theirs.amount).sum::<i64>() + others.values().sum::<i64>()
                    >= refund.amount
        };
        if !is_excused {
            let all = ours.iter().filter(|one| one.intent == refund.intent);
            let what = format!(
                "Dojo rejected this refund (the first try: {is_first}): {refund:?}\n  All of ours: {:#?}\n  In the portal: {:#?}",
                all.collect::<Vec<_>>(),
                books.portal_refunds.borrow().get(refund.intent)
            );
            return broken(Promise::NeverTooMuch, refund.intent, what);
        }
    }
    Ok(())
}

/// A refund that the service requested from Dojo.
#[derive(Debug)]
struct OurRefund<'a> {
    key: &'a str,
    intent: &'a str,
    /// Minor units.
    amount: i64,
    at: OffsetDateTime,
    is_rejected: bool,
    /// Whether Dojo made it, as far as the request log shows.
    is_made: bool,
}

impl<'a> OurRefund<'a> {
    fn from_request(request: &'a Value) -> Option<Self> {
        let headers = &request["headers"];
        let is_ours = text(&headers["user-agent"]).starts_with("dojo-payment-links/");
        if request["operation"] != "refund" || request["method"] != "POST" || !is_ours {
            return None;
        }
        Some(Self {
            key: text(&headers["idempotencykey"]),
            intent: text(&request["path"]).split('/').nth(2)?,
            amount: request["body"]["amount"].as_i64()?,
            at: OffsetDateTime::parse(text(&request["at"]), &Rfc3339).ok()?,
            is_rejected: request["answered"] == 400 && request["fault"].is_null(),
            is_made: request["answered"] == 200
                || request["answered"] != 400 && text(&request["fault"]).ends_with("After"),
        })
    }
}
