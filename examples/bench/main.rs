//! Measures the service against goals that are ratios: each compares it with something else that runs on the same machine in
//! the same run. Run it with `script/bench`, which builds and installs what it needs. `docs/performance.md` explains the rows.

#![allow(unreachable_pub, reason = "a program of several files")]

mod database;
mod http;
mod lab;
mod load;
mod machine;
mod pgbench;
mod report;
mod rows;
mod scale;

use std::{error::Error, fmt::Write as _, fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};
use lab::Lab;
use machine::Machine;
use report::Report;
use rows::Row;
use scale::Scale;
use tokio::signal::unix::{SignalKind, signal};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Measures the service and prints a table of goals and figures.
#[derive(Parser)]
#[command(after_help = list_of_rows())]
struct Options {
    /// Small databases and short rounds, to see that the benchmark works.
    #[arg(long)]
    quick: bool,

    /// The only rows to measure, separated by commas. Default: all of them.
    #[arg(
        long,
        value_name = "ROWS",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    only: Vec<Row>,

    /// Where to write the raw figures.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,

    /// Exit with 1 if a goal is missed.
    #[arg(long)]
    strict: bool,
}

/// The end of `--help`: what each row measures.
fn list_of_rows() -> String {
    let mut list = String::from("Rows:\n");
    for row in Row::value_variants() {
        let value = row.to_possible_value();
        let help = value.as_ref().and_then(|value| value.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let line = format!("  {:<19}{help}", row.name());
        let in_script = include_str!("../../script/bench").contains(&format!("# {line}\n"));
        debug_assert!(in_script, "script/bench --help lacks the line: {line}");
        let _ = writeln!(list, "{line}");
    }
    list
}

// One thread sends all requests: the machine's other cores are for what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder =
        std::env::temp_dir().join(format!("dojo-payment-links-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let (mut interrupted, mut terminated) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    // Dropping the run's future ends everything that it started.
    let report = tokio::select! {
        report = run(&options, &folder) => report,
        _ = interrupted.recv() => Err("stopped; nothing is left running".into()),
        _ = terminated.recv() => Err("stopped; nothing is left running".into()),
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            eprintln!("\n{error}\n  Logs: {}", folder.display());
            return Ok(ExitCode::FAILURE);
        }
    };
    println!("\n{report}");
    fs::write(&options.json, serde_json::to_vec_pretty(&report)?)?;
    println!("Raw figures: {}", options.json.display());
    if !report.is_complete() {
        eprintln!("Logs: {}", folder.display());
        return Ok(ExitCode::FAILURE);
    }
    fs::remove_dir_all(&folder)?;
    Ok(if options.strict && !report.is_passed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn run(options: &Options, folder: &std::path::Path) -> Result<Report> {
    let scale = if options.quick {
        Scale::QUICK
    } else {
        Scale::FULL
    };
    let mut lab = Lab::set_up(scale, folder).await?;
    let machine = Machine::inspect(&lab.admin).await?;
    println!("{machine}");
    let mut report = Report::new(machine, options.quick);
    for row in Row::value_variants() {
        let is_chosen = if options.only.is_empty() {
            !row.is_only_if_named()
        } else {
            options.only.contains(row)
        };
        if is_chosen {
            println!("==> {}", row.name());
            let begin = Instant::now();
            if let Err(error) = row.run(&mut lab, report.row(row.name())).await {
                report.failed(row.name(), error.to_string());
            }
            println!("    took {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    Ok(report)
}
