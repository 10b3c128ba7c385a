//! Three processes on one database, any of which may die at any moment. Nothing is lost and nothing is done twice.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    API_KEY, QUICK, Service, TestApp, client, eventually, stable_address, ten_pounds, text,
    try_send,
};

const REPLICAS: usize = 3;
/// For how long there is load and processes are killed.
const STORM: Duration = Duration::from_secs(10);
/// How many links must be requested during the storm.
const ENOUGH_LINKS: usize = 50;
/// How long to wait before the next replica is killed.
const LIFE: Duration = Duration::from_millis(400);

fn order(key: usize) -> String {
    format!("Order {key}")
}

/// Requests links from the replicas in turn, three times for each key at the same time, and pays every other link.
async fn load(app: &TestApp, addresses: &[String], next: &AtomicUsize, enough: &AtomicBool) {
    let http = client();
    while !enough.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let (replica, key) = (&addresses[n % REPLICAS], n / REPLICAS);
        let asking = try_send(
            http.post(format!("http://{replica}/v1/payment-links"))
                .bearer_auth(API_KEY)
                .header("idempotency-key", order(key))
                .json(&ten_pounds(&order(key))),
        );
        let Ok(response) = asking.await else {
            // It has just been killed.
            continue;
        };
        let status = response.status.as_u16();
        assert!([201, 409, 503, 504].contains(&status), "{}", response.text);
        if status == 201
            && key.is_multiple_of(2)
            && response.header("idempotent-replayed").is_empty()
        {
            app.sandbox.pay(&response.json()["paymentIntentId"]).await;
        }
        // A steady load, less than the machine can take.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// Kills one replica after the other and restarts it.
async fn kill_and_restart(
    app: &TestApp,
    addresses: &[String],
    next: &AtomicUsize,
    mut replicas: Vec<Service>,
) -> Vec<Service> {
    let start = Instant::now();
    for n in (0..REPLICAS).cycle() {
        // On a busy machine the requests come more slowly, so the storm lasts longer.
        let requested = next.load(Ordering::Relaxed) / REPLICAS;
        if start.elapsed() > STORM && requested > ENOUGH_LINKS {
            break;
        }
        assert!(start.elapsed() < STORM * 10, "only {requested} links");
        tokio::time::sleep(LIFE).await;
        replicas[n].kill().await;
        replicas[n] = replica(app, &addresses[n]).await;
    }
    replicas
}

async fn replica(app: &TestApp, address: &str) -> Service {
    let settings = [&QUICK[..], &[("LISTEN_ADDR", address)]].concat();
    Service::start(&app.database_url, &app.sandbox.url, &settings).await
}

/// A load balancer: its address leads to any replica that is alive.
pub async fn balancer(addresses: &[String]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let addresses = addresses.to_vec();
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut caller, _)) = listener.accept().await {
            turn += 1;
            for n in 0..addresses.len() {
                let address = &addresses[(turn + n) % addresses.len()];
                if let Ok(mut called) = TcpStream::connect(address).await {
                    tokio::spawn(async move {
                        tokio::io::copy_bidirectional(&mut caller, &mut called).await
                    });
                    break;
                }
            }
        }
    });
    url
}

fn by<'a>(
    all: &'a [Value],
    name: impl Fn(&'a Value) -> &'a Value,
) -> BTreeMap<&'a str, Vec<&'a Value>> {
    let mut sorted = BTreeMap::<_, Vec<_>>::new();
    for one in all {
        sorted.entry(text(name(one))).or_default().push(one);
    }
    sorted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_killed_under_load_lose_nothing_and_repeat_nothing() {
    // A fourth one, to read the results. It runs no jobs.
    let app = TestApp::start().await;
    let addresses: Vec<_> = (0..REPLICAS).map(|_| stable_address()).collect();
    let replicas = join_all(addresses.iter().map(|address| replica(&app, address))).await;
    app.sandbox
        .send_webhooks_to(&balancer(&addresses).await)
        .await;
    for fault in [
        json!({"operation": "create", "kind": "cutAfter", "share": 0.05}),
        json!({"operation": "create", "kind": "cutBefore", "share": 0.05}),
    ] {
        app.sandbox.control("faults", fault).await;
    }
    for fault in [
        json!({"kind": "drop", "share": 0.1}),
        json!({"kind": "double", "share": 0.3}),
        json!({"kind": "reorder", "share": 0.1, "delayMs": 500}),
    ] {
        app.sandbox.control("webhook-faults", fault).await;
    }

    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let storm = async {
        let replicas = kill_and_restart(&app, &addresses, &next, replicas).await;
        enough.store(true, Ordering::Relaxed);
        replicas
    };
    let loads = join_all((0..REPLICAS).map(|_| load(&app, &addresses, &next, &enough)));
    let (_replicas, _) = tokio::join!(storm, loads);
    app.sandbox.clear("faults").await;
    app.sandbox.clear("webhook-faults").await;

    // Each caller retries until there is a link.
    let keys = next.load(Ordering::Relaxed).div_ceil(REPLICAS);
    let mut links = Vec::new();
    for key in 0..keys {
        let response = app.outcome(&order(key), &ten_pounds(&order(key))).await;
        links.push(response.expect(201).json());
    }
    app.in_step_with_dojo().await;

    let intents = app.sandbox.intents().await;
    let about = by(&intents, |intent| &intent["reference"]);
    for link in &links {
        let live: Vec<_> = about[text(&link["reference"])]
            .iter()
            .filter(|intent| intent["status"] != "Canceled")
            .map(|intent| &intent["id"])
            .collect();
        assert_eq!(live, [&link["paymentIntentId"]], "{}", link["reference"]);
    }

    eventually("every webhook was delivered or given up", async || {
        let deliveries = app.sandbox.look("deliveries").await;
        let mut deliveries = deliveries.as_array().unwrap().iter();
        deliveries
            .all(|delivery| delivery["state"] != "pending")
            .then_some(())
    })
    .await;
    app.each_webhook_is_told_once().await;

    // Dojo was called for each link as often as the link's timeline says, and each link was created once.
    let calls = app.sandbox.creations().await;
    let calls = by(&calls, |call| &call["body"]["metadata"]["paymentLinkId"]);
    for (id, calls) in calls {
        let id = json!(id);
        let retries = app.told(&id, "creationRetried").await.len();
        assert!(calls.len() <= 1 + retries, "{id}: {calls:#?}");
        let created = app.told(&id, "created").await.len();
        let failed = app.told(&id, "failed").await.len();
        assert_eq!(created + failed, 1, "{id}");
    }
}
