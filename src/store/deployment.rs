//! What the database is for: test money or real money, never both.

use super::{Error, PgPool, word};
use crate::payment_link::Environment;

/// Says what the database is for, if nobody has yet. Answers what it is for.
pub async fn claim(pool: &PgPool, environment: Environment) -> Result<Environment, Error> {
    if let Some(held) = held(pool).await? {
        return Ok(held);
    }
    sqlx::query!(
        "INSERT INTO deployment (environment) VALUES ($1) ON CONFLICT DO NOTHING",
        environment.as_str()
    )
    .execute(pool)
    .await?;
    // Another replica may have been quicker.
    Ok(held(pool).await?.unwrap_or(environment))
}

/// What the database is for, if anybody has said.
pub async fn held(pool: &PgPool) -> Result<Option<Environment>, Error> {
    let held = sqlx::query_scalar!("SELECT environment FROM deployment")
        .fetch_optional(pool)
        .await?;
    held.as_deref().map(word).transpose()
}
