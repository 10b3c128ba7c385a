//! The command line: picks a command and runs it.

use std::{
    error::Error,
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    builder::OsStringValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use dojo_payment_links::{
    api::{
        auth::{self, Scope},
        openapi,
    },
    application::{Application, stop_signal},
    config::{
        DatabaseSettings, DojoSettings, LogSettings, PublicUrl, ServeSettings, account_name,
        overlap,
    },
    dojo::{Account, Accounts},
    golive::{self, check::Report},
    payment_link::OperationId,
    protocol::operation_recovery::{Finding, settle},
    store::{self, PgPool},
    telemetry,
};
use secrecy::ExposeSecret;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

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
    /// Makes, lists, changes and revokes the API keys of the service's clients.
    ApiKeys {
        #[command(flatten)]
        database: DatabaseSettings,
        #[command(subcommand)]
        command: ApiKeys,
    },
    /// Shows and settles captures, refunds and other operations of which nobody can tell whether they were done.
    Operations {
        #[command(flatten)]
        database: DatabaseSettings,
        #[command(subcommand)]
        command: Operations,
    },
    /// Proves a deployment before it takes money: settings, database, Dojo, webhooks, clocks. Changes nothing. A line
    /// each, with what to do about it; exits 1 unless everything holds.
    Check(Box<Check>),
    /// Shows and sets up what Dojo sends to this service, and changes the secrets that it is signed with.
    Webhooks {
        #[command(flatten)]
        dojo: Box<DojoSettings>,
        #[command(subcommand)]
        command: Webhooks,
    },
    /// Asks a running service whether it is alive; exits 1 if not. For containers: restarting it cures no outage of the
    /// database, so readiness is not asked for.
    Healthcheck(Healthcheck),
    /// Prints the OpenAPI document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum ApiKeys {
    /// Gives a client its first API key and prints it, this once: only its hash is kept. A client whose keys were revoked
    /// gets another one the same way, and stays the same client.
    Create {
        /// The client's name, shown on what it does.
        #[arg(long)]
        name: String,
        /// What the key may do, separated by commas: links:read, links:write, payments:manage.
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        /// The accounts that it is open to, by name, separated by commas. Default: all, also those to come.
        #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = account_name)]
        accounts: Option<Vec<String>>,
    },
    /// Lists each client's keys: client, scopes, accounts, the day each was made, and whether it is active, expires or was
    /// revoked.
    List,
    /// Gives a client a new API key in place of its current one, with the same scopes and accounts, and prints it. It stays
    /// the same client, so a request that is repeated under the new key is a repetition.
    Rotate {
        /// The client's name.
        #[arg(long)]
        name: String,
        /// How long the current key goes on working: 0 to 31days. With 0 it is rejected at once. Keys that an earlier
        /// rotation has replaced end no later than that.
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = overlap)]
        overlap: Duration,
    },
    /// Revokes all of a client's keys, at once and for good.
    Revoke {
        /// The client's name.
        #[arg(long)]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum Operations {
    /// Lists the operations that are Unconfirmed: id, what, amount, account, payment intent, link, who asked and when.
    Unconfirmed,
    /// Says what became of one, once somebody has looked at the payment in Dojo's portal. What a refund that was not
    /// made had reserved can be refunded again.
    Settle {
        /// The operation's id, op_…
        #[arg(long, value_name = "ID")]
        id: OperationId,
        /// Whether it is there.
        #[arg(long)]
        outcome: Settled,
    },
}

