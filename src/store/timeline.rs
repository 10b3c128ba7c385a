//! Writing timeline entries. Nothing else inserts into `payment_link_events`.
//!
//! An entry is part of the statement that makes the change it reports, so that neither exists without the other and both
//! take one round trip. The statement lists its changes as CTEs; [`record!`] appends the insert.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::{Error, from_json, parse_stored};
use crate::payment_link::{
    Status,
    timeline::{Cause, Entry, Kind},
};

/// A query that makes changes and records each of them in its link's timeline.
///
/// `$ctes` starts with `WITH`. Its last CTE is called `entry` and yields a row for each entry to record: `link_id`,
/// `before` and `after` (statuses) and `detail` (JSON or `NULL`). `$1` is the entry's kind and `$2` its cause, so the
/// statement's own arguments start at `$3`. The number of affected rows is the number of entries.
///
/// With `=> "SELECT …"`, the query returns these rows, and records the entries all the same.
macro_rules! record {
    ($kind:expr, $cause:expr, $ctes:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            $ctes + "
            INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
            SELECT link_id, $1, before, after, $2, detail FROM entry",
            $crate::store::timeline::kind_word($kind),
            $crate::store::to_json($cause)?
            $(, $argument)*
        )
    };
    ($kind:expr, $cause:expr, $ctes:tt => $select:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            $ctes + ", recorded AS (
                INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
                SELECT link_id, $1, before, after, $2, detail FROM entry
            ) " + $select,
            $crate::store::timeline::kind_word($kind),
            $crate::store::to_json($cause)?
            $(, $argument)*
        )
    };
}

/// Like [`record!`] with rows to return, but each row of `entry` has a cause of its own, as JSON in `cause`. `$1` is the
/// kind, so the statement's own arguments start at `$2`.
macro_rules! record_with_causes {
    ($kind:expr, $ctes:tt => $select:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            $ctes + ", recorded AS (
                INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
                SELECT link_id, $1, before, after, cause, detail FROM entry
            ) " + $select,
            $crate::store::timeline::kind_word($kind)
            $(, $argument)*
        )
    };
}

/// Like [`record!`] with rows to return, for entries of different kinds that are known before the statement runs:
/// `$entries` is a slice of [`NewEntry`], and `$1` in the statement. Each is recorded for each link that the CTE
/// `changed` yields as `link_id`. The statement's own arguments start at `$2`.
macro_rules! record_each {
    ($entries:expr, $ctes:tt $(+ $more:tt)* => $select:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            $ctes $(+ $more)* + ", recorded AS (
                INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
                SELECT link_id, kind, before, after, cause, detail
                FROM changed, jsonb_to_recordset($1::jsonb)
                    AS entry (kind text, before text, after text, cause jsonb, detail jsonb)
            ) " + $select,
            $crate::store::to_json($entries)?
            $(, $argument)*
        )
    };
}

pub(super) use {record, record_each, record_with_causes};

/// An entry to record with [`record_each!`].
#[derive(Debug, Serialize)]
pub(super) struct NewEntry<'a> {
    pub(super) kind: Kind,
    pub(super) before: Status,
    pub(super) after: Status,
    pub(super) cause: &'a Cause,
    pub(super) detail: Value,
}

/// A row of `payment_link_events`.
pub(super) struct StoredEntry {
    pub(super) id: i64,
    pub(super) kind: String,
    pub(super) status_before: Option<String>,
    pub(super) status_after: String,
    pub(super) cause: Value,
    pub(super) detail: Option<Value>,
    pub(super) occurred_at: OffsetDateTime,
}

impl StoredEntry {
    pub(super) fn into_entry(self) -> Result<Entry, Error> {
        Ok(Entry {
            id: self.id.to_string(),
            kind: from_json(Value::String(self.kind))?,
            status_before: self
                .status_before
                .as_deref()
                .map(parse_stored)
                .transpose()?,
            status_after: parse_stored(&self.status_after)?,
            cause: from_json(self.cause)?,
            detail: self.detail,
            occurred_at: self.occurred_at,
        })
    }
}

/// Counts a change of a link's status, once it is committed.
pub(super) fn count_status_change(status: Status, cause: &'static str) {
    metrics::counter!(
        "link_status_changes_total",
        "status" => status.as_str(), "cause" => cause
    )
    .increment(1);
}

/// The word that is stored for a kind. Takes no text, so that no word is stored that could not be read back.
pub(super) fn kind_word(kind: Kind) -> &'static str {
    kind.as_str()
}
