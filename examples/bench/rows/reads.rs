//! Reading links, and the API keys that are checked with each request.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::Value;
use test_postgres::free_port;
use tokio::{process::Command, time::sleep};

use crate::{
    Result,
    database::{Database, Size, rare_amount, rare_card},
    http::{Connection, Request, request},
    lab::{API_KEY, Lab, Program, build_folder, start_service},
    load::{self, Deck},
    pgbench,
    report::{Limit, RowReport, Unit},
};

pub async fn read(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    const CONNECTIONS: usize = 64;
    let database = lab.database(Size::Usual).await?;
    let links = database.random_links(20_000);
    let gets = links.map(|id| get(&format!("/v1/payment-links/{id}"), API_KEY));
    let deck = Deck::repeat(gets.collect());
    let (mut service, mut statement) = (vec![], vec![]);
    for _ in 0..lab.scale.rounds {
        database.reset(lab).await?;
        let program = database.start_service(lab).await?;
        load::run(program.address, CONNECTIONS, &deck, lab.scale.warm_up).await?;
        let load = load::run(program.address, CONNECTIONS, &deck, lab.scale.round).await?;
        service.push(load.rate());
        program.stop().await?;
        let measured = pgbench::run(&database, pgbench::READ, CONNECTIONS, lab.scale.round).await?;
        statement.push(measured.rate);
    }
    let service = report.median("the service, links", &service, Unit::PerSecond);
    let statement = report.median("pgbench, rows", &statement, Unit::PerSecond);
    report.goal(
        "links per second, compared with rows per second in pgbench",
        Limit::AtLeast(0.5),
        service / statement,
        Unit::Times,
    );
    Ok(())
}

/// How long the replicas are watched after the revocation.
const WATCHED: Duration = Duration::from_secs(3);

pub async fn revocation(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let one = database.start_service(lab).await?;
    let other = start_service(lab, &database, free_port(), &database.sandbox, &[]).await?;
    let mut slowest = Duration::ZERO;
    for _ in 0..lab.scale.rounds {
        let create = ["create", "--name", "revoked", "--scopes", "links:read"];
        let key = api_keys(&database, &create).await?;
        // Both replicas have accepted the key before it is revoked.
        let list = get("/v1/payment-links?limit=1", &key);
        for replica in [&one, &other] {
            if !accepts(replica, &list).await? {
                return Err("a new API key was rejected".into());
            }
        }
        let start = Instant::now();
        let (revoked, first, second) = tokio::join!(
            revoke(&database),
            last_accepted(&one, &list, start),
            last_accepted(&other, &list, start),
        );
        let revoked = revoked? - start;
        for accepted in [first?, second?] {
            slowest = slowest.max(accepted.saturating_sub(revoked));
        }
    }
    one.stop().await?;
    other.stop().await?;
    report.goal(
        "the last request of a revoked key that one of two replicas accepts, after the revocation",
        Limit::AtMost(1.0),
        slowest.as_secs_f64(),
        Unit::Seconds,
    );
    Ok(())
}

/// Revokes the key, and returns when the command had finished.
async fn revoke(database: &Database) -> Result<Instant> {
    api_keys(database, &["revoke", "--name", "revoked"]).await?;
    Ok(Instant::now())
}

/// Sends the request again and again. Returns when, after `start`, it was last accepted.
async fn last_accepted(replica: &Program, list: &Request, start: Instant) -> Result<Duration> {
    let mut accepted = Duration::ZERO;
    let mut rejected_since = None;
    while rejected_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(500)) {
        if start.elapsed() > WATCHED + Duration::from_secs(10) {
            return Err("a revoked API key is still accepted".into());
        }
        let sent = start.elapsed();
        if accepts(replica, list).await? {
            accepted = sent;
            rejected_since = None;
        } else {
            rejected_since.get_or_insert_with(Instant::now);
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(accepted)
}

async fn accepts(replica: &Program, list: &Request) -> Result<bool> {
    let mut connection = Connection::open(replica.address).await?;
    Ok(connection.call(list).await?.is_success())
}

/// Runs `api-keys`, as an operator does. Returns what it prints.
async fn api_keys(database: &Database, arguments: &[&str]) -> Result<String> {
    let output = Command::new(build_folder()?.join("dojo-payment-links"))
        .arg("api-keys")
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", &database.url)
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into())
    }
}

