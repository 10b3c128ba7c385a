//! Webhooks: keeping each once, and moving the link that it is about.

use time::OffsetDateTime;

use super::{Error, PgPool, timeline::record, word};
use crate::{
    dojo::webhook::INTENT_EVENTS,
    payment_link::{
        PaymentLinkId, Status, Verdict,
        timeline::{Cause, Kind},
    },
};

/// A webhook whose signature holds.
#[derive(Debug)]
pub struct Webhook<'a> {
    /// The account whose secret signed it.
    pub account: &'a str,
    /// What makes it the same as another copy of it: the event's id, or the hash of a body without one.
    pub dedup_key: &'a str,
    /// The body as it came.
    pub body: &'a [u8],
    /// What it says; `Err` is why it could not be understood.
    pub event: Result<&'a News, String>,
}

/// What an event says.
#[derive(Debug)]
pub struct News {
    /// The kind of event.
    pub event_type: String,
    /// The intent that it is about.
    pub payment_intent_id: Option<String>,
    /// Dojo's word for the intent's status.
    pub payment_status: Option<String>,
    /// When Dojo says that it happened.
    pub dojo_created_at: Option<OffsetDateTime>,
}

/// What became of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// It had come before. Nothing changed.
    Duplicate,
    /// It was kept; it is about no link of ours, or none that knows its intent yet.
    Kept,
    /// It was kept and judged.
    Judged {
        /// The link that it is about.
        link_id: PaymentLinkId,
        /// The link's status before.
        before: Status,
        /// The link's status after.
        after: Status,
        /// What it meant, by the verdict's name.
        verdict: String,
    },
}

