//! The command line: one file per command.

mod accounts;
mod api_keys;
mod arguments;
mod callback_endpoints;
mod check;
mod command_line;
mod erase;
mod events;
mod healthcheck;
mod migrate;
mod openapi;
mod operations;
mod outcome;
mod prune;
mod reconcile;
mod serve;
mod stdout;
mod webhooks;

use std::process::ExitCode;

use dojo_payment_links::{config::ConfigError, telemetry};

use arguments::Failure;

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
