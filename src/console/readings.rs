//! What the health page reads from the database.
//!
//! Each reading is kept for some seconds, for everybody who looks at the page on this replica, and only one is made at a time. So
//! the page costs the database no more than the job does that reports the same as metrics, however often it is loaded. Every
//! query has a limit or reads an index that contains hardly more than what waits. The largest, of up to 100,000 links, is made
//! once a minute.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use time::{Date, OffsetDateTime};
use tokio::sync::Mutex;

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

/// How many business days back the comparisons with Dojo's list are looked at.
const COMPARED: time::Duration = time::Duration::days(10);

/// How many business days back differences count.
const DIFFERENCES: time::Duration = time::Duration::days(31);

/// Readings by what they are about.
struct Kept<T>(Mutex<HashMap<String, (Instant, Arc<T>)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    /// The reading about `what`, which `read` makes if there is none that is fresh. There must be a limited number of `what`s.
    async fn get<E>(
        &self,
        what: &str,
        fresh: Duration,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<Arc<T>, E> {
        // Locked until it was read: whoever comes meanwhile gets the same reading.
        let mut kept = self.0.lock().await;
        if let Some((at, reading)) = kept.get(what)
            && at.elapsed() < fresh
        {
            return Ok(Arc::clone(reading));
        }
        let reading = Arc::new(read.await?);
        kept.insert(what.to_owned(), (Instant::now(), Arc::clone(&reading)));
        Ok(reading)
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
