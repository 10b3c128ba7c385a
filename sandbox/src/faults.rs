//! What goes wrong with API calls, on demand.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chance;

/// What an API call is about, in the words that faults and the request log use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Operation {
    Create,
    Get,
    Cancel,
    Search,
    Webhooks,
    Capture,
    Refund,
    Reversal,
    Amount,
    Tips,
    Receipt,
    /// For a fault: every call. For a call: none of the above.
    Any,
}

impl Operation {
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["payment-intents"]) => Self::Create,
            ("POST", ["payment-intents", "search"]) => Self::Search,
            ("GET", ["payment-intents", "refunds", _])
            | ("POST", ["payment-intents", _, "refunds"]) => Self::Refund,
            ("GET", ["payment-intents", _]) => Self::Get,
            ("DELETE", ["payment-intents", _]) => Self::Cancel,
            ("POST", ["payment-intents", _, "captures"]) => Self::Capture,
            ("POST", ["payment-intents", _, "reversal"]) => Self::Reversal,
            ("POST", ["payment-intents", _, "amount"]) => Self::Amount,
            ("POST", ["payment-intents", _, "tips-amount"]) => Self::Tips,
            ("POST", ["payment-intents", _, "receipt"]) => Self::Receipt,
            (_, ["webhooks", ..]) => Self::Webhooks,
            _ => Self::Any,
        }
    }
}

/// A fault of API calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) operation: Operation,
    pub(crate) kind: Kind,
    /// The HTTP status that `status` and `statusAfter` answer.
    pub(crate) status: Option<u16>,
    /// What the `Retry-After` header of that answer says.
    pub(crate) retry_after: Option<RetryAfter>,
    /// Headers that the answer carries, in place of its own of the same name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    /// How far the clock of `clockSkew` runs ahead; behind, if negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skew_ms: Option<i64>,
    /// Which intent `otherIntent` and `misrouted` answer with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) intent_id: Option<String>,
    /// What `fields` puts in place of fields of the answer.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) fields: Map<String, Value>,
    /// Strikes only calls that name this intent in their path.
    pub(crate) payment_intent_id: Option<String>,
    /// How long `latency` waits before the work, and any other kind before its answer or cut.
    pub(crate) latency_ms: Option<u64>,
    pub(crate) count: Option<u32>,
    pub(crate) share: Option<f64>,
}

/// Seconds, or the header's raw value: a date, or anything that no client should have to expect.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum RetryAfter {
    Seconds(u64),
    Raw(String),
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) => seconds.fmt(f),
            Self::Raw(value) => f.write_str(value),
        }
    }
}

/// Headers that frame the message: a wrong one breaks the connection, for which there are faults of their own.
const FRAMING: [HeaderName; 3] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// A delay, then the work and its answer.
    Latency,
    /// The work, then a delay, then its answer.
    LatencyAfter,
    /// A status in place of the work.
    Status,
    /// The work, then a status in place of its answer.
    StatusAfter,
    /// The connection closes without an answer and without the work.
    CutBefore,
    /// The work, then the connection closes without an answer.
    CutAfter,
    /// No answer and no work, and the connection stays open until the caller closes it.
    SilentBefore,
    /// The work, then no answer, and the connection stays open until the caller closes it.
    SilentAfter,
    /// The work and its answer, with other headers.
    Headers,
    /// The work and its answer, from a node whose clock is wrong: `updatedAt` and `Date` are off.
    ClockSkew,
    /// The work, but the answer shows another intent.
    OtherIntent,
    /// No work, and the answer to the same call about another intent.
    Misrouted,
    /// The work and its answer, with other values in some of its fields.
    Fields,
}

impl Kind {
    /// Whether the call does what it came for.
    pub(crate) fn works(self) -> bool {
        !matches!(
            self,
            Self::Status | Self::CutBefore | Self::SilentBefore | Self::Misrouted
        )
    }

    /// Whether the call is answered as it would be without the fault.
    pub(crate) fn answers_itself(self) -> bool {
        matches!(self, Self::Latency | Self::LatencyAfter)
    }
}

impl Fault {
    /// The fault as asked for, or what is wrong with it.
    pub(crate) fn checked(mut self) -> Result<Self, String> {
        chance::check(self.share)?;
        self.count = chance::count_or_once(self.count, self.share);
        if self.latency_ms.is_some_and(|latency| latency > 600_000) {
            return Err("latencyMs is at most 600000.".to_owned());
        }
        match self.kind {
            Kind::Latency | Kind::LatencyAfter if self.latency_ms.is_none() => {
                Err("A latency needs latencyMs.".to_owned())
            }
            Kind::Status | Kind::StatusAfter
                if !self
                    .status
                    .is_some_and(|status| (400..=599).contains(&status)) =>
            {
                Err("A status fault needs a status from 400 to 599.".to_owned())
            }
            Kind::Headers if self.headers.is_empty() => {
                Err("A fault of headers needs headers.".to_owned())
            }
            Kind::Fields if self.fields.is_empty() => Err("Fields need fields.".to_owned()),
            Kind::ClockSkew if self.skew_ms.is_none_or(|skew| skew == 0) => {
                Err("A clockSkew needs skewMs, positive for a clock that runs ahead.".to_owned())
            }
            _ => self.header_map().map(|_| self),
        }
    }

