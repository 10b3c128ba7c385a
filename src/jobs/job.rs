use std::{
    collections::HashMap,
    fmt::Display,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    progress::{Progress, count},
    throttle::Throttle,
};
use crate::{
    protocol, store,
    telemetry::{
        causes,
        trace::{self, Span},
    },
};

/// A kind of background work: how to claim the items that are due, work on one, and release it.
///
/// Working on an item is idempotent.
pub(super) trait Job: Sync {
    /// The name in logs and metrics.
    const NAME: &'static str;
    /// The name of the work that many items share ([`Job::prepare`]).
    const SHARED_NAME: &'static str = Self::NAME;

    /// Work that was claimed under a lease.
    type Item: Clone + Send + Sync;

    fn id(item: &Self::Item) -> impl Display + Send;

    /// Claims up to `limit` items that are due, or fewer if more could not be worked on within their lease.
    fn claim(
        &self,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<Self::Item>, store::Error>> + Send;

    /// Does what can be done for all claimed items in few calls. Returns the items that remain to be worked on one by one.
    fn prepare(
        &self,
        claimed: Vec<Self::Item>,
        _progress: &Progress,
    ) -> impl Future<Output = Prepared<Self::Item>> + Send {
        std::future::ready(Prepared::from(claimed))
    }

    /// Whether working on the item needs calls to Dojo. Such an item waits while background jobs make no calls.
    fn needs_dojo(_item: &Self::Item) -> bool {
        true
    }

    /// Works on one item, for no longer than its lease.
    fn work(&self, item: &Self::Item) -> impl Future<Output = Result<(), protocol::Error>> + Send;

    /// Does what remains to be done for all items of a round together, after each has been worked on. Also runs after a
    /// round without items, to continue what an earlier round left.
    fn finish(
        &self,
        _progress: &Progress,
    ) -> impl Future<Output = Result<(), protocol::Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Releases an item whose work failed, to be claimed again after `wait`. `error` is `None` if its work didn't begin.
    fn release(
        &self,
        item: &Self::Item,
        error: Option<&protocol::Error>,
        wait: Duration,
    ) -> impl Future<Output = Result<(), store::Error>> + Send;
}

/// What remains of the claimed items after the work that they share.
#[derive(Debug)]
pub(super) struct Prepared<T> {
    /// Items to be worked on one by one.
    pub(super) ready: Vec<T>,
    /// Items to be released, because of `error` or because the job is stopping.
    pub(super) deferred: Vec<T>,
    /// Why the shared work failed.
    pub(super) error: Option<protocol::Error>,
}

impl<T> From<Vec<T>> for Prepared<T> {
    fn from(ready: Vec<T>) -> Self {
        Self {
            ready,
            deferred: Vec::new(),
            error: None,
        }
    }
}

/// Runs a [`Job`] in rounds: claim, work, release.
///
/// A panic ends only the work on the item in which it happened.
pub(super) struct Runner<J> {
    pub(super) job: J,
    pub(super) throttle: Arc<Throttle>,
    pub(super) progress: Arc<Progress>,
    /// Wakes the job when something has just become due, so that it doesn't wait for the next poll.
    pub(super) wake: Arc<Notify>,
    pub(super) stop: CancellationToken,
    pub(super) batch: i64,
    pub(super) concurrency: usize,
    pub(super) poll_interval: Duration,
    pub(super) backoff: Backoff,
    /// Whether the shared work panicked in the last round. Items are then claimed one by one, so that the one that causes
    /// the panic doesn't hold up the others.
    pub(super) shared_work_panicked: AtomicBool,
    /// The name of the account whose items these are.
    pub(super) account: String,
}

/// How often an idle job shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The shortest pause after a round that found nothing. Under load, something becomes due all the time, and a round for each
/// of it would cost the database more than the work itself.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

impl<J: Job> Runner<J> {
    /// Runs rounds until told to stop: back to back while there is work, otherwise after a poll interval or a wake-up.
    pub(super) async fn run(&self) {
        while !self.stop.is_cancelled() {
            // Registered before the claim, so that a wake-up during the claim isn't lost.
            let mut woken = std::pin::pin!(self.wake.notified());
            woken.as_mut().enable();
            self.progress.mark();
            let wait = match self.throttle.pause() {
                // Calls to Dojo keep failing.
                Some(pause) => pause,
                None => match self.round().await {
                    Ok(1..) => continue,
                    // Failures are counted and logged already.
                    Ok(0) | Err(_) => self.poll_interval,
                },
            };
            self.idle(wait, woken).await;
        }
    }

