//! Reminders that are due.

use std::time::Duration;

use super::{
    Error, PgPool,
    leases::{Lease, LeaseRequest, claim, release},
    timeline::record,
    to_json,
};
use crate::payment_link::{
    Channel, MessageId, MessageStatus, PaymentLinkId, Purpose, Status,
    message::DEFAULT_LOCALE,
    timeline::{Cause, Kind, ReminderDueDetail},
};

/// A claimed reminder that is due.
#[derive(Debug, Clone)]
pub struct DueReminder {
    pub id: i64,
    pub link_id: PaymentLinkId,
    /// Its place in the list that the link was requested with.
    pub number: usize,
    pub lease: Lease,
}

/// Claims up to `limit` reminders that are due.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<DueReminder>, Error> {
    let lease = LeaseRequest::new(lease);
    let rows = claim!(
        "reminders",
        "true",
        r#"SELECT id, payment_link_id, number, leased_until AS "leased_until!" FROM claimed"#,
        account,
        lease,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| DueReminder {
            id: row.id,
            link_id: PaymentLinkId::from_uuid(row.payment_link_id),
            number: usize::from(row.number.unsigned_abs()),
            lease: lease.granted(row.leased_until),
        })
        .collect())
}

/// Stores that a reminder was due: records it, and saves its email if the link was requested with one. `detail` has the email's
/// id then.
///
/// Other reminders of the link that are due as well, because none could be given for a while, count as this one. A customer
/// doesn't get several at once.
///
/// Returns `false` if the lease is lost, or the link is no longer unpaid.
pub async fn give(
    pool: &PgPool,
    reminder: &DueReminder,
    detail: &ReminderDueDetail<'_>,
) -> Result<bool, Error> {
    let given = record!(
        Kind::ReminderDue,
        &Cause::Schedule,
        "WITH link AS MATERIALIZED (
             -- Locked, so that the entry has the status that the link has when it is written.
             SELECT id, account, status, request, created_by FROM payment_links
             WHERE id = $3 AND status = $12 FOR UPDATE
         ), mine AS MATERIALIZED (
             SELECT reminders.id FROM reminders, link WHERE reminders.id = $4 AND reminders.leased_until = $5
         ), given AS (
             DELETE FROM reminders USING link
             WHERE reminders.payment_link_id = link.id AND reminders.due_at <= now() AND EXISTS (SELECT FROM mine)
             RETURNING reminders.id
         ), message AS (
             INSERT INTO messages
                 (id, payment_link_id, account, channel, purpose, recipient, locale, status, created_by, due_at)
             SELECT $6::uuid, id, account, $7, $8, request #>> '{send,email}',
                    coalesce(request #>> '{send,locale}', $9), $10, created_by, now()
             FROM link
             WHERE $6 IS NOT NULL AND request #>> '{send,email}' IS NOT NULL AND EXISTS (SELECT FROM given WHERE id = $4)
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, $11::jsonb AS detail
             FROM link WHERE EXISTS (SELECT FROM given WHERE id = $4)
         )",
        reminder.link_id.uuid(),
        reminder.id,
        reminder.lease.until,
        detail.message_id.map(|id: MessageId| id.uuid()),
        Channel::Email.as_str(),
        Purpose::Reminder.as_str(),
        DEFAULT_LOCALE,
        MessageStatus::Pending.as_str(),
        to_json(detail)?,
        Status::Created.as_str()
    )
    .execute(pool)
    .await?;
    Ok(given.rows_affected() == 1)
}

/// Removes a reminder that has become pointless, and all others of its link.
pub async fn drop_all(pool: &PgPool, link_id: PaymentLinkId) -> Result<(), Error> {
    sqlx::query!(
        "DELETE FROM reminders WHERE payment_link_id = $1",
        link_id.uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Releases a reminder, to be claimed again after `wait`.
pub async fn release(pool: &PgPool, reminder: &DueReminder, wait: Duration) -> Result<(), Error> {
    release!("reminders", "true", reminder.id, reminder.lease, Some(wait))
        .execute(pool)
        .await?;
    Ok(())
}
