//! Clients and their API keys, by the keys' hashes.
//!
//! A client's current key carries the client's id as its own: the version before clients takes a key's id for its
//! caller's identity, and may still run on the same database. So whoever makes a key the current one gives the key
//! before another id.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool, PgTransaction};

/// A client that a key identifies, and what the key may do.
#[derive(Debug, Clone)]
pub struct Identified {
    /// The client's id, which idempotency keys belong to.
    pub client_id: Uuid,
    /// The client's name, shown on what it does.
    pub client: String,
    /// What the key may do, in words.
    pub scopes: Vec<String>,
    /// The accounts that the key is open to, by name. `None`: to all.
    pub accounts: Option<Vec<String>>,
    /// When the key ends, if it has been replaced.
    pub ends_at: Option<OffsetDateTime>,
}

/// Whose key this is, by its hash. `None`: nobody's, or it has been revoked or has expired by the database's clock.
pub async fn identify(pool: &PgPool, hash: &[u8]) -> Result<Option<Identified>, Error> {
    Ok(sqlx::query_as!(
        Identified,
        "SELECT client.id AS client_id, client.name AS client, key.scopes, key.accounts, key.revoked_at AS ends_at
         FROM api_keys key JOIN clients client ON client.id = key.client_id
         WHERE key.key_hash = $1 AND (key.revoked_at IS NULL OR key.revoked_at > now())",
        hash
    )
    .fetch_optional(pool)
    .await?)
}

/// Gives a client its first key, or the first one after its keys were revoked; open to these accounts or (`None`) to
/// all. `false` if the client has a current key.
pub async fn create(
    pool: &PgPool,
    client: &str,
    hash: &[u8],
    scopes: &[String],
    accounts: Option<&[String]>,
) -> Result<bool, Error> {
    let mut transaction = begin(pool).await?;
    if current(&mut transaction, client).await?.is_some() {
        return Ok(false);
    }
    let key = Key {
        hash,
        scopes,
        accounts,
    };
    make_current(&mut transaction, client, key, Duration::ZERO).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Gives a client a new key with the scopes and accounts of its current one, which goes on working for `overlap`, as do
/// those before it that do not end earlier. Answers when each of them ends, the latest first. `None` if the client has
/// no current key.
pub async fn rotate(
    pool: &PgPool,
    client: &str,
    hash: &[u8],
    overlap: Duration,
) -> Result<Option<Vec<OffsetDateTime>>, Error> {
    let mut transaction = begin(pool).await?;
    let Some(current) = current(&mut transaction, client).await? else {
        return Ok(None);
    };
    let key = Key {
        hash,
        scopes: &current.scopes,
        accounts: current.accounts.as_deref(),
    };
    make_current(&mut transaction, client, key, overlap).await?;
    let ending = sqlx::query_scalar!(
        r#"SELECT key.revoked_at AS "revoked_at!"
           FROM api_keys key JOIN clients client ON client.id = key.client_id
           WHERE client.name = $1 AND key.revoked_at > now() ORDER BY key.revoked_at DESC"#,
        client
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(ending))
}

/// Why a key that somebody chose cannot be a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It is the key of another client.
    OtherClient,
    /// It was revoked or has expired, and no key comes back.
    Revoked,
}

/// Makes the key with this hash the client's current one and revokes all others, unless it is one of the client's keys
/// already.
pub async fn replace(
    pool: &PgPool,
    client: &str,
    hash: &[u8],
    scopes: &[String],
) -> Result<Result<(), Conflict>, Error> {
    let mut transaction = begin(pool).await?;
    let known = sqlx::query!(
        r#"SELECT client.name, coalesce(key.revoked_at <= now(), false) AS "ended!"
           FROM api_keys key JOIN clients client ON client.id = key.client_id WHERE key.key_hash = $1"#,
        hash
    )
    .fetch_optional(&mut *transaction)
    .await?;
    match known {
        Some(known) if known.name != client => return Ok(Err(Conflict::OtherClient)),
        Some(known) if known.ended => return Ok(Err(Conflict::Revoked)),
        Some(_) => return Ok(Ok(())),
        None => {}
    }
    let key = Key {
        hash,
        scopes,
        accounts: None,
    };
    make_current(&mut transaction, client, key, Duration::ZERO).await?;
    transaction.commit().await?;
    Ok(Ok(()))
}

