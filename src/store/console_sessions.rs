//! People who are signed in at the console, by the hashes of their sessions' tokens.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool};

/// How long a session lasts.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Without being used.
    pub idle: Duration,
    /// At most.
    pub max: Duration,
}

/// A session that hasn't ended.
#[derive(Debug)]
pub struct Session {
    pub client_id: Uuid,
    pub client: String,
    /// What the API key that the person signed in with permits. `None`: a proxy vouches for the person.
    pub scopes: Option<Vec<String>>,
    /// The names of the accounts that the key may use. `None`: all.
    pub accounts: Option<Vec<String>>,
    /// When the key expires, if it has been replaced.
    pub ends_at: Option<OffsetDateTime>,
}

/// Begins a session, and removes those that have ended. `key_hash` is the hash of the API key that the person signed in with.
pub async fn begin(
    pool: &PgPool,
    token_hash: &[u8],
    client_id: Uuid,
    key_hash: Option<&[u8]>,
    limits: SessionLimits,
) -> Result<(), Error> {
    sqlx::query!(
        "WITH ended AS (
             DELETE FROM console_sessions
             WHERE last_used_at <= now() - make_interval(secs => $4) OR created_at <= now() - make_interval(secs => $5)
         )
         INSERT INTO console_sessions (token_hash, client_id, key_hash) VALUES ($1, $2, $3)",
        token_hash,
        client_id,
        key_hash,
        limits.idle.as_secs_f64(),
        limits.max.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The session with this token, unless it has ended or its API key was revoked. If `is_use`, its idle time begins again.
pub async fn find(
    pool: &PgPool,
    token_hash: &[u8],
    limits: SessionLimits,
    is_use: bool,
) -> Result<Option<Session>, Error> {
    Ok(sqlx::query_as!(
        Session,
        r#"WITH used AS (
             UPDATE console_sessions SET last_used_at = now()
             WHERE $4 AND token_hash = $1 AND created_at > now() - make_interval(secs => $3)
               AND last_used_at > now() - make_interval(secs => $2)
               -- So that a page with several parts is one write.
               AND last_used_at < now() - make_interval(secs => $2::float8 / 60)
         )
         SELECT session.client_id AS "client_id!", client.name AS "client!", key.scopes AS "scopes?", key.accounts AS "accounts?",
                key.revoked_at AS "ends_at?"
         FROM console_sessions session
         JOIN clients client ON client.id = session.client_id
         LEFT JOIN api_keys key ON key.key_hash = session.key_hash
         WHERE session.token_hash = $1 AND session.created_at > now() - make_interval(secs => $3)
           AND session.last_used_at > now() - make_interval(secs => $2)
           AND (key.revoked_at IS NULL OR key.revoked_at > now())"#,
        token_hash,
        limits.idle.as_secs_f64(),
        limits.max.as_secs_f64(),
        is_use
    )
    .fetch_optional(pool)
    .await?)
}

/// Ends a session.
pub async fn end(pool: &PgPool, token_hash: &[u8]) -> Result<(), Error> {
    sqlx::query!(
        "DELETE FROM console_sessions WHERE token_hash = $1",
        token_hash
    )
    .execute(pool)
    .await?;
    Ok(())
}
