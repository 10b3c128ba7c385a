//! Callbacks: what endpoints get, in which order, and that nothing is lost however they respond and whoever dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

use crate::{
    commands::{create_limited_key, error_of, output_of},
    support::{
        Answer, Service, TestApp, eventually, eventually_within, pounds, program,
        receiver::{Received, Receiver, Reply, Seen},
        send, ten_pounds, text, within,
    },
};

/// Receivers are on this machine, and a dead replica's endpoints are taken over after 7 seconds.
const LOCAL: &[(&str, &str)] = &[
    ("RUN_JOBS", "true"),
    ("POLL_INTERVAL", "200ms"),
    ("CALLBACK_ALLOW", "127.0.0.1"),
    ("CALLBACK_TIMEOUT", "1s"),
];

const ENDPOINTS: &str = "/v1/callback-endpoints";

impl TestApp {
    async fn calling() -> Self {
        Self::with(LOCAL).await
    }

    /// Creates an endpoint. Returns it with its secret.
    pub async fn subscribe(&self, body: &Value) -> Value {
        self.post(ENDPOINTS, body).await.expect(201).json()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// Does something to an endpoint that needs no body.
    async fn call(&self, endpoint: &Value, action: &str) -> Answer {
        let path = format!("{}/{action}", path_of(endpoint));
        send(self.request(Method::POST, &path)).await
    }

    async fn deliveries(&self, endpoint: &Value, query: &str) -> Vec<Value> {
        let page = self
            .get(&format!("{}/deliveries{query}", path_of(endpoint)))
            .await;
        page.expect(200).json()["data"].as_array().unwrap().clone()
    }

    /// Waits until an endpoint has deliveries with these statuses, newest event first.
    async fn deliveries_are(&self, endpoint: &Value, expected: &[&str]) -> Vec<Value> {
        eventually(&format!("the deliveries are {expected:?}"), async || {
            let deliveries = self.deliveries(endpoint, "").await;
            let statuses = deliveries.iter().map(|delivery| text(&delivery["status"]));
            statuses.eq(expected.iter().copied()).then_some(deliveries)
        })
        .await
    }

    /// Makes what waits for another attempt due.
    async fn hurry(&self) {
        self.execute("UPDATE callback_deliveries SET due_at = now() WHERE status = 'Pending'")
            .await;
    }

    async fn execute(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// Waits until an endpoint has this status. Returns it.
    async fn endpoint_is(&self, endpoint: &Value, status: &str) -> Value {
        eventually(&format!("the endpoint is {status}"), async || {
            let endpoint = self.get(&path_of(endpoint)).await.expect(200).json();
            (endpoint["status"] == status).then_some(endpoint)
        })
        .await
    }

    /// The events that happened so far.
    async fn feed(&self) -> Vec<Value> {
        let page = self.get("/v1/events?limit=100").await.expect(200).json();
        page["data"].as_array().unwrap().clone()
    }

    async fn refund(&self, key: &str, link: &Value, amount: i64) {
        self.operation_outcome(key, link, "refunds", &json!({"amount": pounds(amount)}))
            .await
            .expect(200);
    }
}

fn path_of(endpoint: &Value) -> String {
    format!("{ENDPOINTS}/{}", text(&endpoint["id"]))
}

fn ids(arrived: &[Received]) -> Vec<String> {
    arrived.iter().map(|one| one.id().to_owned()).collect()
}

#[tokio::test]
async fn an_endpoint_gets_every_event_signed_and_in_order() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let secret = text(&endpoint["secret"]);
    assert!(secret.starts_with("whsec_"));

    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    receiver.until(2).await;
    app.refund("1", &link, 300).await;
    let expected = [
        "payment_link.created",
        "payment_link.captured",
        "operation.succeeded",
        "payment_link.refunded",
    ];
    let arrived = receiver.until(expected.len()).await;
    let mut types = receiver.types();
    types.sort();
    let mut sorted = expected.map(str::to_owned);
    sorted.sort();
    assert_eq!(types, sorted);

    let feed = app.feed().await;
    let events: Vec<_> = arrived.iter().map(Received::event).collect();
    assert_eq!(
        events, feed,
        "what is sent is what the feed contains, in its order"
    );
    let webhook = standardwebhooks::Webhook::new(secret).unwrap();
    for one in &arrived {
        webhook.verify(&one.body, &one.headers).unwrap();
        assert_eq!(one.id(), text(&one.event()["id"]));
        assert_eq!(one.headers["content-type"], "application/json");
    }
    let deliveries = app.deliveries_are(&endpoint, &["Delivered"; 4]).await;
    assert_eq!(deliveries[3]["eventId"], feed[0]["id"]);
    assert_eq!(deliveries[3]["attempts"], 1);
    assert_eq!(deliveries[3]["lastAttempt"]["responseStatus"], 204);
    assert_eq!(app.deliveries(&endpoint, "?limit=2").await.len(), 2);
    let endpoint = app.get(&path_of(&endpoint)).await.expect(200).json();
    assert_ne!(endpoint["lastSuccessAt"], Value::Null);
    assert_eq!(endpoint.get("secret"), None);
    let attempts = app
        .metric(&format!(
            "callback_attempts_total{{endpoint={},outcome=\"delivered\"}}",
            endpoint["id"]
        ))
        .await;
    assert!((attempts - 4.0).abs() < 0.1, "{attempts}");
}

#[tokio::test]
async fn an_endpoint_chooses_types_and_can_have_a_header() {
    let app = TestApp::calling().await;
    let (chosen, all) = (Receiver::start().await, Receiver::start().await);
    let body = json!({
        "url": chosen.url, "types": ["payment_link.captured"], "description": "Orders",
        "header": {"name": "X-Gateway-Key", "value": "9f8e 7d"},
    });
    let endpoint = app.subscribe(&body).await;
    assert_eq!(endpoint["headerName"], "X-Gateway-Key");
    assert!(!endpoint.to_string().contains("9f8e"));
    app.subscribe(&json!({"url": all.url, "accounts": ["default"]}))
        .await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    all.until(2).await;
    let arrived = chosen.until(1).await;
    assert_eq!(chosen.types(), ["payment_link.captured"]);
    assert_eq!(arrived[0].headers["x-gateway-key"], "9f8e 7d");
    assert_eq!(all.received()[0].headers.get("x-gateway-key"), None);

    let patch = json!({"types": null, "header": null, "description": "All"});
    let changed = send(app.request(Method::PATCH, &path_of(&endpoint)).json(&patch)).await;
    let changed = changed.expect(200).json();
    assert_eq!(changed["types"], Value::Null);
    assert_eq!(changed["headerName"], Value::Null);
    assert_eq!(changed["description"], "All");
    assert_eq!(changed["url"], chosen.url);
    app.refund("1", &link, 300).await;
    let arrived = chosen.until(3).await;
    assert_eq!(arrived[1].headers.get("x-gateway-key"), None);
}

#[tokio::test]
async fn a_failed_delivery_holds_up_its_link_only() {
    let app = TestApp::calling().await;
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    app.subscribe(&json!({"url": other.url})).await;
    let bad = app.created().await;
    receiver.until(1).await;
    let bad_id = text(&bad["id"]).to_owned();
    receiver.respond(move |event| {
        let is_bad = event["paymentLinkId"] == bad_id;
        let mut reply = Reply::status(if is_bad { 500 } else { 204 });
        reply.body = "x".repeat(5000);
        reply
    });
    app.sandbox.pay(&bad["paymentIntentId"]).await;
    receiver.until(2).await;
    app.refund("1", &bad, 300).await;
    let good = app.create(&ten_pounds("Order 2")).await.expect(201).json();
    app.sandbox.pay(&good["paymentIntentId"]).await;
    let deliveries = app
        .deliveries_are(
            &endpoint,
            &[
                "Delivered",
                "Delivered",
                "Pending",
                "Pending",
                "Pending",
                "Delivered",
            ],
        )
        .await;
    assert_eq!(deliveries[4]["attempts"], 1);
    assert_eq!(deliveries[4]["lastAttempt"]["outcome"], "rejected");
    assert_eq!(deliveries[4]["lastAttempt"]["responseStatus"], 500);
    let kept = text(&deliveries[4]["lastAttempt"]["responseBody"]);
    assert_eq!(kept, "x".repeat(1024), "the beginning of the body");
    assert_eq!(
        deliveries[3]["attempts"], 0,
        "it waits for the one before it"
    );
    assert_eq!(deliveries[3]["lastAttempt"], Value::Null);
    other.until(6).await;
    let at = app.get(&path_of(&endpoint)).await.expect(200).json();
    assert_eq!(at["failingSince"], Value::Null, "other callbacks succeed");

    receiver.respond(|_| Reply::status(204));
    app.hurry().await;
    app.deliveries_are(&endpoint, &["Delivered"; 6]).await;
    let mut order: Vec<_> = receiver.received().iter().map(Received::event).collect();
    order.retain(|event| event["paymentLinkId"] == bad["id"]);
    // Created, the capture that was rejected, and then everything in the order of the feed.
    let feed = app.feed().await;
    let expected: Vec<_> = feed
        .iter()
        .filter(|event| event["paymentLinkId"] == bad["id"])
        .collect();
    assert_eq!(order[0], *expected[0]);
    assert_eq!(order[1], *expected[1]);
    assert_eq!(order[2..].iter().collect::<Vec<_>>(), expected[1..]);
}

#[tokio::test]
async fn the_deliveries_about_one_link_are_listed() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let link = app.created().await;
    let other = app.create(&ten_pounds("Order 2")).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.deliveries_are(&endpoint, &["Delivered"; 3]).await;

