//! The console under attack: by people who may see one account only, by callers who send markup, by other sites, by names that
//! point to this machine, and by whoever sends headers or keys. `docs/console-security.md` lists what each test shows.

use std::{collections::BTreeSet, fs, path::Path};

use futures_util::future::join_all;
use proc_macro2::{TokenStream, TokenTree};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use url::form_urlencoded::byte_serialize;

use crate::{
    accounts::Folder,
    commands::{api_keys, create_api_key, create_limited_key, error_of, output_of, revoke_api_key},
    console::{
        ALL, KEY, Visitor, hidden, hostile, number, path_of, proxy_at, run, start, two_sites,
        url_of,
    },
    console_browser::WIDE,
    daily_reconciliation::around_today,
    support::{API_KEY, Answer, TestApp, eventually, pounds, program, send, ten_pounds, text},
};

/// Every scope.
const EVERYTHING: &str =
    "links:read,links:write,links:send,payments:manage,events:read,callbacks:manage,data:erase";

/// A business day that no job compares.
const DAY: &str = "2020-01-02";

/// The query for everything that happens in a test, even around midnight.
fn lately() -> String {
    let (from, to) = around_today();
    format!("from={from}&to={to}")
}

fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

/// The routes of the console as its source code declares them: each method and path.
fn routes() -> BTreeSet<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console");
    let mut found = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for other in [".nest(", ".merge(", "_service("] {
            assert!(
                !text.contains(other),
                "{other} may add routes that are not found"
            );
        }
        declared(text.parse().unwrap(), &mut found);
    }
    assert!(found.len() > 25, "{found:?}");
    found
}

fn declared(tokens: TokenStream, found: &mut BTreeSet<(String, String)>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else {
            continue;
        };
        let before = at.checked_sub(1).map(|before| tokens[before].to_string());
        if before.as_deref() == Some("route") {
            add(group.stream(), found);
        }
        declared(group.stream(), found);
    }
}

/// Adds what these arguments of `Router::route` declare.
fn add(arguments: TokenStream, found: &mut BTreeSet<(String, String)>) {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let Some(TokenTree::Literal(path)) = arguments.first() else {
        panic!("the path of a route is not a literal");
    };
    let path = path.to_string().trim_matches('"').to_owned();
    let names = arguments.iter().filter_map(|token| match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    });
    // A layer around a route is none of its methods.
    for name in names.filter(|name| name != "layer") {
        let is_known = matches!(&*name, "get" | "post" | "put" | "patch" | "delete");
        assert!(is_known, "{path} is declared with {name}");
        found.insert((name.to_uppercase(), path.clone()));
    }
}

/// Whether a path is one of a route's.
fn is_of(route: &str, path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap();
    let (parts, pattern): (Vec<_>, Vec<_>) =
        (path.split('/').collect(), route.split('/').collect());
    parts.len() == pattern.len()
        && pattern.iter().zip(&parts).all(|(pattern, part)| {
            pattern == part || (pattern.starts_with('{') && !part.is_empty())
        })
}

/// What there is of the account `default`, all of it about a zebra.
struct Zebra {
    paid: Value,
    open: Value,
    operation: String,
    approval: String,
}

impl Zebra {
    /// Needs `RUN_JOBS`, and `CONSOLE_APPROVAL_LIMIT` below 6 pounds.
    async fn new(app: &TestApp, boss: &Visitor) -> Self {
        let mut body = ten_pounds("Zebra paid");
        body["description"] = json!("A zebra");
        body["customer"] = json!({"emailAddress": "zebra@example.com"});
        body["metadata"] = json!({"animal": "zebra"});
        let paid = app.create(&body).await.expect(201).json();
        app.sandbox.pay(&paid["paymentIntentId"]).await;
        let paid = app.read_until_confirmed(&paid["id"]).await;
        let open = app.create(&ten_pounds("Zebra open")).await;
        let open = open.expect(201).json();

        let emails = json!({"emails": ["zebra@example.com"]});
        let receipt = app.operate_with_key("a", &paid, "receipt", &emails).await;
        let operation = text(&receipt.expect(200).json()["operation"]["id"]).to_owned();
        let unconfirmed = "UPDATE operations SET status = 'Unconfirmed', due_at = NULL";
        assert_eq!(run(app, unconfirmed).await, 1);
        let asked = [
            ("amount", "6.00"),
            ("reason", "Zebra reason"),
            ("step", "do"),
        ];
        let asked = boss.submit(&path_of(&paid, "/refund"), &asked).await;
        let approval = asked.expect(303).header("location").to_owned();
        let approval = approval.strip_prefix("/approvals/").unwrap().to_owned();

        let mismatch = format!(
            "UPDATE payment_links SET mismatch = '{{\"value\": 2000, \"currencyCode\": \"GBP\"}}'
             WHERE payment_intent_id = '{}'",
            text(&open["paymentIntentId"])
        );
        assert_eq!(run(app, &mismatch).await, 1);
        let compared = compared_day("default", "Zebra transaction");
        assert_eq!(run(app, &compared).await, 1);
        let endpoint = json!({"url": "https://zebra.example.com/hook"});
        let endpoint = app.subscribe(&endpoint).await;
        let pause = format!("/v1/callback-endpoints/{}/pause", text(&endpoint["id"]));
        send(app.request(Method::POST, &pause)).await.expect(200);
        app.everything_is_booked().await;
        Self {
            paid,
            open,
            operation,
            approval,
        }
    }

    /// What nobody may read who has no access to the account, in lower case.
    fn marks(&self) -> Vec<String> {
        let ids = [&self.paid, &self.open].map(|link| {
            let code = text(&link["shortUrl"]).rsplit('/').next().unwrap();
            [
                text(&link["id"]).to_owned(),
                text(&link["paymentIntentId"]).to_owned(),
                code.to_owned(),
            ]
        });
        let words = ["zebra", "account default", "\"default\"", ">default<"];
        let mut marks: Vec<_> = words.map(str::to_owned).to_vec();
        marks.extend(ids.into_iter().flatten().map(|id| id.to_lowercase()));
        marks.extend([self.operation.clone(), self.approval.clone()]);
        marks
    }

    /// The paths of a route that are about something of the account.
    fn paths(&self, route: &str) -> Vec<String> {
        let links = [&self.paid, &self.open].map(|link| text(&link["id"]));
        let ids = match route.split('/').nth(1).unwrap_or_default() {
            "links" => links.to_vec(),
            "operations" => vec![self.operation.as_str()],
            "approvals" => vec![self.approval.as_str()],
            _ => Vec::new(),
        };
        let actions = [
            "send", "capture", "refund", "reverse", "amount", "tip", "receipt", "cancel", "renew",
            "nothing",
        ];
        let paths = ids.iter().flat_map(|id| {
            let path = route.replace("{id}", id);
            let actions = actions.iter().filter(|_| path.contains("{action}"));
            let paths: Vec<_> = actions.map(|name| path.replace("{action}", name)).collect();
            if paths.is_empty() { vec![path] } else { paths }
        });
        let paths: Vec<_> = paths.collect();
        assert!(
            !paths.is_empty() && paths.iter().all(|path| !path.contains('{')),
            "{route}: {paths:?}"
        );
        paths
    }
}

