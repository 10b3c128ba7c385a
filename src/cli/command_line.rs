//! The arguments of the command line, and which command runs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dojo_payment_links::{
    config::{ConfigError, LogSettings},
    store::PgPool,
};

use super::{
    api_keys, callback_endpoints, check, erase, events, healthcheck, migrate, openapi, operations,
    outcome::Result, prune, reconcile, serve, webhooks,
};

/// Create payment links at Dojo and track whether they have been paid.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) log: LogSettings,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Serve(Box<serve::Serve>),
    Migrate(migrate::Migrate),
    ApiKeys(api_keys::ApiKeys),
    Operations(operations::Operations),
    Events(events::Events),
    CallbackEndpoints(Box<callback_endpoints::CallbackEndpoints>),
    Erase(erase::Erase),
    Prune(prune::Prune),
    Reconcile(Box<reconcile::Reconcile>),
    Check(Box<check::Check>),
    Webhooks(Box<webhooks::Webhooks>),
    Healthcheck(healthcheck::Healthcheck),
    Openapi(openapi::Openapi),
}

impl Command {
    pub(super) async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Serve(command) => command.run().await?,
            Self::Migrate(command) => command.run().await?,
            Self::ApiKeys(command) => command.run().await?,
            Self::Operations(command) => command.run().await?,
            Self::Events(command) => command.run().await?,
            Self::CallbackEndpoints(command) => command.run().await?,
            Self::Erase(command) => return command.run().await,
            Self::Prune(command) => command.run().await?,
            Self::Reconcile(command) => return command.run().await,
            Self::Check(command) => return command.run().await,
            Self::Webhooks(command) => command.run().await?,
            Self::Healthcheck(command) => command.run().await?,
            Self::Openapi(command) => command.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Finds everything that is wrong with the settings of this command beyond the form of single values. Called only if
    /// some values can't be parsed, so that all problems are reported at once.
    pub(super) fn wrong_settings(&self) -> ConfigError {
        let mut error = ConfigError::default();
        match self {
            Self::Serve(command) => command.validate(&mut error),
            Self::Check(command) => command.validate(&mut error),
            Self::Webhooks(command) => command.validate(&mut error),
            Self::Reconcile(command) => command.validate(&mut error),
            Self::Migrate(migrate::Migrate { database })
            | Self::ApiKeys(api_keys::ApiKeys { database, .. })
            | Self::Operations(operations::Operations { database, .. })
            | Self::Events(events::Events { database, .. })
            | Self::Erase(erase::Erase { database, .. })
            | Self::Prune(prune::Prune { database, .. }) => {
                error.keep(PgPool::new(database));
            }
            Self::CallbackEndpoints(command) => {
                error.keep(PgPool::new(&command.database));
            }
            Self::Healthcheck(_) | Self::Openapi(_) => {}
        }
        error
    }
}