    let about = |link: &Value, more: &str| {
        let id = text(&link["id"]).to_owned();
        let query = format!("?paymentLinkId={id}{more}");
        let (app, endpoint) = (&app, &endpoint);
        async move {
            let found = app.deliveries(endpoint, &query).await;
            assert!(found.iter().all(|delivery| delivery["paymentLinkId"] == id));
            let types = found
                .iter()
                .map(|delivery| text(&delivery["type"]).to_owned());
            types.collect::<Vec<_>>()
        }
    };
    let all = ["payment_link.captured", "payment_link.created"];
    assert_eq!(about(&link, "").await, all);
    assert_eq!(about(&other, "").await, all[1..]);
    // Together with the other parameters.
    assert_eq!(about(&link, "&status=Delivered").await, all);
    assert_eq!(about(&link, "&status=Failed&status=Pending").await, [""; 0]);
    let page = |after: &str| {
        let id = text(&link["id"]);
        let query = format!("paymentLinkId={id}&limit=1{after}");
        let path = format!("{}/deliveries?{query}", path_of(&endpoint));
        let app = &app;
        async move { app.get(&path).await.expect(200).json() }
    };
    let first = page("").await;
    assert_eq!(first["hasMore"], true);
    assert_eq!(first["data"][0]["type"], all[0]);
    let second = page(&format!("&after={}", text(&first["after"]))).await;
    assert_eq!(second["hasMore"], false);
    assert_eq!(second["data"][0]["type"], all[1]);