/// The links of a page.
const PAGE: usize = 10;

pub async fn list(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let mut latencies = vec![];
    for size in [Size::Small, Size::Large] {
        let database = lab.database(size).await?;
        database.reset(lab).await?;
        let service = database.start_service(lab).await?;
        let first = page("");
        let far = far_page(&service, lab.scale.far_page).await?;
        let (mut of_first, mut of_far) = (vec![], vec![]);
        for _ in 0..lab.scale.rounds {
            for (page, latency) in [(&first, &mut of_first), (&far, &mut of_far)] {
                let deck = Deck::repeat(vec![page.clone()]);
                load::run(service.address, 1, &deck, lab.scale.warm_up).await?;
                let load = load::run(service.address, 1, &deck, lab.scale.round / 4).await?;
                latency.push(load.p50());
            }
        }
        service.stop().await?;
        let links = database.links;
        for (name, latency) in [("first", of_first), ("far", of_far)] {
            let name = format!("{links} links, {name} page, p50");
            latencies.push(report.median(name, &latency, Unit::Milliseconds));
        }
    }
    let fastest = latencies.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = latencies.iter().copied().fold(0.0, f64::max);
    report.goal(
        "the slowest of the first page and page 1,000, of few and of many links, compared with the fastest",
        Limit::AtMost(1.5),
        slowest / fastest,
        Unit::Times,
    );
    Ok(())
}

/// A kind of search.
struct Search {
    name: &'static str,
    /// The query for the link with a number.
    query: fn(usize) -> String,
    /// Whether only the links with cards and amounts of their own are searched for.
    is_rare: bool,
    /// The plain statement, if there is one.
    statement: Option<&'static str>,
}

const SEARCHES: [Search; 6] = [
    Search {
        name: "email",
        query: |n| format!("customerEmail=customer-{n}@example.com"),
        is_rare: false,
        statement: Some(pgbench::SEARCH_EMAIL),
    },
    Search {
        name: "intent",
        query: |n| format!("q=pi_sandbox_bench_{n:016}"),
        is_rare: false,
        statement: Some(pgbench::SEARCH_INTENT),
    },
    Search {
        name: "reference",
        query: |n| format!("reference=Order+{n}"),
        is_rare: false,
        statement: Some(pgbench::SEARCH_REFERENCE),
    },
    Search {
        name: "start of a reference",
        query: |n| format!("q=Order+{n}"),
        is_rare: false,
        statement: None,
    },
    Search {
        name: "last four digits",
        query: |n| format!("cardLast4={}", rare_card(n)),
        is_rare: true,
        statement: Some(pgbench::SEARCH_CARD),
    },
    Search {
        name: "amount",
        query: |n| format!("amount={}", rare_amount(n)),
        is_rare: true,
        statement: Some(pgbench::SEARCH_AMOUNT),
    },
];

/// What somebody types into the console's search box to find the link with a number.
const CONSOLE_SEARCHES: [(&str, fn(usize) -> String, bool); 4] = [
    ("email", |n| format!("customer-{n}@example.com"), false),
    ("start of a reference", |n| format!("Order+{n}"), false),
    ("last four digits", rare_card, true),
    (
        "amount",
        |n| {
            let amount = rare_amount(n);
            format!("{}.{:02}", amount / 100, amount % 100)
        },
        true,
    ),
];

/// Requests of one kind, and what was measured of them.
struct Course {
    name: String,
    address: SocketAddr,
    deck: Deck,
    statement: Option<&'static str>,
    service: Vec<f64>,
    plain: Vec<f64>,
}

impl Course {
    /// A search that finds nothing would be fast.
    async fn finds_links(&self) -> Result {
        let mut connection = Connection::open(self.address).await?;
        for request in self.deck.requests() {
            let body = connection.call(request).await?.body;
            if !body.windows(6).any(|text| text == b"plink_") {
                let request = String::from_utf8_lossy(request);
                let line = request.lines().next().unwrap_or_default();
                return Err(format!("{line} finds nothing").into());
            }
        }
        Ok(())
    }
}

