//! Webhooks: storing each once, and updating the status of its link.

use super::{
    Error, PgPool, parse_stored,
    timeline::{count_status_change, record},
};
use crate::{
    dojo::webhook::{Event, INTENT_EVENTS},
    payment_link::{
        PaymentLinkId, Status, Verdict,
        timeline::{Cause, Kind},
    },
};

/// A webhook whose signature is valid.
#[derive(Debug)]
pub struct Webhook<'a> {
    /// The account whose secret signed it.
    pub account: &'a str,
    /// The same in every copy of the webhook: the event's id, or the hash of a body without one.
    pub dedup_key: &'a str,
    pub body: &'a [u8],
    /// `Err` says why the body was not understood.
    pub event: Result<&'a Event, String>,
}

/// What a webhook did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It was already stored. Nothing changed.
    Duplicate,
    /// It is stored. It is about no link, or about one that doesn't have its intent yet.
    NoLink,
    /// It is stored, and the rules were applied to the link's status.
    Judged {
        link_id: PaymentLinkId,
        before: Status,
        after: Status,
        /// The verdict's name.
        verdict: String,
    },
}

/// Stores a webhook once and applies the rules to its link's status, in one statement: one round trip and one transaction.
///
/// The rules are a pure function of two statuses ([`Status::judge`]). So the statement gets the verdict for each status that
/// the link may have, and picks the one for the status that it finds under its lock.
///
/// Two things make it safe to run at any moment, any number of times:
///
/// - The event's key is unique, so only the first copy gets past `event`.
/// - The intent's row is written first. The transaction that gives a link its intent ([`super::adoption::adopt_intent`])
///   writes that row too, so one of the two waits for the other. If the webhook is first, the adoption finds it stored. If it
///   is second, it finds the link on the row, because a conflicting insert sees the newest version of a row, not that of its
///   snapshot.
pub async fn record(pool: &PgPool, webhook: Webhook<'_>) -> Result<Effect, Error> {
    let (event, problem) = match webhook.event {
        Ok(event) => (Some(event), None),
        Err(problem) => (None, Some(problem)),
    };
    let reported = event.and_then(|event| event.payment_status.as_deref());
    // Even without a status, an event about a link says that something happened.
    let verdicts = event
        .filter(|event| event.payment_intent_id.is_some())
        .map(|event| verdicts_for(&event.event_type, reported))
        .unwrap_or_default();
    let cause = Cause::Webhook {
        event_id: webhook.dedup_key.to_owned(),
    };

    let row = record!(
        Kind::Webhook,
        &cause,
        r#"
        WITH intent AS (
            -- If no link claims the intent soon, it is traced: the response to its creation may be lost.
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
            -- Whatever the verdict, the intent is read: a webhook says nothing about money.
            -- The link already has the intent's id. It is set again because Postgres first checks a row's constraints on
            -- the version in the statement's snapshot, which may not have it yet.
            SET status = judged.after,
                payment_intent_id = $6,
                -- This always changes due_at, so a reconciliation in progress sees that and doesn't postpone the next read.
                due_at = now(),
                revision = link.revision + (judged.after <> judged.before)::int,
                -- A conflict was about the previous status. A conflict about the new one starts anew.
                disputed_since = CASE WHEN judged.after <> judged.before THEN NULL ELSE link.disputed_since END,
                -- While dojo_status is null, keep this value: it is the only sign that no response has determined a status
                -- yet. Without it, the webhook's status would count as Dojo's own.
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
        event.and_then(|event| event.payment_intent_id.as_deref()),
        event.map(|event| event.event_type.as_str()),
        reported,
        event.and_then(|event| event.created_at),
        problem,
        &verdicts.before as &[&str],
        &verdicts.after as &[&str],
        &verdicts.verdict as &[&str],
    )
    .fetch_one(pool)
    .await?;

    match (row.first, row.id, row.before, row.after, row.verdict) {
        (false, ..) => Ok(Effect::Duplicate),
        (true, Some(id), Some(before), Some(after), Some(verdict)) => {
            let (before, after) = (parse_stored(&before)?, parse_stored(&after)?);
            if before != after {
                count_status_change(after, &cause);
            }
            Ok(Effect::Judged {
                link_id: PaymentLinkId::from_uuid(id),
                before,
                after,
                verdict,
            })
        }
        (true, ..) => Ok(Effect::NoLink),
    }
}

/// For each status that a link may have, what an event means: one element of each vector per status.
#[derive(Debug, Default)]
struct Verdicts {
    before: Vec<&'static str>,
    after: Vec<&'static str>,
    verdict: Vec<&'static str>,
}

/// What an event with this name and this word for the status means for a link with the status `before`.
pub(super) fn judge(before: Status, event_type: &str, reported: Option<&str>) -> Verdict {
    if INTENT_EVENTS.contains(&event_type) {
        before.judge(reported.and_then(Status::from_dojo))
    } else {
        Verdict::UnknownEvent
    }
}

fn verdicts_for(event_type: &str, reported: Option<&str>) -> Verdicts {
    let mut verdicts = Verdicts::default();
    for before in Status::ALL {
        let verdict = judge(before, event_type, reported);
        let after = if let Verdict::Moved(after) = verdict {
            after
        } else {
            before
        };
        verdicts.before.push(before.as_str());
        verdicts.after.push(after.as_str());
        verdicts.verdict.push(verdict.name());
    }
    verdicts
}