/// A statement that stores a comparison with a transaction that only Dojo has.
fn compared_day(account: &str, mark: &str) -> String {
    let transaction = json!({
        "id": mark, "occurredAt": "2020-01-02T16:20:09Z", "type": mark, "status": mark,
        "amount": {"value": 1000, "currencyCode": mark}, "tipsAmount": null, "cashbackAmount": null,
        "paymentIntentId": mark, "reference": mark, "paymentProduct": mark,
    });
    let differences = ["onlyAtDojo", "held"]
        .map(|kind| json!({"kind": kind, "movement": null, "transaction": transaction}));
    format!(
        "INSERT INTO daily_reconciliations
             (account, business_day, state, reconciled_at, transactions, difference_count, differences)
         VALUES ('{account}', '{DAY}', 'Differs', now(), 2, 2, {})",
        quoted(&json!(differences).to_string())
    )
}

/// A text as SQL has it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Everything that somebody could have changed.
async fn contents(app: &TestApp) -> String {
    let sql = "SELECT concat_ws(' ',
        (SELECT count(*) FROM payment_links),
        (SELECT string_agg(kind || status, ',' ORDER BY id) FROM operations),
        (SELECT string_agg(status, ',' ORDER BY id) FROM console_approvals),
        (SELECT count(*) FROM messages),
        (SELECT string_agg(status, ',' ORDER BY id) FROM callback_endpoints),
        (SELECT count(*) FROM console_sessions),
        (SELECT count(*) FROM payment_link_events WHERE kind LIKE 'operation%'),
        (SELECT count(*) FROM payment_links WHERE erased_at IS NOT NULL),
        (SELECT count(*) FROM clients))";
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

/// What somebody gets at a route who has no access to an account.
enum Expected {
    /// The same as everybody: it is about no account.
    Open,
    /// What is their own, at each of these paths. Somebody with access to the account reads this word there.
    Own(Vec<String>, String),
    /// Nothing: each of these paths is about something of the account.
    Nothing(Vec<String>),
    /// A form with this account in it is rejected.
    Rejected,
}

fn expected(method: &str, route: &str, zebra: &Zebra) -> Expected {
    let own = |queries: &[&str], word: &str| {
        let paths = queries.iter().map(|query| format!("{route}{query}"));
        Expected::Own(paths.collect(), word.to_owned())
    };
    match (method, route) {
        (
            "GET",
            "/" | "/healthz" | "/style.css" | "/console.js" | "/sign-in" | "/runbook"
            | "/preferences",
        )
        | ("POST", "/sign-in" | "/sign-out" | "/health" | "/preferences") => Expected::Open,
        ("GET", "/links") => {
            let searches = zebra.marks().into_iter().chain([
                "Zebra paid".to_owned(),
                "zebra@example.com".to_owned(),
                "1005".to_owned(),
                "10.00".to_owned(),
            ]);
            let searches = searches.map(|search| format!("?q={}", encoded(&search)));
            let fixed = [
                "",
                "?account=default",
                "?status=Captured",
                "?account=nowhere",
            ];
            let queries: Vec<_> = fixed
                .map(str::to_owned)
                .into_iter()
                .chain(searches)
                .collect();
            let queries: Vec<_> = queries.iter().map(String::as_str).collect();
            own(&queries, "Zebra paid")
        }
        ("GET", "/links/new") => own(&[""], "value=\"default\""),
        ("POST", "/links/new") => Expected::Rejected,
        ("GET", "/attention") => own(&[""], "zebra.example.com"),
        ("GET", "/approvals") => own(&[""], &zebra.approval),
        ("GET", "/audit") => own(&["", "?before=1000000"], text(&zebra.paid["id"])),
        ("GET", "/health") => own(&[""], "Account default"),
        ("GET", "/books" | "/books/movements.csv") => {
            let (all, one) = (
                format!("?{}", lately()),
                format!("?{}&account=default", lately()),
            );
            own(&[&all, &one, "", "?account=default"], "Zebra paid")
        }
        ("GET", "/books/reconciliations/{date}") => {
            let path = route.replace("{date}", DAY);
            Expected::Own(vec![path], "Zebra transaction".to_owned())
        }
        (
            "GET" | "POST",
            "/links/{id}"
            | "/links/{id}/qr.svg"
            | "/links/{id}/refresh"
            | "/links/{id}/{action}"
            | "/operations/{id}"
            | "/approvals/{id}"
            | "/approvals/{id}/approve"
            | "/approvals/{id}/reject",
        ) => Expected::Nothing(zebra.paths(route)),
        _ => {
            panic!("{method} {route}: say here what somebody gets who has no access to an account")
        }
    }
}

/// The fields of every form, filled in.
fn filled_in(csrf: &str) -> Vec<(&str, &str)> {
    vec![
        ("csrf", csrf),
        ("key", KEY),
        ("step", "do"),
        ("amount", "1.00"),
        ("tip", "1.00"),
        ("to", "eve@example.com"),
        ("emails", "eve@example.com"),
        ("email", "eve@example.com"),
        ("outcome", "done"),
        ("account", "default"),
        ("currency", "GBP"),
        ("reference", "Eve"),
        ("collect", "auto"),
    ]
}

/// A page's path with a key, if it needs one.
async fn page(visitor: &Visitor, path: &str) -> Answer {
    let answer = visitor.get(path).await;
    let next = answer.header("location").to_owned();
    if next.starts_with(&format!("{path}?key=")) {
        visitor.get(&next).await
    } else {
        answer
    }
}

