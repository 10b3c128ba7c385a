//! How a command ends.

use std::error::Error;

use dojo_payment_links::{
    config::DatabaseSettings,
    store::{self, PgPool},
};

pub(super) type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Runs a command's work on the database. Turns an error of the database into one that says what to do about it.
pub(super) async fn on_database(
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
