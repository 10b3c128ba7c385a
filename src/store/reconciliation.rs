//! Looking at links: which are due, and what a look changed.

use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Error, PgPool,
    leases::{Lease, LeaseRequest, claim},
    links::{Row, select_links},
    operations::refunds_of,
    timeline::{NewEntry, record, record_each},
    to_json,
};
use crate::{
    dojo::PaymentIntent,
    payment_link::{
        Capture, PaymentLink, PaymentLinkId, ReportedAmount, SettlementWindow, Status,
        reconciliation::{Conflict, Held, is_confirmed},
        refundable::Refunds,
        timeline::{Cause, Kind},
    },
};

/// A link that is looked at, as it was when the look began.
#[derive(Debug, Clone)]
pub struct LinkSnapshot {
    /// The link.
    pub link: PaymentLink,
    /// Its intent at Dojo.
    pub payment_intent_id: String,
    /// What the rules weigh Dojo's answer against.
    pub held: Held,
    /// Whether Dojo was asked more than once to create the intent, so that there may be a second one.
    pub asked_again: bool,
    /// Until when a request to create the intent may have left.
    pub asked_until: Option<OffsetDateTime>,
    /// The database's time: the replicas' own clocks may differ.
    pub now: OffsetDateTime,
    /// Whether Dojo's answer comes from search, which may lag behind: nothing tells as of when it is.
    pub from_search: bool,
    /// When Dojo was asked for the refunded amount that is held.
    pub refunds_read_at: Option<OffsetDateTime>,
    /// A lower bound of what was refunded elsewhere.
    refunds_elsewhere: i64,
    /// The amount that Dojo is being asked to change to, in minor units.
    amount_to_be: Option<i64>,
    /// The status as Dojo itself last answered it, as far as that was accepted.
    settled: Option<Status>,
    /// Dojo's word in its latest answer.
    latest: Option<String>,
    /// Changes with every change of the link's state.
    revision: i64,
    due_at: Option<OffsetDateTime>,
}

impl LinkSnapshot {
    /// How much this answer says was taken from the customer, in minor units.
    #[must_use]
    pub fn captured_amount(&self, intent: &PaymentIntent) -> i64 {
        let link = &self.link;
        let captures = intent.captures.as_ref().unwrap_or(&link.captures);
        let total = intent.total_amount.as_ref();
        let total = total.and_then(|total| total.in_currency(link.amount.currency_code));
        let whole = total.unwrap_or(link.amount.value);
        // A word that is not known takes nothing back of what Dojo said before.
        let settled = intent.known_status().or(self.settled);
        settled.map_or(0, |settled| Capture::collected(captures, settled, whole))
    }

    /// How much this answer says went back to the customer, in minor units.
    #[must_use]
    pub fn refunded_amount(&self, intent: &PaymentIntent) -> i64 {
        intent.refunded_amount.unwrap_or(self.link.refunded_amount)
    }
}

/// Claims up to `limit` links that are due, oldest first. Nobody else gets them until the lease is over.
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

/// The link with this id, to be looked at whether it is due or not. `None` if there is no such link, or no intent
/// to look at.
pub async fn find(pool: &PgPool, id: PaymentLinkId) -> Result<Option<LinkSnapshot>, Error> {
    Ok(snapshot(pool, &[id.uuid()]).await?.pop())
}

async fn snapshot(pool: &PgPool, ids: &[uuid::Uuid]) -> Result<Vec<LinkSnapshot>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // The versions first: if a link changes in between, its version is the older one, and what the look found
    // is not applied to what it did not see.
    let versions = sqlx::query!(
        r#"SELECT id, revision, due_at, asked_until, dojo_updated_at,
                  refunds_read_at, refunds_elsewhere,
                  extract(epoch FROM now() - disputed_since)::float8 AS disputed_for, now() AS "now!",
                  EXISTS (SELECT FROM payment_link_events
                          WHERE payment_link_id = payment_links.id AND kind = ANY($2)) AS "asked_again!",
                  (SELECT amount FROM operations WHERE payment_link_id = payment_links.id
                          AND kind = 'amount' AND status = 'Pending') AS amount_to_be
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
        let settled = row
            .status
            .parse()
            .ok()
            .and_then(|status| row.settled(status));
        let latest = row.unsettled_status.clone().or(row.dojo_status.clone());
        // One that cannot be read must not hold up the others; its lease runs out.
        let Ok(link) = Row::into_link(row)
            .inspect_err(|error| tracing::error!(id = %version.id, %error, "a link is unreadable"))
        else {
            continue;
        };
        all.push(LinkSnapshot {
            payment_intent_id: link.payment_intent_id.clone().unwrap_or_default(),
            held: Held {
                status: link.status,
                dojo_updated_at: version.dojo_updated_at,
                disputed_for: version
                    .disputed_for
                    .map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
            },
            link,
            asked_again: version.asked_again,
            asked_until: version.asked_until,
            now: version.now,
            from_search: false,
            refunds_read_at: version.refunds_read_at,
            refunds_elsewhere: version.refunds_elsewhere,
            amount_to_be: version.amount_to_be,
            settled,
            latest,
            revision: version.revision,
            due_at: version.due_at,
        });
    }
    Ok(all)
}

