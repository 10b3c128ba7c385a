//! What a run found: its goals and figures, as tables in Markdown and as JSON.

use std::fmt;

use serde::Serialize;

use crate::machine::Machine;

/// What a goal demands of a measured value.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Limit {
    fn is_kept(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(limit) => measured >= limit,
            Self::AtMost(limit) => measured <= limit,
        }
    }
}

#[derive(Clone, Copy, Serialize)]
pub enum Unit {
    #[serde(rename = "times")]
    Times,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "1/s")]
    PerSecond,
    #[serde(rename = "MiB")]
    Mebibytes,
}

/// A value with its unit.
struct Quantity(f64, Unit);

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, unit) = *self;
        match unit {
            Unit::Times => write!(f, "{value:.2} ×"),
            Unit::Milliseconds => write!(f, "{value:.2} ms"),
            Unit::Seconds => write!(f, "{value:.2} s"),
            Unit::PerSecond => write!(f, "{value:.0}/s"),
            Unit::Mebibytes => write!(f, "{value:.1} MiB"),
        }
    }
}

/// A limit without needless zeros.
struct Demand(Limit, Unit);

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(limit, unit) = *self;
        let (word, value) = match limit {
            Limit::AtLeast(value) => ("at least", value),
            Limit::AtMost(value) => ("at most", value),
        };
        let unit = match unit {
            Unit::Times => " ×",
            Unit::Milliseconds => " ms",
            Unit::Seconds => " s",
            Unit::PerSecond => "/s",
            Unit::Mebibytes => " MiB",
        };
        write!(f, "{word} {value}{unit}")
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Goal {
    row: &'static str,
    what: &'static str,
    limit: Limit,
    measured: f64,
    unit: Unit,
    pass: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    row: &'static str,
    what: String,
    value: f64,
    unit: Unit,
    /// The single rounds, of which `value` is the median.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rounds: Vec<f64>,
}

/// A row that could not be measured.
#[derive(Serialize)]
struct Failure {
    row: &'static str,
    reason: String,
}

/// Everything that a run found.
#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    quick: bool,
    goals: Vec<Goal>,
    figures: Vec<Figure>,
    failures: Vec<Failure>,
}

impl Report {
    pub fn new(machine: Machine, quick: bool) -> Self {
        Self {
            machine,
            quick,
            goals: Vec::new(),
            figures: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Where a row puts its results.
    pub fn row(&mut self, name: &'static str) -> RowReport<'_> {
        RowReport { report: self, name }
    }

    pub fn failed(&mut self, row: &'static str, reason: String) {
        self.failures.push(Failure { row, reason });
    }

    /// Whether every row could be measured.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// Whether every goal that was measured is reached.
    pub fn is_passed(&self) -> bool {
        self.goals.iter().all(|goal| goal.pass)
    }
}

pub struct RowReport<'a> {
    report: &'a mut Report,
    name: &'static str,
}

impl RowReport<'_> {
    pub fn goal(&mut self, what: &'static str, limit: Limit, measured: f64, unit: Unit) {
        self.report.goals.push(Goal {
            row: self.name,
            what,
            limit,
            measured,
            unit,
            pass: limit.is_kept(measured),
        });
    }

    pub fn figure(&mut self, what: impl Into<String>, value: f64, unit: Unit) {
        self.report.figures.push(Figure {
            row: self.name,
            what: what.into(),
            value,
            unit,
            rounds: Vec::new(),
        });
    }

    /// Records the median of several rounds, and returns it.
    pub fn median(&mut self, what: impl Into<String>, rounds: &[f64], unit: Unit) -> f64 {
        let value = crate::load::median(rounds);
        self.report.figures.push(Figure {
            row: self.name,
            what: what.into(),
            value,
            unit,
            rounds: rounds.to_vec(),
        });
        value
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        if self.quick {
            writeln!(
                f,
                "\nA quick run: small databases and short rounds. Its figures only show that the benchmark works."
            )?;
        }
        writeln!(f, "\n| row | what | goal | measured | |")?;
        writeln!(f, "| --- | --- | --- | --- | --- |")?;
        for goal in &self.goals {
            let Goal {
                row, what, unit, ..
            } = *goal;
            let (demand, measured) = (Demand(goal.limit, unit), Quantity(goal.measured, unit));
            let verdict = if goal.pass { "pass" } else { "miss" };
            writeln!(f, "| {row} | {what} | {demand} | {measured} | {verdict} |")?;
        }
        for Failure { row, reason } in &self.failures {
            let reason = reason.replace(['\n', '|'], " ");
            writeln!(
                f,
                "| {row} | could not be measured: {reason} | | | failed |"
            )?;
        }
        if self.figures.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n| row | figure | value |")?;
        writeln!(f, "| --- | --- | --- |")?;
        for figure in &self.figures {
            let Figure {
                row, what, value, ..
            } = figure;
            writeln!(f, "| {row} | {what} | {} |", Quantity(*value, figure.unit))?;
        }
        Ok(())
    }
}
