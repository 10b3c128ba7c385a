//! Reading payment links and their timelines.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, serde::rfc3339};
use uuid::Uuid;

use super::{Error, PgPool, from_json, parse_stored, timeline::StoredEntry};
use crate::payment_link::{
    Capture, Money, NewPaymentLink, OperationId, PaymentLink, PaymentLinkId, Status,
    reconciliation::is_confirmed, timeline,
};

/// A row of `payment_links`, as far as callers see it. The feed's outbox has such rows as JSON.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) account: String,
    pub(super) environment: String,
    pub(super) status: String,
    pub(super) dojo_status: Option<String>,
    pub(super) unsettled_status: Option<String>,
    /// When Dojo's responses began to conflict. The column has the former name of `conflicting_since`.
    #[serde(with = "rfc3339::option")]
    pub(super) disputed_since: Option<OffsetDateTime>,
    pub(super) request: Value,
    pub(super) currency: String,
    pub(super) amount: i64,
    pub(super) tips_amount: Option<i64>,
    pub(super) total_amount: Option<i64>,
    pub(super) refunded_amount: i64,
    /// Our refunds whose outcome isn't known yet, in minor units.
    #[serde(default)]
    pub(super) open_refunds: i64,
    pub(super) captures: Value,
    pub(super) mismatch: Option<Value>,
    #[serde(with = "rfc3339::option")]
    pub(super) expire_at: Option<OffsetDateTime>,
    pub(super) payment_intent_id: Option<String>,
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) short_url: Option<String>,
    pub(super) payment: Option<Value>,
    pub(super) attempts: Value,
    pub(super) failure: Option<Value>,
    #[serde(default)]
    pub(super) replaces: Option<Uuid>,
    #[serde(default)]
    pub(super) replaced_by: Option<Uuid>,
    pub(super) created_by: String,
    #[serde(with = "rfc3339")]
    pub(super) created_at: OffsetDateTime,
    #[serde(with = "rfc3339")]
    pub(super) updated_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    pub(super) synced_at: Option<OffsetDateTime>,
    #[serde(default, with = "rfc3339::option")]
    pub(super) erased_at: Option<OffsetDateTime>,
}

