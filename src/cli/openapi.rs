use clap::Args;
use dojo_payment_links::api;

/// Print the API's OpenAPI document.
#[derive(Debug, Args)]
pub(super) struct Openapi {}

impl Openapi {
    pub(super) fn run(&self) {
        let _ = self;
        print!("{}", api::document_yaml());
    }
}
