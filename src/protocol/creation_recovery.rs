//! Finding out what became of a creation whose answer was lost, and seeing it through.
//!
//! The link's id stands in the metadata of every intent that was ever asked for on its behalf, so a search over
//! the time in which such an intent can lie answers the question. Only when none can come to light any more is
//! the intent created again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tracing::{debug, info, warn};

use super::{Context, Error, adoption::adopt_intent};
use crate::{
    dojo::{CreatePaymentIntent, PaymentIntent, Window},
    payment_link::{
        Failure, FailureKind, PaymentLinkId,
        creation_recovery::{Found, Step, next_step},
        timeline::Cause,
    },
    store::{
        self, PgPool,
        creation::{Retry, Unsettled},
        reconciliation::LinkSnapshot,
    },
};

/// How many pages of a search for second intents to read: 10,000 intents around the time of a creation. Other work of the
/// round waits for it.
pub const PAGES: usize = 100;

/// How many pages of a search to read for all claimed links of a window: a million intents. It is there for a search that
/// never ends; reading that many takes minutes, and the links are held meanwhile.
const SHARED_PAGES: usize = 10_000;

/// How many times in a row to try for a page before what was read up to it is lost.
const TRIES_A_PAGE: u32 = 4;

/// A claimed link, and what a search for its intents found.
#[derive(Debug, Clone)]
pub struct Searched {
    /// The link.
    pub unsettled: Unsettled,
    /// Every intent at Dojo that names it.
    pub found: Vec<PaymentIntent>,
}

impl From<Unsettled> for Searched {
    /// Before the search.
    fn from(unsettled: Unsettled) -> Self {
        Self {
            unsettled,
            found: Vec::new(),
        }
    }
}

/// What a search for the intents of several links came to.
#[derive(Debug, Default)]
pub struct Search {
    /// The links whose intents are known now.
    pub searched: Vec<Searched>,
    /// The links of which nothing is known.
    pub unsearched: Vec<Unsettled>,
    /// Why there are such.
    pub trouble: Option<Error>,
}

/// Searches Dojo for the intents of claimed links. Links that were asked for at about the same time share one scan.
///
/// The scan goes on for as long as it takes to read all intents of that time, and renews the leases meanwhile: only a
/// complete scan proves that there is no intent. `turn` is awaited before each call.
pub async fn search_all<F: Future<Output = ()> + Send>(
    context: &Context,
    claimed: Vec<Unsettled>,
    turn: impl Fn() -> F + Send + Sync,
) -> Search {
    let mut search = Search::default();
    for mut group in groups(claimed, |link| link.created_at) {
        // Dojo or the database is in trouble; a scan over another time would not fare better.
        if matches!(search.trouble, Some(Error::Dojo(_) | Error::Store(_))) {
            search.unsearched.append(&mut group);
            continue;
        }
        let mut found: HashMap<_, Vec<_>> = group
            .iter()
            .map(|unsettled| (unsettled.id, Vec::new()))
            .collect();
        let result = scan(context, &mut group, &mut found, &turn).await;
        for unsettled in group {
            let found = found.remove(&unsettled.id).unwrap_or_default();
            // What was not read may hold more, but what was found is there.
            if result.is_ok() || !found.is_empty() {
                search.searched.push(Searched { unsettled, found });
            } else {
                search.unsearched.push(unsettled);
            }
        }
        search.trouble = search.trouble.or(result.err());
    }
    search
}

/// The links in groups of about the same time, the newest first. Within a group no link was asked for much later than
/// the one before it, so that no scan reads a long time in which there is no link.
fn groups<T>(mut links: Vec<T>, created_at: impl Fn(&T) -> OffsetDateTime) -> Vec<Vec<T>> {
    const NEAR: time::Duration = time::Duration::minutes(15);

    links.sort_by_key(|link| std::cmp::Reverse(created_at(link)));
    let mut groups: Vec<Vec<T>> = Vec::new();
    for link in links {
        let near = |last: &T| created_at(last) - created_at(&link) <= NEAR;
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(near) => group.push(link),
            _ => groups.push(vec![link]),
        }
    }
    groups
}

