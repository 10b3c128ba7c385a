//! Looking at a link's intent at Dojo, and writing down what is found: what makes every link converge on Dojo's
//! truth, whatever webhooks came, came late, or never came.

use std::{collections::HashMap, future::ready, time::Duration};

use tracing::{error, info, warn};

use super::{Context, Error, adoption::report_mismatch, creation_recovery};
use crate::{
    dojo::{PaymentIntent, Window},
    payment_link::{
        PaymentLink, PaymentLinkId, SettlementWindow, Status,
        reconciliation::{Reading, next_look, pause_in_conflict, reconcile},
        timeline::Cause,
    },
    store::{
        self,
        reconciliation::{Applied, LinkSnapshot},
    },
    telemetry::causes,
};

/// How many pages of a search to read for a caller, who waits for it: 500 intents around the time of a link's creation.
const CALLERS_PAGES: usize = 5;

/// What a look at Dojo came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What Dojo answered is what is held now.
    Settled,
    /// The answer could not be taken; the link is to be looked at again.
    Again,
}

/// Asks Dojo about one link for a caller, and returns the link as it then is. `None` if there is no such link.
///
/// The link is confirmed only if Dojo said so in this very call, whatever it said in others. One without an intent is
/// returned as it is.
pub async fn refresh(
    context: &Context,
    id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<PaymentLink>, Error> {
    let answered = match store::reconciliation::find(&context.pool, id).await? {
        Some(snapshot) => ask(context, &snapshot, cause).await?.1,
        None => None,
    };
    let link = store::links::find(&context.pool, id).await?;
    Ok(link.map(|link| PaymentLink {
        confirmed: link.confirmed && answered == Some(link.status),
        ..link
    }))
}

/// Asks Dojo about one link and writes what it answers; then searches for a second intent, if there may be one.
pub async fn look(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let (outcome, _) = ask(context, snapshot, cause).await?;
    Ok(outcome)
}

/// The same, with the status that Dojo answered, if it is one that we know.
async fn ask(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<(Outcome, Option<Status>), Error> {
    let answered = read_intent(context, snapshot, cause).await?;
    // After what was found is written: a search that fails must not keep a payment from being told. The next look
    // searches again.
    if snapshot.asked_again {
        let is_callers = matches!(cause, Cause::Request { .. });
        let pages = if is_callers {
            CALLERS_PAGES
        } else {
            creation_recovery::PAGES
        };
        let links = vec![snapshot.clone()];
        if let Err(error) =
            creation_recovery::find_surplus(context, links, pages, || ready(())).await
        {
            let link_id = snapshot.link.id;
            warn!(%link_id, error = %causes(&error), "not searched for a second intent to the end");
            if is_callers {
                // The background reads the rest, however often callers ask.
                store::reconciliation::keep_due(&context.pool, snapshot).await?;
            }
        }
    }
    Ok(answered)
}

/// Asks Dojo about one link and writes what it answers. Parameters as for [`look`].
pub async fn read(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let (outcome, _) = read_intent(context, snapshot, cause).await?;
    Ok(outcome)
}

async fn read_intent(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<(Outcome, Option<Status>), Error> {
    let Some(intent) = context
        .account
        .client
        .payment_intent(&snapshot.payment_intent_id, Some(snapshot.link.id))
        .await?
    else {
        error!(
            link_id = %snapshot.link.id, payment_intent_id = snapshot.payment_intent_id,
            "Dojo does not know the intent of a link; is the account's API key that of another one?"
        );
        metrics::counter!("intents_missing_total").increment(1);
        store::reconciliation::look_again(&context.pool, snapshot.link.id, Duration::from_mins(5))
            .await?;
        return Ok((Outcome::Again, None));
    };
    let outcome = take(context, snapshot, &intent, cause).await?;
    Ok((outcome, intent.known_status()))
}

/// Weighs an answer by the rules and writes what follows.
async fn take(
    context: &Context,
    snapshot: &LinkSnapshot,
    intent: &PaymentIntent,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let Context { pool, limits, .. } = context;
    let window = limits.window;
    let link = &snapshot.link;
    let reading = reconcile(
        snapshot.held,
        intent.known_status(),
        intent.updated_at,
        window,
    );
    let status = match reading {
        Reading::Accepted(status) => status,
        Reading::Conflicting(dispute) => {
            warn!(
                link_id = %link.id, held = link.status.as_str(), answered = intent.status, reason = dispute.name(),
                "Dojo's answer disagrees with what is known; it counts if it stands"
            );
            metrics::counter!("conflicting_responses_total", "reason" => dispute.name())
                .increment(1);
            let wait = pause_in_conflict(snapshot.held.disputed_for, window);
            store::reconciliation::dispute(pool, snapshot, dispute, &intent.status, wait, cause)
                .await?;
            return Ok(Outcome::Again);
        }
    };
    let next = next(snapshot, intent, status, window);
    let applied =
        store::reconciliation::apply(pool, snapshot, intent, status, next, window, cause).await?;
    let Some(Applied { changed, mismatch }) = applied else {
        return Ok(Outcome::Again);
    };
    if intent.known_status().is_none() {
        warn!(link_id = %link.id, reported = intent.status, "Dojo reports a status that is not known here");
    }
    if mismatch {
        report_mismatch(link, intent);
    }
    if changed {
        info!(
            link_id = %link.id, before = link.status.as_str(), after = status.as_str(),
            "payment link brought up to Dojo's state"
        );
    }
    Ok(Outcome::Settled)
}

fn next(
    snapshot: &LinkSnapshot,
    intent: &PaymentIntent,
    status: Status,
    window: SettlementWindow,
) -> Option<Duration> {
    let now = snapshot.now;
    let since = |at| Duration::try_from(now - at).unwrap_or_default();
    let link = &snapshot.link;
    let age = match status {
        Status::Captured | Status::Refunded if link.status == status => since(link.updated_at),
        Status::Captured | Status::Refunded => Duration::ZERO,
        _ => since(link.created_at),
    };
    let money_left = snapshot.refunded_amount(intent) < snapshot.captured_amount(intent);
    let expire_at = intent.expire_at.or(link.terms.expire_at);
    // An expiry that is past tells no time to look any more, and one of a paid link none at all.
    let left = expire_at
        .filter(|_| status == Status::Created)
        .and_then(|at| Duration::try_from(at - now).ok());
    // A second intent may come to light when the link itself is at its end.
    let late = || {
        let asked_until = snapshot.asked_until.filter(|_| snapshot.asked_again)?;
        window.late_check(since(asked_until))
    };
    next_look(status, money_left, age, left).or_else(late)
}

/// How many links a page of search has to stand for to be worth its call.
const LINKS_A_PAGE: usize = 10;

/// Looks at many links in few calls: reads the intents of their time from Dojo's search, page by page, and
/// settles what it finds there. Returns the links that are left, to be asked about one by one.
///
/// Search may lag behind, so nothing but a plain acceptance counts that comes from it.
pub async fn sweep(context: &Context, all: Vec<LinkSnapshot>) -> Result<Vec<LinkSnapshot>, Error> {
    let pages = all.len() / LINKS_A_PAGE;
    let (Some(first), Some(last)) = (
        all.iter().map(|snapshot| snapshot.link.created_at).min(),
        all.iter().map(|snapshot| snapshot.link.created_at).max(),
    ) else {
        return Ok(all);
    };
    if pages == 0 {
        return Ok(all);
    }
    let margin = time::Duration::minutes(5);
    let window = Window {
        start: first - margin,
        end: last + margin,
    };
    let mut wanted: HashMap<_, _> = all
        .into_iter()
        .map(|snapshot| (snapshot.payment_intent_id.clone(), snapshot))
        .collect();
    let mut found = Vec::new();
    context
        .account
        .client
        .search(window, pages, |intent| {
            if let Some(snapshot) = wanted.remove(&intent.id) {
                found.push((snapshot, intent));
            }
        })
        .await?;
    let mut left: Vec<_> = wanted.into_values().collect();
    for (mut snapshot, intent) in found {
        let reading = reconcile(
            snapshot.held,
            intent.known_status(),
            intent.updated_at,
            context.limits.window,
        );
        // What a webhook has just made due may have reached the intent and not the search.
        let quiet = snapshot
            .link
            .synced_at
            .is_some_and(|synced_at| synced_at >= snapshot.link.updated_at);
        // Search may lag for longer than a dispute lasts.
        let disputed = snapshot.held.disputed_for.is_some();
        let stranger = intent.is_of_another_link(snapshot.link.id);
        let plain = quiet && !snapshot.asked_again && !disputed && !stranger;
        if plain && matches!(reading, Reading::Accepted(_)) {
            snapshot.from_search = true;
            take(context, &snapshot, &intent, &Cause::Reconciliation).await?;
        } else {
            left.push(snapshot);
        }
    }
    Ok(left)
}
