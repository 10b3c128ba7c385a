//! The console over HTTP: who gets in and for how long, what its pages show and keep to themselves, and that whatever is done
//! there is done once.

use std::sync::LazyLock;

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use url::form_urlencoded::Serializer;

use crate::{
    accounts::Folder,
    commands::{create_api_key, create_limited_key, error_of, revoke_api_key},
    support::{
        API_KEY, Answer, LEEDS_KEY, QUICK, TestApp, client, event, eventually,
        mail::MailServer,
        manual, pounds, program,
        receiver::{Received, Receiver, Reply},
        send, ten_pounds, text,
    },
};

/// A console on a free port.
const CONSOLE: (&str, &str) = ("CONSOLE_LISTEN_ADDR", "127.0.0.1:0");

/// A key as the forms of the console have one.
pub const KEY: &str = "console-0193a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b";

/// What every key of a person who does everything permits.
pub const ALL: &str = "links:read,links:write,links:send,payments:manage";

static HTTP: LazyLock<reqwest::Client> = LazyLock::new(client);

pub async fn start(settings: &[(&str, &str)]) -> TestApp {
    TestApp::with(&[&[CONSOLE], settings].concat()).await
}

/// The console's URL.
pub async fn url_of(app: &TestApp) -> String {
    let line = app.logged("listening for the console").await.remove(0);
    let line: Value = serde_json::from_str(&line).unwrap();
    format!("http://{}", text(&line["address"]))
}

/// Somebody at the console, with a browser that runs no scripts.
pub struct Visitor {
    pub url: String,
    /// The cookie, as a browser sends it.
    pub cookie: Option<String>,
}

impl Visitor {
    /// Somebody who isn't signed in.
    pub async fn new(app: &TestApp) -> Self {
        Self {
            url: url_of(app).await,
            cookie: None,
        }
    }

    /// Somebody who has signed in with this key.
    pub async fn with_key(app: &TestApp, key: &str) -> Self {
        let mut visitor = Self::new(app).await;
        let answer = visitor.sign_in(key, "").await.expect(303);
        assert_eq!(answer.header("location"), "/links");
        visitor.take_cookie(&answer);
        visitor
    }

    /// Somebody who may do everything.
    pub async fn bootstrap(app: &TestApp) -> Self {
        Self::with_key(app, API_KEY).await
    }

    /// Keeps the cookie that a response sets.
    pub fn take_cookie(&mut self, answer: &Answer) {
        let cookie = answer.header("set-cookie").split(';').next().unwrap();
        self.cookie = Some(cookie.to_owned());
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = HTTP.request(method, format!("{}{path}", self.url));
        match &self.cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    /// The page at this path. A form there gets a key of its own first.
    pub async fn open(&self, path: &str) -> String {
        let answer = self.get(path).await;
        if answer.status != 303 {
            return answer.expect(200).text;
        }
        let address = answer.header("location");
        assert!(
            address.starts_with(&format!("{path}?key=console-")),
            "{address}"
        );
        self.get(address).await.expect(200).text
    }

    /// A page that says this.
    pub async fn sees(&self, path: &str, words: &str) -> String {
        let page = self.open(path).await;
        assert!(page.contains(words), "{words:?} is not in {page}");
        page
    }

    /// A form as a page of the console sends it.
    pub fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        self.foreign_form(path, fields).header("origin", &self.url)
    }

    /// A form that says nothing about where it comes from.
    pub fn foreign_form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let body = Serializer::new(String::new()).extend_pairs(fields).finish();
        self.request(Method::POST, path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    }

    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        send(self.form(path, fields)).await
    }

    pub async fn sign_in(&self, key: &str, next: &str) -> Answer {
        self.post("/sign-in", &[("key", key), ("next", next)]).await
    }

    /// The word that the session's forms contain.
    pub async fn csrf(&self) -> String {
        hidden(&self.get("/links").await.expect(200).text, "csrf")
    }

    /// Opens the form at this path, and sends it with these fields.
    pub async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let page = self.open(path).await;
        self.submit_again(path, &page, fields).await
    }

    /// Sends the form on this page with these fields.
    pub async fn submit_again(&self, path: &str, page: &str, fields: &[(&str, &str)]) -> Answer {
        let (csrf, key) = (hidden(page, "csrf"), hidden(page, "key"));
        let own = [("csrf", csrf.as_str()), ("key", key.as_str())];
        self.post(path, &[&own, fields].concat()).await
    }
}

/// The value of a hidden field, or an empty text.
#[track_caller]
pub fn hidden(page: &str, name: &str) -> String {
    let field = format!("<input type=\"hidden\" name=\"{name}\" value=\"");
    let rest = page.split(&field).nth(1).unwrap_or_default();
    rest.split('"').next().unwrap_or_default().to_owned()
}

pub fn path_of(link: &Value, action: &str) -> String {
    format!("/links/{}{action}", text(&link["id"]))
}

/// Where a form led to, whether it was sent for the first time or again.
fn place(answer: &Answer) -> &str {
    let location = answer.header("location");
    location.split("&again=").next().unwrap()
}

pub async fn run(app: &TestApp, sql: &str) -> u64 {
    let statement = sqlx::query(AssertSqlSafe(sql.to_owned()));
    statement.execute(&app.pool).await.unwrap().rows_affected()
}

