//! Delivers callbacks.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use reqwest::{
    Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    redirect, retry,
};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::{net::lookup_host, sync::Semaphore, task::spawn_blocking, time::timeout};
use url::{Host, Url};

use super::{
    signature::{ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER},
    target::{Allow, check_url},
};
use crate::retry_after::retry_after;

/// The part of a response's body that is kept, in bytes.
pub const LONGEST_BODY: usize = 1024;

/// The longest wait that an endpoint can ask for.
pub const LONGEST_WAIT: Duration = Duration::from_hours(24);

/// A [`CallbackClient`] that is made when it is first needed. Reading the system's certificate authorities takes time and
/// memory, and most services have no endpoints.
pub struct LazyClient {
    allow: Allow,
    timeouts: Timeouts,
    client: OnceLock<CallbackClient>,
}

impl LazyClient {
    #[must_use]
    pub fn new(allow: Allow, timeouts: Timeouts) -> Self {
        Self {
            allow,
            timeouts,
            client: OnceLock::new(),
        }
    }

    /// The addresses that callbacks may reach besides public ones.
    #[must_use]
    pub fn allow(&self) -> &Allow {
        &self.allow
    }

    /// The time limits of an attempt.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The client. Fails if the system's certificate authorities can't be read. The next call tries again.
    pub async fn get(&self) -> Result<&CallbackClient, Box<dyn Error + Send + Sync>> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let (allow, timeouts) = (self.allow.clone(), self.timeouts);
        // Reads files.
        let client = spawn_blocking(move || CallbackClient::new(allow, timeouts)).await??;
        Ok(self.client.get_or_init(|| client))
    }
}

/// Delivers callbacks, to permitted addresses only.
///
/// A host is resolved once per attempt. All addresses are checked, and the connection is made to one of them. It makes no
/// difference what DNS responds at another time. To be certain of that, an HTTP client only knows the addresses that were
/// checked. All clients share the TLS configuration, which is what is expensive to create.
#[derive(Clone)]
pub struct CallbackClient {
    allow: Allow,
    timeouts: Timeouts,
    tls: ClientConfig,
    resolver: Arc<dyn Resolve>,
}

/// How long an idle connection is kept. Common servers close theirs after 5 seconds, and what is sent at that moment is lost.
const LONGEST_IDLE: Duration = Duration::from_secs(2);

/// Connections to one endpoint that are used for several attempts.
///
/// They are used only while the host has the same addresses, all of them permitted.
pub struct Connections {
    /// The addresses, sorted, and the client that connects to them.
    current: Mutex<Option<(Vec<SocketAddr>, Client)>>,
    /// Limits the lookups of the host that are under way. One that hangs occupies a thread for longer than it is waited for, and
    /// all endpoints share the threads.
    lookups: Arc<Semaphore>,
}

/// How many lookups of an endpoint's host may be under way.
const LOOKUPS: usize = 8;

impl Default for Connections {
    fn default() -> Self {
        Self {
            current: Mutex::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}

/// The time limits of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For resolving the host, and again for connecting, including the TLS handshake.
    pub connect: Duration,
    /// For everything, until the end of the response.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(15),
        }
    }
}

/// A callback to deliver.
#[derive(Clone, Copy)]
pub struct Callback<'a> {
    pub url: &'a Url,
    /// The event's id, the same in every attempt. It consists of visible ASCII characters.
    pub id: &'a str,
    /// The time of the attempt, in seconds since 1970.
    pub timestamp: i64,
    /// JSON.
    pub body: &'a str,
    /// From [`signature::header`](super::signature::header).
    pub signature: &'a HeaderValue,
    /// A header that the endpoint's owner wants, for example to authenticate us. Ignored unless [`may_set`] accepts its
    /// name.
    pub header: Option<(&'a HeaderName, &'a HeaderValue)>,
}

/// The URL may contain a secret, and the body customers' data.
impl fmt::Debug for Callback<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("id", &self.id)
            .field("timestamp", &self.timestamp)
            .finish_non_exhaustive()
    }
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The response's status, if one arrived.
    pub status: Option<u16>,
    pub outcome: Outcome,
    /// The beginning of the response's body: at most [`LONGEST_BODY`] bytes, without NUL characters. `None` if it is empty.
    pub body: Option<String>,
    /// How long the endpoint asks us to wait, at most [`LONGEST_WAIT`].
    pub retry_after: Option<Duration>,
    pub duration: Duration,
}

