//! A sandbox of one's own, somebody to call it, and somebody to receive its webhooks.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use dojo_sandbox::document::Held;
use dojo_sandbox::{Sandbox, Settings};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The key that these tests use; the sandbox takes any that begins so.
pub(crate) const KEY: &str = "sk_sandbox_tests";

/// The secret that signs what a [`Receiver`] gets.
pub(crate) const SECRET: &str = "a-secret-for-tests";

/// One running sandbox and a client for it.
pub(crate) struct Rig {
    pub(crate) sandbox: Sandbox,
    client: reqwest::Client,
    held: Held,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// With everything that happens sent to this receiver.
    pub(crate) async fn telling(receiver: &Receiver) -> Self {
        let rig = Self::with(Settings {
            webhook_url: Some(receiver.url.clone()),
            webhook_secret: Some(SECRET.to_owned()),
            ..Settings::default()
        })
        .await;
        rig.control("webhook-retries", &json!({"baseDelayMs": 10}))
            .await;
        rig
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let sandbox = Sandbox::start(settings).await.expect("a sandbox");
        let held = Held::answers(&sandbox).expect("Dojo's OpenAPI file");
        // Each call on its own connection: a fault may cut it.
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .build()
            .expect("a client");
        Self {
            sandbox,
            client,
            held,
        }
    }

    pub(crate) async fn stop(self) {
        self.sandbox.stop().await;
    }

    /// A request without any header of Dojo's.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.sandbox.url()))
    }

    /// A request with key and version.
    pub(crate) fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path)
            .header("authorization", format!("Basic {KEY}"))
            .header("version", "2026-02-27")
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.api(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.api(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.api(Method::POST, path).json(body)).await
    }

    /// Creates an intent that must succeed.
    pub(crate) async fn create(&self, body: &Value) -> Value {
        let (status, intent) = self.post("/payment-intents", body).await;
        assert_eq!(status, 200, "{intent}");
        intent
    }

    /// Creates an intent for ten pounds and tells its id.
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

    /// Uses a control that must succeed.
    pub(crate) async fn control(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_control(path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    pub(crate) async fn try_control(&self, path: &str, body: &Value) -> (u16, Value) {
        if path.ends_with("/status") {
            self.held.excuse(&body["status"]);
        }
        answer(
            self.request(Method::POST, &format!("/_sandbox/{path}"))
                .json(body),
        )
        .await
    }

    pub(crate) async fn look(&self, path: &str) -> Value {
        answer(self.request(Method::GET, &format!("/_sandbox/{path}")))
            .await
            .1
    }

    pub(crate) async fn clear(&self, path: &str) {
        let (status, _) = answer(self.request(Method::DELETE, &format!("/_sandbox/{path}"))).await;
        assert_eq!(status, 204);
    }

    /// Pays as a customer would who has the right card.
    pub(crate) async fn pay(&self, id: &str) -> Value {
        let path = format!("/_sandbox/payment-intents/{id}/pay");
        let (status, intent) = answer(self.request(Method::POST, &path)).await;
        assert_eq!(status, 200, "{intent}");
        intent
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> (u16, Value) {
    read(request.send().await.expect("an answer")).await
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

/// Ten pounds that are captured only when the merchant says so.
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

/// Waits until a condition gives something, and no longer than ten seconds.
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
            "never happened: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A webhook as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) signature: Option<String>,
    pub(crate) raw: Bytes,
    pub(crate) body: Value,
}

impl Arrival {
    /// The event and what it says: `payment_intent.created Created`.
    pub(crate) fn says(&self) -> String {
        format!(
            "{} {}",
            text(&self.body["event"]),
            text(&self.body["data"]["paymentStatus"])
        )
    }
}

#[derive(Default)]
struct Mailbox {
    arrivals: Vec<Arrival>,
    refusals: usize,
}

/// Somebody who receives webhooks, and refuses some if told to.
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

    /// Answers 503 to the next so many.
    pub(crate) fn refuse(&self, count: usize) {
        self.mailbox.lock().expect("a mailbox").refusals = count;
    }

    /// All that arrived, the refused included.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.mailbox.lock().expect("a mailbox").arrivals.clone()
    }

    /// Waits for so many and no fewer.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Arrival> {
        eventually(&format!("{count} webhooks"), async || {
            Some(self.arrivals()).filter(|arrivals| arrivals.len() >= count)
        })
        .await
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
    mailbox.arrivals.push(Arrival {
        signature: signature.map(str::to_owned),
        raw,
        body,
    });
    if mailbox.refusals > 0 {
        mailbox.refusals -= 1;
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::NO_CONTENT
    }
}
