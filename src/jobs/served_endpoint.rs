//! One callback endpoint that this replica serves.
//!
//! The task keeps a window of the events that it has read and not recorded. It sends the first of each link, as many at a
//! time as permitted, and records the outcomes together. If the replica dies, the one that claims the endpoint next sends
//! again what was not recorded.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::progress::count;
use crate::{
    callbacks::{
        client::{Attempt, Connections, LazyClient, Outcome},
        endpoint::{DeliveryStatus, PauseReason, Target, next_wait},
    },
    store::{
        self, PgPool,
        callback_deliveries::{Claimed, Health, Item, Place, Record},
    },
    telemetry::causes,
};

/// The job's name in logs and metrics.
pub(super) const NAME: &str = "callbacks";

/// How often to look for work that nothing announces: retries, and changes to the endpoint.
const POLL: Duration = Duration::from_secs(1);

/// How many events a task keeps in memory at most, besides deliveries that are due.
const WINDOW: usize = 256;

/// The shortest time between two reads of the feed, unless there is certainly more to read. Under load, something happens all
/// the time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// How long to wait after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// What serving any endpoint needs.
#[derive(Clone)]
pub(super) struct Resources {
    pub(super) pool: PgPool,
    pub(super) client: Arc<LazyClient>,
    /// The maximum number of deliveries in flight to an endpoint.
    pub(super) concurrency: usize,
    /// The position of the newest event in the feed.
    pub(super) head: watch::Receiver<i64>,
    pub(super) stop: CancellationToken,
}

/// An endpoint that this replica serves.
pub(super) struct ServedEndpoint {
    resources: Resources,
    claimed: Claimed,
    /// As of the last read. `None` before the first.
    target: Option<Arc<Target>>,
    connections: Arc<Connections>,
    is_active: bool,
    /// How far the feed has been read.
    place: Option<Place>,
    /// The feed may contain more than was read.
    more: bool,
    /// So many deliveries wait that no more of the feed is read.
    is_full: bool,
    /// What was read and isn't recorded, by position.
    window: BTreeMap<i64, Entry>,
    flights: JoinSet<(i64, Option<Attempt>)>,
    /// What is to be recorded, and what it says about the endpoint.
    records: Vec<Record>,
    health: Health,
}

struct Entry {
    item: Item,
    in_flight: bool,
    /// A replay began while it was in flight, so it is to be sent once more.
    again: bool,
}

impl Entry {
    fn waiting(item: Item) -> Self {
        Self {
            item,
            in_flight: false,
            again: false,
        }
    }
}

/// The lease has ended: another replica may serve the endpoint now.
struct LeaseLost;

impl ServedEndpoint {
    pub(super) fn new(resources: Resources, claimed: Claimed) -> Self {
        Self {
            resources,
            claimed,
            target: None,
            connections: Arc::default(),
            is_active: true,
            place: None,
            more: true,
            is_full: false,
            window: BTreeMap::new(),
            flights: JoinSet::new(),
            records: Vec::new(),
            health: Health::default(),
        }
    }

    pub(super) async fn run(mut self) {
        if self.serve().await.is_ok() {
            // If it fails, the lease expires.
            let _ = store::callback_deliveries::release(&self.resources.pool, &self.claimed).await;
        }
    }

    /// Serves the endpoint until it is paused or deleted, or the service stops.
    async fn serve(&mut self) -> Result<(), LeaseLost> {
        if let Err(error) = self.resources.client.get().await {
            error!(%error, "callbacks can't be sent");
            sleep(RETRY * 10).await;
            return Ok(());
        }
        let mut head = self.resources.head.clone();
        let mut next_poll = Instant::now();
        let mut earliest = next_poll;
        loop {
            // Before the next read, which would find a delivery that has ended still waiting.
            self.record().await?;
            let stops = self.resources.stop.is_cancelled() || !self.is_active;
            if stops && self.flights.is_empty() && self.records.is_empty() {
                return Ok(());
            }
            let now = Instant::now();
            let may_read = !stops && self.records.is_empty();
            // Only a poll shows that the endpoint was changed, paused or deleted, so it doesn't depend on room.
            let may_advance = may_read && self.has_room() && !self.is_full;
            let has_news = self.more || now >= earliest && head.has_changed().unwrap_or(false);
            if may_read && now >= next_poll || may_advance && has_news {
                head.mark_unchanged();
                self.read().await?;
                next_poll = Instant::now() + POLL;
                earliest = Instant::now() + SHORTEST_PAUSE;
            }
            self.start();
            let may_advance = !stops && self.is_active && self.has_room() && !self.is_full;
            if !self.records.is_empty() || may_advance && self.more {
                continue;
            }
            tokio::select! {
                Some(flight) = self.flights.join_next() => self.landed(flight)?,
                // Marked again, because it is only read once the pause is over.
                Ok(()) = head.changed(), if may_advance => {
                    head.mark_changed();
                    tokio::select! {
                        Some(flight) = self.flights.join_next() => self.landed(flight)?,
                        () = sleep_until(earliest) => {}
                    }
                }
                () = sleep_until(next_poll), if !stops => {}
                () = sleep(POLL) => {}
                () = self.resources.stop.cancelled(), if !stops => {}
            }
            while let Some(flight) = self.flights.try_join_next() {
                self.landed(flight)?;
            }
        }
    }

