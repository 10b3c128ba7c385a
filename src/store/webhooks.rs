//! Webhooks: storing each once, and updating the status of its link.

use std::collections::{BTreeSet, HashMap};

use time::OffsetDateTime;

use super::{
    Error, PgPool, parse_stored,
    timeline::{count_status_change, record_with_causes},
};
use crate::{
    dojo::webhook::{CREATED, Event, INTENT_EVENTS},
    payment_link::{PaymentLinkId, Status, Verdict, timeline::Kind},
};

/// A webhook whose signature is valid.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// The account whose secret signed it.
    pub account: String,
    /// The same in every copy of the webhook: the event's id, or the hash of a body without one.
    pub dedup_key: String,
    pub body: Vec<u8>,
    /// `Err` says why the body was not understood.
    pub event: Result<Event, String>,
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

impl Effect {
    /// The effect in one word.
    #[must_use]
    pub fn word(&self, is_understood: bool) -> &str {
        match self {
            Self::Duplicate => "duplicate",
            // It is not about a known link yet.
            Self::NoLink if is_understood => "kept",
            Self::NoLink => "not_understood",
            Self::Judged { verdict, .. } => verdict,
        }
    }
}

/// A pool with one connection of its own for [`record`], which stores all webhooks of a replica.
///
/// If another transaction holds the lock on a link, such as that of a frozen replica, the webhooks about all other links
/// wait for it too. So the statement gives up soon, and the caller stores each webhook by itself on the usual pool.
#[must_use]
pub fn intake_pool(pool: &PgPool) -> PgPool {
    pool.reserved(
        "SET lock_timeout = '100ms';
         -- The statement joins a few rows with tables of any size. A plan that was made while a table was small must
         -- still be good when it is large.
         SET enable_seqscan = off;
         SET enable_hashjoin = off;
         SET enable_mergejoin = off;
         -- Planning the statement anew for each batch doesn't pay for itself.
         SET plan_cache_mode = force_generic_plan;",
    )
}

