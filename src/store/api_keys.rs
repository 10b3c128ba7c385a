//! API keys, by their hashes.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool};

/// A key as it is stored.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// Its name, shown on what it does.
    pub name: String,
    /// What it may do, in words.
    pub scopes: Vec<String>,
    /// The accounts that it is open to, by name. `None`: to all.
    pub accounts: Option<Vec<String>>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was revoked, if it was.
    pub revoked_at: Option<OffsetDateTime>,
}

/// The key with this hash, unless it is revoked.
pub async fn find_active(pool: &PgPool, hash: &[u8]) -> Result<Option<ApiKey>, Error> {
    Ok(sqlx::query_as!(
        ApiKey,
        "SELECT id, name, scopes, accounts, created_at, revoked_at FROM api_keys
         WHERE key_hash = $1 AND revoked_at IS NULL",
        hash
    )
    .fetch_optional(pool)
    .await?)
}

/// Stores a new key, open to these accounts or (`None`) to all. `false` if an active key has that name already.
pub async fn insert(
    pool: &PgPool,
    name: &str,
    hash: &[u8],
    scopes: &[String],
    accounts: Option<&[String]>,
) -> Result<bool, Error> {
    let inserted = sqlx::query!(
        "INSERT INTO api_keys (id, name, key_hash, scopes, accounts) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING",
        Uuid::now_v7(),
        name,
        hash,
        scopes,
        accounts
    )
    .execute(pool)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// What stands against a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// The same key has another name.
    OtherName,
    /// The same key was revoked, which is for good.
    Revoked,
}

/// Makes `name` mean the key with this hash: makes it if it is not there, and revokes an active key of that name
/// that has another one.
pub async fn replace(
    pool: &PgPool,
    name: &str,
    hash: &[u8],
    scopes: &[String],
) -> Result<Result<(), Conflict>, Error> {
    let mut transaction = pool.begin().await?;
    // Replicas that start together do this together, and two unique indexes cannot both be arbiters.
    sqlx::query!("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    let known = sqlx::query!(
        r#"SELECT name, revoked_at IS NOT NULL AS "revoked!" FROM api_keys WHERE key_hash = $1"#,
        hash
    )
    .fetch_optional(&mut *transaction)
    .await?;
    match known {
        Some(known) if known.name != name => return Ok(Err(Conflict::OtherName)),
        Some(known) if known.revoked => return Ok(Err(Conflict::Revoked)),
        Some(_) => return Ok(Ok(())),
        None => {}
    }
    sqlx::query!(
        "UPDATE api_keys SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL",
        name
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO api_keys (id, name, key_hash, scopes) VALUES ($1, $2, $3, $4)",
        Uuid::now_v7(),
        name,
        hash,
        scopes
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Ok(()))
}

/// How many keys are active.
pub async fn count_active(pool: &PgPool) -> Result<i64, Error> {
    Ok(
        sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM api_keys WHERE revoked_at IS NULL"#
        )
        .fetch_one(pool)
        .await?,
    )
}

/// Every key, oldest first, the revoked ones too.
pub async fn list(pool: &PgPool) -> Result<Vec<ApiKey>, Error> {
    Ok(sqlx::query_as!(
        ApiKey,
        "SELECT id, name, scopes, accounts, created_at, revoked_at FROM api_keys ORDER BY created_at, id"
    )
    .fetch_all(pool)
    .await?)
}

/// Revokes the active key of this name. `false` if there is none.
pub async fn revoke(pool: &PgPool, name: &str) -> Result<bool, Error> {
    let revoked = sqlx::query!(
        "UPDATE api_keys SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL",
        name
    )
    .execute(pool)
    .await?;
    Ok(revoked.rows_affected() == 1)
}
