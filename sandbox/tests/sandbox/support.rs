//! A sandbox with a client, and a receiver of webhooks.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use dojo_sandbox::{Sandbox, Settings};
use openapi_guard::Guard;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The API key of the tests. By default, the sandbox accepts any key with this prefix.
pub(crate) const KEY: &str = "sk_sandbox_tests";

/// The secret that signs the webhooks to a [`Receiver`].
pub(crate) const SECRET: &str = "a-secret-for-tests";

/// A running sandbox and a client for it. If `DOJO_OPENAPI` names Dojo's OpenAPI file, every response is checked
/// against it.
pub(crate) struct TestSandbox {
    pub(crate) server: Sandbox,
    client: reqwest::Client,
    guard: Guard,
}

impl TestSandbox {
    pub(crate) async fn start() -> Self {
        Self::with_settings(Settings::default()).await
    }

    /// Sends all webhooks to this receiver.
    pub(crate) async fn with_receiver(receiver: &Receiver) -> Self {
        let sandbox = Self::with_settings(Settings {
            webhook_url: Some(receiver.url.clone()),
            webhook_secret: Some(SECRET.to_owned()),
            ..Settings::default()
        })
        .await;
        sandbox
            .control("webhook-retries", &json!({"baseDelayMs": 10}))
            .await;
        sandbox
    }

