//! Webhooks that are stored in batches: each has its own effect and its own response, whatever happens to its neighbours.

use std::{collections::BTreeSet, time::Duration};

use dojo_sandbox::signature;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    Service, TestApp, WEBHOOK_SECRET, event, eventually, slow_way::SlowWay, ten_pounds, text,
    within,
};

/// Words of the statement that stores webhooks.
const STATEMENT: &str = "INSERT INTO webhook_events AS stored";

/// A statement, and the requests behind it, may wait for long until the test lets them go on.
const PATIENT: [(&str, &str); 3] = [
    ("RUN_JOBS", "false"),
    ("DATABASE_STATEMENT_TIMEOUT", "20s"),
    ("REQUEST_TIMEOUT", "100s"),
];

/// Sends a webhook on a connection of its own, without waiting for the response.
async fn send_only(app: &TestApp, body: &str) -> TcpStream {
    let address = app.service.url.trim_start_matches("http://");
    let signature = signature::sign(WEBHOOK_SECRET, body.as_bytes());
    let length = body.len();
    let request = format!(
        "POST /webhooks/dojo HTTP/1.1\r\nhost: {address}\r\ndojo-signature: {signature}\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

/// A service whose next webhook is held up in the database, and everything that follows waits behind it.
async fn held_up() -> (TestApp, SlowWay, Vec<Value>) {
    let mut app = TestApp::with(&[]).await;
    app.sandbox.drop_webhooks().await;
    let links = join_all((0..4).map(async |_| app.created().await)).await;
    let way = SlowWay::to(&app.database_url, STATEMENT).await;
    app.service = Service::start(&way.url, &app.sandbox.url, &PATIENT).await;
    // With the first one, the writer connects to the database and prepares its statement.
    way.let_go();
    let first = json!({"id": "evt_warm_up", "event": "terminal.updated"}).to_string();
    eventually("the writer works", async || {
        (app.deliver(&first).await.status == 204).then_some(())
    })
    .await;
    way.hold();
    (app, way, links)
}

/// Waits until this many webhooks have reached the service and wait for the writer.
async fn waiting(app: &TestApp, number: usize) {
    eventually("the webhooks wait", async || {
        // Each scrape says how many wait at that moment.
        let waiting = app.metric("webhook_queue_length").await;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let expected = number as f64;
        (waiting >= expected).then_some(())
    })
    .await;
}

async fn stored(app: &TestApp) -> BTreeSet<String> {
    let keys = sqlx::query_scalar("SELECT dedup_key FROM webhook_events")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    keys.into_iter().collect()
}

/// The verdicts about a link's webhooks.
async fn verdicts(app: &TestApp, link: &Value) -> Vec<String> {
    let webhooks = app.told(&link["id"], "webhook").await;
    let verdict = |entry: &Value| text(&entry["detail"]["verdict"]).to_owned();
    webhooks.iter().map(verdict).collect()
}

#[tokio::test]
async fn each_webhook_of_a_batch_has_its_own_effect() {
    let (app, mut way, links) = held_up().await;
    let first = event("evt_first", &links[0], "Captured");
    let nul = json!({"id": "evt_nul", "event": "e", "data": {"paymentIntentId": "a\0b"}});
    let bodies = [
        event("evt_good", &links[1], "Captured"),
        // A copy of the one that is being stored.
        first.clone(),
        event("evt_stale", &links[2], "Created"),
        event("evt_odd", &links[3], "Teleported"),
        event(
            "evt_unknown",
            &json!({"paymentIntentId": "pi_unknown"}),
            "Captured",
        ),
        json!({"id": "evt_other", "event": "terminal.updated"}).to_string(),
        nul.to_string(),
        "not JSON".to_owned(),
    ];
    let after = [
        // These can't be in the same batch as one above.
        event("evt_good", &links[1], "Captured"),
        event("evt_later", &links[1], "Refunded"),
    ];
    let all = [&bodies[..], &after].concat();
    let first = async { app.deliver(&first).await.expect(204) };
    let others = async {
        way.holds().await;
        let others = join_all(
            all.iter()
                .map(async |body| app.deliver(body).await.expect(204)),
        );
        let all_wait = async {
            waiting(&app, all.len()).await;
            assert!(app.metric("webhook_batch_size_count").await < 2.0);
            way.let_go();
        };
        tokio::join!(others, all_wait)
    };
    tokio::join!(first, others);

    let statuses = join_all(links.iter().map(async |link| app.link(&link["id"]).await)).await;
    let statuses: Vec<_> = statuses.iter().map(|link| text(&link["status"])).collect();
    assert_eq!(statuses[0], "Captured");
    assert!(["Captured", "Refunded"].contains(&statuses[1]));
    assert_eq!(statuses[2..], ["Created", "Created"]);
    assert_eq!(verdicts(&app, &links[0]).await, ["applied"]);
    assert_eq!(verdicts(&app, &links[1]).await.len(), 2);
    assert_eq!(verdicts(&app, &links[2]).await, ["unchanged"]);
    assert_eq!(verdicts(&app, &links[3]).await, ["unknownStatus"]);
    let kept = stored(&app).await;
    for id in [
        "evt_first",
        "evt_good",
        "evt_stale",
        "evt_odd",
        "evt_unknown",
        "evt_other",
        "evt_later",
    ] {
        assert!(kept.contains(id), "{id} of {kept:?}");
    }
    assert_eq!(kept.len(), 10, "two are stored by their hash: {kept:?}");
    let copies: i64 = sqlx::query_scalar("SELECT sum(deliveries - 1) FROM webhook_events")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(copies, 2);
    // All that could be stored together was.
    assert!(
        app.metric(r#"webhook_batch_size_bucket{le="4"}"#).await
            < app.metric("webhook_batch_size_count").await
    );
}

#[tokio::test]
async fn a_webhook_about_a_locked_link_holds_up_no_other() {
    let (app, mut way, links) = held_up().await;
    let bodies: Vec<_> = links
        .iter()
        .enumerate()
        .map(|(number, link)| event(&format!("evt_{number}"), link, "Captured"))
        .collect();
    let first = async { app.deliver(&bodies[0]).await.expect(204) };
    let locked = async {
        way.holds().await;
        let lock = app
            .lock(&format!(
                "SELECT FROM payment_links WHERE payment_intent_id = '{}' FOR UPDATE",
                text(&links[1]["paymentIntentId"])
            ))
            .await;
        let locked = app.deliver(&bodies[1]);
        let others = async {
            let others = join_all([app.deliver(&bodies[2]), app.deliver(&bodies[3])]);
            let queued = async {
                waiting(&app, 3).await;
                way.let_go();
            };
            let (others, ()) = tokio::join!(others, queued);
            for answer in others {
                answer.expect(204);
            }
            assert_eq!(text(&app.link(&links[1]["id"]).await["status"]), "Created");
            drop(lock);
        };
        let (answer, ()) = tokio::join!(locked, others);
        answer.expect(204);
    };
    tokio::join!(first, locked);
    app.link_with_status(&links[1]["id"], "Captured").await;
}

#[tokio::test]
async fn webhooks_about_many_locked_links_hold_up_no_other() {
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    app.sandbox.drop_webhooks().await;
    let links = join_all((0..4).map(async |_| app.created().await)).await;
    let lock = app.lock("SELECT FROM payment_links FOR UPDATE").await;
    // Three for each link, as if Dojo sent them again. Postgres lets each wait for three seconds.
    let held_up: Vec<_> = (0..12)
        .map(|number| event(&format!("evt_{number}"), &links[number % 4], "Captured"))
        .collect();
    let held_up = join_all(held_up.iter().map(|body| app.deliver(body)));
    let others = async {
        eventually("they are set aside", async || {
            (app.metric("webhooks_held_up").await >= 12.0).then_some(())
        })
        .await;
        for number in 0..10 {
            let other = json!({"paymentIntentId": format!("pi_other_{number}")});
            let other = event(&format!("evt_other_{number}"), &other, "Captured");
            within(
                Duration::from_secs(2),
                "another webhook",
                app.deliver(&other),
            )
            .await
            .expect(204);
        }
        drop(lock);
    };
    let (answers, ()) = tokio::join!(held_up, others);
    let acknowledged = answers.iter().filter(|answer| answer.status == 204).count();
    assert!(acknowledged > 0, "those that still waited are stored");
    for answer in answers {
        assert!(
            matches!(answer.status.as_u16(), 204 | 503),
            "{}",
            answer.text
        );
    }
    assert_eq!(stored(&app).await.len(), 10 + acknowledged);
    eventually("none is held up any more", async || {
        (app.metric("webhooks_held_up").await < 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_webhook_whose_sender_disconnects_is_stored_and_counted() {
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    let lock = app.lock("SELECT FROM payment_links FOR UPDATE").await;
    let connection = send_only(&app, &event("evt_1", &link, "Captured")).await;
    app.blocked("WITH given AS").await;
    drop(connection);
    let aborted = r#"http_requests_total{method="POST",route="/webhooks/dojo",status="aborted"}"#;
    eventually("the request is counted", async || {
        (app.metric(aborted).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(app.logged("the client disconnected").await.len(), 1);
    drop(lock);
    app.link_with_status(&link["id"], "Captured").await;
    assert!((app.metric(r#"webhooks_total{verdict="applied"}"#).await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn nothing_acknowledged_is_missing_when_connections_break_in_the_middle_of_batches() {
    const SENDERS: usize = 16;
    const EACH: usize = 25;
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let bodies: Vec<Vec<_>> = (0..SENDERS)
        .map(|sender| {
            let ids = (0..EACH).map(|number| format!("evt_{sender}_{number}"));
            ids.map(|id| {
                event(
                    &id,
                    &json!({"paymentIntentId": format!("pi_{id}")}),
                    "Captured",
                )
            })
            .collect()
        })
        .collect();
    // Like Dojo, they send again what was not acknowledged.
    let sending = join_all(bodies.iter().map(async |bodies| {
        let mut rejected = 0;
        for body in bodies {
            eventually("the webhook is acknowledged", async || {
                let answer = app.deliver(body).await;
                rejected += u32::from(answer.status == 503);
                (answer.status == 204).then_some(())
            })
            .await;
        }
        rejected
    }));
    let breaking = async {
        let mut often = tokio::time::interval(Duration::from_millis(20));
        let mut broken = 0;
        while broken < 10 {
            often.tick().await;
            let ended = sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'dojo-payment-links'
                   AND query LIKE '%given AS MATERIALIZED%'",
            )
            .execute(&app.pool)
            .await
            .unwrap();
            broken += ended.rows_affected();
        }
        std::future::pending::<()>().await;
    };
    let rejected: u32 = tokio::select! {
        rejected = sending => rejected.iter().sum(),
        () = breaking => unreachable!("it waits for the senders"),
    };
    assert!(rejected > 0, "some batches failed");
    assert_eq!(stored(&app).await.len(), SENDERS * EACH);
}

#[tokio::test]
async fn a_full_queue_turns_webhooks_away_and_nothing_is_lost_when_the_process_is_killed() {
    /// More than may wait, even if the writer gives up its first statement and postpones a batch.
    const TOO_MANY: usize = 256 + 256 + 30;
    let (mut app, mut way, links) = held_up().await;
    let bodies: Vec<_> = (0..TOO_MANY)
        .map(|number| event(&format!("evt_{number}"), &links[0], "Captured"))
        .collect();
    // They disconnect only when the service is dead.
    let senders = join_all(bodies.iter().map(|body| send_only(&app, body))).await;
    way.holds().await;
    eventually("the queue is full", async || {
        (app.metric("webhook_queue_full_total").await >= 1.0).then_some(())
    })
    .await;
    app.service.kill().await;
    drop(senders);

    // Dojo sends them all again.
    let settings = [("RUN_JOBS", "false")];
    app.service = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    for body in &bodies {
        app.deliver(body).await.expect(204);
    }
    assert_eq!(stored(&app).await.len(), 1 + bodies.len());
    let (entries, applied): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE detail->>'verdict' = 'applied')
         FROM payment_link_events WHERE kind = 'webhook' AND status_after = 'Captured'",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!((entries, applied), (i64::try_from(TOO_MANY).unwrap(), 1));
    app.create(&ten_pounds("Order 2")).await.expect(201);
}
