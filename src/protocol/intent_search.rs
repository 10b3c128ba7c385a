//! Searching Dojo for the intents of links.
//!
//! The metadata of every intent names the link that it was requested for. So a search over the time in which a link's
//! intents can have been created finds all of them. Links of about the same time share one search.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tracing::debug;

use super::{Context, Error, adoption::adopt_intent};
use crate::{
    dojo::{PaymentIntent, Window},
    payment_link::{PaymentLinkId, SettlementWindow, timeline::Cause},
    store::{self, creation_recovery::LostCreation, reconciliation::LinkSnapshot},
};

/// How many pages of a search to read for the lost creations of about the same time: a million intents. This only ends a
/// search that would never end. Reading that many takes minutes, and the links are leased meanwhile.
const SHARED_PAGES: usize = 10_000;

/// How many times in a row to try to get a page before everything that was read up to it is lost.
const TRIES_PER_PAGE: u32 = 4;

/// By how much Dojo's clock and the database's may differ.
const CLOCK_SKEW: time::Duration = time::Duration::minutes(5);

/// How long after a request left Dojo may still create an intent for it, with the clocks' difference.
const LATEST: time::Duration = time::Duration::minutes(15);

/// A lost creation, and every intent at Dojo that names its link.
#[derive(Debug, Clone)]
pub struct SearchedCreation {
    pub lost: LostCreation,
    pub intents: Vec<PaymentIntent>,
}

impl From<LostCreation> for SearchedCreation {
    /// Before the search.
    fn from(lost: LostCreation) -> Self {
        Self {
            lost,
            intents: Vec::new(),
        }
    }
}

/// The result of a search for lost creations.
#[derive(Debug, Default)]
pub struct SearchResult {
    /// Those whose intents are known now.
    pub searched: Vec<SearchedCreation>,
    /// Those that nothing is known about.
    pub unsearched: Vec<LostCreation>,
    /// Why there are any unsearched ones.
    pub error: Option<Error>,
}

/// Searches for the intents of claimed lost creations.
///
/// The search goes on for as long as it takes to read all intents of that time, and renews the leases meanwhile: only a
/// complete search proves that there is no intent. `throttle` is awaited before each call.
pub async fn search_all<F: Future<Output = ()> + Send>(
    context: &Context,
    claimed: Vec<LostCreation>,
    throttle: impl Fn() -> F + Send + Sync,
) -> SearchResult {
    let settlement = context.limits.window;
    let mut result = SearchResult::default();
    for (mut group, window) in groups(claimed, |lost| window_of_lost(lost, settlement)) {
        // Dojo or the database fails; a search over another time would fail as well.
        if matches!(result.error, Some(Error::Dojo(_) | Error::Store(_))) {
            result.unsearched.append(&mut group);
            continue;
        }
        let mut found: HashMap<_, Vec<_>> =
            group.iter().map(|lost| (lost.id, Vec::new())).collect();
        let outcome = scan(context, window, &mut group, &mut found, &throttle).await;
        for lost in group {
            let intents = found.remove(&lost.id).unwrap_or_default();
            // The pages that were not read may have more, but what was found exists.
            if outcome.is_ok() || !intents.is_empty() {
                result.searched.push(SearchedCreation { lost, intents });
            } else {
                result.unsearched.push(lost);
            }
        }
        result.error = result.error.or(outcome.err());
    }
    result
}

/// Groups what is to be searched for by time, the newest first, with the window to search for each group. Within a group
/// no window starts much later than the one before it, so that no search reads a long time in which there is no link.
fn groups<T>(all: Vec<T>, window_of: impl Fn(&T) -> Window) -> Vec<(Vec<T>, Window)> {
    const NEAR: time::Duration = time::Duration::minutes(15);

    let mut all: Vec<_> = all
        .into_iter()
        .map(|item| (window_of(&item), item))
        .collect();
    all.sort_by_key(|(window, _)| std::cmp::Reverse(window.start));
    let mut groups: Vec<(Vec<T>, Window)> = Vec::new();
    for (window, item) in all {
        match groups.last_mut() {
            // The last one of a group starts first.
            Some((group, whole)) if whole.start - window.start <= NEAR => {
                group.push(item);
                *whole = whole.with(window);
            }
            _ => groups.push((vec![item], window)),
        }
    }
    groups
}

/// The time in which an intent can have been created that was requested from `first` until `last`.
fn window(first: OffsetDateTime, last: OffsetDateTime, now: OffsetDateTime) -> Window {
    Window {
        start: first - CLOCK_SKEW,
        end: (last + LATEST).min(now + time::Duration::minutes(1)),
    }
}

/// The time to search for a lost creation.
fn window_of_lost(lost: &LostCreation, settlement: SettlementWindow) -> Window {
    let first = first_request(lost.created_at, lost.retried_at, settlement);
    window(first, lost.sent_until.unwrap_or(lost.now), lost.now)
}

/// When the first request left whose intent must still be searched for.
///
/// Each retry follows a complete search that found no intent of an earlier request. Those that left shortly before the last
/// retry are searched for again, in case search lagged. So the window stays short for however long the creation is retried.
fn first_request(
    created_at: OffsetDateTime,
    retried_at: Option<OffsetDateTime>,
    settlement: SettlementWindow,
) -> OffsetDateTime {
    retried_at.map_or(created_at, |retried_at| {
        created_at.max(retried_at - settlement.late_limit())
    })
}