    pub(crate) async fn with_settings(settings: Settings) -> Self {
        let server = Sandbox::start(settings).await.expect("a sandbox");
        let guard = Guard::from_env().expect("Dojo's OpenAPI file");
        if let Some(check) = guard.response_checker() {
            server.watch(move |call| check(&call.request, call.response.as_ref()));
        }
        // Each call uses a new connection, because a fault may close it.
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .build()
            .expect("a client");
        Self {
            server,
            client,
            guard,
        }
    }

    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }

    /// A request without Dojo's headers.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.server.url()))
    }

    /// A request with the API key and the version.
    pub(crate) fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path)
            .header("authorization", format!("Basic {KEY}"))
            .header("version", "2026-02-27")
    }

    /// A call with any key and version. `Value::Null` means no body.
    pub(crate) async fn call_as(
        &self,
        key: &str,
        version: &str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (u16, Value) {
        let request = self
            .request(method, path)
            .header("Authorization", format!("Basic {key}"))
            .header("Version", version)
            .header("IdempotencyKey", "once");
        send(if body.is_null() {
            request
        } else {
            request.json(body)
        })
        .await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        send(self.api(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        send(self.api(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        send(self.api(Method::POST, path).json(body)).await
    }

    /// Creates an intent. Panics on failure.
    pub(crate) async fn create(&self, body: &Value) -> Value {
        let (status, intent) = self.post("/payment-intents", body).await;
        assert_eq!(status, 200, "{intent}");
        intent
    }

    /// Creates an intent for ten pounds and returns its id.
    pub(crate) async fn create_simple(&self) -> String {
        id(&self.create(&ten_pounds()).await)
    }

    pub(crate) async fn intent(&self, id: &str) -> Value {
        let (status, intent) = self
            .get(&format!("/payment-intents/{id}?returnCanceled=true"))
            .await;
        assert_eq!(status, 200, "{intent}");
        intent
    }

    /// `POST /_sandbox/…`. Panics on failure.
    pub(crate) async fn control(&self, path: &str, body: &Value) -> Value {
        let (status, response) = self.control_response(path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {response}");
        response
    }

    /// `POST /_sandbox/…`
    pub(crate) async fn control_response(&self, path: &str, body: &Value) -> (u16, Value) {
        if path.ends_with("/status") {
            self.guard.excuse_status(&body["status"]);
        }
        send(
            self.request(Method::POST, &format!("/_sandbox/{path}"))
                .json(body),
        )
        .await
    }

    /// `GET /_sandbox/…`
    pub(crate) async fn control_get(&self, path: &str) -> Value {
        send(self.request(Method::GET, &format!("/_sandbox/{path}")))
            .await
            .1
    }

    /// `DELETE /_sandbox/…`. Panics on failure.
    pub(crate) async fn control_delete(&self, path: &str) {
        let (status, _) = send(self.request(Method::DELETE, &format!("/_sandbox/{path}"))).await;
        assert_eq!(status, 204);
    }

    /// Moves the clock to the beginning of a day, so that the day can't end during the test.
    pub(crate) async fn start_new_day(&self) {
        let now = text(&self.control_get("clock").await["now"]);
        let part = |range: std::ops::Range<usize>| now[range].parse::<u64>().expect("a number");
        let passed = part(11..13) * 3600 + part(14..16) * 60 + part(17..19);
        self.control("clock", &json!({"advanceSeconds": 86_400 - passed + 60}))
            .await;
    }

    /// Pays with the card that succeeds.
    pub(crate) async fn pay(&self, id: &str) -> Value {
        let path = format!("/_sandbox/payment-intents/{id}/pay");
        let (status, intent) = send(self.request(Method::POST, &path)).await;
        assert_eq!(status, 200, "{intent}");
        intent
    }
}

pub(crate) async fn send(request: RequestBuilder) -> (u16, Value) {
    read(request.send().await.expect("a response")).await
}

pub(crate) async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

pub(crate) fn id(object: &Value) -> String {
    text(&object["id"])
}

pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not text: {value}"))
        .to_owned()
}

pub(crate) fn ten_pounds() -> Value {
    json!({"amount": {"value": 1000, "currencyCode": "GBP"}, "reference": "Order 234"})
}

/// Ten pounds with manual capture.
pub(crate) fn ten_pounds_manual(action: &str) -> Value {
    let mut body = ten_pounds();
    body["captureMode"] = json!("Manual");
    body["autoExpireAction"] = json!(action);
    body
}

pub(crate) fn event_types(intent: &Value) -> Vec<&str> {
    let events = intent["paymentEvents"].as_array().expect("events");
    events
        .iter()
        .filter_map(|event| event["eventType"].as_str())
        .collect()
}

/// Waits until a condition returns a value. Panics after ten seconds.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "timed out waiting for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A webhook as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedWebhook {
    pub(crate) signature: Option<String>,
    pub(crate) raw: Bytes,
    pub(crate) body: Value,
}

impl ReceivedWebhook {
    /// The event and the status: `payment_intent.created Created`.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} {}",
            text(&self.body["event"]),
            text(&self.body["data"]["paymentStatus"])
        )
    }
}

#[derive(Default)]
struct Mailbox {
    received: Vec<ReceivedWebhook>,
    rejections: usize,
}

/// Receives webhooks, and rejects some on request.
pub(crate) struct Receiver {
    pub(crate) url: String,
    mailbox: Arc<Mutex<Mailbox>>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let mailbox = Arc::<Mutex<Mailbox>>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let routes = Router::new()
            .fallback(receive)
            .with_state(Arc::clone(&mailbox));
        let server = tokio::spawn(async move {
            axum::serve(listener, routes).await.expect("serving");
        });
        Self {
            url,
            mailbox,
            server,
        }
    }

    /// Rejects the next webhooks with 503.
    pub(crate) fn reject_next(&self, count: usize) {
        self.mailbox.lock().expect("a mailbox").rejections = count;
    }

    /// All webhooks, including rejected ones.
    pub(crate) fn received(&self) -> Vec<ReceivedWebhook> {
        self.mailbox.lock().expect("a mailbox").received.clone()
    }

    /// Waits until at least this many webhooks have arrived.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<ReceivedWebhook> {
        eventually(&format!("{count} webhooks"), async || {
            Some(self.received()).filter(|received| received.len() >= count)
        })
        .await
    }

    /// Waits like [`Receiver::wait_for`], and returns the summaries of the webhooks.
    pub(crate) async fn summaries(&self, count: usize) -> Vec<String> {
        let received = self.wait_for(count).await;
        received.iter().map(ReceivedWebhook::summary).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(
    State(mailbox): State<Arc<Mutex<Mailbox>>>,
    headers: HeaderMap,
    raw: Bytes,
) -> StatusCode {
    let signature = headers
        .get("dojo-signature")
        .and_then(|value| value.to_str().ok());
    let body = serde_json::from_slice(&raw).expect("JSON");
    let mut mailbox = mailbox.lock().expect("a mailbox");
    mailbox.received.push(ReceivedWebhook {
        signature: signature.map(str::to_owned),
        raw,
        body,
    });
    if mailbox.rejections > 0 {
        mailbox.rejections -= 1;
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::NO_CONTENT
    }
}
