//! The database's side of recovering lost creations.

use std::time::Duration;

use time::OffsetDateTime;

use super::{
    Error, PgPool, from_json,
    leases::{Lease, LeaseRequest, claim, release},
    timeline::record,
};
use crate::payment_link::{
    NewPaymentLink, PaymentLinkId,
    timeline::{Cause, Kind},
};

/// A claimed link that is pending and that nobody works on, or that failed after a response was lost.
#[derive(Debug, Clone)]
pub struct LostCreation {
    pub id: PaymentLinkId,
    /// Whether the link has failed, so that an intent that appears now is surplus.
    pub failed: bool,
    pub new: NewPaymentLink,
    pub created_at: OffsetDateTime,
    /// Until when a request to create the intent may have left; `None`: none ever did.
    pub sent_until: Option<OffsetDateTime>,
    /// When the creation was last retried.
    pub retried_at: Option<OffsetDateTime>,
    pub lease: Lease,
    /// The database's time: the replicas' own clocks may differ.
    pub now: OffsetDateTime,
}

/// Claims up to `limit` lost creations that are due.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<LostCreation>, Error> {
    let lease = LeaseRequest::new(lease);
    let claimed = claim!(
        "payment_links",
        "status IN ('Pending', 'Failed')",
        r#"SELECT id, status = 'Failed' AS "failed!", request, created_at, asked_until,
                  (SELECT max(occurred_at) FROM payment_link_events
                   WHERE payment_link_id = claimed.id AND kind = ANY($4)) AS retried_at,
                  leased_until AS "leased_until!", now() AS "now!"
           FROM claimed"#,
        account,
        lease,
        limit,
        &Kind::CREATION_RETRIED as &[&str]
    )
    .fetch_all(pool)
    .await?;
    Ok(claimed
        .into_iter()
        .filter_map(|row| {
            let id = PaymentLinkId::from_uuid(row.id);
            // A link that can't be read must not block the others. Its lease expires.
            let new = from_json(row.request)
                .inspect_err(
                    |error| tracing::error!(link_id = %id, %error, "a pending link is unreadable"),
                )
                .ok()?;
            Some(LostCreation {
                id,
                failed: row.failed,
                new,
                created_at: row.created_at,
                // The column has the former name of `sent_until`.
                sent_until: row.asked_until,
                retried_at: row.retried_at,
                lease: lease.granted(row.leased_until),
                now: row.now,
            })
        })
        .collect())
}

/// Releases a claimed link, to be recovered again after `wait`; `None`: there is nothing more to look for.
pub async fn release(
    pool: &PgPool,
    lost: &LostCreation,
    wait: Option<Duration>,
) -> Result<(), Error> {
    release!(
        "payment_links",
        "status IN ('Pending', 'Failed')",
        lost.id.uuid(),
        lost.lease,
        wait
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Records that the creation is about to be retried, under a new lease. `None` if another worker has claimed or
/// resolved the link in the meantime, so that Dojo must not be called.
pub async fn retry(
    pool: &PgPool,
    lost: &LostCreation,
    lease: Duration,
    cause: &Cause,
) -> Result<Option<Lease>, Error> {
    let lease = LeaseRequest::new(lease);
    let retried = record!(
        Kind::CreationRetried,
        cause,
        r#"WITH retried AS (
             UPDATE payment_links
             SET leased_until = now() + make_interval(secs => $4),
                 asked_until = now() + make_interval(secs => $4)
             WHERE id = $3 AND status = 'Pending' AND leased_until = $5 AND leased_until > now()
             RETURNING id, status, leased_until
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, NULL::jsonb AS detail FROM retried
         )"# => r#"
         SELECT leased_until AS "until!" FROM retried"#,
        lost.id.uuid(),
        lease.seconds(),
        lost.lease.until
    )
    .fetch_optional(pool)
    .await?;
    Ok(retried.map(|row| lease.granted(row.until)))
}

/// Stores that the retry did not reach Dojo after all, and releases the link, to be tried again after `wait`. The time until
/// which a request may have left is again what it was before.
pub async fn undo_retry(
    pool: &PgPool,
    lost: &LostCreation,
    lease: Lease,
    wait: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE payment_links
         SET leased_until = NULL, asked_until = $4, due_at = now() + make_interval(secs => $2)
         WHERE id = $1 AND status = 'Pending' AND leased_until = $3",
        lost.id.uuid(),
        wait.as_secs_f64(),
        lease.until,
        lost.sent_until
    )
    .execute(pool)
    .await?;
    Ok(())
}