/// What this says of an account that the reader has no access to. What was asked for may be repeated.
#[track_caller]
fn says_nothing(answer: &Answer, asked: &str, marks: &[String]) {
    assert!(!answer.status.is_server_error(), "{asked}: {}", answer.text);
    let asked = asked
        .replace('+', " ")
        .replace("%40", "@")
        .replace("%22", "\"");
    let asked = asked.replace("%3E", ">").replace("%3C", "<").to_lowercase();
    let words = answer.text.to_lowercase();
    for mark in marks.iter().filter(|mark| !asked.contains(mark.as_str())) {
        assert!(
            !words.contains(mark.as_str()),
            "{asked} says {mark}: {words}"
        );
    }
    let location = answer.header("location").to_lowercase();
    assert!(!location.contains("plink_"), "{asked} leads to {location}");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_with_another_account_reaches_nothing_on_any_route() {
    let folder = Folder::new();
    let settings = [("CONSOLE_APPROVAL_LIMIT", "5.00"), ("RUN_JOBS", "true")];
    let app = two_sites(&folder, &settings).await;
    let boss = Visitor::bootstrap(&app).await;
    let zebra = Zebra::new(&app, &boss).await;
    let mut body = ten_pounds("Order of Leeds");
    body["account"] = json!("leeds");
    let own = app.create(&body).await.expect(201).json();
    let key = create_limited_key(&app, "eve", EVERYTHING, "leeds");
    let eve = Visitor::with_key(&app, &key).await;
    eve.sees("/links", "Order of Leeds").await;
    eve.sees(&path_of(&own, ""), "Order of Leeds").await;
    let csrf = eve.csrf().await;
    let marks = zebra.marks();
    let before = contents(&app).await;

    for (method, route) in routes() {
        match expected(&method, &route, &zebra) {
            Expected::Open => {}
            Expected::Own(paths, word) => {
                let whole = page(&boss, &paths[0]).await.expect(200).text;
                assert!(whole.contains(&word), "{route} doesn't say {word}: {whole}");
                for path in paths {
                    says_nothing(&page(&eve, &path).await, &path, &marks);
                    let live = eve.request(Method::GET, &path).header("x-live", "now");
                    says_nothing(&send(live).await, &path, &marks);
                }
            }
            Expected::Nothing(paths) if method == "GET" => {
                let mut is_there = false;
                for path in paths {
                    let answer = eve.get(&path).await.expect(404);
                    says_nothing(&answer, &path, &marks);
                    is_there |= boss.get(&path).await.status != 404;
                }
                assert!(is_there, "nobody finds anything at {route}");
            }
            Expected::Nothing(paths) => {
                for path in paths {
                    let answer = eve.post(&path, &filled_in(&csrf)).await.expect(404);
                    says_nothing(&answer, &path, &marks);
                }
            }
            Expected::Rejected => {
                let answer = eve.post(&route, &filled_in(&csrf)).await.expect(422);
                assert!(answer.text.contains("account-error"), "{}", answer.text);
            }
        }
    }
    assert_eq!(contents(&app).await, before);
    for operation in ["refund", "reversal", "cancel", "capture"] {
        assert!(app.sandbox.done(operation).await.is_empty(), "{operation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_into_the_audit_list_of_another_account() {
    let folder = Folder::new();
    let app = two_sites(&folder, &[]).await;
    let key = create_limited_key(&app, "eve", "links:read,links:write", "leeds");
    let eve = Visitor::with_key(&app, &key).await;
    let long = "x".repeat(100_000);
    for account in ["default", "mari@example.com", &long] {
        let fields = [
            ("account", account),
            ("amount", "1.00"),
            ("currency", "GBP"),
            ("reference", "Eve"),
            ("collect", "auto"),
        ];
        eve.submit("/links/new", &fields).await.expect(422);
    }
    let entries = "SELECT count(*) FROM console_audit WHERE what = 'create'";
    assert_eq!(number(&app, entries).await, 6);
    let about = "SELECT count(*) FROM console_audit WHERE what = 'create' AND account IS NOT NULL";
    assert_eq!(number(&app, about).await, 0);
    // Her own account is recorded.
    let fields = [
        ("account", "leeds"),
        ("amount", "1.00"),
        ("currency", "GBP"),
        ("reference", "Order 1"),
        ("collect", "auto"),
    ];
    eve.submit("/links/new", &fields).await.expect(303);
    assert_eq!(number(&app, about).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_is_accepted_from_another_site_or_without_the_word_of_the_session() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "5.00"), ("RUN_JOBS", "true")]).await;
    let boss = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let csrf = boss.csrf().await;
    let before = contents(&app).await;
    let routes = routes();
    let forms = routes.iter().filter(|(method, _)| method != "GET");
    for (_, route) in forms {
        let path = route
            .replace("/links/{id}", &path_of(&link, ""))
            .replace("{action}", "refund")
            .replace("{id}", "0193a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b");
        let fields = filled_in(&csrf);
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("x-nothing", ""),
        ] {
            let request = boss.foreign_form(&path, &fields).header(name, value);
            let answer = send(request).await.expect(403);
            assert!(answer.text.contains("not sent by a page of this console"));
            assert_eq!(answer.header("set-cookie"), "");
        }
        // The button that loads a page again proves nothing if the form came from another site.
        let again = boss.foreign_form(&path, &fields);
        let again = again.header("sec-fetch-site", "none");
        let again = again.header("origin", "https://evil.example");
        send(again).await.expect(403);
        // Signing in has no session whose word it could contain.
        if route != "/sign-in" {
            for wrong in ["", "00", &"ab".repeat(32)] {
                boss.post(&path, &filled_in(wrong)).await.expect(403);
            }
        }
        // A form is never sent by following a link, whatever it says.
        if !routes.contains(&("GET".to_owned(), route.clone())) {
            let query = format!("{path}?_method=POST&csrf={csrf}&key={KEY}&step=do&amount=1.00");
            for name in ["x-http-method-override", "x-method-override", "x-nothing"] {
                let request = boss.request(Method::GET, &query).header(name, "POST");
                let status = send(request).await.status.as_u16();
                assert!(matches!(status, 404 | 405), "{path}: {status}");
            }
        }
    }
    assert_eq!(contents(&app).await, before);
    assert!(app.sandbox.done("refund").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_may_only_read_changes_nothing_on_any_route() {
    let folder = Folder::new();
    let settings = [("CONSOLE_APPROVAL_LIMIT", "5.00"), ("RUN_JOBS", "true")];
    let app = two_sites(&folder, &settings).await;
    let boss = Visitor::bootstrap(&app).await;
    let zebra = Zebra::new(&app, &boss).await;
    let reader = Visitor::with_key(&app, &create_api_key(&app, "reader", "links:read")).await;
    let csrf = reader.csrf().await;
    let before = contents(&app).await;
    for (_, route) in routes().iter().filter(|(method, _)| method != "GET") {
        // Anybody may sign in and out and have preferences, and reading from Dojo is reading.
        if matches!(
            &**route,
            "/sign-in" | "/sign-out" | "/preferences" | "/links/{id}/refresh" | "/health"
        ) {
            continue;
        }
        let paths = match expected("POST", route, &zebra) {
            Expected::Nothing(paths) => paths,
            _ => vec![route.clone()],
        };
        for path in paths.iter().filter(|path| !path.ends_with("/nothing")) {
            reader.post(path, &filled_in(&csrf)).await.expect(403);
        }
    }
    assert_eq!(contents(&app).await, before);
    assert!(app.sandbox.done("refund").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_changes_nothing() {
    let folder = Folder::new();
    let settings = [("CONSOLE_APPROVAL_LIMIT", "5.00"), ("RUN_JOBS", "true")];
    let app = two_sites(&folder, &settings).await;
    let boss = Visitor::bootstrap(&app).await;
    let zebra = Zebra::new(&app, &boss).await;
    let before = contents(&app).await;
    for (_, route) in routes().iter().filter(|(method, _)| method == "GET") {
        let paths = match expected("GET", route, &zebra) {
            Expected::Open => vec![route.clone()],
            Expected::Own(paths, _) | Expected::Nothing(paths) => paths,
            Expected::Rejected => Vec::new(),
        };
        for path in paths {
            let separator = if path.contains('?') { '&' } else { '?' };
            page(&boss, &path).await;
            boss.get(&format!(
                "{path}{separator}step=do&amount=1.00&outcome=done&_method=POST"
            ))
            .await;
        }
    }
    assert_eq!(contents(&app).await, before);
    assert!(app.sandbox.done("refund").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_session_or_at_another_name() {
    let app = start(&[]).await;
    let stranger = Visitor::new(&app).await;
    let boss = Visitor::bootstrap(&app).await;
    let csrf = boss.csrf().await;
    let before = contents(&app).await;
    for (method, route) in routes() {
        let path = route
            .replace("{id}", "plink_01m81mqpmrf8384nj77tj0t0e4")
            .replace("{action}", "refund")
            .replace("{date}", DAY);
        if matches!(
            &*route,
            "/" | "/healthz" | "/style.css" | "/console.js" | "/sign-in"
        ) {
            continue;
        }
        let ask = |visitor: &Visitor| match &*method {
            "GET" => visitor.request(Method::GET, &path),
            _ => visitor.form(&path, &filled_in(&csrf)),
        };
        let answer = send(ask(&stranger)).await.expect(303);
        let to = format!("/sign-in?next={}", encoded(&path));
        assert_eq!(answer.header("location"), to);
        let live = send(ask(&stranger).header("x-live", "1")).await;
        assert_eq!(live.expect(401).text, "");
        // A site of somebody else, whose name points to this machine.
        let answer = send(ask(&boss).header("host", "evil.example:8082")).await;
        let page = answer.expect(421).text;
        assert!(page.contains("CONSOLE_URL"), "{route}");
        // It leads to no page that is at this address as well.
        assert!(page.contains("by its IP address instead"), "{page}");
        assert!(!page.contains("<a href=\"/links\""), "{page}");
    }
    assert_eq!(contents(&app).await, before);

    let named = |method: Method, path: &str, host: &str| {
        stranger.request(method, path).header("host", host)
    };
    let sign_in = |host: &str, origin: &str| {
        let form = stranger.foreign_form("/sign-in", &[("key", API_KEY)]);
        form.header("host", host).header("origin", origin)
    };
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
    ] {
        let form = send(named(Method::GET, "/sign-in", host)).await;
        assert!(!form.expect(421).text.contains("name=\"key\""));
        let answer = send(sign_in(host, &format!("http://{host}"))).await;
        assert_eq!(answer.expect(421).header("set-cookie"), "");
        // A load balancer may ask by any name.
        send(named(Method::GET, "/healthz", host)).await.expect(200);
    }
    let answer = send(sign_in("localhost:8082", "http://localhost:8082")).await;
    assert!(
        answer
            .expect(303)
            .header("set-cookie")
            .starts_with("console=")
    );
    // An address, over TLS, keeps what no other host may set.
    let answer = send(sign_in("192.0.2.1", "https://192.0.2.1")).await;
    assert!(
        answer
            .expect(303)
            .header("set-cookie")
            .starts_with("__Host-console=")
    );
}

#[tokio::test]
async fn no_host_header_weakens_the_cookie_once_the_console_has_its_address() {
    let app = start(&[("CONSOLE_URL", "https://console.example.com")]).await;
    let stranger = Visitor::new(&app).await;
    let sign_in = |host: &str, origin: &str| {
        let form = stranger.foreign_form("/sign-in", &[("key", API_KEY)]);
        form.header("host", host).header("origin", origin)
    };
    let (host, origin) = ("console.example.com", "https://console.example.com");
    for host in [
        "localhost",
        "127.0.0.1",
        "example.com",
        "console.example.com:8082",
    ] {
        let answer = send(sign_in(host, &format!("https://{host}")))
            .await
            .expect(421);
        assert_eq!(answer.header("set-cookie"), "");
        assert!(
            answer.text.contains(&format!("href=\"{origin}\"")),
            "{}",
            answer.text
        );
    }
    for other in ["http://console.example.com", "https://evil.example", "null"] {
        send(sign_in(host, other)).await.expect(403);
    }
    for host in [host, "CONSOLE.EXAMPLE.COM", "console.example.com:443"] {
        let answer = send(sign_in(host, origin)).await.expect(303);
        let cookie = answer.header("set-cookie");
        assert!(cookie.starts_with("__Host-console="), "{cookie}");
        assert!(
            cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict"),
            "{cookie}"
        );
        // The name without the prefix, which another host of the domain could set, opens nothing.
        let (pair, _) = cookie.split_once(';').unwrap();
        let get = |cookie: &str| {
            let request = stranger.request(Method::GET, "/links").header("host", host);
            request.header("cookie", cookie.to_owned())
        };
        send(get(&pair.replace("__Host-", ""))).await.expect(303);
        send(get(pair)).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_can_be_framed_or_kept() {
    let folder = Folder::new();
    let settings = [("CONSOLE_APPROVAL_LIMIT", "5.00"), ("RUN_JOBS", "true")];
    let app = two_sites(&folder, &settings).await;
    let boss = Visitor::bootstrap(&app).await;
    let stranger = Visitor::new(&app).await;
    let zebra = Zebra::new(&app, &boss).await;
    for (_, route) in routes().iter().filter(|(method, _)| method == "GET") {
        let paths = match expected("GET", route, &zebra) {
            Expected::Open => vec![route.clone()],
            Expected::Own(paths, _) | Expected::Nothing(paths) => paths,
            Expected::Rejected => Vec::new(),
        };
        let is_part_of_program = matches!(&**route, "/style.css" | "/console.js");
        for path in paths {
            for answer in [page(&boss, &path).await, page(&stranger, &path).await] {
                let policy = answer.header("content-security-policy");
                assert!(
                    policy.contains("frame-ancestors 'none'"),
                    "{path}: {policy}"
                );
                assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
                assert!(!policy.contains("unsafe"), "{path}: {policy}");
                assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
                assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
                let kept = answer.header("cache-control");
                assert!(kept == "no-store" || is_part_of_program, "{path}: {kept}");
                assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
            }
        }
    }
}

/// A request that the proxy has let through for this person.
fn vouched(request: RequestBuilder, user: &str, groups: &str) -> RequestBuilder {
    request
        .header("x-forwarded-user", user)
        .header("x-forwarded-groups", groups)
}

/// Somebody who comes through the proxy.
struct Guest {
    visitor: Visitor,
    user: String,
    groups: String,
}

impl Guest {
    async fn new(app: &TestApp, user: &str, groups: &str) -> Self {
        let mut visitor = Visitor::new(app).await;
        let first = vouched(visitor.request(Method::GET, "/links"), user, groups);
        let answer = send(first).await.expect(303);
        assert_eq!(answer.header("location"), "/links");
        visitor.take_cookie(&answer);
        Self {
            visitor,
            user: user.to_owned(),
            groups: groups.to_owned(),
        }
    }

    /// A page. A form there gets a key of its own first.
    async fn get(&self, path: &str) -> Answer {
        let ask = async |path: &str| {
            let request = self.visitor.request(Method::GET, path);
            send(vouched(request, &self.user, &self.groups)).await
        };
        let answer = ask(path).await;
        match answer.header("location") {
            next if next.starts_with(&format!("{path}?key=")) => ask(next).await,
            _ => answer,
        }
    }

    /// Opens the form at this path, and sends it with these fields.
    async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let form = self.get(path).await.expect(200).text;
        self.send(path, &form, fields).await
    }

    /// Sends the form on this page with these fields.
    async fn send(&self, path: &str, form: &str, fields: &[(&str, &str)]) -> Answer {
        let (csrf, key) = (hidden(form, "csrf"), hidden(form, "key"));
        let own = [("csrf", csrf.as_str()), ("key", key.as_str())];
        let request = self.visitor.form(path, &[&own, fields].concat());
        send(vouched(request, &self.user, &self.groups)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_approves_their_own_request_under_another_spelling_of_their_name() {
    let settings = [
        &proxy_at("127.0.0.1")[..],
        &[("CONSOLE_APPROVAL_LIMIT", "5.00")],
    ]
    .concat();
    let app = start(&settings).await;
    let link = app.paid().await;
    let ann = Guest::new(&app, "ann@example.com", "finance").await;
    let asked = [("amount", "6.00"), ("step", "do")];
    let asked = ann.submit(&path_of(&link, "/refund"), &asked).await;
    let approval = asked.expect(303).header("location").to_owned();
    let approve = format!("{approval}/approve");
    for spelling in [
        "Ann@Example.com",
        "ANN@EXAMPLE.COM",
        "ann@example.com\t",
        "  ann@example.com",
    ] {
        let again = Guest::new(&app, spelling, "finance").await;
        let form = again.get(&approval).await.expect(200).text;
        assert!(form.contains("Withdraw") && !form.contains("Approve and carry out"));
        again.send(&approve, &form, &[]).await.expect(403);
    }
    let people = "SELECT count(*) FROM clients WHERE name LIKE 'console:%'";
    assert_eq!(number(&app, people).await, 1);
    assert!(app.sandbox.done("refund").await.is_empty());

    let ben = Guest::new(&app, "ben@example.com", "finance").await;
    let form = ben.get(&approval).await.expect(200).text;
    // Somebody who has left the group in the meantime.
    let without = Guest {
        groups: "support".to_owned(),
        ..Guest::new(&app, "cleo@example.com", "finance").await
    };
    let page = without.get(&approval).await.expect(200).text;
    without.send(&approve, &page, &[]).await.expect(403);
    ben.send(&approve, &form, &[]).await.expect(303);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    let by = "console:ann@example.com, approved by console:ben@example.com";
    assert_eq!(app.operations(&link).await[0]["createdBy"], by);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_has_requested_can_not_be_approved_once_their_key_is_revoked() {
    let app = start(&[("CONSOLE_APPROVAL_LIMIT", "0.00")]).await;
    let link = app.paid().await;
    let ann = Visitor::with_key(&app, &create_api_key(&app, "ann", ALL)).await;
    let ben = Visitor::with_key(&app, &create_api_key(&app, "ben", ALL)).await;
    let request = async || {
        let asked = [("amount", "1.00"), ("step", "do")];
        let asked = ann.submit(&path_of(&link, "/refund"), &asked).await;
        asked.expect(303).header("location").to_owned()
    };
    let approve = async |approval: &str| {
        let form = ben.get(approval).await.expect(200).text;
        let path = format!("{approval}/approve");
        ben.submit_again(&path, &form, &[]).await.expect(303);
    };
    // A new key for the same person changes nothing.
    let first = request().await;
    let second = request().await;
    output_of(api_keys(&app.database_url).args(["rotate", "--name", "ann", "--overlap", "0s"]));
    approve(&first).await;
    ben.sees(&first, "Approved and done").await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    revoke_api_key(&app, "ann");
    let page = ben.sees(&second, "Expired").await;
    assert!(!page.contains("Approve and carry out"), "{page}");
    approve(&second).await;
    ben.sees(&second, "Expired").await;
    // With fewer permissions than the operation needs, she can't have it approved either.
    create_api_key(&app, "ann", "links:read,links:write");
    approve(&second).await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    revoke_api_key(&app, "ann");
    create_api_key(&app, "ann", "links:read,payments:manage");
    approve(&second).await;
    ben.sees(&second, "Approved and done").await;
    assert_eq!(app.sandbox.done("refund").await.len(), 2);
}

/// The first line of the response to a request with these header lines.
async fn raw(app: &TestApp, headers: &str) -> String {
    let url = url_of(app).await;
    let host = url.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(host).await.unwrap();
    let request =
        format!("GET /links HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    connection.read_to_end(&mut response).await.unwrap();
    let response = String::from_utf8_lossy(&response).to_lowercase();
    assert!(!response.contains("set-cookie"), "{response}");
    response.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn headers_of_the_proxy_that_could_name_two_people_are_refused() {
    let app = start(&proxy_at("127.0.0.1")).await;
    let somebody = Visitor::new(&app).await;
    let ask = || somebody.request(Method::GET, "/links");
    let two_users = vouched(ask(), "ann", "finance").header("x-forwarded-user", "ben");
    let two_groups = vouched(ask(), "ann", "staff").header("x-forwarded-groups", "finance");
    let unclear = [
        two_users,
        two_groups,
        vouched(ask(), "", "finance"),
        vouched(ask(), "ann, ben", "finance"),
        vouched(ask(), "ann, approved by ben", "finance"),
        vouched(ask(), &"x".repeat(201), "finance"),
    ];
    let number_of_refused = unclear.len();
    for request in unclear {
        let answer = send(request).await.expect(403);
        assert!(answer.text.contains("doesn’t say clearly who you are"));
        assert_eq!(answer.header("set-cookie"), "");
    }
    // A letter that looks like another, a line that continues in the next one, and two names for one header.
    let cyrillic = "X-Forwarded-User: \u{430}nn\r\nX-Forwarded-Groups: finance\r\n";
    assert!(raw(&app, cyrillic).await.contains(" 403 "));
    let folded = "X-Forwarded-User: ann\r\n ben\r\nX-Forwarded-Groups: finance\r\n";
    assert!(raw(&app, folded).await.contains(" 400 "));
    let underscores = "X_Forwarded_User: ann\r\nX_Forwarded_Groups: finance\r\n";
    assert!(raw(&app, underscores).await.contains(" 303 "));
    let unclear = app
        .metric("console_sign_ins_total{outcome=\"unclear\"}")
        .await;
    assert!((unclear - f64::from(u32::try_from(number_of_refused + 1).unwrap())).abs() < 0.5);

    // Whom no group lets in leaves nothing behind.
    let nobody = send(vouched(ask(), "eve", "staff")).await.expect(403);
    assert!(
        nobody.text.contains("None of your groups"),
        "{}",
        nobody.text
    );
    // A page of another site, whose name points here, can send any header.
    let rebound = vouched(ask(), "ann", "finance").header("host", "evil.example");
    send(rebound).await.expect(421);
    let people = "SELECT count(*) FROM clients WHERE name LIKE 'console:%'";
    assert_eq!(number(&app, people).await, 0);
    assert_eq!(
        number(&app, "SELECT count(*) FROM console_sessions").await,
        0
    );
    Guest::new(&app, "ann", "finance").await;
    assert_eq!(number(&app, people).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_can_be_limited_to_accounts() {
    let folder = Folder::new();
    let limited = (
        "CONSOLE_GROUP_ACCOUNTS",
        "support=leeds,default;finance=default",
    );
    let settings = [&proxy_at("127.0.0.1")[..], &[limited]].concat();
    let app = two_sites(&folder, &settings).await;
    let main = app.paid().await;
    let mut body = ten_pounds("Order of Leeds");
    body["account"] = json!("leeds");
    let leeds = app.create(&body).await.expect(201).json();

    let finance = Guest::new(&app, "ann", "finance").await;
    finance.get(&path_of(&main, "/refund")).await.expect(200);
    finance.get(&path_of(&leeds, "")).await.expect(404);
    let page = finance.get("/links").await.expect(200).text;
    assert!(
        page.contains("Order 1") && !page.contains("Order of Leeds"),
        "{page}"
    );

    let support = Guest::new(&app, "ben", "support").await;
    support.get(&path_of(&leeds, "")).await.expect(200);
    support.get(&path_of(&leeds, "/cancel")).await.expect(403);

    // Together they don't permit what neither of them does: to cancel a link of Leeds.
    let both = Guest::new(&app, "cleo", "finance,support").await;
    let page = both.get("/links").await.expect(200).text;
    assert!(
        page.contains("Order 1") && page.contains("Order of Leeds"),
        "{page}"
    );
    both.get(&path_of(&leeds, "/cancel")).await.expect(403);
    both.get(&path_of(&main, "/refund")).await.expect(403);

    // Each request counts as the groups that it comes with.
    let form = finance
        .get(&path_of(&main, "/refund"))
        .await
        .expect(200)
        .text;
    let moved = Guest {
        groups: "support".to_owned(),
        ..finance
    };
    let fields = [("amount", "1.00"), ("step", "do")];
    let path = path_of(&main, "/refund");
    moved.send(&path, &form, &fields).await.expect(403);
    moved.get(&path_of(&leeds, "")).await.expect(200);
    assert!(app.sandbox.done("refund").await.is_empty());
}

#[test]
fn wrong_addresses_accounts_and_groups_prevent_the_start() {
    let nothing = [
        ("DATABASE_URL", "postgres://x"),
        ("DOJO_API_KEY", "sk_sandbox_1"),
    ];
    let proxy = proxy_at("127.0.0.1");
    for (name, value, words) in [
        (
            "CONSOLE_URL",
            "http://console.example.com",
            "CONSOLE_URL must be https:// and a host",
        ),
        (
            "CONSOLE_PROXY_ADDRESSES",
            "0.0.0.0/0",
            "CONSOLE_PROXY_ADDRESSES must be networks",
        ),
        (
            "CONSOLE_PROXY_GROUPS_HEADER",
            "x-forwarded-user",
            "CONSOLE_PROXY_GROUPS_HEADER must not be the header with the person's name",
        ),
        (
            "CONSOLE_GROUP_ACCOUNTS",
            "support",
            "CONSOLE_GROUP_ACCOUNTS must be groups and their accounts",
        ),
        (
            "CONSOLE_GROUP_ACCOUNTS",
            "support=default,leeds",
            "CONSOLE_GROUP_ACCOUNTS names the account \"leeds\", which is not configured",
        ),
        (
            "CONSOLE_GROUP_ACCOUNTS",
            "suport=default",
            "CONSOLE_GROUP_ACCOUNTS names the group \"suport\", which CONSOLE_GROUP_SCOPES doesn't",
        ),
    ] {
        let mut serve = program();
        serve
            .arg("serve")
            .envs(nothing)
            .envs(proxy)
            .env(name, value);
        let error = error_of(&mut serve);
        assert!(error.contains(words), "{words:?} is not in {error}");
    }
    let alone = [("CONSOLE_GROUP_ACCOUNTS", "support=default")];
    let error = error_of(program().arg("serve").envs(nothing).envs(alone));
    assert!(
        error.contains("CONSOLE_PROXY_ADDRESSES is required"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_sign_in_are_counted_by_outcome() {
    let app = start(&[]).await;
    let visitor = Visitor::new(&app).await;
    let count = async |outcome: &str| {
        let name = format!("console_sign_ins_total{{outcome=\"{outcome}\"}}");
        let text = app.get("/metrics").await.expect(200).text;
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        let line = line.unwrap_or_else(|| panic!("{name} is not exported"));
        line.trim().parse::<f64>().unwrap()
    };
    for outcome in [
        "done",
        "vouched",
        "rejected",
        "forbidden",
        "limited",
        "foreign",
        "unclear",
    ] {
        assert!(count(outcome).await.abs() < 0.5, "{outcome}");
    }
    for _ in 0..12 {
        visitor.sign_in("x", "").await;
    }
    // Loading the page again signs nobody in.
    let again = visitor.foreign_form("/sign-in", &[("key", API_KEY)]);
    let again = send(again.header("sec-fetch-site", "none"))
        .await
        .expect(200);
    assert_eq!(again.header("set-cookie"), "");
    let foreign = visitor.foreign_form("/sign-in", &[("key", API_KEY)]);
    send(foreign).await.expect(403);
    let feed = create_api_key(&app, "feed", "events:read");
    visitor.sign_in(&feed, "").await.expect(403);
    visitor.sign_in(API_KEY, "").await.expect(303);
    for (outcome, expected) in [
        ("done", 1.0..2.0),
        ("rejected", 10.0..12.0),
        ("limited", 1.0..3.0),
        ("foreign", 1.0..2.0),
        ("forbidden", 1.0..2.0),
        ("vouched", 0.0..1.0),
    ] {
        let count = count(outcome).await;
        assert!(expected.contains(&count), "{outcome}: {count}");
    }
    // What was turned away costs no entry in the list, which is never pruned.
    let entries = "SELECT count(*) FROM console_audit WHERE outcome = 'rejected'";
    assert!((10..12).contains(&number(&app, entries).await));
}

#[tokio::test]
async fn nobody_chooses_the_id_under_which_their_requests_are_recorded() {
    let recorded = async |app: &TestApp, id: &str| {
        let entries = format!(
            "SELECT count(*) FROM console_audit WHERE request_id = {}",
            quoted(id)
        );
        number(app, &entries).await
    };
    let app = start(&[]).await;
    let visitor = Visitor::new(&app).await;
    let ask = |ids: &[&str]| {
        let fields = [("key", "dpl_x")];
        let request = visitor.form("/sign-in", &fields);
        ids.iter()
            .fold(request, |request, id| request.header("x-request-id", *id))
    };
    let answer = send(ask(&["mine"])).await.expect(401);
    let id = answer.header("x-request-id");
    assert!(id.parse::<uuid::Uuid>().is_ok(), "{id}");
    assert_eq!(
        (recorded(&app, "mine").await, recorded(&app, id).await),
        (0, 1)
    );

    // The proxy may. If there are two ids, one of them may be the person's.
    let app = start(&proxy_at("127.0.0.0/8")).await;
    let visitor = Visitor::new(&app).await;
    let ask = |ids: &[&str]| {
        let request = visitor.form("/sign-in", &[("key", "dpl_x")]);
        ids.iter()
            .fold(request, |request, id| request.header("x-request-id", *id))
    };
    assert_eq!(
        send(ask(&["proxy-1"]))
            .await
            .expect(401)
            .header("x-request-id"),
        "proxy-1"
    );
    assert_eq!(recorded(&app, "proxy-1").await, 1);
    let answer = send(ask(&["mine", "proxy-2"])).await.expect(401);
    assert!(answer.header("x-request-id").parse::<uuid::Uuid>().is_ok());
    assert_eq!(
        recorded(&app, "mine").await + recorded(&app, "proxy-2").await,
        0
    );
}

#[tokio::test]
async fn nobody_keeps_the_service_busy_with_pages_or_large_forms() {
    let app = start(&[("CLIENT_RATE", "5")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let pages = join_all((0..40).map(|_| visitor.get("/health"))).await;
    let turned_away = pages.iter().filter(|page| page.status == 429);
    let turned_away: Vec<_> = turned_away.collect();
    assert!(turned_away.len() >= 10, "{}", turned_away.len());
    assert!(turned_away[0].text.contains("Too many requests"));
    assert_eq!(turned_away[0].header("retry-after"), "1");

    let stranger = Visitor::new(&app).await;
    let large = "x".repeat(300 * 1024);
    let answer = stranger.sign_in(&large, "").await.expect(413);
    assert!(
        answer.text.contains("The form is too large"),
        "{}",
        answer.text
    );
    let many = "a&".repeat(100_000);
    let request = stranger.form("/sign-in", &[]).body(many);
    send(request).await.expect(401);
    let long = format!("/{}", "x".repeat(100_000));
    let answer = stranger.sign_in(API_KEY, &long).await.expect(303);
    assert_eq!(answer.header("location"), "/links");
}

/// What would run as a script if it weren't text, in three places: between tags, in a value, and in an attribute.
const MARKS: [&str; 3] = [
    "<img src=x onerror=window.ran=1>",
    "\"><script>window.ran=1</script>",
    "'onfocus='window.ran=1'autofocus='",
];

/// Puts this into every text that a caller, a person, a proxy, Dojo or a mail server can send, and returns the paths of every page
/// that could show it, and the key of a person whose name it is.
async fn put_everywhere(app: &TestApp, mark: &str) -> (Vec<String>, String) {
    let paid = app.create(&hostile(mark)).await.expect(201).json();
    app.sandbox.pay(&paid["paymentIntentId"]).await;
    let paid = app.read_until_confirmed(&paid["id"]).await;
    let open = app.create(&hostile(mark)).await.expect(201).json();
    let refund = json!({"amount": pounds(100), "refundReason": mark});
    app.operate_with_key("a", &paid, "refunds", &refund)
        .await
        .expect(200);
    app.operate_with_key("b", &paid, "refunds", &refund)
        .await
        .expect(200);
    let emails = json!({"emails": ["ann@example.com"]});
    let receipt = app.operate_with_key("c", &paid, "receipt", &emails).await;
    let receipt = receipt.expect(200).json();
    app.everything_is_booked().await;

    // A person, whose requests have an id of their own choice.
    let key = create_api_key(app, mark, EVERYTHING);
    let person = Visitor::with_key(app, &key).await;
    let path = path_of(&paid, "/refund");
    let form = person.open(&path).await;
    let (csrf, form_key) = (hidden(&form, "csrf"), hidden(&form, "key"));
    let fields = [
        ("csrf", csrf.as_str()),
        ("key", form_key.as_str()),
        ("amount", "6.00"),
        ("reason", mark),
        ("step", "do"),
    ];
    // The id of a request has no spaces.
    let request_id = mark.replace(' ', "/");
    let request = person.form(&path, &fields);
    let asked = send(request.header("x-request-id", request_id)).await;
    let approval = asked.expect(303).header("location").to_owned();
    // An entry of somebody whom a proxy vouches for.
    Guest::new(app, mark, "finance").await;
    let endpoint = json!({"url": "https://callbacks.example.com/"});
    let endpoint = app.subscribe(&endpoint).await;
    let pause = format!("/v1/callback-endpoints/{}/pause", text(&endpoint["id"]));
    send(app.request(Method::POST, &pause)).await.expect(200);

    // What Dojo and the mail server say.
    let id = format!(
        "payment_intent_id = {}",
        quoted(text(&paid["paymentIntentId"]))
    );
    let payment = json!({
        "transactionId": mark, "transactionDateTime": mark, "authCode": mark, "cardNumber": mark, "last4": mark,
        "cardType": mark, "cardFundingType": mark,
    });
    let attempts = json!([{"eventType": mark, "transactionDateTime": mark}]);
    let mismatch = json!({"value": 2000, "currencyCode": mark});
    let failure = json!({"reason": "rejected", "status": 400, "detail": mark, "errors": [{"pointer": mark, "detail": mark}]});
    let detail = json!({
        "reported": mark, "reason": mark, "detail": mark, "verdict": mark, "operation": mark, "paymentLinkId": mark,
        "paymentIntentId": mark, "changed": {mark: mark}, "failure": failure,
    });
    let [payment, attempts, mismatch, failure, detail] =
        [payment, attempts, mismatch, failure, detail].map(|value| quoted(&value.to_string()));
    let receipt = text(&receipt["operation"]["id"]);
    for statement in [
        format!("UPDATE payment_links SET payment = {payment}, attempts = {attempts}, mismatch = {mismatch}, due_at = NULL WHERE {id}"),
        format!("UPDATE operations SET status = 'Failed', failure = {failure} WHERE id = (SELECT max(id::text)::uuid FROM operations WHERE kind = 'refund')"),
        "UPDATE operations SET status = 'Unconfirmed' WHERE kind = 'receipt'".to_owned(),
        format!("UPDATE payment_link_events SET detail = {detail}"),
        format!(
            "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
             SELECT id, kind, status, status, jsonb_build_object('type', 'request', 'client', {mark}, 'requestId', {mark}), {detail}
             FROM payment_links, unnest(ARRAY['webhook', 'reconciled', 'conflictingResponse', 'surplusPaid', 'operationFailed',
                 'renewalRequested', 'messageFailed', 'messageCanceled']) kind
             WHERE {id}",
            mark = quoted(mark)
        ),
        format!(
            "INSERT INTO messages (id, payment_link_id, account, channel, purpose, recipient, note, locale, status, failure, created_by)
             SELECT gen_random_uuid(), id, account, 'email', 'request', {mark}, {mark}, 'en', 'Failed', {mark}, {mark}
             FROM payment_links WHERE {id}",
            mark = quoted(mark)
        ),
        format!("UPDATE callback_endpoints SET url = url || {}", quoted(mark)),
        compared_day("default", mark),
    ] {
        assert!(run(app, &statement).await > 0, "{statement}");
    }
    // A link that Dojo has rejected.
    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    app.create(&ten_pounds(mark)).await.expect(422);
    let rejected = app.get("/v1/payment-links?status=Failed").await.expect(200);
    let rejected = rejected.json()["data"][0].clone();
    let failed = format!("UPDATE payment_links SET failure = {failure} WHERE status = 'Failed'");
    assert_eq!(run(app, &failed).await, 1);

    let mut paths = vec![
        "/".to_owned(),
        "/healthz".to_owned(),
        "/style.css".to_owned(),
        "/console.js".to_owned(),
        format!("/sign-in?next={}", encoded(&format!("/{mark}"))),
        format!("/{}", encoded(mark)),
        "/links".to_owned(),
        "/links/new".to_owned(),
        path_of(&open, "/cancel"),
        path_of(&open, "/send"),
        path_of(&paid, "/refund"),
        path_of(&paid, "/receipt"),
        path_of(&paid, "/qr.svg"),
        path_of(&open, "/qr.svg"),
        path_of(&paid, ""),
        path_of(&open, ""),
        path_of(&rejected, ""),
        format!("/links/{}", encoded(mark)),
        format!("/operations/{receipt}"),
        "/attention".to_owned(),
        "/approvals".to_owned(),
        approval,
        "/audit".to_owned(),
        "/health".to_owned(),
        "/runbook".to_owned(),
        format!("/preferences?saved={}", encoded(mark)),
        format!("/books?{}", lately()),
        format!("/books/movements.csv?{}", lately()),
        format!("/books/reconciliations/{DAY}"),
        format!("/books/reconciliations/{}", encoded(mark)),
    ];
    for name in ["q", "by", "account", "status", "from", "to", "after"] {
        paths.push(format!("/links?{name}={}", encoded(mark)));
        paths.push(format!("/books?{name}={}", encoded(mark)));
    }
    for name in ["operation", "message", "created", "refreshed", "key"] {
        paths.push(path_of(&paid, &format!("?{name}={}", encoded(mark))));
        paths.push(path_of(&paid, &format!("/refund?{name}={}", encoded(mark))));
    }
    for (method, route) in routes() {
        let is_visited = paths.iter().any(|path| is_of(&route, path));
        assert!(
            is_visited || method != "GET",
            "{route} is not visited: add it here"
        );
    }
    (paths, key)
}

/// Settings with which every text can be put everywhere.
fn open_to_everything() -> Vec<(&'static str, &'static str)> {
    let more = [("CONSOLE_APPROVAL_LIMIT", "5.00"), ("RUN_JOBS", "true")];
    [&proxy_at("127.0.0.1")[..], &more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_anybody_becomes_markup_on_any_page() {
    for mark in MARKS {
        let app = start(&open_to_everything()).await;
        let (paths, key) = put_everywhere(&app, mark).await;
        let person = Visitor::with_key(&app, &key).await;
        let guest = Guest::new(&app, mark, "finance").await;
        let escaped = mark.replace('<', "&#60;").replace('>', "&#62;");
        let escaped = escaped.replace('"', "&#34;").replace('\'', "&#39;");
        let mut shown = 0;
        for path in &paths {
            for answer in [page(&person, path).await, guest.get(path).await] {
                // A file of values is no page, and nothing runs in it.
                let kind = answer.header("content-type").to_owned();
                if kind.starts_with("text/csv") {
                    assert!(
                        answer
                            .header("content-disposition")
                            .starts_with("attachment")
                    );
                    continue;
                }
                assert!(
                    !answer.text.contains(mark),
                    "{path} contains {mark}: {}",
                    answer.text
                );
                for raw in ["<img src=x", "<script>window", "'onfocus='"] {
                    assert!(
                        !answer.text.contains(raw),
                        "{path} contains {raw}: {}",
                        answer.text
                    );
                }
                shown += answer.text.matches(&escaped).count();
                for value in answer.headers.values() {
                    let value = String::from_utf8_lossy(value.as_bytes()).to_lowercase();
                    assert!(
                        !value.contains("<script") && !value.contains("<img"),
                        "{path}: {value}"
                    );
                }
            }
        }
        // It is shown as what it is, or the test would look for nothing.
        assert!(shown > 100, "{mark} is shown {shown} times");

        // In forms that are shown again.
        let (open, paid) = (app.created().await, app.paid().await);
        let (send, refund) = (path_of(&open, "/send"), path_of(&paid, "/refund"));
        let create = [
            "account",
            "amount",
            "currency",
            "reference",
            "description",
            "email",
            "expires",
            "collect",
            "note",
        ];
        for (path, fields) in [
            ("/links/new", &create as &[_]),
            (refund.as_str(), &["amount", "reason", "step"]),
            (send.as_str(), &["to", "note", "step"]),
        ] {
            let fields: Vec<_> = fields.iter().map(|name| (*name, mark)).collect();
            let answer = person.submit(path, &fields).await;
            assert!(!answer.text.contains(mark), "{path}: {}", answer.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_anybody_runs_in_a_browser() {
    // Reports in order whatever the policy has refused on this page, up to a last one that is provoked here.
    const REFUSED: &str = "const done = arguments[arguments.length - 1], refused = [];
        new ReportingObserver(reports => {
            for (const {body} of reports) {
                if (body.blockedURL.startsWith('https://last.invalid')) done(refused);
                else refused.push([body.effectiveDirective, body.blockedURL, body.sample].join(' '));
            }
        }, {types: ['csp-violation'], buffered: true}).observe();
        new Image().src = 'https://last.invalid/';";
    const FOUND: &str = "return [window.ran ?? null, document.querySelectorAll(
        '[onfocus], [onerror], [onload], [autofocus], img[src=x], script:not([src=\"/console.js\"]), style, [style]').length]";

    let browser = WIDE.open().await;
    for mark in MARKS {
        let app = start(&open_to_everything()).await;
        let url = url_of(&app).await;
        let (paths, key) = put_everywhere(&app, mark).await;
        browser.sign_in(&url, &key).await;
        // A browser saves a file, and shows a text in a page of its own.
        let is_page = |path: &&String| {
            let others = [
                "/style.css",
                "/console.js",
                "/healthz",
                "/books/movements.csv",
            ];
            !others.iter().any(|other| path.starts_with(other))
        };
        for path in paths.iter().filter(is_page) {
            browser.visit(&format!("{url}{path}")).await;
            let found = browser.run(FOUND).await;
            assert_eq!(found, json!([null, 0]), "{path}");
            let refused = browser.page.execute_async(REFUSED, Vec::new()).await;
            assert_eq!(refused.unwrap(), json!([]), "{path}");
        }
        // What a page fetches to bring itself up to date is put into it as well.
        let open = app.create(&hostile(mark)).await.expect(201).json();
        browser.visit(&format!("{url}{}", path_of(&open, ""))).await;
        app.sandbox.pay(&open["paymentIntentId"]).await;
        app.read_until_confirmed(&open["id"]).await;
        browser.says("Paid £10.00").await;
        assert_eq!(browser.run(FOUND).await, json!([null, 0]));
        let refused = browser.page.execute_async(REFUSED, Vec::new()).await;
        assert_eq!(refused.unwrap(), json!([]));
        // The test notices what it looks for.
        let insert = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\"><style>a{}</style>')";
        browser.run(insert).await;
        assert_eq!(browser.run(FOUND).await, json!([null, 2]));
        eventually("both are refused", async || {
            let refused = browser.page.execute_async(REFUSED, Vec::new()).await;
            let refused = refused.unwrap().to_string();
            (refused.contains("script-src-attr") && refused.contains("style-src")).then_some(())
        })
        .await;
    }
    browser.close().await;
}

#[tokio::test]
async fn a_form_of_another_site_signs_nobody_in_even_if_it_is_loaded_again() {
    let app = start(&[]).await;
    let url = url_of(&app).await;
    let browser = WIDE.open().await;
    let form = format!(
        "<form method=post action=\"{url}/sign-in\"><input name=key value={API_KEY}><button>Win a prize</button></form>"
    );
    browser
        .visit(&format!(
            "data:text/html,{}",
            encoded(&form).replace('+', "%20")
        ))
        .await;
    browser.find_one("button").await.click().await.unwrap();
    browser.is_at("/sign-in").await;
    browser.says("not sent by a page of this console").await;
    browser.page.refresh().await.unwrap();
    browser.find_one("h1").await;
    browser.visit(&format!("{url}/links")).await;
    browser.is_at("/sign-in").await;
    assert_eq!(
        number(&app, "SELECT count(*) FROM console_sessions").await,
        0
    );
    // The person's own key does.
    browser.sign_in(&url, API_KEY).await;
    browser.close().await;
}
