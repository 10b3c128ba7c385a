//! The intake of webhooks. Each event is new and moves a link; a 2xx counts only if the event is found in the database.

use sqlx::AssertSqlSafe;

use crate::{
    Result,
    database::{Database, Receivers, Size},
    lab::{Lab, start_fastify},
    load::{self, Load},
    pgbench,
    report::{Limit, RowReport, Unit},
};

const CONNECTIONS: usize = 64;

pub async fn rate(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    let round = lab.scale.round + lab.scale.warm_up;
    sqlx::raw_sql(AssertSqlSafe(pgbench::BARE_TABLES))
        .execute(&database.pool)
        .await?;
    sqlx::query(
        "INSERT INTO bare_links (id, status) SELECT n, 'Created' FROM generate_series(1, $1) n",
    )
    .bind(i32::try_from(database.links)?)
    .execute(&database.pool)
    .await?;

    let (mut service, mut statement, mut bare, mut fastify) = (vec![], vec![], vec![], vec![]);
    // In turns, because the speed of a machine changes over time.
    for _ in 0..lab.scale.rounds {
        service.push(intake(lab, &database, Receiver::Service, CONNECTIONS).await?);
        database.reset(lab).await?;
        let measured = pgbench::run(&database, pgbench::INTAKE, CONNECTIONS, round).await?;
        statement.push(measured.rate);
        lab.checkpoint().await?;
        let measured = pgbench::run(&database, pgbench::BARE_INTAKE, CONNECTIONS, round).await?;
        bare.push(measured.rate);
        fastify.push(
            intake(lab, &database, Receiver::Fastify, CONNECTIONS)
                .await?
                .rate(),
        );
    }

    let rates: Vec<_> = service.iter().map(Load::rate).collect();
    let all = Load::merge(&service)?;
    let service = report.median("the service, events", &rates, Unit::PerSecond);
    let statement = report.median(
        "pgbench, one statement per event on the same tables",
        &statement,
        Unit::PerSecond,
    );
    report.median(
        "pgbench, the same on three tables with only primary keys",
        &bare,
        Unit::PerSecond,
    );
    let fastify = report.median("Fastify and pg, events", &fastify, Unit::PerSecond);
    let (p50, p99) = (all.p50(), all.p99());
    report.figure("the service, p50", p50, Unit::Milliseconds);
    report.figure("the service, p99", p99, Unit::Milliseconds);
    report.goal(
        "events per second, compared with pgbench",
        Limit::AtLeast(1.2),
        service / statement,
        Unit::Times,
    );
    report.goal(
        "events per second, compared with Fastify and pg",
        Limit::AtLeast(10.0),
        service / fastify,
        Unit::Times,
    );
    report.goal(
        "p99, compared with p50",
        Limit::AtMost(4.0),
        p99 / p50,
        Unit::Times,
    );
    Ok(())
}

pub async fn latency(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    let (mut service, mut statement) = (vec![], vec![]);
    for _ in 0..lab.scale.rounds {
        service.push(intake(lab, &database, Receiver::Service, 1).await?.mean());
        database.reset(lab).await?;
        let measured = pgbench::run(&database, pgbench::INTAKE, 1, lab.scale.round).await?;
        statement.push(measured.mean);
    }
    let service = report.median("the service, mean", &service, Unit::Milliseconds);
    let statement = report.median("pgbench, mean", &statement, Unit::Milliseconds);
    report.goal(
        "mean latency on one connection, compared with pgbench",
        Limit::AtMost(2.0),
        service / statement,
        Unit::Times,
    );
    Ok(())
}

pub async fn full_database(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let (usual, large) = (
        lab.database(Size::Usual).await?,
        lab.database(Size::Large).await?,
    );
    let measure = async |database, receivers| {
        let load = intake_by(lab, database, Receiver::Service, CONNECTIONS, receivers).await?;
        Result::Ok(load.rate())
    };
    let (mut empty, mut full, mut scattered) = (vec![], vec![], vec![]);
    for _ in 0..lab.scale.rounds {
        empty.push(measure(&usual, Receivers::Newest).await?);
        full.push(measure(&large, Receivers::Newest).await?);
        scattered.push(measure(&large, Receivers::All).await?);
    }
    let empty = report.median(
        "the database of the row webhooks, events",
        &empty,
        Unit::PerSecond,
    );
    let full = report.median(
        "the large database, events about as many of its newest links",
        &full,
        Unit::PerSecond,
    );
    report.median(
        "the large database, events about any of its links",
        &scattered,
        Unit::PerSecond,
    );
    report.goal(
        "events per second about the newest links, compared with the database of the row webhooks",
        Limit::AtLeast(0.9),
        full / empty,
        Unit::Times,
    );
    Ok(())
}

/// A round of the service. Returns the events per second.
pub async fn service(lab: &Lab, database: &Database) -> Result<f64> {
    let load = intake(lab, database, Receiver::Service, CONNECTIONS).await?;
    Ok(load.rate())
}

/// Who receives the webhooks.
#[derive(Clone, Copy)]
enum Receiver {
    Service,
    Fastify,
}

/// A round: starts the receiver, sends it webhooks, stops it, and checks that everything acknowledged is stored.
async fn intake(
    lab: &Lab,
    database: &Database,
    receiver: Receiver,
    connections: usize,
) -> Result<Load> {
    intake_by(lab, database, receiver, connections, Receivers::All).await
}

async fn intake_by(
    lab: &Lab,
    database: &Database,
    receiver: Receiver,
    connections: usize,
    receivers: Receivers,
) -> Result<Load> {
    database.reset(lab).await?;
    let payments = database.payments(receivers);
    let before = database.stored_events().await?;
    let program = match receiver {
        Receiver::Service => database.start_service(lab).await?,
        Receiver::Fastify => start_fastify(lab, database).await?,
    };
    let warm_up = load::run(program.address, connections, &payments, lab.scale.warm_up).await?;
    let load = load::run(program.address, connections, &payments, lab.scale.round).await?;
    program.stop().await?;

    let acknowledged = warm_up.responses + load.responses;
    let stored = database.stored_events().await? - before;
    let moved = database
        .count("SELECT count(*) FROM payment_links WHERE status = 'Captured'")
        .await?;
    if stored != acknowledged || moved != acknowledged {
        return Err(format!(
            "{acknowledged} events were acknowledged, {stored} were stored, and {moved} links were moved"
        )
        .into());
    }
    Ok(load)
}
