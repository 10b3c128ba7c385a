use clap::{Args, ValueEnum};
use dojo_payment_links::api;

use super::{outcome::Result, stdout::print};

/// Print the API's OpenAPI document.
#[derive(Debug, Args)]
pub(super) struct Openapi {
    /// The version of OpenAPI. The document is written in 3.1; 3.0 is for generators that don't read 3.1.
    #[arg(long, value_enum, default_value_t)]
    version: Version,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Version {
    #[default]
    #[value(name = "3.1")]
    V31,
    #[value(name = "3.0")]
    V30,
}

impl Openapi {
    pub(super) fn run(&self) -> Result {
        let document = match self.version {
            Version::V31 => api::document_yaml(),
            Version::V30 => api::document_3_0_yaml()?,
        };
        Ok(print(document)?)
    }
}
