//! The feed: what it tells, in which order, and that no reader misses anything.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;

use crate::{
    commands::{create_limited_key, output_of},
    support::{
        API_KEY, Answer, Service, TestApp, client, empty_database, event, eventually, new_database,
        port_of, postgres, pounds, program, proxy::Proxy, receiver::Receiver, send, ten_pounds,
        text, through, within,
    },
};

/// The sequencer is a background job.
const JOBS: &[(&str, &str)] = &[("RUN_JOBS", "true")];

impl TestApp {
    async fn events(&self, query: &str) -> Answer {
        self.get(&format!("/v1/events{query}")).await
    }

    /// Reads the feed until it has an event of this type about the link. Returns all events about the link.
    async fn events_until(&self, link: &Value, kind: &str) -> Vec<Value> {
        let query = format!("?limit=100&paymentLinkId={}", text(&link["id"]));
        eventually(&format!("the feed has {kind}"), async || {
            let events = self.events(&query).await.expect(200).json();
            let events = events["data"].as_array().cloned()?;
            events
                .iter()
                .any(|event| event["type"] == kind)
                .then_some(events)
        })
        .await
    }
}

/// Reads the feed from `after` to its end. Returns the events and the last `after`.
async fn read_on(app: &TestApp, after: Option<String>) -> (Vec<Value>, String) {
    let (mut events, mut after) = (Vec::new(), after);
    loop {
        let query = after
            .as_ref()
            .map(|after| format!("?after={after}"))
            .unwrap_or_default();
        let page = app.events(&query).await.expect(200).json();
        let more = page["data"].as_array().unwrap().clone();
        let next = text(&page["after"]).to_owned();
        let at_end = more.is_empty() && Some(&next) == after.as_ref();
        after = Some(next);
        if at_end {
            return (events, after.unwrap_or_default());
        }
        events.extend(more);
    }
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| text(&event["type"])).collect()
}

#[tokio::test]
async fn a_payment_and_its_refunds_are_told_in_order_with_amounts() {
    let app = TestApp::quick(&[]).await;
    let body = json!({"amount": pounds(1000), "reference": "Order 236", "metadata": {"order": "236"},
                      "customer": {"emailAddress": "ann@example.com"}});
    let link = app.create(&body).await.expect(201).json();
    let created = app.events_until(&link, "payment_link.created").await;
    assert_eq!(types(&created), ["payment_link.created"]);
    assert_eq!(created[0]["statusBefore"], "Pending");
    assert_eq!(created[0]["status"], "Created");
    assert_eq!(created[0]["paymentLinkId"], link["id"]);
    assert_eq!(created[0]["account"], "default");
    assert_eq!(created[0]["reference"], "Order 236");
    assert_eq!(created[0]["metadata"], json!({"order": "236"}));
    assert_eq!(created[0]["amount"], pounds(1000));
    assert_eq!(created[0]["capturedAmount"], pounds(0));

    app.sandbox.pay(&link["paymentIntentId"]).await;
    let paid = app.events_until(&link, "payment_link.captured").await;
    let captured = &paid[1];
    assert_eq!(captured["statusBefore"], "Created");
    assert_eq!(captured["status"], "Captured");
    assert_eq!(captured["captured"], pounds(1000));
    assert_eq!(captured["capturedAmount"], pounds(1000));

    for (key, amount) in [("1", 300), ("2", 700)] {
        let refund = json!({"amount": pounds(amount)});
        app.operation_outcome(key, &link, "refunds", &refund)
            .await
            .expect(200);
    }
    eventually("both refunds are told", async || {
        let all = app.events_until(&link, "payment_link.refunded").await;
        let refunded: Vec<_> = all
            .iter()
            .filter(|event| event["type"] == "payment_link.refunded")
            .map(|event| event["refunded"]["value"].as_i64().unwrap())
            .collect();
        (refunded.iter().sum::<i64>() == 1000).then_some(())
    })
    .await;
    let all = app.events_until(&link, "payment_link.refunded").await;
    let mut refunds = all
        .iter()
        .filter(|event| event["type"] == "payment_link.refunded");
    let first = refunds.next().unwrap();
    assert_eq!(
        (&first["statusBefore"], &first["status"]),
        (&json!("Captured"), &json!("Captured"))
    );
    let succeeded: Vec<_> = all
        .iter()
        .filter(|event| event["type"] == "operation.succeeded")
        .map(|event| {
            (
                &event["operation"]["operation"],
                &event["operation"]["amount"],
            )
        })
        .collect();
    assert_eq!(
        succeeded,
        [
            (&json!("refund"), &pounds(300)),
            (&json!("refund"), &pounds(700))
        ]
    );
    let last = all.last().unwrap();
    assert_eq!(last["status"], "Refunded");
    assert_eq!(last["refundedAmount"], pounds(1000));
    let revisions: Vec<_> = all
        .iter()
        .map(|event| event["revision"].as_i64().unwrap())
        .collect();
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert!(!json!(all).to_string().contains("ann@example.com"));
}

