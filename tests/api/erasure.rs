//! Erasing personal data: that nothing of it is left anywhere, what stays, and that no race brings it back.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use dojo_payment_links::{
    payment_link::PaymentLinkId,
    store::personal_data::{Content, TABLES},
};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::{
    commands::{create_api_key, create_limited_key},
    support::{
        Answer, TestApp, event, eventually, pounds, program,
        receiver::{Receiver, Reply},
        send, ten_pounds, text,
    },
};

/// A word that is in everything personal, and nowhere else.
const MARK: &str = "Xyzzy";
/// The customer, as a caller writes the address.
const EMAIL: &str = "Xyzzy@Example.com";

/// Replicas with jobs whose callbacks reach this machine, and an operator who has marked a metadata key.
const SETTINGS: [(&str, &str); 4] = [
    ("POLL_INTERVAL", "100ms"),
    ("CALLBACK_ALLOW", "127.0.0.1"),
    ("CALLBACK_TIMEOUT", "1s"),
    ("PERSONAL_METADATA", "guest, room"),
];

impl TestApp {
    async fn erase(&self, link: &Value) -> Answer {
        let path = format!("/v1/payment-links/{}/erase", text(&link["id"]));
        send(self.request(Method::POST, &path)).await
    }

    async fn run(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Every column of every table that contains a word in any row, in upper or lower case, in the database's own order.
    async fn columns_with(&self, word: &str) -> BTreeSet<String> {
        let columns: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
             WHERE table_schema = 'public'",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut found = BTreeSet::new();
        for (table, column, kind) in columns {
            let shown = if kind == "bytea" {
                format!("encode(\"{column}\", 'escape')")
            } else {
                format!("\"{column}\"::text")
            };
            let rows: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
                "SELECT count(*) FROM \"{table}\" WHERE {shown} ILIKE '%' || $1 || '%'"
            )))
            .bind(word)
            .fetch_one(&self.pool)
            .await
            .unwrap();
            if rows > 0 {
                found.insert(format!("{table}.{column}"));
            }
        }
        found
    }

    /// A link that was paid, with something personal in everything that a caller can send.
    async fn paid_by_somebody(&self, key: &str) -> Value {
        let link = self.create_with_key(key, &somebodys()).await;
        let link = link.expect(201).json();
        self.sandbox.pay(&link["paymentIntentId"]).await;
        self.read_until_confirmed(&link["id"]).await
    }
}

/// A request for a link with something personal in every member that is for it.
fn somebodys() -> Value {
    let address = json!({
        "address1": MARK, "address2": MARK, "address3": MARK, "address4": MARK, "city": MARK, "state": MARK,
        "postcode": MARK, "countryCode": "GB", "locality": MARK, "county": MARK,
    });
    let mut body = ten_pounds("Order 1");
    body["customer"] = json!({"emailAddress": EMAIL, "phoneNumber": MARK});
    body["billingAddress"] = address.clone();
    body["shippingDetails"] = json!({"name": MARK, "deliveryNotes": MARK, "address": address});
    body["requestSecurity"] = json!({"userAgent": MARK, "ipAddress": MARK, "device": MARK});
    body["metadata"] = json!({"guest": MARK, "room": MARK, "order": "1"});
    body
}

fn uuid_of(link: &Value) -> uuid::Uuid {
    text(&link["id"]).parse::<PaymentLinkId>().unwrap().uuid()
}

/// The command `erase`.
fn erase(app: &TestApp, arguments: &[&str]) -> Output {
    let mut command: Command = program();
    command
        .arg("erase")
        .args(arguments)
        .env("DATABASE_URL", &app.database_url)
        .env("PERSONAL_METADATA", "guest,room");
    command.output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn the_list_of_personal_data_has_every_column_of_every_table() {
    let app = TestApp::start().await;
    let columns: Vec<String> = sqlx::query_scalar(
        "SELECT table_name || '.' || column_name FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let columns: BTreeSet<_> = columns.into_iter().collect();
    let listed: Vec<_> = TABLES
        .iter()
        .flat_map(|(table, columns)| {
            columns
                .iter()
                .map(move |(column, _)| format!("{table}.{column}"))
        })
        .collect();
    let listed_once: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), listed_once.len());
    let missing: Vec<_> = columns.difference(&listed_once).collect();
    assert!(
        missing.is_empty(),
        "say in src/store/personal_data.rs whether these are personal: {missing:?}"
    );
    let gone: Vec<_> = listed_once.difference(&columns).collect();
    assert!(gone.is_empty(), "no such columns: {gone:?}");
}

