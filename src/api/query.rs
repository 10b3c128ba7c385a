//! Lists: what a query asks for, and a page of what there is.

use std::borrow::Cow;

use serde::Serialize;
use url::form_urlencoded;
use utoipa::ToSchema;

use super::Error;
use crate::payment_link::Fault;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<T> {
    /// The entries.
    data: Vec<T>,
    /// What to send as `after` for the next page. `null` where this is the last one.
    after: Option<String>,
}

impl<T> Page<T> {
    /// A page of `limit` entries out of one more than that, if there are so many.
    pub(super) fn new(mut data: Vec<T>, limit: usize, cursor: impl FnOnce(&T) -> String) -> Self {
        let more = data.len() > limit;
        data.truncate(limit);
        let after = data.last().filter(|_| more).map(cursor);
        Self { data, after }
    }
}

/// A query, read name by name; collects what is wrong with it, so that all of it can be told at once.
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

    /// The parameter `name`, if it is there. Where `parse` does not understand it, or it is there twice,
    /// the fault is that it must be `expected`, once.
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
        self.faults
            .push(Fault::new(name, format!("must be {expected}, once")));
        None
    }

    pub(super) fn limit(&mut self) -> usize {
        self.take("limit", "1 to 100", |text| {
            text.parse().ok().filter(|limit| (1..=100).contains(limit))
        })
        .unwrap_or(50)
    }

    /// What is left is not known here.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.faults.extend(
            self.pairs
                .iter()
                .map(|(name, _)| Fault::new(name.as_ref(), "is no parameter of this request")),
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
    fn a_query_tells_all_its_faults() {
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
