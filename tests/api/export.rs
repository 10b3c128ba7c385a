//! Spans are exported to an OpenTelemetry collector, by OTLP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind},
};
use prost::Message;
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::support::{
    API_KEY, DOJO_KEY, QUICK, TestApp, WEBHOOK_SECRET, eventually, pounds, program, send,
    ten_pounds, text, within,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// What the collector received: the headers and the body of each request.
type Received = Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>;

/// An OpenTelemetry collector.
struct Collector {
    url: String,
    received: Received,
}

/// What happened, as the collector got to know it.
#[derive(Debug)]
struct Exported {
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
    failed: bool,
}

impl Collector {
    async fn start() -> Self {
        let received = Received::default();
        let routes = Router::new()
            .route("/base/v1/traces", post(receive))
            .with_state(Arc::clone(&received));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, received }
    }

    /// Starts a service that exports to this collector without delay, with these settings on top.
    async fn app(&self, more: &[(&str, &str)]) -> TestApp {
        TestApp::with(&[&exporting_to(&self.url)[..], more].concat()).await
    }

    fn batches(&self) -> Vec<ResourceSpans> {
        let received = self.received.lock().unwrap();
        received
            .iter()
            .flat_map(|(_, request)| request.resource_spans.clone())
            .collect()
    }

    fn spans(&self) -> Vec<Exported> {
        self.batches()
            .into_iter()
            .flat_map(|batch| batch.scope_spans)
            .flat_map(|scope| scope.spans)
            .map(Exported::from)
            .collect()
    }

    /// The spans of a trace, once there is one with this name.
    async fn trace_with(&self, trace: &str, name: &str) -> Vec<Exported> {
        eventually(&format!("{name} is exported"), async || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace == trace);
            spans.iter().any(|span| span.name == name).then_some(spans)
        })
        .await
    }
}

async fn receive(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    received.lock().unwrap().push((headers, request));
    StatusCode::OK
}

impl From<Span> for Exported {
    fn from(span: Span) -> Self {
        Self {
            kind: span.kind(),
            failed: span.status.is_some_and(|status| status.code == 2),
            trace: hex::encode(span.trace_id),
            id: hex::encode(span.span_id),
            parent: hex::encode(span.parent_span_id),
            attributes: attributes(&span.attributes),
            name: span.name,
        }
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes
        .iter()
        .map(|KeyValue { key, value, .. }| {
            let value = value.as_ref().and_then(|value| value.value.as_ref());
            (key.clone(), text(value.unwrap()))
        })
        .collect()
}

fn exporting_to(url: &str) -> [(&str, &str); 2] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ]
}

/// A refund of 1.00 GBP whose caller's span has these flags.
fn traced_refund(app: &TestApp, link: &serde_json::Value, flags: &str) -> RequestBuilder {
    let path = format!("/v1/payment-links/{}/refunds", text(&link["id"]));
    app.request(Method::POST, &path)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-{flags}"))
        .header("idempotency-key", "refund-1")
        .json(&json!({"amount": pounds(100)}))
}

