//! What searches share: the period that they look at, and pages that go from new to old.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use time::Duration;

use crate::clock::Timestamp;
use crate::problem::FieldErrors;

const DEFAULT_LIMIT: usize = 50;

/// The place of an entry in its list, oldest first, and what cursors encode. It never changes.
pub(crate) type Position = u128;

/// The `cursor` of a search: how long the page is, and which page it is.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Cursor {
    limit: Option<usize>,
    before: Option<String>,
    after: Option<String>,
}

/// Validates what the schema of `cursor` can't express.
pub(crate) fn check_cursor(body: &Value) -> FieldErrors {
    let cursor = &body["cursor"];
    let mut errors = FieldErrors::new();
    for (member, field) in [("before", "Cursor.Before"), ("after", "Cursor.After")] {
        // The schema reports a value that isn't text.
        if cursor[member]
            .as_str()
            .is_some_and(|text| decode(text).is_none())
        {
            let message = "The value is not a valid cursor.".to_owned();
            errors.insert(field.to_owned(), vec![message]);
        }
    }
    if !cursor["before"].is_null() && !cursor["after"].is_null() {
        let message = "Before and After are mutually exclusive.".to_owned();
        errors.insert("Cursor".to_owned(), vec![message]);
    }
    errors
}

/// The times that a search looks at. Both ends are included.
#[derive(Debug)]
pub(crate) struct Period {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    visible_until: Option<Timestamp>,
}

impl Period {
    /// `start` and `end` are the `startDate` and the `endDate` of the search. What is younger than `lag` isn't visible
    /// yet.
    pub(crate) fn new(
        start: Option<&str>,
        end: Option<&str>,
        now: Timestamp,
        lag: Duration,
    ) -> Self {
        Self {
            from: start.and_then(Timestamp::parse),
            to: end.and_then(Timestamp::parse),
            visible_until: (!lag.is_zero()).then(|| now.plus(-lag)),
        }
    }

    pub(crate) fn contains(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| time >= from)
            && self.to.is_none_or(|to| time <= to)
            && self.visible_until.is_none_or(|until| time <= until)
    }
}

/// One page, newest first, with cursors to the pages before and after it if there are any.
pub(crate) fn page<T>(
    entries: &BTreeMap<Position, T>,
    matches: impl Fn(&T) -> bool,
    cursor: &Cursor,
    to_json: impl Fn(&T) -> Value,
) -> Value {
    let limit = cursor.limit.unwrap_or(DEFAULT_LIMIT);
    let before = cursor.before.as_deref().and_then(decode);
    let after = cursor.after.as_deref().and_then(decode);
    let matching = |&(_, entry): &(&Position, &T)| matches(entry);
    let newer_than =
        |position: Position| entries.range(position.saturating_add(1)..).filter(matching);
    let older_than = |position: Position| entries.range(..position).rev().filter(matching);

    let found: Vec<(&Position, &T)> = match before {
        Some(before) => {
            let mut found: Vec<_> = newer_than(before).take(limit).collect();
            found.reverse();
            found
        }
        None => older_than(after.unwrap_or(Position::MAX))
            .take(limit)
            .collect(),
    };
    // An empty page is directly before or after its cursor.
    let newest = found.first().map(|&(position, _)| *position);
    let oldest = found.last().map(|&(position, _)| *position);
    let newer = newest.or(after.map(|after| after.saturating_sub(1)));
    let older = oldest.or(before.map(|before| before.saturating_add(1)));
    json!({
        "data": found.iter().map(|&(_, entry)| to_json(entry)).collect::<Vec<_>>(),
        "before": newer.filter(|newer| newer_than(*newer).next().is_some()).map(encode),
        "after": older.filter(|older| older_than(*older).next().is_some()).map(encode),
    })
}

/// Cursors are scrambled, so that callers can't rely on their content.
const CURSOR_PREFIX: &str = "cur_";
const SCRAMBLE: Position = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;

fn encode(position: Position) -> String {
    format!("{CURSOR_PREFIX}{:032x}", position ^ SCRAMBLE)
}

fn decode(cursor: &str) -> Option<Position> {
    cursor
        .strip_prefix(CURSOR_PREFIX)
        .filter(|digits| digits.len() == 32)
        .and_then(|digits| Position::from_str_radix(digits, 16).ok())
        .map(|scrambled| scrambled ^ SCRAMBLE)
}
