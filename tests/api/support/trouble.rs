//! Trouble of every kind, and how to tell that it is over.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgTransaction};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Answer, DOJO_KEY, Service, TestApp, TestSandbox, eventually, send, text, try_send, within,
};

/// The settlement window under [`QUICK`].
pub const SETTLE: Duration = Duration::from_secs(2);

/// Turns background jobs on and makes them quick. The work of a dead replica is claimed again after 4 seconds.
pub const QUICK: [(&str, &str); 6] = [
    ("RUN_JOBS", "true"),
    ("POLL_INTERVAL", "100ms"),
    ("RECOVERY_SETTLE", "2s"),
    ("DOJO_TIMEOUT", "2s"),
    ("LEASE_SLACK", "1ms"),
    ("BACKGROUND_RATE", "200"),
];

/// An address that a program can come back to after it was killed.
pub fn stable_address() -> String {
    format!("127.0.0.1:{}", test_postgres::free_port())
}

/// Runs a test for each case, all at the same time, each with an app of its own. The apps are started first, because that
/// keeps a machine so busy that the first calls would time out.
pub async fn for_each_case<C: Sync>(
    cases: &[C],
    settings: &[(&str, &str)],
    test: impl AsyncFn(TestApp, &C),
) {
    let apps = join_all(cases.iter().map(|_| TestApp::quick(settings))).await;
    join_all(
        apps.into_iter()
            .zip(cases)
            .map(|(app, case)| test(app, case)),
    )
    .await;
}