/// What a person found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Settled {
    /// It was done.
    Done,
    /// It was not done.
    NotDone,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    settings: ServeSettings,

    #[command(flatten)]
    public_url: PublicUrl,

    /// Writes JSON: `ok`, and `checks` with `name`, `account`, `outcome` (passed, failed or skipped), `detail` and
    /// `mend`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Webhooks {
    /// Lists what Dojo sends where: subscriptions, events, secrets by their ids.
    List {
        /// The account. Default: all.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Writes JSON.
        #[arg(long)]
        json: bool,
    },
    /// Has Dojo send the events that matter to this service. Run again, it changes nothing. Writes the secret to
    /// configure to standard output, unless the settings hold it.
    Register {
        /// The account. May be left out where there is one only.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        #[command(flatten)]
        public_url: PublicUrl,
        /// Takes these events from other addresses that Dojo sends them to. It sends an event to one only.
        #[arg(long)]
        replace: bool,
    },
    /// Changes the secret that webhooks are signed with, in two steps. Without --every-replica-knows it makes one that
    /// does not sign yet, writes what to configure (old and new) to standard output, and says how to go on.
    RotateSecret {
        /// The account. May be left out where there is one only.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// The subscription, where several send events to this service.
        #[arg(long, value_name = "ID")]
        subscription: Option<String>,
        /// Says that every replica runs with this secret in its settings. It then signs, and every other is deleted
        /// at Dojo.
        #[arg(long, value_name = "SECRET_ID")]
        every_replica_knows: Option<String>,
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unreadable(error),
    };
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", telemetry::causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Names every setting that cannot be read, which `check` does in its own form; or ends with what clap says.
fn unreadable(error: clap::Error) -> ExitCode {
    let faults = match faults(error) {
        Ok(faults) => faults,
        Err(error) => error.exit(),
    };
    let given = |word: &str| std::env::args().any(|argument| argument == word);
    if given("check") {
        let report = Report::unreadable(faults.join("; "));
        return tell(&report, given("--json")).unwrap_or(ExitCode::FAILURE);
    }
    for fault in &faults {
        eprintln!("error: {fault}");
    }
    eprintln!("For more information, try '--help'.");
    ExitCode::from(2)
}

/// What is wrong with every value that cannot be read, by the name that it was given with. Clap stops at the first, so
/// all is parsed again with that one taken as it is, until none is left. An `Err` is about no value.
fn faults(first: clap::Error) -> std::result::Result<Vec<String>, clap::Error> {
    let mut faults = Vec::new();
    let mut command = Cli::command();
    let mut error = first;
    loop {
        let reason = match (error.kind(), error.get(ContextKind::ValidValue)) {
            (ErrorKind::InvalidValue, Some(ContextValue::Strings(words))) if !words.is_empty() => {
                format!("is none of {}", words.join(", "))
            }
            (ErrorKind::InvalidValue, _) => "is empty".to_owned(),
            (ErrorKind::ValueValidation, _) => match error.source().map(ToString::to_string) {
                Some(cause) if cause.starts_with("is ") => cause,
                Some(cause) => format!("is wrong: {cause}"),
                None => "is wrong".to_owned(),
            },
            _ => break,
        };
        let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
            break;
        };
        let mut name = None;
        command = taken_as_it_is(command, argument, &mut name);
        let Some(name) = name else { break };
        faults.push(format!("{name} {reason}"));
        match command.clone().try_get_matches() {
            Ok(_) => break,
            Err(next) => error = next,
        }
    }
    if faults.is_empty() {
        Err(error)
    } else {
        Ok(faults)
    }
}

/// The command line with an argument that may be anything. `name` becomes that by which it was given: its flag, or its
/// environment variable.
fn taken_as_it_is(
    command: clap::Command,
    argument: &str,
    name: &mut Option<String>,
) -> clap::Command {
    let command = command.mut_args(|arg| {
        let flag = format!("--{}", arg.get_long().unwrap_or_default());
        if argument.split(' ').next() != Some(&flag) {
            return arg;
        }
        let is_flag = std::env::args()
            .any(|given| given.split_once('=').map_or(&*given, |(name, _)| name) == flag);
        let variable = arg.get_env().filter(|_| !is_flag);
        *name = Some(variable.map_or(flag, |variable| variable.to_string_lossy().into_owned()));
        arg.value_parser(OsStringValueParser::new())
    });
    command.mut_subcommands(|below| taken_as_it_is(below, argument, name))
}