/// Waits until the log says that the request of this trace is completed.
async fn is_logged(app: &TestApp, trace: &str) {
    let trace_id = format!(r#""trace_id":"{trace}""#);
    eventually("the request is logged", async || {
        let log = app.service.log();
        let mut lines = log.lines().filter(|line| line.contains(&trace_id));
        lines
            .find(|line| line.contains("request completed"))
            .map(drop)
    })
    .await;
}

const REFUND: &str = "POST /v1/payment-links/{id}/refunds";

#[tokio::test]
async fn a_request_and_its_calls_to_dojo_are_spans_of_the_callers_trace() {
    let collector = Collector::start().await;
    let app = collector
        .app(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=payments"),
            ("OTEL_SERVICE_NAME", "links"),
        ])
        .await;
    let link = app.paid().await;
    app.sandbox.clear("requests").await;
    send(traced_refund(&app, &link, "01")).await.expect(200);

    let spans = collector.trace_with(TRACE, REFUND).await;
    let request = spans.iter().find(|span| span.name == REFUND).unwrap();
    assert_eq!(request.kind, SpanKind::Server);
    assert_eq!(request.parent, CALLER);
    assert_eq!(
        request.attributes,
        BTreeMap::from(
            [
                ("http.request.method", "POST"),
                ("http.route", "/v1/payment-links/{id}/refunds"),
                ("http.response.status_code", "200"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
        )
    );
    is_logged(&app, TRACE).await;

    for (operation, method) in [("get", "GET"), ("refund", "POST")] {
        let name = format!("dojo {operation}");
        let received = app.sandbox.requests(operation).await;
        assert!(!received.is_empty());
        for call in received {
            let header = text(&call["headers"]["traceparent"]).to_owned();
            let span = spans
                .iter()
                .find(|span| header == format!("00-{TRACE}-{}-01", span.id))
                .unwrap_or_else(|| panic!("{header} is not a span of {spans:?}"));
            assert_eq!((&*span.name, span.kind), (&*name, SpanKind::Client));
            assert_eq!(span.parent, request.id);
            assert_eq!(span.attributes["http.request.method"], method);
            assert_eq!(span.attributes["dojo.operation"], operation);
            assert_eq!(span.attributes["http.response.status_code"], "200");
            assert!(!span.failed);
        }
    }

    let resource = collector.batches()[0].resource.clone().unwrap();
    let resource = attributes(&resource.attributes);
    assert_eq!(resource["service.name"], "links");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["deployment.environment.name"], "sandbox");
    let received = collector.received.lock().unwrap();
    let (headers, _) = &received[0];
    assert_eq!(headers["x-tenant"], "payments");
    assert_eq!(headers["content-type"], "application/x-protobuf");
}

#[tokio::test]
async fn a_trace_that_its_caller_does_not_sample_is_not_exported() {
    let collector = Collector::start().await;
    let app = collector.app(&[]).await;
    let link = app.paid().await;
    app.sandbox.clear("requests").await;
    send(traced_refund(&app, &link, "00")).await.expect(200);
    app.get("/v1/operations").await.expect(200);
    eventually("a later span is exported", async || {
        let spans = collector.spans();
        let later = spans.iter().any(|span| span.name == "GET /v1/operations");
        later.then_some(())
    })
    .await;
    assert!(collector.spans().iter().all(|span| span.trace != TRACE));
    let calls = app.sandbox.requests("refund").await;
    assert!(!calls.is_empty());
    for call in calls {
        let header = text(&call["headers"]["traceparent"]);
        assert!(header.starts_with(&format!("00-{TRACE}-")), "{header}");
        assert!(header.ends_with("-00"), "{header}");
    }
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one_that_is_exported_and_logged() {
    let collector = Collector::start().await;
    let app = collector.app(&[]).await;
    app.get("/readyz").await.expect(200);
    app.create(&ten_pounds("Mrs Miller")).await.expect(201);
    let call = app.sandbox.creations().await.remove(0);
    let header = text(&call["headers"]["traceparent"]).to_owned();
    let trace = header.split('-').nth(1).unwrap();
    let spans = collector.trace_with(trace, "POST /v1/payment-links").await;
    let request = spans
        .iter()
        .find(|span| span.kind == SpanKind::Server)
        .unwrap();
    assert_eq!(request.parent, "");
    let call = spans
        .iter()
        .find(|span| span.name == "dojo create")
        .unwrap();
    assert_eq!(header, format!("00-{trace}-{}-01", call.id));
    let resource = collector.batches()[0].resource.clone().unwrap();
    let resource = attributes(&resource.attributes);
    assert_eq!(resource["service.name"], "dojo-payment-links");

    let all = format!("{:?}", collector.batches());
    assert!(!all.contains("readyz"), "probes are not exported: {all}");
    for secret in ["Miller", API_KEY, DOJO_KEY, WEBHOOK_SECRET, "pi_", "plink_"] {
        assert!(!all.contains(secret), "{secret} is in {all}");
    }
    is_logged(&app, trace).await;
}

#[tokio::test]
async fn a_failure_of_dojo_shows_in_the_spans() {
    let collector = Collector::start().await;
    let app = collector.app(&[]).await;
    app.sandbox
        .next("create", "status", json!({"status": 500}))
        .await;
    let request = app
        .request(Method::POST, "/v1/payment-links")
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .json(&ten_pounds("Order 1"));
    send(request).await.expect(504);
    let spans = collector.trace_with(TRACE, "POST /v1/payment-links").await;
    let find = |name| spans.iter().find(|span| span.name == name).unwrap();
    let (request, call) = (find("POST /v1/payment-links"), find("dojo create"));
    assert!(request.failed && call.failed);
    assert_eq!(request.attributes["http.response.status_code"], "504");
    assert_eq!(request.attributes["error.type"], "504");
    assert_eq!(call.attributes["http.response.status_code"], "500");
    assert_eq!(call.attributes["error.type"], "response_lost");
}

#[tokio::test]
async fn the_work_on_each_item_of_a_job_is_a_trace_of_its_own() {
    let collector = Collector::start().await;
    let settings = [&QUICK[..], &exporting_to(&collector.url)].concat();
    let app = TestApp::with(&settings).await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    app.all_are_due().await;
    let (job, call) = eventually("a reconciliation is exported", async || {
        let spans = collector.spans();
        let job = spans.iter().position(|span| {
            span.name == "job reconciliation" && spans.iter().any(|call| call.parent == span.id)
        })?;
        let call = spans.iter().position(|span| span.parent == spans[job].id)?;
        let mut spans: Vec<_> = spans.into_iter().map(Some).collect();
        Some((spans[job].take()?, spans[call].take()?))
    })
    .await;
    assert_eq!((job.kind, &*job.parent), (SpanKind::Internal, ""));
    assert_eq!(job.attributes["job_name"], "reconciliation");
    assert_eq!(job.attributes["account"], "default");
    assert_eq!((&*call.name, &call.trace), ("dojo get", &job.trace));
    let header = format!("00-{}-{}-01", call.trace, call.id);
    let received = app.sandbox.requests("get").await;
    assert!(
        received
            .iter()
            .any(|call| call["headers"]["traceparent"] == header)
    );
}

#[tokio::test]
async fn the_last_spans_are_exported_when_the_service_stops() {
    let collector = Collector::start().await;
    let mut app = collector
        .app(&[("OTEL_BSP_SCHEDULE_DELAY", "3600000")])
        .await;
    app.created().await;
    assert!(collector.spans().is_empty(), "they wait for an hour");
    app.service.terminate();
    assert!(app.service.ended().await.success());
    let spans = collector.spans();
    for name in ["POST /v1/payment-links", "dojo create"] {
        assert!(spans.iter().any(|span| span.name == name), "{spans:?}");
    }
}

#[tokio::test]
async fn a_collector_that_never_responds_delays_no_request_and_hardly_the_stop() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    // A queue of one batch, which is full at once.
    let small = [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
    ];
    let mut app = TestApp::with(&[&exporting_to(&url)[..], &small].concat()).await;
    app.created().await;
    let held = within(Duration::from_secs(20), "it exports", silent.accept()).await;
    let begun = Instant::now();
    for _ in 0..50 {
        app.get("/v1/payment-links").await.expect(200);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    let begun = Instant::now();
    app.service.terminate();
    assert!(app.service.ended().await.success());
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(9), "{elapsed:?}");
    app.logged("stopped before all spans were exported").await;
    drop(held);
}

#[tokio::test]
async fn an_unreachable_collector_is_logged_once() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let mut app = TestApp::with(&exporting_to(&url)).await;
    app.created().await;
    let words = "spans cannot be exported";
    app.logged(words).await;
    // The stop exports what is left, and fails again.
    app.created().await;
    app.service.terminate();
    assert!(app.service.ended().await.success());
    app.logged(r#""message":"stopped""#).await;
    let lines = app.logged(words).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("Connection refused"), "{lines:?}");
}

#[tokio::test]
async fn without_the_setting_nothing_is_exported() {
    let collector = Collector::start().await;
    // Without an endpoint, the other variables have no effect.
    let mut app = TestApp::with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector.url),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
    ])
    .await;
    app.sandbox.clear("requests").await;
    let link = app.paid().await;
    send(traced_refund(&app, &link, "01")).await.expect(200);
    app.service.terminate();
    assert!(app.service.ended().await.success());
    assert!(collector.received.lock().unwrap().is_empty());
    assert!(!app.service.log().contains("opentelemetry"));
}

#[test]
fn a_wrong_endpoint_prevents_the_start() {
    let wrong = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("DATABASE_URL", "postgres://127.0.0.1:9/x"),
        ("DOJO_API_KEY", DOJO_KEY),
    ];
    let output = program().arg("serve").envs(wrong).output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    let expected =
        "error: OTEL_EXPORTER_OTLP_ENDPOINT must be an http or https URL, not \"collector:4318\"";
    assert!(error.contains(expected), "{error}");
}
