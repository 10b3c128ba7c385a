//! How much space the tables waste after many webhooks, with Postgres's own autovacuum.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use crate::{
    Result,
    database::{Database, Receivers, Size},
    lab::Lab,
    load::{self, median},
    report::{RowReport, Unit},
};

const CONNECTIONS: usize = 64;

/// How long one pass over the links may take.
const PASS: Duration = Duration::from_mins(5);

/// The tables that a webhook writes to.
const TABLES: [&str; 4] = [
    "payment_links",
    "payment_intents",
    "payment_link_events",
    "webhook_events",
];

pub async fn measure(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let service = database.start_service(lab).await?;
    let (mut events, mut rates) = (0, vec![]);
    while events < lab.scale.events_before_bloat {
        let payments = database.payments(Receivers::All);
        let load = load::run(service.address, CONNECTIONS, &payments, PASS).await?;
        events += load.responses;
        rates.push(load.rate());
        database.make_unpaid().await?;
    }
    service.stop().await?;

    let tenth = rates.len().div_ceil(10);
    report.figure(
        "events, in the first tenth",
        median(&rates[..tenth]),
        Unit::PerSecond,
    );
    report.figure(
        "events, in the last tenth",
        median(&rates[rates.len() - tenth..]),
        Unit::PerSecond,
    );
    for table in TABLES {
        let (heap, indexes) = sizes(&database, table).await?;
        let rewrite = format!("VACUUM FULL {table}");
        sqlx::query(AssertSqlSafe(rewrite))
            .execute(&database.pool)
            .await?;
        let (smallest_heap, smallest_indexes) = sizes(&database, table).await?;
        report.figure(format!("{table}, rows"), heap, Unit::Mebibytes);
        report.figure(
            format!("{table}, rows, compared with a fresh copy"),
            heap / smallest_heap,
            Unit::Times,
        );
        report.figure(format!("{table}, indexes"), indexes, Unit::Mebibytes);
        report.figure(
            format!("{table}, indexes, compared with fresh ones"),
            indexes / smallest_indexes,
            Unit::Times,
        );
    }
    Ok(())
}

/// The sizes of a table and of its indexes, in MiB.
async fn sizes(database: &Database, table: &str) -> Result<(f64, f64)> {
    let size = "SELECT pg_table_size($1::regclass) / 1048576.0::float8, pg_indexes_size($1::regclass) / 1048576.0::float8";
    Ok(sqlx::query_as(size)
        .bind(table)
        .fetch_one(&database.pool)
        .await?)
}