/// The outcome's name, with the response's status if there was a response.
impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.outcome.name())?;
        match self.status {
            Some(status) => write!(f, " ({status})"),
            None => Ok(()),
        }
    }
}

/// The body is left out, because it may quote the callback.
impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("status", &self.status)
            .field("outcome", &self.outcome)
            .field("retry_after", &self.retry_after)
            .field("duration", &self.duration)
            .finish_non_exhaustive()
    }
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Status 2xx, even if the body was cut off or late.
    Delivered,
    /// Status 410: the endpoint wants no more callbacks.
    Gone,
    /// Any other status.
    Rejected(u16),
    /// Status 3xx. Redirects aren't followed: they could lead anywhere, with the signature and the extra header.
    Redirected(u16),
    /// The URL, or an address that its host has, isn't permitted. Nothing was sent.
    NotAllowed,
    /// The host has no address, or DNS didn't respond in time. Nothing was sent.
    Unresolvable,
    /// No connection could be established. Nothing was sent.
    NotReached,
    /// No TLS session could be established, for example because the certificate has expired. Nothing was sent.
    TlsFailed,
    /// The response's status didn't arrive within the time limit. The endpoint may have processed the callback.
    TimedOut,
    /// The connection broke before the response's status arrived. The endpoint may have processed the callback.
    ResponseLost,
}

impl Outcome {
    /// A name for metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::Rejected(_) => "rejected",
            Self::Redirected(_) => "redirected",
            Self::NotAllowed => "not_allowed",
            Self::Unresolvable => "unresolvable",
            Self::NotReached => "not_reached",
            Self::TlsFailed => "tls_failed",
            Self::TimedOut => "timed_out",
            Self::ResponseLost => "response_lost",
        }
    }

    fn of_status(status: StatusCode) -> Self {
        match status {
            status if status.is_success() => Self::Delivered,
            StatusCode::GONE => Self::Gone,
            status if status.is_redirection() => Self::Redirected(status.as_u16()),
            status => Self::Rejected(status.as_u16()),
        }
    }

    fn of_error(error: &reqwest::Error) -> Self {
        // A connection that isn't established in time is both a connection error and a timeout.
        if error.is_connect() && is_of_tls(error) {
            Self::TlsFailed
        } else if error.is_connect() || error.is_builder() {
            Self::NotReached
        } else if error.is_timeout() {
            Self::TimedOut
        } else {
            Self::ResponseLost
        }
    }
}

/// Whether TLS is the cause of an error.
fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    // The error inside an I/O error isn't its source.
    let inside = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || inside.is_some_and(|inside| is_of_tls(inside))
        || error.source().is_some_and(is_of_tls)
}

