//! What is known of an `Idempotency-Key` before a request with it is sent.

use uuid::Uuid;

use super::{Error, PgPool};

/// Whether another request with this key does nothing new, because an earlier one has led to something, or because the key was
/// erased since. A key is free while nothing was done, and while a link that could not be created may be tried again.
pub async fn is_used(pool: &PgPool, client_id: Uuid, key: &str) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM idempotency_keys known
             WHERE api_key_id = $1 AND key IN ($2, erased_key($1, $2))
               AND (key <> $2 OR operation_id IS NOT NULL OR message_id IS NOT NULL
                    OR EXISTS (SELECT FROM payment_links WHERE id = known.payment_link_id AND status <> 'Failed'))
           ) AS "exists!""#,
        client_id,
        key
    )
    .fetch_one(pool)
    .await?)
}