    let path = format!("{}/deliveries?paymentLinkId=plink_1", path_of(&endpoint));
    let problem = app.get(&path).await.problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "paymentLinkId");
}

#[tokio::test]
async fn after_its_last_attempt_a_delivery_fails_and_can_be_replayed() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    receiver.respond(|event| {
        Reply::status(if event["type"] == "payment_link.created" {
            500
        } else {
            204
        })
    });
    let link = app.created().await;
    for attempt in 1..=10 {
        receiver.until(attempt).await;
        let pause = eventually("the attempt is recorded", async || {
            let delivery = app.deliveries(&endpoint, "").await.pop()?;
            (delivery["attempts"] == attempt).then_some(delivery)
        })
        .await;
        let is_last = attempt == 10;
        assert_eq!(pause["status"], if is_last { "Failed" } else { "Pending" });
        app.hurry().await;
    }
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.deliveries_are(&endpoint, &["Delivered", "Failed"])
        .await;
    let failed = app.deliveries(&endpoint, "?status=Failed").await;
    assert_eq!(failed.len(), 1);
    let metric = format!("callback_failed{{endpoint={}}}", endpoint["id"]);
    eventually("the metric counts it", async || {
        (app.metric(&metric).await > 0.5).then_some(())
    })
    .await;

    receiver.respond(|_| Reply::status(204));
    let path = format!("{}/replay", path_of(&endpoint));
    app.post(&path, &json!({"eventId": failed[0]["eventId"]}))
        .await
        .expect(202);
    app.deliveries_are(&endpoint, &["Delivered", "Delivered"])
        .await;
    let arrived = receiver.until(12).await;
    assert_eq!(
        arrived[11].id(),
        arrived[0].id(),
        "every attempt has the same id"
    );
    // An event that the endpoint has got can be sent again, too.
    app.post(&path, &json!({"eventId": arrived[10].id()}))
        .await
        .expect(202);
    assert_eq!(receiver.until(13).await[12].id(), arrived[10].id());
    let unknown = json!({"eventId": "evt_01kaz8v4wce7q8m6s5gq9nq2fd"});
    app.post(&path, &unknown)
        .await
        .problem(422, "invalid-request");
}

#[tokio::test]
async fn retry_after_is_honored_and_redirects_are_not_followed() {
    let app = TestApp::calling().await;
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let url = elsewhere.url.clone();
    receiver.respond(move |event| match text(&event["type"]) {
        "payment_link.created" => Reply::status(503).header("retry-after", "3600"),
        _ => Reply::status(307).header("location", url.clone()),
    });
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let link = app.created().await;
    receiver.until(1).await;
    app.deliveries_are(&endpoint, &["Pending"]).await;
    let due_in = async || -> f64 {
        sqlx::query_scalar(
            "SELECT extract(epoch FROM max(due_at) - now())::float8 FROM callback_deliveries",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap()
    };
    assert!((3590.0..=3600.0).contains(&due_in().await));
    receiver.respond(|_| Reply::status(204));
    app.hurry().await;
    app.deliveries_are(&endpoint, &["Delivered"]).await;

    let url = elsewhere.url.clone();
    receiver.respond(move |_| Reply::status(307).header("location", url.clone()));
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let deliveries = app
        .deliveries_are(&endpoint, &["Pending", "Delivered"])
        .await;
    assert_eq!(deliveries[0]["lastAttempt"]["outcome"], "redirected");
    assert!(
        (0.0..=6.0).contains(&due_in().await),
        "the first retry comes after 5 to 6 s"
    );
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn a_410_pauses_an_endpoint_and_nothing_is_lost() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    receiver.respond(|_| Reply::status(410));
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let link = app.created().await;
    let paused = app.endpoint_is(&endpoint, "Paused").await;
    assert_eq!(paused["pauseReason"], "Gone");
    let metric = format!("callback_paused{{endpoint={}}}", endpoint["id"]);
    eventually("the metric shows it", async || {
        (app.metric(&metric).await > 0.5).then_some(())
    })
    .await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    eventually("the payment is in the feed", async || {
        (app.feed().await.len() == 2).then_some(())
    })
    .await;
    app.hurry().await;

    receiver.respond(|_| Reply::status(204));
    let resumed = app.call(&endpoint, "resume").await.expect(200).json();
    assert_eq!(resumed["status"], "Active");
    assert_eq!(resumed["pauseReason"], Value::Null);
    app.deliveries_are(&endpoint, &["Delivered", "Delivered"])
        .await;
    assert_eq!(
        receiver.types(),
        [
            "payment_link.created",
            "payment_link.created",
            "payment_link.captured"
        ]
    );
}

#[tokio::test]
async fn an_endpoint_can_be_paused_and_is_paused_after_five_days_without_a_success() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let paused = app.call(&endpoint, "pause").await.expect(200).json();
    assert_eq!(paused["pauseReason"], "Requested");
    for order in 0..20 {
        app.create(&ten_pounds(&format!("Order {order}")))
            .await
            .expect(201);
    }
    eventually("the links are in the feed", async || {
        (app.feed().await.len() == 20).then_some(())
    })
    .await;
    assert!(receiver.received().is_empty());
    receiver.respond(|_| Reply::status(500));
    app.call(&endpoint, "resume").await.expect(200);
    receiver.until(20).await;
    app.deliveries_are(&endpoint, &["Pending"; 20]).await;
    let at = app.get(&path_of(&endpoint)).await.expect(200).json();
    assert_ne!(at["failingSince"], Value::Null);
    assert_eq!(at["status"], "Active");

    app.execute("UPDATE callback_endpoints SET failing_since = now() - interval '121 hours'")
        .await;
    app.hurry().await;
    let paused = app.endpoint_is(&endpoint, "Paused").await;
    assert_eq!(paused["pauseReason"], "NoSuccess");
    receiver.respond(|_| Reply::status(204));
    app.call(&endpoint, "resume").await.expect(200);
    app.deliveries_are(&endpoint, &["Delivered"; 20]).await;
}

