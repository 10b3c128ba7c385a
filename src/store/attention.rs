//! What a person must look at, besides operations whose outcome isn't known ([`super::operations::oldest_open`]).
//!
//! In every function, `open` limits what is found to these accounts, if it is given. There is an index for each question, with
//! hardly more in it than what is asked for.

use std::time::Duration;

use time::{Date, OffsetDateTime};

use super::{
    Error, PgPool,
    links::{Row, select_links},
};
use crate::{
    callbacks::endpoint::EndpointId,
    payment_link::{PaymentLink, PaymentLinkId},
};

/// How long a link or an operation may wait for its outcome before a person should look at it.
pub const PATIENCE: Duration = Duration::from_mins(10);

/// How long a paid surplus intent is shown. The service can't see that it was refunded.
const SURPLUS: Duration = Duration::from_hours(90 * 24);

/// Counting stops at this number.
pub const MOST_COUNTED: i64 = 1000;

/// How many things of each kind need attention, up to [`MOST_COUNTED`].
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub unconfirmed_operations: i64,
    pub pending_operations: i64,
    pub paid_surplus: i64,
    pub mismatches: i64,
    pub unconfirmed_links: i64,
    pub pending_links: i64,
    pub failed_callbacks: i64,
    /// Accounts' business days.
    pub differing_days: i64,
}

/// Counts what the other functions list, and the differing days since this one.
pub async fn counts(pool: &PgPool, open: Option<&[String]>, since: Date) -> Result<Counts, Error> {
    Ok(sqlx::query_as!(
        Counts,
        r#"SELECT
             (SELECT count(*) FROM (
                 SELECT FROM operations WHERE status = 'Unconfirmed' AND ($1::text[] IS NULL OR account = ANY($1))
                 LIMIT $2) found) AS "unconfirmed_operations!",
             (SELECT count(*) FROM (
                 SELECT FROM operations
                 WHERE status = 'Pending' AND created_at < now() - make_interval(secs => $3)
                   AND ($1::text[] IS NULL OR account = ANY($1))
                 LIMIT $2) found) AS "pending_operations!",
             (SELECT count(*) FROM (
                 SELECT FROM payment_link_events event JOIN payment_links link ON link.id = event.payment_link_id
                 WHERE event.kind = 'surplusPaid' AND event.occurred_at > now() - make_interval(secs => $4)
                   AND ($1::text[] IS NULL OR link.account = ANY($1))
                 LIMIT $2) found) AS "paid_surplus!",
             (SELECT count(*) FROM (
                 SELECT FROM payment_links
                 WHERE mismatch IS NOT NULL AND status IN ('Created', 'Authorized', 'Captured')
                   AND ($1::text[] IS NULL OR account = ANY($1))
                 LIMIT $2) found) AS "mismatches!",
             (SELECT count(*) FROM (
                 SELECT FROM payment_links
                 WHERE payment_intent_id IS NOT NULL AND (unsettled_status IS NOT NULL OR dojo_status <> status)
                   AND updated_at < now() - make_interval(secs => $3) AND ($1::text[] IS NULL OR account = ANY($1))
                 LIMIT $2) found) AS "unconfirmed_links!",
             (SELECT count(*) FROM (
                 SELECT FROM payment_links
                 WHERE status = 'Pending' AND created_at < now() - make_interval(secs => $3)
                   AND ($1::text[] IS NULL OR account = ANY($1))
                 LIMIT $2) found) AS "pending_links!",
             (SELECT count(*) FROM (
                 SELECT FROM callback_endpoints endpoint JOIN callback_deliveries delivery ON endpoint_id = endpoint.id
                 WHERE deleted_at IS NULL AND delivery.status = 'Failed' AND ($1::text[] IS NULL OR accounts <@ $1)
                 LIMIT $2) found) AS "failed_callbacks!",
             (SELECT count(*) FROM (
                 SELECT FROM daily_reconciliations
                 WHERE state = 'Differs' AND business_day >= $5 AND ($1::text[] IS NULL OR account = ANY($1))
                 LIMIT $2) found) AS "differing_days!""#,
        open,
        MOST_COUNTED,
        PATIENCE.as_secs_f64(),
        SURPLUS.as_secs_f64(),
        since
    )
    .fetch_one(pool)
    .await?)
}

