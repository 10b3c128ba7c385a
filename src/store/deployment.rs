//! The environment that the database is for: test money or real money, never both.

use super::{Error, PgPool, parse_stored};
use crate::payment_link::Environment;

/// Claims the database for an environment, unless it is already claimed. Returns the environment that it is for.
pub async fn claim(pool: &PgPool, environment: Environment) -> Result<Environment, Error> {
    if let Some(claimed) = claimed(pool).await? {
        return Ok(claimed);
    }
    sqlx::query!(
        "INSERT INTO deployment (environment) VALUES ($1) ON CONFLICT DO NOTHING",
        environment.as_str()
    )
    .execute(pool)
    .await?;
    // Another replica may have been faster.
    Ok(claimed(pool).await?.unwrap_or(environment))
}

/// The environment that the database is for; `None` if it is not claimed yet.
pub async fn claimed(pool: &PgPool) -> Result<Option<Environment>, Error> {
    let claimed = sqlx::query_scalar!("SELECT environment FROM deployment")
        .fetch_optional(pool)
        .await?;
    claimed.as_deref().map(parse_stored).transpose()
}