/// What waits in memory behind an attempt that is in flight has no row yet.
#[tokio::test]
async fn pausing_while_attempts_are_in_flight_loses_nothing() {
    let settings = [LOCAL, &[("CALLBACK_TIMEOUT", "20s")]].concat();
    let app = TestApp::with(&settings).await;
    let receiver = Receiver::start().await;
    let first = app.created().await;
    let second = app.create(&ten_pounds("Order 2")).await.expect(201).json();
    eventually("both links are in the feed", async || {
        (app.feed().await.len() == 2).then_some(())
    })
    .await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    receiver.respond(|_| Reply::status(204).after(Duration::from_secs(4)));
    let mut connection = app.pool.acquire().await.unwrap();
    for change in 0..3 {
        crate::feed::change_amount(&mut connection, &first, change).await;
    }
    crate::feed::change_amount(&mut connection, &second, 0).await;
    receiver.until(2).await;
    app.call(&endpoint, "pause").await.expect(200);
    app.deliveries_are(&endpoint, &["Delivered", "Delivered"])
        .await;
    receiver.respond(|_| Reply::status(204));
    app.call(&endpoint, "resume").await.expect(200);
    app.deliveries_are(&endpoint, &["Delivered"; 4]).await;
    let changes: Vec<_> = receiver
        .received()
        .iter()
        .map(Received::event)
        .filter(|event| event["paymentLinkId"] == first["id"])
        .map(|event| event["detail"]["change"].clone())
        .collect();
    assert_eq!(changes, [0, 1, 2]);
}

/// The attempt that is under way when an endpoint is resumed doesn't count, however it ends.
#[tokio::test]
async fn resuming_gives_a_delivery_in_flight_all_its_attempts() {
    let settings = [LOCAL, &[("CALLBACK_TIMEOUT", "20s")]].concat();
    let app = TestApp::with(&settings).await;
    let receiver = Receiver::start().await;
    receiver.respond(|_| Reply::status(500));
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    app.created().await;
    app.deliveries_are(&endpoint, &["Pending"]).await;
    receiver.respond(|_| Reply::status(500).after(Duration::from_secs(3)));
    app.execute("UPDATE callback_deliveries SET attempts = 9, due_at = now()")
        .await;
    receiver.until(2).await;
    app.call(&endpoint, "resume").await.expect(200);
    eventually("the attempt is recorded", async || {
        let delivery = app.deliveries(&endpoint, "").await.pop()?;
        (delivery["attempts"] == 1).then(|| assert_eq!(delivery["status"], "Pending"))
    })
    .await;
}

#[tokio::test]
async fn an_event_that_an_endpoint_does_not_want_can_be_replayed() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let wanted = json!({"url": receiver.url, "types": ["payment_link.captured"]});
    let endpoint = app.subscribe(&wanted).await;
    app.call(&endpoint, "pause").await.expect(200);
    app.created().await;
    let event = eventually("the link is in the feed", async || app.feed().await.pop()).await;
    let path = format!("{}/replay", path_of(&endpoint));
    app.post(&path, &json!({"eventId": event["id"]}))
        .await
        .expect(202);
    app.call(&endpoint, "resume").await.expect(200);
    assert_eq!(receiver.until(1).await[0].event(), event);
}

#[tokio::test]
async fn a_rotation_can_be_repeated() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    // The first response is lost.
    app.call(&endpoint, "rotate-secret").await.expect(200);
    let newest = app
        .call(&endpoint, "rotate-secret")
        .await
        .expect(200)
        .json();
    app.call(&endpoint, "ping").await.expect(200);
    let path = format!("{}/rotate-secret", path_of(&endpoint));
    app.post(&path, &json!({"overlapSeconds": 0}))
        .await
        .expect(200);
    app.call(&endpoint, "ping").await.expect(200);
    let pings = receiver.until(2).await;
    for (ping, expected) in pings.iter().zip([true, false]) {
        for secret in [&endpoint["secret"], &newest["secret"]] {
            let webhook = standardwebhooks::Webhook::new(text(secret)).unwrap();
            let verified = webhook.verify(&ping.body, &ping.headers).is_ok();
            assert_eq!(verified, expected);
        }
    }
}

