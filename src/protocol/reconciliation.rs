//! Reconciliation: reads a link's intent from Dojo and brings the link to Dojo's state. This is what makes every link
//! converge on the truth, whether its webhooks arrived, arrived late, or never arrived.

use std::{collections::HashMap, future::ready, time::Duration};

use tracing::{error, info, warn};

use super::{Context, Error, adoption::report_mismatch, intent_search::SurplusSearch};
use crate::{
    dojo::{PaymentIntent, Window},
    payment_link::{
        PaymentLink, PaymentLinkId, Status,
        reconciliation::{Decision, conflict_recheck, next_reconciliation, reconcile},
        timeline::Cause,
    },
    store::{
        self,
        reconciliation::{Applied, LinkSnapshot},
    },
    telemetry::causes,
};

/// How many pages of a search to read while a caller waits for it: 500 intents around the time of a link's creation.
const CALLERS_PAGES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Dojo's response is what is stored now.
    Accepted,
    /// The response was not accepted. The link is due to be reconciled again.
    Again,
}

/// What a read came to.
struct Read {
    outcome: Outcome,
    /// The status that Dojo reported, if it is one that is known here.
    reported: Option<Status>,
}

/// Reconciles a link for a caller and returns it as it then is. `None` if there is no such link.
///
/// The link is confirmed only if Dojo reported its status in this very call. A link without an intent is returned as it is.
pub async fn refresh(
    context: &Context,
    id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<PaymentLink>, Error> {
    let reported = match store::reconciliation::find(&context.pool, id).await? {
        Some(snapshot) => read_and_search(context, &snapshot, cause).await?.reported,
        None => None,
    };
    let link = store::links::find(&context.pool, id).await?;
    Ok(link.map(|link| PaymentLink {
        confirmed: link.confirmed && reported == Some(link.status),
        ..link
    }))
}

/// Reconciles a link while a caller waits, then searches for a second intent if there may be one.
pub async fn reconcile_for_caller(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<Outcome, Error> {
    Ok(read_and_search(context, snapshot, cause).await?.outcome)
}

/// Reconciles a link in the background, which searches for second intents itself.
pub async fn reconcile_due(context: &Context, snapshot: &LinkSnapshot) -> Result<Outcome, Error> {
    Ok(read(context, snapshot, &Cause::Reconciliation)
        .await?
        .outcome)
}

async fn read_and_search(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<Read, Error> {
    let read = read(context, snapshot, cause).await?;
    // Only now that the response is stored: a search that fails must not keep a payment from being recorded.
    for mut search in SurplusSearch::of(vec![snapshot.clone()]) {
        let found = search.run(context, CALLERS_PAGES, || ready(())).await;
        if matches!(found, Ok(true)) {
            continue;
        }
        let error = found.err().map(|error| causes(&error).to_string());
        warn!(
            link_id = %snapshot.link.id, error,
            "the search for a second intent was not completed; the background repeats it"
        );
        // However often callers reconcile the link meanwhile.
        store::reconciliation::keep_due(&context.pool, snapshot).await?;
    }
    Ok(read)
}

/// Reads a link's intent and stores what follows from the response.
async fn read(context: &Context, snapshot: &LinkSnapshot, cause: &Cause) -> Result<Read, Error> {
    let Some(intent) = context
        .account
        .client
        .payment_intent(&snapshot.payment_intent_id, Some(snapshot.link.id))
        .await?
    else {
        error!(
            link_id = %snapshot.link.id, payment_intent_id = snapshot.payment_intent_id,
            "Dojo doesn't know the intent of a link; does the API key belong to another account?"
        );
        metrics::counter!("intents_missing_total").increment(1);
        let wait = Duration::from_mins(5);
        store::reconciliation::release(&context.pool, snapshot.link.id, wait).await?;
        return Ok(Read {
            outcome: Outcome::Again,
            reported: None,
        });
    };
    Ok(Read {
        outcome: store_response(context, snapshot, &intent, cause).await?,
        reported: intent.known_status(),
    })
}

/// Decides about a response by the rules and stores what follows.
async fn store_response(
    context: &Context,
    snapshot: &LinkSnapshot,
    intent: &PaymentIntent,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let Context { pool, limits, .. } = context;
    let link = &snapshot.link;
    let decision = reconcile(
        snapshot.stored,
        intent.known_status(),
        intent.updated_at,
        limits.window,
    );
    let status = match decision {
        Decision::Accept(status) => status,
        Decision::Conflict(conflict) => {
            warn!(
                link_id = %link.id, stored = link.status.as_str(), reported = intent.status, reason = conflict.name(),
                "Dojo's response conflicts with what is stored; it is accepted if Dojo stands by it"
            );
            metrics::counter!("conflicting_responses_total", "reason" => conflict.name())
                .increment(1);
            let wait = conflict_recheck(snapshot.stored.conflicting_for, limits.window);
            store::reconciliation::record_conflict(
                pool,
                snapshot,
                conflict,
                &intent.status,
                wait,
                cause,
            )
            .await?;
            return Ok(Outcome::Again);
        }
    };
    let next = next(context, snapshot, intent, status);
    let applied =
        store::reconciliation::apply(pool, snapshot, intent, status, next, limits.window, cause)
            .await?;
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
            "payment link reconciled"
        );
    }
    Ok(Outcome::Accepted)
}

/// How long to wait before the next reconciliation; `None`: no more.
fn next(
    context: &Context,
    snapshot: &LinkSnapshot,
    intent: &PaymentIntent,
    status: Status,
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
    // An expiry in the past is no reason to reconcile soon, nor is that of a paid link.
    let until_expiry = expire_at
        .filter(|_| status == Status::Created)
        .and_then(|at| Duration::try_from(at - now).ok());
    // A second intent may appear after the link has reached a final status.
    let late = || {
        let asked_until = snapshot.asked_until.filter(|_| snapshot.creation_retried)?;
        context.limits.window.late_check(since(asked_until))
    };
    next_reconciliation(status, money_left, age, until_expiry).or_else(late)
}

/// How many links a page of search must stand for to be worth its call.
const LINKS_PER_PAGE: usize = 10;

/// Reconciles many links in few calls: reads the intents of their time from Dojo's search, page by page. Returns the links
/// that are left, to be read one by one.
///
/// Search may lag behind, so a response from it only counts if it is accepted without any doubt.
pub async fn sweep(context: &Context, all: Vec<LinkSnapshot>) -> Result<Vec<LinkSnapshot>, Error> {
    let pages = all.len() / LINKS_PER_PAGE;
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
    let mut missing: HashMap<_, _> = all
        .into_iter()
        .map(|snapshot| (snapshot.payment_intent_id.clone(), snapshot))
        .collect();
    let mut found = Vec::new();
    context
        .account
        .client
        .search(window, pages, |intent| {
            if let Some(snapshot) = missing.remove(&intent.id) {
                found.push((snapshot, intent));
            }
        })
        .await?;
    let mut left: Vec<_> = missing.into_values().collect();
    for (mut snapshot, intent) in found {
        let decision = reconcile(
            snapshot.stored,
            intent.known_status(),
            intent.updated_at,
            context.limits.window,
        );
        // The intent may already show what a webhook has just reported when search doesn't show it yet.
        let is_quiet = snapshot
            .link
            .synced_at
            .is_some_and(|synced_at| synced_at >= snapshot.link.updated_at);
        // Search may lag for longer than a conflict lasts.
        let is_conflicting = snapshot.stored.conflicting_for.is_some();
        let is_of_another_link = intent.is_of_another_link(snapshot.link.id);
        let is_doubtful =
            !is_quiet || snapshot.creation_retried || is_conflicting || is_of_another_link;
        if !is_doubtful && matches!(decision, Decision::Accept(_)) {
            snapshot.from_search = true;
            store_response(context, &snapshot, &intent, &Cause::Reconciliation).await?;
        } else {
            left.push(snapshot);
        }
    }
    Ok(left)
}