/// A time as Postgres keeps it.
fn micros(at: OffsetDateTime) -> i128 {
    at.unix_timestamp_nanos() / 1000
}

/// What a look changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Whether anything is different now.
    pub changed: bool,
    /// Whether Dojo reports an amount that was not asked for, and did not before.
    pub mismatch: bool,
}

/// Writes what Dojo answered, and when to look again (`None`: never). `None` if the link has changed since the
/// look began: nothing is written then, and the link is due at once. `window`: how long Dojo's answers may lag behind.
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
    // In another currency it would be read as an amount of this one.
    let ours = |amount: &ReportedAmount| amount.in_currency(link.amount.currency_code);
    let total = intent.total_amount.as_ref().and_then(ours);
    let tips = intent.tips_amount.as_ref().and_then(ours);
    let refunded = snapshot.refunded_amount(intent);
    let read_at = (!snapshot.from_search).then_some(snapshot.now);
    let refunds = Refunds {
        // After Dojo's answer: whatever refund of ours it includes is among them.
        ours: refunds_of(pool, link.id).await?,
        elsewhere: snapshot.refunds_elsewhere,
        read_at,
    };
    let payment = intent.payment().or_else(|| link.payment.clone());
    let attempts = intent.attempts();
    let captures = intent.captures.as_ref().unwrap_or(&link.captures);
    let collected = snapshot.captured_amount(intent);
    let known = intent.known_status();
    let unknown = known.is_none().then_some(intent.status.as_str());
    let confirmed = is_confirmed(status, known, unknown);
    let mismatch = intent
        .amount
        .as_ref()
        .filter(|amount| ours(amount) != Some(link.amount.value))
        // Asked for, if not known to be done yet.
        .filter(|amount| snapshot.amount_to_be.is_none() || ours(amount) != snapshot.amount_to_be);
    let new_mismatch = mismatch.is_some() && mismatch != link.reported_amount.as_ref();
    let mismatch = mismatch.map(to_json).transpose()?;

    let mut changed = serde_json::Map::new();
    let mut note = |name: &str, before: Value, after: Value| {
        if before != after {
            changed.insert(name.to_owned(), json!({"from": before, "to": after}));
        }
    };
    note("status", json!(link.status), json!(status));
    note("confirmed", json!(link.confirmed), json!(confirmed));
    // Of a word that is known, the status tells.
    if unknown.is_some() {
        note("reported", json!(snapshot.latest), json!(unknown));
    }
    note(
        "totalAmount",
        json!(link.total_amount.map(|total| total.value)),
        json!(total),
    );
    note(
        "tipsAmount",
        json!(link.tips_amount.map(|tips| tips.value)),
        json!(tips),
    );
    note(
        "capturedAmount",
        json!(link.captured_amount),
        json!(collected),
    );
    note(
        "refundedAmount",
        json!(link.refunded_amount),
        json!(refunded),
    );
    note(
        "attempts",
        json!(link.attempts.len()),
        json!(attempts.len()),
    );
    note(
        "payment",
        json!(link.payment.is_some()),
        json!(payment.is_some()),
    );

    // Whatever is written over makes a new version, told of or not, so that no slower answer can undo it.
    let differs = !changed.is_empty()
        || payment != link.payment
        || attempts != link.attempts
        || *captures != link.captures
        || intent.expire_at.is_some()
            && intent.expire_at.map(micros) != link.terms.expire_at.map(micros);

    let detail = json!({"changed": changed});
    let mut entries = Vec::new();
    if !changed.is_empty() {
        entries.push(NewEntry {
            kind: Kind::Reconciled,
            before: link.status,
            after: status,
            cause,
            detail,
        });
    }
    if new_mismatch {
        entries.push(NewEntry {
            kind: Kind::AmountMismatch,
            before: status,
            after: status,
            cause,
            detail: json!({"asked": link.amount, "reported": mismatch}),
        });
    }
    let written = record_each!(
        &entries,
        "WITH changed AS (
             UPDATE payment_links
             SET status = $4, total_amount = $5, tips_amount = $6, refunded_amount = $7, captures = $8,
                 expire_at = coalesce($9, expire_at), payment = $10, attempts = $11, mismatch = $12,
                 dojo_updated_at = coalesce($13, dojo_updated_at),
                 dojo_status = coalesce($14, dojo_status), unsettled_status = $15, disputed_since = NULL,
                 synced_at = now(), leased_until = NULL,
                 updated_at = CASE WHEN $16 THEN now() ELSE updated_at END,
                 -- So is the end of a dispute: a slower answer must not be accepted for having stood in it.
                 revision = revision + ($17::bool OR disputed_since IS NOT NULL)::int,
                 refunds_elsewhere = $18,
                 -- The same amount read earlier doesn't make the one that is held older. A time in the future is from
                 -- another server's clock, before a failover.
                 refunds_read_at = CASE WHEN refunded_amount = $7 AND refunds_read_at <= now()
                                        THEN greatest(refunds_read_at, $19) ELSE $19 END,
                 -- A webhook that came meanwhile has made the link due, and it stays so.
                 due_at = CASE WHEN due_at IS NOT DISTINCT FROM $20
                               THEN now() + make_interval(secs => $21) ELSE due_at END
             WHERE id = $2 AND revision = $3
             RETURNING id AS link_id
         )" => "
         SELECT link_id FROM changed",
        link.id.uuid(),
        snapshot.revision,
        status.as_str(),
        total,
        tips,
        refunded,
        to_json(captures)?,
        intent.expire_at,
        payment.as_ref().map(to_json).transpose()?,
        to_json(&attempts)?,
        mismatch,
        intent.updated_at,
        known.map(Status::as_str),
        unknown,
        !changed.is_empty(),
        differs,
        refunds.elsewhere_by(refunded, window),
        read_at,
        snapshot.due_at,
        next.map(|next| next.as_secs_f64()),
    )
    .fetch_optional(pool)
    .await?;
    if written.is_none() {
        look_again(pool, link.id, Duration::ZERO).await?;
        return Ok(None);
    }
    Ok(Some(Applied {
        changed: !changed.is_empty(),
        mismatch: new_mismatch,
    }))
}

