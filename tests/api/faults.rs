//! Every fault that the sandbox can inject, in everything that may meet it, and a database that stops under load. Once it is
//! over, every link has Dojo's state and one intent.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{TestApp, eventually, for_each_case, postgres::Postgres, ten_pounds, text};

/// Each kind of fault, severe enough that the response is lost or an error. What is late is still done within the settlement
/// window: 3 seconds are more than `DOJO_TIMEOUT`, and less than `DOJO_TIMEOUT` and `RECOVERY_SETTLE` together.
fn api_faults() -> [Value; 9] {
    [
        json!({"kind": "latency", "latencyMs": 3000}),
        json!({"kind": "latencyAfter", "latencyMs": 3000}),
        json!({"kind": "status", "status": 503}),
        json!({"kind": "statusAfter", "status": 503}),
        json!({"kind": "status", "status": 429, "retryAfter": 1}),
        json!({"kind": "statusAfter", "status": 408}),
        json!({"kind": "cutBefore"}),
        json!({"kind": "cutAfter"}),
        json!({"kind": "endless"}),
    ]
}

/// Sets the fault for the next calls of an operation.
async fn set_fault(app: &TestApp, fault: &Value, operation: &str, count: u32) {
    let mut fault = fault.clone();
    fault["operation"] = json!(operation);
    fault["count"] = json!(count);
    app.sandbox.control("faults", fault).await;
}