/// Repeats a request until its response says what the outcome is.
async fn outcome(request: impl AsyncFn() -> reqwest::Result<Answer>) -> Answer {
    within(Duration::from_mins(1), "the outcome is known", async {
        loop {
            match request().await {
                Ok(answer)
                    if !answer.status.is_server_error()
                        && answer.header("retry-after").is_empty() =>
                {
                    return answer;
                }
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    })
    .await
}

impl TestApp {
    /// Everything, with quick background jobs and a service that has the same address after a restart. `more` overrides [`QUICK`].
    pub async fn quick(more: &[(&str, &str)]) -> Self {
        Self::quick_on(super::new_database().await, more).await
    }

    /// The same, on this database.
    pub async fn quick_on(database_url: String, more: &[(&str, &str)]) -> Self {
        let address = stable_address();
        let settings = [&QUICK[..], &[("LISTEN_ADDR", &address)], more].concat();
        Self::on(database_url, &settings).await
    }

    /// Another service on the same database, with quick background jobs and these settings on top.
    pub async fn another(&self, more: &[(&str, &str)]) -> Service {
        let settings = [&QUICK[..], more].concat();
        Service::start(&self.database_url, &self.sandbox.url, &settings).await
    }

    /// Starts the service again after it was killed.
    pub async fn restart(&mut self) {
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.service = Service::start(&self.database_url, &self.sandbox.url, &settings).await;
    }

    /// Requests a link with an idempotency key, from a service that may die meanwhile.
    pub async fn try_to_create(&self, key: &str, body: &Value) -> reqwest::Result<Answer> {
        let request = self.request(Method::POST, "/v1/payment-links");
        try_send(request.header("idempotency-key", key).json(body)).await
    }

    /// Repeats a request as its caller would, until its outcome is known.
    pub async fn outcome(&self, key: &str, body: &Value) -> Answer {
        outcome(async || self.try_to_create(key, body).await).await
    }

    /// The same for an operation.
    pub async fn operation_outcome(
        &self,
        key: &str,
        link: &Value,
        operation: &str,
        body: &Value,
    ) -> Answer {
        outcome(async || self.try_to_operate(key, link, operation, body).await).await
    }

    /// Repeats a request until it has created a link, and checks that it created only one: one that is not `Failed`, with the
    /// only live intent at Dojo. If the creation was retried, a surplus intent may have to be canceled first. The reference must
    /// be unique to the request.
    pub async fn the_only_link(&self, key: &str, body: &Value) -> Value {
        let link = self.outcome(key, body).await.expect(201).json();
        let again = self.create_with_key(key, body).await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.json()["id"], link["id"], "always the same link");

        let reference = text(&body["reference"]);
        let links = self.links_about(reference).await;
        let alive: Vec<_> = links
            .iter()
            .filter(|link| link["status"] != "Failed")
            .map(|link| &link["id"])
            .collect();
        assert_eq!(alive, [&link["id"]], "{links:#?}");
        let alone = async || {
            let intents = self.sandbox.live_intents_about(reference).await;
            let ids: Vec<_> = intents.iter().map(|intent| &intent["id"]).collect();
            if ids == [&link["paymentIntentId"]] {
                Ok(())
            } else {
                Err(intents)
            }
        };
        if self.told(&link["id"], "creationRetried").await.is_empty() {
            if let Err(intents) = alone().await {
                panic!("the intent was requested once, and Dojo has {intents:#?}");
            }
        } else {
            // On a busy machine Dojo may work on the first request after the settlement window. Then there are two
            // intents until the surplus one is canceled.
            eventually("there is one live intent", async || alone().await.ok()).await;
        }
        link
    }

    /// The same, and checks that the link can be paid.
    pub async fn the_only_link_and_it_can_be_paid(&self, key: &str, body: &Value) -> Value {
        let link = self.the_only_link(key, body).await;
        self.sandbox.pay(&link["paymentIntentId"]).await;
        self.link_with_status(&link["id"], "Captured").await
    }

    /// All links with this reference.
    pub async fn links_about(&self, reference: &str) -> Vec<Value> {
        let request = self.request(Method::GET, "/v1/payment-links");
        let page = send(request.query(&[("reference", reference), ("limit", "100")])).await;
        page.expect(200).json()["data"].as_array().unwrap().clone()
    }

    /// The timeline entries of this type.
    pub async fn told(&self, id: &Value, kind: &str) -> Vec<Value> {
        let mut timeline = self.timeline(id).await;
        timeline.retain(|entry| entry["type"] == kind);
        timeline
    }

    /// Has the service reconcile the link now.
    pub async fn refresh(&self, id: &Value) -> Answer {
        let path = format!("/v1/payment-links/{}/refresh", text(id));
        send(self.request(Method::POST, &path)).await
    }

    /// Reconciles the link until no webhook arrives meanwhile.
    pub async fn read_until_confirmed(&self, id: &Value) -> Value {
        eventually("Dojo confirms the link", async || {
            let link = self.refresh(id).await.expect(200).json();
            (link["confirmed"] == true).then_some(link)
        })
        .await
    }

    /// Makes every link that can still change due now, as time would.
    pub async fn all_are_due(&self) {
        sqlx::query("UPDATE payment_links SET due_at = now() WHERE due_at IS NOT NULL")
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// Waits until a transaction waits because of [`Self::block_adoption`].
    pub async fn adoption_is_blocked(&self) {
        eventually("a transaction waits at the gate", async || {
            let waits: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event = 'advisory')",
            )
            .fetch_one(&self.pool)
            .await
            .unwrap();
            waits.then_some(())
        })
        .await;
    }

    /// Takes a lock, which lasts until the transaction is dropped.
    pub async fn lock(&self, statement: &str) -> PgTransaction<'static> {
        let mut transaction = self.pool.begin().await.unwrap();
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction
    }

    /// How many of the service's statements wait for a lock.
    pub async fn waiting_for_locks(&self) -> usize {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'dojo-payment-links'
               AND wait_event_type = 'Lock'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        usize::try_from(waiting).unwrap()
    }

    /// Makes the transaction that adopts an intent wait with all its rows written, until the guard is dropped.
    pub async fn block_adoption(&self) -> PgTransaction<'static> {
        for statement in [
            "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END'",
            "CREATE TRIGGER gate AFTER INSERT ON payment_link_events FOR EACH ROW WHEN (NEW.kind = 'created')
             EXECUTE FUNCTION wait_at_gate()",
        ] {
            sqlx::query(statement).execute(&self.pool).await.unwrap();
        }
        self.lock("SELECT pg_advisory_xact_lock(77)").await
    }

    /// Waits until a statement with these words waits for a lock. Returns the pid of its session.
    pub async fn blocked(&self, statement: &str) -> i32 {
        eventually(&format!("{statement} waits for a lock"), async || {
            sqlx::query_scalar(
                "SELECT pid FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'
                   AND regexp_replace(query, '\\s+', ' ', 'g') LIKE '%' || $1 || '%'",
            )
            .bind(statement)
            .fetch_optional(&self.pool)
            .await
            .unwrap()
        })
        .await
    }

    /// Ends a session and rolls back its transaction. Otherwise a statement that waits for a lock is still executed after its
    /// process is dead.
    pub async fn disconnect(&self, pid: i32) {
        sqlx::query("SELECT pg_terminate_backend($1, 5000)")
            .bind(pid)
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// Every link, from the database, because the API returns pages.
    async fn all_links(&self) -> Vec<Value> {
        sqlx::query_scalar("SELECT to_jsonb(link) FROM payment_links link ORDER BY created_at")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    /// What differs between the links and Dojo.
    pub async fn out_of_step(&self) -> Vec<String> {
        let links = self.all_links().await;
        let intents = self.sandbox.intents().await;
        let mut wrong: Vec<String> = Vec::new();
        for link in &links {
            let reference = &link["reference"];
            if link["status"] == "Pending" {
                wrong.push(format!("{reference} is still pending"));
            }
            if link["payment_intent_id"].is_null() {
                continue;
            }
            let intent = intents
                .iter()
                .find(|intent| intent["id"] == link["payment_intent_id"])
                .expect("a link's intent exists at Dojo");
            for (held, reported) in [
                ("status", &intent["status"]),
                ("total_amount", &intent["totalAmount"]["value"]),
                ("refunded_amount", &intent["refundedAmount"]),
            ] {
                if &link[held] != reported {
                    let held_value = &link[held];
                    wrong.push(format!("{reference}: {held} {held_value} is {reported}"));
                }
            }
            if link["payment"].is_null() != intent["paymentDetails"].is_null() {
                wrong.push(format!("{reference}: payment details"));
            }
        }
        for intent in &intents {
            let adopted = links
                .iter()
                .any(|link| link["payment_intent_id"] == intent["id"]);
            if !adopted && intent["status"] != "Canceled" {
                wrong.push(format!("{} is alive and belongs to no link", intent["id"]));
            }
        }
        wrong.extend(self.books_off().await);
        wrong
    }

    /// Waits until everything in the feed is booked: events are not removed before.
    pub async fn everything_is_booked(&self) {
        eventually("the books are up to date", async || {
            let booked: bool =
                sqlx::query_scalar("SELECT feed_position = (SELECT head FROM feed) FROM books")
                    .fetch_one(&self.pool)
                    .await
                    .unwrap();
            booked.then_some(())
        })
        .await;
    }

    /// The links whose movements don't add up to what Dojo captured and refunded.
    async fn books_off(&self) -> Vec<String> {
        let off: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
            "WITH link AS (
                 SELECT id, reference, refunded_amount AS refunded,
                        CASE WHEN dojo_status IS NULL OR dojo_status NOT IN ('Captured', 'Refunded') THEN 0
                             WHEN captures = '[]' THEN coalesce(total_amount, amount)
                             ELSE (SELECT sum((part ->> 'amount')::bigint + coalesce((part ->> 'tipsAmount')::bigint, 0))
                                   FROM jsonb_array_elements(captures) part
                                   WHERE part ->> 'status' NOT IN ('Created', 'Declined', 'Failed')) END::bigint AS captured
                 FROM payment_links
             ), booked AS (
                 SELECT payment_link_id, coalesce(sum(net) FILTER (WHERE type NOT LIKE 'refund%'), 0)::bigint AS captured,
                        coalesce(-sum(net) FILTER (WHERE type LIKE 'refund%'), 0)::bigint AS refunded
                 FROM movements GROUP BY payment_link_id
             )
             SELECT link.reference, link.captured, coalesce(booked.captured, 0), link.refunded, coalesce(booked.refunded, 0)
             FROM link LEFT JOIN booked ON booked.payment_link_id = link.id
             WHERE (link.captured, link.refunded) <> (coalesce(booked.captured, 0), coalesce(booked.refunded, 0))",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        off.into_iter()
            .map(|(reference, captured, booked, refunded, booked_refunds)| {
                format!(
                    "{reference}: captured {captured}, booked {booked}; refunded {refunded}, booked {booked_refunds}"
                )
            })
            .collect()
    }

    /// Waits until every link agrees with Dojo, and every live intent belongs to a link.
    pub async fn in_step_with_dojo(&self) {
        let mut last = Vec::new();
        // Far longer than it takes. On a busy machine calls time out, and then the background makes no calls for up to a
        // minute.
        let limit = Duration::from_secs(100);
        let waited = tokio::time::timeout(limit, async {
            loop {
                last = self.out_of_step().await;
                if last.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(waited.await.is_ok(), "not in step with Dojo: {last:#?}");
    }

    /// Checks that each webhook about a link is in the link's timeline once, however often it was delivered.
    pub async fn each_webhook_is_told_once(&self) {
        let wrong: Vec<(String, i64)> = sqlx::query_as(
            "SELECT dedup_key, count(told.id) FROM webhook_events event
             LEFT JOIN payment_link_events told
                 ON told.kind = 'webhook' AND told.cause->>'eventId' = event.dedup_key
                    AND told.payment_link_id = event.payment_link_id
             WHERE event.payment_link_id IS NOT NULL
             GROUP BY event.id HAVING count(told.id) <> 1",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        assert!(wrong.is_empty(), "not in the timeline once: {wrong:?}");
        let (all, distinct): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(DISTINCT cause->>'eventId') FROM payment_link_events
             WHERE kind = 'webhook'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(all, distinct, "no event is in a timeline twice");
    }

    /// The value of the metric with this name and these labels, or 0.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").await.expect(200).text;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0.0)
    }
}

impl TestSandbox {
    /// `DELETE /_sandbox/…`
    pub async fn clear(&self, path: &str) {
        let answer = send(self.http.delete(format!("{}/_sandbox/{path}", self.url))).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text);
    }

    /// The calls of one operation that arrived, oldest first.
    pub async fn requests(&self, operation: &str) -> Vec<Value> {
        let requests = self.look(&format!("requests?operation={operation}")).await;
        requests.as_array().unwrap().clone()
    }

    /// From now on no webhook is sent.
    pub async fn drop_webhooks(&self) {
        self.control("webhook-faults", json!({"kind": "drop", "share": 1.0}))
            .await;
    }

    /// Search returns no intents that are younger than this.
    pub async fn search_lags(&self, seconds: f64) {
        self.control("search-lag", json!({"seconds": seconds}))
            .await;
    }

    /// The response to the next call of this operation has these values instead of its own.
    pub async fn next_fields(&self, operation: &str, fields: Value) {
        self.next(operation, "fields", json!({"fields": fields}))
            .await;
    }

    /// Acts as the customer or as Dojo: `pay`, `decline`, `challenge`, `expire`, `status`, `amount`.
    pub async fn act(&self, id: &Value, what: &str, how: Value) -> Value {
        self.control(&format!("payment-intents/{}/{what}", text(id)), how)
            .await
    }

    /// Refunds a part through Dojo's own API.
    pub async fn refund(&self, id: &Value, amount: i64) {
        let request = self
            .http
            .post(format!("{}/payment-intents/{}/refunds", self.url, text(id)))
            .header("authorization", format!("Basic {DOJO_KEY}"))
            .header("version", "2026-02-27")
            .header("idempotencyKey", uuid::Uuid::now_v7().to_string())
            .json(&json!({"amount": amount}));
        let answer = send(request).await;
        assert!(answer.status.is_success(), "{}", answer.text);
    }

    /// The intent at Dojo.
    pub async fn intent(&self, id: &Value) -> Value {
        let intents = self.intents().await;
        intents
            .into_iter()
            .find(|intent| &intent["id"] == id)
            .expect("the intent exists")
    }

    /// The intents with this reference that are not canceled.
    pub async fn live_intents_about(&self, reference: &str) -> Vec<Value> {
        let mut intents = self.intents().await;
        intents.retain(|intent| intent["reference"] == reference && intent["status"] != "Canceled");
        intents
    }

    /// Waits until an intent exists.
    pub async fn first_intent(&self) -> Value {
        eventually("the intent exists", async || self.intents().await.pop()).await
    }
}

/// When the sandbox received a call.
pub fn received_at(request: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(text(&request["at"]), &Rfc3339).unwrap()
}