/// Whether an endpoint may have a header of its own with this name. The others determine how a request is read, or are ours.
#[must_use]
pub fn may_set(name: &HeaderName) -> bool {
    const RESERVED: [HeaderName; 12] = [
        header::ACCEPT_ENCODING,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::EXPECT,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::USER_AGENT,
    ];

    let text = name.as_str();
    !RESERVED.contains(name)
        && !["webhook-", "proxy-"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        && !matches!(text, "keep-alive" | "http2-settings")
}

impl CallbackClient {
    /// Creates a client that trusts the system's certificate authorities, which it reads now.
    pub fn new(allow: Allow, timeouts: Timeouts) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        let client = Self {
            allow,
            timeouts,
            tls,
            resolver: Arc::new(System),
        };
        // So that a mistake in the configuration is noticed now, and not at the first callback.
        client.connecting_to(Vec::new(), 0)?;
        Ok(client)
    }

    /// Attempts to deliver a callback, once. Without `connections`, over a connection of its own.
    pub async fn deliver(
        &self,
        delivery: Callback<'_>,
        connections: Option<&Connections>,
    ) -> Attempt {
        let start = Instant::now();
        let mut attempt = match self.response(delivery, connections, start).await {
            Ok(response) => read(response).await,
            Err(outcome) => Attempt {
                status: None,
                outcome,
                body: None,
                retry_after: None,
                duration: Duration::ZERO,
            },
        };
        attempt.duration = start.elapsed();
        attempt
    }

    async fn response(
        &self,
        delivery: Callback<'_>,
        connections: Option<&Connections>,
        start: Instant,
    ) -> Result<Response, Outcome> {
        // The exceptions may have changed since the endpoint was created.
        check_url(delivery.url, &self.allow).map_err(|_| Outcome::NotAllowed)?;
        let addresses = self.addresses(delivery.url, connections).await?;
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = delivery.header.filter(|(name, _)| may_set(name)) {
            let mut value = value.clone();
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let client = match connections {
            Some(connections) => self.over(connections, addresses),
            None => self.connecting_to(addresses, 0),
        };
        client
            .map_err(|error| Outcome::of_error(&error))?
            .post(delivery.url.clone())
            .headers(headers)
            .header(header::CONTENT_TYPE, "application/json")
            .header(ID_HEADER, delivery.id)
            .header(TIMESTAMP_HEADER, delivery.timestamp)
            .header(SIGNATURE_HEADER, delivery.signature)
            .body(delivery.body.to_owned())
            .timeout(self.timeouts.total.saturating_sub(start.elapsed()))
            .send()
            .await
            .map_err(|error| Outcome::of_error(&error))
    }

    /// Resolves a URL's host. If any of its addresses isn't permitted, none is used: a mix of public and private addresses
    /// is either a mistake or an attack.
    async fn addresses(
        &self,
        url: &Url,
        connections: Option<&Connections>,
    ) -> Result<Vec<SocketAddr>, Outcome> {
        let (host, port) = url
            .host()
            .zip(url.port_or_known_default())
            .ok_or(Outcome::NotAllowed)?;
        let addresses: Vec<SocketAddr> = match host {
            Host::Ipv4(ip) => vec![(ip, port).into()],
            Host::Ipv6(ip) => vec![(ip, port).into()],
            Host::Domain(name) => {
                let name = name.parse().map_err(|_| Outcome::Unresolvable)?;
                let lookups = connections.map(|connections| Arc::clone(&connections.lookups));
                let resolver = Arc::clone(&self.resolver);
                // In a task of its own, which holds the permit until the lookup has really ended.
                let lookup = tokio::spawn(async move {
                    let _permit = match lookups {
                        Some(lookups) => lookups.acquire_owned().await.ok(),
                        None => None,
                    };
                    resolver.resolve(name).await
                });
                let mut addresses: Vec<_> = timeout(self.timeouts.connect, lookup)
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .and_then(Result::ok)
                    .ok_or(Outcome::Unresolvable)?
                    .collect();
                for address in &mut addresses {
                    address.set_port(port);
                }
                addresses
            }
        };
        if addresses.is_empty() {
            return Err(Outcome::Unresolvable);
        }
        let host = url.host_str().unwrap_or_default();
        let is_permitted = |address: &SocketAddr| self.allow.permits(host, address.ip(), port);
        if addresses.iter().all(is_permitted) {
            Ok(addresses)
        } else {
            Err(Outcome::NotAllowed)
        }
    }

    /// The client that has the connections to these addresses.
    fn over(
        &self,
        connections: &Connections,
        addresses: Vec<SocketAddr>,
    ) -> Result<Client, reqwest::Error> {
        // DNS may return them in any order.
        let mut sorted = addresses.clone();
        sorted.sort_unstable();
        let mut current = connections
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = &*current
            && *known == sorted
        {
            return Ok(client.clone());
        }
        let client = self.connecting_to(addresses, usize::MAX)?;
        *current = Some((sorted, client.clone()));
        Ok(client)
    }

    /// A client that connects to one of these addresses whatever the name, and keeps up to `idle` connections. If the URL's host
    /// is an address, reqwest connects to it without resolving anything.
    fn connecting_to(
        &self,
        addresses: Vec<SocketAddr>,
        idle: usize,
    ) -> Result<Client, reqwest::Error> {
        Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .dns_resolver(Pinned(addresses))
            .connect_timeout(self.timeouts.connect)
            .timeout(self.timeouts.total)
            .user_agent(concat!(
                env!("CARGO_PKG_NAME"),
                "/",
                env!("CARGO_PKG_VERSION")
            ))
            .http1_only()
            // A proxy would resolve the host again.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            // Another crate may enable these features, and a small body can expand to a very large one.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .pool_max_idle_per_host(idle)
            .pool_idle_timeout(LONGEST_IDLE)
            .build()
    }
}

/// Reads the beginning of a response. Dropping the rest closes the connection.
async fn read(mut response: Response) -> Attempt {
    // A character that begins within the limit ends at most three bytes after it.
    const ENOUGH: usize = LONGEST_BODY + 3;

    let status = response.status();
    let outcome = Outcome::of_status(status);
    let retry_after = retry_after(&response, LONGEST_WAIT);
    let mut bytes = Vec::new();
    while bytes.len() < ENOUGH {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let wanted = chunk.len().min(ENOUGH - bytes.len());
                bytes.extend_from_slice(&chunk[..wanted]);
            }
            // The status is what counts. A body that is cut off or late changes nothing.
            Ok(None) | Err(_) => break,
        }
    }
    Attempt {
        status: Some(status.as_u16()),
        outcome,
        body: text(&bytes),
        retry_after,
        duration: Duration::ZERO,
    }
}