    /// Waits until there may be work: for `wait`, or until a wake-up.
    async fn idle(&self, wait: Duration, mut woken: Pin<&mut Notified<'_>>) {
        // A wake-up during this pause is not lost.
        tokio::time::sleep(SHORTEST_PAUSE.min(wait)).await;
        let mut left = wait.saturating_sub(SHORTEST_PAUSE);
        while !left.is_zero() {
            let step = left.min(HEARTBEAT);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = woken.as_mut(), if self.throttle.pause().is_none() => return,
                () = tokio::time::sleep(step) => {}
            }
            self.progress.mark();
            left -= step;
        }
    }

    /// Claims the items that are due and works on them. Returns how many there were.
    async fn round(&self) -> Result<usize, store::Error> {
        let limit = if self.shared_work_panicked.load(Ordering::Relaxed) {
            1
        } else {
            self.throttle.batch_size(self.batch)
        };
        let claimed = self.progress.queried(self.job.claim(limit).await)?;
        let found = claimed.len();
        if found > 0 {
            self.work(claimed).await;
        }
        let finished = AssertUnwindSafe(self.job.finish(&self.progress))
            .catch_unwind()
            .await;
        if let Err(error) = finished.unwrap_or(Err(protocol::Error::Panicked)) {
            self.failed(J::SHARED_NAME, J::SHARED_NAME, &error);
        }
        Ok(found)
    }

    async fn work(&self, claimed: Vec<J::Item>) {
        self.progress.mark();
        let prepared = AssertUnwindSafe(self.job.prepare(claimed.clone(), &self.progress))
            .catch_unwind()
            .await;
        self.shared_work_panicked
            .store(prepared.is_err(), Ordering::Relaxed);
        let prepared = prepared.unwrap_or_else(|_| Prepared {
            ready: Vec::new(),
            deferred: claimed,
            error: Some(protocol::Error::Panicked),
        });
        self.progress.mark();
        let wait = if let Some(error) = &prepared.error {
            self.failed(J::SHARED_NAME, J::SHARED_NAME, error)
        } else {
            self.backoff.reset(J::SHARED_NAME);
            Duration::ZERO
        };
        for item in &prepared.deferred {
            let wait = match prepared.error {
                Some(protocol::Error::Panicked) => self
                    .backoff
                    .next_wait(&J::id(item).to_string(), Concerns::OneItem),
                _ => wait,
            };
            self.release(item, prepared.error.as_ref(), wait).await;
        }
        stream::iter(prepared.ready)
            .for_each_concurrent(self.concurrency, async |item| {
                self.work_on(item).await;
                self.progress.mark();
            })
            .await;
    }

    /// Works on one item and records the outcome.
    async fn work_on(&self, item: J::Item) {
        // Since the item was claimed, calls to Dojo may have begun to fail, or this replica may have been told to stop.
        let leaving = self.stop.is_cancelled().then_some(Duration::ZERO);
        let pause = self.throttle.pause().filter(|_| J::needs_dojo(&item));
        if let Some(wait) = leaving.or(pause) {
            self.release(&item, None, wait).await;
            return;
        }
        self.throttle.ready().await;
        let mut span = Span::of_work(format_args!("job {}", J::NAME));
        span.set("job_name", J::NAME);
        span.set("account", &self.account);
        let work = trace::within(span.place().cloned(), self.job.work(&item));
        let result = AssertUnwindSafe(work)
            .catch_unwind()
            .await
            .unwrap_or(Err(protocol::Error::Panicked));
        if let Err(error) = &result {
            span.failed(judged(error).0);
        }
        drop(span);
        let id = J::id(&item).to_string();
        match result {
            Ok(()) => {
                count(J::NAME, "ok");
                self.backoff.reset(&id);
                if J::needs_dojo(&item) {
                    self.throttle.succeeded();
                }
            }
            Err(error) => {
                let wait = self.failed(J::NAME, &id, &error);
                self.release(&item, Some(&error), wait).await;
            }
        }
    }

