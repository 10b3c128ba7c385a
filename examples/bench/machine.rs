//! What a run ran on.

use std::{fmt, fs, process::Command};

use serde::Serialize;
use sqlx::PgPool;

use crate::Result;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    os: String,
    postgres: String,
    fsync: String,
    synchronous_commit: String,
    commit: String,
}

impl Machine {
    pub async fn inspect(postgres: &PgPool) -> Result<Self> {
        let setting = async |name: &str| {
            sqlx::query_scalar::<_, String>("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(postgres)
                .await
        };
        Ok(Self {
            cpu: cpu(),
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: memory_mib(),
            os: output("uname", &["-srm"]),
            postgres: setting("server_version").await?,
            fsync: setting("fsync").await?,
            synchronous_commit: setting("synchronous_commit").await?,
            commit: output("git", &["describe", "--always", "--dirty"]),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            memory_mib,
            os,
            postgres,
            fsync,
            synchronous_commit,
            commit,
        } = self;
        writeln!(
            f,
            "Commit {commit} on {cpu}, {cores} cores, {memory_mib} MiB, {os}."
        )?;
        write!(
            f,
            "Postgres {postgres} with fsync {fsync} and synchronous_commit {synchronous_commit}."
        )
    }
}

fn cpu() -> String {
    let linux = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    linux.unwrap_or_else(|| output("sysctl", &["-n", "machdep.cpu.brand_string"]))
}

fn memory_mib() -> u64 {
    let linux = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib = text
            .lines()
            .next()?
            .split_whitespace()
            .nth(1)?
            .parse::<u64>();
        Some(kib.ok()? / 1024)
    });
    linux.unwrap_or_else(|| {
        let bytes = output("sysctl", &["-n", "hw.memsize"]).parse::<u64>();
        bytes.unwrap_or_default() / (1024 * 1024)
    })
}

/// What a command prints, or `unknown`.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.ok().filter(|output| output.status.success());
    text.map_or_else(
        || "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
