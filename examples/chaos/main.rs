//! Runs the service under load while everything around it fails at random: three replicas on one Postgres, the sandbox in
//! Dojo's place, and people who request links, pay, refund and cancel. Then the trouble ends, and every promise of the
//! service is checked. Run it with `script/chaos`, which builds what it needs.
//!
//! The seed decides who does what, and what goes wrong in which order. Processes, timers and the network are not under its
//! control, so the same seed gives the same plan and not the same run. Repeat a failure a few times.

#![allow(unreachable_pub, reason = "a program of several files")]

mod alone;
mod callbacks;
mod feed;
mod mail;
mod operators;
mod people;
mod promise;
mod stage;
mod trouble;
mod verdict;
mod wire;

use std::{collections::BTreeSet, fmt::Write as _, path::Path, process::ExitCode, time::Duration};

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
#[command(after_help = list_of_troubles())]
struct Options {
    /// How long the trouble lasts. The checks come after it.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,

    /// What decides the plan. Default: a random seed, which is printed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,

    /// The only troubles that happen, separated by commas. Default: all of them.
    #[arg(
        long,
        value_name = "TROUBLES",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    only: Vec<Trouble>,

    /// Troubles that happen besides those of `--only`.
    #[arg(
        long,
        value_name = "TROUBLES",
        value_delimiter = ',',
        hide_possible_values = true,
        requires = "only"
    )]
    with: Vec<Trouble>,

    /// Troubles that don't happen.
    #[arg(
        long,
        value_name = "TROUBLES",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    without: Vec<Trouble>,
}

/// The end of `--help`: what each trouble does.
fn list_of_troubles() -> String {
    let mut list = String::from("Troubles:\n");
    for trouble in Trouble::value_variants() {
        let value = trouble.to_possible_value();
        let help = value.as_ref().and_then(|value| value.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let line = format!("  {:<20}{help}", trouble.name());
        let in_script = include_str!("../../script/chaos").contains(&format!("# {line}\n"));
        debug_assert!(in_script, "script/chaos --help lacks the line: {line}");
        let _ = writeln!(list, "{line}");
    }
    list
}

impl Options {
    fn troubles(&self) -> BTreeSet<Trouble> {
        let chosen = |trouble: &Trouble| {
            self.only.is_empty() || self.only.contains(trouble) || self.with.contains(trouble)
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
    // Dropping the run's future drops everything that it started, which ends it.
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
    // Each has a random generator of its own, so that none changes what another does.
    let mut seeds = StdRng::seed_from_u64(seed);
    let mut dice = || StdRng::from_rng(&mut seeds);
    let callers = people::callers(&stage, &books, dice(), until);
    let merchant = people::merchant(&stage, dice(), until);
    let readers = [dice(), dice(), dice()].map(|dice| people::reader(&stage, &books, dice, until));
    // Troubles that are left out take their generator as well, so that the plan of the others stays the same.
    let dice_for_each = Trouble::value_variants().iter().map(|one| (*one, dice()));
    let troubles = dice_for_each
        .collect::<Vec<_>>()
        .into_iter()
        .filter(|(trouble, _)| stage.has(*trouble))
        .map(|(trouble, dice)| trouble.run(&stage, &damage, dice, until));
    let feed_readers = [feed::Reader::default(), feed::Reader::default()];
    let receivers = callbacks::Receiver::both(&stage, &mut dice()).await?;
    let dice_for_feed = [dice(), dice()];
    let followers = feed_readers
        .iter()
        .zip(dice_for_feed)
        .map(|(reader, dice)| reader.follow(&stage, dice, until));
    // The first broken promise ends the run.
    tokio::try_join!(
        callers,
        merchant,
        try_join_all(readers),
        try_join_all(troubles),
        try_join_all(followers),
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
    let made_due = verdict::make_all_due(&stage.database.pool).await?;
    verdict::settled(&stage, made_due).await?;
    callbacks::finish(&stage, &receivers).await?;
    let took = calm.elapsed();
    // A webhook that its sender has given up on may still be on its way into the database, and is then reconciled. So a
    // promise counts as broken only if it still is after everything has settled once more.
    let mut judged = verdict::judge(&stage, &books, &feed_readers).await;
    if judged.is_err() {
        verdict::settled(&stage, any_time).await?;
        judged = verdict::judge(&stage, &books, &feed_readers).await;
    }
    let findings = judged?;
    callbacks::finish(&stage, &receivers).await?;
    let called = callbacks::judge(&stage, &receivers).await?;
    let sent = mail::judge(&stage).await?;
    print_tally(&books, &damage, &findings, called, &sent, took);
    Ok(())
}

fn print_tally(
    books: &Books,
    damage: &Damage,
    findings: &Findings,
    called: usize,
    sent: &mail::Sent,
    took: Duration,
) {
    let row = |name: &str, figures: String| println!("  {name:<14}{figures}");
    row(
        "links",
        format!(
            "{} requested in {} requests; {} created, {} of them failed",
            books.orders.borrow().len(),
            books.requests.get(),
            findings.links,
            findings.failed
        ),
    );
    row(
        "at Dojo",
        format!(
            "{} live intents, {} surplus intents canceled",
            findings.alive, findings.surplus
        ),
    );
    row(
        "operations",
        format!(
            "{} requested: {} captures, {} refunds, {} reversals, {} cancellations done; {} lost and recovered",
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
            "{} sent, {} acknowledged, {} stored; {} false ones",
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
            "{} lost creations, {} contradictions, {} conflicting responses; {} reads",
            findings.recoveries,
            findings.contradictions,
            findings.disputes,
            books.readings.get()
        ),
    );
    row(
        "feed",
        format!("{} events, read by two readers", findings.events),
    );
    row(
        "callbacks",
        format!("{called} arrived at two receivers, one of which often fails"),
    );
    row(
        "messages",
        format!(
            "{} accepted by the mail server; {} unknown, {} not sent because the link was no longer payable",
            sent.accepted, sent.unknown, sent.canceled
        ),
    );
    row("settled in", format!("{:.1} s", took.as_secs_f64()));
}
