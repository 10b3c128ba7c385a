//! Reading payment links and their timelines.

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgPool, from_json, parse_stored};
use crate::payment_link::{
    Capture, Money, NewPaymentLink, PaymentLink, PaymentLinkId, Status,
    reconciliation::is_confirmed, timeline,
};

/// A row of `payment_links`, as far as callers see it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) account: String,
    pub(super) environment: String,
    pub(super) status: String,
    pub(super) dojo_status: Option<String>,
    pub(super) unsettled_status: Option<String>,
    pub(super) disputed_since: Option<OffsetDateTime>,
    pub(super) request: Value,
    pub(super) currency: String,
    pub(super) amount: i64,
    pub(super) tips_amount: Option<i64>,
    pub(super) total_amount: Option<i64>,
    pub(super) refunded_amount: i64,
    pub(super) captures: Value,
    pub(super) mismatch: Option<Value>,
    pub(super) expire_at: Option<OffsetDateTime>,
    pub(super) payment_intent_id: Option<String>,
    pub(super) url: Option<String>,
    pub(super) payment: Option<Value>,
    pub(super) attempts: Value,
    pub(super) failure: Option<Value>,
    pub(super) created_by: String,
    pub(super) created_at: OffsetDateTime,
    pub(super) updated_at: OffsetDateTime,
    pub(super) synced_at: Option<OffsetDateTime>,
}

/// Selects links as [`Row`]s. `$rest` follows `FROM payment_links`.
macro_rules! select_links {
    ($rest:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            $crate::store::links::Row,
            "SELECT id, account, environment, status, dojo_status, unsettled_status, disputed_since, request, currency,
                    amount, tips_amount, total_amount, refunded_amount, captures, mismatch, expire_at,
                    payment_intent_id, url, payment, attempts, failure, created_by, created_at, updated_at, synced_at
             FROM payment_links "
                + $rest
            $(, $argument)*
        )
    };
}
pub(super) use select_links;

impl Row {
    /// The status in the newest response of Dojo's that was accepted. Never a webhook's word.
    pub(super) fn accepted_status(&self, status: Status) -> Option<Status> {
        match (&self.dojo_status, &self.unsettled_status) {
            (None, Some(_)) => None,
            // A word that isn't known, or none at all, is from a version that made no such difference.
            (word, _) => word.as_deref().and_then(Status::from_dojo).or(Some(status)),
        }
    }

    fn is_confirmed(&self, status: Status) -> bool {
        // A conflict that began under such a version doesn't say what Dojo reported.
        let is_unknown = self.disputed_since.is_some() && self.unsettled_status.is_none();
        let accepted = self.dojo_status.as_deref().and_then(Status::from_dojo);
        !is_unknown && is_confirmed(status, accepted, self.unsettled_status.as_deref())
    }

    pub(super) fn into_link(self) -> Result<PaymentLink, Error> {
        let status = parse_stored(&self.status)?;
        let (accepted, confirmed) = (self.accepted_status(status), self.is_confirmed(status));
        let request: NewPaymentLink = from_json(self.request)?;
        let mut terms = request.terms;
        terms.expire_at = self.expire_at;
        if let Some(customer) = &mut terms.customer {
            customer.secret = None;
        }
        let currency_code = parse_stored(&self.currency)?;
        let money = |value| Money {
            value,
            currency_code,
        };
        let captures: Vec<Capture> = from_json(self.captures)?;
        let whole = self.total_amount.unwrap_or(self.amount);
        Ok(PaymentLink {
            id: PaymentLinkId::from_uuid(self.id),
            account: self.account,
            environment: parse_stored(&self.environment)?,
            status,
            confirmed,
            url: self.url,
            payment_intent_id: self.payment_intent_id,
            amount: money(self.amount),
            tips_amount: self.tips_amount.map(money),
            total_amount: self.total_amount.map(money),
            reported_amount: self.mismatch.map(from_json).transpose()?,
            captured_amount: accepted
                .map_or(0, |accepted| Capture::collected(&captures, accepted, whole)),
            refunded_amount: self.refunded_amount,
            captures,
            payment: self.payment.map(from_json).transpose()?,
            attempts: from_json(self.attempts)?,
            failure: self.failure.map(from_json).transpose()?,
            created_by: self.created_by,
            created_at: self.created_at,
            updated_at: self.updated_at,
            synced_at: self.synced_at,
            terms,
        })
    }
}

