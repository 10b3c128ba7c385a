//! The command line: picks a command and runs it.

use std::{error::Error, net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use dojo_payment_links::{
    api::{
        auth::{self, Scope},
        openapi,
    },
    application::{Application, stop_signal},
    config::{DatabaseSettings, LogSettings, ServeSettings, account_name},
    store, telemetry,
};
use secrecy::ExposeSecret;

/// Makes payment links at Dojo, keeps their state true, and never says paid when it is not.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: LogSettings,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service.
    Serve(Box<ServeSettings>),
    /// Brings the database's schema up to this version, and ends.
    Migrate(DatabaseSettings),
    /// Makes, lists and revokes API keys.
    ApiKeys {
        #[command(flatten)]
        database: DatabaseSettings,
        #[command(subcommand)]
        command: ApiKeys,
    },
    /// Asks a running service whether it is ready; exits 1 if not. For containers.
    Healthcheck(Healthcheck),
    /// Prints the OpenAPI document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum ApiKeys {
    /// Makes a key and prints it, this once: only its hash is kept.
    Create {
        /// What to call it; shown on what is done with it.
        #[arg(long)]
        name: String,
        /// What it is good for, separated by commas: links:read, links:write, payments:manage.
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        /// The accounts that it is open to, by name, separated by commas. Default: all, also those to come.
        #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = account_name)]
        accounts: Option<Vec<String>>,
    },
    /// Lists the keys: name, scopes, accounts, the day each was made, whether it is active.
    List,
    /// Revokes a key, at once and for good.
    Revoke {
        /// The key's name.
        #[arg(long)]
        name: String,
    },
}

#[derive(Debug, Args)]
struct Healthcheck {
    /// The address that the service listens on.
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080")]
    listen_addr: SocketAddr,
}

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", telemetry::causes(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result {
    telemetry::init_logs(&cli.log)?;
    // Postgres and Dojo are both reached through rustls, which has to be told once whose cryptography to use.
    // It fails only if somebody told it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Serve(settings) => {
            let application = Application::build(&settings).await?;
            Ok(application.run(stop_signal()).await?)
        }
        Command::Migrate(database) => {
            let pool = store::pool(&database)?;
            Ok(store::migrate(&pool).await?)
        }
        Command::ApiKeys { database, command } => {
            let pool = store::pool(&database)?;
            match command {
                ApiKeys::Create {
                    name,
                    scopes,
                    accounts,
                } => create_key(&pool, &name, &scopes, accounts.as_deref()).await,
                ApiKeys::List => list_keys(&pool).await,
                ApiKeys::Revoke { name } => revoke_key(&pool, &name).await,
            }
        }
        Command::Healthcheck(settings) => healthcheck(settings.listen_addr).await,
        Command::Openapi => {
            print!("{}", openapi::to_yaml(&openapi::document()));
            Ok(())
        }
    }
}

async fn create_key(
    pool: &sqlx::PgPool,
    name: &str,
    scopes: &[Scope],
    accounts: Option<&[String]>,
) -> Result {
    let name = name.trim();
    if !(1..=60).contains(&name.chars().count()) {
        return Err("a key's name has 1 to 60 characters".into());
    }
    let (key, hash) = auth::new_key();
    let scopes: Vec<_> = scopes.iter().map(ToString::to_string).collect();
    if !store::api_keys::insert(pool, name, &hash, &scopes, accounts).await? {
        return Err(format!("there is an active key {name:?} already; revoke it first").into());
    }
    println!("{}", key.expose_secret());
    Ok(())
}

async fn list_keys(pool: &sqlx::PgPool) -> Result {
    for key in store::api_keys::list(pool).await? {
        let state = key.revoked_at.map_or_else(
            || "active".to_owned(),
            |at| format!("revoked {}", at.date()),
        );
        println!(
            "{}\t{}\t{}\t{}\t{state}",
            key.name,
            key.scopes.join(","),
            key.accounts
                .map_or_else(|| "all accounts".to_owned(), |names| names.join(",")),
            key.created_at.date()
        );
    }
    Ok(())
}

async fn revoke_key(pool: &sqlx::PgPool, name: &str) -> Result {
    if store::api_keys::revoke(pool, name).await? {
        Ok(())
    } else {
        Err(format!("there is no active key {name:?}").into())
    }
}

async fn healthcheck(mut address: SocketAddr) -> Result {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(3))
        .no_proxy()
        .build()?;
    client
        .get(format!("http://{address}/readyz"))
        .send()
        .await?
        .error_for_status()?;
    Ok(())
}
