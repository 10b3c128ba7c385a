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

/// A row of `console_sessions`, with its client and key.
struct Row {
    client_id: Uuid,
    client: String,
    scopes: Option<Vec<String>>,
    accounts: Option<Vec<String>>,
    ends_at: Option<OffsetDateTime>,
    /// Whether its last use is so long ago that another one must be stored.
    is_old: bool,
}

/// The session with this token, unless it has ended or its API key was revoked. If `is_use`, its idle time begins again, unless
/// the database is read-only: people must be able to see what is wrong with it.
pub async fn find(
    pool: &PgPool,
    token_hash: &[u8],
    limits: SessionLimits,
    is_use: bool,
) -> Result<Option<Session>, Error> {
    let found = sqlx::query_as!(
        Row,
        r#"SELECT session.client_id AS "client_id!", client.name AS "client!", key.scopes AS "scopes?", key.accounts AS "accounts?",
                key.revoked_at AS "ends_at?",
                -- So that a page with several parts is one write.
                session.last_used_at < now() - make_interval(secs => $2::float8 / 60) AS "is_old!"
         FROM console_sessions session
         JOIN clients client ON client.id = session.client_id
         LEFT JOIN api_keys key ON key.key_hash = session.key_hash
         WHERE session.token_hash = $1 AND session.created_at > now() - make_interval(secs => $3)
           AND session.last_used_at > now() - make_interval(secs => $2)
           AND (key.revoked_at IS NULL OR key.revoked_at > now())"#,
        token_hash,
        limits.idle.as_secs_f64(),
        limits.max.as_secs_f64()
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = found else { return Ok(None) };
    if is_use && row.is_old {
        let used = sqlx::query!(
            "UPDATE console_sessions SET last_used_at = now() WHERE token_hash = $1",
            token_hash
        )
        .execute(pool)
        .await
        .map_err(Error::from);
        match used {
            Err(error) if !error.is_read_only() => return Err(error),
            _ => {}
        }
    }
    Ok(Some(Session {
        client_id: row.client_id,
        client: row.client,
        scopes: row.scopes,
        accounts: row.accounts,
        ends_at: row.ends_at,
    }))
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
