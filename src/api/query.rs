//! Lists: the query of a request, and one page of results.

use std::borrow::Cow;

use serde::Serialize;
use url::form_urlencoded;
use utoipa::{IntoParams, ToSchema};

use super::error::Error;
use crate::payment_link::Fault;

/// The parameters of every list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
pub(super) struct PageParameters {
    /// The maximum number of items to return. Defaults to 50.
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
    /// The `after` to send to get the next page. `null` on the last page.
    after: Option<String>,
}

impl<T> Page<T> {
    /// A page of `limit` items. To know whether another page follows, `data` must contain one more if there is one.
    pub(super) fn new(mut data: Vec<T>, limit: usize, cursor: impl FnOnce(&T) -> String) -> Self {
        let more = data.len() > limit;
        data.truncate(limit);
        let after = data.last().filter(|_| more).map(cursor);
        Self { data, after }
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

pub(super) fn to_i64(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment_link::Status;

    #[test]
    fn a_query_reports_all_its_faults() {
        let mut query = Query::new(Some("limit=0&status=Paid&color=red&status=Created"));
        assert_eq!(query.limit(), 50);
        assert_eq!(
            query.take("status", "a status", |text| text.parse::<Status>().ok()),
            None
        );
        let Err(Error::Invalid(faults)) = query.finish() else {
            panic!("the query has faults");
        };
        let at: Vec<_> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(at, ["limit", "status", "color"]);
    }
}
