//! People who manage payments through the service: they capture, refund, reverse and cancel, and ask again until they
//! know what came of it. What Dojo has in the end has to be what they were told, and nothing twice.

use std::{
    cell::RefCell,
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

/// An operation that somebody wants: one idempotency key, one body, and what was answered to it.
pub struct Wish {
    key: String,
    link: String,
    intent: String,
    operation: &'static str,
    body: Value,
    outcome: RefCell<Option<Outcome>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    NotDone,
    /// The rules forbade it, so the key is free: the same request may be allowed later.
    NotPossible,
    /// Nobody could tell.
    Unconfirmed,
}

impl Wish {
    pub fn is(&self, operation: &str, outcome: Outcome) -> bool {
        self.operation == operation && *self.outcome.borrow() == Some(outcome)
    }

    /// Minor units.
    fn amount(&self) -> i64 {
        self.body["amount"]["value"].as_i64().unwrap_or_default()
    }

    /// Asks once. `None`: it is not known yet.
    async fn ask(&self, stage: &Stage, replica: &Replica) -> Result<Option<Outcome>> {
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
        let Ok(answer) = request.send().await else {
            return Ok(None);
        };
        let status = answer.status();
        let is_for_now = answer.headers().contains_key("retry-after");
        let Ok(body) = answer.json::<Value>().await else {
            return Ok(None);
        };
        let kind = text(&body["type"]).rsplit(':').next().unwrap_or_default();
        let outcome = match (status.as_u16(), kind) {
            (200 | 202, _) => Outcome::Done,
            (409, _) if is_for_now => return Ok(None),
            (401, _) if stage.has(Trouble::RotatedKeys) => return Ok(None),
            (409, "not-possible") => Outcome::NotPossible,
            (409, "refused-by-dojo" | "not-done") => Outcome::NotDone,
            (409, "outcome-unconfirmed") => Outcome::Unconfirmed,
            (
                409,
                "request-in-progress" | "operation-in-progress" | "refundable-amount-unclear",
            )
            | (429 | 503 | 504, _)
            | (502, "dojo-key-refused") => return Ok(None),
            _ => {
                let what = format!("answered {status} to {}: {body}", self.operation);
                return broken(Promise::Answers, &self.link, what);
            }
        };
        let known = self.outcome.replace(Some(outcome));
        match known {
            Some(known) if known != outcome && known != Outcome::NotPossible => {
                let what = format!(
                    "{} {} was answered {known:?}, and later {outcome:?}",
                    self.operation, self.key
                );
                broken(Promise::OneOperation, &self.link, what)
            }
            _ => Ok(Some(outcome)),
        }
    }

    /// Asks until there is an outcome, or until `patience` is over.
    async fn insist(
        &self,
        stage: &Stage,
        rng: &mut StdRng,
        patience: Duration,
    ) -> Result<Option<Outcome>> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(outcome) = self.ask(stage, stage.any_replica(rng)).await? {
                return Ok(Some(outcome));
            }
            sleep(Duration::from_millis(rng.random_range(150..500))).await;
        }
        Ok(None)
    }
}

/// A payment that somebody manages.
pub struct Payment<'a> {
    pub link: &'a str,
    pub intent: &'a str,
    /// Minor units.
    pub amount: i64,
    pub currency: &'a str,
}

/// Does what operators do to a payment, each of it asked for once or several times at once. A `Manual` one is captured
/// first.
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
            return wish(stage, books, payment, vec![("reversal", json!({}))], rng).await;
        }
        wish(stage, books, payment, vec![("captures", money(half))], rng).await?;
        if payment.amount > half {
            let rest = money(payment.amount - half);
            wish(stage, books, payment, vec![("captures", rest)], rng).await?;
        }
    }
    match rng.random_range(0..4) {
        0 => wish(stage, books, payment, vec![("reversal", json!({}))], rng).await,
        // More than there is, all at the same time.
        1 | 2 => {
            let part = (payment.amount / 4).max(1);
            let refunds = (0..6).map(|_| ("refunds", money(part))).collect();
            if !stage.has(Trouble::PortalRefunds) {
                return wish(stage, books, payment, refunds, rng).await;
            }
            let mut theirs = StdRng::from_rng(rng);
            let portal = in_portal(stage, books, payment, &mut theirs);
            let ours = async {
                sleep(Duration::from_millis(rng.random_range(0..6000))).await;
                wish(stage, books, payment, refunds, rng).await
            };
            tokio::try_join!(portal, ours).map(drop)
        }
        _ => Ok(()),
    }
}

