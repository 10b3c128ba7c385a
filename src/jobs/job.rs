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

use super::{supervisor::Progress, throttle::Throttle};
use crate::{protocol, store, telemetry::causes};

/// A kind of background work: how to claim what is due of it, and how to do a piece of it.
///
/// Doing a piece twice changes nothing.
pub(super) trait Job: Sync {
    /// Its name in logs and metrics.
    const NAME: &'static str;
    /// The name of what it does for many pieces at once ([`Job::prepare`]).
    const SHARED: &'static str = Self::NAME;

    /// A piece of work, claimed under a lease.
    type Item: Clone + Send + Sync;

    /// What identifies a piece of work.
    fn id(item: &Self::Item) -> impl Display + Send;

    /// Claims up to `limit` pieces that are due, or fewer where more could not be done within their lease.
    fn claim(
        &self,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<Self::Item>, store::Error>> + Send;

    /// Does what can be done for all claimed pieces in few calls, and tells which are left to be done one by one.
    fn prepare(
        &self,
        claimed: Vec<Self::Item>,
        _progress: &Progress,
    ) -> impl Future<Output = Prepared<Self::Item>> + Send {
        std::future::ready(Prepared::from(claimed))
    }

    /// Whether a piece needs calls to Dojo, so that it has to wait while Dojo is left alone.
    fn needs_dojo(_item: &Self::Item) -> bool {
        true
    }

    /// Does a piece of work, for no longer than its lease.
    fn work(&self, item: &Self::Item) -> impl Future<Output = Result<(), protocol::Error>> + Send;

    /// Does what is left to be done for all of a round's pieces together, once each has been done. Also runs after a round
    /// without any, to go on with what an earlier one left.
    fn finish(
        &self,
        _progress: &Progress,
    ) -> impl Future<Output = Result<(), protocol::Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Gives a piece back that was not done, to be claimed again after `wait`. `error` is `None` if it was not begun.
    fn release(
        &self,
        item: &Self::Item,
        error: Option<&protocol::Error>,
        wait: Duration,
    ) -> impl Future<Output = Result<(), store::Error>> + Send;
}

/// What is left of the claimed pieces after the work that they share.
#[derive(Debug)]
pub(super) struct Prepared<T> {
    /// To be done one by one.
    pub(super) ready: Vec<T>,
    /// Cannot be done now, because of `trouble` or because the job was told to stop.
    pub(super) held_up: Vec<T>,
    /// Why the shared work came to no end.
    pub(super) trouble: Option<protocol::Error>,
}

impl<T> From<Vec<T>> for Prepared<T> {
    fn from(ready: Vec<T>) -> Self {
        Self {
            ready,
            held_up: Vec::new(),
            trouble: None,
        }
    }
}

/// Runs a [`Job`]: claims, works, releases, again and again.
///
/// A panic ends the piece of work that it happened in and nothing else.
pub(super) struct Runner<J> {
    pub(super) job: J,
    pub(super) throttle: Arc<Throttle>,
    pub(super) progress: Arc<Progress>,
    /// Rung when something became due just now, so that it need not wait for the next poll.
    pub(super) wake: Arc<Notify>,
    pub(super) stop: CancellationToken,
    pub(super) batch: i64,
    pub(super) concurrency: usize,
    pub(super) poll_interval: Duration,
    pub(super) strikes: Strikes,
    /// Whether the shared work panicked the last time. Pieces are claimed one by one then, so that the one it panics
    /// over does not hold up the others.
    pub(super) shaken: AtomicBool,
}

/// How long an idle job waits at most before it shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);

impl<J: Job> Runner<J> {
    /// Rounds until told to stop: one after the other while there is work, else after a while or when the wake rings.
    pub(super) async fn run(&self) {
        while !self.stop.is_cancelled() {
            // Before the claim: what becomes due while the claim is under way rings a wake that is heard.
            let mut woken = std::pin::pin!(self.wake.notified());
            woken.as_mut().enable();
            self.progress.mark();
            let wait = match self.throttle.pause() {
                // Dojo is in trouble; it is not asked at all for a while.
                Some(pause) => pause,
                None => match self.round().await {
                    Ok(0) => self.poll_interval,
                    Ok(_) => continue,
                    Err(error) => {
                        // Readiness tells of it; here it would be told every second.
                        debug!(error = %causes(&error), "the database failed");
                        self.poll_interval
                    }
                },
            };
            self.rest(wait, woken).await;
        }
    }