/// Reads every intent of the time in which those of these links lie, and keeps the ones that name a link of `found`.
/// Links whose lease is lost are taken out of `group`.
async fn scan<F: Future<Output = ()> + Send>(
    context: &Context,
    group: &mut Vec<Unsettled>,
    found: &mut HashMap<PaymentLinkId, Vec<PaymentIntent>>,
    turn: &(impl Fn() -> F + Send + Sync),
) -> Result<(), Error> {
    let Some(window) = group.iter().map(window_of).reduce(Window::with) else {
        return Ok(());
    };
    let Context { pool, account, .. } = context;
    let start = Instant::now();
    let (mut after, mut pages, mut tries) = (None, 0, 0);
    loop {
        keep(pool, group).await?;
        if group.is_empty() {
            return Ok(());
        }
        turn().await;
        let page = match account.client.search_page(window, after.as_deref()).await {
            Ok(page) => page,
            // Everything that was read so far would have to be read again.
            Err(error) if after.is_some() && error.may_pass() && tries < TRIES_A_PAGE => {
                tries += 1;
                let pause = Duration::from_millis(250) * 2_u32.pow(tries);
                let pause = pause.max(error.retry_after().unwrap_or_default());
                // A lease must not run out over it.
                if group.iter().any(|link| pause > link.lease.left() / 4) {
                    return Err(error.into());
                }
                tokio::time::sleep(pause).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        (pages, tries) = (pages + 1, 0);
        for intent in page.intents {
            if let Some(found) = intent.link_id().and_then(|id| found.get_mut(&id))
                && found.iter().all(|known| known.id != intent.id)
            {
                found.push(intent);
            }
        }
        match page.after {
            None => {
                debug!(
                    links = group.len(),
                    pages,
                    seconds = start.elapsed().as_secs_f64(),
                    "searched for lost creations"
                );
                return Ok(());
            }
            Some(_) if pages >= SHARED_PAGES => return Err(Error::TooManyIntents),
            next => after = next,
        }
    }
}

/// Renews the leases on these links if that is due, and leaves out those that somebody else has.
async fn keep(pool: &PgPool, group: &mut Vec<Unsettled>) -> Result<(), store::Error> {
    let Some(lease) = group
        .iter()
        .map(|link| link.lease)
        .find(|lease| !lease.is_fresh())
    else {
        return Ok(());
    };
    let ids: Vec<_> = group.iter().map(|link| link.id).collect();
    let (lease, held) = store::leases::renew(pool, &lease, &ids).await?;
    group.retain(|link| held.contains(&link.id));
    for link in group {
        link.lease = lease;
    }
    Ok(())
}

/// The time in which an intent of this link can lie.
fn window_of(unsettled: &Unsettled) -> Window {
    let asked_until = unsettled.asked_until.unwrap_or(unsettled.now);
    window(unsettled.created_at, asked_until, unsettled.now)
}

/// Takes the next step for a claimed link, by what a search for its intents has found.
pub async fn recover(
    context: &Context,
    Searched { unsettled, found }: &Searched,
) -> Result<(), Error> {
    let Context { pool, limits, .. } = context;
    let Unsettled { id, new, now, .. } = unsettled;
    let since = |at: OffsetDateTime| Duration::try_from(*now - at).unwrap_or_default();
    let age = since(unsettled.created_at);
    let expired = new
        .terms
        .expire_at
        .is_some_and(|expire_at| expire_at <= *now);
    if unsettled.failed {
        for intent in found {
            adopt(context, *id, intent).await?;
        }
        // It may come to light late; after so many times of what it should need at most, there is none.
        let late = unsettled
            .asked_until
            .and_then(|asked_until| limits.window.late_check(since(asked_until)));
        let again = late;
        return Ok(store::creation::give_back(pool, *id, unsettled.lease, again).await?);
    }
    let candidates: Vec<Found> = found.iter().map(PaymentIntent::found).collect();
    match next_step(
        &candidates,
        unsettled.asked_until.map(since),
        age,
        expired,
        *limits,
    ) {
        Step::Adopt(best) => {
            info!(link_id = %id, payment_intent_id = candidates[best].id, "a lost creation was found");
            count("found");
            // The best one first: all others are one too many then.
            let (best, others) = (
                &found[best],
                found.iter().enumerate().filter(|(n, _)| *n != best),
            );
            adopt(context, *id, best).await?;
            for (_, other) in others {
                adopt(context, *id, other).await?;
            }
        }
        Step::Wait => {
            let wait = limits.window.recheck_interval();
            store::creation::give_back(pool, *id, unsettled.lease, Some(wait)).await?;
        }
        Step::CreateAgain => create_again(context, unsettled).await?,
        Step::GiveUp => {
            let failure = Failure {
                reason: FailureKind::NotCreated,
                status: None,
                detail: if expired {
                    "the link expired before Dojo could be brought to create it".to_owned()
                } else {
                    "Dojo could not be brought to create it in time".to_owned()
                },
                errors: Vec::new(),
            };
            warn!(link_id = %id, expired, "a lost creation is given up; nothing was created");
            count("given_up");
            store::creation::fail(
                pool,
                *id,
                unsettled.lease,
                &failure,
                Retry::Final,
                Some(limits.window.length()),
                &Cause::Recovery,
            )
            .await?;
        }
    }
    Ok(())
}

/// Finds second intents of links that Dojo was asked for more than once: the first may come to light long after the
/// second was created, and its webhook may be lost. Links that were asked for at about the same time share one search.
/// `turn` is awaited before each call.
///
/// Reads at most `pages` pages for each group of links; if there are more, adopts what those hold and answers
/// [`Error::TooManyIntents`].
pub async fn find_surplus<F: Future<Output = ()> + Send>(
    context: &Context,
    links: Vec<LinkSnapshot>,
    pages_at_most: usize,
    turn: impl Fn() -> F + Send + Sync,
) -> Result<(), Error> {
    for group in groups(links, |snapshot| snapshot.link.created_at) {
        let windows = group.iter().map(|snapshot| {
            let created_at = snapshot.link.created_at;
            let asked_until = snapshot.asked_until.unwrap_or(created_at);
            window(created_at, asked_until, snapshot.now)
        });
        let Some(window) = windows.reduce(Window::with) else {
            continue;
        };
        let own: HashMap<_, _> = group
            .iter()
            .map(|snapshot| (snapshot.link.id, &snapshot.payment_intent_id))
            .collect();
        let (mut after, mut pages) = (None, 0);
        loop {
            turn().await;
            let page = context
                .account
                .client
                .search_page(window, after.as_deref())
                .await?;
            for intent in page.intents {
                if let Some(id) = intent.link_id()
                    && own.get(&id).is_some_and(|own| **own != intent.id)
                {
                    adopt(context, id, &intent).await?;
                }
            }
            pages += 1;
            match page.after {
                None => break,
                Some(_) if pages >= pages_at_most => return Err(Error::TooManyIntents),
                next => after = next,
            }
        }
    }
    Ok(())
}

/// The time in which an intent of a link can lie that was asked for from `created_at` until `asked_until`.
fn window(created_at: OffsetDateTime, asked_until: OffsetDateTime, now: OffsetDateTime) -> Window {
    // Dojo's clock and ours may differ, and a request may be worked on long after it left.
    Window {
        start: created_at - time::Duration::minutes(5),
        end: (asked_until + time::Duration::minutes(15)).min(now + time::Duration::minutes(1)),
    }
}

async fn adopt(
    context: &Context,
    id: PaymentLinkId,
    intent: &PaymentIntent,
) -> Result<(), store::Error> {
    adopt_intent(context, id, intent, &Cause::Recovery).await?;
    Ok(())
}

async fn create_again(context: &Context, unsettled: &Unsettled) -> Result<(), Error> {
    let Context {
        pool,
        account,
        limits,
    } = context;
    let id = unsettled.id;
    // Longer than the call can take: whoever has the link is alone with it until then.
    let lease = account.client.creation_lease();
    let Some(lease) = store::creation::ask_again(pool, unsettled, lease, &Cause::Recovery).await?
    else {
        return Ok(());
    };
    let request_id = format!("recovery-{id}");
    let answer = account
        .client
        .create_payment_intent(CreatePaymentIntent {
            link_id: id,
            new: &unsettled.new,
            request_id: &request_id,
        })
        .await;
    match answer {
        Ok(intent) => {
            count("created");
            Ok(adopt(context, id, &intent).await?)
        }
        Err(error) => {
            match error.proves_nothing_was_created() {
                Some(failure) if failure.reason == FailureKind::Refused => {
                    count("refused");
                    store::creation::fail(
                        pool,
                        id,
                        lease,
                        &failure,
                        Retry::Final,
                        Some(limits.window.length()),
                        &Cause::Recovery,
                    )
                    .await?;
                    return Ok(());
                }
                // Dojo had no time, or no door: the next try need not wait for anything to come to light.
                Some(_) => {
                    store::creation::not_asked(pool, unsettled, lease, Duration::from_secs(5))
                        .await?;
                }
                None => {
                    store::creation::unanswered(
                        pool,
                        id,
                        lease,
                        &error.to_string(),
                        &Cause::Recovery,
                    )
                    .await?;
                }
            }
            Err(error.into())
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("recoveries_total", "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn links_of_about_the_same_time_are_one_group_and_others_are_not() {
        let noon = datetime!(2026-11-24 12:00 UTC);
        let at = |minutes| noon + time::Duration::minutes(minutes);
        // An outage of an hour, and a link of the day before.
        let links = vec![at(0), at(40), at(-1440), at(14), at(54), at(28)];
        assert_eq!(
            groups(links, |at| *at),
            [vec![at(54), at(40), at(28), at(14), at(0)], vec![at(-1440)]]
        );
        assert!(groups(Vec::new(), |at: &OffsetDateTime| *at).is_empty());
    }
}
