//! Leases: the exclusive right to work on a row of `payment_links`, `operations` or `payment_intents` until a time.
//!
//! A replica that dies loses its leases when they expire, and others take over the work. The end of a lease also
//! identifies it: what is written under a lease is written only while `leased_until` is that very time.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::{Error, PgPool};
use crate::payment_link::PaymentLinkId;

/// A lease on one row, or on several that were claimed together.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// When it expires, by the database's clock.
    pub(super) until: OffsetDateTime,
    length: Duration,
    /// From before the lease was requested, so that this process never thinks that it lasts longer than it does.
    since: Instant,
}

/// A lease that is being requested.
pub(super) struct LeaseRequest {
    length: Duration,
    since: Instant,
}

impl LeaseRequest {
    /// To be called before the statement that grants the lease.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            since: Instant::now(),
        }
    }

    pub(super) fn seconds(&self) -> f64 {
        self.length.as_secs_f64()
    }

    /// The lease, once the database has granted it until this time.
    pub(super) fn granted(&self, until: OffsetDateTime) -> Lease {
        Lease {
            until,
            length: self.length,
            since: self.since,
        }
    }
}

impl Lease {
    /// How long it lasts in all.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
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

/// A query that claims rows that are due, oldest first, and returns `$select` `FROM claimed`, where `claimed` has the
/// rows of the table as they are after the claim. No other worker can claim them until the lease expires.
///
/// `$condition` restricts the rows further; they are always due, of the account and without a lease. `$1` is the account,
/// `$2` the lease in seconds and `$3` the greatest number of rows, so further arguments start at `$4`.
macro_rules! claim {
    ($table:tt, $condition:tt, $select:tt, $account:expr, $lease:expr, $limit:expr $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            "WITH claimed AS (
                UPDATE " + $table + " SET leased_until = now() + make_interval(secs => $2)
                WHERE id IN (
                    SELECT id FROM " + $table + "
                    WHERE due_at <= now() AND account = $1 AND (leased_until IS NULL OR leased_until <= now())
                      AND " + $condition + "
                    ORDER BY due_at
                    LIMIT $3
                    FOR UPDATE SKIP LOCKED
                )
                RETURNING *
            ) " + $select,
            $account,
            $lease.seconds(),
            $limit
            $(, $argument)*
        )
    };
}

/// A query that releases a leased row, to be claimed again after `$wait` (`None` if it is not due again). Without
/// effect if the row is no longer under the lease, or if `$condition` no longer holds.
macro_rules! release {
    ($table:tt, $condition:tt, $id:expr, $lease:expr, $wait:expr $(,)?) => {
        sqlx::query!(
            "UPDATE "
                + $table
                + "
             SET leased_until = NULL, due_at = now() + make_interval(secs => $3)
             WHERE id = $1 AND leased_until = $2 AND "
                + $condition,
            $id,
            $lease.until,
            $wait.map(|wait: std::time::Duration| wait.as_secs_f64())
        )
    };
}

pub(super) use {claim, release};

/// Renews a lease on these links. Returns the new lease and the links that it covers; the others were released or
/// claimed by another worker in the meantime.
pub async fn renew(
    pool: &PgPool,
    lease: &Lease,
    links: &[PaymentLinkId],
) -> Result<(Lease, Vec<PaymentLinkId>), Error> {
    let request = LeaseRequest::new(lease.length);
    let ids: Vec<_> = links.iter().map(PaymentLinkId::uuid).collect();
    let rows = sqlx::query!(
        r#"UPDATE payment_links SET leased_until = now() + make_interval(secs => $3)
           WHERE id = ANY($1) AND leased_until = $2
           RETURNING id, leased_until AS "until!""#,
        &ids,
        lease.until,
        request.seconds()
    )
    .fetch_all(pool)
    .await?;
    let until = rows.first().map_or(lease.until, |row| row.until);
    let renewed = rows
        .into_iter()
        .map(|row| PaymentLinkId::from_uuid(row.id))
        .collect();
    Ok((request.granted(until), renewed))
}
