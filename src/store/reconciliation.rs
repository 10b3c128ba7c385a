//! The database side of reconciliation: which links are due, and what Dojo's response changes.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Error, PgPool, from_json,
    leases::{Lease, LeaseRequest, claim},
    links::{Row, select_links},
    microseconds,
    operations::refunds_of,
    timeline::{NewEntry, count_status_change, record, record_each},
    to_json,
};
use crate::{
    dojo::PaymentIntent,
    payment_link::{
        Attempt, Capture, Money, Payment, PaymentLink, PaymentLinkId, ReportedAmount,
        SettlementWindow, Status,
        reconciliation::{Conflict, StoredState, is_confirmed},
        refundable::Refunds,
        timeline::{Cause, Change, ConflictDetail, Kind, MismatchDetail, ReconciledDetail},
    },
};

/// A link as it was when a read of its intent began.
#[derive(Debug, Clone)]
pub struct LinkSnapshot {
    pub link: PaymentLink,
    pub payment_intent_id: String,
    /// What the rules compare Dojo's response with.
    pub stored: StoredState,
    /// Whether the creation was retried, so that there may be a surplus intent.
    pub creation_retried: bool,
    /// The latest time at which a request to create the intent may have been sent.
    pub sent_until: Option<OffsetDateTime>,
    /// The database's time: the replicas' own clocks may differ.
    pub now: OffsetDateTime,
    /// Whether Dojo's response comes from search, which may lag behind, so that its age is unknown.
    pub from_search: bool,
    /// When the read began that returned the stored refunded amount.
    pub refunds_read_at: Option<OffsetDateTime>,
    /// A lower bound on what was refunded elsewhere, in minor units.
    refunds_elsewhere: i64,
    /// The refunds of ours that succeeded, in minor units.
    pub succeeded_refunds: i64,
    /// The captures in the newest accepted response.
    captures: Vec<Capture>,
    /// The amount that a pending operation changes the payment to, in minor units.
    pending_amount: Option<i64>,
    /// The status in Dojo's latest response.
    latest: Option<String>,
    /// Incremented with every change of the link's state.
    revision: i64,
    due_at: Option<OffsetDateTime>,
}

impl LinkSnapshot {
    /// How much was captured according to this response, in minor units.
    #[must_use]
    pub fn captured_amount(&self, intent: &PaymentIntent) -> i64 {
        let link = &self.link;
        let captures = intent.captures.as_ref().unwrap_or(&self.captures);
        let total = intent.total_amount.as_ref();
        let total = total.and_then(|total| total.in_currency(link.amount.currency_code));
        let whole = total.unwrap_or(link.amount.value);
        // An unknown status doesn't undo anything that Dojo reported before.
        let status = intent.known_status().or(self.stored.accepted);
        status.map_or(0, |status| Capture::collected(captures, status, whole))
    }

    /// How much was refunded according to this response, in minor units.
    #[must_use]
    pub fn refunded_amount(&self, intent: &PaymentIntent) -> i64 {
        intent
            .refunded_amount
            .unwrap_or(self.link.refunded_amount.value)
    }
}

