//! What every test runs on: a Postgres database, a sandbox and a service of its own, all real.

pub mod mail;
mod operations;
pub mod proxy;
pub mod receiver;
mod service;
pub mod slow_way;
#[cfg(target_os = "linux")]
pub mod tls;
mod trouble;

use std::{
    cell::RefCell,
    future::Future,
    sync::{LazyLock, OnceLock, mpsc},
    time::Duration,
};

use dojo_sandbox::{Sandbox, Settings, signature};
use openapi_guard::Guard;
use reqwest::{Method, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgPoolOptions};

pub use operations::{manual, pounds};
pub use service::{Service, program};
pub use test_postgres as postgres;
pub use trouble::{QUICK, SETTLE, for_each_case, received_at, stable_address};

/// The API key of every test service.
pub const API_KEY: &str = "dpl_test_0123456789abcdef0123456789abcdef";
/// The key of the account `default` at the sandbox.
pub const DOJO_KEY: &str = "sk_sandbox_test_5up3r53cr3t";
/// The keys of two further accounts there.
pub const LEEDS_KEY: &str = "sk_sandbox_leeds_5up3r53cr3t";
pub const YORK_KEY: &str = "sk_sandbox_york_5up3r53cr3t";
/// The secret that the sandbox signs its webhooks with.
pub const WEBHOOK_SECRET: &str = "whs_0123456789abcdef";

/// A service and everything around it.
pub struct TestApp {
    pub service: Service,
    pub sandbox: TestSandbox,
    pub database_url: String,
    pub pool: PgPool,
    settings: Vec<(String, String)>,
    http: reqwest::Client,
}

/// A response of the service.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

/// Whether the API's document lists this problem type with this status.
fn documented(status: u16, slug: &str) -> bool {
    let document = include_str!("../../../openapi.yaml");
    let mut lines = document.lines().map(str::trim);
    let begin = format!("| `{slug}` | ");
    lines.any(|line| {
        let statuses = line
            .strip_prefix(&begin)
            .and_then(|rest| rest.split(" |").next());
        statuses.is_some_and(|statuses| statuses.split(", ").any(|one| one == status.to_string()))
    })
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, self.text))
    }

    /// Checks the status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// The body of an error response, after checking everything that each of them has.
    #[track_caller]
    pub fn problem(self, status: u16, slug: &str) -> Value {
        let answer = self.expect(status);
        let problem = answer.json();
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(problem["type"], format!("/docs/problems#{slug}"));
        assert_eq!(problem["status"], status);
        assert!(documented(status, slug), "{slug} with {status}");
        assert_eq!(problem["requestId"], answer.header("x-request-id"));
        for field in ["title", "detail", "instance"] {
            assert!(
                problem[field].as_str().is_some_and(|text| !text.is_empty()),
                "{problem}"
            );
        }
        problem
    }

    /// A header's value, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or(""))
    }
}

impl TestApp {
    /// Starts everything, with the settings of production except for the addresses.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts everything, with these settings on top.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(new_database().await, settings).await
    }

    /// Starts everything, on this database.
    pub async fn on(database_url: String, settings: &[(&str, &str)]) -> Self {
        Self::around(TestSandbox::start().await, database_url, settings).await
    }

    /// Starts everything else, on this database and with this sandbox.
    pub async fn around(
        sandbox: TestSandbox,
        database_url: String,
        settings: &[(&str, &str)],
    ) -> Self {
        let service = Service::start(&database_url, &sandbox.url, settings).await;
        sandbox.send_webhooks_to(&service.url).await;
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect_lazy(&database_url)
            .unwrap();
        Self {
            service,
            sandbox,
            database_url,
            pool,
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            http: client(),
        }
    }

    /// The same app, with the test itself using this database.
    #[must_use]
    pub fn with_database(self, database_url: &str) -> Self {
        let pool = PgPoolOptions::new().max_connections(4);
        Self {
            pool: pool.connect_lazy(database_url).unwrap(),
            ..self
        }
    }

    /// A request with the test's API key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.service.url))
            .bearer_auth(API_KEY)
    }

    /// A request without any key.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.service.url))
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    /// Requests a link.
    pub async fn create(&self, body: &Value) -> Answer {
        send(self.request(Method::POST, "/v1/payment-links").json(body)).await
    }

    /// Requests a link with an idempotency key.
    pub async fn create_with_key(&self, key: &str, body: &Value) -> Answer {
        let request = self.request(Method::POST, "/v1/payment-links");
        send(request.header("idempotency-key", key).json(body)).await
    }

    /// Creates a link over 10.00 GBP.
    pub async fn created(&self) -> Value {
        self.create(&ten_pounds("Order 1")).await.expect(201).json()
    }

    /// The link as the service returns it now.
    pub async fn link(&self, id: &Value) -> Value {
        self.get(&format!("/v1/payment-links/{}", text(id)))
            .await
            .expect(200)
            .json()
    }

    /// Waits until the link has this status.
    pub async fn link_with_status(&self, id: &Value, status: &str) -> Value {
        eventually(&format!("the link is {status}"), async || {
            let link = self.link(id).await;
            (link["status"] == status).then_some(link)
        })
        .await
    }

    /// A link's timeline.
    pub async fn timeline(&self, id: &Value) -> Vec<Value> {
        let page = self
            .get(&format!("/v1/payment-links/{}/events", text(id)))
            .await;
        page.expect(200).json()["data"].as_array().unwrap().clone()
    }

    /// Delivers a webhook, signed with the test's secret.
    pub async fn deliver(&self, body: &str) -> Answer {
        self.deliver_signed(body, &signature::sign(WEBHOOK_SECRET, body.as_bytes()))
            .await
    }

    /// Delivers a webhook with this signature.
    pub async fn deliver_signed(&self, body: &str, signature: &str) -> Answer {
        let request = self.anonymous(Method::POST, "/webhooks/dojo");
        send(
            request
                .header("dojo-signature", signature)
                .body(body.to_owned()),
        )
        .await
    }

    /// The log lines with these words. Waits for the first, because the log comes through a pipe.
    pub async fn logged(&self, words: &str) -> Vec<String> {
        eventually(&format!("the log says {words:?}"), async || {
            let log = self.service.log();
            let lines: Vec<_> = log.lines().filter(|line| line.contains(words)).collect();
            (!lines.is_empty()).then(|| lines.into_iter().map(str::to_owned).collect())
        })
        .await
    }

    /// How many webhooks are stored.
    pub async fn stored_webhooks(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM webhook_events")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }
}

