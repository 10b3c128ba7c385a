//! Proves a deployment before it takes money: every setting, the database, Dojo, its webhooks and the clocks. Changes
//! nothing, asks everything even where something fails, and takes no longer than its time limits.

use std::{fmt, time::Duration};

use futures_util::{future::join, future::join_all};
use serde::Serialize;
use time::OffsetDateTime;
use url::Url;

use super::{
    EVENTS, STATUS_UPDATED, account_flag,
    address::{is_same, objection},
    is_known, listed, mend, reason, secrets_setting,
    subscriptions::wanted,
    webhook_address,
};
use crate::{
    api::auth,
    config::{ConfigError, PublicUrl, ServeSettings},
    dojo::{Account, Accounts, Probe, Subscription},
    payment_link::Environment,
    store::{self, Diagnosis, PgPool, condition::OLDEST_POSTGRES},
    telemetry,
};

/// How long all questions to the database may take, and those to Dojo about one account.
const LIMIT: Duration = Duration::from_secs(30);

/// How far two clocks may differ. Deadlines are told by Dojo's clock and by the database's, and logs by this one.
const CLOCKS: Duration = Duration::from_secs(30);

/// What was found: a line each for people (`Display`), an object each for machines (`Serialize`).
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether everything holds.
    ok: bool,
    checks: Vec<Check>,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    /// The Dojo account that it is about.
    account: Option<String>,
    outcome: Outcome,
    /// What was found; never a secret.
    detail: String,
    /// What to do about a failure.
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Failed,
    /// Not asked, because of what failed before. Nothing is proven.
    Skipped,
}

const SETTINGS: &str = "settings";
/// The checks of the database, in their order; the later need the earlier.
const DATABASE: [&str; 6] = [
    "database",
    "migrations",
    "writable",
    "environment",
    "api-keys",
    "database-clock",
];
/// The checks of each account, in their order.
const ACCOUNT: [&str; 5] = [
    "dojo",
    "dojo-clock",
    "webhook-address",
    "webhook-events",
    "webhook-secrets",
];

impl Report {
    /// The report where the settings cannot even be read.
    #[must_use]
    pub fn unreadable(problem: impl fmt::Display) -> Self {
        let mut lines = Lines::new(None);
        lines.fail(SETTINGS, problem, "correct it");
        for name in DATABASE.into_iter().chain(ACCOUNT) {
            lines.skip(name, "the settings cannot be read");
        }
        Self::of(lines.0)
    }

    fn of(checks: Vec<Check>) -> Self {
        Self {
            ok: checks.iter().all(|check| check.outcome == Outcome::Passed),
            checks,
        }
    }

    /// Whether everything holds.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.ok
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let (mark, why) = match check.outcome {
                Outcome::Passed => ('✔', ""),
                Outcome::Failed => ('✘', ""),
                Outcome::Skipped => ('✘', "skipped, because "),
            };
            let name = match &check.account {
                Some(account) => format!("{} ({account})", check.name),
                None => check.name.to_owned(),
            };
            write!(f, "{mark} {name:27} {why}{}", check.detail)?;
            if let Some(mend) = &check.mend {
                write!(f, " → {mend}")?;
            }
            writeln!(f)?;
        }
        let count = |outcome| {
            self.checks
                .iter()
                .filter(|check| check.outcome == outcome)
                .count()
        };
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            count(Outcome::Passed),
            count(Outcome::Failed),
            count(Outcome::Skipped)
        )
    }
}

/// The lines so far.
struct Lines(Vec<Check>, Option<String>);

impl Lines {
    fn new(account: Option<&Account>) -> Self {
        Self(Vec::new(), account.map(|account| account.name.clone()))
    }

    fn add(
        &mut self,
        name: &'static str,
        outcome: Outcome,
        detail: impl fmt::Display,
        mend: Option<String>,
    ) {
        self.0.push(Check {
            name,
            account: self.1.clone(),
            outcome,
            // One line each, whatever an error says.
            detail: detail
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            mend,
        });
    }

    fn pass(&mut self, name: &'static str, detail: impl fmt::Display) {
        self.add(name, Outcome::Passed, detail, None);
    }

    fn fail(&mut self, name: &'static str, detail: impl fmt::Display, mend: impl fmt::Display) {
        self.add(name, Outcome::Failed, detail, Some(mend.to_string()));
    }

    fn skip(&mut self, name: &'static str, because: &str) {
        self.add(name, Outcome::Skipped, because, None);
    }

