//! What people did at the console. Entries are added, and never changed.

use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool};
use crate::payment_link::PaymentLinkId;

/// An entry to add. No member contains personal data of customers.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    /// Who, by id and name. `None`: somebody who could not sign in.
    pub client: Option<(Uuid, &'a str)>,
    pub what: &'a str,
    pub account: Option<&'a str>,
    pub link_id: Option<PaymentLinkId>,
    pub detail: Option<&'a str>,
    pub outcome: &'a str,
    pub request_id: &'a str,
}

pub async fn record(pool: &PgPool, entry: &NewEntry<'_>) -> Result<(), Error> {
    insert(pool, entry).await
}

/// Records it in the transaction of the change that it is about, or on its own.
pub(super) async fn insert<'c>(
    executor: impl PgExecutor<'c>,
    entry: &NewEntry<'_>,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO console_audit (client_id, client, what, account, payment_link_id, detail, outcome, request_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        entry.client.map(|(id, _)| id),
        entry.client.map(|(_, name)| name),
        entry.what,
        entry.account,
        entry.link_id.map(|id| id.uuid()),
        entry.detail,
        entry.outcome,
        entry.request_id
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// A stored entry.
#[derive(Debug)]
pub struct Entry {
    pub id: i64,
    pub occurred_at: OffsetDateTime,
    /// Who. `None`: somebody who could not sign in.
    pub client: Option<String>,
    pub what: String,
    pub account: Option<String>,
    pub link_id: Option<PaymentLinkId>,
    pub detail: Option<String>,
    pub outcome: String,
    pub request_id: String,
}

/// Up to `limit` entries before the entry `before`, newest first. If `open` is given, only those about these accounts.
pub async fn list(
    pool: &PgPool,
    open: Option<&[String]>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Entry>, Error> {
    let rows = sqlx::query!(
        "SELECT id, occurred_at, client, what, account, payment_link_id, detail, outcome, request_id
         FROM console_audit
         WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text[] IS NULL OR account = ANY($2))
         ORDER BY id DESC
         LIMIT $3",
        before,
        open,
        limit
    )
    .fetch_all(pool)
    .await?;
    let entries = rows.into_iter().map(|row| Entry {
        id: row.id,
        occurred_at: row.occurred_at,
        client: row.client,
        what: row.what,
        account: row.account,
        link_id: row.payment_link_id.map(PaymentLinkId::from_uuid),
        detail: row.detail,
        outcome: row.outcome,
        request_id: row.request_id,
    });
    Ok(entries.collect())
}