/// Begins a change of the keys. Changes take turns, those of replicas that start together included. Looking keys up goes
/// on meanwhile.
async fn begin(pool: &PgPool) -> Result<PgTransaction, Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query!("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

/// What a client's current key may do.
struct Current {
    scopes: Vec<String>,
    accounts: Option<Vec<String>>,
}

async fn current(transaction: &mut PgTransaction, client: &str) -> Result<Option<Current>, Error> {
    Ok(sqlx::query_as!(
        Current,
        "SELECT key.scopes, key.accounts FROM api_keys key JOIN clients client ON client.id = key.client_id
         WHERE client.name = $1 AND key.revoked_at IS NULL",
        client
    )
    .fetch_optional(&mut **transaction)
    .await?)
}

/// A key to be stored.
struct Key<'a> {
    hash: &'a [u8],
    scopes: &'a [String],
    accounts: Option<&'a [String]>,
}

/// Makes a new key the client's current one, and the client if there is none. All other keys of the client end after
/// `overlap`, unless they end earlier.
async fn make_current(
    transaction: &mut PgTransaction,
    client: &str,
    key: Key<'_>,
    overlap: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO clients (id, name) VALUES ($1, $2) ON CONFLICT (name) WHERE NOT retired DO NOTHING",
        Uuid::now_v7(),
        client
    )
    .execute(&mut **transaction)
    .await?;
    let client_id = sqlx::query_scalar!(
        "SELECT id FROM clients WHERE name = $1 AND NOT retired",
        client
    )
    .fetch_one(&mut **transaction)
    .await?;
    sqlx::query!(
        "UPDATE api_keys
         SET id = CASE WHEN id = client_id THEN gen_random_uuid() ELSE id END,
             -- `least` passes over nulls.
             revoked_at = least(revoked_at, now() + make_interval(secs => $2))
         WHERE client_id = $1",
        client_id,
        overlap.as_secs_f64()
    )
    .execute(&mut **transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO api_keys (id, client_id, name, key_hash, scopes, accounts) VALUES ($1, $1, $2, $3, $4, $5)",
        client_id,
        client,
        key.hash,
        key.scopes,
        key.accounts
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// How many clients can call the service.
pub async fn count_active_clients(pool: &PgPool) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(DISTINCT client_id) AS "count!" FROM api_keys
           WHERE revoked_at IS NULL OR revoked_at > now()"#
    )
    .fetch_one(pool)
    .await?)
}

/// A key as it is stored.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The name of its client.
    pub client: String,
    /// What it may do, in words.
    pub scopes: Vec<String>,
    /// The accounts that it is open to, by name. `None`: to all.
    pub accounts: Option<Vec<String>>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// From when on it is refused, if that is settled: it was revoked, or replaced by another one.
    pub revoked_at: Option<OffsetDateTime>,
    /// Whether it is refused now, by the database's clock.
    pub revoked: bool,
}

/// Every key, the revoked ones too: client by client in the order in which they came, each client's oldest key first.
pub async fn list(pool: &PgPool) -> Result<Vec<ApiKey>, Error> {
    Ok(sqlx::query_as!(
        ApiKey,
        r#"SELECT client.name AS client, key.scopes, key.accounts, key.created_at, key.revoked_at,
                  coalesce(key.revoked_at <= now(), false) AS "revoked!"
           FROM api_keys key JOIN clients client ON client.id = key.client_id
           ORDER BY client.created_at, client.id, key.created_at, key.id"#
    )
    .fetch_all(pool)
    .await?)
}

/// Revokes every key of the client that is not revoked yet. `false` if there is none.
pub async fn revoke(pool: &PgPool, client: &str) -> Result<bool, Error> {
    let mut transaction = begin(pool).await?;
    let revoked = sqlx::query!(
        "UPDATE api_keys key SET revoked_at = now() FROM clients client
         WHERE client.id = key.client_id AND client.name = $1
           AND (key.revoked_at IS NULL OR key.revoked_at > now())",
        client
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(revoked.rows_affected() > 0)
}