/// A sandbox, controlled over HTTP. If `DOJO_OPENAPI` names Dojo's OpenAPI file, a test fails if a request of the service
/// or a response of the sandbox violates it.
pub struct TestSandbox {
    pub url: String,
    http: reqwest::Client,
    guard: Guard,
    _sandbox: Sandbox,
}

impl TestSandbox {
    pub async fn start() -> Self {
        let sandbox = Sandbox::start(Settings {
            api_key: Some([DOJO_KEY, LEEDS_KEY, YORK_KEY].join(",")),
            // Nothing listens there. The service's address is set once it is known.
            webhook_url: Some("http://127.0.0.1:9/".to_owned()),
            webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
            ..Settings::default()
        })
        .await
        .unwrap();
        let guard = Guard::from_env().unwrap();
        if let Some(check) = guard.call_checker() {
            sandbox.watch(move |call| {
                // The Transactions API has a document of its own.
                if !call.request.uri().path().starts_with("/transactions") {
                    check(&call.request, call.response.as_ref());
                }
            });
        }
        Self {
            url: sandbox.url().to_owned(),
            http: client(),
            guard,
            _sandbox: sandbox,
        }
    }

    /// Points the webhook subscription to this service, through Dojo's own API.
    pub async fn send_webhooks_to(&self, service_url: &str) {
        let subscriptions = self.api(Method::GET, "/webhooks", &Value::Null).await;
        for subscription in subscriptions.as_array().unwrap() {
            let path = format!("/webhooks/{}", text(&subscription["id"]));
            let url = format!("{service_url}/webhooks/dojo");
            self.api(Method::PATCH, &path, &json!({"url": url})).await;
        }
    }

    /// Calls Dojo's API as the service does.
    pub async fn api(&self, method: Method, path: &str, body: &Value) -> Value {
        let answer = self.api_as(DOJO_KEY, method, path, body).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap_or_default()
    }

    /// Calls Dojo's API with this key.
    pub async fn api_as(&self, key: &str, method: Method, path: &str, body: &Value) -> Answer {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .header("authorization", format!("Basic {key}"))
            .header("version", "2026-02-27");
        send(if body.is_null() {
            request
        } else {
            request.json(body)
        })
        .await
    }

    /// `POST /_sandbox/…`
    pub async fn control(&self, path: &str, body: Value) -> Value {
        if path.ends_with("/status") {
            self.guard.excuse_status(&body["status"]);
        }
        let answer = send(
            self.http
                .post(format!("{}/_sandbox/{path}", self.url))
                .json(&body),
        )
        .await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap_or_default()
    }

    /// `GET /_sandbox/…`
    pub async fn look(&self, path: &str) -> Value {
        send(self.http.get(format!("{}/_sandbox/{path}", self.url)))
            .await
            .expect(200)
            .json()
    }

    /// Every intent, including canceled ones.
    pub async fn intents(&self) -> Vec<Value> {
        let intents = self.look("payment-intents").await;
        intents
            .as_array()
            .or(intents["data"].as_array())
            .unwrap()
            .clone()
    }

