//! What the health page reads from the database.
//!
//! Each reading is kept for some seconds, for everybody who looks at the page on this replica, and is made once at a time. So
//! the page costs the database no more than the job does that reports the same as metrics, however often it is loaded. Every
//! query has a limit or reads an index that contains hardly more than what waits. The largest, of up to 100,000 links, is made
//! once a minute.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use time::{Date, OffsetDateTime};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    golive::check::{self, Check},
    payment_link::{
        Environment, Status, daily_reconciliation::ComparedDay, movement::BusinessDays,
    },
    store::{
        self, PgPool, attention, callback_deliveries, callback_endpoints, daily_reconciliation,
        links, messages, movements, operation_recovery, reconciliation, webhooks,
    },
};

/// How long a reading is shown.
const FRESH: Duration = Duration::from_secs(5);
const FRESH_RECENT: Duration = Duration::from_mins(1);

/// How long to wait for a reading that somebody else is making. Otherwise, while the database is slow, people who load the page at
/// the same time would wait in turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many business days back the comparisons with Dojo's list are looked at.
const COMPARED: time::Duration = time::Duration::days(10);

/// How many business days back differences count.
const DIFFERENCES: time::Duration = time::Duration::days(31);

/// A reading and when it was made, or `None` if there is none yet.
type Reading<T> = Arc<Mutex<Option<(Instant, Arc<T>)>>>;

/// Readings by what they are about.
struct Kept<T> {
    readings: Mutex<HashMap<String, Reading<T>>>,
    patience: Duration,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            readings: Mutex::default(),
            patience: PATIENCE,
        }
    }
}

