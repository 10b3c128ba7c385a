use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{
    RESTART_PAUSE,
    progress::{Progress, count},
    supervisor::supervise,
};
use crate::{
    config::Retention,
    payment_link::{erasure::PersonalMetadata, timeline::Cause},
    store::{
        self, PgPool,
        links::Place as LinkPlace,
        retention::{Kind, LongKind, Place},
    },
    telemetry::causes,
};

/// The name in logs and metrics.
const NAME: &str = "pruning";

/// How often to find out whether the next batch is due.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How long to leave the database alone between two batches of the feed or of callbacks. A batch takes some ten milliseconds.
const REST: Duration = Duration::from_millis(100);

/// How many links are examined in one turn, to erase their personal data. An erasure takes some ten milliseconds.
const LINKS: i64 = 100;

/// Longer than a batch can take: a few statements, each with its time limit.
const LIMIT: Duration = Duration::from_mins(3);

/// Removes old data, a batch at a time. One job works for all accounts.
pub struct Pruning {
    pool: PgPool,
    retention: Retention,
    personal: PersonalMetadata,
    stop: CancellationToken,
    progress: Progress,
}

/// How much was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rows.
    pub webhook_events: u64,
    pub payment_link_events: u64,
    pub messages: u64,
    pub feed_events: u64,
    pub callback_deliveries: u64,
    /// Columns that were emptied.
    pub webhook_bodies: u64,
    pub responses_to_creations: u64,
    pub responses_to_operations: u64,
    /// Links whose personal data was erased.
    pub erased_links: u64,
}

impl Removed {
    /// The numbers for what is to be removed, each with its name.
    #[must_use]
    pub fn of(self, retention: &Retention) -> Vec<(&'static str, u64)> {
        let mut numbers = Vec::new();
        if retention.webhooks.is_some() {
            numbers.push(("webhook_events", self.webhook_events));
            numbers.push(("payment_link_events", self.payment_link_events));
        }
        if retention.messages.is_some() {
            numbers.push(("messages", self.messages));
        }
        if retention.events.is_some() {
            numbers.push(("feed_events", self.feed_events));
            numbers.push(("callback_deliveries", self.callback_deliveries));
        }
        if retention.webhook_bodies.is_some() {
            numbers.push(("webhook_events.body", self.webhook_bodies));
        }
        if retention.stored_responses.is_some() {
            let (creations, operations) =
                (self.responses_to_creations, self.responses_to_operations);
            numbers.push(("idempotency_keys.response_body", creations));
            numbers.push(("operations.response_body", operations));
        }
        if retention.personal_data.is_some() {
            numbers.push(("erased links", self.erased_links));
        }
        numbers
    }

    fn add(&mut self, more: Self) {
        self.webhook_events += more.webhook_events;
        self.payment_link_events += more.payment_link_events;
        self.messages += more.messages;
        self.feed_events += more.feed_events;
        self.callback_deliveries += more.callback_deliveries;
        self.webhook_bodies += more.webhook_bodies;
        self.responses_to_creations += more.responses_to_creations;
        self.responses_to_operations += more.responses_to_operations;
        self.erased_links += more.erased_links;
    }

    /// Adds to the metrics. Erased links are counted where they are erased.
    fn measure(self) {
        for (table, rows) in [
            ("webhook_events", self.webhook_events),
            ("payment_link_events", self.payment_link_events),
            ("messages", self.messages),
            ("feed_events", self.feed_events),
            ("callback_deliveries", self.callback_deliveries),
        ] {
            metrics::counter!("pruned_rows_total", "table" => table).increment(rows);
        }
        for (table, rows) in [
            ("webhook_events", self.webhook_bodies),
            ("idempotency_keys", self.responses_to_creations),
            ("operations", self.responses_to_operations),
        ] {
            metrics::counter!("expired_bodies_total", "table" => table).increment(rows);
        }
    }
}

impl From<store::pruning::Removed> for Removed {
    fn from(removed: store::pruning::Removed) -> Self {
        Self {
            webhook_events: removed.webhook_events,
            payment_link_events: removed.payment_link_events,
            ..Self::default()
        }
    }
}

impl From<store::retention::Removed> for Removed {
    fn from(removed: store::retention::Removed) -> Self {
        Self {
            messages: removed.messages,
            webhook_bodies: removed.webhook_bodies,
            responses_to_creations: removed.responses_to_creations,
            responses_to_operations: removed.responses_to_operations,
            ..Self::default()
        }
    }
}

/// The kinds of old data that are removed in batches of one transaction each, with the age from which.
fn kinds(retention: &Retention) -> impl Iterator<Item = (Kind, Duration)> {
    [
        (Kind::Messages, retention.messages),
        (Kind::WebhookBodies, retention.webhook_bodies),
        (Kind::StoredResponses, retention.stored_responses),
    ]
    .into_iter()
    .filter_map(|(kind, older_than)| Some((kind, older_than?)))
}