    /// The calls to create an intent that arrived.
    pub async fn creations(&self) -> Vec<Value> {
        let requests = self.look("requests?operation=create").await;
        requests
            .as_array()
            .or(requests["data"].as_array())
            .unwrap()
            .clone()
    }

    /// Pays with a card that succeeds.
    pub async fn pay(&self, payment_intent_id: &Value) {
        self.control(
            &format!("payment-intents/{}/pay", text(payment_intent_id)),
            json!({}),
        )
        .await;
    }

    /// Makes the next call of this operation fail in this way.
    pub async fn next(&self, operation: &str, kind: &str, more: Value) {
        let mut fault = json!({"operation": operation, "kind": kind, "count": 1});
        fault
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap_or_default());
        self.control("faults", fault).await;
    }
}

/// Sends a request and reads the response.
pub async fn send(request: RequestBuilder) -> Answer {
    try_send(request).await.expect("there is a whole response")
}

/// The same, for a service that may die meanwhile.
pub async fn try_send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok(Answer {
        status: response.status(),
        headers: response.headers().clone(),
        text: response.text().await?,
    })
}

/// A client that returns every response as it is.
pub fn client() -> reqwest::Client {
    // Any test may be the first. For all others this fails, which doesn't matter.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(Duration::from_mins(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap()
}

/// The body of a webhook that reports this status for a link's intent.
pub fn event(id: &str, link: &Value, status: &str) -> String {
    json!({
        "id": id,
        "event": "payment_intent.status_updated",
        "accountId": "acc_test",
        "createdAt": "2026-01-31T10:46:46.3202622Z",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": status, "captureMode": "Auto"},
    })
    .to_string()
}

/// The smallest request for a link.
pub fn ten_pounds(reference: &str) -> Value {
    json!({"amount": {"value": 1000, "currencyCode": "GBP"}, "reference": reference})
}

/// A JSON string's text.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not a string"))
}

/// Waits for a condition, for a minute at most.
pub async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_mins(1), what, condition).await
}

/// Waits for a condition, for this long at most.
pub async fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    within(limit, what, async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Waits for something to end, for this long at most.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| panic!("waited {limit:?} in vain: {what}"))
}

/// The server that all tests share, with a migrated database to copy.
fn shared_server() -> &'static postgres::Postgres {
    static SERVER: OnceLock<postgres::Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = postgres::Postgres::start();
        migrated_template(&server);
        server
    })
}

fn migrated_template(server: &postgres::Postgres) {
    let status = program()
        .arg("migrate")
        .env("DATABASE_URL", server.url("template1"))
        .status()
        .unwrap();
    assert!(status.success(), "the migrations run");
}

/// The port of the server that a database is on.
pub fn port_of(database_url: &str) -> u16 {
    let (_, rest) = database_url.rsplit_once(':').unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

/// The address of the same database through another port.
pub fn through(port: u16, database_url: &str) -> String {
    database_url.replace(
        &format!(":{}/", port_of(database_url)),
        &format!(":{port}/"),
    )
}

/// A new migrated database.
pub async fn new_database() -> String {
    let server = tokio::task::spawn_blocking(shared_server).await.unwrap();
    database_on(server, "TEMPLATE template1").await
}

/// A new database without migrations.
pub async fn empty_database() -> String {
    let server = tokio::task::spawn_blocking(shared_server).await.unwrap();
    database_on(server, "TEMPLATE template0").await
}

async fn database_on(server: &postgres::Postgres, template: &str) -> String {
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&server.url("postgres"))
        .await
        .unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name} {template}")))
        .execute(&mut connection)
        .await
        .unwrap();
    let url = server.url(&name);
    DATABASES.with_borrow_mut(|databases| databases.0.push((server.url("postgres"), name)));
    url
}

/// The databases of a test. Each test has a thread of its own. They are dropped when it ends, because the server may be in
/// memory.
#[derive(Default)]
struct Databases(Vec<(String, String)>);

thread_local! {
    static DATABASES: RefCell<Databases> = RefCell::default();
}

impl Drop for Databases {
    fn drop(&mut self) {
        for database in self.0.drain(..) {
            // It fails if the program ends, and so does the server.
            let _ = DROPPER.send(database);
        }
    }
}

/// Drops databases: a thread that ends can't wait for a connection.
static DROPPER: LazyLock<mpsc::Sender<(String, String)>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<(String, String)>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for (server, name) in receiver {
            let dropped = runtime.block_on(async {
                let statement = format!("DROP DATABASE {name} WITH (FORCE)");
                let mut connection = PgConnection::connect(&server).await?;
                sqlx::query(AssertSqlSafe(statement))
                    .execute(&mut connection)
                    .await
            });
            if let Err(error) = dropped {
                eprintln!("cannot drop {name}: {error}");
            }
        }
    });
    sender
});