    /// Skips whatever of these has no line yet.
    fn skip_rest(&mut self, names: &[&'static str], because: &str) {
        for name in names {
            if !self.0.iter().any(|check| check.name == *name) {
                self.skip(name, because);
            }
        }
    }
}

/// Asks everything.
pub async fn run(settings: &ServeSettings, public_url: &PublicUrl) -> Report {
    let mut lines = Lines::new(None);
    let accounts = Accounts::from_settings(&settings.dojo);
    let pool = PgPool::new(&settings.database);
    let url = public_url.get();
    let bootstrap = settings
        .bootstrap_api_key()
        .and_then(|key| key.as_ref().map(auth::bootstrap_key_hash).transpose());

    // Every fault at once.
    let mut faults: Vec<String> = [
        accounts.as_ref().err(),
        pool.as_ref().err(),
        bootstrap.as_ref().err(),
        url.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .map(|error: &ConfigError| telemetry::causes(error).to_string())
    .collect();
    for account in accounts.iter().flat_map(Accounts::iter) {
        if account.webhook_secrets.is_empty() {
            faults.push(format!(
                "account {} has no webhook secret, so every webhook of it is refused: set {} (webhooks register \
                 shows it)",
                account.name,
                secrets_setting(account)
            ));
        }
    }
    if faults.is_empty() {
        let names = accounts
            .iter()
            .flat_map(Accounts::iter)
            .map(|account| &account.name);
        lines.pass(SETTINGS, format!("complete; accounts: {}", listed(names)));
    } else {
        lines.fail(SETTINGS, faults.join("; "), "correct it; see serve --help");
    }

    let environment = accounts.as_ref().ok().map(Accounts::environment);
    let database = async {
        if let Ok(pool) = &pool {
            return database(pool, environment).await;
        }
        let mut lines = Lines::new(None);
        lines.skip_rest(&DATABASE, "the settings do not say where the database is");
        lines
    };
    let dojo = async {
        if let Ok(accounts) = &accounts {
            let url = url.as_ref().map(Option::as_ref).map_err(|_| ());
            let each = accounts
                .iter()
                .map(|each| account(each, &settings.dojo.api_url, url));
            return join_all(each).await;
        }
        let mut lines = Lines::new(None);
        lines.skip_rest(&ACCOUNT, "the settings do not name the Dojo accounts");
        vec![lines]
    };
    let (database, dojo) = join(database, dojo).await;
    let mut checks = lines.0;
    checks.extend(database.0);
    checks.extend(dojo.into_iter().flat_map(|lines| lines.0));
    Report::of(checks)
}

/// The checks of the database.
async fn database(pool: &PgPool, environment: Option<Environment>) -> Lines {
    let mut lines = Lines::new(None);
    let asked = tokio::time::timeout(LIMIT, ask_database(pool, environment, &mut lines)).await;
    match asked {
        Ok(Ok(())) => {}
        Ok(Err((name, found))) => {
            lines.fail(name, found.problem, found.remedy);
            lines.skip_rest(&DATABASE, "the database does not answer");
        }
        Err(_) => lines.skip_rest(&DATABASE, "the database takes too long"),
    }
    lines
}

async fn ask_database(
    pool: &PgPool,
    environment: Option<Environment>,
    lines: &mut Lines,
) -> Result<(), (&'static str, Diagnosis)> {
    let [
        database,
        migrations,
        writable,
        of_environment,
        api_keys,
        clock,
    ] = DATABASE;
    let at = |name| move |error| (name, pool.diagnose(&error));

    pool.probe().await.map_err(|found| (database, found))?;

    let server = store::condition::server(pool).await.map_err(at(database))?;
    let here = OffsetDateTime::now_utc();
    if server.version < OLDEST_POSTGRES {
        lines.fail(
            database,
            format!("Postgres {}", server.version),
            format!("the service needs {OLDEST_POSTGRES} or newer"),
        );
    } else {
        lines.pass(database, format!("Postgres {}", server.version));
    }

    let found = store::condition::migrations(pool)
        .await
        .map_err(at(migrations))?;
    let numbers = |versions: &[i64]| listed(versions.iter().map(ToString::to_string));
    let is_migrated = found.pending.is_empty() && found.broken.is_empty();
    if !found.broken.is_empty() {
        lines.fail(
            migrations,
            format!(
                "{} did not end, or differ from this version's",
                numbers(&found.broken)
            ),
            "this is another program's database, or was changed by hand: restore it",
        );
    } else if !found.pending.is_empty() {
        lines.fail(
            migrations,
            format!("pending: {}", numbers(&found.pending)),
            "run dojo-payment-links migrate",
        );
    } else if !found.unknown.is_empty() {
        lines.fail(
            migrations,
            format!(
                "{} are of a later version than this program",
                numbers(&found.unknown)
            ),
            "deploy that version; this one runs beside it for the time of an upgrade",
        );
    } else {
        lines.pass(migrations, format!("all applied, up to {}", found.newest));
    }

    if server.reads_only {
        lines.fail(
            writable,
            "the server only reads, as a standby does",
            "point DATABASE_URL to the primary",
        );
    } else {
        lines.pass(writable, "yes");
    }

    if is_migrated {
        let held = store::deployment::claimed(pool)
            .await
            .map_err(at(of_environment))?;
        match (held, environment) {
            (Some(held), Some(wanted)) if held == wanted => {
                lines.pass(
                    of_environment,
                    format!("the database is for {}", held.as_str()),
                );
            }
            (None, Some(wanted)) => lines.pass(
                of_environment,
                format!(
                    "not settled yet: the first start makes it {}",
                    wanted.as_str()
                ),
            ),
            (Some(held), Some(wanted)) => lines.fail(
                of_environment,
                format!(
                    "the key is for {}, and the database for {}",
                    wanted.as_str(),
                    held.as_str()
                ),
                "give each a database of its own",
            ),
            (_, None) => lines.skip(of_environment, "the settings do not name the Dojo accounts"),
        }
        match store::api_keys::count_active_clients(pool).await.map_err(at(api_keys))? {
            0 => lines.fail(
                api_keys,
                "no client has an active key, so nobody can call the service",
                "run dojo-payment-links api-keys create --name orders --scopes links:read,links:write",
            ),
            count => lines.pass(api_keys, format!("clients with an active key: {count}")),
        }
    } else {
        lines.skip_rest(&[of_environment, api_keys], "the database is not migrated");
    }
    compare_clocks(lines, clock, (server.now - here).unsigned_abs());
    Ok(())
}

/// The line of a clock that is so far from this machine's.
fn compare_clocks(lines: &mut Lines, name: &'static str, apart: Duration) {
    let detail = format!("{:.1} s apart from this machine's", apart.as_secs_f64());
    if apart > CLOCKS {
        lines.fail(name, detail, "set both by NTP");
    } else {
        lines.pass(name, detail);
    }
}

/// The checks of one account. `Err` for an address that is wrong, which the settings' line says already.
async fn account(account: &Account, dojo: &Url, url: Result<Option<&Url>, ()>) -> Lines {
    let mut lines = Lines::new(Some(account));
    let asked = tokio::time::timeout(LIMIT, ask_dojo(account, dojo, url, &mut lines)).await;
    if asked.is_err() {
        lines.skip_rest(&ACCOUNT, "Dojo takes too long");
    }
    lines
}

async fn ask_dojo(account: &Account, dojo: &Url, url: Result<Option<&Url>, ()>, lines: &mut Lines) {
    let [accepted, clock, of_address, of_events, of_secrets] = ACCOUNT;
    match account.client.probe().await {
        Ok(probe) => {
            lines.pass(
                accepted,
                match account.environment {
                    Environment::Sandbox => "Dojo takes the key; sandbox: test money",
                    Environment::Production => "Dojo takes the key; PRODUCTION: REAL MONEY",
                },
            );
            clock_of_dojo(lines, clock, probe);
        }
        Err(error) => {
            let mend = mend(account, &error).unwrap_or_else(|| {
                "see that DOJO_API_URL and DOJO_API_VERSION are right".to_owned()
            });
            lines.fail(accepted, reason(&error), mend);
            lines.skip_rest(&ACCOUNT, "Dojo did not take the first call");
            return;
        }
    }

    let asked = join(
        account.client.offered_events(),
        account.client.subscriptions(),
    )
    .await;
    let (offered, subscriptions) = match asked {
        (Ok(offered), Ok(subscriptions)) => (offered, subscriptions),
        (Err(error), _) | (_, Err(error)) => {
            lines.fail(
                of_address,
                format!("Dojo does not tell of its webhooks: {}", reason(&error)),
                "see that the key may manage webhooks; look in Dojo's developer portal",
            );
            lines.skip_rest(&ACCOUNT, "Dojo does not tell of its webhooks");
            return;
        }
    };
    let ours = webhook_address_of(account, dojo, url, &subscriptions, lines, of_address);
    let Some(ours) = ours.filter(|ours| !ours.is_empty()) else {
        lines.skip_rest(&ACCOUNT, "there is no subscription for this service");
        return;
    };
    events(account, &offered, &ours, lines, of_events);
    secrets(account, &ours, lines, of_secrets);
}

fn clock_of_dojo(lines: &mut Lines, name: &'static str, probe: Probe) {
    let Some(date) = probe.date else {
        lines.fail(
            name,
            "Dojo's answer has no Date",
            "see what stands between here and Dojo",
        );
        return;
    };
    // It was some time between the question and the answer, and `Date` leaves out what a second is short of.
    let earliest = probe.asked - time::Duration::SECOND;
    let apart = if date > probe.answered {
        date - probe.answered
    } else if date < earliest {
        earliest - date
    } else {
        time::Duration::ZERO
    };
    compare_clocks(lines, name, apart.unsigned_abs());
}

fn has(subscription: &Subscription, event: &str) -> bool {
    subscription.events.iter().any(|held| held == event)
}

/// Whether Dojo sends to this service. Answers the subscriptions that are looked at further.
fn webhook_address_of<'a>(
    account: &Account,
    dojo: &Url,
    url: Result<Option<&Url>, ()>,
    subscriptions: &'a [Subscription],
    lines: &mut Lines,
    name: &'static str,
) -> Option<Vec<&'a Subscription>> {
    let matter: Vec<_> = subscriptions
        .iter()
        .filter(|subscription| EVENTS.iter().any(|event| has(subscription, event)))
        .collect();
    let found = if matter.is_empty() {
        "Dojo sends nothing anywhere".to_owned()
    } else {
        format!(
            "Dojo sends to {}",
            listed(matter.iter().map(|subscription| &subscription.url))
        )
    };
    let base = match url {
        Ok(Some(base)) => base,
        Ok(None) => {
            lines.fail(
                name,
                format!("nothing proves that Dojo reaches this service: its public address is not given. {found}"),
                "give it with --url or PUBLIC_URL",
            );
            return Some(matter);
        }
        Err(()) => {
            lines.skip(name, "the public address is wrong");
            return Some(matter);
        }
    };
    if let Some(objection) = objection(base, dojo) {
        lines.fail(
            name,
            format!("{base} {objection}"),
            "give the address that the world calls",
        );
        return Some(matter);
    }
    let expected = webhook_address(base, &account.name);
    let (ours, elsewhere): (Vec<_>, Vec<_>) = matter
        .into_iter()
        .partition(|subscription| is_same(&subscription.url, &expected));
    if ours.is_empty() {
        let replace = if elsewhere.is_empty() {
            ""
        } else {
            " --replace, if nobody needs them there"
        };
        lines.fail(
            name,
            format!("nothing is sent to {expected}. {found}"),
            format!(
                "run dojo-payment-links webhooks register --url {base}{}{replace}",
                account_flag(account)
            ),
        );
        return None;
    }
    lines.pass(name, expected);
    Some(ours)
}

