use std::process::ExitCode;

use clap::Args;
use dojo_payment_links::{
    config::{ConfigError, ServeSettings},
    golive::check::{self, Report},
};

use super::{outcome::Result, serve, stdout};

/// Check a deployment before it takes money: settings, database, Dojo, webhooks, clocks and mail server.
///
/// Changes nothing, and sends no email. Prints one line per check, with what to do if it failed. Exits with 1 unless every check
/// passes. Run it with the settings of `serve` and, to check the webhooks, the public URL of the service.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    settings: ServeSettings,

    /// Also send a ping to every callback endpoint.
    #[arg(long)]
    ping_callbacks: bool,

    /// Print JSON: `ok`, and `checks` with `name`, `account`, `outcome` (passed, failed or skipped), `detail` and `fix`
    /// (how to fix a failure).
    #[arg(long)]
    json: bool,
}

/// The format of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

impl Check {
    pub(super) async fn run(&self) -> Result<ExitCode> {
        let report = check::run(&self.settings, self.ping_callbacks).await;
        let format = if self.json {
            Format::Json
        } else {
            Format::Text
        };
        print(&report, format)
    }

    pub(super) fn validate(&self, error: &mut ConfigError) {
        serve::validate(&self.settings, error);
    }
}

/// Prints the report if the settings can't be parsed.
pub(super) fn settings_are_wrong(error: &ConfigError, format: Format) -> ExitCode {
    print(&Report::of_wrong_settings(error), format).unwrap_or(ExitCode::FAILURE)
}

fn print(report: &Report, format: Format) -> Result<ExitCode> {
    match format {
        Format::Json => {
            stdout::print(format_args!("{}\n", serde_json::to_string_pretty(report)?))?;
        }
        Format::Text => stdout::print(format_args!("{report}\n"))?,
    }
    Ok(if report.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
