//! What the database is for: test money or real money, never both.

use sqlx::PgPool;

use super::{Error, word};
use crate::payment_link::Environment;

/// Says what the database is for, if nobody has yet. Answers what it is for.
///
/// A database that was never migrated is for nothing yet, and is left alone.
pub async fn claim(pool: &PgPool, environment: Environment) -> Result<Environment, Error> {
    let held = sqlx::query_scalar!(
        "WITH claimed AS (
             INSERT INTO deployment (environment) VALUES ($1) ON CONFLICT DO NOTHING RETURNING environment
         )
         SELECT coalesce((SELECT environment FROM claimed), (SELECT environment FROM deployment)) AS held",
        environment.as_str()
    )
    .fetch_one(pool)
    .await;
    match held {
        Ok(Some(held)) => word(&held),
        // Another replica claims it in this very moment; it is asked again below.
        Ok(None) => {
            let held = sqlx::query_scalar!("SELECT environment FROM deployment")
                .fetch_one(pool)
                .await?;
            word(&held)
        }
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {
            Ok(environment)
        }
        Err(error) => Err(error.into()),
    }
}
