use clap::Args;
use dojo_payment_links::{
    config::DatabaseSettings,
    store::{self, PgPool},
};

use super::outcome::Result;

/// Migrate the database to the schema of this version.
///
/// Can be run again at any time, and by several processes at once.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,
}

impl Migrate {
    pub(super) async fn run(&self) -> Result {
        store::migrate(&PgPool::new(&self.database)?).await?;
        eprintln!("The database is up to date.");
        Ok(())
    }
}
