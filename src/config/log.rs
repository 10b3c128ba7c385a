use clap::{Args, ValueEnum};

use super::value::log_filter;

/// The settings of the log.
#[derive(Debug, Clone, Args)]
pub struct LogSettings {
    /// The format of the log. Default: `text` on a terminal, otherwise `json`.
    #[arg(
        long,
        env = "LOG_FORMAT",
        global = true,
        value_name = "FORMAT",
        help_heading = "Log"
    )]
    pub log_format: Option<LogFormat>,

    /// What to log: a level, or a filter such as `info,dojo_payment_links=debug`.
    #[arg(
        long,
        env = "LOG_FILTER",
        default_value = "info",
        global = true,
        value_name = "FILTER",
        value_parser = log_filter,
        help_heading = "Log"
    )]
    pub log_filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// One readable line per event.
    Text,
}
