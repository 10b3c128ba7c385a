//! A proxy in front of the console that has people sign in, as many companies have one.

use std::sync::{Arc, LazyLock, Mutex};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::support::client;

/// The page of whoever isn't signed in at the proxy.
pub const SIGN_IN_FIRST: &str = "Sign in to the company first.";

static HTTP: LazyLock<reqwest::Client> = LazyLock::new(client);

/// The proxy. Dropping it closes everything.
pub struct SignInProxy {
    pub url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    console: String,
    /// Who is signed in at the proxy: a name, and groups.
    person: Mutex<Option<[&'static str; 2]>>,
}

impl SignInProxy {
    /// A proxy in front of the console at this URL. Nobody is signed in there yet.
    pub async fn to(console: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            console,
            person: Mutex::new(None),
        });
        let routes = axum::Router::new()
            .fallback(pass_on)
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            url,
            shared,
            server,
        }
    }

    /// Signs this person in, instead of whoever was.
    pub fn sign_in(&self, name: &'static str, groups: &'static str) {
        *self.shared.person.lock().unwrap() = Some([name, groups]);
    }

    pub fn sign_out(&self) {
        *self.shared.person.lock().unwrap() = None;
    }
}

impl Drop for SignInProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Passes a request on. Only the proxy says who sends it, whatever the request says.
async fn pass_on(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let person = *shared.person.lock().unwrap();
    let Some([name, groups]) = person else {
        return (StatusCode::UNAUTHORIZED, SIGN_IN_FIRST).into_response();
    };
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    headers.insert("x-forwarded-user", name.parse().unwrap());
    headers.insert("x-forwarded-groups", groups.parse().unwrap());
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let to_console = HTTP
        .request(parts.method, format!("{}{}", shared.console, parts.uri))
        .headers(headers)
        .body(body);
    let Ok(answer) = to_console.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(header::TRANSFER_ENCODING);
    match answer.bytes().await {
        Ok(body) => (status, headers, Body::from(body)).into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
