//! The process itself: its memory, and how long it takes to start.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    Result,
    database::{Receivers, Size, creation},
    http::request,
    lab::{API_KEY, Lab, Program},
    load::{self, Deck, milliseconds},
    report::{Limit, RowReport, Unit},
};

const WEBHOOK_CONNECTIONS: usize = 64;
const READ_CONNECTIONS: usize = 16;
const CREATION_CONNECTIONS: usize = 20;

pub async fn memory(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let service = database.start_service(lab).await?;
    // The background jobs have run a few times.
    sleep(Duration::from_secs(3)).await;
    let idle = service.memory().await?;

    let webhooks = database.payments(Receivers::All);
    let creations = Deck::once((0..50_000).map(|_| creation("Order 236")).collect());
    let headers = [("authorization", &*format!("Bearer {API_KEY}"))];
    let paths = database.random_links(10_000);
    let paths = paths.map(|id| format!("/v1/payment-links/{id}"));
    let reads = Deck::repeat(
        paths
            .map(|path| request("GET", &path, &headers, ""))
            .collect(),
    );
    let length = lab.scale.watch;
    let (webhooks, creations, reads, memory) = tokio::join!(
        load::run(service.address, WEBHOOK_CONNECTIONS, &webhooks, length),
        load::run(service.address, CREATION_CONNECTIONS, &creations, length),
        load::run(service.address, READ_CONNECTIONS, &reads, length),
        watch(&service, length),
    );
    service.stop().await?;
    for (name, load) in [
        ("webhooks", webhooks?),
        ("creations", creations?),
        ("reads", reads?),
    ] {
        report.figure(
            format!("{name} under full load"),
            load.rate(),
            Unit::PerSecond,
        );
    }
    let memory = memory?;
    let third = memory.len() / 3;
    let (early, late) = (
        load::median(&memory[..third]),
        load::median(&memory[memory.len() - third..]),
    );
    report.figure("in the first third", early, Unit::Mebibytes);
    report.figure("in the last third", late, Unit::Mebibytes);
    let most = memory.iter().copied().fold(0.0, f64::max);
    report.goal("idle", Limit::AtMost(30.0), idle, Unit::Mebibytes);
    report.goal(
        "at most under full load",
        Limit::AtMost(60.0),
        most,
        Unit::Mebibytes,
    );
    report.goal(
        "in the last third of the load, compared with the first",
        Limit::AtMost(1.1),
        late / early,
        Unit::Times,
    );
    Ok(())
}

/// The memory of a process, four times a second.
async fn watch(program: &Program, length: Duration) -> Result<Vec<f64>> {
    let end = Instant::now() + length;
    let mut memory = vec![];
    while Instant::now() < end {
        sleep(Duration::from_millis(250)).await;
        memory.push(program.memory().await?);
    }
    Ok(memory)
}

pub async fn start(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    const STARTS: usize = 5;
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let mut starts = vec![];
    for _ in 0..STARTS {
        let begin = Instant::now();
        let service = database.start_service(lab).await?;
        starts.push(milliseconds(begin.elapsed()));
        service.stop().await?;
    }
    let median = report.median("from start to ready", &starts, Unit::Milliseconds);
    report.goal(
        "from start to ready on a migrated database",
        Limit::AtMost(300.0),
        median,
        Unit::Milliseconds,
    );
    Ok(())
}
