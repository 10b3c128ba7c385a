//! Leases on links: who works on a link holds it until a certain time, and then others may take it up.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::{Error, PgPool};
use crate::payment_link::PaymentLinkId;

/// A lease on claimed links.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// When it runs out, by the database's clock. This also identifies it.
    pub until: OffsetDateTime,
    length: Duration,
    /// From before it was asked for, so that it is never thought to last longer than it does.
    since: Instant,
}

impl Lease {
    pub(super) fn new(until: OffsetDateTime, length: Duration, since: Instant) -> Self {
        Self {
            until,
            length,
            since,
        }
    }

    /// How much longer it lasts.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.length.saturating_sub(self.since.elapsed())
    }

    /// Whether enough of it is left for a piece of work, which needs three quarters of it at most.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.since.elapsed() < self.length / 4
    }
}

/// Renews a lease on these links, and tells which of them are still held under it. All others were given back or
/// claimed by somebody else.
pub async fn renew(
    pool: &PgPool,
    lease: &Lease,
    links: &[PaymentLinkId],
) -> Result<(Lease, Vec<PaymentLinkId>), Error> {
    let since = Instant::now();
    let ids: Vec<_> = links.iter().map(PaymentLinkId::uuid).collect();
    let rows = sqlx::query!(
        r#"UPDATE payment_links SET leased_until = now() + make_interval(secs => $3)
           WHERE id = ANY($1) AND leased_until = $2
           RETURNING id, leased_until AS "until!""#,
        &ids,
        lease.until,
        lease.length.as_secs_f64()
    )
    .fetch_all(pool)
    .await?;
    let until = rows.first().map_or(lease.until, |row| row.until);
    let held = rows
        .into_iter()
        .map(|row| PaymentLinkId::from_uuid(row.id))
        .collect();
    Ok((Lease::new(until, lease.length, since), held))
}
