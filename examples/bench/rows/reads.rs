//! Reading links, and the API keys that are checked with each request.

use std::time::{Duration, Instant};

use serde_json::Value;
use test_postgres::free_port;
use tokio::{process::Command, time::sleep};

use crate::{
    Result,
    database::{Database, Size},
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

/// A kind of search: its name, the query for the link with a number, and the plain statement.
type Search = (&'static str, fn(usize) -> String, Option<&'static str>);

const SEARCHES: [Search; 4] = [
    (
        "email",
        |n| format!("customerEmail=customer-{n}@example.com"),
        Some(pgbench::SEARCH_EMAIL),
    ),
    (
        "intent",
        |n| format!("q=pi_sandbox_bench_{n:016}"),
        Some(pgbench::SEARCH_INTENT),
    ),
    (
        "reference",
        |n| format!("reference=Order+{n}"),
        Some(pgbench::SEARCH_REFERENCE),
    ),
    ("start of a reference", |n| format!("q=Order+{n}"), None),
];

pub async fn search(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let (mut growth, mut overhead) = (0.0_f64, 0.0_f64);
    let mut small = vec![];
    for size in [Size::Small, Size::Large] {
        let database = lab.database(size).await?;
        database.reset(lab).await?;
        for (number, (kind, query, statement)) in SEARCHES.into_iter().enumerate() {
            let searches = database.random_numbers(1000).map(|n| {
                let path = format!("/v1/payment-links?{}", query(n));
                get(&path, API_KEY)
            });
            let deck = Deck::repeat(searches.collect());
            let (mut service, mut plain) = (vec![], vec![]);
            for _ in 0..lab.scale.rounds {
                let program = database.start_service(lab).await?;
                load::run(program.address, 1, &deck, lab.scale.warm_up).await?;
                let load = load::run(program.address, 1, &deck, lab.scale.round / 4).await?;
                service.push(load.p50());
                program.stop().await?;
                if let (Size::Large, Some(statement)) = (size, statement) {
                    let measured =
                        pgbench::run(&database, statement, 1, lab.scale.round / 4).await?;
                    plain.push(measured.mean);
                }
            }
            let links = database.links;
            let name = format!("{links} links, by {kind}, p50");
            let service = report.median(name, &service, Unit::Milliseconds);
            if size == Size::Small {
                small.push(service);
                continue;
            }
            growth = growth.max(service / small[number]);
            if !plain.is_empty() {
                let name = format!("pgbench, {links} links, by {kind}, mean");
                let plain = report.median(name, &plain, Unit::Milliseconds);
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
        "the slowest search among many links, compared with the plain statement in pgbench",
        Limit::AtMost(5.0),
        overhead,
        Unit::Times,
    );
    Ok(())
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
