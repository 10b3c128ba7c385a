//! Clients and their API keys, by the keys' hashes.
//!
//! A client's current key has the client's id as its own. The version before clients uses a key's id as its caller's
//! identity, and may still run on the same database. So when a key becomes the current one, the key before it gets another
//! id.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool, PgTransaction};

/// A client that a key identifies, and what the key may do.
#[derive(Debug, Clone)]
pub struct Identified {
    /// Idempotency keys belong to this id.
    pub client_id: Uuid,
    /// The client's name, shown on everything that it does.
    pub client: String,
    pub scopes: Vec<String>,
    /// The names of the accounts that the key may use. `None`: all.
    pub accounts: Option<Vec<String>>,
    /// When the key expires, if it has been replaced.
    pub ends_at: Option<OffsetDateTime>,
}

/// The client with this key, by the key's hash. `None`: there is none, or the key is revoked or has expired by the
/// database's clock.
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

/// Gives a client its first key, or the first one after its keys were revoked, for these accounts or (`None`) for all.
/// Returns `false` if the client has a current key.
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

/// Gives a client a new key with the scopes and accounts of its current one. The current key works for `overlap` longer, and
/// so do earlier keys that don't expire before. Returns when each of them expires, the latest first, or `None` if the client
/// has no current key.
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
    let expiries = sqlx::query_scalar!(
        r#"SELECT key.revoked_at AS "revoked_at!"
           FROM api_keys key JOIN clients client ON client.id = key.client_id
           WHERE client.name = $1 AND key.revoked_at > now() ORDER BY key.revoked_at DESC"#,
        client
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(expiries))
}

/// Why a chosen key can't be a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It is the key of another client.
    OtherClient,
    /// It was revoked or has expired, which is final.
    Revoked,
}

/// Makes the key with this hash the client's current one and revokes all others, unless it already is one of the client's
/// keys.
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

/// Begins a change of the keys. Changes are made one after the other, even by replicas that start together. Keys can be looked
/// up meanwhile.
async fn begin(pool: &PgPool) -> Result<PgTransaction, Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query!("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

/// The permissions of a client's current key.
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

/// Makes a new key the client's current one, and creates the client if there is none. All other keys of the client expire
/// after `overlap`, unless they expire earlier.
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
             -- `least` ignores nulls.
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

/// What the name of a client begins with that is a person at the console, for whom a proxy vouches. No client with an API key
/// has such a name, because the two would share their idempotency keys.
pub const PERSON_PREFIX: &str = "console:";

/// The id of the client of a person for whom a proxy vouches, with this name. It is created if there is none, and needs no key.
pub async fn person(pool: &PgPool, name: &str) -> Result<Uuid, Error> {
    sqlx::query!(
        "INSERT INTO clients (id, name) VALUES ($1, $2) ON CONFLICT (name) WHERE NOT retired DO NOTHING",
        Uuid::now_v7(),
        name
    )
    .execute(pool)
    .await?;
    Ok(sqlx::query_scalar!(
        "SELECT id FROM clients WHERE name = $1 AND NOT retired",
        name
    )
    .fetch_one(pool)
    .await?)
}

/// The number of clients that can call the service.
pub async fn count_active_clients(pool: &PgPool) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(DISTINCT client_id) AS "count!" FROM api_keys
           WHERE revoked_at IS NULL OR revoked_at > now()"#
    )
    .fetch_one(pool)
    .await?)
}

/// A stored key.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The client's name.
    pub client: String,
    pub scopes: Vec<String>,
    /// The names of the accounts that it may use. `None`: all.
    pub accounts: Option<Vec<String>>,
    pub created_at: OffsetDateTime,
    /// When it stops working, if it was revoked or replaced.
    pub revoked_at: Option<OffsetDateTime>,
    /// Whether it is rejected now, by the database's clock.
    pub revoked: bool,
}

/// Every key, including revoked ones: by client, the oldest client first, and each client's oldest key first.
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

/// Revokes every key of the client that is not revoked yet. Returns `false` if there is none.
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