/// Stores each webhook once and applies the rules to its link's status, all in one statement: one round trip and one
/// transaction. Returns the effects in the order of the webhooks. If one of them can't be stored, none is.
///
/// No two webhooks may have the same account and `dedup_key`, or be about the same intent, because a statement can change
/// a row only once.
///
/// The rules are a pure function of two statuses ([`Status::judge`]). So the statement gets the verdict for each status that
/// a link may have, and picks the one for the status that it finds under its lock.
///
/// Two things make it safe to run at any moment, any number of times:
///
/// - An event's key is unique, so only the first copy gets past `event`.
/// - If an intent has no link yet, its row is written first. The transaction that gives a link its intent
///   ([`super::adoption::adopt_intent`]) writes that row too, so one of the two waits for the other. If the webhook is first,
///   the adoption finds it stored. If it is second, it finds the link on the row, because a conflicting insert sees the
///   newest version of a row, not that of its snapshot. An intent that has a link keeps it, so its row needs no lock.
///
/// Each of the three steps that lock rows sorts them and is finished before the next begins, so statements that run at the
/// same time can't deadlock.
pub async fn record(pool: &PgPool, webhooks: &[Webhook]) -> Result<Vec<Effect>, Error> {
    let events = || webhooks.iter().map(|webhook| webhook.event.as_ref().ok());
    let accounts: Vec<_> = webhooks
        .iter()
        .map(|webhook| webhook.account.as_str())
        .collect();
    let dedup_keys: Vec<_> = webhooks
        .iter()
        .map(|webhook| webhook.dedup_key.as_str())
        .collect();
    let bodies: Vec<_> = webhooks
        .iter()
        .map(|webhook| webhook.body.as_slice())
        .collect();
    let intents: Vec<_> = events()
        .map(|event| event?.payment_intent_id.as_deref())
        .collect();
    let types: Vec<_> = events()
        .map(|event| Some(event?.event_type.as_str()))
        .collect();
    let reported: Vec<_> = events()
        .map(|event| event?.payment_status.as_deref())
        .collect();
    let created: Vec<_> = events().map(|event| event?.created_at).collect();
    let problems: Vec<_> = webhooks
        .iter()
        .map(|webhook| webhook.event.as_ref().err())
        .collect();
    let rules = Rules::for_events(events().flatten());

    let rows = record_with_causes!(
        Kind::Webhook,
        r#"
        WITH given AS MATERIALIZED (
            SELECT given.*, intent.payment_link_id AS owner,
                   CASE WHEN intent.account = given.account THEN intent.payment_link_id END AS link_id,
                   -- Nothing reads the body, so that of a link without personal data isn't stored.
                   EXISTS (SELECT FROM payment_links
                           WHERE id = coalesce(intent.payment_link_id, intent.surplus_of) AND erased_at IS NOT NULL)
                       AS is_erased
            FROM unnest($2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
                        $9::text[])
                AS given (account, dedup_key, body, intent_id, event_type, reported, created_at, problem)
            LEFT JOIN payment_intents intent ON intent.id = given.intent_id
        ), intent AS (
            -- If no link claims the intent soon, it is traced: the response to its creation may be lost.
            INSERT INTO payment_intents (id, account, due_at)
            SELECT intent_id, account, now() + interval '5 seconds' FROM given
            WHERE intent_id IS NOT NULL AND owner IS NULL
            ORDER BY intent_id
            ON CONFLICT (id) DO UPDATE SET last_seen_at = now()
            RETURNING id, account, payment_link_id
        ), event AS (
            INSERT INTO webhook_events AS stored
                (account, dedup_key, body, payment_intent_id, event_type, payment_status, dojo_created_at,
                 problem, payment_link_id)
            SELECT account, dedup_key, CASE WHEN is_erased THEN '' ELSE body END, intent_id, event_type, reported,
                   created_at, problem,
                   CASE WHEN owner IS NOT NULL THEN link_id
                        ELSE (SELECT payment_link_id FROM intent WHERE id = intent_id AND account = given.account) END
            FROM given
            ORDER BY account, dedup_key
            ON CONFLICT (account, dedup_key)
                DO UPDATE SET deliveries = stored.deliveries + 1, last_received_at = now()
            RETURNING account, dedup_key, event_type, payment_status, payment_link_id, deliveries = 1 AS first,
                      body <> '' AS has_body
        ), link AS (
            SELECT event.account, event.dedup_key, event.event_type, event.payment_status AS reported,
                   link.id, link.payment_intent_id, link.status, event.has_body AND link.erased_at IS NOT NULL AS is_late,
                   (link.dojo_status = link.status AND link.unsettled_status IS NULL AND link.disputed_since IS NULL)
                       IS TRUE AS is_confirmed
            FROM event JOIN payment_links link ON link.id = event.payment_link_id
            WHERE event.first
            ORDER BY link.id
            FOR UPDATE OF link
        ), judged AS (
            SELECT link.*, link.status AS before, rule.after, rule.verdict, rule.is_news OR NOT link.is_confirmed AS is_news
            FROM link
            JOIN unnest($10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bool[])
                AS rule (event_type, reported, before, after, verdict, is_news)
                ON rule.before = link.status AND rule.event_type = link.event_type
                   AND rule.reported IS NOT DISTINCT FROM link.reported
        ), moved AS (
            UPDATE payment_links link
            -- If it is news, the intent is read, whatever the verdict: a webhook says nothing about money.
            -- The link already has the intent's id. It is set again because Postgres first checks a row's constraints on
            -- the version in the statement's snapshot, which may not have it yet.
            SET status = judged.after,
                payment_intent_id = judged.payment_intent_id,
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
            WHERE link.id = judged.id AND judged.is_news
        ), entry AS (
            SELECT id AS link_id, before, after,
                   jsonb_build_object('type', 'webhook', 'eventId', dedup_key) AS cause,
                   jsonb_build_object('verdict', verdict, 'reported', reported, 'event', event_type) AS detail
            FROM judged
        )"# => r#"
        SELECT account AS "account!", dedup_key AS "dedup_key!", first AS "first!",
               NULL::uuid AS id, NULL AS before, NULL AS after, NULL AS verdict
        FROM event WHERE NOT first OR payment_link_id IS NULL
        UNION ALL
        SELECT account, dedup_key, true, id, before, after,
               CASE WHEN is_late THEN link_was_erased_meanwhile()::text ELSE verdict END
        FROM judged"#,
        &accounts as &[&str],
        &dedup_keys as &[&str],
        &bodies as &[&[u8]],
        &intents as &[Option<&str>],
        &types as &[Option<&str>],
        &reported as &[Option<&str>],
        &created as &[Option<OffsetDateTime>],
        &problems as &[Option<&String>],
        &rules.event_type as &[&str],
        &rules.reported as &[Option<&str>],
        &rules.before as &[&str],
        &rules.after as &[&str],
        &rules.verdict as &[&str],
        &rules.is_news,
    )
    .fetch_all(pool)
    .await?;

    let mut effects = HashMap::new();
    for row in rows {
        let effect = match (row.first, row.id, row.before, row.after, row.verdict) {
            (false, ..) => Effect::Duplicate,
            (true, Some(id), Some(before), Some(after), Some(verdict)) => {
                let (before, after) = (parse_stored(&before)?, parse_stored(&after)?);
                if before != after {
                    count_status_change(after, "webhook");
                }
                Effect::Judged {
                    link_id: PaymentLinkId::from_uuid(id),
                    before,
                    after,
                    verdict,
                }
            }
            (true, ..) => Effect::NoLink,
        };
        effects.insert((row.account, row.dedup_key), effect);
    }
    // No effect: a later version gave the link a status that this one doesn't know. The webhook is stored all the same.
    let effects = webhooks.iter().map(|webhook| {
        let key = (webhook.account.clone(), webhook.dedup_key.clone());
        let effect = effects.remove(&key).unwrap_or(Effect::NoLink);
        // Counted here, because it is stored even if its sender has gone.
        let verdict = effect.word(webhook.event.is_ok()).to_owned();
        metrics::counter!("webhooks_total", "verdict" => verdict).increment(1);
        effect
    });
    Ok(effects.collect())
}

