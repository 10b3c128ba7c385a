//! Lists: the query of a request, and one page of results.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;
use time::Date;
use url::form_urlencoded;
use utoipa::{IntoParams, ToSchema};

use super::error::Error;
use crate::payment_link::{Fault, parse_day};

/// The parameters of every list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
pub(super) struct PageParameters {
    /// The maximum number of items to return. 50 if omitted.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<i64>,
    /// Where to continue: the `after` of the previous page.
    after: Option<String>,
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<T> {
    /// The items of this page.
    data: Vec<T>,
    /// The `after` to send to get the next page. On the last page, too: to continue later where this page ends.
    after: String,
    /// Whether more items follow.
    has_more: bool,
}

/// What an `after` in a query must be.
pub(super) const AFTER: &str = "the after of an earlier page";

impl<T> Page<T> {
    /// A page of `limit` items that begins behind the cursor `start`. To know whether another page follows, `data` must
    /// contain one more if there is one.
    pub(super) fn new(
        mut data: Vec<T>,
        limit: usize,
        start: String,
        cursor: impl FnOnce(&T) -> String,
    ) -> Self {
        let has_more = data.len() > limit;
        data.truncate(limit);
        let after = data.last().map_or(start, cursor);
        Self {
            data,
            after,
            has_more,
        }
    }
}

/// A query, read parameter by parameter. Collects everything that is wrong with it, so that one response can list it all.
pub(super) struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    faults: Vec<Fault>,
}

impl<'a> Query<'a> {
    pub(super) fn new(query: Option<&'a str>) -> Self {
        Self {
            pairs: form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect(),
            faults: Vec::new(),
        }
    }

    /// Reads the parameter `name`, if it is there. It is a fault if `parse` returns `None` or the parameter is repeated.
    /// `expected` describes a valid value.
    pub(super) fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (mine, others): (Vec<_>, _) =
            self.pairs.drain(..).partition(|(given, _)| given == name);
        self.pairs = others;
        match mine.as_slice() {
            [] => return None,
            [(_, value)] if !value.contains('\0') => {
                if let Some(value) = parse(value) {
                    return Some(value);
                }
            }
            _ => {}
        }
        self.faults.push(Fault::new(
            name,
            format!("must be given once and be {expected}"),
        ));
        None
    }

    /// Reads the parameters `name=key:value` and `name[key]=value`, each key once.
    pub(super) fn entries(&mut self, name: &str) -> Option<BTreeMap<String, String>> {
        let key_in_brackets = |given: &str| {
            let key = given.strip_prefix(name)?.strip_prefix('[')?;
            key.strip_suffix(']').map(str::to_owned)
        };
        let (mine, others): (Vec<_>, _) = self
            .pairs
            .drain(..)
            .partition(|(given, _)| given == name || key_in_brackets(given).is_some());
        self.pairs = others;
        let mut entries = BTreeMap::new();
        for (given, value) in mine {
            let entry = match key_in_brackets(&given) {
                Some(key) => Some((key, value.as_ref())),
                None => value
                    .split_once(':')
                    .map(|(key, value)| (key.to_owned(), value)),
            };
            let fault = match entry {
                None => Some("must be key:value"),
                Some((key, value)) if key.contains('\0') || value.contains('\0') => {
                    Some("must be text without the NUL character")
                }
                Some((key, value)) => entries
                    .insert(key, value.to_owned())
                    .map(|_| "must be given once for each key"),
            };
            self.faults
                .extend(fault.map(|fault| Fault::new(given.as_ref(), fault)));
        }
        (!entries.is_empty()).then_some(entries)
    }

    /// Reads a parameter that may be repeated, and whose values may be separated by commas. Each must be one of `allowed`.
    pub(super) fn any_of(&mut self, name: &str, allowed: &[&str]) -> Option<Vec<String>> {
        let (mine, others): (Vec<_>, _) =
            self.pairs.drain(..).partition(|(given, _)| given == name);
        self.pairs = others;
        let (known, unknown): (Vec<_>, Vec<_>) = mine
            .iter()
            .flat_map(|(_, values)| values.split(','))
            .map(str::to_owned)
            .partition(|value| allowed.contains(&value.as_str()));
        if !unknown.is_empty() {
            self.faults.push(Fault::new(
                name,
                format!("must be one of {}", allowed.join(", ")),
            ));
        }
        (!known.is_empty()).then_some(known)
    }

    /// Reads a business day.
    pub(super) fn day(&mut self, name: &str) -> Option<Date> {
        self.take(name, "a date such as 2026-01-31", parse_day)
    }

    pub(super) fn limit(&mut self) -> usize {
        self.take("limit", "1 to 100", |text| {
            text.parse().ok().filter(|limit| (1..=100).contains(limit))
        })
        .unwrap_or(50)
    }

    /// Fails if there were faults. Every parameter that was not read is one.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.faults.extend(
            self.pairs
                .iter()
                .map(|(name, _)| Fault::new(name.as_ref(), "is not a known parameter")),
        );
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(self.faults))
        }
    }
}

/// A value that a reference or an account's name can have.
pub(super) fn one_to_sixty(text: &str) -> Option<String> {
    (1..=60)
        .contains(&text.chars().count())
        .then(|| text.to_owned())
}

pub(super) fn to_i64(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_reports_all_its_faults() {
        let mut query = Query::new(Some("limit=0&account=a&color=red&account=b&status=Paid"));
        assert_eq!(query.limit(), 50);
        assert_eq!(query.take("account", "a name", one_to_sixty), None);
        assert_eq!(query.any_of("status", &["Created", "Captured"]), None);
        let Err(Error::Invalid(faults)) = query.finish() else {
            panic!("the query has faults");
        };
        let at: Vec<_> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(at, ["limit", "account", "status", "color"]);
    }

    #[test]
    fn an_entry_has_two_forms() {
        let entries = |query| {
            let mut query = Query::new(Some(query));
            let entries = query.entries("metadata");
            query.finish().map(|()| entries.unwrap_or_default()).ok()
        };
        let expected = |entries: &[(&str, &str)]| {
            let owned = entries
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Some(owned.collect::<BTreeMap<_, _>>())
        };
        assert_eq!(
            entries("metadata=order:236&metadata=at:12:30&metadata[a:b]=c&metadata=empty:"),
            expected(&[
                ("order", "236"),
                ("at", "12:30"),
                ("a:b", "c"),
                ("empty", "")
            ])
        );
        assert_eq!(
            entries("metadata[order]=236"),
            entries("metadata=order:236")
        );
        for invalid in [
            "metadata=order",
            "metadata=a:1&metadata=a:2",
            "metadata=a:1&metadata[a]=1",
            "metadata=a:%00",
            "metadata[a=1",
        ] {
            assert_eq!(entries(invalid), None, "{invalid}");
        }
    }
}