fn events(
    account: &Account,
    offered: &[String],
    ours: &[&Subscription],
    lines: &mut Lines,
    name: &'static str,
) {
    let (wanted, not_offered) = wanted(offered);
    let missing: Vec<_> = wanted
        .iter()
        .filter(|event| !ours.iter().any(|subscription| has(subscription, event)))
        .collect();
    if !wanted.contains(&STATUS_UPDATED) {
        lines.fail(
            name,
            format!("the account offers no {STATUS_UPDATED}, and nothing else tells of payments"),
            "ask Dojo for it",
        );
    } else if !missing.is_empty() {
        lines.fail(
            name,
            format!("not subscribed: {}", listed(missing)),
            format!(
                "run dojo-payment-links webhooks register{} again",
                account_flag(account)
            ),
        );
    } else if not_offered.is_empty() {
        lines.pass(name, listed(wanted));
    } else {
        lines.pass(
            name,
            format!(
                "{}; the account does not offer {}",
                listed(wanted),
                listed(not_offered)
            ),
        );
    }
}

fn secrets(account: &Account, ours: &[&Subscription], lines: &mut Lines, name: &'static str) {
    let active =
        |subscription: &&&Subscription| subscription.secrets.iter().any(|secret| secret.is_active);
    let unsigned: Vec<_> = ours
        .iter()
        .filter(|subscription| !active(subscription))
        .map(|subscription| &subscription.id)
        .collect();
    let signing: Vec<_> = ours
        .iter()
        .flat_map(|subscription| &subscription.secrets)
        .filter(|secret| secret.is_active)
        .collect();
    let with = |known| {
        signing
            .iter()
            .filter(move |secret| is_known(account, secret) == known)
            .map(|secret| &secret.id)
    };
    if !unsigned.is_empty() {
        lines.fail(
            name,
            format!(
                "no secret of {} is active, so its webhooks come unsigned",
                listed(unsigned)
            ),
            format!(
                "run dojo-payment-links webhooks register{} again",
                account_flag(account)
            ),
        );
    } else if with(Some(false)).next().is_some() {
        lines.fail(
            name,
            format!(
                "{} signs, and the settings do not hold it: what it signs is refused",
                listed(with(Some(false)))
            ),
            format!(
                "add it to {}; webhooks register shows it",
                secrets_setting(account)
            ),
        );
    } else if with(None).next().is_some() {
        lines.pass(
            name,
            format!(
                "there is one; NOT PROVEN to be right, for Dojo does not show {}: pay a link with a test card, and see \
                 its webhook come",
                listed(with(None))
            ),
        );
    } else {
        lines.pass(
            name,
            format!(
                "{} signs, and the settings hold it",
                listed(with(Some(true)))
            ),
        );
    }
}