#[tokio::test]
async fn a_webhook_alone_publishes_nothing() {
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let link = app.created().await;
    app.deliver(&event("evt_forged", &link, "Captured"))
        .await
        .expect(204);
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    let published: Vec<String> = sqlx::query_scalar(
        "SELECT kind FROM feed_outbox JOIN payment_link_events event ON event.id = entry_id",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert_eq!(published, ["created"]);
}

#[tokio::test]
async fn what_goes_wrong_is_told() {
    let app = TestApp::with(JOBS).await;
    let link = app.created().await;
    app.sandbox
        .act(&link["paymentIntentId"], "decline", json!({}))
        .await;
    app.request(
        Method::POST,
        &format!("/v1/payment-links/{}/refresh", text(&link["id"])),
    )
    .send()
    .await
    .unwrap();
    let events = app
        .events_until(&link, "payment_link.attempt_declined")
        .await;
    assert_eq!(events[1]["attempt"]["eventType"], "Declined");
    assert_eq!(events[1]["status"], "Created");

    app.operate(&link, "cancel", &Value::Null).await.expect(200);
    let events = app.events_until(&link, "payment_link.canceled").await;
    assert_eq!(events.last().unwrap()["statusBefore"], "Created");

    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    app.create(&ten_pounds("Order 2")).await.expect(422);
    eventually("the failure is told", async || {
        let events = app.events("?types=payment_link.failed").await.json();
        (events["data"][0]["reference"] == "Order 2"
            && events["data"][0]["failure"]["reason"] == "rejected")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_waits_for_the_first_event_and_no_longer() {
    let app = TestApp::with(JOBS).await;
    let (_, after) = read_on(&app, None).await;
    let start = Instant::now();
    let empty = app
        .events(&format!("?after={after}&wait=1"))
        .await
        .expect(200)
        .json();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(empty["data"], json!([]));
    assert_eq!(empty["after"], json!(after));

    let query = format!("?after={after}&wait=25");
    let (page, link) = tokio::join!(
        within(Duration::from_secs(10), "the wait ends", app.events(&query)),
        app.created()
    );
    let page = page.expect(200).json();
    assert_eq!(page["data"][0]["paymentLinkId"], link["id"]);
}

#[tokio::test]
async fn a_request_that_waits_ends_when_the_service_stops() {
    let app = TestApp::with(JOBS).await;
    let (_, after) = read_on(&app, None).await;
    let mut service = Service::start(&app.database_url, &app.sandbox.url, JOBS).await;
    let request = client().get(format!("{}/v1/events?after={after}&wait=25", service.url));
    let waiting = tokio::spawn(send(request.bearer_auth(API_KEY)));
    eventually("the request waits", async || {
        let metrics = reqwest::get(format!("{}/metrics", service.url))
            .await
            .ok()?;
        metrics
            .text()
            .await
            .ok()?
            .contains("feed_waiting_readers 1")
            .then_some(())
    })
    .await;
    service.terminate();
    let answer = within(Duration::from_secs(10), "the request ends", waiting).await;
    assert_eq!(answer.unwrap().expect(200).json()["after"], json!(after));
    service.ended().await;
}

#[tokio::test]
async fn a_change_that_is_committed_late_is_not_missed() {
    let app = TestApp::with(JOBS).await;
    let (early, late) = (app.created().await, app.created().await);
    let (_, after) = read_on_until(&app, 2).await;

    // As a statement of the service would, but it stays open for a while.
    let mut slow = PgConnection::connect(&app.database_url).await.unwrap();
    let mut transaction = slow.begin().await.unwrap();
    record_mismatch(&mut transaction, &early).await;
    let mut quick = PgConnection::connect(&app.database_url).await.unwrap();
    record_mismatch(&mut quick, &late).await;

    let first = eventually("the later change is told first", async || {
        let page = app.events(&format!("?after={after}")).await.json();
        (page["data"].as_array()?.len() == 1).then_some(page)
    })
    .await;
    assert_eq!(first["data"][0]["paymentLinkId"], late["id"]);
    transaction.commit().await.unwrap();
    let after = text(&first["after"]);
    let second = app
        .events(&format!("?after={after}&wait=10"))
        .await
        .expect(200)
        .json();
    assert_eq!(second["data"][0]["paymentLinkId"], early["id"]);
    assert_eq!(second["data"][0]["type"], "payment_link.attention_required");
    assert_eq!(second["data"][0]["reason"], "amountMismatch");
}

/// However long the timelines have become, a batch costs what its own changes cost.
#[tokio::test]
async fn numbering_changes_reads_no_other_entries() {
    const CHANGES: i64 = 5000;
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let link = app.created().await;
    sqlx::query(
        "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause)
         SELECT id, 'amountMismatch', status, status, '{\"type\": \"reconciliation\"}'
         FROM payment_links, generate_series(1, $2) WHERE payment_intent_id = $1",
    )
    .bind(text(&link["paymentIntentId"]))
    .bind(CHANGES)
    .execute(&app.pool)
    .await
    .unwrap();

    let read = async || -> i64 {
        sqlx::query_scalar(
            // Without what is read by link, which other jobs do.
            "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_read, 0)
             FROM pg_stat_user_tables JOIN pg_stat_user_indexes USING (relid)
             WHERE indexrelname = 'payment_link_events_pkey'",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap()
    };
    let before = read().await;
    let mut sequencer = Service::start(&app.database_url, &app.sandbox.url, JOBS).await;
    eventually("every change has its place", async || {
        let head: i64 = sqlx::query_scalar("SELECT head FROM feed")
            .fetch_one(&app.pool)
            .await
            .unwrap();
        (head > CHANGES).then_some(())
    })
    .await;
    // A connection reports what it has read when it ends, at the latest.
    sequencer.kill().await;
    let last = Cell::new(0);
    let after = eventually("all reads are reported", async || {
        let now = read().await;
        let is_complete = now == last.replace(now) && now - before >= CHANGES;
        is_complete.then_some(now)
    })
    .await;
    assert!(
        after - before < CHANGES * 3 / 2,
        "{} entries were read",
        after - before
    );
}

/// Reads the feed from its start once it has this many events.
async fn read_on_until(app: &TestApp, count: usize) -> (Vec<Value>, String) {
    eventually("the feed has the events", async || {
        let (events, after) = read_on(app, None).await;
        (events.len() >= count).then_some((events, after))
    })
    .await
}

async fn record_mismatch(connection: &mut PgConnection, link: &Value) {
    sqlx::query(
        "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause)
         SELECT id, 'amountMismatch', status, status, '{\"type\": \"reconciliation\"}'
         FROM payment_links WHERE payment_intent_id = $1",
    )
    .bind(text(&link["paymentIntentId"]))
    .execute(connection)
    .await
    .unwrap();
}

#[tokio::test]
async fn filters_and_limits_leave_nothing_out() {
    let app = TestApp::with(JOBS).await;
    let links = [
        app.created().await,
        app.created().await,
        app.created().await,
    ];
    app.sandbox.pay(&links[1]["paymentIntentId"]).await;
    app.events_until(&links[1], "payment_link.captured").await;
    let (all, end) = read_on(&app, None).await;
    assert_eq!(all.len(), 4);

    let (mut seen, mut after) = (Vec::new(), String::new());
    for _ in 0..4 {
        let page = app.events(&format!("?limit=1{after}")).await.json();
        seen.push(page["data"][0].clone());
        after = format!("&after={}", text(&page["after"]));
    }
    assert_eq!(seen, all);

    let captured = app.events("?types=payment_link.captured").await.json();
    assert_eq!(captured["data"], json!([all[3]]));
    assert_eq!(
        captured["after"],
        json!(end),
        "the filter's end is the feed's"
    );
    let none = app.events("?account=other").await.expect(200).json();
    assert_eq!((&none["data"], &none["after"]), (&json!([]), &json!(end)));

    let problem = app
        .events("?types=payment_link.paid&wait=26&limit=0&after=x&color=red")
        .await
        .problem(422, "invalid-request");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn a_cursor_of_another_or_a_restored_database_is_rejected() {
    let app = TestApp::with(JOBS).await;
    app.created().await;
    let (_, after) = read_on_until(&app, 1).await;
    let other = TestApp::with(JOBS).await;
    other.created().await;
    read_on_until(&other, 1).await;
    for query in ["", "&wait=5"] {
        let problem = other
            .events(&format!("?after={after}{query}"))
            .await
            .problem(410, "cursor-unknown");
        assert!(text(&problem["detail"]).contains("not a place in this feed"));
    }
    let ahead = format!("ff{after}");
    app.events(&format!("?after={ahead}"))
        .await
        .problem(410, "cursor-unknown");
}

#[tokio::test]
async fn a_cursor_behind_which_events_were_removed_is_rejected() {
    let app = TestApp::with(JOBS).await;
    let start = text(&app.events("?limit=1").await.json()["after"]).to_owned();
    for _ in 0..3 {
        app.created().await;
    }
    let (events, end) = read_on_until(&app, 3).await;
    let first = text(&app.events("?limit=1").await.json()["after"]).to_owned();
    let second = app.events(&format!("?limit=1&after={first}")).await.json();
    let second = text(&second["after"]).to_owned();

    app.everything_is_booked().await;
    age(&app, 2).await;
    prune(&app);
    app.events(&format!("?after={start}"))
        .await
        .problem(410, "events-removed");
    app.events(&format!("?after={first}"))
        .await
        .problem(410, "events-removed");
    let rest = app.events(&format!("?after={second}")).await.expect(200);
    assert_eq!(rest.json()["data"], json!([events[2]]));
    let from_start = app.events("").await.expect(200).json();
    assert_eq!(from_start["data"], json!([events[2]]));

    age(&app, 3).await;
    prune(&app);
    let rest = app.events(&format!("?after={end}")).await.expect(200);
    assert_eq!(rest.json()["data"], json!([]));
    let link = app.created().await;
    let next = app.events(&format!("?after={end}&wait=10")).await;
    assert_eq!(
        next.expect(200).json()["data"][0]["paymentLinkId"],
        link["id"]
    );
}

/// Makes the events up to this position 500 days older.
async fn age(app: &TestApp, position: i32) {
    sqlx::query(
        "UPDATE feed_events SET occurred_at = occurred_at - interval '500 days' WHERE position <= $1",
    )
    .bind(position)
    .execute(&app.pool)
    .await
    .unwrap();
}

fn prune(app: &TestApp) {
    let mut command = program();
    command
        .args(["prune", "--older-than", "400d"])
        .env("DATABASE_URL", &app.database_url);
    output_of(&mut command);
}

#[tokio::test]
async fn a_key_with_limited_accounts_sees_only_their_events() {
    let app = TestApp::with(JOBS).await;
    app.created().await;
    read_on_until(&app, 1).await;
    let key = create_limited_key(&app, "shop", "events:read", "other");
    let request = |path: &str| app.anonymous(Method::GET, path).bearer_auth(&key);
    let page = send(request("/v1/events")).await.expect(200).json();
    assert_eq!(page["data"], json!([]));
    send(request("/v1/payment-links"))
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn the_trigger_selects_the_kinds_that_can_become_events() {
    use dojo_payment_links::payment_link::timeline::Kind;

    let database = new_database().await;
    let mut connection = PgConnection::connect(&database).await.unwrap();
    let definition: String = sqlx::query_scalar(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'feed_change'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    for kind in Kind::ALL {
        let is_selected = definition.contains(&format!("'{}'::text", kind.as_str()));
        assert_eq!(is_selected, kind.is_published(), "{kind:?}: {definition}");
    }
}

/// A thousand requests wait on a replica that has two connections for all requests, and get one event.
#[tokio::test]
async fn waiting_requests_hold_no_connection() {
    const READERS: usize = 1000;
    let settings = [("DATABASE_MAX_CONNECTIONS", "2"), ("RUN_JOBS", "true")];
    let app = TestApp::with(&settings).await;
    let (_, after) = read_on(&app, None).await;
    let path = format!("/v1/events?after={after}&wait=25");
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let request = app.request(Method::GET, &path);
            tokio::spawn(async move {
                // On a busy machine, the first one has waited for its whole time before the last one begins.
                loop {
                    let answer = send(request.try_clone().unwrap()).await;
                    if answer.status == 503 {
                        // Two connections for a thousand first reads may take too long.
                        continue;
                    }
                    let page = answer.expect(200).json();
                    if page["data"] != json!([]) {
                        return page;
                    }
                }
            })
        })
        .collect();
    eventually("all of them wait", async || {
        (app.metric("feed_waiting_readers").await >= 1000.0).then_some(())
    })
    .await;
    let sessions: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dojo-payment-links'
           AND datname = current_database()",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    // The two, and one each for readiness, webhooks and announcements.
    assert!(sessions <= 5, "{sessions}");
    let link = app.created().await;
    for reader in readers {
        let page = reader.await.unwrap();
        assert_eq!(page["data"][0]["paymentLinkId"], link["id"]);
    }
}

#[tokio::test]
async fn too_many_waiting_requests_get_503() {
    let app = TestApp::with(&[("MAX_READERS", "1"), ("RUN_JOBS", "true")]).await;
    let (_, after) = read_on(&app, None).await;
    let path = format!("?after={after}&wait=25");
    let first = tokio::spawn(send(app.request(Method::GET, &format!("/v1/events{path}"))));
    eventually("it waits", async || {
        (app.metric("feed_waiting_readers").await >= 1.0).then_some(())
    })
    .await;
    let second = app.events(&format!("?after={after}&wait=1")).await;
    let problem = second.problem(503, "overloaded");
    assert!(text(&problem["detail"]).contains("waiting for events"));
    app.created().await;
    first.await.unwrap().expect(200);
}

/// A pooler or a dead connection may swallow announcements.
#[tokio::test]
async fn events_that_are_not_announced_are_found() {
    let database = new_database().await;
    let proxy = Proxy::to(port_of(&database)).await;
    let app = TestApp::on(through(proxy.port, &database), &[]).await;
    let sequencer = Service::start(&database, &app.sandbox.url, JOBS).await;
    let app = app.with_database(&database);
    let (_, after) = read_on(&app, None).await;
    eventually("the service listens", async || {
        let listening: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND query = 'LISTEN \"feed\"'",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        (listening == 2).then_some(())
    })
    .await;
    proxy.silence();
    // Only the connection that listens stays silent: all others are tested before they are used.
    let link = eventually("the service works again", async || {
        let answer = app.create(&ten_pounds("Order 1")).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    let page = app.events(&format!("?after={after}&wait=25")).await;
    assert_eq!(
        page.expect(200).json()["data"][0]["paymentLinkId"],
        link["id"]
    );
    drop(sequencer);
}

#[tokio::test]
async fn a_restored_dump_continues_the_feed() {
    let app = TestApp::with(JOBS).await;
    app.created().await;
    let (events, after) = read_on_until(&app, 1).await;

    let copy = empty_database().await;
    dump_and_restore(&app.database_url, &copy);
    let restored = TestApp::on(copy, JOBS).await;
    let all = restored.events("").await.expect(200).json();
    assert_eq!(all["data"], json!(events));
    let link = restored.created().await;
    let next = restored.events(&format!("?after={after}&wait=25")).await;
    let next = next.expect(200).json();
    assert_eq!(next["data"][0]["paymentLinkId"], link["id"]);
    // The original never had that event.
    app.events(&format!("?after={}", text(&next["after"])))
        .await
        .problem(410, "cursor-unknown");
}

fn dump_and_restore(from: &str, to: &str) {
    let bin = postgres::bin_dir().unwrap();
    let dump = Command::new(bin.join("pg_dump"))
        .args(["--format=custom", "--dbname", from])
        .output()
        .unwrap();
    assert!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    let mut restore = Command::new(bin.join("pg_restore"))
        .args(["--no-owner", "--exit-on-error", "--dbname", to])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = restore.stdin.take().unwrap();
    input.write_all(&dump.stdout).unwrap();
    drop(input);
    assert!(restore.wait().unwrap().success());
}

#[tokio::test]
async fn events_are_printed_and_forwarded_with_a_signature() {
    let app = TestApp::with(JOBS).await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.events_until(&link, "payment_link.captured").await;
    let (events, _) = read_on(&app, None).await;

    let receiver = Receiver::start().await;
    let url = receiver.url.replace("127.0.0.1", "localhost");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let output = tail(&app)
        .args(["--from-start", "--forward-to", &url, "--secret", secret])
        .output()
        .await
        .unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(printed, events);
    let outcomes = String::from_utf8(output.stderr).unwrap();
    assert!(
        outcomes.contains("delivered (204): payment_link.captured evt_"),
        "{outcomes}"
    );
    let webhook = standardwebhooks::Webhook::new(secret).unwrap();
    let callbacks = receiver.until(events.len()).await;
    for (event, callback) in events.iter().zip(&callbacks) {
        webhook.verify(&callback.body, &callback.headers).unwrap();
        assert_eq!(callback.id(), text(&event["id"]));
        assert_eq!(callback.event(), *event);
    }

    let after = outcomes.rsplit("--after ").next().unwrap().trim();
    let output = tail(&app).args(["--after", after]).output().await.unwrap();
    assert!(output.status.success() && output.stdout.is_empty());

    let odd = ["--forward-to", "localhost:3000"];
    let output = tail(&app).args(odd).output().await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("--forward-to must be an http or https URL, not \"localhost:3000\""),
        "{error}"
    );
}

/// The command, which ends at the end of the feed.
fn tail(app: &TestApp) -> tokio::process::Command {
    let mut command = tokio::process::Command::from(program());
    command
        .args(["events", "tail", "--no-wait"])
        .env("DATABASE_URL", &app.database_url);
    command
}

/// Many writers change links while replicas die at any moment. Every reader sees every change once, in the same order, and
/// each link's changes in the order in which they happened.
#[tokio::test]
async fn no_reader_misses_anything_whoever_dies() {
    const WRITERS: usize = 8;
    const CHANGES: i64 = 250;
    let app = TestApp::with(JOBS).await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(Service::start(&app.database_url, &app.sandbox.url, JOBS).await);
    }
    let mut links = Vec::new();
    for _ in 0..WRITERS * 4 {
        links.push(app.created().await);
    }
    let writers = links.chunks(4).map(|mine| {
        let (url, mine) = (app.database_url.clone(), mine.to_vec());
        tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            for change in 0..CHANGES {
                let index = usize::try_from(change).unwrap() % mine.len();
                change_amount(&mut connection, &mine[index], change).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let expected = links.len() + WRITERS * usize::try_from(CHANGES).unwrap();
    let reader = |service: &Service| {
        let url = format!("{}/v1/events?limit=100&wait=5", service.url);
        async move {
            let (mut events, mut after) = (Vec::new(), String::new());
            while events.len() < expected {
                let request = client().get(format!("{url}{after}")).bearer_auth(API_KEY);
                let page = send(request).await.expect(200).json();
                events.extend(page["data"].as_array().unwrap().clone());
                after = format!("&after={}", text(&page["after"]));
            }
            events
        }
    };
    // The first replica answers the readers. The others die and come back meanwhile.
    let (steady, mortal) = replicas.split_first_mut().unwrap();
    let killer = async {
        for _ in 0..4 {
            for replica in &mut *mortal {
                replica.kill().await;
                *replica = Service::start(&app.database_url, &app.sandbox.url, JOBS).await;
            }
        }
    };
    let limit = Duration::from_mins(1);
    let readers = within(limit, "all events are read", async {
        tokio::join!(reader(steady), reader(steady), killer)
    });
    let (first, second, ()) = readers.await;
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(first, second);
    let ids: std::collections::BTreeSet<_> = first.iter().map(|event| text(&event["id"])).collect();
    assert_eq!(ids.len(), expected);
    let mut last = BTreeMap::new();
    for event in &first {
        let link = text(&event["paymentLinkId"]);
        let change = event["detail"]["change"].as_i64().unwrap_or(-1);
        let before = last.insert(link, change);
        assert!(before < Some(change), "{link}: {before:?}, {change}");
    }
}

/// Records a change with a number. Some transactions stay open for a moment.
pub async fn change_amount(connection: &mut PgConnection, link: &Value, change: i64) {
    let mut transaction = connection.begin().await.unwrap();
    let pause = if change % 7 == 0 { "0.01" } else { "0" };
    sqlx::query(AssertSqlSafe(format!(
        "WITH link AS (
             UPDATE payment_links SET revision = revision + 1 WHERE payment_intent_id = $1 RETURNING id, status
         ), entry AS (
             INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
             SELECT id, 'amountMismatch', status, status, '{{\"type\": \"reconciliation\"}}',
                    jsonb_build_object('change', $2::bigint)
             FROM link
         )
         SELECT pg_sleep({pause})"
    )))
    .bind(text(&link["paymentIntentId"]))
    .bind(change)
    .execute(&mut *transaction)
    .await
    .unwrap();
    transaction.commit().await.unwrap();
}
