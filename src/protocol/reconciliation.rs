//! Reconciliation: reads a link's intent from Dojo and updates the link to match it. This makes every link converge on
//! Dojo's state, whether its webhooks arrive on time, late or never.

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
const PAGES_PER_REQUEST: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    /// The response was not accepted. The link is due to be reconciled again.
    Retry,
}

/// The result of a read.
struct Read {
    outcome: Outcome,
    /// The status that Dojo reported, if this version knows it.
    reported: Option<Status>,
    /// Whether a search for a surplus intent was completed, or was not necessary.
    searched: bool,
}

/// Reconciles a link for a caller and returns its new state. `None` if there is no such link.
///
/// The link is confirmed only if Dojo reported its status during this call. A link without an intent is returned unchanged.
pub async fn refresh(
    context: &Context,
    id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<PaymentLink>, Error> {
    let refreshed = refresh_and_search(context, id, cause).await?;
    Ok(refreshed.map(|(link, _)| link))
}

/// As [`refresh`]. Also returns whether all surplus intents of the link are known.
pub(super) async fn refresh_and_search(
    context: &Context,
    id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<(PaymentLink, bool)>, Error> {
    let read = match store::reconciliation::find(&context.pool, id).await? {
        Some(snapshot) => Some(read_and_search(context, &snapshot, cause).await?),
        None => None,
    };
    let reported = read.as_ref().and_then(|read| read.reported);
    let searched = read.is_some_and(|read| read.searched);
    let link = store::links::find(&context.pool, id).await?;
    Ok(link.map(|link| {
        let confirmed = link.confirmed && reported == Some(link.status);
        (PaymentLink { confirmed, ..link }, searched)
    }))
}

/// Reconciles a link while a caller waits, then searches for a surplus intent if there may be one.
pub async fn reconcile_for_caller(
    context: &Context,
    snapshot: &LinkSnapshot,
    cause: &Cause,
) -> Result<Outcome, Error> {
    Ok(read_and_search(context, snapshot, cause).await?.outcome)
}

/// Reconciles a link in a background job, which searches for surplus intents separately.
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
    let mut read = read(context, snapshot, cause).await?;
    // This comes after the response is stored, because a failed search must not prevent a payment from being recorded.
    for mut search in SurplusSearch::of(vec![snapshot.clone()]) {
        let found = search.run(context, PAGES_PER_REQUEST, || ready(())).await;
        if matches!(found, Ok(true)) {
            continue;
        }
        let error = found.err().map(|error| causes(&error).to_string());
        warn!(
            link_id = %snapshot.link.id, error,
            "the search for a surplus intent was not completed; a background job will repeat it"
        );
        // The background job must repeat the search, no matter how often callers reconcile the link in the meantime.
        store::reconciliation::keep_due(&context.pool, snapshot).await?;
        read.searched = false;
    }
    Ok(read)
}

/// Reads a link's intent and stores the result.
async fn read(context: &Context, snapshot: &LinkSnapshot, cause: &Cause) -> Result<Read, Error> {
    let Some(intent) = context
        .account
        .client
        .payment_intent(&snapshot.payment_intent_id, Some(snapshot.link.id))
        .await?
    else {
        error!(
            link_id = %snapshot.link.id, payment_intent_id = snapshot.payment_intent_id,
            "Dojo does not know the intent of a link; does the API key belong to another account?"
        );
        metrics::counter!("intents_missing_total").increment(1);
        let wait = Duration::from_mins(5);
        store::reconciliation::record_unknown(&context.pool, snapshot.link.id, wait, cause).await?;
        return Ok(Read {
            outcome: Outcome::Retry,
            reported: None,
            searched: true,
        });
    };
    Ok(Read {
        outcome: store_response(context, snapshot, &intent, cause).await?,
        reported: intent.known_status(),
        searched: true,
    })
}

/// Applies the rules to a response and stores the result.
async fn store_response(
    context: &Context,
    snapshot: &LinkSnapshot,
    intent: &PaymentIntent,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let Context { pool, limits, .. } = context;
    let link = &snapshot.link;
    if link.erased_at.is_some() {
        // An operation since then may have brought personal data back. Its outcome has made the link due, and the link
        // remains due if this fails.
        store::erasure::erase_again(pool, link.id, &context.personal_metadata).await?;
    }
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
                "Dojo's response conflicts with the stored state; it is accepted only if Dojo keeps reporting it"
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
            return Ok(Outcome::Retry);
        }
    };
    let next = next(context, snapshot, intent, status);
    let applied =
        store::reconciliation::apply(pool, snapshot, intent, status, next, limits.window, cause)
            .await?;
    let Some(Applied { changed, mismatch }) = applied else {
        return Ok(Outcome::Retry);
    };
    if intent.known_status().is_none() {
        warn!(link_id = %link.id, reported = intent.status, "Dojo reports a status that this version does not know");
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

/// How long to wait before the next reconciliation. `None` if there is no next one.
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
    let expire_at = intent.expire_at.or(link.expire_at);
    // Neither an expiry in the past nor that of a paid link is a reason to reconcile soon.
    let until_expiry = expire_at
        .filter(|_| status == Status::Created)
        .and_then(|at| Duration::try_from(at - now).ok());
    // A surplus intent may appear after the link has reached a final status.
    let late = || {
        let sent_until = snapshot.sent_until.filter(|_| snapshot.creation_retried)?;
        context.limits.window.late_check(since(sent_until))
    };
    // Such a response is accepted, because Dojo keeps sending it or no other is known. It may still be wrong, so it is
    // checked again soon, and less often the longer it stands.
    let is_doubtful = intent.known_status().is_none()
        || snapshot.refunded_amount(intent) < snapshot.succeeded_refunds;
    let recheck = is_doubtful.then(|| context.limits.window.doubt_recheck(since(link.updated_at)));
    [
        next_reconciliation(status, money_left, age, until_expiry).or_else(late),
        recheck,
    ]
    .into_iter()
    .flatten()
    .min()
}

/// How many due links justify the call that reads one page of search results.
const LINKS_PER_PAGE: usize = 10;

/// Reconciles many links with few calls: searches Dojo for the intents created at about the same time, page by page. Returns
/// the remaining links, which must be read one by one.
///
/// Search may lag behind, so a result from it is used only if nothing makes it doubtful.
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
        // What a webhook has just reported may already be in the intent, but not yet in the search results.
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