/// Selects links as [`Row`]s. `$rest` follows `FROM payment_links`.
macro_rules! select_links {
    ($rest:tt $(+ $more:tt)? $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::store::links::Row,
            "SELECT id, account, environment, status, dojo_status, unsettled_status, disputed_since, request, currency,
                    amount, tips_amount, total_amount, refunded_amount,
                    (SELECT coalesce(sum(operations.amount), 0)::bigint FROM operations
                     WHERE payment_link_id = payment_links.id AND kind = 'refund'
                       AND operations.status IN ('Pending', 'Unconfirmed')) AS \"open_refunds!\",
                    captures, mismatch, expire_at,
                    payment_intent_id, url,
                    (SELECT base_url || '/p/' || code FROM short_addresses
                     WHERE payment_link_id = payment_links.id) AS short_url,
                    payment, attempts, failure,
                    (SELECT replaced_id FROM renewals WHERE successor_id = payment_links.id) AS replaces,
                    (SELECT successor_id FROM renewals WHERE replaced_id = payment_links.id) AS replaced_by,
                    created_by, created_at, updated_at, synced_at, erased_at
             FROM payment_links "
                + $rest $(+ $more)?
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

    pub(super) fn into_links(rows: Vec<Self>) -> Result<Vec<PaymentLink>, Error> {
        rows.into_iter().map(Self::into_link).collect()
    }

    pub(super) fn into_link(self) -> Result<PaymentLink, Error> {
        let status = parse_stored(&self.status)?;
        let (accepted, confirmed) = (self.accepted_status(status), self.is_confirmed(status));
        let request: NewPaymentLink = from_json(self.request)?;
        let mut terms = request.terms;
        // The link has its own: Dojo sets one if the request has none.
        terms.expire_at = None;
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
        let collected =
            accepted.map_or(0, |accepted| Capture::collected(&captures, accepted, whole));
        Ok(PaymentLink {
            id: PaymentLinkId::from_uuid(self.id),
            account: self.account,
            environment: parse_stored(&self.environment)?,
            status,
            confirmed,
            url: self.url,
            short_url: self.short_url,
            payment_intent_id: self.payment_intent_id,
            amount: money(self.amount),
            tips_amount: self.tips_amount.map(money),
            total_amount: self.total_amount.map(money),
            reported_amount: self.mismatch.map(from_json).transpose()?,
            captured_amount: money(collected),
            refunded_amount: money(self.refunded_amount),
            refundable_amount: money(
                collected
                    .saturating_sub(self.refunded_amount)
                    .saturating_sub(self.open_refunds)
                    .max(0),
            ),
            captures: captures
                .iter()
                .map(|capture| capture.in_currency(currency_code))
                .collect(),
            payment: self.payment.map(from_json).transpose()?,
            attempts: from_json(self.attempts)?,
            failure: self.failure.map(from_json).transpose()?,
            replaces: self.replaces.map(PaymentLinkId::from_uuid),
            replaced_by: self.replaced_by.map(PaymentLinkId::from_uuid),
            created_by: self.created_by,
            created_at: self.created_at,
            updated_at: self.updated_at,
            synced_at: self.synced_at,
            erased_at: self.erased_at,
            expire_at: self.expire_at,
            send: request.send,
            reminders: request.reminders,
            terms,
        })
    }
}

pub async fn find(pool: &PgPool, id: PaymentLinkId) -> Result<Option<PaymentLink>, Error> {
    let row = rows(pool, &[id.uuid()]).await?.pop();
    row.map(Row::into_link).transpose()
}

/// The links with these ids, in any order, as they are stored.
pub(super) async fn rows(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<Row>, Error> {
    let rows = match ids {
        [] => Vec::new(),
        // For a list of one, Postgres would plan the statement anew each time: its plan for any list is for ten.
        [id] => {
            let row = select_links!("WHERE id = $1", id).fetch_optional(pool);
            row.await?.into_iter().collect()
        }
        _ => {
            let rows = select_links!("WHERE id = ANY($1)", ids).fetch_all(pool);
            rows.await?
        }
    };
    Ok(rows)
}

/// How many of an account's links from the last 24 hours have each status.
///
/// Counting all links would take minutes on a large table. This reads the newest end of an index, and never more than 100000
/// rows.
pub async fn recent(pool: &PgPool, account: &str) -> Result<Vec<(Status, i64)>, Error> {
    let rows = sqlx::query!(
        r#"SELECT status, count(*) AS "links!"
           FROM (SELECT status FROM payment_links
                 WHERE account = $1 AND created_at > now() - interval '24 hours'
                 ORDER BY created_at DESC, id DESC LIMIT 100000) AS newest
           GROUP BY status"#,
        account
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| Ok((parse_stored(&row.status)?, row.links)))
        .collect()
}

/// Which links to list. A filter that is `None` matches every link.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Links of any of these accounts: those that the caller may see.
    pub open: Option<&'a [String]>,
    pub account: Option<String>,
    /// Links with any of these statuses.
    pub statuses: Option<Vec<String>>,
    pub reference: Option<String>,
    pub payment_intent_id: Option<String>,
    /// Links with all of these metadata entries.
    pub metadata: Option<BTreeMap<String, String>>,
    /// In lower case.
    pub customer_email: Option<String>,
    pub card_last4: Option<String>,
    /// Minor units.
    pub amount: Option<i64>,
    pub term: Option<Term>,
    /// At this time or later.
    pub created_after: Option<OffsetDateTime>,
    /// Before this time.
    pub created_before: Option<OffsetDateTime>,
    /// At this time or later.
    pub updated_after: Option<OffsetDateTime>,
}

/// A search term.
#[derive(Debug, Clone)]
pub enum Term {
    Link(PaymentLinkId),
    /// The link of this operation.
    Operation(OperationId),
    /// A payment intent's id, or the start of a reference.
    Text(String),
}

impl Filter<'_> {
    fn metadata(&self) -> Option<Value> {
        self.metadata.as_ref().map(|entries| json!(entries))
    }

    fn link(&self) -> Option<Uuid> {
        match &self.term {
            Some(Term::Link(id)) => Some(id.uuid()),
            _ => None,
        }
    }

    fn operation(&self) -> Option<Uuid> {
        match &self.term {
            Some(Term::Operation(id)) => Some(id.uuid()),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match &self.term {
            Some(Term::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The pattern of references that start with the term.
    fn prefix(&self) -> Option<String> {
        let text = self.text()?;
        let escaped = text
            .replace('\\', "\\\\")
            .replace('%', "\\%")
            .replace('_', "\\_");
        Some(format!("{escaped}%"))
    }
}

/// A position in a list: just behind the link with this time and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// When the link was created or changed, depending on the list's order.
    pub at: OffsetDateTime,
    pub id: Uuid,
}

/// Selects the links that match a filter. `$order` follows the conditions and may use `$1` and `$2`, the place to begin
/// behind, and `$3`, the limit.
macro_rules! select_filtered {
    ($filter:expr, $after:expr, $limit:expr, $order:tt) => {
        select_links!(
            "WHERE ($4::text[] IS NULL OR status = ANY($4))
               AND ($5::text IS NULL OR reference = $5)
               AND ($6::text IS NULL OR payment_intent_id = $6)
               AND ($7::timestamptz IS NULL OR created_at >= $7)
               AND ($8::timestamptz IS NULL OR created_at < $8)
               AND ($9::text IS NULL OR account = $9)
               AND ($10::text[] IS NULL OR account = ANY($10))
               AND ($11::jsonb IS NULL OR request -> 'metadata' @> $11)
               AND ($12::text IS NULL OR lower(request #>> '{customer,emailAddress}') = $12)
               AND ($13::text IS NULL OR payment ->> 'last4' = $13)
               AND ($14::bigint IS NULL OR amount = $14)
               AND ($15::uuid IS NULL OR id = $15)
               AND ($16::uuid IS NULL OR id = (SELECT payment_link_id FROM operations WHERE operations.id = $16))
               AND ($17::text IS NULL OR payment_intent_id = $17 OR reference LIKE $18)
               AND ($19::timestamptz IS NULL OR updated_at >= $19) "
                + $order,
            $after.map(|place: Place| place.at),
            $after.map(|place: Place| place.id),
            $limit,
            $filter.statuses.as_deref(),
            $filter.reference.as_deref(),
            $filter.payment_intent_id.as_deref(),
            $filter.created_after,
            $filter.created_before,
            $filter.account.as_deref(),
            $filter.open,
            $filter.metadata(),
            $filter.customer_email.as_deref(),
            $filter.card_last4.as_deref(),
            $filter.amount,
            $filter.link(),
            $filter.operation(),
            $filter.text(),
            $filter.prefix(),
            $filter.updated_after
        )
    };
}

/// Up to `limit` links behind `after`, newest first.
pub async fn list(
    pool: &PgPool,
    filter: &Filter<'_>,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    let rows = select_filtered!(
        filter,
        after,
        limit,
        "AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2))
         ORDER BY created_at DESC, id DESC
         LIMIT $3"
    )
    .fetch_all(pool)
    .await?;
    Row::into_links(rows)
}

/// Up to `limit` links behind `after`, in the order of their last change, oldest first.
pub async fn list_updated(
    pool: &PgPool,
    filter: &Filter<'_>,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<PaymentLink>, Error> {
    let rows = select_filtered!(
        filter,
        after,
        limit,
        "AND ($1::timestamptz IS NULL OR (updated_at, id) > ($1, $2))
         ORDER BY updated_at, id
         LIMIT $3"
    )
    .fetch_all(pool)
    .await?;
    Row::into_links(rows)
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
            let entry = StoredEntry {
                id: row.id?,
                kind: row.kind?,
                status_before: row.status_before,
                status_after: row.status_after?,
                cause: row.cause?,
                detail: row.detail,
                occurred_at: row.occurred_at?,
            };
            Some(entry.into_entry())
        })
        .collect::<Result<_, Error>>()
        .map(Some)
}
