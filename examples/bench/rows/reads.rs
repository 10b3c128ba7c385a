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
    database::{Database, Size, rare, rare_amount, rare_card},
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
    database.reset(lab).await?;
    for _ in 0..lab.scale.rounds {
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
    /// What somebody types into the console's search box to do the same, if it isn't exactly the same there.
    typed: Option<fn(usize) -> String>,
    /// The plain statement.
    statement: &'static str,
}

const SEARCHES: [Search; 6] = [
    Search {
        name: "email",
        query: |n| format!("customerEmail=customer-{n}@example.com"),
        is_rare: false,
        typed: Some(|n| format!("customer-{n}@example.com")),
        statement: pgbench::SEARCH_EMAIL,
    },
    Search {
        name: "intent",
        query: |n| format!("q=pi_sandbox_bench_{n:016}"),
        is_rare: false,
        // Somebody who types an id gets to the link's own page.
        typed: None,
        statement: pgbench::SEARCH_INTENT,
    },
    Search {
        name: "reference",
        query: |n| format!("reference=Order+{n}"),
        is_rare: false,
        // The console finds whatever starts with what was typed.
        typed: None,
        statement: pgbench::SEARCH_REFERENCE,
    },
    Search {
        name: "start of a reference",
        query: |n| format!("q=Order+{n}"),
        is_rare: false,
        typed: Some(|n| format!("Order+{n}")),
        statement: pgbench::SEARCH_START,
    },
    Search {
        name: "last four digits",
        query: |n| format!("cardLast4={}", rare_card(n)),
        is_rare: true,
        typed: Some(rare_card),
        statement: pgbench::SEARCH_CARD,
    },
    Search {
        name: "amount",
        query: |n| format!("amount={}", rare_amount(n)),
        is_rare: true,
        typed: Some(|n| {
            let amount = rare_amount(n);
            format!("{}.{:02}", amount / 100, amount % 100)
        }),
        statement: pgbench::SEARCH_AMOUNT,
    },
];

/// Requests of one kind, and what was measured of them.
struct Course {
    address: SocketAddr,
    deck: Deck,
    latency: Vec<f64>,
}

impl Course {
    fn new(address: SocketAddr, requests: impl Iterator<Item = Request>) -> Self {
        Self {
            address,
            deck: Deck::repeat(requests.collect()),
            latency: vec![],
        }
    }

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

/// A kind of search in the API and in the console, and the plain statement.
struct Race {
    search: &'static Search,
    in_api: Course,
    in_console: Option<Course>,
    plain: Vec<f64>,
}

impl Race {
    fn courses(&mut self) -> impl Iterator<Item = &mut Course> {
        [&mut self.in_api].into_iter().chain(&mut self.in_console)
    }
}

/// All searches for random links of a database.
async fn races(database: &Database, service: &Program, console: SocketAddr) -> Result<Vec<Race>> {
    let cookie = sign_in(console).await?;
    let race = |search: &'static Search| {
        let numbers = || {
            let numbers = database.random_numbers(500);
            numbers.map(|n| if search.is_rare { rare(n) } else { n })
        };
        let in_api =
            numbers().map(|n| get(&format!("/v1/payment-links?{}", (search.query)(n)), API_KEY));
        let in_console = search.typed.map(|typed| {
            let searches = numbers().map(|n| {
                let path = format!("/links?q={}", typed(n));
                request("GET", &path, &[("cookie", &cookie)], "")
            });
            Course::new(console, searches)
        });
        Race {
            search,
            in_api: Course::new(service.address, in_api),
            in_console,
            plain: vec![],
        }
    };
    Ok(SEARCHES.iter().map(race).collect())
}

/// What the slowest searches of many links take.
#[derive(Default)]
struct Slowest {
    /// Compared with the same search of few links.
    growth: f64,
    /// Compared with the plain statement.
    ratio: f64,
    /// Beyond the plain statement, in milliseconds.
    api: f64,
    console: f64,
}

pub async fn search(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let round = lab.scale.round / 8;
    let mut few = vec![];
    let mut slowest = Slowest::default();
    for size in [Size::Small, Size::Large] {
        let database = lab.database(size).await?;
        database.reset(lab).await?;
        let console = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listen = console.to_string();
        let settings = [("CONSOLE_LISTEN_ADDR", &*listen)];
        let service = database
            .start_service_with(lab, &database.sandbox, &settings)
            .await?;
        let mut races = races(&database, &service, console).await?;
        for course in races.iter_mut().flat_map(Race::courses) {
            course.finds_links().await?;
            load::run(course.address, 1, &course.deck, lab.scale.warm_up / 2).await?;
        }
        for _ in 0..lab.scale.rounds {
            for race in &mut races {
                for course in race.courses() {
                    let load = load::run(course.address, 1, &course.deck, round).await?;
                    course.latency.push(load.p50());
                }
                if size == Size::Large {
                    let measured = pgbench::run(&database, race.search.statement, 1, round).await?;
                    race.plain.push(measured.mean);
                }
            }
        }
        service.stop().await?;
        for (number, race) in races.iter().enumerate() {
            let name =
                |what: &str| format!("{} links, {what} {}", database.links, race.search.name);
            let api = name("by");
            let api = report.median(api + ", p50", &race.in_api.latency, Unit::Milliseconds);
            let console = race.in_console.as_ref().map(|course| {
                let name = name("in the console, by");
                report.median(name + ", p50", &course.latency, Unit::Milliseconds)
            });
            if size == Size::Small {
                few.push((api, console));
                continue;
            }
            let plain = format!("pgbench, {}, mean", name("by"));
            let plain = report.median(plain, &race.plain, Unit::Milliseconds);
            let (few_api, few_console) = few[number];
            slowest.growth = slowest.growth.max(api / few_api);
            slowest.ratio = slowest.ratio.max(api / plain);
            slowest.api = slowest.api.max(api - plain);
            if let (Some(console), Some(few)) = (console, few_console) {
                slowest.growth = slowest.growth.max(console / few);
                slowest.console = slowest.console.max(console - plain);
            }
        }
    }
    report.figure(
        "the slowest search in the API among many links, compared with the plain statement",
        slowest.ratio,
        Unit::Times,
    );
    for (what, limit, value, unit) in [
        (
            "the search that grows most from few to many links",
            1.5,
            slowest.growth,
            Unit::Times,
        ),
        (
            "the slowest search in the API among many links, beyond the plain statement in pgbench",
            1.0,
            slowest.api,
            Unit::Milliseconds,
        ),
        (
            "the slowest search in the console among many links, beyond the same statement",
            2.0,
            slowest.console,
            Unit::Milliseconds,
        ),
    ] {
        report.goal(what, Limit::AtMost(limit), value, unit);
    }
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