    /// Whether to read more of the feed.
    fn has_room(&self) -> bool {
        self.window.len() < WINDOW / 2
    }

    /// Forgets what is not in flight. It is read again, by this task or the next one.
    fn forget_waiting(&mut self) {
        let dropped = self.window.extract_if(.., |_, entry| !entry.in_flight);
        let first = dropped
            .filter(|(_, entry)| !entry.item.is_due)
            .map(|(position, _)| position)
            .min();
        if let (Some(place), Some(first)) = (&mut self.place, first) {
            place.position = place.position.min(first - 1);
        }
    }

    /// Reads what there is to do.
    async fn read(&mut self) -> Result<(), LeaseLost> {
        let busy: Vec<Uuid> = self
            .window
            .values()
            .map(|entry| entry.item.link_id.uuid())
            .collect();
        let slots = self
            .resources
            .concurrency
            .saturating_sub(self.flights.len());
        let room = if self.has_room() {
            WINDOW - self.window.len()
        } else {
            0
        };
        let work = store::callback_deliveries::next(
            &self.resources.pool,
            &self.claimed,
            self.place,
            &busy,
            to_i64(slots),
            to_i64(room),
        )
        .await;
        let Some(work) = self.queried(work) else {
            self.more = false;
            return Ok(());
        };
        let work = work.ok_or(LeaseLost)?;
        self.target = Some(Arc::new(work.target));
        // Without room, nothing was read that could show whether there is more.
        self.more = work.is_active && (work.more || room == 0 && self.more);
        self.is_full = work.is_full;
        if self
            .place
            .is_some_and(|place| place.generation != work.place.generation)
        {
            // A replay: what waits is among what is read again.
            self.forget_waiting();
            for entry in self.window.values_mut() {
                entry.again = true;
            }
        }
        self.place = Some(work.place);
        for item in work.items {
            if self.window.contains_key(&item.position) {
                continue;
            }
            if item.is_behind && !item.is_due {
                // It waits like the one before it.
                self.records.push(of_item(&item, DeliveryStatus::Pending));
            } else {
                self.window.insert(item.position, Entry::waiting(item));
            }
        }
        if !work.is_active {
            self.is_active = false;
            self.forget_waiting();
        }
        Ok(())
    }

    /// Counts a failure of the database. That the job as a whole fails is noticed by its own queries.
    fn queried<T>(&self, result: Result<T, store::Error>) -> Option<T> {
        result
            .inspect_err(|error| {
                count(NAME, "database");
                debug!(endpoint = %self.claimed.id, error = %causes(error), "an endpoint waits for the database");
            })
            .ok()
    }

    /// Sends the first event of each link, as far as permitted.
    fn start(&mut self) {
        let lease_ends = Instant::now() + self.claimed.lease.left();
        let latest = lease_ends.checked_sub(self.resources.client.timeouts().total);
        let (Some(target), Some(latest)) = (&self.target, latest) else {
            return;
        };
        if !self.is_active || self.resources.stop.is_cancelled() {
            return;
        }
        let mut seen = HashSet::new();
        for (position, entry) in &mut self.window {
            if self.flights.len() >= self.resources.concurrency || Instant::now() > latest {
                return;
            }
            let is_first = seen.insert(entry.item.link_id);
            if !is_first || entry.in_flight {
                continue;
            }
            entry.in_flight = true;
            let (position, target) = (*position, Arc::clone(target));
            let (client, item) = (Arc::clone(&self.resources.client), entry.item.clone());
            let connections = Arc::clone(&self.connections);
            self.flights.spawn(async move {
                // This process may have been stopped for a while. Without the lease, another replica sends the event.
                let attempt = match client.get().await {
                    Ok(client) if Instant::now() <= latest => {
                        let id = item.event_id.to_string();
                        timeout_at(
                            lease_ends,
                            target.send(client, Some(&connections), &id, &item.event),
                        )
                        .await
                        .ok()
                    }
                    _ => None,
                };
                (position, attempt)
            });
        }
    }