#[tokio::test]
async fn both_secrets_sign_during_a_rotation() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let path = format!("{}/rotate-secret", path_of(&endpoint));
    let rotated = app
        .post(&path, &json!({"overlapSeconds": 3600}))
        .await
        .expect(200)
        .json();
    assert_ne!(rotated["secret"], endpoint["secret"]);
    assert_ne!(rotated["previousSecretsEndAt"], Value::Null);
    app.call(&endpoint, "ping").await.expect(200);
    app.execute(
        "UPDATE callback_endpoints SET previous_secrets_end_at = now() - interval '1 second'",
    )
    .await;
    app.call(&endpoint, "ping").await.expect(200);
    let pings = receiver.until(2).await;
    let verified = |secret: &Value, ping: usize| {
        let webhook = standardwebhooks::Webhook::new(text(secret)).unwrap();
        webhook
            .verify(&pings[ping].body, &pings[ping].headers)
            .is_ok()
    };
    assert!(verified(&endpoint["secret"], 0) && verified(&rotated["secret"], 0));
    assert!(!verified(&endpoint["secret"], 1) && verified(&rotated["secret"], 1));
    // Without a body, the overlap is a day.
    app.call(&endpoint, "rotate-secret").await.expect(200);
    let too_long = app.post(&path, &json!({"overlapSeconds": 604_801})).await;
    too_long.problem(422, "invalid-request");
}

#[tokio::test]
async fn a_ping_says_how_the_endpoint_responds() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    app.call(&endpoint, "pause").await.expect(200);
    let pong = app.call(&endpoint, "ping").await.expect(200).json();
    assert_eq!(pong["delivered"], true);
    assert_eq!(pong["responseStatus"], 204);
    assert_eq!(receiver.types(), ["ping"]);
    receiver.respond(|_| Reply::status(500));
    let pong = app.call(&endpoint, "ping").await.expect(200).json();
    assert_eq!(pong["outcome"], "rejected");
    assert_eq!(pong["responseStatus"], 500);
    receiver.respond(|_| Reply::status(204).after(Duration::from_secs(30)));
    let pong = app.call(&endpoint, "ping").await.expect(200).json();
    assert_eq!(pong["outcome"], "timed_out");
    drop(receiver);
    let pong = app.call(&endpoint, "ping").await.expect(200).json();
    assert_eq!(pong["outcome"], "not_reached");
    assert!(app.deliveries(&endpoint, "").await.is_empty());
}

#[tokio::test]
async fn everything_wrong_with_an_endpoint_is_named() {
    let app = TestApp::start().await;
    for url in [
        "http://example.com/hook",
        "https://127.0.0.1/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/",
        "https://localhost/x",
        "nonsense",
    ] {
        let problem = app
            .post(ENDPOINTS, &json!({"url": url}))
            .await
            .problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "/url", "{url}: {problem}");
    }
    let body = json!({
        "url": "ftp://user:pw@10.0.0.1/#x", "types": ["payment_link.paid"], "accounts": ["nobody"],
        "header": {"name": "Content-Length", "value": "\u{e9}"}, "color": "red",
    });
    let problem = app
        .post(ENDPOINTS, &body)
        .await
        .problem(422, "invalid-request");
    let at: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| text(&fault["pointer"]))
        .collect();
    assert_eq!(
        at,
        [
            "/accounts/0",
            "/color",
            "/header/name",
            "/header/value",
            "/types/0",
            "/url"
        ]
    );
    let body = json!({"url": "https://example.com/hook"});
    let endpoint = app.subscribe(&body).await;
    app.post(ENDPOINTS, &body).await.problem(409, "url-taken");
    let other = app
        .subscribe(&json!({"url": "https://example.com/other"}))
        .await;
    let change =
        async |patch: &Value| send(app.request(Method::PATCH, &path_of(&other)).json(patch)).await;
    change(&body).await.problem(409, "url-taken");
    change(&json!({"url": "https://10.1.2.3/"}))
        .await
        .problem(422, "invalid-request");
    change(&json!({"url": null}))
        .await
        .problem(422, "invalid-request");

    let path = format!("{}/replay", path_of(&endpoint));
    for body in [
        json!({}),
        json!({"after": "x"}),
        json!({"eventId": "x"}),
        json!({"after": "0-1", "eventId": "x"}),
    ] {
        app.post(&path, &body).await.problem(422, "invalid-request");
    }
    let listed = app.get(ENDPOINTS).await.expect(200).json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    let delete = async || send(app.request(Method::DELETE, &path_of(&endpoint))).await;
    delete().await.expect(204);
    delete().await.problem(404, "not-found");
    app.get(&path_of(&endpoint)).await.problem(404, "not-found");
    app.call(&endpoint, "ping").await.problem(404, "not-found");
    app.subscribe(&body).await;
    app.get(&format!("{ENDPOINTS}/nonsense"))
        .await
        .problem(404, "not-found");
}

#[tokio::test]
async fn there_is_a_limit_to_the_number_of_endpoints() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO callback_endpoints (id, url, secret, position)
         SELECT gen_random_uuid(), 'https://example.com/' || n, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 0
         FROM generate_series(1, 100) n",
    )
    .await;
    let more = app
        .post(ENDPOINTS, &json!({"url": "https://example.com/hook"}))
        .await;
    more.problem(409, "too-many-endpoints");
}