async fn run(cli: Cli) -> Result<ExitCode> {
    telemetry::init_logs(&cli.log)?;
    // Postgres and Dojo are both reached through rustls, which has to be told once whose cryptography to use.
    // It fails only if somebody told it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match cli.command {
        Command::Check(check) => {
            let report = golive::check::run(&check.settings, &check.public_url).await;
            return tell(&report, check.json);
        }
        Command::Webhooks { dojo, command } => webhooks(&dojo, command).await,
        Command::Serve(settings) => {
            let application = Application::build(&settings).await?;
            Ok(application.run(stop_signal()).await?)
        }
        Command::Migrate(database) => Ok(store::migrate(&PgPool::new(&database)?).await?),
        Command::ApiKeys { database, command } => {
            on_database(&database, async |pool| match command {
                ApiKeys::Create {
                    name,
                    scopes,
                    accounts,
                } => create_key(pool, &name, &scopes, accounts.as_deref()).await,
                ApiKeys::List => list_keys(pool).await,
                ApiKeys::Rotate { name, overlap } => rotate_key(pool, &name, overlap).await,
                ApiKeys::Revoke { name } => revoke_key(pool, &name).await,
            })
            .await
        }
        Command::Operations { database, command } => {
            on_database(&database, async |pool| match command {
                Operations::Unconfirmed => list_unconfirmed(pool).await,
                Operations::Settle { id, outcome } => {
                    let finding = match outcome {
                        Settled::Done => Finding::Performed,
                        Settled::NotDone => Finding::NotPerformed,
                    };
                    if settle(pool, id, finding).await? {
                        Ok(())
                    } else {
                        Err(format!("there is no Unconfirmed operation {id}").into())
                    }
                }
            })
            .await
        }
        Command::Healthcheck(settings) => healthcheck(settings.listen_addr).await,
        Command::Openapi => {
            print!("{}", openapi::to_yaml(&openapi::document()));
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Does a command's work on the database. What is wrong with the database is told with what to do about it.
async fn on_database(
    settings: &DatabaseSettings,
    work: impl AsyncFnOnce(&PgPool) -> Result,
) -> Result {
    let pool = PgPool::new(settings)?;
    pool.probe().await?;
    work(&pool)
        .await
        .map_err(|error| match error.downcast::<store::Error>() {
            Ok(error) => pool.diagnose(&error).into(),
            Err(error) => error,
        })
}

fn tell(report: &Report, json: bool) -> Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(report)?)?;
    } else {
        writeln!(stdout, "{report}")?;
    }
    Ok(if report.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn webhooks(settings: &DojoSettings, command: Webhooks) -> Result {
    let accounts = Accounts::from_settings(settings)?;
    let done = match command {
        Webhooks::List { account, json } => {
            let chosen: Vec<_> = match account {
                Some(_) => vec![choose(&accounts, account.as_deref())?],
                None => accounts.iter().collect(),
            };
            let mut overviews = Vec::new();
            for account in chosen {
                overviews.push(golive::subscriptions::overview(account).await?);
            }
            if json {
                println!("{}", serde_json::to_string_pretty(&overviews)?);
            } else {
                for overview in &overviews {
                    println!("{overview}");
                }
            }
            return Ok(());
        }
        Webhooks::Register {
            account,
            public_url,
            replace,
        } => {
            let account = choose(&accounts, account.as_deref())?;
            let url = public_url
                .get()?
                .ok_or("--url or PUBLIC_URL is required: the base of the public address")?;
            golive::subscriptions::register(account, &url, &settings.api_url, replace).await?
        }
        Webhooks::RotateSecret {
            account,
            subscription,
            every_replica_knows,
        } => {
            let account = choose(&accounts, account.as_deref())?;
            let subscription = subscription.as_deref();
            match every_replica_knows {
                None => golive::rotation::begin(account, subscription).await?,
                Some(secret) => golive::rotation::end(account, subscription, &secret).await?,
            }
        }
    };
    // What to do goes to people, and the secret to whatever puts it where the settings come from.
    for words in &done.words {
        eprintln!("{words}");
    }
    if let Some(secrets) = &done.secrets {
        println!("{}", secrets.expose_secret());
    }
    Ok(())
}

/// The account of this name, or the only one.
fn choose<'a>(accounts: &'a Accounts, name: Option<&str>) -> Result<&'a Account> {
    let names: Vec<_> = accounts
        .iter()
        .map(|account| account.name.as_str())
        .collect();
    match name {
        Some(name) => accounts.get(name).ok_or_else(|| {
            format!(
                "there is no account {name:?}; there is {}",
                names.join(", ")
            )
            .into()
        }),
        None => accounts
            .iter()
            .next()
            .filter(|_| names.len() == 1)
            .ok_or_else(|| format!("name one with --account: {}", names.join(", ")).into()),
    }
}