impl Pruning {
    #[must_use]
    pub fn new(
        pool: PgPool,
        retention: Retention,
        personal: PersonalMetadata,
        stop: CancellationToken,
    ) -> Self {
        Self {
            pool,
            retention,
            personal,
            stop,
            // In Prometheus, an empty label is the same as none.
            progress: Progress::new("", NAME),
        }
    }

    /// Starts the job. It ends when it is told to stop.
    pub fn spawn(self, tasks: &TaskTracker) {
        let job = Arc::new(self);
        tasks.spawn(async move {
            let run = || job.run();
            let heartbeat = &job.progress.heartbeat;
            supervise(NAME, heartbeat, LIMIT, RESTART_PAUSE, &job.stop, run).await;
        });
    }

    async fn run(&self) {
        let mut removed = Removed::default();
        while !self.stop.is_cancelled() {
            let step = self.step(&mut removed).await;
            let wait = match self.progress.queried(step) {
                Ok(Some(rest)) => rest.min(POLL_INTERVAL),
                Ok(None) => {
                    if removed != Removed::default() {
                        log(std::mem::take(&mut removed));
                    }
                    POLL_INTERVAL
                }
                // The failure is counted and logged already.
                Err(_) => POLL_INTERVAL,
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Removes a batch of each kind, if it is this replica's turn. Returns how long to rest if there is more, and `None` if
    /// there isn't.
    async fn step(&self, total: &mut Removed) -> Result<Option<Duration>, store::Error> {
        let Self {
            pool, retention, ..
        } = self;
        let mut longest_rest = None;
        let mut done = |removed: Removed, rest: Option<Duration>| {
            count(NAME, "ok");
            removed.measure();
            total.add(removed);
            longest_rest = longest_rest.max(rest);
        };
        if let Some(older_than) = retention.webhooks
            && let Some(batch) = store::pruning::next_batch(pool, older_than).await?
        {
            done(batch.removed.into(), batch.next.map(|_| batch.rest));
        }
        for (kind, older_than) in kinds(retention) {
            if let Some(batch) = store::retention::next_batch(pool, kind, older_than).await? {
                done(batch.removed.into(), batch.more.then_some(batch.rest));
            }
        }
        if let Some(older_than) = retention.events
            && store::retention::claim(pool, LongKind::Events)
                .await?
                .is_some()
        {
            let removed = self.events(older_than).await?;
            done(removed, None);
            store::retention::end_turn(pool, LongKind::Events, None, REST).await?;
        }
        if let Some(older_than) = retention.personal_data
            && let Some(place) = store::retention::claim(pool, LongKind::Links).await?
        {
            let start = Instant::now();
            let alive = || self.progress.mark();
            let (erased_links, next) =
                erase_batch(pool, place, older_than, &self.personal, alive).await?;
            let rest = store::pruning::rest(start);
            let removed = Removed {
                erased_links,
                ..Removed::default()
            };
            done(removed, next.map(|_| rest));
            store::retention::end_turn(pool, LongKind::Links, next, rest).await?;
        }
        Ok(longest_rest)
    }

    /// Removes all old events and deliveries.
    async fn events(&self, older_than: Duration) -> Result<Removed, store::Error> {
        let pool = &self.pool;
        let go_on = || {
            self.progress.mark();
            !self.stop.is_cancelled()
        };
        Ok(Removed {
            feed_events: while_more(|| store::feed::prune(pool, older_than), go_on).await?,
            callback_deliveries: while_more(
                || store::callback_deliveries::prune(pool, older_than),
                go_on,
            )
            .await?,
            ..Removed::default()
        })
    }
}

fn log(removed: Removed) {
    let Removed {
        webhook_events,
        payment_link_events,
        messages,
        feed_events,
        callback_deliveries,
        webhook_bodies,
        responses_to_creations,
        responses_to_operations,
        erased_links,
    } = removed;
    info!(
        webhook_events,
        payment_link_events,
        messages,
        feed_events,
        callback_deliveries,
        webhook_bodies,
        responses_to_creations,
        responses_to_operations,
        erased_links,
        "old data was removed"
    );
}

/// Erases the personal data of the next links that haven't changed for long and about which nothing is open. Returns of how
/// many, and where to go on. Calls `alive` for each link.
async fn erase_batch(
    pool: &PgPool,
    after: LinkPlace,
    older_than: Duration,
    personal: &PersonalMetadata,
    alive: impl Fn(),
) -> Result<(u64, Option<LinkPlace>), store::Error> {
    let (links, next) = store::erasure::unchanged_for(pool, after, older_than, LINKS).await?;
    let mut erased_links = 0;
    for link_id in links {
        alive();
        match store::erasure::erase(pool, link_id, personal, &Cause::Retention).await {
            Ok(Some(Ok(erased))) => erased_links += u64::from(!erased.again),
            Ok(Some(Err(why))) => {
                warn!(%link_id, %why, "a link is old enough for its personal data to be erased, but something about it is open");
            }
            Ok(None) => {}
            Err(error) if error.is_outage() => return Err(error),
            // It must not keep the others from being erased.
            Err(error) => {
                error!(%link_id, error = %causes(&error), "a link's personal data could not be erased");
            }
        }
    }
    Ok((erased_links, next))
}

/// Removes everything at once that the job would remove, or with `dry_run` only counts it. Calls `report` every few seconds
/// with what was removed so far.
pub async fn prune(
    pool: &PgPool,
    retention: &Retention,
    personal: &PersonalMetadata,
    dry_run: bool,
    report: impl Fn(Removed),
) -> Result<Removed, store::Error> {
    let mut reporter = Reporter {
        removed: Removed::default(),
        reported_at: Instant::now(),
        report,
    };
    if let Some(older_than) = retention.webhooks {
        let mut after = 0;
        loop {
            let batch = if dry_run {
                Some(store::pruning::preview(pool, after, older_than).await?)
            } else {
                store::pruning::batch(pool, after, older_than).await?
            };
            let Some(batch) = batch else {
                others_turn().await;
                continue;
            };
            reporter.add(batch.removed.into());
            let Some(next) = batch.next else {
                break;
            };
            after = next;
            sleep(batch.rest).await;
        }
    }
    for (kind, older_than) in kinds(retention) {
        let mut after = Place::default();
        loop {
            let batch = if dry_run {
                Some(store::retention::preview(pool, kind, after, older_than).await?)
            } else {
                store::retention::batch(pool, kind, after, older_than).await?
            };
            let Some(batch) = batch else {
                others_turn().await;
                continue;
            };
            reporter.add(batch.removed.into());
            if !batch.more {
                break;
            }
            after = batch.place;
            sleep(batch.rest).await;
        }
    }
    if let Some(older_than) = retention.events {
        reporter.add(events(pool, older_than, dry_run).await?);
    }
    if let Some(older_than) = retention.personal_data {
        let mut after = store::erasure::beginning();
        loop {
            let start = Instant::now();
            let (erased_links, next) = if dry_run {
                count_erasable(pool, after, older_than).await?
            } else {
                erase_batch(pool, after, older_than, personal, || ()).await?
            };
            reporter.add(Removed {
                erased_links,
                ..Removed::default()
            });
            let Some(next) = next else {
                break;
            };
            after = next;
            sleep(store::pruning::rest(start)).await;
        }
    }
    Ok(reporter.removed)
}

/// A batch takes some ten milliseconds.
async fn others_turn() {
    sleep(Duration::from_millis(50)).await;
}

struct Reporter<F> {
    removed: Removed,
    reported_at: Instant,
    report: F,
}

impl<F: Fn(Removed)> Reporter<F> {
    fn add(&mut self, more: Removed) {
        self.removed.add(more);
        if self.reported_at.elapsed() > Duration::from_secs(10) {
            self.reported_at = Instant::now();
            (self.report)(self.removed);
        }
    }
}

async fn events(
    pool: &PgPool,
    older_than: Duration,
    dry_run: bool,
) -> Result<Removed, store::Error> {
    let (feed_events, callback_deliveries) = if dry_run {
        (
            store::feed::prunable(pool, older_than).await?,
            store::callback_deliveries::prunable(pool, older_than).await?,
        )
    } else {
        (
            while_more(|| store::feed::prune(pool, older_than), || true).await?,
            while_more(
                || store::callback_deliveries::prune(pool, older_than),
                || true,
            )
            .await?,
        )
    };
    Ok(Removed {
        feed_events,
        callback_deliveries,
        ..Removed::default()
    })
}

/// How many of the next links would be erased, and where to go on.
async fn count_erasable(
    pool: &PgPool,
    after: LinkPlace,
    older_than: Duration,
) -> Result<(u64, Option<LinkPlace>), store::Error> {
    let (links, next) = store::erasure::unchanged_for(pool, after, older_than, LINKS).await?;
    let mut erasable = 0;
    for id in links {
        let check = store::erasure::check(pool, id).await?;
        erasable += u64::from(matches!(check, Some(Ok(false))));
    }
    Ok((erasable, next))
}

/// Removes batches as long as there is more to remove and `go_on` says so. Returns how many rows there were.
async fn while_more<F>(batch: impl Fn() -> F, go_on: impl Fn() -> bool) -> Result<u64, store::Error>
where
    F: Future<Output = Result<(u64, bool), store::Error>>,
{
    let mut removed = 0;
    while go_on() {
        let (rows, more) = batch().await?;
        removed += rows;
        if !more {
            break;
        }
        sleep(REST).await;
    }
    Ok(removed)
}