    /// Takes note of an attempt that has ended.
    fn landed(
        &mut self,
        flight: Result<(i64, Option<Attempt>), JoinError>,
    ) -> Result<(), LeaseLost> {
        let Ok((position, attempt)) = flight else {
            // A panic, which has been logged. Without this task, the endpoint is claimed again once the lease expires.
            count(NAME, "panicked");
            return Err(LeaseLost);
        };
        let Some(attempt) = attempt else {
            if let Some(entry) = self.window.get_mut(&position) {
                entry.in_flight = false;
            }
            return Ok(());
        };
        let Some(Entry {
            mut item, again, ..
        }) = self.window.remove(&position)
        else {
            return Ok(());
        };
        let endpoint = self.claimed.id.to_string();
        let outcome = attempt.outcome;
        metrics::counter!("callback_attempts_total", "endpoint" => endpoint, "outcome" => outcome.name())
            .increment(1);
        metrics::histogram!("callback_attempt_seconds").record(attempt.duration.as_secs_f64());
        self.health.add(outcome);
        if again {
            item.attempts = 0;
            item.generation = self.place.map_or(item.generation, |place| place.generation);
            self.window.insert(position, Entry::waiting(item));
            return Ok(());
        }
        item.attempts += 1;
        // Later deliveries of the link may be waiting for this one, or others for its slot.
        self.more |= item.is_due;
        let (status, wait) = if outcome == Outcome::Delivered {
            (DeliveryStatus::Delivered, Duration::ZERO)
        } else if let Some(wait) = next_wait(item.attempts, attempt.retry_after) {
            // The link's next events wait for this one.
            let behind = self.window.extract_if(.., |_, entry| {
                entry.item.link_id == item.link_id && !entry.item.is_due
            });
            for (_, entry) in behind {
                self.records.push(Record {
                    wait,
                    ..of_item(&entry.item, DeliveryStatus::Pending)
                });
            }
            (DeliveryStatus::Pending, wait)
        } else {
            warn!(
                endpoint = %self.claimed.id,
                event = %item.event_id,
                outcome = outcome.name(),
                "all attempts to deliver a callback failed; it can be replayed"
            );
            (DeliveryStatus::Failed, Duration::ZERO)
        };
        self.records.push(Record {
            wait,
            attempt: Some(attempt),
            ..of_item(&item, status)
        });
        Ok(())
    }

    /// Records what is to be recorded, and renews the lease in time.
    async fn record(&mut self) -> Result<(), LeaseLost> {
        let Some(place) = self.place else {
            return Ok(());
        };
        if self.records.is_empty() && self.claimed.lease.is_fresh() {
            return Ok(());
        }
        // Everything before the oldest event without a row has one, or isn't wanted.
        let unrecorded = self.window.iter().find(|(_, entry)| !entry.item.is_due);
        let position = unrecorded.map_or(place.position, |(position, _)| {
            // What was forgotten, or is to be read again, may come before it.
            place.position.min(position - 1)
        });
        let recorded = store::callback_deliveries::record(
            &self.resources.pool,
            &self.claimed,
            Place { position, ..place },
            self.health,
            &self.records,
        )
        .await;
        let Some(recorded) = self.queried(recorded) else {
            sleep(RETRY).await;
            return Ok(());
        };
        let recorded = recorded.ok_or(LeaseLost)?;
        self.claimed.lease = recorded.lease;
        self.records.clear();
        self.health = Health::default();
        if let Some(reason) = recorded.paused {
            if self.is_active && reason != PauseReason::Requested {
                warn!(
                    endpoint = %self.claimed.id,
                    reason = reason.as_str(),
                    "a callback endpoint was paused; it can be resumed"
                );
            }
            self.is_active = false;
            self.forget_waiting();
        }
        Ok(())
    }
}

/// The record of an item that nothing happened to.
fn of_item(item: &Item, status: DeliveryStatus) -> Record {
    Record {
        position: item.position,
        event_id: item.event_id,
        kind: item.kind.clone(),
        link_id: item.link_id,
        generation: item.generation,
        status,
        attempts: item.attempts,
        wait: Duration::ZERO,
        attempt: None,
    }
}

fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
