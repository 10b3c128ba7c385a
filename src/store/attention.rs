//! What a person must look at, besides operations whose outcome isn't known.

use std::time::Duration;

use time::OffsetDateTime;

use super::{
    Error, PgPool,
    links::{Row, select_links},
};
use crate::payment_link::{PaymentLink, PaymentLinkId};

/// Up to `limit` links that were or can be paid, and for which Dojo reports another amount than the one that was requested,
/// newest first. If `open` is given, only links of these accounts.
pub async fn mismatches(
    pool: &PgPool,
    open: Option<&[String]>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    select_links!(
        "WHERE mismatch IS NOT NULL AND status IN ('Created', 'Authorized', 'Captured')
           AND ($1::text[] IS NULL OR account = ANY($1))
         ORDER BY created_at DESC, id DESC
         LIMIT $2",
        open,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_link)
    .collect()
}

/// Up to `limit` links whose status Dojo hasn't confirmed for this long, the one that has waited longest first. If `open` is
/// given, only links of these accounts.
pub async fn unconfirmed(
    pool: &PgPool,
    open: Option<&[String]>,
    for_longer_than: Duration,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    select_links!(
        "WHERE payment_intent_id IS NOT NULL AND (unsettled_status IS NOT NULL OR dojo_status <> status)
           AND updated_at < now() - make_interval(secs => $2) AND ($1::text[] IS NULL OR account = ANY($1))
         ORDER BY updated_at, id
         LIMIT $3",
        open,
        for_longer_than.as_secs_f64(),
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_link)
    .collect()
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

/// Up to `limit` payments of surplus intents from this long ago or later, newest first. If `open` is given, only those for links
/// of these accounts.
pub async fn paid_surplus(
    pool: &PgPool,
    open: Option<&[String]>,
    since: Duration,
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
        since.as_secs_f64(),
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