/// Claims up to `limit` links that are due.
pub async fn claim(
    pool: &PgPool,
    account: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<(LinkSnapshot, Lease)>, Error> {
    let lease = LeaseRequest::new(lease);
    let claimed = claim!(
        "payment_links",
        "status NOT IN ('Pending', 'Failed')",
        r#"SELECT id, leased_until AS "leased_until!" FROM claimed"#,
        account,
        lease,
        limit
    )
    .fetch_all(pool)
    .await?;
    let Some(first) = claimed.first() else {
        return Ok(Vec::new());
    };
    let lease = lease.granted(first.leased_until);
    let ids: Vec<_> = claimed.iter().map(|row| row.id).collect();
    let links = snapshot(pool, &ids).await?;
    Ok(links
        .into_iter()
        .map(|snapshot| (snapshot, lease))
        .collect())
}

/// The link with this id, to be reconciled whether it is due or not. `None` if there is no such link, or if it has no
/// intent.
pub async fn find(pool: &PgPool, id: PaymentLinkId) -> Result<Option<LinkSnapshot>, Error> {
    Ok(snapshot(pool, &[id.uuid()]).await?.pop())
}

async fn snapshot(pool: &PgPool, ids: &[uuid::Uuid]) -> Result<Vec<LinkSnapshot>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // Two columns have the former names of what they contain: `asked_until` is `sent_until`, and `disputed_since` is
    // when the conflict began (`conflicting_since`).
    //
    // The revisions first: if a link changes in between, its revision is the older one, and Dojo's response is not applied
    // to a state that the read didn't start from.
    let versions = sqlx::query!(
        r#"SELECT id, revision, due_at, asked_until, dojo_updated_at,
                  refunds_read_at, refunds_elsewhere,
                  extract(epoch FROM now() - disputed_since)::float8 AS conflicting_for, now() AS "now!",
                  EXISTS (SELECT FROM payment_link_events
                          WHERE payment_link_id = payment_links.id AND kind = ANY($2)) AS "creation_retried!",
                  (SELECT amount FROM operations WHERE payment_link_id = payment_links.id
                          AND kind = 'amount' AND status = 'Pending') AS pending_amount,
                  (SELECT coalesce(sum(amount), 0)::bigint FROM operations
                   WHERE payment_link_id = payment_links.id AND kind = 'refund' AND status = 'Succeeded')
                      AS "succeeded_refunds!"
           FROM payment_links WHERE id = ANY($1) AND payment_intent_id IS NOT NULL ORDER BY id"#,
        ids,
        &Kind::CREATION_RETRIED as &[&str]
    )
    .fetch_all(pool)
    .await?;
    let links = select_links!(
        "WHERE id = ANY($1) AND payment_intent_id IS NOT NULL ORDER BY id",
        ids
    )
    .fetch_all(pool)
    .await?;
    let mut links = links.into_iter().peekable();
    let mut all = Vec::new();
    for version in versions {
        let Some(row) = links.next_if(|row| row.id == version.id) else {
            continue;
        };
        let accepted = row
            .status
            .parse()
            .ok()
            .and_then(|status| row.accepted_status(status));
        let latest = row.unsettled_status.clone().or(row.dojo_status.clone());
        // A link that can't be read must not block the others. Its lease expires.
        let unread = row.captures.clone();
        let Ok(link) = Row::into_link(row)
            .inspect_err(|error| tracing::error!(id = %version.id, %error, "a link is unreadable"))
        else {
            continue;
        };
        all.push(LinkSnapshot {
            payment_intent_id: link.payment_intent_id.clone().unwrap_or_default(),
            stored: StoredState {
                status: link.status,
                accepted,
                dojo_updated_at: version.dojo_updated_at,
                conflicting_for: version
                    .conflicting_for
                    .map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
            },
            link,
            creation_retried: version.creation_retried,
            sent_until: version.asked_until,
            now: version.now,
            from_search: false,
            refunds_read_at: version.refunds_read_at,
            refunds_elsewhere: version.refunds_elsewhere,
            succeeded_refunds: version.succeeded_refunds,
            captures: from_json(unread)?,
            pending_amount: version.pending_amount,
            latest,
            revision: version.revision,
            due_at: version.due_at,
        });
    }
    Ok(all)
}

/// What a response changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub changed: bool,
    /// Whether Dojo reports an amount other than the requested one, and did not do so before.
    pub mismatch: bool,
}

/// What an accepted response sets in its link's row, under the names that the statement uses.
#[derive(Debug, Serialize)]
struct Columns<'a> {
    status: &'a str,
    dojo_status: Option<&'a str>,
    unsettled_status: Option<&'a str>,
    #[serde(serialize_with = "microseconds::serialize_option")]
    dojo_updated_at: Option<OffsetDateTime>,
    total_amount: Option<i64>,
    tips_amount: Option<i64>,
    refunded_amount: i64,
    refunds_elsewhere: i64,
    #[serde(serialize_with = "microseconds::serialize_option")]
    refunds_read_at: Option<OffsetDateTime>,
    captures: &'a [Capture],
    mismatch: Option<&'a ReportedAmount>,
    payment: Option<&'a Payment>,
    attempts: &'a [Attempt],
    #[serde(serialize_with = "microseconds::serialize_option")]
    expire_at: Option<OffsetDateTime>,
    /// Whether anything changes that callers can see.
    is_change: bool,
    /// Whether anything changes, even if it isn't recorded in the timeline, so that no slower response can undo it.
    is_new_revision: bool,
    /// The link's `due_at` when the read began.
    #[serde(serialize_with = "microseconds::serialize_option")]
    seen_due_at: Option<OffsetDateTime>,
    /// Seconds until the next reconciliation.
    next: Option<f64>,
}

