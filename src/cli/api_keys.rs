use std::time::Duration;

use clap::{Args, Subcommand};
use dojo_payment_links::{
    api_key::{ApiKey, Scope},
    config::{DatabaseSettings, Expected, account_name, overlap},
    store::{self, PgPool, api_keys::PERSON_PREFIX},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    accounts,
    outcome::{Result, on_database},
    stdout::{print, print_secret},
};

/// Create, list, rotate and revoke the API keys of the service's clients.
#[derive(Debug, Args)]
pub(super) struct ApiKeys {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the API key of a new client, and print it.
    ///
    /// The key is printed only once, now; the database stores only its hash. Also creates a new key for a client whose keys were
    /// revoked.
    Create {
        /// The client's name, recorded with every action.
        #[arg(long)]
        name: String,
        /// What the key permits, separated by commas: links:read, links:write, links:send, payments:manage,
        /// events:read, callbacks:manage, data:erase.
        #[arg(long, value_delimiter = ',', required = true, value_parser = scope)]
        scopes: Vec<Scope>,
        /// The names of the accounts that the key may use, separated by commas. Default: all accounts, including future
        /// ones. If the settings of `serve` are in the environment, the command warns of names that they don't configure.
        #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = account_name)]
        accounts: Option<Vec<String>>,
    },
    /// List all API keys: client, scopes, accounts, date of creation, and state (active, expiring or revoked).
    List,
    /// Replace a client's API key with a new one with the same scopes and accounts, and print it.
    ///
    /// Idempotency keys belong to the client, so a request that is retried under the new key is still the same request.
    Rotate {
        /// The client's name.
        #[arg(long)]
        name: String,
        /// How long the current key stays valid, from 0s to 31d. Keys replaced by an earlier rotation expire no later
        /// than that.
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = overlap)]
        overlap: Duration,
    },
    /// Revoke all of a client's keys at once. This can't be undone.
    Revoke {
        /// The client's name.
        #[arg(long)]
        name: String,
    },
}

fn scope(text: &str) -> std::result::Result<Scope, Expected> {
    text.parse().map_err(|_| {
        let scopes = Scope::ALL.map(Scope::as_str).join(", ");
        Expected::new(format!("one of {scopes}"))
    })
}

impl ApiKeys {
    pub(super) async fn run(self) -> Result {
        on_database(&self.database, async |pool| match self.command {
            Command::Create {
                name,
                scopes,
                accounts,
            } => create(pool, &name, &scopes, accounts.as_deref()).await,
            Command::List => list(pool).await,
            Command::Rotate { name, overlap } => rotate(pool, &name, overlap).await,
            Command::Revoke { name } => revoke(pool, &name).await,
        })
        .await
    }
}

/// How to get a key in place of one that could not be printed.
const ROTATE: &str = "create another key with api-keys rotate";

async fn create(
    pool: &PgPool,
    name: &str,
    scopes: &[Scope],
    accounts: Option<&[String]>,
) -> Result {
    let name = name.trim();
    // `list` prints it in a column.
    if !(1..=60).contains(&name.chars().count()) || name.contains(char::is_control) {
        return Err(
            "--name must be 1 to 60 characters without control characters such as tabs".into(),
        );
    }
    if name.starts_with(PERSON_PREFIX) {
        let problem =
            format!("--name must not begin with {PERSON_PREFIX}, like people at the console");
        return Err(problem.into());
    }
    let key = ApiKey::generate();
    let scopes: Vec<_> = scopes.iter().map(ToString::to_string).collect();
    if !store::api_keys::create(pool, name, &key.hash(), &scopes, accounts).await? {
        return Err(format!(
            "client {name:?} already has an active key. Use api-keys rotate to replace it"
        )
        .into());
    }
    accounts::warn_of_unknown(accounts.unwrap_or_default());
    print_secret(key.expose(), ROTATE)
}

async fn list(pool: &PgPool) -> Result {
    let keys = store::api_keys::list(pool).await?;
    if keys.is_empty() {
        eprintln!("There is no API key.");
    }
    for key in keys {
        let state = match key.revoked_at {
            None => "active".to_owned(),
            Some(at) if key.revoked => format!("revoked {}", at.date()),
            Some(at) => format!("expires {}", to_the_second(at)?),
        };
        print(format_args!(
            "{}\t{}\t{}\t{}\t{state}\n",
            key.client,
            key.scopes.join(","),
            key.accounts
                .map_or_else(|| "all accounts".to_owned(), |names| names.join(",")),
            key.created_at.date()
        ))?;
    }
    Ok(())
}

async fn rotate(pool: &PgPool, name: &str, overlap: Duration) -> Result {
    let name = name.trim();
    let key = ApiKey::generate();
    let Some(ending) = store::api_keys::rotate(pool, name, &key.hash(), overlap).await? else {
        return Err(format!(
            "client {name:?} has no active key. Use api-keys create to create one"
        )
        .into());
    };
    // Standard output is for the key alone, so that it can be redirected to where it is stored.
    if ending.is_empty() {
        eprintln!("The client's earlier keys are rejected from now on.");
    }
    for at in ending {
        eprintln!(
            "An earlier key of the client is valid until {}.",
            to_the_second(at)?
        );
    }
    print_secret(key.expose(), ROTATE)
}

async fn revoke(pool: &PgPool, name: &str) -> Result {
    let name = name.trim();
    if store::api_keys::revoke(pool, name).await? {
        eprintln!("All API keys of client {name:?} are rejected from now on.");
        Ok(())
    } else {
        Err(format!("client {name:?} has no active key").into())
    }
}

/// Rounds down, so that nobody expects the key to be valid for longer than it is.
fn to_the_second(at: OffsetDateTime) -> Result<String> {
    Ok(at.truncate_to_second().format(&Rfc3339)?)
}
