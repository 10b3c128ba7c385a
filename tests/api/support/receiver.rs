//! A server that receives callbacks and responds as a test wants.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::post,
};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;

use super::{eventually, text};

/// A callback, as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Received {
    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }
}

/// A response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    /// How long to wait before it.
    pub delay: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
            delay: Duration::ZERO,
        }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

type Rule = dyn Fn(&Value) -> Reply + Send + Sync;

/// What a test needs of an event to judge the order.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub id: String,
    pub link: String,
    pub change: i64,
}

impl Seen {
    pub fn of(event: &Value) -> Self {
        Self {
            id: text(&event["id"]).to_owned(),
            link: text(&event["paymentLinkId"]).to_owned(),
            change: event["detail"]["change"].as_i64().unwrap(),
        }
    }
}

/// A running server. It responds with 204 unless it is told otherwise.
pub struct Receiver {
    pub url: String,
    state: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    received: Mutex<Vec<Received>>,
    rule: Mutex<Arc<Rule>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    /// If set, what arrived for the first time, instead of all that arrived.
    order: Mutex<Option<(HashSet<String>, Vec<Seen>)>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let accept: Arc<Rule> = Arc::new(|_| Reply::status(204));
        let state = Arc::new(Shared {
            received: Mutex::default(),
            rule: Mutex::new(accept),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            order: Mutex::default(),
        });
        let router = Router::new()
            .route("/hook", post(receive))
            .with_state(Arc::clone(&state));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state, server }
    }

    /// Responds to each event as this rule says, from now on.
    pub fn respond(&self, rule: impl Fn(&Value) -> Reply + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Arc::new(rule);
    }

    /// Keeps only what is needed to judge the order of very many events.
    pub fn keep_order_only(&self) {
        *self.state.order.lock().unwrap() = Some(Default::default());
    }

    /// How many different events were accepted.
    pub fn distinct(&self) -> usize {
        let order = self.state.order.lock().unwrap();
        order.as_ref().map_or(0, |(_, order)| order.len())
    }

    /// The events in the order in which each was accepted for the first time.
    pub fn first_accepted(&self) -> Vec<Seen> {
        let order = self.state.order.lock().unwrap();
        order
            .as_ref()
            .map(|(_, order)| order.clone())
            .unwrap_or_default()
    }

    /// Everything that arrived so far, in the order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// The types of the events that arrived so far.
    pub fn types(&self) -> Vec<String> {
        let received = self.received();
        received
            .iter()
            .map(|one| text(&one.event()["type"]).to_owned())
            .collect()
    }

    /// The greatest number of callbacks that were in flight at once.
    pub fn most_open(&self) -> usize {
        self.state.most_open.load(Ordering::SeqCst)
    }

    /// Waits until at least `count` callbacks have arrived. Returns all.
    pub async fn until(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} callbacks arrive"), async || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(State(state): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let open = state.open.fetch_add(1, Ordering::SeqCst) + 1;
    state.most_open.fetch_max(open, Ordering::SeqCst);
    let received = Received {
        headers,
        body: body.to_vec(),
    };
    let event = received.event();
    if let Some((ids, order)) = &mut *state.order.lock().unwrap() {
        let seen = Seen::of(&event);
        if ids.insert(seen.id.clone()) {
            order.push(seen);
        }
    } else {
        state.received.lock().unwrap().push(received);
    }
    let rule = Arc::clone(&state.rule.lock().unwrap());
    let reply = rule(&event);
    tokio::time::sleep(reply.delay).await;
    state.open.fetch_sub(1, Ordering::SeqCst);
    let status = StatusCode::from_u16(reply.status).unwrap();
    let mut response = (status, reply.body).into_response();
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}