/// Stores an accepted response, and when to reconcile the link next (`None` if never again). Returns `None` if the link has
/// changed since the read began: then nothing is stored, and the link is due at once. `window` is how long Dojo's responses
/// may lag behind.
pub async fn apply(
    pool: &PgPool,
    snapshot: &LinkSnapshot,
    intent: &PaymentIntent,
    status: Status,
    next: Option<Duration>,
    window: SettlementWindow,
    cause: &Cause,
) -> Result<Option<Applied>, Error> {
    let link = &snapshot.link;
    // An amount in another currency must not be taken for one in the link's currency.
    let ours = |amount: &ReportedAmount| amount.in_currency(link.amount.currency_code);
    let total = intent.total_amount.as_ref().and_then(ours);
    let tips = intent.tips_amount.as_ref().and_then(ours);
    let refunded = snapshot.refunded_amount(intent);
    let is_current = !snapshot.from_search && !intent.refunds_are_unreadable;
    let read_at = is_current.then_some(snapshot.now);
    let refunds = Refunds {
        // Read after Dojo's response, so that they include all of our refunds that the response includes.
        ours: refunds_of(pool, link.id).await?,
        elsewhere: snapshot.refunds_elsewhere,
        read_at,
    };
    let payment = intent.payment().or_else(|| link.payment.clone());
    let attempts = intent.attempts();
    let captures = intent.captures.as_ref().unwrap_or(&snapshot.captures);
    let captured_amount = snapshot.captured_amount(intent);
    let known = intent.known_status();
    let unknown = known.is_none().then_some(intent.status.as_str());
    let accepted = known.or(snapshot.stored.accepted);
    let mismatch = intent
        .amount
        .as_ref()
        .filter(|amount| ours(amount) != Some(link.amount.value))
        // Not a mismatch: a pending operation changes the amount to this one, and may have taken effect already.
        .filter(|amount| {
            snapshot.pending_amount.is_none() || ours(amount) != snapshot.pending_amount
        });
    let new_mismatch = mismatch.is_some() && mismatch != link.reported_amount.as_ref();

    let mut changed = BTreeMap::new();
    let mut compare = |name: &str, before: Value, after: Value| {
        if before != after {
            changed.insert(
                name.to_owned(),
                Change {
                    from: before,
                    to: after,
                },
            );
        }
    };
    compare("status", json!(link.status), json!(status));
    let confirmed = is_confirmed(status, accepted, unknown);
    compare("confirmed", json!(link.confirmed), json!(confirmed));
    compare(
        "confirmedStatus",
        json!(snapshot.stored.accepted),
        json!(accepted),
    );
    // A known status already shows as `status`.
    if unknown.is_some() {
        compare("reported", json!(snapshot.latest), json!(unknown));
    }
    let value = |money: Option<Money>| json!(money.map(|money| money.value));
    compare("totalAmount", value(link.total_amount), json!(total));
    compare("tipsAmount", value(link.tips_amount), json!(tips));
    compare(
        "capturedAmount",
        json!(link.captured_amount.value),
        json!(captured_amount),
    );
    compare(
        "refundedAmount",
        json!(link.refunded_amount.value),
        json!(refunded),
    );
    compare(
        "attempts",
        json!(link.attempts.len()),
        json!(attempts.len()),
    );
    compare(
        "payment",
        json!(link.payment.is_some()),
        json!(payment.is_some()),
    );

    let is_change = !changed.is_empty();
    let new_expiry = intent.expire_at.map(microseconds::truncate);
    let columns = Columns {
        status: status.as_str(),
        dojo_status: known.map(Status::as_str),
        unsettled_status: unknown,
        dojo_updated_at: intent.updated_at,
        total_amount: total,
        tips_amount: tips,
        refunded_amount: refunded,
        refunds_elsewhere: refunds.refunded_elsewhere(refunded, window),
        refunds_read_at: read_at,
        captures,
        mismatch,
        payment: payment.as_ref(),
        attempts: &attempts,
        expire_at: new_expiry,
        is_change,
        is_new_revision: is_change
            || payment != link.payment
            || attempts != link.attempts
            || *captures != snapshot.captures
            || new_expiry.is_some() && new_expiry != link.expire_at.map(microseconds::truncate),
        seen_due_at: snapshot.due_at,
        next: next.map(|next| next.as_secs_f64()),
    };
    let mut entries = Vec::new();
    if is_change {
        entries.push(NewEntry {
            kind: Kind::Reconciled,
            before: link.status,
            after: status,
            cause,
            detail: to_json(&ReconciledDetail { changed })?,
        });
    }
    if new_mismatch {
        entries.push(NewEntry {
            kind: Kind::AmountMismatch,
            before: status,
            after: status,
            cause,
            detail: to_json(&MismatchDetail {
                requested: link.amount,
                reported: mismatch,
            })?,
        });
    }
    let stored = record_each!(
        &entries,
        "WITH changed AS (
             UPDATE payment_links link
             SET status = new.status, dojo_status = coalesce(new.dojo_status, link.dojo_status),
                 unsettled_status = new.unsettled_status, disputed_since = NULL,
                 dojo_updated_at = coalesce(new.dojo_updated_at, link.dojo_updated_at),
                 total_amount = new.total_amount, tips_amount = new.tips_amount, captures = new.captures,
                 refunded_amount = new.refunded_amount, refunds_elsewhere = new.refunds_elsewhere,
                 -- The same amount read earlier doesn't make the stored one older. A time in the future is from another
                 -- server's clock, before a failover.
                 refunds_read_at = CASE WHEN link.refunded_amount = new.refunded_amount
                                             AND link.refunds_read_at <= now()
                                        THEN greatest(link.refunds_read_at, new.refunds_read_at)
                                        ELSE new.refunds_read_at END,
                 mismatch = new.mismatch, payment = new.payment, attempts = new.attempts,
                 expire_at = coalesce(new.expire_at, link.expire_at),
                 synced_at = now(), leased_until = NULL,
                 updated_at = CASE WHEN new.is_change THEN now() ELSE link.updated_at END,
                 -- The end of a conflict counts too: a slower response must not be accepted because it stood during it.
                 revision = link.revision + (new.is_new_revision OR link.disputed_since IS NOT NULL)::int,
                 -- A webhook that arrived during the read has made the link due at once, and it stays so.
                 due_at = CASE WHEN link.due_at IS NOT DISTINCT FROM new.seen_due_at
                               THEN now() + make_interval(secs => new.next) ELSE link.due_at END
             FROM jsonb_to_record($4::jsonb) AS new (
                 status text, dojo_status text, unsettled_status text, dojo_updated_at timestamptz,
                 total_amount bigint, tips_amount bigint, refunded_amount bigint, refunds_elsewhere bigint,
                 refunds_read_at timestamptz, captures jsonb, mismatch jsonb, payment jsonb, attempts jsonb,
                 expire_at timestamptz, is_change bool, is_new_revision bool, seen_due_at timestamptz, next float8
             )
             WHERE link.id = $2 AND link.revision = $3
             RETURNING link.id AS link_id
         )" => "
         SELECT link_id FROM changed",
        link.id.uuid(),
        snapshot.revision,
        to_json(&columns)?,
    )
    .fetch_optional(pool)
    .await?;
    if stored.is_none() {
        release(pool, link.id, Duration::ZERO).await?;
        return Ok(None);
    }
    if link.status != status {
        count_status_change(status, cause.name());
    }
    Ok(Some(Applied {
        changed: is_change,
        mismatch: new_mismatch,
    }))
}