/// Refunds parts in Dojo's portal, where nobody knows of ours.
async fn in_portal(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    rng: &mut StdRng,
) -> Result {
    for _ in 0..rng.random_range(1..=3) {
        sleep(Duration::from_millis(rng.random_range(0..3000))).await;
        let amount = rng.random_range(1..=(payment.amount / 3).max(1));
        let path = format!("payment-intents/{}/refund", payment.intent);
        if stage.dojo.control(&path, json!({"amount": amount})).await? {
            let refund = PortalRefund {
                at: OffsetDateTime::now_utc(),
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

/// Cancels a link that nobody has paid.
pub async fn cancel(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    rng: &mut StdRng,
) -> Result {
    wish(stage, books, payment, vec![("cancel", json!({}))], rng).await
}

async fn wish(
    stage: &Stage,
    books: &Books,
    payment: &Payment<'_>,
    wanted: Vec<(&'static str, Value)>,
    rng: &mut StdRng,
) -> Result {
    let mut asked = Vec::new();
    for (operation, body) in wanted {
        let number = books.wishes.borrow().len();
        let wish = Rc::new(Wish {
            key: format!("operation-{number}"),
            link: payment.link.to_owned(),
            intent: payment.intent.to_owned(),
            operation,
            body,
            outcome: RefCell::default(),
        });
        books.wishes.borrow_mut().push(Rc::clone(&wish));
        for _ in 0..rng.random_range(1..=2) {
            let (wish, mut rng) = (Rc::clone(&wish), StdRng::from_rng(rng));
            let patience = Duration::from_millis(rng.random_range(500..8000));
            asked.push(async move { wish.insist(stage, &mut rng, patience).await });
        }
    }
    for answer in join_all(asked).await {
        answer?;
    }
    Ok(())
}

/// Asks once more for everything, as somebody would who wants to know how all of it ended.
pub async fn ask_for_all(stage: &Stage, books: &Books, rng: &mut StdRng) -> Result {
    let wishes = books.wishes.borrow().clone();
    for some in wishes.chunks(8) {
        let asked = some.iter().map(|wish| {
            let mut rng = StdRng::from_rng(rng);
            async move {
                // What was not possible was never kept, so it would be asked for anew.
                if *wish.outcome.borrow() == Some(Outcome::NotPossible) {
                    return Ok(());
                }
                let patience = Duration::from_secs(40);
                match wish.insist(stage, &mut rng, patience).await? {
                    Some(_) => Ok(()),
                    None => broken(
                        Promise::OneOperation,
                        &wish.key,
                        format!("no outcome within {patience:?} of asking, though all is well"),
                    ),
                }
            }
        });
        for answer in join_all(asked).await {
            answer?;
        }
    }
    Ok(())
}

/// What was told to have been done is done at Dojo, as often as it was told, and what was not is not.
pub fn judge(books: &Books, intents: &[Value]) -> Result {
    let mut by_intent: HashMap<String, Vec<Rc<Wish>>> = HashMap::new();
    for wish in books.wishes.borrow().iter() {
        by_intent
            .entry(wish.intent.clone())
            .or_default()
            .push(Rc::clone(wish));
    }
    for intent in intents {
        let Some(wishes) = by_intent.get(text(&intent["id"])) else {
            continue;
        };
        let of = |operation: &str, outcome| {
            let amounts = wishes.iter().filter(|wish| wish.is(operation, outcome));
            amounts.map(|wish| wish.amount()).collect::<Vec<_>>()
        };
        let parts = intent["captures"].as_array().into_iter().flatten();
        let mut captured: Vec<_> = parts.filter_map(|one| one["amount"].as_i64()).collect();
        let mut told = of("captures", Outcome::Done);
        captured.sort_unstable();
        told.sort_unstable();
        if captured != told {
            let what = format!("Dojo has captured {captured:?}, and {told:?} was told");
            return broken(Promise::OneOperation, text(&intent["id"]), what);
        }
        let refunded = intent["refundedAmount"].as_i64().unwrap_or_default();
        let portal = books.portal_refunds.borrow();
        let portal = portal.get(text(&intent["id"])).into_iter().flatten();
        let portal: i64 = portal.map(|refund| refund.amount).sum();
        let least = portal + of("refunds", Outcome::Done).iter().sum::<i64>();
        let most = least + of("refunds", Outcome::Unconfirmed).iter().sum::<i64>();
        if !(least..=most).contains(&refunded) {
            let what = format!("Dojo has given back {refunded}, and {least} to {most} was told");
            return broken(Promise::OneOperation, text(&intent["id"]), what);
        }
        for (operation, status) in [("cancel", "Canceled"), ("reversal", "Reversed")] {
            let done = wishes.iter().any(|wish| wish.is(operation, Outcome::Done));
            if done && intent["status"] != status {
                let what = format!(
                    "{operation} was told to be done, and it is {}",
                    intent["status"]
                );
                return broken(Promise::OneOperation, text(&intent["id"]), what);
            }
        }
    }
    Ok(())
}

/// How long before a refund somebody may have given money back in the portal without the service having to know: it reads
/// the payment, and asks for the refund, within three time limits of a call.
const UNKNOWN_FOR: Duration = Duration::from_secs(4);

/// Dojo rejected none of our refunds for lack of funds.
///
/// One case can't be avoided. To send a lost refund again is how the service finds out what became of it, as long as what Dojo
/// shows as refunded is enough to include it. If others refunded that much, Dojo must reject a refund that it never made.
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
        let mut portal = portal.filter(|theirs| theirs.at < refund.at).peekable();
        let is_excused = if is_first {
            portal.any(|theirs| theirs.at >= refund.at - UNKNOWN_FOR)
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
            let what = format!("Dojo rejected a refund of {}", refund.amount);
            return broken(Promise::NeverTooMuch, refund.intent, what);
        }
    }
    Ok(())
}

/// A refund that the service requested from Dojo.
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