/// All searches for random links of a database, in the API and in the console.
async fn courses(
    database: &Database,
    service: &Program,
    console: SocketAddr,
) -> Result<Vec<Course>> {
    let numbers = |is_rare: bool| {
        database
            .random_numbers(500)
            .map(move |n| if is_rare { database.rare(n) } else { n })
    };
    let course = |name, address, deck, statement| Course {
        name,
        address,
        deck: Deck::repeat(deck),
        statement,
        service: vec![],
        plain: vec![],
    };
    let mut courses = vec![];
    for search in SEARCHES {
        let gets = numbers(search.is_rare)
            .map(|n| get(&format!("/v1/payment-links?{}", (search.query)(n)), API_KEY));
        let name = format!("by {}", search.name);
        courses.push(course(
            name,
            service.address,
            gets.collect(),
            search.statement,
        ));
    }
    let cookie = sign_in(console).await?;
    for (name, typed, is_rare) in CONSOLE_SEARCHES {
        let gets = numbers(is_rare).map(|n| {
            let path = format!("/links?q={}", typed(n));
            request("GET", &path, &[("cookie", &cookie)], "")
        });
        let name = format!("in the console, by {name}");
        courses.push(course(name, console, gets.collect(), None));
    }
    Ok(courses)
}

pub async fn search(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let round = lab.scale.round / 8;
    let (mut growth, mut overhead) = (0.0_f64, 0.0_f64);
    let mut small = vec![];
    for size in [Size::Small, Size::Large] {
        let database = lab.database(size).await?;
        database.reset(lab).await?;
        let console = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listen = console.to_string();
        let settings = [("CONSOLE_LISTEN_ADDR", &*listen)];
        let service = database
            .start_service_with(lab, &database.sandbox, &settings)
            .await?;
        let mut courses = courses(&database, &service, console).await?;
        for course in &courses {
            course.finds_links().await?;
            load::run(course.address, 1, &course.deck, lab.scale.warm_up / 2).await?;
        }
        for _ in 0..lab.scale.rounds {
            for course in &mut courses {
                let load = load::run(course.address, 1, &course.deck, round).await?;
                course.service.push(load.p50());
                if let (Size::Large, Some(statement)) = (size, course.statement) {
                    let measured = pgbench::run(&database, statement, 1, round).await?;
                    course.plain.push(measured.mean);
                }
            }
        }
        service.stop().await?;
        let links = database.links;
        for (number, course) in courses.iter().enumerate() {
            let name = format!("{links} links, {}, p50", course.name);
            let service = report.median(name, &course.service, Unit::Milliseconds);
            if size == Size::Small {
                small.push(service);
                continue;
            }
            growth = growth.max(service / small[number]);
            if !course.plain.is_empty() {
                let name = format!("pgbench, {links} links, {}, mean", course.name);
                let plain = report.median(name, &course.plain, Unit::Milliseconds);
                overhead = overhead.max(service / plain);
            }
        }
    }
    report.goal(
        "the search that grows most from few to many links",
        Limit::AtMost(1.5),
        growth,
        Unit::Times,
    );
    report.goal(
        "the slowest search in the API among many links, compared with the plain statement in pgbench",
        Limit::AtMost(5.0),
        overhead,
        Unit::Times,
    );
    Ok(())
}

/// Signs in to the console. Returns the session's cookie.
async fn sign_in(console: SocketAddr) -> Result<String> {
    let url = format!("http://{console}");
    let response = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()?
        .post(format!("{url}/sign-in"))
        .header("origin", &url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("key={API_KEY}&next="))
        .send()
        .await?;
    let cookie = response.headers().get("set-cookie");
    let cookie = cookie.and_then(|cookie| cookie.to_str().ok()?.split(';').next());
    Ok(cookie.ok_or("the console accepts nobody")?.to_owned())
}

/// The request for the page with this number, which is reached page by page.
async fn far_page(service: &Program, number: usize) -> Result<Request> {
    let mut connection = Connection::open(service.address).await?;
    let mut request = page("");
    for _ in 1..number {
        let response = connection.call(&request).await?;
        let body: Value = serde_json::from_slice(response.body)?;
        match (&body["after"], &body["hasMore"]) {
            (Value::String(after), Value::Bool(true)) => request = page(&format!("&after={after}")),
            _ => return Err(format!("there are fewer than {number} pages").into()),
        }
    }
    Ok(request)
}

fn page(after: &str) -> Request {
    get(&format!("/v1/payment-links?limit={PAGE}{after}"), API_KEY)
}

fn get(path: &str, key: &str) -> Request {
    let headers = [("authorization", &*format!("Bearer {key}"))];
    request("GET", path, &headers, "")
}