/// Stores that Dojo's response conflicts with the stored state. The link is due again after `wait`. Of consecutive conflicting
/// responses, the timeline records the first, and each whose status differs from that of the one before. If the link has
/// changed since the read began, nothing is stored, and the link is due at once.
pub async fn record_conflict(
    pool: &PgPool,
    snapshot: &LinkSnapshot,
    conflict: Conflict,
    reported: &str,
    wait: Duration,
    cause: &Cause,
) -> Result<(), Error> {
    let stored = record!(
        Kind::ConflictingResponse,
        cause,
        "WITH before AS (
             SELECT id, status, disputed_since, unsettled_status FROM payment_links
             WHERE id = $3 AND revision = $4 FOR UPDATE
         ), stored AS (
             UPDATE payment_links link
             SET disputed_since = coalesce(before.disputed_since, now()), unsettled_status = $6,
                 leased_until = NULL,
                 -- As in `apply`.
                 due_at = CASE WHEN link.due_at IS NOT DISTINCT FROM $8
                               THEN now() + make_interval(secs => $5) ELSE link.due_at END
             FROM before WHERE link.id = before.id
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, $7::jsonb AS detail
             FROM before WHERE disputed_since IS NULL OR unsettled_status IS DISTINCT FROM $6
         )" => "
         SELECT id FROM before",
        snapshot.link.id.uuid(),
        snapshot.revision,
        wait.as_secs_f64(),
        reported,
        to_json(&ConflictDetail {
            reported,
            reason: conflict.name(),
        })?,
        snapshot.due_at
    )
    .fetch_optional(pool)
    .await?;
    if stored.is_none() {
        release(pool, snapshot.link.id, Duration::ZERO).await?;
    }
    Ok(())
}