/// Links that are paid without any webhook.
async fn paid_without_webhooks(app: &TestApp, count: usize) -> Vec<Value> {
    app.sandbox.drop_webhooks().await;
    let orders: Vec<_> = (0..count).map(|n| format!("Order {n}")).collect();
    join_all(orders.iter().map(async |order| {
        let link = app.outcome(order, &ten_pounds(order)).await.expect(201);
        let link = link.json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        link
    }))
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creation_survives_every_fault() {
    for_each_case(&api_faults(), &[], async |app, fault| {
        set_fault(&app, fault, "create", 3).await;
        let orders: Vec<_> = (0..5).map(|n| format!("Order {n}")).collect();
        join_all(orders.iter().map(async |order| {
            let response = app.create_with_key(order, &ten_pounds(order)).await;
            let status = response.status.as_u16();
            assert!(
                [201, 503, 504].contains(&status),
                "{fault}: {}",
                response.text
            );
        }))
        .await;
        app.sandbox.clear("faults").await;
        for order in &orders {
            app.the_only_link_and_it_can_be_paid(order, &ten_pounds(order))
                .await;
        }
        app.in_step_with_dojo().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_reports_every_fault_and_changes_nothing() {
    for_each_case(
        &api_faults(),
        &[("RUN_JOBS", "false")],
        async |app, fault| {
            let link = paid_without_webhooks(&app, 1).await.remove(0);
            set_fault(&app, fault, "get", 1).await;
            let response = app.refresh(&link["id"]).await;
            assert_ne!(response.header("retry-after"), "", "{fault}");
            response.problem(503, "dojo-not-reached");
            assert_eq!(app.link(&link["id"]).await, link, "{fault}");
            let link = app.refresh(&link["id"]).await.expect(200).json();
            assert_eq!(link["status"], "Captured", "{fault}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciliation_survives_every_fault() {
    for_each_case(&api_faults(), &[], async |app, fault| {
        paid_without_webhooks(&app, 3).await;
        set_fault(&app, fault, "get", 3).await;
        app.all_are_due().await;
        app.in_step_with_dojo().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_survives_every_fault() {
    for_each_case(&api_faults(), &[], async |app, fault| {
        paid_without_webhooks(&app, 10).await;
        set_fault(&app, fault, "search", 2).await;
        // On a busy machine so few links may be left when the job claims them that it reads each by itself.
        eventually(&format!("a search fails: {fault}"), async || {
            app.all_are_due().await;
            app.in_step_with_dojo().await;
            let searches = app.sandbox.requests("search").await;
            let mut faults = searches.iter().map(|search| &search["fault"]);
            faults.any(|fault| !fault.is_null()).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_for_a_lost_creation_survives_every_fault() {
    for_each_case(&api_faults(), &[], async |app, fault| {
        app.sandbox.drop_webhooks().await;
        set_fault(&app, fault, "search", 1).await;
        app.sandbox.next("create", "cutAfter", json!({})).await;
        let body = ten_pounds("Order 1");
        app.create_with_key("a", &body).await.expect(504);
        app.the_only_link("a", &body).await;
        assert_eq!(app.sandbox.creations().await.len(), 1, "{fault}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canceling_a_surplus_intent_survives_every_fault() {
    for_each_case(
        &api_faults(),
        &[("RECOVERY_SETTLE", "1s")],
        async |app, fault| {
            app.sandbox.search_lags(600.0).await;
            set_fault(&app, fault, "cancel", 1).await;
            app.sandbox.next("create", "cutAfter", json!({})).await;
            let body = ten_pounds("Order 1");
            let problem = app.create_with_key("a", &body).await.expect(504).json();
            let id = &problem["paymentLinkId"];
            eventually("it is recorded", async || {
                app.told(id, "surplusCanceled").await.pop()
            })
            .await;
            app.the_only_link("a", &body).await;
            assert_eq!(app.sandbox.intents().await.len(), 2, "{fault}");
            for kind in ["surplusFound", "surplusCanceled"] {
                assert_eq!(app.told(id, kind).await.len(), 1, "{fault}: {kind}");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_and_its_refund_survive_every_webhook_fault() {
    let faults = [
        json!({"kind": "drop", "share": 0.7}),
        json!({"kind": "double", "share": 0.7}),
        json!({"kind": "delay", "delayMs": 1500, "share": 0.7}),
        json!({"kind": "reorder", "delayMs": 1500, "share": 0.7}),
    ];
    for_each_case(&faults, &[], async |app, fault| {
        app.sandbox.control("webhook-faults", fault.clone()).await;
        let orders: Vec<_> = (0..6).map(|n| format!("Order {n}")).collect();
        join_all(orders.iter().map(async |order| {
            let link = app.outcome(order, &ten_pounds(order)).await.expect(201);
            let link = link.json();
            app.sandbox.pay(&link["paymentIntentId"]).await;
            app.sandbox.refund(&link["paymentIntentId"], 1000).await;
        }))
        .await;
        app.sandbox.clear("webhook-faults").await;
        app.all_are_due().await;
        app.in_step_with_dojo().await;
        eventually("every delivery has ended", async || {
            let deliveries = app.sandbox.look("deliveries").await;
            let mut deliveries = deliveries.as_array().unwrap().iter();
            deliveries
                .all(|delivery| delivery["state"] != "pending")
                .then_some(())
        })
        .await;
        app.each_webhook_is_told_once().await;
        for order in &orders {
            let links = app.links_about(order).await;
            assert_eq!(links.len(), 1, "{fault}");
            assert_eq!(links[0]["status"], "Refunded", "{fault}");
        }
    })
    .await;
}

/// What the service has acknowledged to the callers that make up the load.
#[derive(Default)]
pub struct Acknowledged {
    keys: AtomicUsize,
    pub links: Mutex<BTreeSet<String>>,
    pub events: Mutex<BTreeSet<String>>,
    rejected: AtomicUsize,
    pub enough: AtomicBool,
}

impl Acknowledged {
    /// Links and events together.
    pub fn count(&self) -> usize {
        self.links.lock().unwrap().len() + self.events.lock().unwrap().len()
    }
}

fn order(key: usize) -> (String, Value) {
    let name = format!("Order {key}");
    let body = ten_pounds(&name);
    (name, body)
}

/// Requests links, pays some of them and delivers webhooks, until it is told to stop.
pub async fn load(app: &TestApp, acknowledged: &Acknowledged) {
    while !acknowledged.enough.load(Ordering::Relaxed) {
        let key = acknowledged.keys.fetch_add(1, Ordering::Relaxed);
        let (name, body) = order(key);
        let response = app.create_with_key(&name, &body).await;
        if response.status != 201 {
            assert!(
                [503, 504].contains(&response.status.as_u16()),
                "{}",
                response.text
            );
            acknowledged.rejected.fetch_add(1, Ordering::Relaxed);
            // As a caller should after an error.
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let link = response.json();
        let id = text(&link["id"]).to_owned();
        acknowledged.links.lock().unwrap().insert(id.clone());
        if key.is_multiple_of(2) {
            app.sandbox.pay(&link["paymentIntentId"]).await;
        }
        let event_id = format!("evt_{id}");
        let event = json!({"id": event_id, "event": "payment_intent.status_updated",
            "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}});
        if app.deliver(&event.to_string()).await.status == 204 {
            acknowledged.events.lock().unwrap().insert(event_id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_database_stops_under_load() {
    let postgres = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let settings = [("DATABASE_ACQUIRE_TIMEOUT", "2s"), ("DOJO_TIMEOUT", "3s")];
    let app = TestApp::quick_on(postgres.url("postgres"), &settings).await;
    let acknowledged = Acknowledged::default();
    let outages = async {
        let mut postgres = postgres;
        for outage in 1..=2 {
            let before = acknowledged.count();
            eventually("requests are served", async || {
                (acknowledged.count() >= before + 20).then_some(())
            })
            .await;
            postgres = tokio::task::spawn_blocking(move || {
                postgres.stop();
                postgres
            })
            .await
            .unwrap();
            app.get("/readyz").await.problem(503, "not-ready");
            app.get("/healthz").await.expect(200);
            // Everything that was acknowledged before the database stopped has been counted by now.
            let count = acknowledged.count();
            let rejected = acknowledged.rejected.load(Ordering::Relaxed);
            eventually("callers get errors", async || {
                let now = acknowledged.rejected.load(Ordering::Relaxed);
                (now >= rejected + 6).then_some(())
            })
            .await;
            app.get("/readyz").await.problem(503, "not-ready");
            let during = acknowledged.count() - count;
            assert!(
                during <= 8,
                "outage {outage}: {during} acknowledged without a database"
            );
            postgres = tokio::task::spawn_blocking(move || {
                postgres.resume();
                postgres
            })
            .await
            .unwrap();
            eventually("it is ready again", async || {
                (app.get("/readyz").await.status == 200).then_some(())
            })
            .await;
        }
        let before = acknowledged.count();
        eventually("requests are served again", async || {
            (acknowledged.count() >= before + 20).then_some(())
        })
        .await;
        acknowledged.enough.store(true, Ordering::Relaxed);
        postgres
    };
    let (_postgres, _) = tokio::join!(outages, join_all((0..4).map(|_| load(&app, &acknowledged))));
    nothing_is_lost(&app, &acknowledged).await;
}

/// Checks that the database still has everything that was acknowledged, and that a retry of every other request leads to one
/// link as well.
pub async fn nothing_is_lost(app: &TestApp, acknowledged: &Acknowledged) {
    let links: BTreeSet<String> = acknowledged.links.lock().unwrap().clone();
    for id in &links {
        assert_ne!(app.link(&json!(id)).await["status"], "Failed");
    }
    let stored: Vec<String> = sqlx::query_scalar("SELECT dedup_key FROM webhook_events")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    let stored: BTreeSet<String> = stored.into_iter().collect();
    let lost: Vec<_> = acknowledged
        .events
        .lock()
        .unwrap()
        .difference(&stored)
        .cloned()
        .collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    // Callers that got an error, or no response, retry.
    for key in 0..acknowledged.keys.load(Ordering::Relaxed) {
        let (name, body) = order(key);
        app.the_only_link(&name, &body).await;
    }
    app.in_step_with_dojo().await;
    app.each_webhook_is_told_once().await;
}
