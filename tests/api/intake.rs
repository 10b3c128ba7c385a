//! Webhooks that are stored in batches: each has its own effect and its own response, whatever happens to its neighbours.

use std::{collections::BTreeSet, time::Duration};

use dojo_sandbox::signature;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Answer, Service, TestApp, WEBHOOK_SECRET, eventually, slow_way::SlowWay, ten_pounds, text,
    try_send,
};

/// Words of the statement that stores webhooks.
const STATEMENT: &str = "INSERT INTO webhook_events AS stored";

/// However busy the machine is, a statement and the requests behind it may wait until the test lets them go on.
const PATIENT: [(&str, &str); 3] = [
    ("RUN_JOBS", "false"),
    ("DATABASE_STATEMENT_TIMEOUT", "100s"),
    ("REQUEST_TIMEOUT", "100s"),
];

fn event(id: &str, intent: &Value, status: &str) -> String {
    json!({"id": id, "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": intent, "paymentStatus": status}})
    .to_string()
}

/// Delivers a webhook to a service that may die meanwhile.
async fn try_to_deliver(app: &TestApp, body: &str) -> reqwest::Result<Answer> {
    let request = app.anonymous(Method::POST, "/webhooks/dojo");
    let signature = signature::sign(WEBHOOK_SECRET, body.as_bytes());
    let request = request.header("dojo-signature", signature);
    try_send(request.body(body.to_owned())).await
}

/// A service whose first webhook is held up in the database, and everything that follows waits behind it.
async fn held_up() -> (TestApp, SlowWay, Vec<Value>) {
    let mut app = TestApp::with(&[]).await;
    app.sandbox.drop_webhooks().await;
    let links = join_all((0..4).map(async |_| app.created().await)).await;
    let way = SlowWay::to(&app.database_url, STATEMENT).await;
    app.service = Service::start(&way.url, &app.sandbox.url, &PATIENT).await;
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
    let intent = |number: usize| &links[number]["paymentIntentId"];
    let first = event("evt_first", intent(0), "Captured");
    let nul = json!({"id": "evt_nul", "event": "e", "data": {"paymentIntentId": "a\0b"}});
    let bodies = [
        event("evt_good", intent(1), "Captured"),
        // A copy of the one that is being stored.
        first.clone(),
        event("evt_stale", intent(2), "Created"),
        event("evt_odd", intent(3), "Teleported"),
        event("evt_unknown", &json!("pi_unknown"), "Captured"),
        json!({"id": "evt_other", "event": "terminal.updated"}).to_string(),
        nul.to_string(),
        "not JSON".to_owned(),
    ];
    let after = [
        // These can't be in the same batch as one above.
        event("evt_good", intent(1), "Captured"),
        event("evt_later", intent(1), "Refunded"),
    ];
    let delivering = async {
        let deliver = async |body: &str| app.deliver(body).await.expect(204);
        let all = [&bodies[..], &after].concat();
        tokio::join!(
            app.deliver(&first),
            join_all(all.iter().map(|body| deliver(body)))
        )
    };
    let holding = async {
        way.holds().await;
        waiting(&app, bodies.len() + after.len()).await;
        assert!(app.metric("webhook_batch_size_count").await < 1.0);
        way.let_go();
    };
    let ((answer, _), ()) = tokio::join!(delivering, holding);
    answer.expect(204);

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
    assert_eq!(kept.len(), 9, "two are stored by their hash: {kept:?}");
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
        .map(|(number, link)| {
            event(
                &format!("evt_{number}"),
                &link["paymentIntentId"],
                "Captured",
            )
        })
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
async fn nothing_acknowledged_is_missing_when_connections_break_in_the_middle_of_batches() {
    const SENDERS: usize = 16;
    const EACH: usize = 25;
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let bodies: Vec<Vec<_>> = (0..SENDERS)
        .map(|sender| {
            let ids = (0..EACH).map(|number| format!("evt_{sender}_{number}"));
            ids.map(|id| event(&id, &json!(format!("pi_{id}")), "Captured"))
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
        let mut often = tokio::time::interval(Duration::from_millis(5));
        loop {
            often.tick().await;
            sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'active' AND query LIKE '%given AS MATERIALIZED%'
                   AND pid <> pg_backend_pid()",
            )
            .execute(&app.pool)
            .await
            .unwrap();
        }
    };
    let rejected: u32 = tokio::select! {
        rejected = sending => rejected.iter().sum(),
        () = breaking => unreachable!("it never ends"),
    };
    assert!(rejected > 0, "some batches failed");
    assert_eq!(stored(&app).await.len(), SENDERS * EACH);
}

#[tokio::test]
async fn a_full_queue_turns_webhooks_away_and_dies_without_losing_one() {
    /// As many as may wait, and a batch that is being stored.
    const FULL: usize = 512 + 1;
    const TOO_MANY: usize = 4;
    let (mut app, mut way, links) = held_up().await;
    let intent = &links[0]["paymentIntentId"];
    let bodies: Vec<_> = (0..FULL + TOO_MANY)
        .map(|number| event(&format!("evt_{number}"), intent, "Captured"))
        .collect();
    let filling = join_all(bodies[..FULL].iter().map(|body| try_to_deliver(&app, body)));
    let too_many = async {
        way.holds().await;
        waiting(&app, FULL - 1).await;
        for body in &bodies[FULL..] {
            let answer = app.deliver(body).await;
            assert_ne!(answer.header("retry-after"), "");
            answer.problem(503, "not-stored");
        }
        assert!(app.metric("webhook_queue_full_total").await >= 4.0);
    };
    {
        tokio::pin!(filling);
        tokio::select! {
            answers = &mut filling => panic!("{} were answered", answers.len()),
            () = too_many => {}
        }
    }
    app.service.kill().await;

    // Dojo sends them all again.
    let settings = [("RUN_JOBS", "false")];
    app.service = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    for body in &bodies {
        app.deliver(body).await.expect(204);
    }
    assert_eq!(stored(&app).await.len(), bodies.len());
    let (entries, applied): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE detail->>'verdict' = 'applied')
         FROM payment_link_events WHERE kind = 'webhook' AND status_after = 'Captured'",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!((entries, applied), (517, 1));
    app.create(&ten_pounds("Order 2")).await.expect(201);
}