/// Releases a link without a result, to be reconciled again after `wait`, or sooner if it is due sooner.
pub async fn release(pool: &PgPool, id: PaymentLinkId, wait: Duration) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE payment_links
         SET leased_until = NULL,
             due_at = CASE WHEN due_at > now() THEN least(due_at, now() + make_interval(secs => $2))
                           ELSE now() + make_interval(secs => $2) END
         WHERE id = $1",
        id.uuid(),
        wait.as_secs_f64()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Stores that Dojo doesn't know a link's intent. The link is read again after `wait`. The timeline records it once.
pub async fn record_unknown(
    pool: &PgPool,
    id: PaymentLinkId,
    wait: Duration,
    cause: &Cause,
) -> Result<(), Error> {
    record!(
        Kind::UnknownAtDojo,
        cause,
        "WITH link AS (
             SELECT id, status FROM payment_links WHERE id = $3 FOR UPDATE
         ), entry AS (
             SELECT id AS link_id, status AS before, status AS after, NULL::jsonb AS detail FROM link
             WHERE NOT EXISTS (SELECT FROM payment_link_events WHERE payment_link_id = $3 AND kind = $1)
         )",
        id.uuid()
    )
    .execute(pool)
    .await?;
    release(pool, id, wait).await
}

/// Makes the link due no later than it was when this read began.
pub async fn keep_due(pool: &PgPool, snapshot: &LinkSnapshot) -> Result<(), Error> {
    sqlx::query!(
        // `least` ignores nulls.
        "UPDATE payment_links SET due_at = least(due_at, $2) WHERE id = $1",
        snapshot.link.id.uuid(),
        snapshot.due_at
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// How many links of an account are due, and for how long the oldest has been.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    /// Lost creations that no process is working on right now.
    pub unsettled: i64,
    /// Links that are due for reconciliation.
    pub due: i64,
    /// How long the oldest has been due, in seconds.
    pub lag: f64,
}

pub async fn backlog(pool: &PgPool, account: &str) -> Result<Backlog, Error> {
    let row = sqlx::query!(
        r#"SELECT (SELECT count(*) FROM payment_links
                   WHERE status = 'Pending' AND account = $1
                     AND (leased_until IS NULL OR leased_until <= now())) AS "unsettled!",
                  count(*) FILTER (WHERE status <> 'Pending') AS "due!",
                  coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8 AS "lag!"
           FROM payment_links WHERE due_at <= now() AND account = $1"#,
        account
    )
    .fetch_one(pool)
    .await?;
    Ok(Backlog {
        unsettled: row.unsettled,
        due: row.due,
        lag: row.lag,
    })
}

/// The accounts other than these that have links which can still change, with the number of such links.
pub async fn unconfigured(
    pool: &PgPool,
    configured: &[String],
) -> Result<Vec<(String, i64)>, Error> {
    let rows = sqlx::query!(
        r#"SELECT account, count(*) AS "links!" FROM payment_links
           WHERE due_at IS NOT NULL AND account <> ALL($1)
           GROUP BY account ORDER BY account"#,
        configured
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.account, row.links))
        .collect())
}