async fn create_key(
    pool: &PgPool,
    name: &str,
    scopes: &[Scope],
    accounts: Option<&[String]>,
) -> Result {
    let name = name.trim();
    if !(1..=60).contains(&name.chars().count()) {
        return Err("a client's name has 1 to 60 characters".into());
    }
    let (key, hash) = auth::new_key();
    let scopes: Vec<_> = scopes.iter().map(ToString::to_string).collect();
    if !store::api_keys::create(pool, name, &hash, &scopes, accounts).await? {
        return Err(format!(
            "the client {name:?} has an active key already; api-keys rotate gives it a new one"
        )
        .into());
    }
    println!("{}", key.expose_secret());
    Ok(())
}

async fn list_keys(pool: &PgPool) -> Result {
    for key in store::api_keys::list(pool).await? {
        let state = match key.revoked_at {
            None => "active".to_owned(),
            Some(at) if key.revoked => format!("revoked {}", at.date()),
            Some(at) => format!("expires {}", to_the_second(at)?),
        };
        println!(
            "{}\t{}\t{}\t{}\t{state}",
            key.client,
            key.scopes.join(","),
            key.accounts
                .map_or_else(|| "all accounts".to_owned(), |names| names.join(",")),
            key.created_at.date()
        );
    }
    Ok(())
}

async fn rotate_key(pool: &PgPool, name: &str, overlap: Duration) -> Result {
    let name = name.trim();
    let (key, hash) = auth::new_key();
    let Some(ending) = store::api_keys::rotate(pool, name, &hash, overlap).await? else {
        return Err(
            format!("the client {name:?} has no active key; api-keys create gives it one").into(),
        );
    };
    // Standard output is the key's alone, so that it can go straight to where it is kept.
    if ending.is_empty() {
        eprintln!("The client's earlier keys are rejected from now on.");
    }
    for at in ending {
        eprintln!(
            "An earlier key of the client works until {}.",
            to_the_second(at)?
        );
    }
    println!("{}", key.expose_secret());
    Ok(())
}

fn to_the_second(at: OffsetDateTime) -> Result<String> {
    // Rounded down: the key must not be promised to work for longer than it does.
    Ok(at.truncate_to_second().format(&Rfc3339)?)
}

async fn list_unconfirmed(pool: &PgPool) -> Result {
    for operation in store::operation_recovery::unconfirmed(pool).await? {
        println!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            operation.id,
            operation.action.kind(),
            operation
                .action
                .amount()
                .map_or_else(|| "-".to_owned(), |amount| amount.to_string()),
            operation.account,
            operation.payment_intent_id,
            operation.link_id,
            operation.created_by,
            operation.created_at.format(&Rfc3339)?
        );
    }
    Ok(())
}

async fn revoke_key(pool: &PgPool, name: &str) -> Result {
    if store::api_keys::revoke(pool, name.trim()).await? {
        Ok(())
    } else {
        Err(format!("there is no active key of a client {name:?}").into())
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
        .get(format!("http://{address}/healthz"))
        .send()
        .await?
        .error_for_status()?;
    Ok(())
}