impl<T> Kept<T> {
    /// The reading about `what`, which `read` makes if there is none that is fresh. There must be a limited number of `what`s.
    async fn get(
        &self,
        what: &str,
        fresh: Duration,
        read: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<Arc<T>, store::Error> {
        let mut readings = self.readings.lock().await;
        let reading = Arc::clone(readings.entry(what.to_owned()).or_default());
        drop(readings);
        // Locked until it was read: whoever comes meanwhile gets the same reading.
        let locked = timeout(self.patience, reading.lock()).await;
        let mut reading = locked.map_err(|_| store::Error::Slow)?;
        if let Some((at, made)) = &*reading
            && at.elapsed() < fresh
        {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(read.await?);
        *reading = Some((Instant::now(), Arc::clone(&made)));
        Ok(made)
    }
}

/// What is known about the database, and about what belongs to no account.
pub(super) struct OfAll {
    pub(super) checks: Vec<Check>,
    pub(super) unbooked: movements::Backlog,
    /// When the last genuine webhook was stored.
    pub(super) last_webhook: Option<OffsetDateTime>,
}

/// What is known about an account.
pub(super) struct OfAccount {
    pub(super) links: reconciliation::Backlog,
    pub(super) operations: operation_recovery::Backlog,
    pub(super) messages: messages::Backlog,
    pub(super) attention: attention::Counts,
    /// `None`: the books aren't compared with Dojo's list.
    pub(super) books: Option<OfBooks>,
}

pub(super) struct OfBooks {
    pub(super) summary: daily_reconciliation::Summary,
    /// The last business day that was compared.
    pub(super) last_day: Option<ComparedDay>,
}

/// A callback endpoint, and what it has got.
pub(super) struct OfEndpoint {
    pub(super) id: String,
    pub(super) url: String,
    /// The accounts whose events it gets, if it gets only those of some.
    accounts: Option<Vec<String>>,
    pub(super) is_paused: bool,
    pub(super) backlog: callback_deliveries::Backlog,
}

impl OfEndpoint {
    /// Whether somebody with access to these accounts may see it.
    pub(super) fn is_open_to(&self, open: Option<&[String]>) -> bool {
        open.is_none_or(|open| {
            let accounts = self.accounts.as_ref();
            accounts.is_some_and(|accounts| accounts.iter().all(|name| open.contains(name)))
        })
    }
}

/// What the health page has read lately.
#[derive(Default)]
pub(super) struct Readings {
    all: Kept<OfAll>,
    accounts: Kept<OfAccount>,
    recent: Kept<Vec<(Status, i64)>>,
    endpoints: Kept<Vec<OfEndpoint>>,
}

impl Readings {
    pub(super) async fn of_all(
        &self,
        pool: &PgPool,
        environment: Environment,
    ) -> Result<Arc<OfAll>, store::Error> {
        let read = async {
            Ok(OfAll {
                checks: check::of_database(pool, environment).await,
                unbooked: movements::backlog(pool).await?,
                last_webhook: webhooks::newest(pool).await?,
            })
        };
        self.all.get("", FRESH, read).await
    }

    /// What is known about an account that is configured.
    pub(super) async fn of_account(
        &self,
        pool: &PgPool,
        account: &str,
        days: &BusinessDays,
        are_books_compared: bool,
    ) -> Result<Arc<OfAccount>, store::Error> {
        let read = async {
            let today = movements::current_day(pool, days).await?;
            let open = [account.to_owned()];
            let since = today.saturating_sub(DIFFERENCES);
            Ok(OfAccount {
                links: reconciliation::backlog(pool, account).await?,
                operations: operation_recovery::backlog(pool, account).await?,
                messages: messages::backlog(pool, account).await?,
                attention: attention::counts(pool, Some(&open), since).await?,
                books: if are_books_compared {
                    Some(of_books(pool, account, today).await?)
                } else {
                    None
                },
            })
        };
        self.accounts.get(account, FRESH, read).await
    }

    /// How many links of an account were created in the last 24 hours, by their status.
    pub(super) async fn recent_links(
        &self,
        pool: &PgPool,
        account: &str,
    ) -> Result<Arc<Vec<(Status, i64)>>, store::Error> {
        let read = links::recent(pool, account);
        self.recent.get(account, FRESH_RECENT, read).await
    }

    pub(super) async fn of_endpoints(
        &self,
        pool: &PgPool,
    ) -> Result<Arc<Vec<OfEndpoint>>, store::Error> {
        let read = async {
            let backlogs = callback_deliveries::backlog(pool).await?;
            let endpoints = callback_endpoints::list(pool, None).await?.into_iter();
            let found = endpoints.filter_map(|endpoint| {
                let backlog = backlogs.iter().find(|backlog| backlog.id == endpoint.id)?;
                Some(OfEndpoint {
                    id: endpoint.id.to_string(),
                    url: endpoint.url,
                    accounts: endpoint.accounts,
                    is_paused: endpoint.pause_reason.is_some(),
                    backlog: *backlog,
                })
            });
            Ok(found.collect())
        };
        self.endpoints.get("", FRESH, read).await
    }
}

/// How an account's books compare with Dojo's list of transactions.
async fn of_books(pool: &PgPool, account: &str, today: Date) -> Result<OfBooks, store::Error> {
    let summary = daily_reconciliation::summary(pool, account).await?;
    let filter = daily_reconciliation::Filter {
        account: Some(account.to_owned()),
        from: Some(today.saturating_sub(COMPARED)),
        ..daily_reconciliation::Filter::default()
    };
    let mut days = daily_reconciliation::list(pool, &filter, None, 11).await?;
    Ok(OfBooks {
        summary,
        last_day: days.pop(),
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_reading_that_takes_long_keeps_nobody_else_waiting_for_long() {
        let kept = Arc::new(Kept {
            patience: Duration::from_millis(10),
            ..Kept::default()
        });
        let slow = tokio::spawn({
            let kept = Arc::clone(&kept);
            async move { kept.get("slow", FRESH, pending()).await }
        });
        // It begins.
        tokio::task::yield_now().await;
        let other = kept.get("other", FRESH, ready(Ok(1))).await.unwrap();
        assert_eq!(*other, 1);
        let same = async || kept.get("slow", FRESH, ready(Ok(2))).await;
        let (one, two) = tokio::join!(same(), same());
        assert!(matches!(one, Err(store::Error::Slow)));
        assert!(matches!(two, Err(store::Error::Slow)));

        // Whoever comes once it has ended makes a new one.
        slow.abort();
        slow.await.unwrap_err();
        assert_eq!(*same().await.unwrap(), 2);
    }
}
