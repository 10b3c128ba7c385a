//! Tests the API against its own document: schemathesis generates valid and invalid requests from `openapi.yaml` and checks every
//! response.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    API_KEY, TestApp, WEBHOOK_SECRET, eventually, send, ten_pounds, text, within,
};

/// The number of links in each state.
const LINKS: usize = 10;

/// Creates links in every state, so that calls by id find some. Returns their ids by state.
async fn links(app: &TestApp) -> BTreeMap<&'static str, Vec<String>> {
    let mut ids = BTreeMap::<_, Vec<_>>::new();
    for n in 0..LINKS {
        for status in [
            "Created",
            "Authorized",
            "Captured",
            "Refunded",
            "Reversed",
            "Canceled",
        ] {
            let mut body = ten_pounds(&format!("{status} {n}"));
            body["config"] = json!({"payment": {"tipsAllowed": true, "customAmountAllowed": true}});
            if status == "Authorized" {
                body["captureMode"] = json!("Manual");
                body["autoExpireAction"] = json!("Release");
            }
            let link = app.create(&body).await.expect(201).json();
            let (id, intent) = (&link["id"], &link["paymentIntentId"]);
            let path = format!("/payment-intents/{}", text(intent));
            match status {
                "Created" => {}
                "Canceled" => {
                    let none = Value::Null;
                    app.sandbox.api(Method::DELETE, &path, &none).await;
                }
                _ => app.sandbox.pay(intent).await,
            }
            match status {
                "Refunded" => app.sandbox.refund(intent, 1000).await,
                "Reversed" => {
                    let reversal = format!("{path}/reversal");
                    app.sandbox.api(Method::POST, &reversal, &Value::Null).await;
                }
                _ => {}
            }
            app.link_with_status(id, status).await;
            ids.entry(status).or_default().push(text(id).to_owned());
        }
    }
    ids
}

/// The number of responses with each status.
type Responses = BTreeMap<u16, u64>;

/// The responses of the service so far, by method and route.
async fn responses(app: &TestApp) -> BTreeMap<(String, String), Responses> {
    let metrics = app.get("/metrics").await.expect(200).text;
    let mut responses = BTreeMap::<_, Responses>::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("http_requests_total{") else {
            continue;
        };
        let (labels, count) = rest.split_once("} ").unwrap();
        let label = |name: &str| {
            let value = labels
                .split(',')
                .find_map(|label| label.strip_prefix(name)?.strip_prefix('='));
            value.unwrap().trim_matches('"').to_owned()
        };
        let statuses = responses
            .entry((label("method"), label("route")))
            .or_default();
        let count: u64 = count.parse().unwrap();
        // A request whose client gave up has no status.
        if let Ok(status) = label("status").parse() {
            statuses.insert(status, count);
        }
    }
    responses
}

/// The method and path of every operation in the document.
fn operations() -> Vec<(String, String)> {
    let document: Value = yaml_serde::from_str(include_str!("../../openapi.yaml")).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            operations.push((method.to_uppercase(), path.clone()));
        }
    }
    operations
}

/// Runs schemathesis against the service. Returns whether it found no problems.
async fn run(app: &TestApp, links: &Value) -> bool {
    let program =
        std::env::var_os("SCHEMATHESIS").expect("SCHEMATHESIS is the path of the program");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // It writes files to its working directory.
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
    std::fs::create_dir_all(&home).unwrap();
    let run = Command::new(program)
        .arg("--config-file")
        .arg(root.join("tests/api/schemathesis.toml"))
        .args(["run", "--no-color", "--url", &app.service.url])
        .arg(root.join("openapi.yaml"))
        .current_dir(&home)
        .env("API_KEY", API_KEY)
        .env("WEBHOOK_SECRET", WEBHOOK_SECRET)
        .env("HOOKS", root.join("tests/api/schemathesis_hooks.py"))
        .env("LINKS", links.to_string())
        .env("NO_PROXY", "127.0.0.1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status();
    let ended = within(Duration::from_mins(5), "schemathesis finishes", run).await;
    ended.unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs schemathesis: script/test installs it"]
async fn every_response_matches_the_document() {
    let app = TestApp::with(&[
        ("RUN_JOBS", "true"),
        ("CLIENT_RATE", "10000"),
        // Nothing listens there, so messages wait.
        ("SMTP_URL", "smtp://127.0.0.1:9?tls=none"),
        ("MAIL_FROM", "pay@theatre.example"),
    ])
    .await;
    let mut links = links(&app).await;
    let paid = app.paid().await;
    let refund = app
        .operate_with_key("a", &paid, "refunds", &json!({}))
        .await;
    links.insert("operations", vec![refund.header("operation-id").to_owned()]);
    // Nothing is sent to them, because their host doesn't exist.
    for n in 0..LINKS {
        let url = json!({"url": format!("https://receiver.invalid/known/{n}")});
        let endpoint = app.subscribe(&url).await;
        let ids = links.entry("endpoints").or_default();
        ids.push(text(&endpoint["id"]).to_owned());
    }
    let events = eventually("there are events", async || {
        let page = app.get("/v1/events?limit=20").await.expect(200).json();
        let events = page["data"].as_array()?.iter();
        let ids: Vec<_> = events.map(|event| text(&event["id"]).to_owned()).collect();
        (!ids.is_empty()).then_some(ids)
    })
    .await;
    links.insert("events", events);
    let mut messages = Vec::new();
    for link in &links["Created"] {
        let path = format!("/v1/payment-links/{link}/messages");
        let body = json!({"channel": "email", "to": "ann@example.com"});
        let request = app.request(Method::POST, &path).json(&body);
        let message = send(request.header("idempotency-key", link)).await;
        messages.push([json!(link), message.expect(201).json()["id"].clone()]);
    }
    let mut links = json!(links);
    links["messages"] = json!(messages);
    let before = responses(&app).await;
    let found_nothing = run(&app, &links).await;

    let mut after = responses(&app).await;
    for (operation, statuses) in &before {
        for (status, count) in statuses {
            *after.get_mut(operation).unwrap().get_mut(status).unwrap() -= count;
        }
    }
    println!("{:>6} {:>5}", "calls", "2xx");
    let (mut all, mut successful) = (0, 0);
    let mut never_successful = Vec::new();
    for (method, path) in operations() {
        let statuses = after.remove(&(method.clone(), path.clone()));
        let statuses = statuses.unwrap_or_default();
        let calls: u64 = statuses.values().sum();
        let successes: u64 = statuses.range(200..300).map(|(_, count)| count).sum();
        (all, successful) = (all + calls, successful + successes);
        let share = successes * 100 / calls.max(1);
        println!("{calls:>6} {share:>4}% {method} {path} {statuses:?}");
        if successes == 0 {
            never_successful.push(format!("{method} {path}: {statuses:?}"));
        }
    }
    println!("{all:>6} {:>4}% in total", successful * 100 / all.max(1));
    assert!(found_nothing, "schemathesis found problems, see above");
    assert!(
        never_successful.is_empty(),
        "never successful: {never_successful:#?}"
    );
}
