//! Callback endpoints, as callers manage them.

use std::time::Duration;

use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use super::{
    Error, PgPool,
    feed::{Cursor, Unusable},
    parse_stored,
};
use crate::{
    callbacks::{
        endpoint::{ChangedEndpoint, Endpoint, EndpointId, MOST_ENDPOINTS, NewEndpoint},
        signature::SigningSecret,
    },
    payment_link::EventId,
};

/// An endpoint's row, without its secrets.
struct Row {
    id: Uuid,
    url: String,
    types: Option<Vec<String>>,
    accounts: Option<Vec<String>>,
    description: Option<String>,
    header_name: Option<String>,
    status: String,
    pause_reason: Option<String>,
    failing_since: Option<OffsetDateTime>,
    last_success_at: Option<OffsetDateTime>,
    previous_secrets_end_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for Endpoint {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            id: EndpointId::from_uuid(row.id),
            url: row.url,
            types: row.types,
            accounts: row.accounts,
            description: row.description,
            header_name: row.header_name,
            status: parse_stored(&row.status)?,
            pause_reason: row.pause_reason.as_deref().map(parse_stored).transpose()?,
            failing_since: row.failing_since,
            last_success_at: row.last_success_at,
            previous_secrets_end_at: row.previous_secrets_end_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// A query that returns a [`Row`] for each row that `$statement` inserts, updates or selects. `$rest` follows the columns.
macro_rules! endpoints {
    ([$($statement:tt)+], $rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $($statement)+ + "
             id, url, types, accounts, description, header_name, status, pause_reason, failing_since, last_success_at,
             CASE WHEN previous_secrets_end_at > now() AND previous_secrets <> '{}' THEN previous_secrets_end_at END
                 AS previous_secrets_end_at,
             created_at, updated_at
             " + $rest
            $(, $argument)*
        )
    };
}

/// Updates the endpoint `$id`, if it gets only events of the accounts `$open`, and returns its [`Row`]. `$with` comes before the
/// update and `$changes` are its assignments. Their arguments start at `$3`.
macro_rules! update {
    ($with:tt, $changes:tt, $id:expr, $open:expr $(, $argument:expr)* $(,)?) => {
        endpoints!(
            [$with + " UPDATE callback_endpoints SET " + $changes + ", updated_at = now()
             WHERE id = $1 AND deleted_at IS NULL AND ($2::text[] IS NULL OR accounts <@ $2)
             RETURNING"],
            "",
            $id.uuid(),
            $open
            $(, $argument)*
        )
    };
}

/// Why an endpoint isn't created or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Another endpoint has the same URL.
    UrlTaken,
    /// There are [`MOST_ENDPOINTS`].
    TooMany,
}

/// A URL as it is requested, so that one endpoint isn't created twice in two spellings.
fn normalized(url: &str) -> String {
    Url::parse(url).map_or_else(|_| url.to_owned(), String::from)
}

/// Creates an endpoint, which gets what happens from now on.
pub async fn create(
    pool: &PgPool,
    new: &NewEndpoint,
    secret: &SigningSecret,
) -> Result<Result<Endpoint, Refused>, Error> {
    let created = endpoints!(
        ["INSERT INTO callback_endpoints
             (id, url, types, accounts, description, header_name, header_value, secret, position)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, head FROM feed
         WHERE (SELECT count(*) FROM callback_endpoints WHERE deleted_at IS NULL) < $9
         RETURNING"],
        "",
        EndpointId::new().uuid(),
        normalized(&new.url),
        new.types.as_deref(),
        new.accounts.as_deref(),
        new.description,
        new.header.as_ref().map(|header| &header.name),
        new.header.as_ref().map(|header| &header.value),
        secret.expose(),
        MOST_ENDPOINTS
    )
    .fetch_optional(pool)
    .await
    .map_err(Error::from);
    match created {
        Ok(Some(row)) => Ok(Ok(row.try_into()?)),
        Ok(None) => Ok(Err(Refused::TooMany)),
        Err(error) if error.is_unique_violation() => Ok(Err(Refused::UrlTaken)),
        Err(error) => Err(error),
    }
}

/// All endpoints that get only events of the accounts `open`, oldest first. `None`: all endpoints.
pub async fn list(pool: &PgPool, open: Option<&[String]>) -> Result<Vec<Endpoint>, Error> {
    let rows = endpoints!(
        ["SELECT"],
        "FROM callback_endpoints
         WHERE deleted_at IS NULL AND ($1::text[] IS NULL OR accounts <@ $1)
         ORDER BY id",
        open
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

// In what follows, `open` is as for `list`, and there is no endpoint with an id if it isn't among those.

/// The endpoint with this id.
pub async fn find(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
) -> Result<Option<Endpoint>, Error> {
    let endpoints = list(pool, open).await?;
    Ok(endpoints.into_iter().find(|endpoint| endpoint.id == id))
}

/// Changes an endpoint. `None` if there is none with this id.
pub async fn change(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
    changed: &ChangedEndpoint,
) -> Result<Option<Result<Endpoint, Refused>>, Error> {
    let header = changed.header.as_ref().map(Option::as_ref);
    let types = changed.types.as_ref().map(Option::as_deref);
    let accounts = changed.accounts.as_ref().map(Option::as_deref);
    let row = update!(
        "",
        "url = coalesce($3, url),
         types = CASE WHEN $4 THEN $5 ELSE types END,
         accounts = CASE WHEN $6 THEN $7 ELSE accounts END,
         description = CASE WHEN $8 THEN $9 ELSE description END,
         header_name = CASE WHEN $10 THEN $11 ELSE header_name END,
         header_value = CASE WHEN $10 THEN $12 ELSE header_value END",
        id,
        open,
        changed.url.as_deref().map(normalized),
        types.is_some(),
        types.flatten(),
        accounts.is_some(),
        accounts.flatten(),
        changed.description.is_some(),
        changed.description.as_ref().and_then(Option::as_ref),
        header.is_some(),
        header.flatten().map(|header| &header.name),
        header.flatten().map(|header| &header.value)
    )
    .fetch_optional(pool)
    .await
    .map_err(Error::from);
    match row {
        Ok(row) => row.map(|row| row.try_into().map(Ok)).transpose(),
        Err(error) if error.is_unique_violation() => Ok(Some(Err(Refused::UrlTaken))),
        Err(error) => Err(error),
    }
}

/// Pauses an endpoint. `None` if there is none with this id.
pub async fn pause(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
) -> Result<Option<Endpoint>, Error> {
    let row = update!(
        "",
        "status = 'Paused', pause_reason = coalesce(pause_reason, 'Requested')",
        id,
        open
    )
    .fetch_optional(pool)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Resumes an endpoint. What waits is due now, and gets all its attempts again. `None` if there is none with this id.
pub async fn resume(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
) -> Result<Option<Endpoint>, Error> {
    let row = update!(
        "WITH due AS (
             UPDATE callback_deliveries SET due_at = now(), attempts = 0
             FROM callback_endpoints endpoint
             WHERE endpoint.id = $1 AND ($2::text[] IS NULL OR endpoint.accounts <@ $2)
               AND endpoint_id = $1 AND callback_deliveries.status = 'Pending'
         )",
        "status = 'Active', pause_reason = NULL, failing_since = NULL",
        id,
        open
    )
    .fetch_optional(pool)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// How many earlier secrets sign at most.
const MOST_SECRETS: i32 = 3;

/// Gives an endpoint a new secret. The current one, and those before it that still sign, sign as well for `overlap`, or for
/// longer if an earlier rotation said so: a rotation may be repeated because its response was lost, and then nobody knows the
/// current one. With an `overlap` of 0, all of them stop at once. `None` if there is no endpoint with this id.
pub async fn rotate_secret(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
    secret: &SigningSecret,
    overlap: Duration,
) -> Result<Option<Endpoint>, Error> {
    let row = update!(
        "",
        "previous_secrets = CASE WHEN $4::float8 > 0 THEN
             (ARRAY[secret] || CASE WHEN previous_secrets_end_at > now() THEN previous_secrets ELSE '{}' END)[1:$5]
             ELSE '{}' END,
         previous_secrets_end_at = CASE WHEN $4 > 0 THEN greatest(previous_secrets_end_at, now() + make_interval(secs => $4))
                                        ELSE now() END,
         secret = $3",
        id,
        open,
        secret.expose(),
        overlap.as_secs_f64(),
        MOST_SECRETS
    )
    .fetch_optional(pool)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Deletes an endpoint. Returns whether there was one. Its deliveries are removed later.
pub async fn delete(pool: &PgPool, id: EndpointId, open: Option<&[String]>) -> Result<bool, Error> {
    let deleted = sqlx::query!(
        "UPDATE callback_endpoints SET deleted_at = now(), updated_at = now()
         WHERE id = $1 AND deleted_at IS NULL AND ($2::text[] IS NULL OR accounts <@ $2)",
        id.uuid(),
        open
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected() == 1)
}

/// How many rows are removed in one transaction.
const REMOVE: i64 = 1000;

/// Removes a batch of the deliveries of deleted endpoints, and then the endpoints. Returns whether more may be left.
pub async fn remove_deleted(pool: &PgPool) -> Result<bool, Error> {
    let deleted = sqlx::query_scalar!(
        "SELECT id FROM callback_endpoints
         WHERE deleted_at IS NOT NULL AND (leased_until IS NULL OR leased_until <= now())"
    )
    .fetch_all(pool)
    .await?;
    if deleted.is_empty() {
        return Ok(false);
    }
    let removed = sqlx::query!(
        "DELETE FROM callback_deliveries
         WHERE (endpoint_id, position) IN (
             SELECT endpoint_id, position FROM callback_deliveries WHERE endpoint_id = ANY($1) LIMIT $2
         )",
        &deleted,
        REMOVE
    )
    .execute(pool)
    .await?;
    if i64::try_from(removed.rows_affected()) == Ok(REMOVE) {
        return Ok(true);
    }
    sqlx::query!(
        "DELETE FROM callback_endpoints endpoint
         WHERE id = ANY($1)
           AND NOT EXISTS (SELECT FROM callback_deliveries delivery WHERE delivery.endpoint_id = endpoint.id)",
        &deleted
    )
    .execute(pool)
    .await?;
    Ok(false)
}

/// Sends everything again that the endpoint wants and that is behind a place in the feed. What waits for another attempt is due
/// now, as when the endpoint is resumed. `None` if there is no endpoint with this id.
pub async fn replay_after(
    pool: &PgPool,
    id: EndpointId,
    open: Option<&[String]>,
    after: Cursor,
) -> Result<Option<Result<(), Unusable>>, Error> {
    // The lock on the feed's row keeps `prune` from removing what is replayed: it takes the same one before it looks where
    // the endpoints are.
    let place = sqlx::query!(
        r#"WITH place AS MATERIALIZED (
               SELECT feed.*,
                      CASE WHEN pruned = $2 THEN coalesce(pruned_id, id)
                           ELSE (SELECT event.id FROM feed_events event WHERE event.position = $2) END AS found
               FROM feed FOR SHARE
           ), moved AS (
               UPDATE callback_endpoints endpoint
               SET position = least(endpoint.position, $2), generation = generation + 1, updated_at = now()
               FROM place
               WHERE endpoint.id = $1 AND deleted_at IS NULL AND ($4::text[] IS NULL OR accounts <@ $4)
                 AND place.pruned <= $2 AND place.found = $3
               RETURNING endpoint.id
           ), due AS (
               UPDATE callback_deliveries SET due_at = now(), attempts = 0
               FROM moved
               WHERE endpoint_id = moved.id AND callback_deliveries.position > $2 AND status = 'Pending'
           )
           SELECT pruned <= $2 AS "is_kept!", coalesce(found = $3, false) AS "is_found!",
                  EXISTS (SELECT FROM callback_endpoints
                          WHERE id = $1 AND deleted_at IS NULL AND ($4::text[] IS NULL OR accounts <@ $4)) AS "exists!"
           FROM place"#,
        id.uuid(),
        after.position,
        after.id,
        open
    )
    .fetch_one(pool)
    .await?;
    if !place.exists {
        return Ok(None);
    }
    Ok(Some(if !place.is_kept {
        Err(Unusable::Pruned)
    } else if place.is_found {
        Ok(())
    } else {
        Err(Unusable::Foreign)
    }))
}

/// Sends one event again, whether the endpoint wants it or not. Returns whether there is such an event, of one of the accounts
/// `open` if it is limited.
pub async fn replay_event(
    pool: &PgPool,
    id: EndpointId,
    event: EventId,
    open: Option<&[String]>,
) -> Result<bool, Error> {
    // An event that the endpoint is going to get needs no replay, and would come before earlier ones of its link. The row of
    // the feed is locked as in `replay_after`.
    let found = sqlx::query_scalar!(
        r#"WITH place AS MATERIALIZED (
               SELECT pruned FROM feed FOR SHARE
           ), event AS MATERIALIZED (
               SELECT event.* FROM feed_events event, place
               WHERE event.id = $2 AND event.position > place.pruned AND ($3::text[] IS NULL OR event.account = ANY($3))
           ), again AS (
               INSERT INTO callback_deliveries
                   (endpoint_id, position, event_id, type, payment_link_id, generation, status, attempts, due_at)
               SELECT endpoint.id, event.position, event.id, event.type, event.payment_link_id, endpoint.generation,
                      'Pending', 0, now()
               FROM event, callback_endpoints endpoint
               WHERE endpoint.id = $1 AND ($3::text[] IS NULL OR accounts <@ $3)
                 AND (event.position <= endpoint.position
                      OR types IS NOT NULL AND event.type <> ALL(types)
                      OR accounts IS NOT NULL AND event.account <> ALL(accounts)
                      OR EXISTS (SELECT FROM callback_deliveries delivery
                                 WHERE delivery.endpoint_id = $1 AND delivery.position = event.position))
               ON CONFLICT (endpoint_id, position) DO UPDATE
               SET status = 'Pending', attempts = 0, due_at = now(), generation = EXCLUDED.generation
           )
           SELECT count(*) AS "count!" FROM event"#,
        id.uuid(),
        event.uuid(),
        open
    )
    .fetch_one(pool)
    .await?;
    Ok(found == 1)
}