    /// Waits until there may be something to do.
    async fn rest(&self, wait: Duration, mut woken: Pin<&mut Notified<'_>>) {
        let mut left = wait;
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

    /// Claims what is due and does it; tells how many pieces there were.
    async fn round(&self) -> Result<usize, store::Error> {
        let most = if self.shaken.load(Ordering::Relaxed) {
            1
        } else {
            self.throttle.batch(self.batch)
        };
        let claimed = self.job.claim(most).await?;
        let found = claimed.len();
        if found > 0 {
            self.work(claimed).await;
        }
        let finished = AssertUnwindSafe(self.job.finish(&self.progress))
            .catch_unwind()
            .await;
        if let Err(error) = finished.unwrap_or(Err(protocol::Error::Panicked)) {
            self.failed(J::SHARED, J::SHARED, &error);
        }
        Ok(found)
    }

    /// Does the claimed pieces of work.
    async fn work(&self, claimed: Vec<J::Item>) {
        self.progress.mark();
        let prepared = AssertUnwindSafe(self.job.prepare(claimed.clone(), &self.progress))
            .catch_unwind()
            .await;
        self.shaken.store(prepared.is_err(), Ordering::Relaxed);
        let prepared = prepared.unwrap_or_else(|_| Prepared {
            ready: Vec::new(),
            held_up: claimed,
            trouble: Some(protocol::Error::Panicked),
        });
        self.progress.mark();
        let wait = if let Some(error) = &prepared.trouble {
            self.failed(J::SHARED, J::SHARED, error)
        } else {
            self.strikes.forget(J::SHARED);
            Duration::ZERO
        };
        for item in &prepared.held_up {
            let wait = match prepared.trouble {
                Some(protocol::Error::Panicked) => {
                    self.strikes.backoff(&J::id(item).to_string(), true)
                }
                _ => wait,
            };
            self.release(item, prepared.trouble.as_ref(), wait).await;
        }
        stream::iter(prepared.ready)
            .for_each_concurrent(self.concurrency, async |item| {
                self.piece(item).await;
                self.progress.mark();
            })
            .await;
    }

    /// Does a piece of work and notes how it ended.
    async fn piece(&self, item: J::Item) {
        // Dojo may have got into trouble since the piece was claimed, or this replica been told to leave.
        let leaving = self.stop.is_cancelled().then_some(Duration::ZERO);
        let pause = self.throttle.pause().filter(|_| J::needs_dojo(&item));
        if let Some(wait) = leaving.or(pause) {
            self.release(&item, None, wait).await;
            return;
        }
        self.throttle.turn().await;
        let result = AssertUnwindSafe(self.job.work(&item))
            .catch_unwind()
            .await
            .unwrap_or(Err(protocol::Error::Panicked));
        let id = J::id(&item).to_string();
        match result {
            Ok(()) => {
                count(J::NAME, "ok");
                self.strikes.forget(&id);
                if J::needs_dojo(&item) {
                    self.throttle.went_well();
                }
            }
            Err(error) => {
                let wait = self.failed(J::NAME, &id, &error);
                self.release(&item, Some(&error), wait).await;
            }
        }
    }

    /// Gives a piece back. If that fails, its lease runs out and somebody takes it up all the same.
    async fn release(&self, item: &J::Item, error: Option<&protocol::Error>, wait: Duration) {
        let released = AssertUnwindSafe(self.job.release(item, error, wait))
            .catch_unwind()
            .await;
        if let Ok(Err(error)) = released {
            debug!(job = J::NAME, error = %causes(&error), "a piece of work was not given back");
        }
    }

    /// Notes that something went wrong; tells how long to leave it alone.
    fn failed(&self, job: &'static str, id: &str, error: &protocol::Error) -> Duration {
        let (outcome, own) = match error {
            protocol::Error::Store(store::Error::IntentOfAnotherLink { .. }) => {
                ("intent_of_another_link", true)
            }
            protocol::Error::Store(_) => ("database", false),
            protocol::Error::Dojo(error) => (error.name(), false),
            protocol::Error::Rejected(error) => (error.name(), true),
            protocol::Error::TooManyIntents => ("too_many_intents", true),
            protocol::Error::TimedOut => ("timed_out", false),
            protocol::Error::Panicked => ("panicked", true),
        };
        count(job, outcome);
        let wait = self.strikes.backoff(id, own);
        if matches!(error, protocol::Error::Panicked) {
            // The panic hook has logged where and why.
            error!(
                job,
                item = id,
                ?wait,
                "a piece of work panicked; it is tried again later"
            );
        } else {
            warn!(job, item = id, ?wait, error = %causes(error), "to be tried again");
        }
        match error {
            protocol::Error::Dojo(error) => self.throttle.went_wrong(error, id).max(wait),
            _ => wait,
        }
    }
}

fn count(job: &'static str, outcome: &'static str) {
    metrics::counter!("jobs_total", "job" => job, "outcome" => outcome).increment(1);
}

/// How often in a row each piece of work has gone wrong, on this replica.
#[derive(Debug, Default)]
pub(super) struct Strikes(Mutex<HashMap<String, u32>>);

impl Strikes {
    const FIRST: Duration = Duration::from_secs(5);
    /// What keeps going wrong may be over any moment, for it concerns everything.
    const LONGEST: Duration = Duration::from_mins(1);
    /// What concerns one piece alone is not over soon.
    const LONGEST_OWN: Duration = Duration::from_mins(15);
    /// Beyond this many, all are forgotten: they only save calls.
    const MOST: usize = 10_000;

