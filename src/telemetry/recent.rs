//! What this replica has counted lately. Prometheus works that out by itself. The console can't rely on there being a Prometheus.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How far back counts reach, once the replica has run for as long.
const WINDOW: Duration = Duration::from_hours(1);

/// How often the counters are remembered. So counts may reach back this much further.
const STEP: Duration = Duration::from_mins(5);

/// A line of the metrics: a name with labels, and a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    series: &'a str,
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// All samples in the metrics, which are in Prometheus's text format.
    pub fn all(metrics: &'a str) -> impl Iterator<Item = Self> {
        metrics.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let value = value.parse().ok()?;
            (!series.starts_with('#')).then_some(Self { series, value })
        })
    }

    /// Without labels.
    #[must_use]
    pub fn name(self) -> &'a str {
        self.series.split('{').next().unwrap_or_default()
    }

    /// A label's value. Empty if it has no such label.
    #[must_use]
    pub fn label(self, name: &str) -> &'a str {
        let (_, mut rest) = self.series.split_once('{').unwrap_or_default();
        while let Some((found, after)) = rest.split_once("=\"") {
            let mut is_escaped = false;
            let end = after.find(|letter| {
                let is_end = letter == '"' && !is_escaped;
                is_escaped = letter == '\\' && !is_escaped;
                is_end
            });
            let Some(end) = end else { break };
            if found.trim_start_matches(',') == name {
                return &after[..end];
            }
            rest = &after[end + 1..];
        }
        ""
    }

    /// Whether it only ever grows.
    fn is_counter(self) -> bool {
        ["_total", "_count", "_bucket"]
            .iter()
            .any(|end| self.name().ends_with(end))
    }
}

/// The counters that aren't 0, by series.
type Counters = HashMap<String, f64>;

/// Remembers the counters for a while.
pub struct Recent {
    since: Instant,
    remembered: Mutex<VecDeque<(Instant, Counters)>>,
}

impl Recent {
    /// For counters that are 0 now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            remembered: Mutex::default(),
        }
    }

    /// Remembers the counters, if it is time to. Call it every few seconds.
    pub fn remember(&self, now: Instant, metrics: impl FnOnce() -> String) {
        let mut remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let newest = remembered.back().map_or(self.since, |(at, _)| *at);
        if now.saturating_duration_since(newest) < STEP {
            return;
        }
        let counters = Sample::all(&metrics())
            .filter(|sample| sample.is_counter() && sample.value > 0.0)
            .map(|sample| (sample.series.to_owned(), sample.value))
            .collect();
        remembered.push_back((now, counters));
        // The last one from before the window is where it begins.
        while remembered
            .get(1)
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW)
        {
            remembered.pop_front();
        }
    }

    /// What was counted lately. `metrics` are those of now.
    pub fn counted<'a>(&self, now: Instant, metrics: &'a str) -> Counted<'a> {
        let remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let first = remembered
            .iter()
            .rev()
            .find(|(at, _)| now.saturating_duration_since(*at) >= WINDOW);
        let before = |series| first.and_then(|(_, counters)| counters.get(series));
        let counters = Sample::all(metrics).filter(|sample| sample.is_counter());
        Counted {
            window: now.saturating_duration_since(first.map_or(self.since, |(at, _)| *at)),
            is_since_start: first.is_none(),
            samples: counters
                .map(|sample| Sample {
                    value: sample.value - before(sample.series).copied().unwrap_or(0.0),
                    ..sample
                })
                .collect(),
        }
    }
}

/// By how much each counter has grown.
pub struct Counted<'a> {
    /// Over how long.
    pub window: Duration,
    /// Whether that is since the start.
    pub is_since_start: bool,
    samples: Vec<Sample<'a>>,
}

impl<'a> Counted<'a> {
    /// The series of a counter that have grown.
    pub fn of(&self, counter: &str) -> impl Iterator<Item = Sample<'a>> {
        let samples = self.samples.iter().copied();
        samples.filter(move |sample| sample.name() == counter && sample.value > 0.0)
    }

    /// How much was counted in those series of a counter that are to be counted.
    pub fn sum(&self, counter: &str, is_counted: impl Fn(Sample<'_>) -> bool) -> u64 {
        let sum: f64 = self
            .of(counter)
            .filter(|sample| is_counted(*sample))
            .map(|sample| sample.value)
            .sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole, not negative, and far below 2^52"
        )]
        let sum = sum.round() as u64;
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_whatever_their_values_contain() {
        let text =
            "# HELP a_total Things\na_total{one=\"a,b=\\\"c\\\"}\",other=\"/x\"} 3\nb 1.5\n\nc{";
        let samples: Vec<_> = Sample::all(text).collect();
        assert_eq!(samples.len(), 2);
        assert_eq!(samples[0].name(), "a_total");
        assert_eq!(samples[0].label("one"), "a,b=\\\"c\\\"}");
        assert_eq!(samples[0].label("other"), "/x");
        assert_eq!(samples[0].label("ther"), "");
        assert_eq!((samples[1].name(), samples[1].label("one")), ("b", ""));
    }

    #[test]
    fn counts_reach_back_to_the_start_and_then_for_an_hour() {
        let start = Instant::now();
        let at = |minutes| start + Duration::from_mins(minutes);
        let recent = Recent::new(start);
        let metrics = |count: u64| format!("a_total {count}\nb 7\n");
        let counted = |minutes, count| {
            let metrics = metrics(count);
            let found = recent.counted(at(minutes), &metrics);
            assert_eq!(found.sum("b", |_| true), 0, "it is no counter");
            (found.sum("a_total", |_| true), found.window.as_secs() / 60)
        };
        assert_eq!(counted(1, 2), (2, 1));
        for minute in 0..=300 {
            recent.remember(at(minute), || metrics(10 * minute));
        }
        assert_eq!(counted(301, 3012), (612, 61));
        assert!(recent.remembered.lock().unwrap().len() < 15);
    }
}
