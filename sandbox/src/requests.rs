//! The record of API calls.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, Request, Response, header};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::clock::Timestamp;
use crate::faults::{Kind, Operation};

/// Beyond these limits, the oldest calls are forgotten.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// An API call that was received.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    at: Timestamp,
    method: String,
    path: String,
    query: Option<String>,
    pub(crate) operation: Operation,
    /// Without `Authorization`, which contains the API key.
    headers: BTreeMap<String, String>,
    #[serde(serialize_with = "as_json")]
    body: Bytes,
    fault: Option<Kind>,
    /// The status, `cut` or `silent`. `None` while the call is in progress.
    #[serde(rename = "answered")]
    outcome: Option<Outcome>,
}

impl Entry {
    pub(crate) fn new(
        at: Timestamp,
        operation: Operation,
        request: &Request<Bytes>,
        fault: Option<Kind>,
    ) -> Self {
        Self {
            at,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().map(str::to_owned),
            operation,
            headers: without_key(request.headers()),
            body: request.body().clone(),
            fault,
            outcome: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Status(u16),
    Cut,
    Silent,
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Status(status) => serializer.serialize_u16(*status),
            Self::Cut => serializer.serialize_str("cut"),
            Self::Silent => serializer.serialize_str("silent"),
        }
    }
}

/// The calls that were received, oldest first.
#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    entries: VecDeque<Entry>,
    forgotten: u64,
    bytes: usize,
}

impl RequestLog {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.forgotten += self.entries.len() as u64;
        self.entries.clear();
        self.bytes = 0;
    }

    /// Returns the entry's number, for [`RequestLog::finish`].
    pub(crate) fn add(&mut self, entry: Entry) -> u64 {
        self.bytes += entry.body.len();
        self.entries.push_back(entry);
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= oldest.body.len();
                self.forgotten += 1;
            }
        }
        self.forgotten + self.entries.len() as u64 - 1
    }

    pub(crate) fn finish(&mut self, number: u64, outcome: Outcome) {
        let index = number
            .checked_sub(self.forgotten)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            entry.outcome = Some(outcome);
        }
    }
}

/// An API call and its response.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The request as it arrived.
    pub request: Request<Bytes>,
    /// The sandbox's own response. `None` if a fault replaced it or changed it.
    pub response: Option<Response<Bytes>>,
}

/// A function that is called with each API call.
#[derive(Clone)]
pub(crate) struct Watcher(pub(crate) Arc<dyn Fn(&Exchange) + Send + Sync>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

fn without_key(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut recorded = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        recorded
            .entry(name.as_str().to_owned())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    recorded
}

/// The body as JSON, as text if it isn't valid JSON, or as `null` if it is empty.
fn as_json<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    if body.is_empty() {
        return serializer.serialize_none();
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => value.serialize(serializer),
        Err(_) => serializer.serialize_str(&String::from_utf8_lossy(body)),
    }
}