/// Notes that Dojo's answer is in dispute; the link is to be looked at again after `wait`. Of several such answers in a
/// row the timeline tells the first, and each that says something else than the one before. Nothing is written if the
/// link has changed since the look began: it is due at once then.
pub async fn dispute(
    pool: &PgPool,
    snapshot: &LinkSnapshot,
    dispute: Conflict,
    reported: &str,
    wait: Duration,
    cause: &Cause,
) -> Result<(), Error> {
    let noted = record!(
        Kind::ConflictingResponse,
        cause,
        "WITH before AS (
             SELECT id, status, disputed_since, unsettled_status FROM payment_links
             WHERE id = $3 AND revision = $4 FOR UPDATE
         ), noted AS (
             UPDATE payment_links link
             SET disputed_since = coalesce(before.disputed_since, now()), unsettled_status = $6,
                 leased_until = NULL, due_at = now() + make_interval(secs => $5)
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
        json!({"reported": reported, "reason": dispute.name()})
    )
    .fetch_optional(pool)
    .await?;
    if noted.is_none() {
        look_again(pool, snapshot.link.id, Duration::ZERO).await?;
    }
    Ok(())
}

/// Gives a link back without a finding, to be looked at again after `wait`, or sooner if it is due sooner.
pub async fn look_again(pool: &PgPool, id: PaymentLinkId, wait: Duration) -> Result<(), Error> {
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

/// Has the link looked at again no later than it would have been without this look.
pub async fn keep_due(pool: &PgPool, snapshot: &LinkSnapshot) -> Result<(), Error> {
    sqlx::query!(
        // `least` passes over nulls.
        "UPDATE payment_links SET due_at = least(due_at, $2) WHERE id = $1",
        snapshot.link.id.uuid(),
        snapshot.due_at
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// How much is due, and for how long the oldest of it has been: links and intents that somebody should have
/// looked at by now.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    /// Pending links whose creation is not settled, and that nobody is just asking Dojo about.
    pub unsettled: i64,
    /// Links to be looked at.
    pub due: i64,
    /// Seconds.
    pub lag: f64,
}

/// The backlog of an account.
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

/// The accounts other than these that have links which can still change, and how many.
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
