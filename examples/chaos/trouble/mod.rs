//! What goes wrong. Each trouble is an entry of one table, has a random generator of its own, and can be left out.

mod database;
mod dojo;
mod keys;
mod processes;

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use clap::ValueEnum;
use rand::{RngExt, rngs::StdRng};
use reqwest::StatusCode;
use tokio::time::{Instant, sleep};

use crate::{
    mail,
    promise::{Promise, broken},
    stage::{Replica, Result, Stage},
};

const READY_AGAIN: Duration = Duration::from_secs(20);

/// A kind of trouble. The comments are the help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Trouble {
    /// calls to Dojo fail before or after the work is done, or take too long
    Calls,
    /// Dojo accepts a call and never responds, and the connection stays open
    SilentCalls,
    /// Dojo's responses have absurd headers
    Headers,
    /// Dojo's responses never end
    EndlessResponses,
    /// one of Dojo's nodes has a clock that runs ahead
    ClockAhead,
    /// Dojo responds with another intent than the one that was requested
    OtherIntents,
    /// Dojo's search lags behind
    Search,
    /// webhooks are lost, duplicated, delayed or reordered
    Webhooks,
    /// webhooks signed with a stolen secret say that links are paid
    Forgeries,
    /// parts are refunded in Dojo's portal between the service's own refunds
    PortalRefunds,
    /// replicas are killed
    Kills,
    /// a replica is stopped for longer than a lease, and continues
    Freezes,
    /// the database is stopped as by a power cut
    Outages,
    /// a replica's connections to the database go silent
    SilentDatabase,
    /// the database accepts no writes for a while
    ReadOnlyDatabase,
    /// the callers' API key is rotated, and the old one ends at once
    RotatedKeys,
    /// another session locks some of the newest links
    LockedLinks,
    /// the mail server refuses messages, loses its responses, and is killed
    MailServer,
}

impl Trouble {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// Makes this trouble until `until`.
    pub async fn run(self, stage: &Stage, damage: &Damage, rng: StdRng, until: Instant) -> Result {
        match self {
            Self::Calls => dojo::calls(stage, rng, until).await,
            Self::SilentCalls => dojo::silent_calls(stage, damage, rng, until).await,
            Self::Headers => dojo::headers(stage, damage, rng, until).await,
            Self::EndlessResponses => dojo::endless_responses(stage, damage, rng, until).await,
            Self::ClockAhead => dojo::clock_ahead(stage, damage, rng, until).await,
            Self::OtherIntents => dojo::other_intents(stage, damage, rng, until).await,
            Self::Search => dojo::search(stage, rng, until).await,
            Self::Webhooks => dojo::webhooks(stage, rng, until).await,
            Self::Kills => processes::kills(stage, damage, rng, until).await,
            Self::Freezes => processes::freezes(stage, damage, rng, until).await,
            Self::Outages => database::outages(stage, damage, rng, until).await,
            Self::SilentDatabase => database::silence(stage, damage, rng, until).await,
            Self::ReadOnlyDatabase => database::read_only(stage, damage, rng, until).await,
            Self::RotatedKeys => keys::rotations(stage, damage, rng, until).await,
            Self::LockedLinks => database::locks(stage, damage, rng, until).await,
            Self::MailServer => mail::trouble(stage, damage, rng, until).await,
            Self::Forgeries => dojo::forgeries(stage, damage, rng, until).await,
            // Happens between the operators' own refunds: see `operators`.
            Self::PortalRefunds => Ok(()),
        }
    }
}

/// How often each trouble happened.
#[derive(Default)]
pub struct Damage(RefCell<BTreeMap<Trouble, u64>>);

impl Damage {
    pub fn note(&self, trouble: Trouble) {
        *self.0.borrow_mut().entry(trouble).or_default() += 1;
    }

    pub fn tally(&self) -> Vec<String> {
        let counts = self.0.borrow();
        counts
            .iter()
            .map(|(trouble, count)| format!("{count} {}", trouble.name()))
            .collect()
    }
}

pub async fn pause(rng: &mut StdRng, milliseconds: std::ops::Range<u64>, until: Instant) -> bool {
    let pause = Duration::from_millis(rng.random_range(milliseconds));
    sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
    Instant::now() < until
}

/// Waits until a replica is ready, or is no longer up.
async fn ready_again(stage: &Stage, replica: &Replica, after: &str) -> Result {
    let limit = Instant::now() + READY_AGAIN;
    while replica.is_up() {
        let answer = replica.answers(&stage.http, "/readyz").await;
        if answer == Some(StatusCode::OK) || !replica.is_up() {
            break;
        }
        if Instant::now() > limit {
            let what = format!("answers {answer:?} {READY_AGAIN:?} after {after}");
            return broken(Promise::Ready, &replica.name, what);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Ends all trouble, and waits until every replica is ready.
pub async fn calm(stage: &Stage) -> Result {
    dojo::calm(stage).await?;
    mail::calm(stage).await?;
    for replica in &stage.replicas {
        ready_again(stage, replica, "all trouble has ended").await?;
    }
    Ok(())
}
