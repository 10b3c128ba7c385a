//! Faults in API calls.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chance;

/// The operation of an API call, as faults and the record of calls name it.
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
    Transactions,
    /// In a fault: every call. In the record: none of the above.
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
            ("POST", ["transactions", "search"]) => Self::Transactions,
            (_, ["webhooks", ..]) => Self::Webhooks,
            _ => Self::Any,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) operation: Operation,
    pub(crate) kind: Kind,
    /// The HTTP status of `status` and `statusAfter`.
    pub(crate) status: Option<u16>,
    /// The `Retry-After` header of the response.
    pub(crate) retry_after: Option<RetryAfter>,
    /// Headers to add to the response. They replace its own headers of the same name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    /// How far ahead the clock of `clockSkew` is. If negative, it is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skew_ms: Option<i64>,
    /// The intent that the response of `otherIntent` or `misrouted` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) intent_id: Option<String>,
    /// Members that `fields` replaces in the response.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) fields: Map<String, Value>,
    /// Limits the fault to calls whose path contains this intent.
    pub(crate) payment_intent_id: Option<String>,
    /// How long `latency` waits before the call takes effect, and any other kind before its response.
    pub(crate) latency_ms: Option<u64>,
    pub(crate) count: Option<u32>,
    pub(crate) share: Option<f64>,
}

/// Seconds, or the raw value of the header: a date, or something absurd.
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

/// Headers that faults can't set, because a wrong value breaks the connection. `cutBefore` and `cutAfter` do that.
const FRAMING: [HeaderName; 3] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// The call takes effect after a delay.
    Latency,
    /// The call takes effect, and its response is delayed.
    LatencyAfter,
    /// The response is an error, and the call has no effect.
    Status,
    /// The call takes effect, but the response is an error.
    StatusAfter,
    /// The connection closes without a response, and the call has no effect.
    CutBefore,
    /// The call takes effect, and the connection closes without a response.
    CutAfter,
    /// The connection stays open without a response until the caller closes it, and the call has no effect.
    SilentBefore,
    /// The call takes effect, and the connection stays open without a response until the caller closes it.
    SilentAfter,
    /// The call takes effect, and its response never ends: it goes on with spaces.
    Endless,
    /// The call takes effect, and its response has other headers.
    Headers,
    /// The call takes effect, and its response comes from a node whose clock is wrong: `updatedAt` and `Date` are
    /// moved.
    ClockSkew,
    /// The call takes effect, but its response shows another intent.
    OtherIntent,
    /// The call has no effect, and its response is about another intent.
    Misrouted,
    /// The call takes effect, but some members of its response have other values.
    Fields,
}

impl Kind {
    pub(crate) fn takes_effect(self) -> bool {
        !matches!(
            self,
            Self::Status | Self::CutBefore | Self::SilentBefore | Self::Misrouted
        )
    }

    /// Whether the response is the same as without the fault.
    pub(crate) fn keeps_response(self) -> bool {
        matches!(self, Self::Latency | Self::LatencyAfter)
    }
}

impl Fault {
    /// Validates the fault, and sets its default count.
    pub(crate) fn validated(mut self) -> Result<Self, String> {
        chance::check(self.share)?;
        self.count = chance::count_or_once(self.count, self.share);
        if self.latency_ms.is_some_and(|latency| latency > 600_000) {
            return Err("latencyMs must be at most 600000.".to_owned());
        }
        match self.kind {
            Kind::Latency | Kind::LatencyAfter if self.latency_ms.is_none() => {
                Err("This kind of fault requires latencyMs.".to_owned())
            }
            Kind::Status | Kind::StatusAfter
                if !self
                    .status
                    .is_some_and(|status| (400..=599).contains(&status)) =>
            {
                Err("This kind of fault requires a status between 400 and 599.".to_owned())
            }
            Kind::Headers if self.headers.is_empty() => {
                Err("This kind of fault requires headers.".to_owned())
            }
            Kind::Fields if self.fields.is_empty() => Err("This kind of fault requires fields.".to_owned()),
            Kind::ClockSkew if self.skew_ms.is_none_or(|skew| skew == 0) => {
                Err("This kind of fault requires skewMs, other than 0. It is positive for a clock that is ahead.".to_owned())
            }
            _ => self.header_map().map(|_| self),
        }
    }

    /// The headers to add to the response, including `Retry-After`.
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
                let header =
                    header.ok_or_else(|| format!("A fault cannot set the header {name:?}."))?;
                let value = HeaderValue::from_bytes(value.as_bytes())
                    .map_err(|_| format!("The value of {name} is not valid in a header."))?;
                Ok((header, value))
            })
            .collect()
    }

    pub(crate) fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_ms.unwrap_or(0))
    }
}

/// The active faults. At most one applies to a call: the first that matches, in the order in which they were added.
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

    /// The fault that applies to this call, if any.
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
                chance::applies(&mut fault.count, fault.share, rng).then(|| fault.clone())
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
    fn names_the_operation_of_a_call() {
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
        assert_eq!(
            of(Method::POST, "/transactions/search"),
            Operation::Transactions
        );
        assert_eq!(of(Method::GET, "/customers/1"), Operation::Any);
    }

    #[test]
    fn applies_only_to_calls_about_its_intent() {
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
    fn applies_only_to_its_operation_and_count_times() {
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