#[tokio::test]
async fn a_limited_key_manages_endpoints_of_its_accounts_only() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let whole = app.subscribe(&json!({"url": receiver.url})).await;
    let key = create_limited_key(&app, "shop", "callbacks:manage", "default");
    let limited = |method, path: &str| app.anonymous(method, path).bearer_auth(&key);
    send(limited(Method::GET, &path_of(&whole)))
        .await
        .problem(404, "not-found");
    send(limited(Method::DELETE, &path_of(&whole)))
        .await
        .problem(404, "not-found");
    let own = send(limited(Method::POST, ENDPOINTS).json(&json!({"url": "https://example.com/"})))
        .await
        .expect(201)
        .json();
    assert_eq!(own["accounts"], json!(["default"]));
    let all = send(limited(Method::PATCH, &path_of(&own)).json(&json!({"accounts": null}))).await;
    assert_eq!(all.expect(200).json()["accounts"], json!(["default"]));
    let listed = send(limited(Method::GET, ENDPOINTS))
        .await
        .expect(200)
        .json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    send(limited(Method::GET, "/v1/events"))
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn a_slow_endpoint_holds_up_no_other_and_gets_no_more_than_permitted() {
    let settings = [
        LOCAL,
        &[("CALLBACK_CONCURRENCY", "3"), ("CALLBACK_TIMEOUT", "20s")],
    ]
    .concat();
    let app = TestApp::with(&settings).await;
    let (slow, quick) = (Receiver::start().await, Receiver::start().await);
    slow.respond(|_| Reply::status(204).after(Duration::from_hours(1)));
    app.subscribe(&json!({"url": slow.url})).await;
    app.subscribe(&json!({"url": quick.url})).await;
    for order in 0..30 {
        app.create(&ten_pounds(&format!("Order {order}")))
            .await
            .expect(201);
    }
    let arrived = quick.until(30).await;
    let feed = app.feed().await;
    let (mut got, mut expected) = (
        ids(&arrived),
        feed.iter()
            .map(|event| text(&event["id"]).to_owned())
            .collect::<Vec<_>>(),
    );
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
    slow.until(3).await;
    assert_eq!(slow.most_open(), 3);
    assert!(quick.most_open() <= 3);
}

#[tokio::test]
async fn everything_behind_a_place_in_the_feed_can_be_replayed() {
    let app = TestApp::calling().await;
    let first = app.created().await;
    let after = eventually("it is in the feed", async || {
        let page = app.get("/v1/events").await.expect(200).json();
        (page["data"][0]["paymentLinkId"] == first["id"]).then(|| page["after"].clone())
    })
    .await;
    let receiver = Receiver::start().await;
    let endpoint = app
        .subscribe(&json!({"url": receiver.url, "types": ["payment_link.created"]}))
        .await;
    app.create(&ten_pounds("Order 2")).await.expect(201);
    app.create(&ten_pounds("Order 3")).await.expect(201);
    receiver.until(2).await;
    app.deliveries_are(&endpoint, &["Delivered"; 2]).await;
    let path = format!("{}/replay", path_of(&endpoint));
    app.post(&path, &json!({"after": after})).await.expect(202);
    let arrived = receiver.until(4).await;
    let sorted = |arrived: &[Received]| {
        let mut ids = ids(arrived);
        ids.sort();
        ids
    };
    assert_eq!(sorted(&arrived[..2]), sorted(&arrived[2..4]));

    let beginning = app.get("/v1/events?limit=1").await.expect(200).json();
    assert_eq!(beginning["data"][0]["paymentLinkId"], first["id"]);
    let feed_id: uuid::Uuid = sqlx::query_scalar("SELECT id FROM feed")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    app.post(&path, &json!({"after": format!("0-{}", feed_id.simple())}))
        .await
        .expect(202);
    let arrived = receiver.until(7).await;
    assert!(
        arrived[4..]
            .iter()
            .any(|one| one.event()["paymentLinkId"] == first["id"]),
        "from before it subscribed"
    );
    app.deliveries_are(&endpoint, &["Delivered"; 3]).await;
    let foreign = format!("1-{}", feed_id.simple());
    app.post(&path, &json!({"after": foreign}))
        .await
        .problem(410, "cursor-unknown");
}

#[tokio::test]
async fn nothing_is_pruned_that_an_endpoint_has_not_got() {
    let app = TestApp::calling().await;
    let (receiver, paused) = (Receiver::start().await, Receiver::start().await);
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    let bad = app.created().await;
    receiver.until(1).await;
    app.deliveries_are(&endpoint, &["Delivered"]).await;
    let late = app.subscribe(&json!({"url": paused.url})).await;
    app.call(&late, "pause").await.expect(200);
    receiver.respond(|_| Reply::status(500));
    app.sandbox.pay(&bad["paymentIntentId"]).await;
    app.deliveries_are(&endpoint, &["Pending", "Delivered"])
        .await;
    app.everything_is_booked().await;
    app.execute("UPDATE feed_events SET occurred_at = occurred_at - interval '500 days'")
        .await;
    app.execute("UPDATE callback_deliveries SET attempted_at = attempted_at - interval '500 days'")
        .await;
    let prune = || {
        let mut command = program();
        command
            .args(["prune", "--older-than", "400d"])
            .env("DATABASE_URL", &app.database_url);
        output_of(&mut command)
    };
    assert!(prune().ends_with("feed_events\t1\ncallback_deliveries\t1\n"));
    receiver.respond(|_| Reply::status(204));
    app.call(&endpoint, "resume").await.expect(200);
    app.deliveries_are(&endpoint, &["Delivered"]).await;
    assert!(
        prune().ends_with("feed_events\t0\ncallback_deliveries\t0\n"),
        "the paused one still needs it"
    );
    app.call(&late, "resume").await.expect(200);
    paused.until(1).await;
    app.deliveries_are(&late, &["Delivered"]).await;
    eventually("both have passed it", async || {
        prune()
            .ends_with("feed_events\t1\ncallback_deliveries\t0\n")
            .then_some(())
    })
    .await;
    let all = json!({"after": format!("0-{}", uuid::Uuid::nil().simple())});
    let path = format!("{}/replay", path_of(&endpoint));
    app.post(&path, &all).await.problem(410, "events-removed");
}

