//! Creating links, which takes a call to Dojo. The sandbox takes Dojo's place.

use std::time::{Duration, Instant};

use crate::{
    Result,
    database::{Database, Size, creation},
    http::{Request, request},
    lab::{DOJO_API_KEY, Lab, Sandbox},
    load::{self, Deck, Load},
    report::{Limit, RowReport, Unit},
};

/// More than any machine can send in a round.
const CREATIONS_PER_SECOND: usize = 10_000;

pub async fn overhead(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    const IN_FLIGHT: usize = 100;
    const DELAY_MS: u32 = 50;
    let database = lab.database(Size::Usual).await?;
    let (mut through, mut direct) = (vec![], vec![]);
    for _ in 0..lab.scale.rounds {
        through.push(
            creations(lab, &database, IN_FLIGHT, Some(DELAY_MS))
                .await?
                .load,
        );
        direct.push(calls_to_sandbox(lab, IN_FLIGHT, Some(DELAY_MS)).await?);
    }
    let (through, direct) = (Load::merge(&through)?, Load::merge(&direct)?);
    for (name, load) in [
        ("through the service", &through),
        ("calling the sandbox", &direct),
    ] {
        report.figure(format!("{name}, p50"), load.p50(), Unit::Milliseconds);
        report.figure(format!("{name}, p99"), load.p99(), Unit::Milliseconds);
    }
    report.goal(
        "p50 with 100 in flight, beyond that of calling the sandbox",
        Limit::AtMost(3.0),
        through.p50() - direct.p50(),
        Unit::Milliseconds,
    );
    report.goal(
        "p99 with 100 in flight, beyond that of calling the sandbox",
        Limit::AtMost(15.0),
        through.p99() - direct.p99(),
        Unit::Milliseconds,
    );
    Ok(())
}

pub async fn slow_dojo(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    const IN_FLIGHT: usize = 1_000;
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let sandbox = Sandbox::start(lab, Some(database.port)).await?;
    sandbox.delay_creations(1_000).await?;
    // Beyond its default, the service rejects creations, so that a slow Dojo can't exhaust its memory.
    let settings = [
        ("MAX_CREATIONS", "1000"),
        ("DATABASE_MAX_CONNECTIONS", "10"),
    ];
    let service = database
        .start_service_with(lab, &sandbox, &settings)
        .await?;
    let deck = Deck::once(requests(IN_FLIGHT));
    let load = load::run(service.address, IN_FLIGHT, &deck, Duration::from_secs(30)).await?;
    service.stop().await?;
    report.figure("p50", load.p50(), Unit::Milliseconds);
    report.goal(
        "1,000 creations at once on 10 database connections, 1 s each at Dojo",
        Limit::AtMost(3.0),
        load.elapsed.as_secs_f64(),
        Unit::Seconds,
    );
    Ok(())
}

pub async fn rate(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    for (in_flight, what) in [
        (
            20,
            "creations per second with 20 in flight, compared with the sandbox alone",
        ),
        (
            100,
            "creations per second with 100 in flight, compared with the sandbox alone",
        ),
    ] {
        let (mut through, mut direct) = (vec![], vec![]);
        for _ in 0..lab.scale.rounds {
            let creations = creations(lab, &database, in_flight, None).await?;
            through.push(load::rate(
                creations.load.responses,
                creations.with_webhooks,
            ));
            direct.push(calls_to_sandbox(lab, in_flight, None).await?.rate());
        }
        let through = report.median(
            format!("{in_flight} in flight, the service with the creations' webhooks"),
            &through,
            Unit::PerSecond,
        );
        let direct = report.median(
            format!("{in_flight} in flight, the sandbox alone"),
            &direct,
            Unit::PerSecond,
        );
        report.goal(what, Limit::AtLeast(0.4), through / direct, Unit::Times);
    }
    Ok(())
}

struct Creations {
    load: Load,
    /// Until the last of their webhooks was stored.
    with_webhooks: Duration,
}

/// A round of creations through the service, and of the webhooks that announce them.
async fn creations(
    lab: &Lab,
    database: &Database,
    in_flight: usize,
    delay_ms: Option<u32>,
) -> Result<Creations> {
    database.reset(lab).await?;
    let sandbox = Sandbox::start(lab, Some(database.port)).await?;
    if let Some(delay_ms) = delay_ms {
        sandbox.delay_creations(delay_ms).await?;
    }
    let service = database.start_service_with(lab, &sandbox, &[]).await?;
    let seconds = (lab.scale.warm_up + lab.scale.round).as_secs();
    let deck = Deck::once(requests(
        CREATIONS_PER_SECOND * usize::try_from(seconds)?.max(1),
    ));
    let before = database.stored_events().await?;
    let warm_up = load::run(service.address, in_flight, &deck, lab.scale.warm_up).await?;
    let before = before + warm_up.responses;
    database.until_stored(before).await?;
    let load = load::run(service.address, in_flight, &deck, lab.scale.round).await?;
    let sent = Instant::now();
    database.until_stored(before + load.responses).await?;
    let with_webhooks = load.elapsed + sent.elapsed();
    service.stop().await?;
    Ok(Creations {
        load,
        with_webhooks,
    })
}

/// The same calls to the sandbox itself, which sends no webhooks.
async fn calls_to_sandbox(lab: &Lab, in_flight: usize, delay_ms: Option<u32>) -> Result<Load> {
    let sandbox = Sandbox::start(lab, None).await?;
    if let Some(delay_ms) = delay_ms {
        sandbox.delay_creations(delay_ms).await?;
    }
    let deck = Deck::repeat(vec![call_to_dojo()]);
    let address = sandbox.program.address;
    load::run(address, in_flight, &deck, lab.scale.warm_up / 2).await?;
    // It does the same for each request, so its rate is steady.
    load::run(address, in_flight, &deck, lab.scale.round / 3).await
}

fn requests(count: usize) -> Vec<Request> {
    (0..count).map(|_| creation("Order 236")).collect()
}

/// What the service sends to Dojo for [`creation`].
fn call_to_dojo() -> Request {
    let headers = [
        ("authorization", &*format!("Basic {DOJO_API_KEY}")),
        ("version", "2026-02-27"),
    ];
    let body = r#"{"amount":{"value":100,"currencyCode":"GBP"},"reference":"Order 236","metadata":{"order":"0123456789012345678901","paymentLinkId":"plink_01m81mqpmrf8384nj77tj0t0e4"},"paymentSource":"payment-links"}"#;
    request("POST", "/payment-intents", &headers, body)
}
