//! What `check` finds at Dojo and the mail server, for the health page.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{OptionFuture, join};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use time::OffsetDateTime;
use tokio::{sync::watch, time::timeout};
use url::Url;

use crate::{
    api::AppState,
    golive::check::{self, Check},
    mail::Mailer,
};

/// How old results may get before a page that shows them has them checked again.
const FRESH: Duration = Duration::from_mins(5);

/// How often people may have them checked again, on this replica.
const ON_DEMAND: NonZeroU32 = NonZeroU32::new(6).expect("it is not zero");

/// How long a page waits for results. If Dojo takes longer, it shows the ones before.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the checks need to know besides the accounts.
pub struct Outside {
    /// The base URL of Dojo's API.
    pub dojo_api: Url,
    /// The base URL at which the internet reaches this service, if it is known.
    pub public_url: Option<Url>,
    /// `None` if no emails are sent.
    pub mailer: Option<Arc<Mailer>>,
}

/// What was found at Dojo and the mail server.
pub(super) struct Found {
    /// Of each account.
    pub(super) checks: Vec<Check>,
    /// `None` if no emails are sent.
    pub(super) mail: Option<Vec<Check>>,
    pub(super) at: OffsetDateTime,
    begun: Instant,
}

/// The last results, and whether there will be newer ones soon.
#[derive(Clone, Default)]
pub(super) struct Latest {
    pub(super) found: Option<Arc<Found>>,
    pub(super) is_checking: bool,
}

/// Checks Dojo's side and the mail server, for all people at once: never twice at the same time, by itself at most every five minutes, and only while
/// somebody looks. The calls are made in a task of their own, which has a time limit and uses no database connection, so one that
/// is slow keeps neither a page nor the service waiting.
pub(super) struct DojoChecks(Arc<Shared>);

struct Shared {
    state: AppState,
    outside: Outside,
    latest: watch::Sender<Latest>,
    on_demand: DefaultDirectRateLimiter,
}

/// Says that nobody is checking any more, however the task ends.
struct Checking(Arc<Shared>);

impl Drop for Checking {
    fn drop(&mut self) {
        self.0
            .latest
            .send_modify(|latest| latest.is_checking = false);
    }
}

impl DojoChecks {
    pub(super) fn new(state: AppState, outside: Outside) -> Self {
        Self(Arc::new(Shared {
            state,
            outside,
            latest: watch::Sender::default(),
            on_demand: RateLimiter::direct(Quota::per_minute(ON_DEMAND)),
        }))
    }

    /// The latest results. If there are none, or only old ones, everything is checked first.
    pub(super) async fn latest(&self) -> Latest {
        let is_fresh = |found: &Arc<Found>| found.begun.elapsed() < FRESH;
        if !self.0.latest.borrow().found.as_ref().is_some_and(is_fresh) {
            self.begin();
        }
        let mut latest = self.0.latest.subscribe();
        // If that takes too long, the previous results are returned.
        let _ = timeout(PATIENCE, latest.wait_for(|latest| !latest.is_checking)).await;
        let latest = latest.borrow();
        latest.clone()
    }

    /// Has everything checked again. Returns whether it is.
    pub(super) fn again(&self) -> bool {
        let may = self.0.on_demand.check().is_ok();
        if may {
            self.begin();
        }
        may
    }

    fn begin(&self) {
        let begins = self.0.latest.send_if_modified(|latest| {
            let begins = !latest.is_checking;
            latest.is_checking = true;
            begins
        });
        if !begins {
            return;
        }
        let checking = Checking(Arc::clone(&self.0));
        // A shutdown doesn't wait for it: it only reads.
        tokio::spawn(async move {
            let Shared {
                state,
                outside,
                latest,
                ..
            } = &*checking.0;
            let begun = Instant::now();
            let public_url = outside.public_url.as_ref();
            let mailer = outside.mailer.as_deref();
            let (checks, mail) = join(
                check::at_dojo(&state.accounts, &outside.dojo_api, public_url),
                OptionFuture::from(mailer.map(check::of_mail)),
            )
            .await;
            let found = Found {
                checks,
                mail,
                at: OffsetDateTime::now_utc(),
                begun,
            };
            latest.send_modify(|latest| latest.found = Some(Arc::new(found)));
        });
    }
}