pub async fn number(app: &TestApp, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn somebody_signs_in_with_an_api_key_and_out_again() {
    let app = start(&[]).await;
    let mut visitor = Visitor::new(&app).await;
    let answer = visitor.get("/links?q=Order").await.expect(303);
    assert_eq!(
        answer.header("location"),
        "/sign-in?next=%2Flinks%3Fq%3DOrder"
    );
    let page = visitor
        .get("/sign-in?next=/links?q=Order")
        .await
        .expect(200);
    assert_eq!(hidden(&page.text, "next"), "/links?q=Order");

    for wrong in ["", "x", "dpl_test_ffffffffffffffffffffffffffffffff"] {
        let answer = visitor.sign_in(wrong, "").await.expect(401);
        assert!(answer.text.contains("This is not an active API key."));
        assert_eq!(answer.header("set-cookie"), "");
    }
    let answer = visitor.sign_in(API_KEY, "/links?q=Order").await.expect(303);
    assert_eq!(answer.header("location"), "/links?q=Order");
    let cookie = answer.header("set-cookie");
    assert!(
        cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict"),
        "{cookie}"
    );
    visitor.take_cookie(&answer);
    visitor.sees("/links", "bootstrap").await;
    let token = visitor.cookie.clone().unwrap();
    let token = token.split_once('=').unwrap().1.to_owned();

    // Nothing that opens a session is stored or logged.
    let stored: Vec<String> = sqlx::query_scalar(
        "SELECT encode(token_hash, 'hex') || session::text FROM console_sessions session",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert_eq!(stored.len(), 1);
    assert!(!stored.concat().contains(&token));
    let log = app.service.log();
    assert!(
        !log.contains(&token) && !log.contains(API_KEY) && !log.contains("Order"),
        "{log}"
    );

    let csrf = visitor.csrf().await;
    let answer = visitor
        .post("/sign-out", &[("csrf", &csrf)])
        .await
        .expect(303);
    assert!(answer.header("set-cookie").contains("Max-Age=0"));
    visitor.get("/links").await.expect(303);
    assert_eq!(
        number(&app, "SELECT count(*) FROM console_sessions").await,
        0
    );
}

#[tokio::test]
async fn a_session_begins_with_a_new_token_and_ends_the_one_before() {
    let app = start(&[]).await;
    let mut visitor = Visitor::new(&app).await;
    // A token that somebody has planted in the browser.
    let planted = format!("console={}", "ab".repeat(32));
    visitor.cookie = Some(planted.clone());
    visitor.get("/links").await.expect(303);
    let answer = visitor.sign_in(API_KEY, "").await.expect(303);
    visitor.take_cookie(&answer);
    let first = visitor.cookie.clone();
    assert_ne!(first.as_deref(), Some(&*planted));

    let answer = visitor.sign_in(API_KEY, "").await.expect(303);
    visitor.take_cookie(&answer);
    assert_ne!(visitor.cookie, first);
    visitor.get("/links").await.expect(200);
    visitor.cookie = first;
    visitor.get("/links").await.expect(303);
    visitor.cookie = Some(planted);
    visitor.get("/links").await.expect(303);
}

#[tokio::test]
async fn a_session_ends_when_it_is_not_used_and_at_its_limit() {
    let app = start(&[
        ("CONSOLE_SESSION_IDLE", "10m"),
        ("CONSOLE_SESSION_MAX", "1h"),
    ])
    .await;
    let age = async |column: &str, minutes: i32| {
        let age =
            format!("UPDATE console_sessions SET {column} = now() - interval '{minutes} min'");
        assert_eq!(run(&app, &age).await, 1);
    };
    let visitor = Visitor::bootstrap(&app).await;
    age("last_used_at", 9).await;
    visitor.get("/links").await.expect(200);
    // Its idle time has begun again.
    let idle =
        "SELECT count(*) FROM console_sessions WHERE last_used_at > now() - interval '1 min'";
    assert_eq!(number(&app, idle).await, 1);

    // A page that brings itself up to date doesn't count as use.
    age("last_used_at", 9).await;
    let live = || {
        send(
            visitor
                .request(Method::GET, "/links")
                .header("x-live", "now"),
        )
    };
    live().await.expect(200);
    assert_eq!(number(&app, idle).await, 0);
    age("last_used_at", 11).await;
    live().await.expect(401);
    visitor.get("/links").await.expect(303);

    run(&app, "DELETE FROM console_sessions").await;
    let visitor = Visitor::bootstrap(&app).await;
    age("created_at", 59).await;
    visitor.get("/links").await.expect(200);
    age("created_at", 61).await;
    visitor.get("/links").await.expect(303);
    // The next one who signs in removes it.
    Visitor::bootstrap(&app).await;
    assert_eq!(
        number(&app, "SELECT count(*) FROM console_sessions").await,
        1
    );
}

#[tokio::test]
async fn a_form_keeps_its_key_when_the_session_has_ended() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let opened = visitor.get(&path_of(&link, "/refund")).await.expect(303);
    let address = opened.header("location");
    run(&app, "DELETE FROM console_sessions").await;
    let fields = [("amount", "1.00"), ("step", "do")];
    let sent = visitor.post(address, &fields).await.expect(303);
    let (path, query) = sent.header("location").split_once('?').unwrap();
    assert_eq!(path, "/sign-in");
    let next = url::form_urlencoded::parse(query.as_bytes()).next();
    assert_eq!(next, Some(("next".into(), address.into())));
    assert!(app.sandbox.done("refund").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_ends_its_sessions_at_once() {
    let app = start(&[]).await;
    let key = create_api_key(&app, "ann", ALL);
    let visitor = Visitor::with_key(&app, &key).await;
    let link = app.paid().await;
    let form = visitor.open(&path_of(&link, "/refund")).await;
    revoke_api_key(&app, "ann");
    visitor.get("/links").await.expect(303);
    visitor
        .submit_again(
            &path_of(&link, "/refund"),
            &form,
            &[("amount", "1.00"), ("step", "do")],
        )
        .await
        .expect(303);
    assert!(app.sandbox.done("refund").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_access_to_links_does_not_get_in() {
    let app = start(&[]).await;
    let key = create_api_key(&app, "feed", "events:read");
    let visitor = Visitor::new(&app).await;
    let answer = visitor.sign_in(&key, "").await.expect(403);
    assert!(answer.text.contains("lacks the scope links:read"));
    assert_eq!(answer.header("set-cookie"), "");
}

#[tokio::test]
async fn attempts_to_sign_in_are_limited() {
    let app = start(&[]).await;
    let mut visitor = Visitor::new(&app).await;
    for _ in 0..10 {
        visitor.sign_in("x", "").await.expect(401);
    }
    let answer = visitor.sign_in("x", "").await.expect(429);
    assert_eq!(answer.header("retry-after"), "60");
    assert!(answer.text.contains("too many attempts"));
    // Behind a proxy, all people have the same address. Nobody keeps the others out.
    let answer = visitor.sign_in(API_KEY, "").await.expect(303);
    visitor.take_cookie(&answer);
    visitor.get("/links").await.expect(200);
    app.created().await;
}

#[tokio::test]
async fn forms_are_accepted_from_the_pages_of_the_session_only() {
    let app = start(&[]).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    let other = Visitor::bootstrap(&app).await;
    let path = path_of(&link, "/refund");
    let fields = |csrf: &'static str| {
        [
            ("csrf", csrf),
            ("amount", "1.00"),
            ("step", "do"),
            ("key", KEY),
        ]
    };
    let own: &'static str = visitor.csrf().await.leak();
    let others: &'static str = other.csrf().await.leak();
    assert_ne!(own, others);

    for wrong in ["", "00", others] {
        visitor.post(&path, &fields(wrong)).await.expect(403);
    }
    let foreign = |name: &str, value: &str| {
        visitor
            .foreign_form(&path, &fields(own))
            .header(name, value)
    };
    send(visitor.foreign_form(&path, &fields(own)))
        .await
        .expect(403);
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        send(foreign(name, value)).await.expect(403);
    }
    let contradictory = foreign("origin", &visitor.url).header("sec-fetch-site", "cross-site");
    send(contradictory).await.expect(403);
    let somebody = Visitor::new(&app).await;
    let sign_in = somebody.foreign_form("/sign-in", &[("key", API_KEY)]);
    let answer = send(sign_in.header("sec-fetch-site", "cross-site")).await;
    assert_eq!(answer.expect(403).header("set-cookie"), "");
    assert!(app.sandbox.done("refund").await.is_empty());

    // The same form, from a page of the session.
    send(foreign("sec-fetch-site", "same-origin"))
        .await
        .expect(303);
    // The browser's button that loads a page again.
    send(foreign("sec-fetch-site", "none")).await.expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

#[tokio::test]
async fn every_response_forbids_frames_scripts_from_elsewhere_and_caching() {
    let app = start(&[]).await;
    let link = app.created().await;
    let visitor = Visitor::bootstrap(&app).await;
    let stranger = Visitor::new(&app).await;
    let paths = [
        "/links".to_owned(),
        "/links/new".to_owned(),
        path_of(&link, ""),
        path_of(&link, "/cancel"),
        path_of(&link, "/qr.svg"),
        "/attention".to_owned(),
        "/approvals".to_owned(),
        "/audit".to_owned(),
        "/health".to_owned(),
        "/runbook".to_owned(),
        "/preferences".to_owned(),
        "/sign-in".to_owned(),
        "/nowhere".to_owned(),
        "/links/x".to_owned(),
        "/v1/payment-links".to_owned(),
    ];
    for path in &paths {
        for answer in [visitor.get(path).await, stranger.get(path).await] {
            assert_eq!(answer.header("x-frame-options"), "DENY");
            assert_eq!(answer.header("referrer-policy"), "no-referrer");
            assert_eq!(answer.header("cache-control"), "no-store", "{path}");
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
            let policy = answer.header("content-security-policy");
            assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
            assert!(!policy.contains("unsafe"), "{policy}");
            // No page contains a script, a style or a handler of its own.
            for inline in ["<style", "<script>", " style=", " onclick=", "javascript:"] {
                assert!(!answer.text.contains(inline), "{path} contains {inline}");
            }
        }
    }
    // What isn't there is a page, too, and says nothing about the API.
    let missing = visitor.get("/v1/payment-links").await.expect(404);
    assert_eq!(missing.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(
        visitor
            .get("/style.css")
            .await
            .expect(200)
            .header("content-type"),
        "text/css; charset=utf-8"
    );
    visitor.get("/console.js").await.expect(200);
    assert_eq!(stranger.get("/healthz").await.expect(200).text, "ok");
    // The API's listener doesn't serve the console.
    app.get("/sign-in").await.expect(404);
}

/// A link with something that would run as a script in every text that a caller can send.
pub fn hostile(mark: &str) -> Value {
    let mut body = ten_pounds(mark);
    let address = json!({"address1": mark, "city": mark, "countryCode": "GB"});
    body["description"] = json!(mark);
    body["customer"] = json!({"emailAddress": "ann@example.com", "phoneNumber": mark});
    body["billingAddress"] = address.clone();
    body["shippingDetails"] = json!({"name": mark, "deliveryNotes": mark, "address": address});
    body["metadata"] = json!({mark: mark});
    body["itemLines"] = json!([{"id": mark, "quantity": 1, "name": mark, "category": mark, "amountTotal": pounds(1000)}]);
    body["taxLines"] = json!([{"caption": mark, "subCaption": mark, "amountTotal": pounds(0)}]);
    body["requestSecurity"] = json!({"userAgent": mark, "device": mark});
    body["config"] = json!({"title": mark});
    body
}

#[tokio::test]
async fn whatever_callers_send_is_shown_as_text() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    for mark in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "'onfocus=alert(1) x='",
    ] {
        let link = app.create(&hostile(mark)).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.read_until_confirmed(&link["id"]).await;
        let reason = json!({"amount": pounds(100), "refundReason": mark});
        app.operate_with_key(mark.trim_matches('"'), &link, "refunds", &reason)
            .await;
        let query = Serializer::new(String::new())
            .append_pair("q", mark)
            .finish();
        for path in [
            "/links".to_owned(),
            format!("/links?{query}"),
            format!("/links?{}", query.replace("q=", "status=")),
            format!("/links?{}", query.replace("q=", "from=")),
            path_of(&link, ""),
            path_of(&link, "/refund"),
            format!("/sign-in?{}", query.replace("q=", "next=/")),
        ] {
            let mut page = visitor.get(&path).await;
            if page.header("location").contains("?key=") {
                page = visitor.get(page.header("location")).await.expect(200);
            }
            let page = page.text;
            assert!(!page.contains(mark), "{path} contains {mark}");
            for raw in ["<img src=x", "<script>alert", "='onfocus"] {
                assert!(!page.contains(raw), "{path} contains {raw}");
            }
        }
        // In a form that is shown again.
        let answer = visitor
            .submit(
                "/links/new",
                &[
                    ("account", "default"),
                    ("amount", mark),
                    ("currency", "GBP"),
                    ("reference", mark),
                    ("description", mark),
                    ("email", mark),
                    ("collect", mark),
                ],
            )
            .await
            .expect(422);
        assert!(!answer.text.contains(mark), "{}", answer.text);
    }
}

/// A service with the account `leeds` as well.
pub async fn two_sites(folder: &Folder, more: &[(&str, &str)]) -> TestApp {
    let accounts =
        format!("[accounts.leeds]\nenvironment = \"sandbox\"\napi_key = \"{LEEDS_KEY}\"\n");
    let file = folder.write("accounts.toml", &accounts);
    let short = ("SHORT_URL_BASE", "https://pay.example.com");
    start(&[&[("DOJO_ACCOUNTS_FILE", file.as_str()), short], more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_limited_to_one_account_finds_nothing_of_another() {
    let folder = Folder::new();
    let app = two_sites(&folder, &[]).await;
    let key = create_limited_key(&app, "leeds-support", "links:read,payments:manage", "leeds");
    let other = app.paid().await;
    let mut body = ten_pounds("Order of Leeds");
    body["account"] = json!("leeds");
    let own = app.create(&body).await.expect(201).json();
    let visitor = Visitor::with_key(&app, &key).await;

    let page = visitor.sees("/links", "Order of Leeds").await;
    assert!(!page.contains("Order 1"), "{page}");
    visitor.get(&path_of(&own, "")).await.expect(200);
    for search in [
        text(&other["id"]),
        text(&other["paymentIntentId"]),
        text(&other["shortUrl"]),
        "Order 1",
        "1005",
        "10.00",
    ] {
        let query = Serializer::new(String::new())
            .append_pair("q", search)
            .finish();
        let page = visitor
            .get(&format!("/links?{query}"))
            .await
            .expect(200)
            .text;
        assert!(!page.contains("Order 1</a>"), "{search}: {page}");
    }
    let page = visitor.get("/links?account=default").await.expect(200).text;
    assert!(!page.contains("Order 1"), "{page}");
    for path in ["", "/qr.svg", "/refund", "/cancel"] {
        visitor.get(&path_of(&other, path)).await.expect(404);
    }
    let csrf = visitor.csrf().await;
    let fields = [
        ("csrf", csrf.as_str()),
        ("amount", "1.00"),
        ("step", "do"),
        ("key", KEY),
    ];
    visitor
        .post(&path_of(&other, "/refund"), &fields)
        .await
        .expect(404);
    assert!(app.sandbox.done("refund").await.is_empty());
    // What happened to the other account isn't in the list either.
    let page = visitor.get("/audit").await.expect(200).text;
    assert!(!page.contains("Sign in"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_only_read_sees_no_actions_and_gets_403() {
    let app = start(&[]).await;
    let key = create_api_key(&app, "reader", "links:read");
    let link = app.paid().await;
    let visitor = Visitor::with_key(&app, &key).await;
    let page = visitor.sees(&path_of(&link, ""), "Paid £10.00").await;
    assert!(
        !page.contains("/refund\"") && !page.contains("New link"),
        "{page}"
    );
    let csrf = visitor.csrf().await;
    for action in [
        "/send", "/capture", "/refund", "/reverse", "/amount", "/tip", "/receipt", "/cancel",
        "/renew",
    ] {
        visitor.get(&path_of(&link, action)).await.expect(403);
        let fields = [
            ("csrf", csrf.as_str()),
            ("amount", "1.00"),
            ("step", "do"),
            ("key", KEY),
        ];
        visitor
            .post(&path_of(&link, action), &fields)
            .await
            .expect(403);
    }
    visitor.get("/links/new").await.expect(403);
    visitor
        .post("/links/new", &[("csrf", &csrf), ("key", KEY)])
        .await
        .expect(403);
    assert!(app.sandbox.done("refund").await.is_empty());
    // Reading from Dojo is reading.
    let read = visitor
        .post(&path_of(&link, "/refresh"), &[("csrf", &csrf)])
        .await
        .expect(303);
    visitor
        .sees(read.header("location"), "Read from Dojo just now.")
        .await;
}

#[tokio::test]
async fn a_refund_is_reviewed_and_happens_once_however_often_it_is_sent() {
    let app = start(&[]).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    let path = path_of(&link, "/refund");
    let form = visitor.sees(&path, "value=\"10.00\"").await;
    let review = [
        ("amount", "3.50"),
        ("reason", "Returned goods"),
        ("step", "review"),
    ];
    let review = visitor
        .submit_again(&path, &form, &review)
        .await
        .expect(200)
        .text;
    assert!(
        review.contains("£3.50") && review.contains("Refund £3.50"),
        "{review}"
    );
    assert!(review.contains(text(&link["id"])), "{review}");
    assert!(app.sandbox.done("refund").await.is_empty());

    // A double click, at the same moment.
    let sent = [
        ("amount", "3.50"),
        ("reason", "Returned goods"),
        ("step", "do"),
    ];
    let (one, two) = tokio::join!(
        visitor.submit_again(&path, &review, &sent),
        visitor.submit_again(&path, &review, &sent)
    );
    let (one, two) = (one.expect(303), two.expect(303));
    assert_eq!(place(&one), place(&two));
    let page = visitor.sees(place(&one), "Refund of £3.50: done.").await;
    assert!(!page.contains("Nothing new was done"), "{page}");
    // A reload, and the back button.
    let again = visitor.submit_again(&path, &form, &sent).await.expect(303);
    assert_eq!(place(&again), place(&one));
    let page = visitor
        .sees(again.header("location"), "Nothing new was done this time.")
        .await;
    let anew = format!("<a href=\"{path}\">Open a new form</a>");
    assert!(
        page.contains("Refund of £3.50: done.") && page.contains(&anew),
        "{page}"
    );
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    let page = visitor.sees(&path_of(&link, ""), "£3.50 refunded").await;
    assert!(page.contains("Returned goods"), "{page}");
    let [operation] = &app.operations(&link).await[..] else {
        panic!("there is one operation");
    };
    assert_eq!(operation["createdBy"], "bootstrap");

    // The same form with another amount is another request, which needs a new form.
    let other = [("amount", "1.00"), ("step", "do")];
    let answer = visitor.submit_again(&path, &form, &other).await.expect(422);
    let page = answer.text;
    assert!(
        page.contains("This form was sent before, with other values.") && page.contains(&path),
        "{page}"
    );
    assert!(page.contains("Open a new form"), "{page}");
    assert_eq!(hidden(&page, "key"), "", "it can't be sent again");
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    visitor.submit(&path, &other).await.expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 2);
    // The request's id is the same in the timeline and in the audit list.
    let timeline = app.timeline(&link["id"]).await;
    let requested = timeline
        .iter()
        .find(|entry| entry["type"] == "operationRequested")
        .unwrap();
    let ids = format!(
        "SELECT count(*) FROM console_audit WHERE what = 'refund' AND request_id = '{}'",
        text(&requested["cause"]["requestId"])
    );
    assert_eq!(number(&app, &ids).await, 2);
}

#[tokio::test]
async fn the_address_of_a_form_contains_its_key() {
    let app = start(&[]).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    for path in [
        path_of(&link, "/refund"),
        path_of(&link, "/reverse"),
        "/links/new".to_owned(),
    ] {
        let address = async |path: &str| {
            let answer = visitor.get(path).await.expect(303);
            answer.header("location").to_owned()
        };
        let first = address(&path).await;
        let key = first.strip_prefix(&format!("{path}?key=")).unwrap();
        assert_ne!(
            address(&path).await,
            first,
            "each form has a key of its own"
        );
        // A reload, and the back button.
        for _ in 0..2 {
            let page = visitor.get(&first).await.expect(200).text;
            assert_eq!(hidden(&page, "key"), key);
            assert!(page.contains(&format!("action=\"{first}\"")), "{page}");
        }
        for wrong in [
            "",
            "console-1",
            "x",
            &key.to_uppercase(),
            &key.replace('-', ""),
            &format!("{key}0"),
        ] {
            let other = address(&format!("{path}?key={wrong}")).await;
            assert!(
                other.starts_with(&format!("{path}?key=console-")),
                "{other}"
            );
            // Nothing is done with such a key, whatever else is sent.
            let csrf = visitor.csrf().await;
            let fields = [
                ("csrf", csrf.as_str()),
                ("key", wrong),
                ("account", "default"),
                ("amount", "1.00"),
                ("currency", "GBP"),
                ("reference", "Order 2"),
                ("step", "do"),
            ];
            let answer = visitor.post(&path, &fields).await.expect(303);
            assert_eq!(answer.header("location"), path);
        }
    }
    assert!(app.operations(&link).await.is_empty());
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_is_opened_again_says_that_it_was_sent() {
    let app = start(&[]).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    let path = path_of(&link, "/refund");
    let address = visitor.get(&path).await.expect(303);
    let address = address.header("location");
    let form = visitor.get(address).await.expect(200).text;
    assert!(!form.contains("This form was sent before."), "{form}");
    let sent = [("amount", "1.00"), ("step", "do")];
    visitor.submit_again(&path, &form, &sent).await.expect(303);
    let form = visitor
        .sees(
            address,
            "This form was sent before. Sending it again does nothing new.",
        )
        .await;
    assert!(form.contains("Open a new form"), "{form}");
    // The page before the last one, which the browser requests once more.
    let review = [("amount", "1.00"), ("step", "review")];
    let review = visitor
        .submit_again(&path, &form, &review)
        .await
        .expect(200)
        .text;
    assert!(review.contains("This form was sent before."), "{review}");
    let again = visitor
        .submit_again(&path, &review, &sent)
        .await
        .expect(303);
    visitor
        .sees(again.header("location"), "Nothing new was done this time.")
        .await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    // For somebody else it is an ordinary form.
    let key = create_api_key(&app, "ann", ALL);
    let ann = Visitor::with_key(&app, &key).await;
    let form = ann.get(address).await.expect(200).text;
    assert!(!form.contains("This form was sent before."), "{form}");
}

#[tokio::test]
async fn what_is_wrong_with_a_form_is_shown_at_its_field() {
    let app = start(&[]).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    let path = path_of(&link, "/refund");
    for wrong in ["", "3.5", "-1.00", "1e2", "€3.50", "ten"] {
        let answer = visitor
            .submit(&path, &[("amount", wrong), ("step", "do")])
            .await
            .expect(422);
        assert!(
            answer
                .text
                .contains("id=\"amount-error\">Amount to refund must be an amount such as 24.50"),
            "{}",
            answer.text
        );
    }
    let answer = visitor
        .submit(&path, &[("amount", "10.01"), ("step", "do")])
        .await
        .expect(409);
    assert!(
        answer.text.contains("Only 10.00 GBP is left to refund."),
        "{}",
        answer.text
    );
    assert!(
        answer.text.contains("Possible now: Refund"),
        "{}",
        answer.text
    );
    let long = "x".repeat(1025);
    let answer = visitor
        .submit(
            &path,
            &[("amount", "1.00"), ("reason", &long), ("step", "do")],
        )
        .await
        .expect(422);
    assert!(
        answer
            .text
            .contains("id=\"reason-error\">Reason must have at most 1024 characters"),
        "{}",
        answer.text
    );
    assert!(app.sandbox.done("refund").await.is_empty());

    let created = visitor
        .submit(
            "/links/new",
            &[
                ("account", "nowhere"),
                ("amount", "0.00"),
                ("currency", "GBP"),
                ("collect", "auto"),
                ("expires", "2020-01-01"),
                ("email", "ann@example.com"),
            ],
        )
        .await
        .expect(422)
        .text;
    for error in [
        "account-error",
        "amount-error",
        "reference-error",
        "expires-error",
    ] {
        assert!(created.contains(error), "{error}: {created}");
    }
    assert!(created.contains("value=\"ann@example.com\""));
}

#[tokio::test]
async fn an_operation_that_dojo_rejects_can_be_sent_again_as_another_one() {
    let app = start(&[]).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    let path = path_of(&link, "/refund");
    let form = visitor.open(&path).await;
    app.sandbox
        .next("refund", "status", json!({"status": 400}))
        .await;
    let sent = [("amount", "3.50"), ("step", "do")];
    let failed = visitor
        .submit_again(&path, &form, &sent)
        .await
        .expect(409)
        .text;
    assert!(failed.contains("Rejected by Dojo"), "{failed}");
    assert!(failed.contains("Possible now: Refund"), "{failed}");
    assert_ne!(hidden(&failed, "key"), hidden(&form, "key"));
    // A repetition shows the same outcome and the same form, which is a new request.
    let repeated = async || {
        let answer = visitor.submit_again(&path, &form, &sent).await;
        let page = answer.expect(409).text;
        assert_eq!(hidden(&page, "key"), hidden(&failed, "key"));
        page
    };
    repeated().await;
    visitor
        .submit_again(&path, &failed, &sent)
        .await
        .expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    // Back at the failure, the browser has it repeated. What it leads to was sent before.
    let failed = repeated().await;
    let again = visitor
        .submit_again(&path, &failed, &sent)
        .await
        .expect(303);
    visitor
        .sees(again.header("location"), "Nothing new was done this time.")
        .await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

#[tokio::test]
async fn an_operation_whose_outcome_is_unknown_keeps_its_key() {
    let app = start(&QUICK).await;
    let link = app.paid().await;
    let visitor = Visitor::bootstrap(&app).await;
    let path = path_of(&link, "/refund");
    let form = visitor.open(&path).await;
    app.sandbox.next("refund", "cutAfter", json!({})).await;
    // The console waits for the outcome, which the service finds out.
    let sent = [("amount", "3.50"), ("step", "do")];
    let answer = visitor.submit_again(&path, &form, &sent).await.expect(303);
    visitor
        .sees(answer.header("location"), "Refund of £3.50: done.")
        .await;
    visitor.submit_again(&path, &form, &sent).await.expect(303);
    assert_eq!(app.operations(&link).await.len(), 1);
}

#[tokio::test]
async fn a_link_is_created_once_and_can_be_canceled_and_renewed() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let form = visitor.open("/links/new").await;
    let fields = [
        ("account", "default"),
        ("amount", "£1,024.50"),
        ("currency", "GBP"),
        ("reference", "Order 7"),
        ("description", "Two\r\ntickets"),
        ("email", "ann@example.com"),
        ("collect", "auto"),
    ];
    let one = visitor
        .submit_again("/links/new", &form, &fields)
        .await
        .expect(303);
    let two = visitor
        .submit_again("/links/new", &form, &fields)
        .await
        .expect(303);
    let path = |answer: &Answer| {
        answer
            .header("location")
            .split('?')
            .next()
            .map(str::to_owned)
    };
    assert_eq!(path(&one), path(&two));
    assert_eq!(app.sandbox.creations().await.len(), 1);
    let page = visitor
        .sees(two.header("location"), "Nothing new was done this time.")
        .await;
    assert!(!page.contains("The link is created."), "{page}");
    let mut other = fields;
    other[1].1 = "1.00";
    let answer = visitor
        .submit_again("/links/new", &form, &other)
        .await
        .expect(422);
    assert!(
        answer
            .text
            .contains("This form was sent before, with other values."),
        "{}",
        answer.text
    );
    assert_eq!(hidden(&answer.text, "key"), "");
    assert_eq!(app.sandbox.creations().await.len(), 1);
    let page = visitor
        .sees(one.header("location"), "The link is created.")
        .await;
    assert!(page.contains("Waiting for £1,024.50"), "{page}");
    let id = one.header("location").strip_prefix("/links/").unwrap();
    let id = json!(id.split('?').next().unwrap());
    let link = app.link(&id).await;
    assert_eq!(link["amount"], pounds(102_450));
    assert_eq!(link["customer"]["emailAddress"], "ann@example.com");

    visitor
        .sees(
            &path_of(&link, "/cancel"),
            "Nobody can pay the link afterwards.",
        )
        .await;
    let canceled = visitor
        .submit(&path_of(&link, "/cancel"), &[("step", "do")])
        .await
        .expect(303);
    visitor
        .sees(canceled.header("location"), "Cancellation: done.")
        .await;
    let page = visitor
        .sees(&path_of(&link, ""), "Cancelled before it was paid.")
        .await;
    assert!(!page.contains("/cancel\""), "{page}");
    let renewed = visitor
        .submit(
            &path_of(&link, "/renew"),
            &[("expires", "2099-01-01"), ("step", "do")],
        )
        .await
        .expect(303);
    visitor
        .sees(renewed.header("location"), "It takes the place of")
        .await;
    visitor.sees(&path_of(&link, ""), "takes its place").await;
    visitor
        .submit(&path_of(&link, "/renew"), &[("step", "do")])
        .await
        .expect(409);
}

#[tokio::test]
async fn a_link_is_sent_to_its_customer_once() {
    let server = MailServer::start().await;
    let mail = server.settings();
    let mail: Vec<_> = mail
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let app = start(&[&QUICK[..], &mail].concat()).await;
    let visitor = Visitor::bootstrap(&app).await;
    let mut body = ten_pounds("Order 1");
    body["customer"] = json!({"emailAddress": "ann@example.com"});
    let link = app.create(&body).await.expect(201).json();
    let path = path_of(&link, "/send");
    let form = visitor.sees(&path, "value=\"ann@example.com\"").await;
    let fields = [
        ("to", "ann@example.com"),
        ("note", "Thank you."),
        ("step", "do"),
    ];
    let one = visitor
        .submit_again(&path, &form, &fields)
        .await
        .expect(303);
    let two = visitor
        .submit_again(&path, &form, &fields)
        .await
        .expect(303);
    assert_eq!(place(&one), place(&two));
    visitor
        .sees(two.header("location"), "Nothing new was done this time.")
        .await;
    server.received(1).await;
    eventually("the message is sent", async || {
        let page = visitor.get(one.header("location")).await.expect(200).text;
        page.contains("Email to ann@example.com: sent.")
            .then_some(())
    })
    .await;

    // A new link can be sent at once.
    let created = [
        ("account", "default"),
        ("amount", "10.00"),
        ("currency", "GBP"),
        ("reference", "Order 2"),
        ("email", "ben@example.com"),
        ("collect", "auto"),
        ("send", "yes"),
        ("note", "Hello"),
    ];
    visitor.submit("/links/new", &created).await.expect(303);
    assert_eq!(server.received(2).await.len(), 2);
    let mut without = created;
    without[4].1 = "";
    let answer = visitor.submit("/links/new", &without).await.expect(422);
    assert!(
        answer.text.contains("is required to send the link"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn an_authorized_payment_is_changed_captured_and_reversed() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.create(&manual("Order 1")).await.expect(201).json();
    let changed = [("amount", "12.00"), ("step", "do")];
    let answer = visitor
        .submit(&path_of(&link, "/amount"), &changed)
        .await
        .expect(303);
    visitor
        .sees(answer.header("location"), "New amount £12.00: done.")
        .await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    visitor.sees(&path_of(&link, ""), "£12.00 authorized").await;
    visitor
        .sees(&path_of(&link, "/capture"), "value=\"12.00\"")
        .await;
    let captured = [("amount", "5.00"), ("step", "do")];
    visitor
        .submit(&path_of(&link, "/capture"), &captured)
        .await
        .expect(303);
    visitor
        .sees(&path_of(&link, ""), "Paid £5.00 of £12.00 authorized")
        .await;

    let other = app.authorized().await;
    visitor
        .sees(&path_of(&other, "/reverse"), "Reverse £10.00")
        .await;
    visitor
        .submit(&path_of(&other, "/reverse"), &[("step", "do")])
        .await
        .expect(303);
    visitor.sees(&path_of(&other, ""), "was reversed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tip_is_changed_and_captured_with_the_amount() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "20.00")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let ben = Visitor::with_key(&app, &create_api_key(&app, "ben", ALL)).await;
    let without = app.created().await;
    let page = visitor.open(&path_of(&without, "")).await;
    assert!(!page.contains("/tip\""), "{page}");

    let link = app.create(&manual("Order 1")).await.expect(201).json();
    let path = path_of(&link, "/tip");
    visitor
        .sees(&path_of(&link, ""), &format!("href=\"{path}\""))
        .await;
    let change = async |amount: &str| {
        let answer = visitor
            .submit(&path, &[("amount", amount), ("step", "do")])
            .await;
        answer.expect(303).header("location").to_owned()
    };
    visitor
        .sees(&change("2.50").await, "New tip £2.50: done.")
        .await;
    visitor
        .sees(&change("0.00").await, "New tip £0.00: done.")
        .await;
    visitor
        .sees(&change("1.50").await, "New tip £1.50: done.")
        .await;
    visitor.sees(&path, "value=\"1.50\"").await;
    let wrong = visitor
        .submit(&path, &[("amount", "1.5"), ("step", "do")])
        .await
        .expect(422);
    assert!(
        wrong.text.contains("id=\"amount-error\">New tip must be"),
        "{}",
        wrong.text
    );

    // A large one needs a second person.
    let approval = change("20.01").await;
    assert!(approval.starts_with("/approvals/"), "{approval}");
    let page = ben.sees(&approval, "New tip £20.01").await;
    ben.submit_again(&format!("{approval}/approve"), &page, &[])
        .await
        .expect(303);
    ben.sees(&approval, "Approved and done").await;
    visitor
        .sees(&change("1.50").await, "New tip £1.50: done.")
        .await;

    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    let path = path_of(&link, "/capture");
    let form = visitor.sees(&path, "Tip to capture").await;
    assert!(form.contains("value=\"1.50\""), "{form}");
    let fields = |step| [("amount", "4.00"), ("tip", "0.50"), ("step", step)];
    let review = visitor
        .submit_again(&path, &form, &fields("review"))
        .await
        .expect(200)
        .text;
    assert!(
        review.contains("Capture £4.50") && review.contains("0.50"),
        "{review}"
    );
    visitor
        .submit_again(&path, &review, &fields("do"))
        .await
        .expect(303);
    let captured = app.link(&link["id"]).await;
    assert_eq!(captured["capturedAmount"], pounds(450));
    assert_eq!(captured["captures"][0]["tipsAmount"], pounds(50));
    let form = visitor.open(&path).await;
    assert!(
        form.contains("value=\"6.00\"") && form.contains("value=\"1.00\""),
        "{form}"
    );
}

#[tokio::test]
async fn a_receipt_is_sent_to_whoever_is_entered() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let mut body = ten_pounds("Order 1");
    body["customer"] = json!({"emailAddress": "mari@example.com"});
    let link = app.create(&body).await.expect(201).json();
    let page = visitor.open(&path_of(&link, "")).await;
    assert!(!page.contains("/receipt\""), "nothing is paid yet: {page}");
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;

    let path = path_of(&link, "/receipt");
    let form = visitor.sees(&path, ">mari@example.com</textarea>").await;
    for (wrong, error) in [
        ("", "Email addresses must contain an address"),
        ("mari", "Email addresses must be an email address"),
    ] {
        let answer = visitor
            .submit_again(&path, &form, &[("emails", wrong), ("step", "do")])
            .await
            .expect(422);
        assert!(answer.text.contains(error), "{}", answer.text);
    }
    let sent = [
        ("emails", "mari@example.com\r\ngabriel@example.com,"),
        ("step", "do"),
    ];
    let one = visitor.submit_again(&path, &form, &sent).await.expect(303);
    visitor.sees(one.header("location"), "Receipt: done.").await;
    visitor.submit_again(&path, &form, &sent).await.expect(303);
    let [call] = &app.sandbox.requests("receipt").await[..] else {
        panic!("there is one call");
    };
    let emails = json!(["mari@example.com", "gabriel@example.com"]);
    assert_eq!(call["body"]["emails"], emails);
    let entries = "SELECT count(*) FROM console_audit entry WHERE entry::text LIKE '%mari%'";
    assert_eq!(number(&app, entries).await, 0);
    assert!(!app.service.log().contains("mari@"));
}

#[tokio::test]
async fn reminders_are_chosen_for_a_new_link() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let mut fields = vec![
        ("account", "default"),
        ("amount", "10.00"),
        ("currency", "GBP"),
        ("reference", "Order 1"),
        ("collect", "auto"),
        ("expires", "2099-01-31"),
        ("remind-after", "P3D"),
        ("remind-before", "P1D"),
    ];
    let form = visitor.open("/links/new").await;
    for (_, value) in &fields[6..] {
        assert!(
            form.contains(&format!("<option value=\"{value}\"")),
            "{form}"
        );
    }
    let answer = visitor
        .submit_again("/links/new", &form, &fields)
        .await
        .expect(303);
    let page = visitor
        .sees(answer.header("location"), "3 days after the request")
        .await;
    assert!(page.contains("1 day before the link expires"), "{page}");
    let page = app.get("/v1/payment-links").await.expect(200).json();
    let reminders = json!([{"after": "P3D"}, {"beforeExpiry": "P1D"}]);
    assert_eq!(page["data"][0]["reminders"], reminders);

    // Too late, and too early.
    let tomorrow = time::OffsetDateTime::now_utc().date().next_day().unwrap();
    let tomorrow = tomorrow.to_string();
    fields[5].1 = &tomorrow;
    fields[7].1 = "P7D";
    let page = visitor.submit("/links/new", &fields).await.expect(422).text;
    for error in [
        "id=\"remind-after-error\">Reminder must be before the last day to pay",
        "id=\"remind-before-error\">Reminder before the last day must be later than now",
    ] {
        assert!(page.contains(error), "{error}: {page}");
    }
    assert!(page.contains("<option value=\"P7D\" selected"), "{page}");
    assert_eq!(app.sandbox.creations().await.len(), 1);
    // Without one, none is requested.
    fields.truncate(5);
    visitor.submit("/links/new", &fields).await.expect(303);
    let page = app.get("/v1/payment-links").await.expect(200).json();
    assert_eq!(page["data"][0]["reminders"], Value::Null);
}

#[tokio::test]
async fn declined_attempts_are_shown_with_their_time() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    let intent = &link["paymentIntentId"];
    app.sandbox.act(intent, "decline", json!({})).await;
    app.sandbox.act(intent, "challenge", json!({})).await;
    let link = app.refresh(&link["id"]).await.expect(200).json();
    assert_eq!(link["attempts"].as_array().unwrap().len(), 2);
    let page = visitor
        .sees(&path_of(&link, ""), "One attempt to pay was declined.")
        .await;
    let year = &text(&link["attempts"][0]["transactionDateTime"])[..4];
    for words in [
        "Declined on ",
        "The bank asked the customer to confirm it on ",
    ] {
        let rest = page.split(words).nth(1);
        let rest = rest.unwrap_or_else(|| panic!("{words:?} is not in {page}"));
        assert!(rest.split('<').next().unwrap().contains(year), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_shows_what_callback_endpoints_got_about_it() {
    let app = start(&[
        ("RUN_JOBS", "true"),
        ("POLL_INTERVAL", "200ms"),
        ("CALLBACK_ALLOW", "127.0.0.1"),
    ])
    .await;
    let (good, bad, quiet) = (
        Receiver::start().await,
        Receiver::start().await,
        Receiver::start().await,
    );
    bad.respond(|_| Reply::status(500));
    for receiver in [&good, &bad] {
        app.subscribe(&json!({"url": receiver.url})).await;
    }
    app.subscribe(&json!({"url": quiet.url, "types": ["payment_link.refunded"]}))
        .await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    let other = app.create(&ten_pounds("Order 2")).await.expect(201).json();
    let page = eventually("the endpoints got the events", async || {
        let page = visitor.open(&path_of(&link, "")).await;
        let is_there = page.contains("delivered on attempt 1")
            && page.contains("rejected (response 500); it is attempted again");
        is_there.then_some(page)
    })
    .await;
    for (receiver, is_told) in [(&good, true), (&bad, true), (&quiet, false)] {
        let url = receiver.url.as_str();
        assert_eq!(page.contains(url), is_told, "{url}: {page}");
    }
    good.until(2).await;
    let about = |link: &Value| {
        let received = good.received();
        let mut events = received.iter().map(Received::event);
        let event = events.find(|event| event["paymentLinkId"] == link["id"]);
        text(&event.unwrap()["id"]).to_owned()
    };
    assert!(page.contains(&about(&link)), "{page}");
    assert!(!page.contains(&about(&other)), "{page}");

    // Whoever may not see callbacks sees none.
    let key = create_api_key(&app, "ann", ALL);
    let ann = Visitor::with_key(&app, &key).await;
    let page = ann.open(&path_of(&link, "")).await;
    assert!(
        !page.contains(&good.url) && !page.contains("Callbacks"),
        "{page}"
    );
}

#[tokio::test]
async fn links_are_found_by_what_people_know_of_them() {
    let app = start(&[("SHORT_URL_BASE", "https://pay.example.com")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let mut body = ten_pounds("Order 236");
    body["amount"] = pounds(2450);
    body["customer"] = json!({"emailAddress": "Ann@Example.com"});
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let link = app.read_until_confirmed(&link["id"]).await;
    app.created().await;

    let find = async |search: &str| {
        let query = Serializer::new(String::new())
            .append_pair("q", search)
            .finish();
        visitor.get(&format!("/links?{query}")).await
    };
    let own = path_of(&link, "");
    // What belongs to one link leads there.
    let code = text(&link["shortUrl"]).rsplit('/').next().unwrap();
    for search in [
        text(&link["id"]),
        text(&link["paymentIntentId"]),
        text(&link["shortUrl"]),
        code,
        text(&link["url"]),
        &format!(" {} ", text(&link["id"])),
    ] {
        assert_eq!(
            find(search).await.expect(303).header("location"),
            own,
            "{search}"
        );
    }
    let last4 = text(&link["payment"]["last4"]);
    for search in [
        "Order 236",
        "Order 23",
        "ann@example.com",
        "ANN@EXAMPLE.COM",
        last4,
        "24.50",
        "£24.50",
    ] {
        let page = find(search).await.expect(200).text;
        assert!(page.contains(&own), "{search}: {page}");
        assert!(!page.contains("Order 1</a>"), "{search}: {page}");
    }
    // Four digits may be the start of a reference.
    let mut body = ten_pounds("2024-7");
    body["amount"] = pounds(202_400);
    let other = app.create(&body).await.expect(201).json();
    let page = find("2024").await.expect(200).text;
    assert!(page.contains(&path_of(&other, "")), "{page}");
    assert!(page.contains("Links whose reference starts with"), "{page}");
    assert!(page.contains("by=amount"), "{page}");
    visitor
        .sees("/links?q=2024&by=amount", &path_of(&other, ""))
        .await;
    visitor.sees("/links?q=nothing", "Nothing was found.").await;

    let page = visitor.sees("/links?status=Captured", &own).await;
    assert!(!page.contains(&path_of(&other, "")), "{page}");
    visitor
        .sees("/links?from=2020-01-01&to=2099-01-01", &own)
        .await;
    visitor
        .sees("/links?from=2099-01-01", "Nothing was found.")
        .await;
    visitor.sees("/links?from=tomorrow", "is not a date").await;
    visitor.get("/links?status=Paid").await.expect(422);
    visitor.get("/links?after=x").await.expect(422);
}

#[tokio::test]
async fn the_list_has_pages() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    for n in 0..30 {
        app.create(&ten_pounds(&format!("Page {n}")))
            .await
            .expect(201);
    }
    let first = visitor.get("/links?q=Page").await.expect(200).text;
    let next = first
        .split("rel=\"next\"")
        .next()
        .unwrap()
        .rsplit("href=\"")
        .next()
        .unwrap();
    let next = next.split('"').next().unwrap().replace("&#38;", "&");
    let second = visitor.get(&next).await.expect(200).text;
    let rows = |page: &str| page.matches("<th scope=\"row\">").count();
    assert_eq!((rows(&first), rows(&second)), (25, 5));
    assert!(
        second.contains("Page 0</a>") && !second.contains("rel=\"next\""),
        "{second}"
    );
}

#[tokio::test]
async fn a_link_is_never_called_paid_before_dojo_has_confirmed_it() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    app.deliver(&event("evt_1", &link, "Captured"))
        .await
        .expect(204);
    let page = visitor
        .sees(&path_of(&link, ""), "Dojo hasn’t confirmed this yet")
        .await;
    assert!(!page.contains("Paid £"), "{page}");
    assert!(!page.contains(">Paid<"), "{page}");
    let page = visitor.sees("/links", "Not confirmed by Dojo").await;
    assert!(!page.contains(">Paid<"), "{page}");
}

#[tokio::test]
async fn somebody_who_comes_from_another_site_stays_signed_in() {
    let app = start(&[]).await;
    let stranger = Visitor::new(&app).await;
    // A strict cookie isn't sent with the first request, but with the one that the page leads to.
    let request = stranger
        .request(Method::GET, "/links?q=1")
        .header("sec-fetch-site", "cross-site");
    let page = send(request).await.expect(200);
    assert!(
        page.text.contains("content=\"0;url=/links?q=1\""),
        "{}",
        page.text
    );
    let request = stranger
        .request(Method::GET, "/links?q=1")
        .header("sec-fetch-site", "same-origin");
    send(request).await.expect(303);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_above_the_limit_waits_for_a_second_person_and_happens_once() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "5.00")]).await;
    let link = app.paid().await;
    let ann = Visitor::with_key(&app, &create_api_key(&app, "ann", ALL)).await;
    let ben = Visitor::with_key(&app, &create_api_key(&app, "ben", ALL)).await;
    let cleo = Visitor::with_key(&app, &create_api_key(&app, "cleo", ALL)).await;
    let reader = Visitor::with_key(&app, &create_api_key(&app, "reader", "links:read")).await;
    let path = path_of(&link, "/refund");

    // Up to the limit, one person is enough.
    ann.submit(&path, &[("amount", "5.00"), ("step", "do")])
        .await
        .expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    let other = app.paid().await;
    let path = path_of(&other, "/refund");
    let form = ann.open(&path).await;
    let review = [
        ("amount", "5.01"),
        ("reason", "Returned"),
        ("step", "review"),
    ];
    let review = ann
        .submit_again(&path, &form, &review)
        .await
        .expect(200)
        .text;
    assert!(
        review.contains("A second person must approve it"),
        "{review}"
    );
    let sent = [("amount", "5.01"), ("reason", "Returned"), ("step", "do")];
    let answer = ann.submit_again(&path, &form, &sent).await.expect(303);
    let approval = answer.header("location").to_owned();
    assert!(approval.starts_with("/approvals/"), "{approval}");
    let again = ann.submit_again(&path, &form, &sent).await.expect(303);
    assert_eq!(again.header("location"), format!("{approval}?again=yes"));
    let page = ann
        .sees(
            again.header("location"),
            "Nothing new was requested this time.",
        )
        .await;
    assert!(page.contains("Open a new form"), "{page}");
    let changed = [("amount", "9.00"), ("reason", "Returned"), ("step", "do")];
    let answer = ann.submit_again(&path, &form, &changed).await.expect(409);
    assert!(answer.text.contains("Open a new form"), "{}", answer.text);
    // Below the limit, it is still the same form.
    let small = [("amount", "1.00"), ("reason", "Returned"), ("step", "do")];
    ann.submit_again(&path, &form, &small).await.expect(409);
    assert_eq!(
        number(&app, "SELECT count(*) FROM console_approvals").await,
        1
    );
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    // Neither the same person nor somebody without the scope can approve it.
    let approve = format!("{approval}/approve");
    let page = ann.sees(&approval, "Waits for a second person").await;
    assert!(!page.contains("Approve and carry out"), "{page}");
    ann.submit_again(&approve, &page, &[]).await.expect(403);
    let page = reader.sees(&approval, "Waits for a second person").await;
    reader.submit_again(&approve, &page, &[]).await.expect(403);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    // Two people approve it at the same moment.
    ben.sees("/approvals", "Refund of £5.01").await;
    let (for_ben, for_cleo) = (
        ben.get(&approval).await.text,
        cleo.get(&approval).await.text,
    );
    let (one, two) = tokio::join!(
        ben.submit_again(&approve, &for_ben, &[]),
        cleo.submit_again(&approve, &for_cleo, &[])
    );
    one.expect(303);
    two.expect(303);
    ben.submit_again(&approve, &for_ben, &[]).await.expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 2);
    let page = ben.sees(&approval, "Approved and done").await;
    assert!(page.contains("Refund of £5.01: done."), "{page}");
    let [operation] = &app.operations(&other).await[..] else {
        panic!("there is one operation");
    };
    let by = text(&operation["createdBy"]);
    assert!(by.starts_with("ann, approved by "), "{by}");
    ann.sees(&path_of(&other, ""), "ann, approved by").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_and_refunds_of_a_link_count_together() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "2")]).await;
    let ann = Visitor::bootstrap(&app).await;
    let ben = Visitor::with_key(&app, &create_api_key(&app, "ben", ALL)).await;
    let paid = app.paid().await;
    let authorized = app.authorized().await;
    for (link, action, operation) in [
        (&paid, "/refund", "refund"),
        (&authorized, "/capture", "capture"),
    ] {
        let path = path_of(link, action);
        let sent = [("amount", "1.00"), ("step", "do")];
        let first = ann.open(&path).await;
        ann.submit_again(&path, &first, &sent).await.expect(303);
        // Somebody else's counts as well.
        let second = ben.submit(&path, &sent).await.expect(303);
        assert_eq!(place(&second).split('?').next(), Some(&*path_of(link, "")));
        assert_eq!(app.sandbox.done(operation).await.len(), 2);

        let form = ann.open(&path).await;
        let review = [("amount", "0.01"), ("step", "review")];
        let review = ann.submit_again(&path, &form, &review).await.expect(200);
        assert!(
            review
                .text
                .contains("Together with what was done before, the amount is above the limit"),
            "{}",
            review.text
        );
        let sent_more = [("amount", "0.01"), ("step", "do")];
        let answer = ann.submit_again(&path, &form, &sent_more).await.expect(303);
        let approval = answer.header("location");
        assert!(approval.starts_with("/approvals/"), "{approval}");
        assert_eq!(app.sandbox.done(operation).await.len(), 2);
        // What was done before is repeated, and not asked for again.
        let again = ann.submit_again(&path, &first, &sent).await.expect(303);
        ann.sees(again.header("location"), "Nothing new was done this time.")
            .await;
        // Two people may do more.
        let page = ben.sees(approval, "Waits for a second person").await;
        ben.submit_again(&format!("{approval}/approve"), &page, &[])
            .await
            .expect(303);
        ben.sees(approval, "Approved and done").await;
        assert_eq!(app.sandbox.done(operation).await.len(), 3);
    }
    // Another link is another payment.
    let other = app.paid().await;
    let sent = [("amount", "2.00"), ("step", "do")];
    ann.submit(&path_of(&other, "/refund"), &sent)
        .await
        .expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 4);
    // What was refunded in Dojo's portal counts, too.
    let other = app.paid().await;
    app.sandbox.refund(&other["paymentIntentId"], 150).await;
    app.refresh(&other["id"]).await.expect(200);
    let sent = [("amount", "0.51"), ("step", "do")];
    let answer = ann.submit(&path_of(&other, "/refund"), &sent).await;
    let answer = answer.expect(303);
    assert!(answer.header("location").starts_with("/approvals/"));
    // What was claimed is no longer needed.
    assert_eq!(number(&app, "SELECT count(*) FROM console_claims").await, 0);
}

#[tokio::test]
async fn refunds_at_the_same_moment_count_together() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "2.00")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let path = path_of(&link, "/refund");
    let forms = join_all((0..6).map(|_| visitor.open(&path))).await;
    let sent = [("amount", "1.00"), ("step", "do")];
    let answers = forms
        .iter()
        .map(|form| visitor.submit_again(&path, form, &sent));
    let answers = join_all(answers).await;
    let (done, asked): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .map(|answer| answer.expect(303).header("location").to_owned())
        .partition(|location| location.starts_with("/links/"));
    assert_eq!((done.len(), asked.len()), (2, 4), "{done:?} {asked:?}");
    assert_eq!(app.sandbox.done("refund").await.len(), 2);
}

#[tokio::test]
async fn a_request_with_the_same_key_does_not_end_what_another_has_claimed() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "5.00")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let path = path_of(&link, "/refund");
    let (form, other) = (visitor.open(&path).await, visitor.open(&path).await);
    // The service reads the payment before it saves a refund.
    app.sandbox
        .next("get", "latency", json!({"latencyMs": 3000}))
        .await;
    let large = [("amount", "4.00"), ("step", "do")];
    let first = visitor.submit_again(&path, &form, &large);
    let meanwhile = async {
        eventually("the amount is claimed", async || {
            let claims = number(&app, "SELECT count(*) FROM console_claims").await;
            (claims == 1).then_some(())
        })
        .await;
        let long = "x".repeat(1025);
        let rejected = [("amount", "0.01"), ("reason", &*long), ("step", "do")];
        visitor
            .submit_again(&path, &form, &rejected)
            .await
            .expect(422);
        let rest = [("amount", "4.99"), ("step", "do")];
        let answer = visitor.submit_again(&path, &other, &rest).await;
        assert!(app.sandbox.done("refund").await.is_empty());
        answer.expect(303).header("location").to_owned()
    };
    let (first, second) = tokio::join!(first, meanwhile);
    assert!(first.expect(303).header("location").starts_with("/links/"));
    assert!(second.starts_with("/approvals/"), "{second}");
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

#[tokio::test]
async fn an_attempt_that_did_nothing_does_not_count() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "2.00")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let path = path_of(&link, "/refund");
    let sent = [("amount", "2.00"), ("step", "do")];
    app.sandbox
        .next("refund", "status", json!({"status": 400}))
        .await;
    visitor.submit(&path, &sent).await.expect(409);
    let answer = visitor.submit(&path, &sent).await.expect(303);
    assert!(answer.header("location").starts_with("/links/"));
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reversal_is_approved_for_the_whole_payment_and_nothing_else() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "5.00")]).await;
    let ann = Visitor::bootstrap(&app).await;
    let ben = Visitor::with_key(&app, &create_api_key(&app, "ben", ALL)).await;
    // Nothing is known to be captured yet, but all of it would be undone.
    let unconfirmed = app.created().await;
    app.deliver(&event("evt_1", &unconfirmed, "Captured"))
        .await
        .expect(204);
    ann.sees(&path_of(&unconfirmed, "/reverse"), "Request the approval")
        .await;

    let link = app.authorized().await;
    let path = path_of(&link, "/reverse");
    let request = async || {
        let answer = ann.submit(&path, &[("step", "do")]).await.expect(303);
        let approval = answer.header("location").to_owned();
        let page = ben.sees(&approval, "Waits for a second person").await;
        (approval, page)
    };
    let (approval, page) = request().await;
    assert!(page.contains("Reversal of £10.00"), "{page}");
    let more = json!({"amount": pounds(1200)});
    app.operate(&link, "amount", &more).await.expect(200);
    ben.submit_again(&format!("{approval}/approve"), &page, &[])
        .await
        .expect(303);
    ben.sees(&approval, "the payment was changed after it was requested")
        .await;
    assert!(app.sandbox.done("reversal").await.is_empty());

    let (approval, page) = request().await;
    assert!(page.contains("Reversal of £12.00"), "{page}");
    ben.submit_again(&format!("{approval}/approve"), &page, &[])
        .await
        .expect(303);
    ben.sees(&approval, "Approved and done").await;
    assert_eq!(app.sandbox.done("reversal").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_can_be_rejected_withdrawn_and_expires() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "0.00")]).await;
    let ann = Visitor::with_key(&app, &create_api_key(&app, "ann", ALL)).await;
    let ben = Visitor::with_key(&app, &create_api_key(&app, "ben", ALL)).await;
    let link = app.paid().await;
    let request = async || {
        let sent = [("amount", "1.00"), ("step", "do")];
        let answer = ann
            .submit(&path_of(&link, "/refund"), &sent)
            .await
            .expect(303);
        answer.header("location").to_owned()
    };
    let act = async |who: &Visitor, approval: &str, how: &str| {
        let page = who.get(approval).await.expect(200).text;
        who.submit_again(&format!("{approval}/{how}"), &page, &[])
            .await
    };
    let rejected = request().await;
    act(&ben, &rejected, "reject").await.expect(303);
    act(&ben, &rejected, "approve").await.expect(303);
    ben.sees(&rejected, "Rejected").await;
    let withdrawn = request().await;
    ann.sees(&withdrawn, "Withdraw").await;
    act(&ann, &withdrawn, "reject").await.expect(303);
    act(&ben, &withdrawn, "approve").await.expect(303);
    let late = request().await;
    run(
        &app,
        "UPDATE console_approvals SET expires_at = now() - interval '1 s' WHERE status = 'Pending'",
    )
    .await;
    act(&ben, &late, "approve").await.expect(303);
    ben.sees(&late, "Expired").await;
    assert!(app.sandbox.done("refund").await.is_empty());

    // What fails for a while can be sent again, and a payment that doesn't allow it is said so.
    let busy = request().await;
    let fault = json!({"operation": "refund", "kind": "status", "count": 20, "status": 429});
    app.sandbox.control("faults", fault).await;
    let failed = act(&ben, &busy, "approve").await;
    assert_eq!(failed.status.as_u16(), 503, "{}", failed.text);
    ben.sees(&busy, "Send it again").await;
    app.sandbox.clear("faults").await;
    act(&ben, &busy, "approve").await.expect(303);
    ben.sees(&busy, "Approved and done").await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_decision_is_made_without_its_entry_in_the_audit_list() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "5")]).await;
    let ann = Visitor::with_key(&app, &create_api_key(&app, "ann", ALL)).await;
    let ben = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let fields = [("amount", "6.00"), ("step", "do")];
    let asked = ann.submit(&path_of(&link, "/refund"), &fields).await;
    let approval = asked.expect(303).header("location").to_owned();
    let csrf = ben.csrf().await;
    let decide = async |how: &str| {
        let path = format!("{approval}/{how}");
        ben.post(&path, &[("csrf", &csrf)]).await
    };
    // The list takes no entry of a decision.
    run(
        &app,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
    )
    .await;
    run(
        &app,
        "CREATE TRIGGER refuse BEFORE INSERT ON console_audit FOR EACH ROW WHEN (NEW.what = 'approval') EXECUTE FUNCTION refuse()",
    )
    .await;
    for how in ["approve", "reject"] {
        decide(how).await.expect(500);
        ben.sees(&approval, "Waits for a second person").await;
    }
    assert!(app.sandbox.done("refund").await.is_empty());
    run(&app, "DROP TRIGGER refuse ON console_audit").await;
    decide("approve").await.expect(303);
    ben.sees(&approval, "Approved and done").await;
    let entries = "SELECT count(*) FROM console_audit WHERE what = 'approval'";
    assert_eq!(number(&app, entries).await, 1);
    // Nobody decides twice, so nothing more is recorded.
    decide("approve").await.expect(303);
    decide("reject").await.expect(303);
    assert_eq!(number(&app, entries).await, 1);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

