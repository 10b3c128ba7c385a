//! Postgres' own benchmark.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::{Result, database::Database};

/// One event of a webhook, as a single statement on the service's own tables: it stores the event, moves the link, and records
/// this in the timeline.
pub const INTAKE: &str = include_str!("sql/intake.sql");
/// The same on three tables that have only primary keys, which [`BARE_TABLES`] creates.
pub const BARE_INTAKE: &str = include_str!("sql/bare.sql");
pub const BARE_TABLES: &str = include_str!("sql/bare_tables.sql");
/// Reads a link's row.
pub const READ: &str = include_str!("sql/read.sql");

/// The rows of the links with a customer's email address, an intent, a reference, a card's last four digits or an amount, or whose
/// reference starts with a text, as a search finds them.
pub const SEARCH_EMAIL: &str = include_str!("sql/search_email.sql");
pub const SEARCH_INTENT: &str = include_str!("sql/search_intent.sql");
pub const SEARCH_REFERENCE: &str = include_str!("sql/search_reference.sql");
pub const SEARCH_START: &str = include_str!("sql/search_start.sql");
pub const SEARCH_CARD: &str = include_str!("sql/search_card.sql");
pub const SEARCH_AMOUNT: &str = include_str!("sql/search_amount.sql");

/// What pgbench measured.
pub struct Measured {
    /// Transactions per second.
    pub rate: f64,
    /// The mean latency, in milliseconds.
    pub mean: f64,
}

/// Runs a script with prepared statements on so many connections, for so long.
pub async fn run(
    database: &Database,
    script: &str,
    connections: usize,
    length: Duration,
) -> Result<Measured> {
    let program = test_postgres::bin_dir()
        .ok_or("the programs of Postgres are missing")?
        .join("pgbench");
    let mut pgbench = Command::new(program)
        .args(["--no-vacuum", "--protocol=prepared", "--file=-"])
        .arg(format!("--client={connections}"))
        .arg(format!("--jobs={}", connections.min(2)))
        .arg(format!("--time={}", length.as_secs().max(1)))
        .arg(format!("--define=links={}", database.links))
        .arg(format!("--define=epoch={}", database.epoch))
        .arg(&database.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = pgbench.stdin.take().ok_or("pgbench reads its input")?;
    input.write_all(script.as_bytes()).await?;
    drop(input);
    let output = pgbench.wait_with_output().await?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pgbench failed: {error}").into());
    }
    let number = |label: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(label));
        let word = rest.and_then(|rest| rest.split_whitespace().next());
        word.and_then(|word| word.parse().ok())
            .ok_or_else(|| format!("pgbench printed no {label}: {text}"))
    };
    Ok(Measured {
        rate: number("tps = ")?,
        mean: number("latency average = ")?,
    })
}