/// What events mean for each status that a link may have: one element of each vector per rule.
#[derive(Debug, Default)]
struct Rules<'a> {
    event_type: Vec<&'a str>,
    reported: Vec<Option<&'a str>>,
    before: Vec<&'static str>,
    after: Vec<&'static str>,
    verdict: Vec<&'static str>,
    /// Whether it is news even about a link whose status Dojo has confirmed.
    is_news: Vec<bool>,
}

impl<'a> Rules<'a> {
    /// The rules for these events. Events about no intent have no link, and need none.
    fn for_events(events: impl Iterator<Item = &'a Event>) -> Self {
        let kinds: BTreeSet<_> = events
            .filter(|event| event.payment_intent_id.is_some())
            // Even without a status, an event about a link says that something happened.
            .map(|event| (event.event_type.as_str(), event.payment_status.as_deref()))
            .collect();
        let mut rules = Self::default();
        for (event_type, reported) in kinds {
            for before in Status::ALL {
                let verdict = judge(before, event_type, reported);
                let after = if let Verdict::Moved(after) = verdict {
                    after
                } else {
                    before
                };
                rules.event_type.push(event_type);
                rules.reported.push(reported);
                rules.before.push(before.as_str());
                rules.after.push(after.as_str());
                rules.verdict.push(verdict.name());
                rules.is_news.push(is_news(before, event_type, reported));
            }
        }
        rules
    }
}

/// What an event with this name and this word for the status means for a link with the status `before`.
pub(super) fn judge(before: Status, event_type: &str, reported: Option<&str>) -> Verdict {
    if INTENT_EVENTS.contains(&event_type) {
        before.judge(reported.and_then(Status::from_dojo))
    } else {
        Verdict::UnknownEvent
    }
}

/// Whether an event may say more about a link with the status `before` than the response of Dojo's that confirmed this status.
///
/// The event about the creation doesn't: the response to the creation said the same. Nearly every link gets this event, and
/// without this exception each would be read from Dojo once more, and its row written twice more.
pub(super) fn is_news(before: Status, event_type: &str, reported: Option<&str>) -> bool {
    let says = reported.and_then(Status::from_dojo);
    (before, event_type, says) != (Status::Created, CREATED, Some(Status::Created))
}

/// When the newest genuine webhook arrived. `None`: there has been none, or they were pruned.
pub async fn newest(pool: &PgPool) -> Result<Option<OffsetDateTime>, Error> {
    Ok(
        sqlx::query_scalar!("SELECT last_received_at FROM webhook_events ORDER BY id DESC LIMIT 1")
            .fetch_optional(pool)
            .await?,
    )
}