/// PostgreSQL's text can't contain NUL characters, so they are replaced too.
fn text(bytes: &[u8]) -> Option<String> {
    let mut text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
    text.truncate(text.floor_char_boundary(LONGEST_BODY));
    (!text.is_empty()).then_some(text)
}

/// Resolves names as the system does.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        async move {
            let addresses: Vec<_> = lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        }
        .boxed()
    }
}

/// Responds with the addresses that were checked.
struct Pinned(Vec<SocketAddr>);

impl Resolve for Pinned {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses = self.0.clone();
        async move { Ok(Box::new(addresses.into_iter()) as Addrs) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        net::{IpAddr, Ipv4Addr},
        process::Stdio,
        sync::{
            LazyLock,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use proptest::prelude::*;
    use rustls::RootCertStore;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        process::Command,
        task::JoinHandle,
        time::sleep,
    };

    use super::*;
    use crate::callbacks::signature::{self, SigningSecret};

    const BODY: &str = r#"{"customer":"Ada Lovelace"}"#;

    /// Trusts nobody. Reading the system's certificates would take long.
    static TLS: LazyLock<ClientConfig> = LazyLock::new(|| {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    });

    /// Resolves every name to the same addresses, and counts how often it is asked.
    #[derive(Default)]
    struct Fake {
        addresses: Vec<SocketAddr>,
        asked: AtomicUsize,
    }

    impl Fake {
        fn new(addresses: &[&str]) -> Arc<Self> {
            let addresses = addresses.iter().map(|ip| {
                let ip: IpAddr = ip.parse().unwrap();
                // Not the port that a request should go to.
                SocketAddr::new(ip, 9)
            });
            Arc::new(Self {
                addresses: addresses.collect(),
                asked: AtomicUsize::new(0),
            })
        }
    }

    impl Resolve for Fake {
        fn resolve(&self, name: Name) -> Resolving {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Pinned(self.addresses.clone()).resolve(name)
        }
    }

    /// Never responds.
    struct Stuck;

    impl Resolve for Stuck {
        fn resolve(&self, _: Name) -> Resolving {
            std::future::pending().boxed()
        }
    }

    fn client(allow: &str) -> CallbackClient {
        CallbackClient {
            allow: allow.parse().unwrap(),
            timeouts: Timeouts {
                connect: Duration::from_secs(20),
                total: Duration::from_secs(30),
            },
            tls: TLS.clone(),
            resolver: Arc::new(System),
        }
    }

    fn resolving(allow: &str, resolver: Arc<dyn Resolve>) -> CallbackClient {
        CallbackClient {
            resolver,
            ..client(allow)
        }
    }

    fn hasty(client: CallbackClient) -> CallbackClient {
        CallbackClient {
            timeouts: Timeouts {
                connect: Duration::from_millis(400),
                total: Duration::from_millis(800),
            },
            ..client
        }
    }

    async fn deliver(client: &CallbackClient, url: &str) -> Attempt {
        deliver_with(client, url, None).await
    }

    async fn deliver_with(
        client: &CallbackClient,
        url: &str,
        header: Option<(&HeaderName, &HeaderValue)>,
    ) -> Attempt {
        deliver_over(client, url, header, None).await
    }

    async fn deliver_over(
        client: &CallbackClient,
        url: &str,
        header: Option<(&HeaderName, &HeaderValue)>,
        connections: Option<&Connections>,
    ) -> Attempt {
        let callback = Callback {
            url: &Url::parse(url).unwrap(),
            id: "evt_1",
            timestamp: 1_614_265_330,
            body: BODY,
            signature: &HeaderValue::from_static("v1,c2lnbmF0dXJl"),
            header,
        };
        client.deliver(callback, connections).await
    }

    /// A server that accepts everything, and the number of connections to it so far.
    async fn keeps_alive() -> (u16, Arc<AtomicUsize>) {
        let (listener, port) = listen().await;
        let connections = Arc::new(AtomicUsize::new(0));
        let opened = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                opened.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while stream.read_buf(&mut request).await.unwrap() > 0 {
                        if request.ends_with(BODY.as_bytes()) {
                            request.clear();
                            let response = b"HTTP/1.1 204 No Content\r\n\r\n";
                            stream.write_all(response).await.unwrap();
                        }
                    }
                });
            }
        });
        (port, connections)
    }

    #[tokio::test]
    async fn a_connection_is_reused_while_the_addresses_stay_the_same() {
        let (port, opened) = keeps_alive().await;
        let allow = format!("hook.test:{port},127.0.0.1:{port},[::1]:{port}");
        let url = format!("http://hook.test:{port}/");
        let at = |addresses: &[&str]| CallbackClient {
            resolver: Fake::new(addresses),
            ..client(&allow)
        };
        let connections = Connections::default();
        for _ in 0..3 {
            let client = at(&["127.0.0.1"]);
            let attempt = deliver_over(&client, &url, None, Some(&connections)).await;
            assert_eq!(attempt.outcome, Outcome::Delivered);
        }
        assert_eq!(opened.load(Ordering::SeqCst), 1);
        // An open connection doesn't help if the host has moved to where nothing may be sent.
        let moved = at(&["127.0.0.2"]);
        let attempt = deliver_over(&moved, &url, None, Some(&connections)).await;
        assert_eq!(attempt.outcome, Outcome::NotAllowed);
        let other = at(&["127.0.0.1", "::1"]);
        let attempt = deliver_over(&other, &url, None, Some(&connections)).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(opened.load(Ordering::SeqCst), 2);
        let attempt = deliver(&other, &url).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(opened.load(Ordering::SeqCst), 3);
    }

    async fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// Accepts a connection and reads the request.
    async fn accept(listener: &TcpListener) -> (TcpStream, String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(BODY.as_bytes()) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        (stream, String::from_utf8(request).unwrap())
    }

    /// Responds to one request, and returns it.
    async fn serve(response: impl Into<Vec<u8>>) -> (u16, JoinHandle<String>) {
        let response = response.into();
        let (listener, port) = listen().await;
        let request = tokio::spawn(async move {
            let (mut stream, request) = accept(&listener).await;
            stream.write_all(&response).await.unwrap();
            stream.shutdown().await.unwrap();
            request
        });
        (port, request)
    }

    /// The result of an attempt that gets this response.
    async fn attempt(response: impl Into<Vec<u8>>) -> Attempt {
        let (port, request) = serve(response).await;
        let client = client(&format!("127.0.0.1:{port}"));
        let attempt = deliver(&client, &format!("http://127.0.0.1:{port}/")).await;
        request.await.unwrap();
        attempt
    }

    fn respond(status: u16, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
    }

    #[tokio::test]
    async fn a_callback_is_delivered() {
        let (port, request) = serve(respond(200, "", "thanks")).await;
        let client = client(&format!("127.0.0.1:{port}"));
        let (name, value) = (
            header::AUTHORIZATION,
            HeaderValue::from_static("Bearer s3cret"),
        );
        let url = format!("http://127.0.0.1:{port}/hook?a=b");
        let attempt = deliver_with(&client, &url, Some((&name, &value))).await;
        assert_eq!(attempt.status, Some(200));
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(attempt.body.as_deref(), Some("thanks"));
        assert_eq!(attempt.retry_after, None);
        assert!(!attempt.duration.is_zero());

        let request = request.await.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.lines().collect();
        assert_eq!(lines.remove(0), "POST /hook?a=b HTTP/1.1");
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "accept: */*",
                "authorization: Bearer s3cret",
                &format!("content-length: {}", BODY.len()),
                "content-type: application/json",
                &format!("host: 127.0.0.1:{port}"),
                &format!(
                    "user-agent: {}/{}",
                    env!("CARGO_PKG_NAME"),
                    env!("CARGO_PKG_VERSION")
                ),
                "webhook-id: evt_1",
                "webhook-signature: v1,c2lnbmF0dXJl",
                "webhook-timestamp: 1614265330",
            ]
        );
        assert_eq!(body, BODY);
    }

    #[tokio::test]
    async fn a_header_of_the_endpoint_replaces_none_of_ours() {
        let value = HeaderValue::from_static("evil");
        for name in [
            "webhook-id",
            "host",
            "content-length",
            "transfer-encoding",
            "user-agent",
        ] {
            let (port, request) = serve(respond(204, "", "")).await;
            let client = client(&format!("127.0.0.1:{port}"));
            let name = HeaderName::from_static(name);
            assert!(!may_set(&name));
            let url = format!("http://127.0.0.1:{port}/");
            deliver_with(&client, &url, Some((&name, &value))).await;
            assert!(!request.await.unwrap().contains("evil"));
        }
        assert!(may_set(&header::AUTHORIZATION));
        assert!(may_set(&HeaderName::from_static("x-api-key")));
    }

    #[tokio::test]
    async fn the_status_decides() {
        for (status, outcome) in [
            (200, Outcome::Delivered),
            (202, Outcome::Delivered),
            (299, Outcome::Delivered),
            (304, Outcome::Redirected(304)),
            (400, Outcome::Rejected(400)),
            (404, Outcome::Rejected(404)),
            (410, Outcome::Gone),
            (429, Outcome::Rejected(429)),
            (500, Outcome::Rejected(500)),
            (599, Outcome::Rejected(599)),
        ] {
            let attempt = attempt(respond(status, "", "")).await;
            assert_eq!(attempt.outcome, outcome);
            assert_eq!(attempt.status, Some(status));
            assert_eq!(attempt.body, None);
        }
        let attempt = attempt(respond(503, "retry-after: 120\r\n", "busy")).await;
        assert_eq!(attempt.retry_after, Some(Duration::from_mins(2)));
        assert_eq!(attempt.body.as_deref(), Some("busy"));
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let (elsewhere, port) = listen().await;
        for status in [301, 302, 303, 307, 308] {
            let location = format!("location: http://127.0.0.1:{port}/\r\n");
            let (hook, _) = serve(respond(status, &location, "")).await;
            let client = client(&format!("127.0.0.1:{port},127.0.0.1:{hook}"));
            let attempt = deliver(&client, &format!("http://127.0.0.1:{hook}/")).await;
            assert_eq!(attempt.outcome, Outcome::Redirected(status));
        }
        assert!(elsewhere.accept().now_or_never().is_none());
    }

    #[tokio::test]
    async fn the_rest_of_a_large_body_is_not_read() {
        let (listener, port) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = accept(&listener).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            // The system buffers some megabytes, so that a body of a certain length might be written completely.
            while stream.write_all(&[b'a'; 1 << 14]).await.is_ok() {}
        });
        let client = client(&format!("127.0.0.1:{port}"));
        let attempt = deliver(&client, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(attempt.body.unwrap(), "a".repeat(LONGEST_BODY));
        // The connection was closed, although the body would have gone on.
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_compressed_body_is_not_expanded() {
        let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        let mut response = respond(200, "content-encoding: gzip\r\n", "0123456789").into_bytes();
        let start = response.len() - gzip.len();
        response[start..].copy_from_slice(&gzip);
        let attempt = attempt(response).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(attempt.body, text(&gzip));
    }

    #[tokio::test]
    async fn a_server_that_never_responds_is_abandoned() {
        let (listener, port) = listen().await;
        let server = tokio::spawn(async move { accept(&listener).await });
        let client = hasty(client(&format!("127.0.0.1:{port}")));
        let attempt = deliver(&client, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::TimedOut);
        assert_eq!(attempt.status, None);
        assert!(attempt.duration >= client.timeouts.total);
        assert!(attempt.duration < Duration::from_secs(10));
        drop(server.await.unwrap());
    }

    #[tokio::test]
    async fn a_body_that_arrives_too_slowly_is_cut_off() {
        let (listener, port) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = accept(&listener).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
                .await
                .unwrap();
            while stream.write_all(b"a").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        });
        let client = hasty(client(&format!("127.0.0.1:{port}")));
        let attempt = deliver(&client, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(attempt.status, Some(200));
        assert!(attempt.body.unwrap().starts_with('a'));
        assert!(attempt.duration < Duration::from_secs(10));
        // The connection was closed.
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_broken_connection_loses_the_response() {
        for (response, status) in [
            ("", None),
            ("HTTP/1.1 200 OK\r\ncontent-", None),
            ("nonsense\r\n\r\n", None),
        ] {
            let attempt = attempt(response).await;
            assert_eq!(attempt.outcome, Outcome::ResponseLost, "{response:?}");
            assert_eq!(attempt.status, status);
        }
        let cut_off = attempt("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
        assert_eq!(cut_off.outcome, Outcome::Delivered);
    }

    #[tokio::test]
    async fn a_closed_port_is_not_reached() {
        let (listener, port) = listen().await;
        drop(listener);
        let client = client(&format!("127.0.0.1:{port}"));
        let attempt = deliver(&client, &format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::NotReached);
    }

    #[tokio::test]
    async fn a_tls_handshake_names_the_host_and_must_succeed() {
        let (listener, port) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = vec![0; 4096];
            let length = stream.read(&mut hello).await.unwrap();
            hello.truncate(length);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            hello
        });
        let fake = Fake::new(&["127.0.0.1"]);
        let client = resolving(&format!("127.0.0.1:{port}"), fake);
        let attempt = deliver(&client, &format!("https://hooks.test:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::TlsFailed);
        let hello = server.await.unwrap();
        assert_eq!(hello[0], 22, "a TLS handshake");
        assert!(hello.windows(10).any(|part| part == b"hooks.test"));
        assert!(!hello.windows(8).any(|part| part == b"customer"));
    }

    #[tokio::test]
    async fn a_tls_handshake_that_stalls_is_not_reached() {
        let (listener, port) = listen().await;
        let client = hasty(client(&format!("127.0.0.1:{port}")));
        let attempt = deliver(&client, &format!("https://127.0.0.1:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::NotReached);
        drop(listener);
    }

    #[tokio::test]
    async fn addresses_without_an_entry_are_refused() {
        let (listener, port) = listen().await;
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
            "localhost",
            "localhost.",
            "a.localhost",
        ] {
            let other = port.wrapping_add(1).max(1);
            for allow in [
                "",
                "0.0.0.0/0,::/0",
                &format!("127.0.0.1:{other},localhost:{other}"),
            ] {
                let attempt = deliver(&client(allow), &format!("https://{host}:{port}/")).await;
                assert_eq!(attempt.outcome, Outcome::NotAllowed, "{host} {allow}");
                assert_eq!(attempt.status, None);
            }
        }
        assert!(listener.accept().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_forbidden_address_is_refused() {
        let (listener, port) = listen().await;
        let url = format!("https://hooks.test:{port}/");
        let own = format!("127.0.0.1:{port}");
        for (addresses, allow) in [
            (&["127.0.0.1"][..], ""),
            (&["127.0.0.1"], "hooks.test,126.0.0.0/7"),
            (&["::ffff:127.0.0.1"], ""),
            (&["10.0.0.1"], ""),
            (&["169.254.169.254"], "hooks.test,169.254.0.0/16"),
            // One address is permitted, the other one isn't.
            (&["127.0.0.1", "10.0.0.1"], &own),
            (&["10.0.0.1", "127.0.0.1"], &own),
        ] {
            let fake = Fake::new(addresses);
            let attempt = deliver(&resolving(allow, fake.clone()), &url).await;
            assert_eq!(
                attempt.outcome,
                Outcome::NotAllowed,
                "{addresses:?} {allow}"
            );
            assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        }
        assert!(listener.accept().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_host_is_resolved_once_and_the_checked_address_is_used() {
        let (port, request) = serve(respond(204, "", "")).await;
        let fake = Fake::new(&["127.0.0.1"]);
        let client = resolving(&format!("hooks.test:{port},127.0.0.1:{port}"), fake.clone());
        let attempt = deliver(&client, &format!("http://hooks.test:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        assert!(
            request
                .await
                .unwrap()
                .contains(&format!("host: hooks.test:{port}\r\n"))
        );

        // Nothing is left over for the next attempt, which resolves the host again.
        let (port, request) = serve(respond(204, "", "")).await;
        let fake = Fake::new(&["10.0.0.1"]);
        let client = CallbackClient {
            resolver: fake.clone(),
            ..client
        };
        let attempt = deliver(&client, &format!("https://hooks.test:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::NotAllowed);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        request.abort();
    }

    #[tokio::test]
    async fn an_entry_permits_localhost() {
        let (port, request) = serve(respond(204, "", "")).await;
        let client = client(&format!("localhost:{port}"));
        let attempt = deliver(&client, &format!("http://localhost:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::Delivered);
        request.await.unwrap();
    }

    #[tokio::test]
    async fn plain_http_needs_an_entry() {
        let fake = Fake::new(&["8.8.8.8"]);
        let client = resolving("", fake.clone());
        let attempt = deliver(&client, "http://hooks.test/").await;
        assert_eq!(attempt.outcome, Outcome::NotAllowed);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn hosts_that_cannot_be_resolved_are_reported() {
        let none = resolving("", Fake::new(&[]));
        let stuck = hasty(resolving("", Arc::new(Stuck)));
        for client in [none, stuck] {
            let attempt = deliver(&client, "https://hooks.test/").await;
            assert_eq!(attempt.outcome, Outcome::Unresolvable);
            assert!(attempt.duration < Duration::from_secs(10));
        }
        // Never exists (RFC 6761), and DNS servers aren't asked if the machine has none.
        let attempt = deliver(&client(""), "https://hooks.invalid/").await;
        assert_eq!(attempt.outcome, Outcome::Unresolvable);
    }

    #[test]
    fn the_systems_certificates_are_trusted() {
        CallbackClient::new(Allow::default(), Timeouts::default()).unwrap();
    }

    /// The environment of a process can't be changed safely while it has threads, so this starts another one.
    #[tokio::test]
    async fn a_proxy_in_the_environment_is_not_used() {
        let (proxy, port) = listen().await;
        let uses = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&uses);
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = proxy.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 418 proxy\r\ncontent-length: 0\r\n\r\n")
                    .await;
            }
        });
        let proxy = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(env::current_exe().unwrap());
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env(name, &proxy).env(name.to_lowercase(), &proxy);
        }
        let output = command
            .args(["--ignored", "--exact", IN_ANOTHER_PROCESS])
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .env_remove("REQUEST_METHOD")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        // By the request that shows that the variables have an effect.
        assert_eq!(uses.load(Ordering::Relaxed), 1);
        server.abort();
    }

    const IN_ANOTHER_PROCESS: &str =
        "callbacks::client::tests::deliver_with_a_proxy_in_the_environment";

    #[tokio::test]
    #[ignore = "started by another test, in a process with a suitable environment"]
    async fn deliver_with_a_proxy_in_the_environment() {
        if env::var_os("HTTP_PROXY").is_none() {
            return;
        }
        assert_eq!(
            attempt(respond(204, "", "")).await.outcome,
            Outcome::Delivered
        );

        let (listener, port) = listen().await;
        let server = tokio::spawn(async move { listener.accept().await.unwrap() });
        let client = client(&format!("127.0.0.1:{port}"));
        let attempt = deliver(&hasty(client), &format!("https://127.0.0.1:{port}/")).await;
        assert_eq!(attempt.outcome, Outcome::NotReached);
        server.await.unwrap();

        let http = Client::builder()
            .tls_backend_preconfigured(TLS.clone())
            .build()
            .unwrap();
        let response = http.get("http://hooks.test/").send().await.unwrap();
        assert_eq!(response.status(), 418);
    }

    #[test]
    fn debug_output_shows_no_secrets_and_no_data() {
        let secret = SigningSecret::generate();
        let value = HeaderValue::from_static("s3cret");
        let delivery = Callback {
            url: &Url::parse("https://hooks.test/s3cret").unwrap(),
            id: "evt_1",
            timestamp: 0,
            body: BODY,
            signature: &signature::header(&secret, &[], "evt_1", 0, BODY.as_bytes()),
            header: Some((&header::AUTHORIZATION, &value)),
        };
        let attempt = Attempt {
            status: Some(200),
            outcome: Outcome::Delivered,
            body: Some("Ada s3cret".to_owned()),
            retry_after: None,
            duration: Duration::ZERO,
        };
        let debug = format!("{delivery:?} {attempt:?}");
        for hidden in ["s3cret", "Ada", "v1,"] {
            assert!(!debug.contains(hidden), "{debug}");
        }
        assert!(debug.contains("evt_1") && debug.contains("Delivered"));
    }

    #[test]
    fn a_character_is_never_cut_in_two() {
        for (repeated, length) in [
            ("a", 1024),
            ("\u{e9}", 1024),
            ("\u{20ac}", 1023),
            ("\u{1f600}", 1024),
        ] {
            for start in ["", "a"] {
                let whole = format!("{start}{}", repeated.repeat(2000));
                let cut = text(&whole.as_bytes()[..LONGEST_BODY + 3]).unwrap();
                assert!(whole.starts_with(&cut));
                assert!(cut.len() + repeated.len() > LONGEST_BODY);
                if start.is_empty() {
                    assert_eq!(cut.len(), length);
                }
            }
        }
        assert_eq!(text(b"a\0b\xff"), Some("a\u{fffd}b\u{fffd}".to_owned()));
        assert_eq!(text(b""), None);
    }

    proptest! {
        #[test]
        fn texts_have_at_most_a_kibibyte(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            let text = text(&bytes).unwrap_or_default();
            prop_assert!(text.len() <= LONGEST_BODY);
            prop_assert!(!text.contains('\0'));
        }
    }
}
