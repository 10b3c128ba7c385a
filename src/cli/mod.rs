//! The command line: one file per command.

mod api_keys;
mod arguments;
mod check;
mod healthcheck;
mod migrate;
mod openapi;
mod operations;
mod serve;
mod webhooks;

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};
use dojo_payment_links::{
    config::{ConfigError, DatabaseSettings, LogSettings},
    store::{self, PgPool},
    telemetry,
};

use arguments::Failure;

/// Creates payment links at Dojo and always knows whether they were paid.
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
    Serve(Box<serve::Serve>),
    Migrate(migrate::Migrate),
    ApiKeys(api_keys::ApiKeys),
    Operations(operations::Operations),
    Check(Box<check::Check>),
    Webhooks(Box<webhooks::Webhooks>),
    Healthcheck(healthcheck::Healthcheck),
    Openapi(openapi::Openapi),
}

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

pub(crate) async fn main() -> ExitCode {
    // Postgres and Dojo are both called through rustls, which needs a cryptography provider. Installing it fails only if
    // there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match arguments::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Failure::Usage(error)) => error.exit(),
        Err(Failure::Settings {
            error,
            check: Some(format),
        }) => return check::settings_are_wrong(&error, format),
        Err(Failure::Settings { error, check: None }) => {
            print_problems(&error);
            eprintln!("For more information, try '--help'.");
            return ExitCode::from(2);
        }
    };
    telemetry::init_logs(&cli.log);
    cli.command.run().await.unwrap_or_else(|error| {
        match error.downcast_ref() {
            Some(error) => print_problems(error),
            None => eprintln!("error: {}", telemetry::causes(&*error)),
        }
        ExitCode::FAILURE
    })
}

fn print_problems(error: &ConfigError) {
    for problem in error.problems() {
        eprintln!("error: {problem}");
    }
}

impl Command {
    async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Serve(command) => command.run().await?,
            Self::Migrate(command) => command.run().await?,
            Self::ApiKeys(command) => command.run().await?,
            Self::Operations(command) => command.run().await?,
            Self::Check(command) => return command.run().await,
            Self::Webhooks(command) => command.run().await?,
            Self::Healthcheck(command) => command.run().await?,
            Self::Openapi(command) => command.run(),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Finds everything that is wrong with the settings of this command beyond the form of single values. Called only if
    /// some values can't be parsed, so that all problems are reported at once.
    fn wrong_settings(&self) -> ConfigError {
        let mut error = ConfigError::default();
        match self {
            Self::Serve(command) => command.validate(&mut error),
            Self::Check(command) => command.validate(&mut error),
            Self::Webhooks(command) => command.validate(&mut error),
            Self::Migrate(migrate::Migrate { database })
            | Self::ApiKeys(api_keys::ApiKeys { database, .. })
            | Self::Operations(operations::Operations { database, .. }) => {
                error.keep(PgPool::new(database));
            }
            Self::Healthcheck(_) | Self::Openapi(_) => {}
        }
        error
    }
}

/// Runs a command's work on the database. Turns an error of the database into one that says what to do about it.
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