pub async fn find(pool: &PgPool, id: PaymentLinkId) -> Result<Option<PaymentLink>, Error> {
    select_links!("WHERE id = $1", id.uuid())
        .fetch_optional(pool)
        .await?
        .map(Row::into_link)
        .transpose()
}

/// Which links to list. A filter that is `None` matches every link.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Links of any of these accounts: those that the caller may see.
    pub open: Option<&'a [String]>,
    pub account: Option<String>,
    pub status: Option<Status>,
    pub reference: Option<String>,
    pub payment_intent_id: Option<String>,
    /// At this time or later.
    pub created_after: Option<OffsetDateTime>,
    /// Before this time.
    pub created_before: Option<OffsetDateTime>,
}

/// A position in the list: just behind the link with this time and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub created_at: OffsetDateTime,
    pub id: Uuid,
}

/// Up to `limit` links behind `after`, newest first.
pub async fn list(
    pool: &PgPool,
    filter: &Filter<'_>,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    select_links!(
        "WHERE ($1::text IS NULL OR status = $1)
           AND ($2::text IS NULL OR reference = $2)
           AND ($3::text IS NULL OR payment_intent_id = $3)
           AND ($4::timestamptz IS NULL OR created_at >= $4)
           AND ($5::timestamptz IS NULL OR created_at < $5)
           AND ($6::timestamptz IS NULL OR (created_at, id) < ($6, $7))
           AND ($8::text IS NULL OR account = $8)
           AND ($9::text[] IS NULL OR account = ANY($9))
         ORDER BY created_at DESC, id DESC
         LIMIT $10",
        filter.status.map(Status::as_str),
        filter.reference.as_deref(),
        filter.payment_intent_id.as_deref(),
        filter.created_after,
        filter.created_before,
        after.map(|place| place.created_at),
        after.map(|place| place.id),
        filter.account.as_deref(),
        filter.open,
        limit
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(Row::into_link)
    .collect()
}

/// Up to `limit` entries of a link's timeline behind the entry `after`, oldest first. `None` if there is no such link.
pub async fn timeline(
    pool: &PgPool,
    id: PaymentLinkId,
    after: i64,
    limit: i64,
) -> Result<Option<Vec<timeline::Entry>>, Error> {
    let rows = sqlx::query!(
        r#"SELECT event.id AS "id?", kind AS "kind?", status_before, status_after AS "status_after?",
                  cause AS "cause?", detail, occurred_at AS "occurred_at?"
           FROM payment_links link
           LEFT JOIN payment_link_events event ON event.payment_link_id = link.id AND event.id > $2
           WHERE link.id = $1
           ORDER BY event.id
           LIMIT $3"#,
        id.uuid(),
        after,
        limit
    )
    .fetch_all(pool)
    .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    rows.into_iter()
        .filter_map(|row| {
            // The outer join of a link without further entries is one row of nulls.
            let (id, kind, status_after, cause, occurred_at) = (
                row.id?,
                row.kind?,
                row.status_after?,
                row.cause?,
                row.occurred_at?,
            );
            let entry = || {
                Ok(timeline::Entry {
                    id: id.to_string(),
                    kind: from_json(Value::String(kind))?,
                    status_before: row.status_before.as_deref().map(parse_stored).transpose()?,
                    status_after: parse_stored(&status_after)?,
                    cause: from_json(cause)?,
                    detail: row.detail,
                    occurred_at,
                })
            };
            Some(entry())
        })
        .collect::<Result<_, Error>>()
        .map(Some)
}