/// Reads every intent of the window and keeps those that name a link of `found`. Links whose lease is lost are taken out of
/// `group`.
async fn scan<F: Future<Output = ()> + Send>(
    context: &Context,
    window: Window,
    group: &mut Vec<LostCreation>,
    found: &mut HashMap<PaymentLinkId, Vec<PaymentIntent>>,
    throttle: &(impl Fn() -> F + Send + Sync),
) -> Result<(), Error> {
    let start = Instant::now();
    let (mut after, mut pages, mut tries) = (None, 0, 0);
    loop {
        renew_leases(context, group).await?;
        if group.is_empty() {
            return Ok(());
        }
        throttle().await;
        let client = &context.account.client;
        let page = match client.search_page(window, after.as_deref()).await {
            Ok(page) => page,
            // Everything that was read so far would have to be read again.
            Err(error) if after.is_some() && error.may_pass() && tries < TRIES_PER_PAGE => {
                tries += 1;
                let pause = Duration::from_millis(250) * 2_u32.pow(tries);
                let pause = pause.max(error.retry_after().unwrap_or_default());
                // No lease may run out during the pause.
                if group.iter().any(|lost| pause > lost.lease.left() / 4) {
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

/// Renews the leases on these links if that is due, and removes the links that somebody else has claimed.
async fn renew_leases(
    context: &Context,
    group: &mut Vec<LostCreation>,
) -> Result<(), store::Error> {
    let Some(lease) = group
        .iter()
        .map(|lost| lost.lease)
        .find(|lease| !lease.is_fresh())
    else {
        return Ok(());
    };
    let ids: Vec<_> = group.iter().map(|lost| lost.id).collect();
    let (lease, renewed) = store::leases::renew(&context.pool, &lease, &ids).await?;
    group.retain(|lost| renewed.contains(&lost.id));
    for lost in group {
        lost.lease = lease;
    }
    Ok(())
}

/// A search for surplus intents of links whose creation was retried: the first intent may appear long after the second one
/// was created, and its webhook may be lost. It can be interrupted after any page and continued.
#[derive(Debug)]
pub struct SurplusSearch {
    /// The links, and the intent that each has.
    own: HashMap<PaymentLinkId, String>,
    window: Window,
    /// The cursor behind the last page that was read.
    after: Option<String>,
}

impl SurplusSearch {
    /// The searches for those of these links that may have a surplus intent.
    #[must_use]
    pub fn of(mut links: Vec<LinkSnapshot>) -> Vec<Self> {
        links.retain(|snapshot| snapshot.creation_retried);
        let window_of = |snapshot: &LinkSnapshot| {
            let created_at = snapshot.link.created_at;
            let sent_until = snapshot.sent_until.unwrap_or(created_at);
            window(created_at, sent_until, snapshot.now)
        };
        groups(links, window_of)
            .into_iter()
            .map(|(group, window)| Self {
                own: group
                    .into_iter()
                    .map(|snapshot| (snapshot.link.id, snapshot.payment_intent_id))
                    .collect(),
                window,
                after: None,
            })
            .collect()
    }

    /// Whether this searches for the intents of that link.
    #[must_use]
    pub fn covers(&self, link_id: PaymentLinkId) -> bool {
        self.own.contains_key(&link_id)
    }

    /// Reads up to `pages` more pages and adopts the intents that name one of the links. `throttle` is awaited before each
    /// call. Returns whether the search is complete.
    pub async fn run<F: Future<Output = ()> + Send>(
        &mut self,
        context: &Context,
        pages: usize,
        throttle: impl Fn() -> F + Send + Sync,
    ) -> Result<bool, Error> {
        for _ in 0..pages {
            throttle().await;
            let client = &context.account.client;
            let page = client
                .search_page(self.window, self.after.as_deref())
                .await?;
            for intent in page.intents {
                if let Some(id) = intent.link_id()
                    && self.own.get(&id).is_some_and(|own| *own != intent.id)
                {
                    match adopt_intent(context, id, &intent, &Cause::Recovery).await {
                        // It has been reported. There may be others.
                        Ok(_) | Err(store::Error::IntentOfAnotherLink { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if page.after.is_none() {
                return Ok(true);
            }
            self.after = page.after;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn minutes(minutes: i64) -> time::Duration {
        time::Duration::minutes(minutes)
    }

    #[test]
    fn links_of_about_the_same_time_share_a_search() {
        let at = |n| NOON + minutes(n);
        // An outage of an hour, and a link of the day before.
        let links = vec![at(0), at(40), at(-1440), at(14), at(54), at(28)];
        let grouped = groups(links, |at| Window {
            start: *at,
            end: *at + minutes(1),
        });
        let starts: Vec<_> = grouped.iter().map(|(group, _)| group.clone()).collect();
        assert_eq!(
            starts,
            [vec![at(54), at(40), at(28), at(14), at(0)], vec![at(-1440)]]
        );
        let windows: Vec<_> = grouped
            .iter()
            .map(|(_, window)| (window.start, window.end))
            .collect();
        assert_eq!(windows, [(at(0), at(55)), (at(-1440), at(-1439))]);
        assert!(groups(Vec::<Window>::new(), |window| *window).is_empty());
    }

    #[test]
    fn a_creation_that_was_retried_for_long_has_a_short_search() {
        let settlement = SettlementWindow::new(Duration::from_mins(2));
        let first = |retried_at| first_request(NOON, retried_at, settlement);
        assert_eq!(first(None), NOON);
        assert_eq!(first(Some(NOON + minutes(3))), NOON);
        let retried_at = NOON + time::Duration::DAY;
        assert_eq!(first(Some(retried_at)), retried_at - minutes(20));
    }
}