/// Up to `limit` links that have been waiting to be created for longer than [`PATIENCE`], oldest first.
pub async fn pending(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    let rows = select_links!(
        "WHERE status = 'Pending' AND created_at < now() - make_interval(secs => $2)
           AND ($1::text[] IS NULL OR account = ANY($1))
         ORDER BY created_at, id
         LIMIT $3",
        open,
        PATIENCE.as_secs_f64(),
        limit
    )
    .fetch_all(pool)
    .await?;
    Row::into_links(rows)
}

/// Up to `limit` links that were or can be paid, and for which Dojo reports another amount than the one that was requested,
/// newest first.
pub async fn mismatches(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    let rows = select_links!(
        "WHERE mismatch IS NOT NULL AND status IN ('Created', 'Authorized', 'Captured')
           AND ($1::text[] IS NULL OR account = ANY($1))
         ORDER BY created_at DESC, id DESC
         LIMIT $2",
        open,
        limit
    )
    .fetch_all(pool)
    .await?;
    Row::into_links(rows)
}

/// Up to `limit` links whose status Dojo hasn't confirmed for longer than [`PATIENCE`], the one that has waited longest first.
pub async fn unconfirmed(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    let rows = select_links!(
        "WHERE payment_intent_id IS NOT NULL AND (unsettled_status IS NOT NULL OR dojo_status <> status)
           AND updated_at < now() - make_interval(secs => $2) AND ($1::text[] IS NULL OR account = ANY($1))
         ORDER BY updated_at, id
         LIMIT $3",
        open,
        PATIENCE.as_secs_f64(),
        limit
    )
    .fetch_all(pool)
    .await?;
    Row::into_links(rows)
}

/// A payment of a surplus intent: somebody paid twice, or paid what nobody should have.
#[derive(Debug)]
pub struct PaidSurplus {
    pub link_id: PaymentLinkId,
    pub account: String,
    pub reference: String,
    /// The surplus intent.
    pub payment_intent_id: Option<String>,
    pub found_at: OffsetDateTime,
}

/// Up to `limit` payments of surplus intents in the last 90 days, newest first.
pub async fn paid_surplus(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<PaidSurplus>, Error> {
    let rows = sqlx::query!(
        r#"SELECT link.id, link.account, link.reference, event.detail ->> 'paymentIntentId' AS payment_intent_id,
                  event.occurred_at
           FROM payment_link_events event JOIN payment_links link ON link.id = event.payment_link_id
           WHERE event.kind = 'surplusPaid' AND event.occurred_at > now() - make_interval(secs => $2)
             AND ($1::text[] IS NULL OR link.account = ANY($1))
           ORDER BY event.id DESC
           LIMIT $3"#,
        open,
        SURPLUS.as_secs_f64(),
        limit
    )
    .fetch_all(pool)
    .await?;
    let found = rows.into_iter().map(|row| PaidSurplus {
        link_id: PaymentLinkId::from_uuid(row.id),
        account: row.account,
        reference: row.reference,
        payment_intent_id: row.payment_intent_id,
        found_at: row.occurred_at,
    });
    Ok(found.collect())
}

/// A callback that an endpoint didn't accept, however often it was attempted.
#[derive(Debug)]
pub struct FailedCallback {
    pub endpoint_id: EndpointId,
    pub url: String,
    /// The event's type.
    pub kind: String,
    pub link_id: PaymentLinkId,
    pub attempted_at: Option<OffsetDateTime>,
}

/// Up to `limit` callbacks that failed, oldest first. If `open` is given, only those to endpoints that get events of no other
/// accounts.
pub async fn failed_callbacks(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<FailedCallback>, Error> {
    // Each endpoint's oldest come from an index, however many it has.
    let rows = sqlx::query!(
        r#"SELECT endpoint.id, url, delivery.type, delivery.payment_link_id, delivery.attempted_at
           FROM callback_endpoints endpoint CROSS JOIN LATERAL (
               SELECT * FROM callback_deliveries
               WHERE endpoint_id = endpoint.id AND status = 'Failed' AND status <> 'Delivered'
               ORDER BY position LIMIT $2
           ) delivery
           WHERE deleted_at IS NULL AND ($1::text[] IS NULL OR accounts <@ $1)
           ORDER BY delivery.position, endpoint.id
           LIMIT $2"#,
        open,
        limit
    )
    .fetch_all(pool)
    .await?;
    let found = rows.into_iter().map(|row| FailedCallback {
        endpoint_id: EndpointId::from_uuid(row.id),
        url: row.url,
        kind: row.r#type,
        link_id: PaymentLinkId::from_uuid(row.payment_link_id),
        attempted_at: row.attempted_at,
    });
    Ok(found.collect())
}