    /// Releases an item. If that fails, the item is claimed again once its lease expires.
    async fn release(&self, item: &J::Item, error: Option<&protocol::Error>, wait: Duration) {
        let released = AssertUnwindSafe(self.job.release(item, error, wait))
            .catch_unwind()
            .await;
        if let Ok(Err(error)) = released {
            debug!(job = J::NAME, error = %causes(&error), "an item was not released");
        }
    }

    /// Records a failure. Returns how long to wait before the next attempt.
    fn failed(&self, job: &'static str, id: &str, error: &protocol::Error) -> Duration {
        let (outcome, concerns) = judged(error);
        count(job, outcome);
        let wait = self.backoff.next_wait(id, concerns);
        if matches!(error, protocol::Error::Panicked) {
            // The panic hook has logged where and why.
            error!(
                job,
                item = id,
                ?wait,
                "background work panicked; trying again later"
            );
        } else {
            warn!(job, item = id, ?wait, error = %causes(error), "background work failed; trying again later");
        }
        match error {
            protocol::Error::Dojo(error) => self.throttle.failed(error, id).max(wait),
            _ => wait,
        }
    }
}

/// A failure's name in metrics and traces, and what it is about.
fn judged(error: &protocol::Error) -> (&'static str, Concerns) {
    match error {
        protocol::Error::Store(store::Error::IntentOfAnotherLink { .. }) => {
            ("intent_of_another_link", Concerns::OneItem)
        }
        protocol::Error::Store(_) => ("database", Concerns::Everything),
        protocol::Error::Dojo(error) => (error.name(), Concerns::Everything),
        protocol::Error::Rejected(error) => (error.name(), Concerns::OneItem),
        protocol::Error::TooManyIntents => ("too_many_intents", Concerns::OneItem),
        protocol::Error::TooManyTransactions => ("too_many_transactions", Concerns::OneItem),
        protocol::Error::NotConfirmed => ("not_confirmed", Concerns::OneItem),
        protocol::Error::TimedOut => ("timed_out", Concerns::Everything),
        protocol::Error::Panicked => ("panicked", Concerns::OneItem),
    }
}

/// What a failure is about.
#[derive(Debug, Clone, Copy)]
enum Concerns {
    /// One item: the cause is unlikely to go away soon.
    OneItem,
    /// All work: the cause may go away at any moment.
    Everything,
}

impl Concerns {
    fn longest_wait(self) -> Duration {
        match self {
            Self::OneItem => Duration::from_mins(15),
            Self::Everything => Duration::from_mins(1),
        }
    }
}

