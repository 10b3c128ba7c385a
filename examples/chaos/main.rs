//! Everything that can go wrong, at random and all at once, against the real programs: three replicas of the service
//! on one Postgres, the sandbox in Dojo's place, and people who ask, pay, refund and cancel. Then calm, and a comparison of
//! everything that was promised with what became of it. Run it with `script/chaos`, which builds what it needs.
//!
//! The seed decides who does what and what goes wrong in which order. Processes, timers and the network run as they
//! please, so the same seed gives the same plan and not the same run: repeat a failure a few times.

#![allow(unreachable_pub, reason = "it shares a file with the tests")]

mod alone;
mod operators;
mod people;
#[path = "../../tests/api/support/postgres.rs"]
mod postgres;
mod promise;
mod stage;
mod trouble;
mod verdict;
mod wire;

use std::{collections::BTreeSet, path::Path, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use futures_util::future::try_join_all;
use people::Books;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use stage::{Result, Stage};
use time::OffsetDateTime;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use trouble::{Damage, Trouble};
use verdict::Findings;

/// Runs the service under load while everything around it fails, then checks that it kept its promises.
#[derive(Parser)]
struct Options {
    /// How long the trouble lasts; calm and the checks come after it.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,

    /// What decides the plan. Default: a random one, which is printed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,

    /// What goes wrong in place of what does by default, separated by commas.
    #[arg(long, value_name = "TROUBLES", value_delimiter = ',', conflicts_with_all = ["with", "all"])]
    only: Vec<Trouble>,

    /// What goes wrong besides what does by default.
    #[arg(long, value_name = "TROUBLES", value_delimiter = ',')]
    with: Vec<Trouble>,

    /// What is left out.
    #[arg(long, value_name = "TROUBLES", value_delimiter = ',')]
    without: Vec<Trouble>,

    /// Everything there is goes wrong.
    #[arg(long)]
    all: bool,
}

impl Options {
    fn troubles(&self) -> BTreeSet<Trouble> {
        let chosen = |trouble: &Trouble| {
            if self.only.is_empty() {
                self.all || trouble.is_default() || self.with.contains(trouble)
            } else {
                self.only.contains(trouble)
            }
        };
        Trouble::value_variants()
            .iter()
            .filter(|trouble| chosen(trouble) && !self.without.contains(trouble))
            .copied()
            .collect()
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let seed = options
        .seed
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let seconds = options.seconds;
    let troubles = options.troubles();
    let names: Vec<_> = troubles.iter().map(|trouble| trouble.name()).collect();
    let names = names.join(",");
    println!("Chaos for {seconds} s with seed {seed}: {names}");

    let logs =
        std::env::temp_dir().join(format!("dojo-payment-links-chaos-{}", std::process::id()));
    std::fs::create_dir_all(&logs)?;
    let mut terminated = signal(SignalKind::terminate())?;
    // Dropping the run's future drops what it started, which ends all of it.
    let result = tokio::select! {
        result = run(seconds, seed, troubles, &logs) => result,
        _ = tokio::signal::ctrl_c() => Err("stopped; nothing is left running".into()),
        _ = terminated.recv() => Err("stopped; nothing is left running".into()),
    };
    match result {
        Ok(()) => {
            std::fs::remove_dir_all(&logs)?;
            println!("Every promise was kept.");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("\n{error}");
            eprintln!("  To repeat: script/chaos --seconds {seconds} --seed {seed} --only {names}");
            eprintln!("  The replicas' logs: {}", logs.display());
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn run(seconds: u64, seed: u64, troubles: BTreeSet<Trouble>, logs: &Path) -> Result {
    let stage = Stage::set(seed, troubles, logs).await?;
    let (books, damage) = (Books::default(), Damage::default());
    let until = Instant::now() + Duration::from_secs(seconds);
    // Each has dice of its own, so that none changes what another does.
    let mut seeds = StdRng::seed_from_u64(seed);
    let mut dice = || StdRng::from_rng(&mut seeds);
    let callers = people::callers(&stage, &books, dice(), until);
    let merchant = people::merchant(&stage, dice(), until);
    let readers = [dice(), dice(), dice()].map(|dice| people::reader(&stage, &books, dice, until));
    // Those that are left out have had their dice as well.
    let dice_for_each = Trouble::value_variants().iter().map(|one| (*one, dice()));
    let troubles = dice_for_each
        .collect::<Vec<_>>()
        .into_iter()
        .filter(|(trouble, _)| stage.has(*trouble))
        .map(|(trouble, dice)| trouble.run(&stage, &damage, dice, until));
    // The first broken promise ends it.
    tokio::try_join!(
        callers,
        merchant,
        try_join_all(readers),
        try_join_all(troubles),
    )?;

    let calm = Instant::now();
    trouble::calm(&stage).await?;
    let any_time = OffsetDateTime::UNIX_EPOCH;
    verdict::settled(&stage, any_time).await?;
    people::ask_for_all(&stage, &books, dice()).await?;
    operators::ask_for_all(&stage, &books, &mut dice()).await?;
    verdict::settled(&stage, any_time).await?;
    alone::each_replica_works(&stage).await?;
    verdict::settled(&stage, any_time).await?;
    let looked_at = verdict::look_at_all(&stage.database.pool).await?;
    verdict::settled(&stage, looked_at).await?;
    let took = calm.elapsed();
    // A webhook that its sender has given up on may still be on its way into the database. What it does there has to
    // come right by itself, so a broken promise counts if it stands after all is settled once more.
    let mut judged = verdict::judge(&stage, &books).await;
    if judged.is_err() {
        verdict::settled(&stage, any_time).await?;
        judged = verdict::judge(&stage, &books).await;
    }
    let findings = judged?;
    print_tally(&books, &damage, &findings, took);
    Ok(())
}

fn print_tally(books: &Books, damage: &Damage, findings: &Findings, took: Duration) {
    let row = |name: &str, figures: String| println!("  {name:<14}{figures}");
    row(
        "links",
        format!(
            "{} asked for in {} requests; {} made, {} of them came to nothing",
            books.orders.borrow().len(),
            books.requests.get(),
            findings.links,
            findings.failed
        ),
    );
    row(
        "at Dojo",
        format!(
            "{} intents alive, {} surplus ones canceled",
            findings.alive, findings.surplus
        ),
    );
    row(
        "operations",
        format!(
            "{} asked for: {} captures, {} refunds, {} reversals, {} cancellations done; {} lost and found out",
            books.operations.borrow().len(),
            findings.done("captures"),
            findings.done("refunds"),
            findings.done("reversal"),
            findings.done("cancel"),
            findings.lost_operations
        ),
    );
    row(
        "webhooks",
        format!(
            "{} sent, {} acknowledged, {} present; {} lies",
            findings.webhooks,
            findings.acknowledged,
            findings.present,
            books.lies.get()
        ),
    );
    row(
        "trouble",
        format!(
            "{} calls and {} webhooks faulty, {}",
            findings.call_faults,
            findings.webhook_faults,
            damage.tally().join(", ")
        ),
    );
    row(
        "found",
        format!(
            "{} lost creations, {} contradictions, {} disputes; {} readings",
            findings.recoveries,
            findings.contradictions,
            findings.disputes,
            books.readings.get()
        ),
    );
    row("settled in", format!("{:.1} s", took.as_secs_f64()));
}