    /// Counts a failure; tells how long to leave the piece alone. `own`: whether the reason lies in the piece itself.
    fn backoff(&self, id: &str, own: bool) -> Duration {
        let mut strikes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if strikes.len() >= Self::MOST && !strikes.contains_key(id) {
            strikes.clear();
        }
        let before = strikes.entry(id.to_owned()).or_insert(0);
        let wait = Self::FIRST * 2_u32.saturating_pow((*before).min(16));
        *before = before.saturating_add(1);
        wait.min(if own {
            Self::LONGEST_OWN
        } else {
            Self::LONGEST
        })
    }

    fn forget(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three pieces of work. Doing the piece `bad` panics; so does preparing it, if `shared`.
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
            // It is due again after the wait; here twice, and at once.
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
            throttle: Arc::new(Throttle::new(1000)),
            progress: Arc::new(Progress::new("default", "panics")),
            wake: Arc::default(),
            stop,
            batch: 10,
            concurrency: 1,
            poll_interval: Duration::from_mins(1),
            strikes: Strikes::default(),
            shaken: AtomicBool::new(false),
        };
        tokio::time::timeout(Duration::from_secs(20), runner.run())
            .await
            .expect("it goes on until it is told to stop");
        runner.job
    }

    #[tokio::test]
    async fn a_piece_that_panics_backs_off_longer_and_longer_and_the_others_are_done() {
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
    async fn work_that_is_shared_and_panics_over_one_piece_does_not_hold_up_the_others() {
        let job = run(true).await;
        let mut done = job.done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, [1, 3]);
    }

    #[test]
    fn what_concerns_one_piece_alone_is_left_alone_for_longer() {
        let last = |own| {
            let strikes = Strikes::default();
            (0..100).map(|_| strikes.backoff("a", own)).last()
        };
        assert_eq!(last(false), Some(Strikes::LONGEST));
        assert_eq!(last(true), Some(Strikes::LONGEST_OWN));
        let strikes = Strikes::default();
        let first = strikes.backoff("a", true);
        strikes.backoff("a", true);
        strikes.forget("a");
        assert_eq!(strikes.backoff("a", true), first);
    }
}
