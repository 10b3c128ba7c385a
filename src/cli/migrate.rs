use clap::Args;
use dojo_payment_links::{
    config::DatabaseSettings,
    store::{self, Migrated, PgPool},
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
        let Migrated { applied, newest } = store::migrate(&PgPool::new(&self.database)?).await?;
        match applied {
            0 => eprintln!("The database is already up to date (version {newest})."),
            1 => eprintln!("Applied 1 migration. The database is up to date (version {newest})."),
            _ => eprintln!(
                "Applied {applied} migrations. The database is up to date (version {newest})."
            ),
        }
        Ok(())
    }
}