/// The columns that are personal, except for one that contains nothing that could be read.
fn personal_columns() -> BTreeSet<String> {
    let columns = TABLES.iter().flat_map(|(table, columns)| {
        columns
            .iter()
            .filter(|(_, content)| matches!(content, Content::Personal(_)))
            .map(move |(column, _)| format!("{table}.{column}"))
    });
    columns
        .filter(|column| column != "idempotency_keys.request_hash")
        .collect()
}

/// The entries without Dojo's words about failures.
fn entries_without_words(entries: &[Value]) -> Vec<Value> {
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        if let Some(failure) = entry["detail"].get_mut("failure") {
            failure["detail"] = json!("erased");
        }
        if entry["type"] == "responseLost" {
            entry["detail"]["reason"] = json!("erased");
        }
    }
    entries
}

#[tokio::test]
async fn nothing_personal_is_left_in_the_whole_database() {
    let app = TestApp::with(&SETTINGS).await;
    let mut worker = app
        .another(&[&SETTINGS[..], &[("RUN_JOBS", "true")]].concat())
        .await;
    let receiver = Receiver::start().await;
    receiver.respond(|event| Reply {
        body: event.to_string(),
        ..Reply::status(200)
    });
    app.subscribe(&json!({"url": receiver.url})).await;

    // A paid link, with operations that succeeded and failed.
    let link = app.paid_by_somebody("Xyzzy-link").await;
    let hook = event("evt_noted", &link, "Captured").replace("acc_test", MARK);
    app.deliver(&hook).await.expect(204);
    let refund =
        json!({"amount": pounds(300), "refundReason": "Xyzzy was ill", "notes": "Call Xyzzy"});
    app.operate_with_key("Xyzzy-refund", &link, "refunds", &refund)
        .await
        .expect(200);
    app.operate(&link, "receipt", &json!({"emails": [EMAIL]}))
        .await
        .expect(200);
    for (operation, key, status) in [
        ("receipt", "Xyzzy-receipt", 404),
        ("refund", "Xyzzy-r2", 400),
    ] {
        let fault = json!({"status": status});
        app.sandbox.next(operation, "status", fault).await;
        let (path, body) = match operation {
            "receipt" => ("receipt", json!({"emails": [EMAIL]})),
            _ => ("refunds", refund.clone()),
        };
        let answer = app.operate_with_key(key, &link, path, &body).await;
        answer.problem(409, "rejected-by-dojo");
    }
    // Dojo limits the rate, so the key is free again.
    app.sandbox
        .next("refund", "status", json!({"status": 429}))
        .await;
    app.operate_with_key("Xyzzy-free", &link, "refunds", &refund)
        .await
        .problem(503, "dojo-not-reached");

    // A link that Dojo rejected.
    let fault = json!({"status": 400});
    app.sandbox.next("create", "status", fault).await;
    let failed = app.create_with_key("Xyzzy-failed", &somebodys()).await;
    let failed = failed.problem(422, "rejected-by-dojo");
    let failed = json!({"id": failed["paymentLinkId"]});

    eventually("what happened was sent and answered", async || {
        let open = app
            .number(
                "SELECT (SELECT count(*) FROM feed_outbox) + (SELECT head - position FROM feed, callback_endpoints)
                        + (SELECT feed.head - feed_position FROM feed, books)",
            )
            .await;
        let answered = app
            .number("SELECT count(*) FROM callback_deliveries WHERE response_body IS NOT NULL")
            .await;
        (open == 0 && answered >= 5).then_some(())
    })
    .await;
    worker.kill().await;

    // Something that waits to become an event, when no replica runs jobs.
    app.operate_with_key("Xyzzy-last", &link, "refunds", &refund)
        .await
        .expect(200);
    assert!(app.number("SELECT count(*) FROM feed_outbox").await > 0);

    // What only other versions write, and what nothing here makes Dojo say.
    let ids = [uuid_of(&link), uuid_of(&failed)].map(|id| format!("'{id}'"));
    let ids = ids.join(", ");
    for statement in [
        "UPDATE idempotency_keys SET response_body = 'Xyzzy'",
        "UPDATE operations SET response_body = 'Xyzzy' WHERE status = 'Succeeded'",
        "UPDATE operations SET failure = failure || '{\"detail\": \"no Xyzzy\"}' WHERE failure IS NOT NULL",
        "UPDATE payment_links SET failure = failure || '{\"detail\": \"no Xyzzy\",
             \"errors\": [{\"pointer\": \"/customer\", \"detail\": \"no Xyzzy\"}]}' WHERE failure IS NOT NULL",
        "UPDATE payment_links SET request = request || '{\"send\": {\"email\": \"xyzzy@example.com\"}}'",
        "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
         SELECT id, 'responseLost', 'Pending', 'Pending', '{\"type\": \"recovery\"}', '{\"reason\": \"not Xyzzy\"}'
         FROM payment_links",
        "UPDATE payment_link_events SET detail = detail || '{\"detail\": \"no Xyzzy\"}' WHERE kind = 'failed'",
        "UPDATE payment_link_events SET detail = jsonb_set(detail, '{failure,detail}', '\"no Xyzzy\"')
         WHERE kind = 'operationFailed'",
        &format!(
            "INSERT INTO messages (id, payment_link_id, account, channel, purpose, recipient, note, locale, status, created_by)
             SELECT gen_random_uuid(), id, 'default', 'email', 'request', 'xyzzy@example.com', 'Dear Xyzzy', 'en', 'Sent',
                    'orders'
             FROM payment_links WHERE id IN ({ids})"
        ),
        "INSERT INTO console_approvals
             (id, payment_link_id, account, kind, amount, currency, body, idempotency_key, requested_by, expires_at)
         SELECT gen_random_uuid(), link.id, 'default', 'refund', 300, 'GBP', '{\"refundReason\": \"Xyzzy was ill\"}',
                link.id::text, client.id, now()
         FROM payment_links link, clients client",
    ] {
        app.run(statement).await;
    }
    assert_eq!(
        app.columns_with(MARK).await,
        personal_columns(),
        "the test fills what the list says is personal, and nothing else"
    );
    let before = app.link(&link["id"]).await;
    let entries = app.timeline(&link["id"]).await;

    let after = app.erase(&link).await.expect(200).json();
    app.erase(&failed).await.expect(200);
    assert_eq!(app.columns_with(MARK).await, BTreeSet::new());
    let hashes = "SELECT count(*) FROM idempotency_keys WHERE request_hash <> '' OR key NOT LIKE '\"sha256:%'";
    assert_eq!(app.number(hashes).await, 0);
    assert_eq!(app.number("SELECT count(*) FROM idempotency_keys").await, 6);

    // What the books need stays.
    for member in [
        "amount",
        "totalAmount",
        "capturedAmount",
        "refundedAmount",
        "payment",
        "captures",
        "reference",
        "status",
        "confirmed",
        "createdAt",
    ] {
        assert_eq!(after[member], before[member], "{member}");
    }
    assert_eq!(after["metadata"], json!({"order": "1"}));
    assert_eq!(after["erasedAt"], after["updatedAt"]);
    assert_eq!(after, app.link(&link["id"]).await);
    let timeline = app.timeline(&link["id"]).await;
    assert_eq!(timeline[..entries.len()], entries_without_words(&entries));
    let [erased] = &app.told(&link["id"], "erased").await[..] else {
        panic!("it is told once");
    };
    assert_eq!(erased["cause"]["client"], "bootstrap");
    assert_eq!(erased["detail"], Value::Null);
    let failed = app.link(&failed["id"]).await;
    assert_eq!(failed["failure"]["reason"], "rejected");
    assert_eq!(failed["failure"]["status"], 400);
    assert_eq!(failed["failure"]["detail"], "erased");
    let operations = app.operations(&link).await;
    assert_eq!(operations.len(), 6);
    for operation in operations {
        if operation["type"] == "receipt" {
            assert_eq!(operation["request"], json!({"emails": ["erased"]}));
        } else {
            assert_eq!(operation["request"], json!({"amount": pounds(300)}));
        }
    }

    // The events are still there, and what waited becomes one.
    let _worker = app
        .another(&[&SETTINGS[..], &[("RUN_JOBS", "true")]].concat())
        .await;
    eventually("the last refund is an event", async || {
        let feed = app.get("/v1/events?limit=100").await.expect(200).json();
        let events = feed["data"].as_array().unwrap();
        let made = events
            .iter()
            .filter(|event| event["type"] == "operation.succeeded");
        (made.count() == 3).then_some(())
    })
    .await;
    eventually("everything was sent", async || {
        let open = app
            .number("SELECT head - position FROM feed, callback_endpoints")
            .await;
        (open == 0).then_some(())
    })
    .await;
    assert_eq!(app.columns_with(MARK).await, BTreeSet::new());
}