/// Keeps a webhook once and moves its link by the rules, in one statement, which is one round trip and one
/// transaction.
///
/// The rules are a pure function of two statuses ([`Status::judge`]), so the statement is handed their
/// whole column for the reported status, and picks the row of the status that it finds under its lock.
///
/// Two things make it safe to run at any moment, any number of times. The event's key is unique, so only
/// the first copy gets past `event`. And the intent's row is written first: a creation that is just
/// learning which intent is its own writes that row too ([`super::creation::adopt_intent`]), so one of the two
/// waits for the other. If the webhook is first, the creation finds it stored; if it is second, it finds
/// the link on the row, because a conflicting insert sees the newest version of a row, not its snapshot's.
pub async fn record(pool: &PgPool, webhook: Webhook<'_>) -> Result<Recorded, Error> {
    let (news, problem) = match webhook.event {
        Ok(news) => (Some(news), None),
        Err(problem) => (None, Some(problem)),
    };
    let reported = news.and_then(|news| news.payment_status.as_deref());
    // An event about a link that tells no status still says that something happened.
    let rules = news
        .filter(|news| news.payment_intent_id.is_some())
        .map(|news| rules_for(&news.event_type, reported))
        .unwrap_or_default();
    let cause = Cause::Webhook {
        event_id: webhook.dedup_key.to_owned(),
    };

    let row = record!(
        Kind::Webhook,
        &cause,
        r#"
        WITH intent AS (
            -- An intent that no link claims soon is looked at: it may be one whose creation was never answered.
            INSERT INTO payment_intents (id, account, due_at)
            SELECT $6, $3, now() + interval '5 seconds' WHERE $6::text IS NOT NULL
            ON CONFLICT (id) DO UPDATE SET last_seen_at = now()
            RETURNING payment_link_id, account
        ), event AS (
            INSERT INTO webhook_events AS stored
                (account, dedup_key, body, payment_intent_id, event_type, payment_status, dojo_created_at,
                 problem, payment_link_id)
            VALUES ($3, $4, $5, $6, $7, $8, $9, $10,
                    (SELECT payment_link_id FROM intent WHERE account = $3))
            ON CONFLICT (account, dedup_key)
                DO UPDATE SET deliveries = stored.deliveries + 1, last_received_at = now()
            RETURNING deliveries = 1 AS first, payment_link_id
        ), link AS (
            SELECT link.id, link.status
            FROM event JOIN payment_links link ON link.id = event.payment_link_id
            WHERE event.first
            FOR UPDATE OF link
        ), judged AS (
            SELECT link.id, link.status AS before, rule.after, rule.verdict
            FROM link
            JOIN unnest($11::text[], $12::text[], $13::text[])
                AS rule (before, after, verdict) ON rule.before = link.status
        ), moved AS (
            UPDATE payment_links link
            -- Whatever it meant, Dojo is asked: a webhook says nothing about money.
            -- The intent's id is there already. It is named all the same, for Postgres checks a row's constraints
            -- first on the version that the statement's snapshot shows, which may still be without one.
            SET status = judged.after,
                payment_intent_id = $6,
                -- Always another time than before, so that a look that is under way knows of it.
                due_at = now(),
                revision = link.revision + (judged.after <> judged.before)::int,
                -- What Dojo's answers were behind is past; being behind this is another matter.
                disputed_since = CASE WHEN judged.after <> judged.before THEN NULL ELSE link.disputed_since END,
                -- Where Dojo has never settled a status, this word shows that; without it the webhook's status would
                -- pass for Dojo's own.
                unsettled_status = CASE WHEN judged.after <> judged.before AND link.dojo_status IS NOT NULL THEN NULL
                                        ELSE link.unsettled_status END,
                updated_at = CASE WHEN judged.after <> judged.before THEN now() ELSE link.updated_at END
            FROM judged
            WHERE link.id = judged.id
        ), entry AS (
            SELECT id AS link_id, before, after,
                   jsonb_build_object('verdict', verdict, 'reported', $8::text, 'event', $7::text) AS detail
            FROM judged
        )"# => r#"
        SELECT event.first AS "first!", judged.id AS "id?", judged.before AS "before?",
               judged.after AS "after?", judged.verdict AS "verdict?"
        FROM event LEFT JOIN judged ON true"#,
        webhook.account,
        webhook.dedup_key,
        webhook.body,
        news.and_then(|news| news.payment_intent_id.as_deref()),
        news.map(|news| news.event_type.as_str()),
        reported,
        news.and_then(|news| news.dojo_created_at),
        problem,
        &rules.before as &[&str],
        &rules.after as &[&str],
        &rules.verdict as &[&str],
    )
    .fetch_one(pool)
    .await?;

    match (row.first, row.id, row.before, row.after, row.verdict) {
        (false, ..) => Ok(Recorded::Duplicate),
        (true, Some(id), Some(before), Some(after), Some(verdict)) => Ok(Recorded::Judged {
            link_id: PaymentLinkId::from_uuid(id),
            before: word(&before)?,
            after: word(&after)?,
            verdict,
        }),
        (true, ..) => Ok(Recorded::Kept),
    }
}

/// The rules' column for one reported word: for each status that a link may have, what the word means.
#[derive(Debug, Default)]
struct Rules {
    before: Vec<&'static str>,
    after: Vec<&'static str>,
    verdict: Vec<&'static str>,
}

/// What an event with this name and this word for the status means for a link in the status `before`.
pub(super) fn judge(before: Status, event_type: &str, reported: Option<&str>) -> Verdict {
    if INTENT_EVENTS.contains(&event_type) {
        before.judge(reported.and_then(Status::from_dojo))
    } else {
        Verdict::UnknownEvent
    }
}

fn rules_for(event_type: &str, reported: Option<&str>) -> Rules {
    let mut rules = Rules::default();
    for before in Status::ALL {
        let verdict = judge(before, event_type, reported);
        let after = if let Verdict::Moved(after) = verdict {
            after
        } else {
            before
        };
        rules.before.push(before.as_str());
        rules.after.push(after.as_str());
        rules.verdict.push(verdict.name());
    }
    rules
}