#[tokio::test]
async fn deleted_endpoints_leave_nothing_behind() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let endpoint = app.subscribe(&json!({"url": receiver.url})).await;
    app.created().await;
    app.deliveries_are(&endpoint, &["Delivered"]).await;
    send(app.request(Method::DELETE, &path_of(&endpoint)))
        .await
        .expect(204);
    eventually("the rows are gone", async || {
        let left: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM callback_deliveries) + (SELECT count(*) FROM callback_endpoints)",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_managed_from_the_command_line() {
    let app = TestApp::calling().await;
    let receiver = Receiver::start().await;
    let command = |args: &[&str]| {
        let mut command = program();
        command
            .arg("callback-endpoints")
            .args(args)
            .env("DATABASE_URL", &app.database_url)
            .env("CALLBACK_ALLOW", "127.0.0.1");
        command
    };
    let run = |args: &[&str]| output_of(&mut command(args));
    let secret = run(&[
        "create",
        "--url",
        &receiver.url,
        "--header",
        "x-key: 1",
        "--types",
        "payment_link.created",
    ]);
    assert!(secret.starts_with("whsec_"));
    let listed: Value = serde_json::from_str(&run(&["list"])).unwrap();
    assert_eq!(listed["types"], json!(["payment_link.created"]));
    let id = text(&listed["id"]);
    assert!(run(&["ping", id]).starts_with("delivered (204)"));
    let mut check = program();
    check
        .args(["check", "--ping-callbacks"])
        .env("DATABASE_URL", &app.database_url)
        .env("CALLBACK_ALLOW", "127.0.0.1");
    let report = String::from_utf8(check.output().unwrap().stdout).unwrap();
    let line = format!("callbacks                   {id}: delivered (204)");
    assert!(report.contains(&line), "{report}");
    app.created().await;
    receiver.until(3).await;
    app.deliveries_are(&listed, &["Delivered"]).await;
    let delivery: Value =
        serde_json::from_str(&run(&["deliveries", id, "--status", "Delivered"])).unwrap();
    run(&["replay", id, "--event", text(&delivery["eventId"])]);
    receiver.until(4).await;
    let changed: Value =
        serde_json::from_str(&run(&["change", id, "--all-types", "--description", "All"])).unwrap();
    assert_eq!(
        (&changed["types"], &changed["description"]),
        (&Value::Null, &json!("All"))
    );
    assert!(run(&["rotate-secret", id, "--overlap", "0s"]).starts_with("whsec_"));
    assert!(run(&["pause", id]).contains("Paused"));
    assert!(run(&["resume", id]).contains("Active"));
    let nothing = error_of(&mut command(&["replay", id]));
    assert!(
        nothing.contains("<--after <AFTER>|--event <ID>>"),
        "{nothing}"
    );
    let deleted = command(&["delete", id]).output().unwrap();
    assert_eq!(
        String::from_utf8(deleted.stderr).unwrap(),
        format!("Endpoint {id} is deleted.\n")
    );
    for lost in ["ping", "deliveries"] {
        let gone = error_of(&mut command(&[lost, id]));
        assert!(gone.contains("no callback endpoint with this id"), "{gone}");
    }
    let odd = error_of(&mut command(&["create", "--url", "foo"]));
    assert!(
        odd.contains("--url must be an http or https URL, not \"foo\""),
        "{odd}"
    );
    let wrong = error_of(&mut command(&[
        "create",
        "--url",
        "https://10.0.0.1/",
        "--header",
        "host: x",
    ]));
    assert!(
        wrong.contains("--url must not point") && wrong.contains("--header name must not"),
        "{wrong}"
    );
}

/// A service that sends no callbacks, replicas that do, and links that are in the feed.
async fn replicas_and_links(replicas: usize, links: usize) -> (TestApp, Vec<Service>, Vec<Value>) {
    let app = TestApp::with(&LOCAL[1..]).await;
    let (mut started, mut created) = (Vec::new(), Vec::new());
    for _ in 0..replicas {
        started.push(Service::start(&app.database_url, &app.sandbox.url, LOCAL).await);
    }
    for order in 0..links {
        let body = ten_pounds(&format!("Order {order}"));
        created.push(app.create(&body).await.expect(201).json());
    }
    eventually("the links are in the feed", async || {
        (app.feed().await.len() == links).then_some(())
    })
    .await;
    (app, started, created)
}