#[tokio::test]
async fn a_key_of_an_erased_link_gets_410_and_nothing_is_done_again() {
    let app = TestApp::with(&SETTINGS).await;
    let link = app.paid_by_somebody("link-1").await;
    let refund = json!({"amount": pounds(300), "notes": "Xyzzy"});
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    let canceled = app.created().await;
    app.operate(&canceled, "cancel", &Value::Null)
        .await
        .expect(200);
    let path = format!("/v1/payment-links/{}/renew", text(&canceled["id"]));
    let renew = async || {
        let request = app.request(Method::POST, &path);
        send(
            request
                .header("idempotency-key", "renewal-1")
                .json(&json!({})),
        )
        .await
    };
    let renewed = renew().await.expect(201).json();
    app.operate(&renewed, "cancel", &Value::Null)
        .await
        .expect(200);

    app.erase(&link).await.expect(200);
    app.read_until_confirmed(&renewed["id"]).await;
    app.erase(&renewed).await.expect(200);
    for _ in 0..2 {
        app.create_with_key("link-1", &somebodys())
            .await
            .problem(410, "erased");
        // Nor can another request have it.
        app.create_with_key("link-1", &ten_pounds("Order 2"))
            .await
            .problem(410, "erased");
        app.operate_with_key("refund-1", &link, "refunds", &refund)
            .await
            .problem(410, "erased");
        renew().await.problem(410, "erased");
    }
    assert_eq!(app.sandbox.intents().await.len(), 3);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    // Erasing again changes nothing.
    let before = app.link(&link["id"]).await;
    let entries = app.timeline(&link["id"]).await.len();
    assert_eq!(app.erase(&link).await.expect(200).json(), before);
    assert_eq!(app.timeline(&link["id"]).await.len(), entries);
    app.create_with_key("link-1", &somebodys())
        .await
        .problem(410, "erased");
}