/// Has a receipt sent whose outcome nobody knows: Dojo's response is lost.
pub async fn lose_receipt(app: &TestApp, key: &str, link: &Value) {
    app.sandbox.next("receipt", "cutAfter", json!({})).await;
    let emails = json!({"emails": ["mari@example.com"]});
    app.operate_with_key(key, link, "receipt", &emails)
        .await
        .problem(504, "outcome-unknown");
}

/// Waits for an unconfirmed operation. Returns the page that lists it, and the path of the form that settles it.
async fn to_settle(visitor: &Visitor) -> (String, String) {
    eventually("the operation is unconfirmed", async || {
        let page = visitor.get("/attention").await.expect(200).text;
        let id = page.split("href=\"/operations/").nth(1)?;
        let path = format!("/operations/{}", id.split('"').next()?);
        Some((page, path))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_operations_need_two_people_nobody_settles_their_own() {
    let app = start(&[&QUICK[..], &[("CONSOLE_APPROVAL_LIMIT", "100")]].concat()).await;
    let (own, key) = (
        Visitor::bootstrap(&app).await,
        create_api_key(&app, "ann", ALL),
    );
    let link = app.paid().await;
    lose_receipt(&app, "a", &link).await;
    let (_, path) = to_settle(&own).await;
    let csrf = own.csrf().await;
    let fields = [("csrf", csrf.as_str()), ("outcome", "not-done")];
    for answer in [own.get(&path).await, own.post(&path, &fields).await] {
        let page = answer.expect(403).text;
        assert!(page.contains("A second person must record it"), "{page}");
    }
    let ann = Visitor::with_key(&app, &key).await;
    ann.submit(&path, &[("outcome", "done")]).await.expect(303);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_attention_is_listed_and_settled() {
    let app = start(&QUICK).await;
    let visitor = Visitor::bootstrap(&app).await;
    visitor
        .sees("/attention", "Nothing needs your attention now.")
        .await;
    let link = app.paid().await;
    lose_receipt(&app, "a", &link).await;
    let (page, path) = to_settle(&visitor).await;
    assert!(!page.contains("mari@"), "{page}");

    let key = create_api_key(&app, "reader", "links:read");
    let reader = Visitor::with_key(&app, &key).await;
    reader
        .sees("/attention", "Operations with an unconfirmed outcome")
        .await;
    reader.get(&path).await.expect(403);
    let csrf = reader.csrf().await;
    reader
        .post(&path, &[("csrf", &csrf), ("outcome", "done")])
        .await
        .expect(403);

    let settled = visitor
        .submit(&path, &[("outcome", "done")])
        .await
        .expect(303);
    visitor
        .sees(settled.header("location"), "Receipt: done.")
        .await;
    let last = app.timeline(&link["id"]).await.pop().unwrap();
    assert_eq!(last["cause"]["client"], "bootstrap");
    visitor.get(&path).await.expect(409);
    let csrf = visitor.csrf().await;
    visitor
        .post(&path, &[("csrf", &csrf), ("outcome", "not-done")])
        .await
        .expect(409);

    let id = format!("payment_intent_id = '{}'", text(&link["paymentIntentId"]));
    run(&app, &format!("UPDATE payment_links SET mismatch = '{{\"value\": 2000, \"currencyCode\": \"GBP\"}}', due_at = NULL WHERE {id}")).await;
    visitor
        .sees(
            "/attention",
            "Dojo would charge 20.00 GBP, and £10.00 was requested.",
        )
        .await;
    visitor
        .sees(
            &path_of(&link, ""),
            "Dojo would charge 20.00 GBP, and £10.00 was requested",
        )
        .await;
    run(&app, &format!("UPDATE payment_links SET mismatch = NULL, unsettled_status = '', updated_at = now() - interval '1 h', due_at = NULL WHERE {id}")).await;
    visitor
        .sees("/attention", "Links that Dojo hasn’t confirmed")
        .await;
    run(&app, &format!(
        "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
         SELECT id, 'surplusPaid', status, status, '{{\"type\": \"recovery\"}}', '{{\"paymentIntentId\": \"pi_2\"}}' FROM payment_links WHERE {id}"
    )).await;
    visitor
        .sees("/attention", "intent pi_2 of account default")
        .await;
}

#[tokio::test]
async fn a_link_with_another_amount_at_dojo_is_not_handed_out() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    let (page, send) = (path_of(&link, ""), path_of(&link, "/send"));
    let before = visitor.open(&page).await;
    for part in [text(&link["url"]), "qr.svg", &send] {
        assert!(before.contains(part), "{part}: {before}");
    }
    let mismatch = "UPDATE payment_links SET mismatch = '{\"value\": 2000, \"currencyCode\": \"GBP\"}', due_at = NULL";
    assert_eq!(run(&app, mismatch).await, 1);
    let after = visitor.sees(&page, "Don’t send this link out.").await;
    for part in [text(&link["url"]), "qr.svg", &send] {
        assert!(!after.contains(part), "{part}: {after}");
    }
    assert!(after.contains(&path_of(&link, "/cancel")), "{after}");
}

#[tokio::test]
async fn the_audit_list_says_who_did_what_and_cannot_be_changed() {
    let app = start(&[]).await;
    let visitor = Visitor::new(&app).await;
    visitor.sign_in("x", "").await.expect(401);
    let visitor = Visitor::bootstrap(&app).await;
    let fields = [
        ("account", "default"),
        ("amount", "10.00"),
        ("currency", "GBP"),
        ("reference", "Order 1"),
        ("description", "For Mari"),
        ("email", "mari@example.com"),
        ("collect", "auto"),
    ];
    let created = visitor.submit("/links/new", &fields).await.expect(303);
    let id = created
        .header("location")
        .split(['/', '?'])
        .nth(2)
        .unwrap()
        .to_owned();
    visitor
        .submit(&format!("/links/{id}/cancel"), &[("step", "do")])
        .await
        .expect(303);
    let page = visitor.get("/audit").await.expect(200).text;
    for words in [
        "Sign in",
        "rejected",
        "New link",
        "Cancel the link",
        "requested",
        "bootstrap",
        &id,
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let entries: Vec<String> = sqlx::query_scalar("SELECT console_audit::text FROM console_audit")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    assert_eq!(entries.len(), 6, "{entries:?}");
    let entries = entries.concat().to_lowercase();
    assert!(
        !entries.contains("mari") && !entries.contains("order 1"),
        "{entries}"
    );
    let log = app.service.log().to_lowercase();
    assert!(!log.contains("mari"), "{log}");
    for change in [
        "UPDATE console_audit SET outcome = 'x'",
        "DELETE FROM console_audit",
        "TRUNCATE console_audit",
    ] {
        let error = sqlx::query(AssertSqlSafe(change))
            .execute(&app.pool)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
    visitor.sees("/audit?before=3", "rejected").await;
}

/// The settings of a proxy at this address.
pub fn proxy_at(addresses: &str) -> [(&str, &str); 4] {
    [
        ("CONSOLE_PROXY_ADDRESSES", addresses),
        ("CONSOLE_PROXY_USER_HEADER", "X-Forwarded-User"),
        ("CONSOLE_PROXY_GROUPS_HEADER", "X-Forwarded-Groups"),
        (
            "CONSOLE_GROUP_SCOPES",
            "support=links:read;finance=links:read,payments:manage",
        ),
    ]
}

#[tokio::test]
async fn a_proxy_vouches_for_people() {
    let app = start(&proxy_at("127.0.0.0/8")).await;
    let link = app.paid().await;
    let mut visitor = Visitor::new(&app).await;
    let through_proxy = |request: RequestBuilder, user: &str, groups: &str| {
        request
            .header("x-forwarded-user", user)
            .header("x-forwarded-groups", groups)
    };
    let first = visitor.request(Method::GET, "/links?q=Order");
    let answer = send(through_proxy(first, "ann@example.com", "finance,staff"))
        .await
        .expect(303);
    assert_eq!(answer.header("location"), "/links?q=Order");
    visitor.take_cookie(&answer);
    let get = async |visitor: &Visitor, path: &str, user: &str, groups: &str| {
        send(through_proxy(
            visitor.request(Method::GET, path),
            user,
            groups,
        ))
        .await
    };
    let path = path_of(&link, "/refund");
    let form = get(&visitor, &path, "ann@example.com", "finance").await;
    let form = form.expect(303);
    let address = form.header("location");
    let page = get(&visitor, address, "ann@example.com", "finance")
        .await
        .expect(200)
        .text;
    assert!(page.contains("console:ann@example.com"), "{page}");

    // Each request counts as the groups that it comes with.
    get(&visitor, &path, "ann@example.com", "support")
        .await
        .expect(403);
    get(&visitor, "/links", "ann@example.com", "staff")
        .await
        .expect(403);
    // Another person gets a session of their own, and nobody gets in without the proxy.
    let other = get(&visitor, "/links", "ben@example.com", "finance")
        .await
        .expect(303);
    assert_ne!(
        other.header("set-cookie").split(';').next(),
        visitor.cookie.as_deref()
    );
    visitor.get("/links").await.expect(303);
    let two = visitor
        .request(Method::GET, "/links")
        .header("x-forwarded-user", "ann@example.com");
    let two = through_proxy(two, "ben@example.com", "finance");
    send(two).await.expect(403);

    let fields = [
        ("csrf", hidden(&page, "csrf")),
        ("key", hidden(&page, "key")),
        ("amount", "1.00".to_owned()),
        ("step", "do".to_owned()),
    ];
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    send(through_proxy(
        visitor.form(&path, &fields),
        "ann@example.com",
        "support",
    ))
    .await
    .expect(403);
    send(through_proxy(
        visitor.form(&path, &fields),
        "ann@example.com",
        "finance",
    ))
    .await
    .expect(303);
    send(through_proxy(
        visitor.form(&path, &fields),
        "ann@example.com",
        "finance",
    ))
    .await
    .expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    assert_eq!(
        app.operations(&link).await[0]["createdBy"],
        "console:ann@example.com"
    );
}

#[tokio::test]
async fn headers_that_do_not_come_from_the_proxy_are_ignored() {
    let app = start(&proxy_at("192.0.2.1")).await;
    let visitor = Visitor::new(&app).await;
    let request = visitor
        .request(Method::GET, "/links")
        .header("x-forwarded-user", "ann@example.com")
        .header("x-forwarded-groups", "finance");
    let answer = send(request).await.expect(303);
    assert_eq!(answer.header("location"), "/sign-in?next=%2Flinks");
    assert_eq!(answer.header("set-cookie"), "");
    Visitor::bootstrap(&app).await;
}

#[test]
fn wrong_settings_prevent_the_start() {
    let nothing = [
        ("DATABASE_URL", "postgres://x"),
        ("DOJO_API_KEY", "sk_sandbox_1"),
    ];
    for (settings, words) in [
        (
            &[("CONSOLE_LISTEN_ADDR", "8082")] as &[(&str, &str)],
            "CONSOLE_LISTEN_ADDR must be an IP address",
        ),
        (
            &[("CONSOLE_LISTEN_ADDR", "0.0.0.0:8080")],
            "CONSOLE_LISTEN_ADDR 0.0.0.0:8080 overlaps with LISTEN_ADDR",
        ),
        (
            &[("CONSOLE_APPROVAL_LIMIT", "100.0")],
            "CONSOLE_APPROVAL_LIMIT must be an amount such as 100 or 100.00",
        ),
        (
            &[("CONSOLE_SESSION_IDLE", "0s")],
            "CONSOLE_SESSION_IDLE must be a duration",
        ),
        (
            &[("CONSOLE_PROXY_ADDRESSES", "proxy")],
            "CONSOLE_PROXY_ADDRESSES must be networks",
        ),
        (
            &[("CONSOLE_GROUP_SCOPES", "a=links:all")],
            "CONSOLE_GROUP_SCOPES must be groups and their scopes",
        ),
        (
            &[("CONSOLE_PROXY_ADDRESSES", "127.0.0.1")],
            "CONSOLE_PROXY_USER_HEADER is required",
        ),
    ] {
        let error = error_of(
            program()
                .arg("serve")
                .envs(nothing)
                .envs(settings.iter().copied()),
        );
        assert!(error.contains(words), "{words:?} is not in {error}");
    }
}

#[tokio::test]
async fn there_is_no_console_unless_it_has_an_address() {
    let without = TestApp::start().await;
    assert!(!without.service.log().contains("listening for the console"));
}