/// Replicas die at any moment, and the receivers lose responses. Every event arrives at least once, and each link's events
/// arrive in order.
#[tokio::test]
async fn an_endpoint_gets_everything_whoever_dies() {
    const LINKS: usize = 24;
    const CHANGES: i64 = 12;
    let (app, mut replicas, links) = replicas_and_links(2, LINKS).await;
    let (steady, flaky) = (Receiver::start().await, Receiver::start().await);
    let endpoints = [
        app.subscribe(&json!({"url": steady.url})).await,
        app.subscribe(&json!({"url": flaky.url})).await,
    ];
    let seen = std::sync::Mutex::new(BTreeMap::<String, u32>::new());
    flaky.respond(move |event| {
        // Each event fails once in a while, but not for long.
        let mut seen = seen.lock().unwrap();
        let times = seen.entry(text(&event["id"]).to_owned()).or_default();
        *times += 1;
        let change = event["detail"]["change"].as_i64().unwrap_or_default();
        Reply::status(if *times == 1 && change % 5 == 0 {
            500
        } else {
            204
        })
    });
    let writing = async {
        for change in 0..CHANGES {
            for link in &links {
                let mut connection = app.pool.acquire().await.unwrap();
                crate::feed::change_amount(&mut connection, link, change).await;
            }
        }
    };
    let killing = async {
        for _ in 0..2 {
            for replica in &mut replicas {
                replica.kill().await;
                *replica = Service::start(&app.database_url, &app.sandbox.url, LOCAL).await;
            }
        }
    };
    tokio::join!(writing, killing);
    let expected = LINKS * usize::try_from(CHANGES).unwrap();
    for (endpoint, receiver) in endpoints.iter().zip([&steady, &flaky]) {
        let path = format!("{}/resume", path_of(endpoint));
        eventually("every event has arrived", async || {
            send(app.request(Method::POST, &path)).await.expect(200);
            let left: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM callback_deliveries WHERE status <> 'Delivered'",
            )
            .fetch_one(&app.pool)
            .await
            .unwrap();
            let distinct: BTreeSet<_> = ids(&receiver.received()).into_iter().collect();
            (left == 0 && distinct.len() == expected).then_some(())
        })
        .await;
        let mut last = BTreeMap::<String, i64>::new();
        let mut known = BTreeSet::new();
        for one in receiver.received() {
            // A repetition may come late. What arrives for the first time comes in order.
            if !known.insert(one.id().to_owned()) {
                continue;
            }
            let event = one.event();
            let change = event["detail"]["change"].as_i64().unwrap();
            let before = last.insert(text(&event["paymentLinkId"]).to_owned(), change);
            assert_eq!(before.unwrap_or(-1) + 1, change, "{event}");
        }
    }
}

/// Eight writers change links while three replicas are killed at random. Every reader of the feed and every endpoint gets every
/// event, and each link's events in order.
///
/// `STORM_CHANGES` sets the number of changes. The usual one is small enough for every run of the suite.
#[tokio::test(flavor = "multi_thread")]
async fn every_reader_and_endpoint_gets_everything_whoever_dies() {
    const WRITERS: usize = 8;
    const LINKS: usize = 64;
    let changes: usize =
        std::env::var("STORM_CHANGES").map_or(3000, |changes| changes.parse().unwrap());
    let limit = Duration::from_secs(120 + changes as u64 / 50);
    let (app, mut replicas, links) = replicas_and_links(3, LINKS).await;
    let begin = app.get("/v1/events?limit=100").await.expect(200).json();
    let receivers = [Receiver::start().await, Receiver::start().await];
    for receiver in &receivers {
        receiver.keep_order_only();
        app.subscribe(&json!({"url": receiver.url})).await;
    }

    let writers: Vec<_> = links
        .chunks(LINKS / WRITERS)
        .map(|mine| {
            let (url, mine) = (app.database_url.clone(), mine.to_vec());
            tokio::spawn(async move {
                let mut connection = PgConnection::connect(&url).await.unwrap();
                for change in 0..changes / WRITERS {
                    let link = &mine[change % mine.len()];
                    let change = i64::try_from(change).unwrap();
                    crate::feed::change_amount(&mut connection, link, change).await;
                }
            })
        })
        .collect();
    let expected = changes / WRITERS * WRITERS;
    let done = AtomicBool::new(false);
    let reader = async || {
        let mut order = Vec::with_capacity(expected);
        let mut after = text(&begin["after"]).to_owned();
        while order.len() < expected {
            let page = app
                .get(&format!("/v1/events?limit=100&wait=5&after={after}"))
                .await;
            let page = page.expect(200).json();
            order.extend(page["data"].as_array().unwrap().iter().map(Seen::of));
            text(&page["after"]).clone_into(&mut after);
        }
        order
    };
    let called = async {
        for receiver in &receivers {
            eventually_within(limit, "an endpoint has got everything", async || {
                (receiver.distinct() >= expected).then_some(())
            })
            .await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let killer = async {
        let mut next = 0;
        while !done.load(Ordering::Relaxed) {
            // Long enough for an endpoint to be taken over, so that there is progress.
            sleep(Duration::from_millis(500 + rand::random_range(0..9000))).await;
            let replica = &mut replicas[next % 3];
            replica.kill().await;
            *replica = Service::start(&app.database_url, &app.sandbox.url, LOCAL).await;
            next += rand::random_range(1..3);
        }
    };
    let readers = within(limit, "all events are read", async {
        let readers = join_all((0..4).map(|_| reader()));
        tokio::join!(readers, called, killer).0
    })
    .await;
    for writer in writers {
        writer.await.unwrap();
    }
    for read in &readers {
        assert!(*read == readers[0], "one order for all readers");
    }
    in_order(&readers[0], expected);
    for receiver in &receivers {
        in_order(&receiver.first_accepted(), expected);
    }
}

/// Checks that there are so many different events, and each link's changes in order.
fn in_order(events: &[Seen], expected: usize) {
    let ids: BTreeSet<_> = events.iter().map(|seen| &seen.id).collect();
    assert_eq!((ids.len(), events.len()), (expected, expected));
    let mut last = BTreeMap::new();
    for seen in events {
        let before = last.insert(&seen.link, seen.change);
        assert!(
            before < Some(seen.change),
            "{}: {before:?}, {}",
            seen.link,
            seen.change
        );
    }
}
