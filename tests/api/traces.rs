//! Traces (W3C Trace Context): a caller's trace continues in the calls to Dojo and in the log.

use std::collections::BTreeSet;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{TestApp, eventually, pounds, send, ten_pounds, text};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The parts of the header `traceparent` of a call to Dojo.
fn parts(call: &Value) -> Vec<String> {
    let header = text(&call["headers"]["traceparent"]);
    let parts: Vec<_> = header.split('-').map(str::to_owned).collect();
    assert_eq!(parts.len(), 4, "{header}");
    parts
}

fn creation(app: &TestApp) -> RequestBuilder {
    app.request(Method::POST, "/v1/payment-links")
        .json(&ten_pounds("Order 1"))
}

/// The trace id on the line about each completed request for this route.
async fn logged(app: &TestApp, route: &str) -> Vec<String> {
    let lines = app.logged("request completed").await;
    lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["span"]["route"] == route)
        .map(|line| text(&line["span"]["trace_id"]).to_owned())
        .collect()
}

#[tokio::test]
async fn a_trace_continues_in_the_log_and_in_every_call_to_dojo() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    app.sandbox.clear("requests").await;
    let refund = format!("/v1/payment-links/{}/refunds", text(&link["id"]));
    let request = app
        .request(Method::POST, &refund)
        .header("traceparent", format!("00-{TRACE}-{SPAN}-01"))
        .header("tracestate", "vendor=opaque")
        .header("idempotency-key", "refund-1")
        .json(&json!({"amount": pounds(100)}));
    send(request).await.expect(200);

    let calls = [
        app.sandbox.requests("get").await,
        app.sandbox.requests("refund").await,
    ]
    .concat();
    assert!(calls.len() >= 2, "it reads the intent and refunds it");
    let mut spans = BTreeSet::from([SPAN.to_owned()]);
    for call in &calls {
        let parts = parts(call);
        assert_eq!([&*parts[0], &*parts[1], &*parts[3]], ["00", TRACE, "01"]);
        assert!(spans.insert(parts[2].clone()), "each call is a new span");
        assert!(call["headers"].get("tracestate").is_none());
    }
    let traces = logged(&app, "/v1/payment-links/{id}/refunds").await;
    assert_eq!(traces, [TRACE]);
}

#[tokio::test]
async fn a_request_without_a_valid_trace_begins_one() {
    let app = TestApp::start().await;
    let valid = format!("00-{TRACE}-{SPAN}-01");
    let requests = [
        creation(&app),
        creation(&app).header("traceparent", "00-xyz"),
        creation(&app).header("traceparent", format!("00-{}-{SPAN}-01", "0".repeat(32))),
        creation(&app)
            .header("traceparent", &valid)
            .header("traceparent", &valid),
    ];
    for request in requests {
        send(request).await.expect(201);
    }
    let sent: Vec<_> = app.sandbox.creations().await.iter().map(parts).collect();
    let traces: Vec<_> = sent.iter().map(|parts| parts[1].clone()).collect();
    let distinct: BTreeSet<_> = traces.iter().collect();
    assert_eq!(distinct.len(), 4, "{traces:?}");
    assert!(!traces.contains(&TRACE.to_owned()));
    assert_eq!(logged(&app, "/v1/payment-links").await, traces);
    assert!(sent.iter().all(|parts| parts[3] == "00"), "not sampled");
}

#[tokio::test]
async fn background_jobs_belong_to_no_trace() {
    let app = TestApp::quick(&[]).await;
    let request = creation(&app).header("traceparent", format!("00-{TRACE}-{SPAN}-01"));
    send(request).await.expect(201);
    app.all_are_due().await;
    let calls = eventually("the link is reconciled", async || {
        let calls = app.sandbox.requests("get").await;
        (!calls.is_empty()).then_some(calls)
    })
    .await;
    for call in calls {
        assert!(call["headers"].get("traceparent").is_none(), "{call}");
    }
}

#[tokio::test]
async fn a_request_has_one_log_line_with_its_link() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let id = text(&link["id"]);
    app.get(&format!("/v1/payment-links/{id}/events")).await;
    app.get("/v1/payment-links/plink_nonsense").await;
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured"}});
    app.deliver(&event.to_string()).await.expect(204);

    let logged_once = async |words: &[&str]| {
        eventually("the line is in the log", async || {
            let lines = app.logged("request completed").await;
            let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
            let found: Vec<_> = lines.iter().filter(has_all).collect();
            assert!(found.len() < 2, "{words:?}: {found:?}");
            Some(serde_json::from_str::<Value>(found.first()?).unwrap())
        })
        .await
    };
    let creation = logged_once(&[r#""status":201"#]).await;
    assert_eq!(creation["link_id"], id);
    assert!(creation["milliseconds"].is_number());
    assert_eq!(creation["span"]["client"], "bootstrap");
    assert_eq!(creation["span"]["method"], "POST");
    let timeline = logged_once(&["/events"]).await;
    assert_eq!(timeline["link_id"], id);
    let unknown = logged_once(&[r#""status":404"#]).await;
    assert_eq!(unknown.get("link_id"), None);
    let webhook = logged_once(&[r#""event_id":"evt_1""#]).await;
    assert_eq!(webhook["link_id"], id);
    assert_eq!(webhook["verdict"], "applied");
    assert_eq!(
        [&webhook["before"], &webhook["after"]],
        ["Created", "Captured"]
    );
}