/// How many times in a row the work on each item has failed on this replica, and how long to wait after that.
#[derive(Debug, Default)]
pub(super) struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    const FIRST_WAIT: Duration = Duration::from_secs(5);
    /// Beyond this many items, all are forgotten. The only cost is extra calls.
    const MAX_ITEMS: usize = 10_000;

    /// Counts a failure. Returns how long to wait before the next attempt.
    fn next_wait(&self, id: &str, concerns: Concerns) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= Self::MAX_ITEMS && !failures.contains_key(id) {
            failures.clear();
        }
        let before = failures.entry(id.to_owned()).or_insert(0);
        let wait = Self::FIRST_WAIT * 2_u32.saturating_pow((*before).min(16));
        *before = before.saturating_add(1);
        wait.min(concerns.longest_wait())
    }

    fn reset(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three items. Working on the item `bad` panics. So does preparing it, if `shared`.
    struct Panics {
        due: Mutex<Vec<u32>>,
        done: Mutex<Vec<u32>>,
        released: Mutex<Vec<(u32, Duration)>>,
        bad: u32,
        shared: bool,
        stop: CancellationToken,
    }

    impl Job for Panics {
        const NAME: &'static str = "panics";
        type Item = u32;

        fn id(item: &u32) -> impl Display + Send {
            *item
        }

        async fn claim(&self, limit: i64) -> Result<Vec<u32>, store::Error> {
            let mut due = self.due.lock().unwrap();
            let claimed = usize::try_from(limit).unwrap().min(due.len());
            if due.is_empty() {
                self.stop.cancel();
            }
            Ok(due.drain(..claimed).collect())
        }

        async fn prepare(&self, claimed: Vec<u32>, _: &Progress) -> Prepared<u32> {
            assert!(!self.shared || !claimed.contains(&self.bad), "a bug");
            Prepared::from(claimed)
        }

        async fn work(&self, item: &u32) -> Result<(), protocol::Error> {
            assert!(*item != self.bad, "a bug");
            self.done.lock().unwrap().push(*item);
            Ok(())
        }

        async fn release(
            &self,
            item: &u32,
            _: Option<&protocol::Error>,
            wait: Duration,
        ) -> Result<(), store::Error> {
            let mut released = self.released.lock().unwrap();
            released.push((*item, wait));
            // It would be due again after the wait. Here it is due at once, for a few rounds.
            if released.len() < 8 {
                self.due.lock().unwrap().push(*item);
            }
            Ok(())
        }
    }

    async fn run(shared: bool) -> Panics {
        let stop = CancellationToken::new();
        let runner = Runner {
            job: Panics {
                due: Mutex::new(vec![1, 2, 3]),
                done: Mutex::default(),
                released: Mutex::default(),
                bad: 2,
                shared,
                stop: stop.clone(),
            },
            throttle: Arc::new(Throttle::new(1000, Duration::from_mins(5))),
            progress: Arc::new(Progress::new("default", "panics")),
            wake: Arc::default(),
            stop,
            batch: 10,
            concurrency: 1,
            poll_interval: Duration::from_mins(1),
            backoff: Backoff::default(),
            shared_work_panicked: AtomicBool::new(false),
            account: "default".to_owned(),
        };
        tokio::time::timeout(Duration::from_secs(20), runner.run())
            .await
            .expect("it runs until it is told to stop");
        runner.job
    }

    #[tokio::test]
    async fn an_item_that_panics_is_retried_less_and_less_often_and_the_others_are_done() {
        let job = run(false).await;
        assert_eq!(*job.done.lock().unwrap(), [1, 3]);
        let released = job.released.into_inner().unwrap();
        assert_eq!(released.len(), 8);
        assert!(released.iter().all(|(item, _)| *item == 2), "{released:?}");
        assert!(
            released.windows(2).all(|pair| pair[0].1 < pair[1].1),
            "{released:?}"
        );
    }

    #[tokio::test]
    async fn a_panic_in_shared_work_over_one_item_does_not_hold_up_the_others() {
        let job = run(true).await;
        let mut done = job.done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, [1, 3]);
    }

    #[test]
    fn failures_that_concern_one_item_back_off_for_longer() {
        let last = |concerns| {
            let backoff = Backoff::default();
            (0..100).map(|_| backoff.next_wait("a", concerns)).last()
        };
        assert_eq!(last(Concerns::Everything), Some(Duration::from_mins(1)));
        assert_eq!(last(Concerns::OneItem), Some(Duration::from_mins(15)));
        let backoff = Backoff::default();
        let first = backoff.next_wait("a", Concerns::OneItem);
        backoff.next_wait("a", Concerns::OneItem);
        backoff.reset("a");
        assert_eq!(backoff.next_wait("a", Concerns::OneItem), first);
    }
}
