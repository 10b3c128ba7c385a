use std::{
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    job::{Job, Prepared},
    progress::Progress,
    shared::Jobs,
};
use crate::{
    dojo,
    payment_link::movement::BusinessDays,
    protocol::{self, daily_reconciliation::ListedDay},
    store::{self, daily_reconciliation::DueDay},
};

/// How often to look for days that are due, in poll intervals. They are due once a day.
const POLLS: u32 = 30;

/// Longer than reading a day's transactions should take. Doing it twice changes nothing.
const LEASE: Duration = Duration::from_mins(30);

/// Compares the books of each business day with Dojo's list of transactions.
pub(super) struct DailyReconciliation {
    jobs: Jobs,
    days: BusinessDays,
    /// When it last found that no day was due.
    nothing_due_at: Mutex<Option<Instant>>,
}

impl DailyReconciliation {
    pub(super) fn new(jobs: Jobs, days: BusinessDays) -> Self {
        Self {
            jobs,
            days,
            nothing_due_at: Mutex::default(),
        }
    }

    fn is_idle(&self) -> bool {
        let pause = self.jobs.settings.poll_interval * POLLS;
        let at = *self
            .nothing_due_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < pause)
    }

    async fn list(&self, due: &DueDay, progress: &Progress) -> Result<ListedDay, protocol::Error> {
        let context = &self.jobs.context;
        let ready = || self.jobs.ready(progress);
        let listed = protocol::daily_reconciliation::list(
            &context.pool,
            &context.account,
            &self.days,
            due.day,
            ready,
        )
        .await;
        match listed {
            // It may concern the list of transactions alone.
            Err(protocol::Error::Dojo(error @ dojo::Error::KeyRejected { .. })) => {
                Err(self.jobs.attribute(error).await)
            }
            Err(protocol::Error::Dojo(error @ dojo::Error::Rejected { .. })) => {
                Err(protocol::Error::Rejected(error))
            }
            listed => listed,
        }
    }
}

/// A day to compare, with Dojo's transactions once they are read.
#[derive(Clone)]
pub(super) struct Day {
    due: DueDay,
    listed: Option<Arc<ListedDay>>,
}

impl Job for DailyReconciliation {
    const NAME: &'static str = "daily_reconciliation";
    const SHARED_NAME: &'static str = "transactions";

    type Item = Day;

    fn id(item: &Day) -> impl Display + Send {
        item.due.day
    }

    async fn claim(&self, _limit: i64) -> Result<Vec<Day>, store::Error> {
        if self.is_idle() {
            return Ok(Vec::new());
        }
        let context = &self.jobs.context;
        let name = &context.account.name;
        let due =
            store::daily_reconciliation::claim(&context.pool, name, &self.days, LEASE).await?;
        *self
            .nothing_due_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = due.is_none().then(Instant::now);
        let day = due.map(|due| Day { due, listed: None });
        Ok(day.into_iter().collect())
    }

    async fn prepare(&self, claimed: Vec<Day>, progress: &Progress) -> Prepared<Day> {
        let (mut ready, mut deferred, mut error) = (Vec::new(), Vec::new(), None);
        for mut item in claimed {
            let listed = tokio::select! {
                listed = self.list(&item.due, progress) => listed,
                () = self.jobs.stop.cancelled() => {
                    deferred.push(item);
                    continue;
                }
            };
            match listed {
                Ok(listed) => {
                    self.jobs.throttle.succeeded();
                    item.listed = Some(Arc::new(listed));
                    ready.push(item);
                }
                Err(failure) => {
                    error = Some(failure);
                    deferred.push(item);
                }
            }
        }
        Prepared {
            ready,
            deferred,
            error,
        }
    }

    fn needs_dojo(_item: &Day) -> bool {
        false
    }

    async fn work(&self, item: &Day) -> Result<(), protocol::Error> {
        let context = &self.jobs.context;
        if let Some(listed) = &item.listed {
            protocol::daily_reconciliation::compare_day(
                &context.pool,
                &context.account,
                &self.days,
                listed,
            )
            .await?;
        }
        Ok(())
    }

    async fn release(
        &self,
        item: &Day,
        error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        let context = &self.jobs.context;
        let (pool, account) = (&context.pool, &context.account.name);
        match error {
            // The key may not read transactions, or there are too many: trying again soon doesn't help.
            Some(protocol::Error::Rejected(_) | protocol::Error::TooManyTransactions) => {
                store::daily_reconciliation::unavailable(pool, account, item.due.day).await
            }
            _ => store::daily_reconciliation::release(pool, account, &item.due, wait).await,
        }
    }
}