    /// What stands in the answer's header beside, or in place of, its own.
    pub(crate) fn header_map(&self) -> Result<HeaderMap, String> {
        let retry_after = self
            .retry_after
            .as_ref()
            .map(|value| (header::RETRY_AFTER.to_string(), value.to_string()));
        let given = self.headers.clone().into_iter().chain(retry_after);
        given
            .map(|(name, value)| {
                let header = HeaderName::try_from(&name)
                    .ok()
                    .filter(|header| !FRAMING.contains(header));
                let header = header.ok_or_else(|| format!("{name:?} is not a header to set."))?;
                let value = HeaderValue::from_bytes(value.as_bytes())
                    .map_err(|_| format!("No header can hold this value of {name}."))?;
                Ok((header, value))
            })
            .collect()
    }

    pub(crate) fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_ms.unwrap_or(0))
    }
}

/// The faults in force. A call meets at most one: the first, in the order they were set, that strikes.
#[derive(Debug)]
pub(crate) struct Faults {
    faults: Vec<Fault>,
    rng: StdRng,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self {
            faults: Vec::new(),
            rng: StdRng::from_rng(&mut rand::rng()),
        }
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.rng = StdRng::seed_from_u64(seed);
    }

    pub(crate) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.faults.clear();
    }

    pub(crate) fn all(&self) -> &[Fault] {
        &self.faults
    }

    pub(crate) fn draw(&mut self, operation: Operation, path: &str) -> Option<Fault> {
        let rng = &mut self.rng;
        let fault = self
            .faults
            .iter_mut()
            .filter(|fault| fault.operation == Operation::Any || fault.operation == operation)
            .filter(|fault| {
                fault
                    .payment_intent_id
                    .as_ref()
                    .is_none_or(|id| path.split('/').any(|part| part == id))
            })
            .find_map(|fault| {
                chance::strikes(&mut fault.count, fault.share, rng).then(|| fault.clone())
            });
        self.faults.retain(|fault| fault.count != Some(0));
        fault
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::http::Method;
    use serde_json::Map;

    use super::{Fault, Faults, Kind, Operation};

    fn fault(operation: Operation, count: u32) -> Fault {
        Fault {
            operation,
            kind: Kind::CutBefore,
            status: None,
            retry_after: None,
            headers: BTreeMap::new(),
            skew_ms: None,
            intent_id: None,
            fields: Map::new(),
            payment_intent_id: None,
            latency_ms: None,
            count: Some(count),
            share: None,
        }
    }

    #[test]
    fn tells_operations_apart() {
        let of = |method, path| Operation::of(&method, path);
        assert_eq!(of(Method::POST, "/payment-intents"), Operation::Create);
        assert_eq!(
            of(Method::POST, "/payment-intents/search"),
            Operation::Search
        );
        assert_eq!(of(Method::GET, "/payment-intents/pi_1"), Operation::Get);
        assert_eq!(
            of(Method::GET, "/payment-intents/refunds/1"),
            Operation::Refund
        );
        assert_eq!(
            of(Method::PUT, "/webhooks/ws_1/secrets/sc_1/activate"),
            Operation::Webhooks
        );
        assert_eq!(of(Method::GET, "/customers/1"), Operation::Any);
    }

    #[test]
    fn strikes_only_calls_about_the_intent_that_it_names() {
        let mut faults = Faults::new();
        faults.add(Fault {
            payment_intent_id: Some("pi_1".to_owned()),
            ..fault(Operation::Any, 1)
        });
        let mut draw = |path| faults.draw(Operation::Get, path).is_some();
        assert!(!draw("/payment-intents/pi_10"));
        assert!(draw("/payment-intents/pi_1"));
    }

    #[test]
    fn strikes_only_what_it_is_for_and_only_so_often() {
        let mut faults = Faults::new();
        faults.add(fault(Operation::Create, 1));
        faults.add(fault(Operation::Any, 1));
        assert!(faults.draw(Operation::Create, "/payment-intents").is_some());
        assert_eq!(faults.all().len(), 1);
        assert!(
            faults
                .draw(Operation::Get, "/payment-intents/pi_1")
                .is_some()
        );
        assert!(
            faults
                .draw(Operation::Get, "/payment-intents/pi_1")
                .is_none()
        );
        assert!(faults.all().is_empty());
    }
}