#[tokio::test]
async fn an_erased_link_is_not_renewed() {
    let app = TestApp::with(&SETTINGS).await;
    let link = app.create(&somebodys()).await.expect(201).json();
    app.operate(&link, "cancel", &Value::Null).await.expect(200);
    app.read_until_confirmed(&link["id"]).await;
    app.erase(&link).await.expect(200);
    let path = format!("/v1/payment-links/{}/renew", text(&link["id"]));
    let request = app.request(Method::POST, &path);
    let answer = send(request.header("idempotency-key", "r").json(&json!({}))).await;
    let problem = answer.problem(409, "not-renewable");
    assert!(text(&problem["detail"]).contains("personal data was erased"));
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn a_request_that_waits_for_the_erasure_of_its_key_creates_nothing() {
    let app = TestApp::with(&SETTINGS).await;
    let link = app.paid_by_somebody("link-1").await;
    let refund = json!({"amount": pounds(300), "notes": "Xyzzy"});
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    let body = somebodys();
    // The erasure has written the keys, and waits before it commits.
    let gate = app.lock("SELECT FROM feed FOR UPDATE").await;
    let release = async {
        app.blocked("SELECT head FROM feed").await;
        let repeat = async {
            app.blocked("WITH claim AS").await;
            drop(gate);
        };
        tokio::join!(app.create_with_key("link-1", &body), repeat).0
    };
    let (erased, creation) = tokio::join!(app.erase(&link), release);
    erased.expect(200);
    creation.problem(410, "erased");
    assert_eq!(app.sandbox.creations().await.len(), 1);
    assert_eq!(app.number("SELECT count(*) FROM payment_links").await, 1);
    assert_eq!(app.number("SELECT count(*) FROM idempotency_keys").await, 2);
}

#[tokio::test]
async fn however_erasures_and_repeated_requests_meet_each_key_takes_effect_once() {
    let app = TestApp::with(&SETTINGS).await;
    let refund = json!({"amount": pounds(100), "notes": "Xyzzy"});
    for round in 0..8 {
        let (link_key, refund_key) = (format!("link-{round}"), format!("refund-{round}"));
        let link = app.paid_by_somebody(&link_key).await;
        app.operate_with_key(&refund_key, &link, "refunds", &refund)
            .await
            .expect(200);
        let body = somebodys();
        let creations = (0..4).map(|_| app.create_with_key(&link_key, &body));
        let refunds = (0..4).map(|_| app.operate_with_key(&refund_key, &link, "refunds", &refund));
        let (created, refunded, erased) =
            tokio::join!(join_all(creations), join_all(refunds), app.erase(&link));
        for answer in created.into_iter().chain(refunded) {
            let status = answer.status.as_u16();
            assert!([200, 201, 410].contains(&status), "{}", answer.text);
        }
        // The erasure may have met a repetition that read the link from Dojo.
        if erased.status != 200 {
            erased.problem(409, "not-erasable");
            app.read_until_confirmed(&link["id"]).await;
            app.erase(&link).await.expect(200);
        }
        app.create_with_key(&link_key, &body)
            .await
            .problem(410, "erased");
    }
    assert_eq!(app.sandbox.intents().await.len(), 8);
    assert_eq!(app.sandbox.done("refund").await.len(), 8);
    assert_eq!(app.columns_with(MARK).await, BTreeSet::new());
}

#[tokio::test]
async fn a_link_about_which_something_is_open_is_not_erased() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    let operation = |status: &str, due: &str| {
        format!(
            "INSERT INTO operations (id, payment_link_id, account, kind, action, created_by, status, due_at)
             VALUES (gen_random_uuid(), $LINK, 'default', 'cancel', '{{\"type\": \"cancel\"}}', 'orders', '{status}', {due})"
        )
    };
    let link = |set: &str| format!("UPDATE payment_links SET {set} WHERE id = $LINK");
    let cases = [
        ("nothing", "SELECT".to_owned(), None),
        ("it is due", link("due_at = now()"), None),
        (
            "only a webhook said so",
            link("dojo_status = 'Created'"),
            Some("Dojo has not confirmed"),
        ),
        (
            "it is in doubt",
            link("unsettled_status = ''"),
            Some("Dojo has not confirmed"),
        ),
        (
            "it can be paid",
            link("status = 'Created', dojo_status = 'Created'"),
            Some("can still be paid"),
        ),
        (
            "it is authorized",
            link("status = 'Authorized', dojo_status = 'Authorized'"),
            Some("is authorized"),
        ),
        (
            "it is pending",
            link("status = 'Pending', payment_intent_id = NULL"),
            Some("not known yet whether the link was created"),
        ),
        (
            "an intent may turn up",
            link("status = 'Failed', payment_intent_id = NULL, due_at = now() + interval '1 day',
                  failure = '{\"reason\": \"notCreated\", \"detail\": \"\"}'"),
            Some("not known yet whether the link was created"),
        ),
        (
            "an operation is pending",
            operation("Pending", "now()"),
            Some("outcome of an operation"),
        ),
        (
            "an operation is unconfirmed",
            operation("Unconfirmed", "NULL"),
            Some("outcome of an operation"),
        ),
        (
            "a capture may turn up",
            operation("Failed", "now()"),
            Some("outcome of an operation"),
        ),
        ("an operation succeeded", operation("Succeeded", "NULL"), None),
        (
            "a message is being sent",
            "INSERT INTO messages
                 (id, payment_link_id, account, channel, purpose, recipient, locale, status, created_by, due_at,
                  handed_over_at, leased_until)
             VALUES (gen_random_uuid(), $LINK, 'default', 'email', 'request', 'a@b', 'en', 'Pending', 'orders', now(),
                     now(), now() + interval '1 hour')"
                .to_owned(),
            Some("a message is being sent"),
        ),
        (
            "another intent can be paid",
            "INSERT INTO payment_intents (id, account, surplus_of, due_at)
             VALUES ('pi_surplus', 'default', $LINK, now())"
                .to_owned(),
            Some("another payment intent"),
        ),
        (
            "it is being renewed",
            "WITH successor AS (
                 INSERT INTO payment_links (id, account, environment, status, request, reference, currency, amount, created_by)
                 SELECT gen_random_uuid(), account, environment, 'Pending', request, reference, currency, amount, created_by
                 FROM payment_links WHERE id = $LINK RETURNING id
             )
             INSERT INTO renewals (replaced_id, successor_id) SELECT $LINK, id FROM successor"
                .to_owned(),
            Some("being renewed"),
        ),
    ];
    for (what, statement, reason) in cases {
        let link = app.paid().await;
        let id = format!("'{}'::uuid", uuid_of(&link));
        for statement in statement.replace("$LINK", &id).split(';') {
            app.run(statement).await;
        }
        let answer = app.erase(&link).await;
        let Some(reason) = reason else {
            let erased = answer.expect(200).json();
            assert!(erased["erasedAt"].is_string(), "{what}");
            continue;
        };
        let retry = !answer.header("retry-after").is_empty();
        let can_wait = !["it can be paid", "it is authorized"].contains(&what);
        assert_eq!(retry, can_wait, "{what}");
        let problem = answer.problem(409, "not-erasable");
        assert!(
            text(&problem["detail"]).contains(reason),
            "{what}: {problem}"
        );
        let erased =
            format!("SELECT count(*) FROM payment_links WHERE id = {id} AND erased_at IS NOT NULL");
        assert_eq!(app.number(&erased).await, 0, "{what}");
    }
}

#[tokio::test]
async fn a_refund_after_the_erasure_works_and_leaves_nothing_personal() {
    let app = TestApp::quick(&SETTINGS).await;
    let link = app.paid_by_somebody("link-1").await;
    app.erase(&link).await.expect(200);
    let refund = json!({"amount": pounds(300), "refundReason": MARK, "notes": MARK});
    let refunded = app
        .operation_outcome("refund-1", &link, "refunds", &refund)
        .await;
    assert_eq!(refunded.expect(200).json()["refundedAmount"], pounds(300));
    let [call] = &app.sandbox.done("refund").await[..] else {
        panic!("there is one refund");
    };
    assert_eq!(call["body"]["notes"], MARK, "Dojo gets it");
    app.operate(&link, "receipt", &json!({"emails": [EMAIL]}))
        .await
        .expect(200);
    // Somebody refunds in Dojo's portal, and a webhook tells of something.
    app.sandbox.refund(&link["paymentIntentId"], 200).await;
    let hook = event("evt_late", &link, "Captured").replace("acc_test", MARK);
    app.deliver(&hook).await.expect(204);
    eventually("nothing personal is left", async || {
        app.columns_with(MARK).await.is_empty().then_some(())
    })
    .await;
    // The request can still be repeated: its key is from after the erasure.
    let again = app
        .operation_outcome("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let link = app.read_until_confirmed(&link["id"]).await;
    assert_eq!(link["refundedAmount"], pounds(500));
    assert!(link["erasedAt"].is_string());
    app.in_step_with_dojo().await;
    app.erase(&link).await.expect(200);
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .problem(410, "erased");
}

#[tokio::test]
async fn a_webhook_that_arrives_during_or_after_the_erasure_leaves_no_body() {
    let app = TestApp::with(&SETTINGS).await;
    app.sandbox.drop_webhooks().await;
    let link = app.paid_by_somebody("link-1").await;
    let gate = app.lock("SELECT FROM feed FOR UPDATE").await;
    let during = event("evt_during", &link, "Captured").replace("acc_test", MARK);
    let deliver = async {
        app.blocked("SELECT head FROM feed").await;
        let release = async {
            app.blocked("WITH given AS MATERIALIZED").await;
            drop(gate);
        };
        tokio::join!(app.deliver(&during), release).0
    };
    let (erased, delivered) = tokio::join!(app.erase(&link), deliver);
    erased.expect(200);
    // It may be told to come again. Either way, nothing was stored before the link was erased.
    if delivered.status != 204 {
        delivered.problem(503, "database-unavailable");
        app.deliver(&during).await.expect(204);
    }
    let after = event("evt_after", &link, "Captured").replace("acc_test", MARK);
    app.deliver(&after).await.expect(204);
    assert_eq!(app.stored_webhooks().await, 2);
    assert_eq!(app.columns_with(MARK).await, BTreeSet::new());
    // A copy is still recognized.
    app.deliver(&after).await.expect(204);
    assert_eq!(app.told(&link["id"], "webhook").await.len(), 2);
}

#[tokio::test]
async fn only_a_key_with_the_scope_and_the_account_erases() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let path = format!("/v1/payment-links/{}/erase", text(&link["id"]));
    let with = async |key: &str, path: &str| {
        let request = app.anonymous(Method::POST, path).bearer_auth(key);
        send(request).await
    };
    let orders = create_api_key(&app, "orders", "links:read,links:write,payments:manage");
    let problem = with(&orders, &path).await.problem(403, "forbidden");
    assert!(text(&problem["detail"]).contains("data:erase"), "{problem}");
    let elsewhere = create_limited_key(&app, "elsewhere", "data:erase", "leeds");
    with(&elsewhere, &path).await.problem(404, "not-found");
    let privacy = create_limited_key(&app, "privacy", "data:erase", "default");
    let unknown = "/v1/payment-links/plink_01m81mqpmrf8384nj77tj0t0e4/erase";
    with(&privacy, unknown).await.problem(404, "not-found");
    assert_eq!(app.link(&link["id"]).await["erasedAt"], Value::Null);
    let request = app.anonymous(Method::POST, &path).bearer_auth(&privacy);
    send(request.json(&json!({"reason": "asked"})))
        .await
        .problem(422, "invalid-request");
    assert!(with(&privacy, &path).await.expect(200).json()["erasedAt"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_erases_every_link_of_an_email_address_that_it_can() {
    let app = TestApp::with(&SETTINGS).await;
    let paid = app.paid_by_somebody("Xyzzy-1").await;
    let unpaid = app.create(&somebodys()).await.expect(201).json();
    let written = app.paid().await;
    app.run(&format!(
        "INSERT INTO messages (id, payment_link_id, account, channel, purpose, recipient, locale, status, created_by)
         VALUES (gen_random_uuid(), '{}', 'default', 'email', 'request', 'XYZZY@example.com', 'en', 'Sent', 'orders')",
        uuid_of(&written)
    ))
    .await;
    let sent = app.paid().await;
    app.run(&format!(
        "UPDATE payment_links SET request = request || '{{\"send\": {{\"email\": \"xyzzy@EXAMPLE.com\"}}}}' WHERE id = '{}'",
        uuid_of(&sent)
    ))
    .await;
    let other = app.paid().await;
    let line = |link: &Value, what: &str| format!("{}\t{what}\n", text(&link["id"]));
    let lines = |what: &str| {
        line(&paid, what)
            + &line(
                &unpaid,
                "not erased: the link can still be paid: cancel it first",
            )
            + &line(&written, what)
            + &line(&sent, what)
    };

    let dry = erase(&app, &["--email", "xyzzy@example.com", "--dry-run"]);
    assert_eq!(printed(&dry), lines("would be erased"));
    assert_eq!(dry.status.code(), Some(1));
    assert_eq!(app.link(&paid["id"]).await["erasedAt"], Value::Null);

    let first = erase(&app, &["--email", "xyzzy@example.com"]);
    assert_eq!(printed(&first), lines("erased"));
    assert_eq!(first.status.code(), Some(1), "one can still change");
    for output in [&dry, &first] {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.to_lowercase().contains("xyzzy"), "{errors}");
    }
    let cause = app.told(&paid["id"], "erased").await;
    assert_eq!(cause[0]["cause"]["type"], "operator");

    // What is erased isn't found any more.
    app.operate(&unpaid, "cancel", &Value::Null)
        .await
        .expect(200);
    app.read_until_confirmed(&unpaid["id"]).await;
    let second = erase(&app, &["--email", EMAIL]);
    assert_eq!(printed(&second), line(&unpaid, "erased"));
    assert_eq!(second.status.code(), Some(0));
    let third = erase(&app, &["--email", EMAIL]);
    assert_eq!(
        (printed(&third).as_str(), third.status.code()),
        ("", Some(0))
    );
    assert_eq!(app.columns_with(MARK).await, BTreeSet::new());

    let again = erase(&app, &["--link", text(&paid["id"])]);
    assert_eq!(printed(&again), line(&paid, "was erased before"));
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(app.link(&other["id"]).await["erasedAt"], Value::Null);
    let unknown = erase(&app, &["--link", "plink_01m81mqpmrf8384nj77tj0t0e4"]);
    assert_eq!(unknown.status.code(), Some(1));
    // A variable that isn't set must not look like a customer without links.
    let empty = erase(&app, &["--email", " "]);
    assert_eq!(empty.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&empty.stderr);
    assert!(errors.contains("--email must not be empty"), "{errors}");
    for arguments in [
        &[][..],
        &["--link", text(&paid["id"]), "--email", EMAIL],
        &["--link", "Xyzzy"],
    ] {
        assert_eq!(erase(&app, arguments).status.code(), Some(2));
    }
}
