//! Endpoints: where callbacks are sent, and the rules for what callers may configure.

use std::time::Duration;

use rand::RngExt;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use type_safe_id::{StaticType, TypeSafeId};
use url::Url;
use utoipa::ToSchema;

use super::{
    client::{Attempt, Callback, CallbackClient, Connections, may_set},
    signature::{SigningSecret, header},
    target::{Allow, check_url},
};
use crate::payment_link::{EventId, Fault, PaymentLinkId, optional_timestamp, timestamp};

/// Only names the prefix of an endpoint's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EndpointPrefix;

impl StaticType for EndpointPrefix {
    const TYPE: &'static str = "cbe";
}

/// A callback endpoint's id: a TypeID, `cbe_` and 26 characters.
pub type EndpointId = TypeSafeId<EndpointPrefix>;

/// How many endpoints there can be. Each one appears in metrics.
pub const MOST_ENDPOINTS: i64 = 100;

/// How often a callback is attempted.
pub const ATTEMPTS: u16 = 10;

/// An endpoint without a success for this long is paused.
pub const LONGEST_FAILURE: Duration = Duration::from_hours(5 * 24);

/// How long to wait at least after the first failed attempt.
pub const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The longest time for which earlier secrets sign after a rotation.
pub const LONGEST_OVERLAP: Duration = Duration::from_hours(7 * 24);

/// How long to wait after a failed attempt, or `None` if it was the last one. `attempts` counts it.
///
/// The schedule is the one that the specification of Standard Webhooks recommends. Up to a fifth is added at random, so that
/// an endpoint that recovers doesn't get everything at the same moment. If the endpoint asks for a longer wait, it gets it.
#[must_use]
pub fn next_wait(attempts: u16, retry_after: Option<Duration>) -> Option<Duration> {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const SCHEDULE: [u64; ATTEMPTS as usize - 1] = [
        FIRST_WAIT.as_secs(),
        5 * MINUTE,
        30 * MINUTE,
        2 * HOUR,
        5 * HOUR,
        10 * HOUR,
        14 * HOUR,
        20 * HOUR,
        24 * HOUR,
    ];
    let seconds = SCHEDULE.get(usize::from(attempts).saturating_sub(1))?;
    let jitter = rand::rng().random_range(1.0..1.2);
    let wait = Duration::from_secs(*seconds).mul_f64(jitter);
    Some(wait.max(retry_after.unwrap_or_default()))
}

/// A callback endpoint: a durable subscription to the feed of events.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallbackEndpoint)]
pub struct Endpoint {
    /// The endpoint's id, a TypeID.
    #[schema(value_type = String, example = "cbe_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: EndpointId,
    /// Where callbacks are sent.
    #[schema(example = "https://orders.example.com/hooks/payments")]
    pub url: String,
    /// The types of events that are sent. `null`: all, including types that are added later.
    pub types: Option<Vec<String>>,
    /// The accounts whose links' events are sent. `null`: all, including accounts that are added later.
    pub accounts: Option<Vec<String>>,
    pub description: Option<String>,
    /// The name of the extra header that every callback has. Its value isn't shown.
    pub header_name: Option<String>,
    pub status: EndpointStatus,
    /// Why the endpoint is paused.
    pub pause_reason: Option<PauseReason>,
    /// When the first attempt failed after the last success. `null`: the last attempt succeeded, or there was none.
    #[serde(with = "optional_timestamp")]
    pub failing_since: Option<OffsetDateTime>,
    /// When a callback was last delivered.
    #[serde(with = "optional_timestamp")]
    pub last_success_at: Option<OffsetDateTime>,
    /// Until when earlier secrets sign as well, after a rotation.
    #[serde(with = "optional_timestamp")]
    pub previous_secrets_end_at: Option<OffsetDateTime>,
    #[serde(with = "timestamp")]
    pub created_at: OffsetDateTime,
    #[serde(with = "timestamp")]
    pub updated_at: OffsetDateTime,
}

/// Whether callbacks are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = CallbackEndpointStatus)]
pub enum EndpointStatus {
    Active,
    /// Nothing is sent, and nothing is lost: callbacks continue where they stopped once the endpoint is resumed.
    Paused,
}

/// Why an endpoint is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub enum PauseReason {
    /// A caller paused it.
    Requested,
    /// It responded with status 410.
    Gone,
    /// No attempt has succeeded for 5 days.
    NoSuccess,
}

macro_rules! words {
    ($type:ident: $($name:ident),*) => {
        impl $type {
            /// The word, as it is stored.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }

        impl std::str::FromStr for $type {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text { $(stringify!($name) => Ok(Self::$name),)* _ => Err(UnknownWord(text.to_owned())) }
            }
        }
    };
}

/// A later version may have stored a word that this one doesn't know.
#[derive(Debug, thiserror::Error)]
#[error("unknown word {0}")]
pub struct UnknownWord(String);

words!(EndpointStatus: Active, Paused);
words!(PauseReason: Requested, Gone, NoSuccess);
words!(DeliveryStatus: Pending, Delivered, Failed);

impl DeliveryStatus {
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];
}

/// The state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = CallbackDeliveryStatus)]
pub enum DeliveryStatus {
    /// Another attempt will be made.
    Pending,
    /// The endpoint responded with a 2xx status.
    Delivered,
    /// All attempts failed. It isn't attempted again unless it is replayed.
    Failed,
}

/// A callback that tests an endpoint. It isn't part of the feed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ping)]
pub struct PingEvent {
    /// The ping's id, which is its `webhook-id`.
    #[schema(value_type = String, example = "evt_01kaz8v4wce7q8m6s5gq9nq2fd")]
    id: EventId,
    #[serde(rename = "type")]
    kind: PingType,
    #[serde(with = "timestamp")]
    occurred_at: OffsetDateTime,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PingType {
    Ping,
}

/// How to reach an endpoint.
#[derive(Clone)]
pub struct Target {
    pub url: Url,
    /// The name and value of the extra header.
    pub header: Option<(String, SecretString)>,
    pub secret: SigningSecret,
    /// The secrets before a rotation, while they sign as well.
    pub previous_secrets: Vec<SigningSecret>,
}

/// The URL may contain a secret.
impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").finish_non_exhaustive()
    }
}

impl Target {
    /// Attempts to deliver an event, once. `id` is the event's id and `event` its JSON. Without `connections`, over a connection
    /// of its own.
    pub async fn send(
        &self,
        client: &CallbackClient,
        connections: Option<&Connections>,
        id: &str,
        event: &str,
    ) -> Attempt {
        let timestamp = OffsetDateTime::now_utc().unix_timestamp();
        let (newest, previous) = (&self.secret, self.previous_secrets.as_slice());
        let extra = self.header.as_ref().and_then(|(name, value)| {
            let value = HeaderValue::from_str(value.expose_secret()).ok()?;
            Some((name.parse::<HeaderName>().ok()?, value))
        });
        let callback = Callback {
            url: &self.url,
            id,
            timestamp,
            body: event,
            signature: &header(newest, previous, id, timestamp, event.as_bytes()),
            header: extra.as_ref().map(|(name, value)| (name, value)),
        };
        client.deliver(callback, connections).await
    }

    /// Sends a ping, and returns how the endpoint responded.
    pub async fn ping(&self, client: &CallbackClient) -> Attempt {
        let event = PingEvent {
            id: EventId::new(),
            kind: PingType::Ping,
            occurred_at: OffsetDateTime::now_utc(),
        };
        // It consists of plain text, and its time is one of this era.
        let body = serde_json::to_string(&event).unwrap_or_default();
        self.send(client, None, &event.id.to_string(), &body).await
    }
}

/// What an endpoint got, or hasn't got yet.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallbackDelivery)]
pub struct Delivery {
    /// The event's id, which is the `webhook-id` of every attempt.
    #[schema(value_type = String, example = "evt_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub event_id: EventId,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: String,
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub payment_link_id: PaymentLinkId,
    pub status: DeliveryStatus,
    /// How many attempts have failed, or with `Delivered`, how many were made.
    pub attempts: u16,
    /// The earliest time of the next attempt. It comes after that of the link's earlier events. `null` unless `Pending`.
    #[serde(with = "optional_timestamp")]
    pub next_attempt_at: Option<OffsetDateTime>,
    /// The last attempt, if there was one.
    pub last_attempt: Option<LastAttempt>,
    /// The event's position, from which the list continues.
    #[serde(skip)]
    pub position: i64,
}

/// How an attempt to deliver a callback ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallbackAttempt)]
pub struct LastAttempt {
    /// When it ended.
    #[serde(with = "timestamp")]
    pub at: OffsetDateTime,
    /// `delivered`, or why not: `rejected`, `redirected` or `gone` (the response's status), `timed_out`, `response_lost`,
    /// `not_reached` (no connection), `tls_failed` (such as an expired certificate), `unresolvable` (no address), or `not_allowed` (the address isn't permitted).
    #[schema(example = "rejected")]
    pub outcome: String,
    /// The response's status, if there was a response.
    pub response_status: Option<u16>,
    /// The beginning of the response's body, up to 1 KiB.
    pub response_body: Option<String>,
    /// How long the attempt took.
    pub milliseconds: u32,
}

/// An extra header for every callback, for example for a gateway that requires one.
#[derive(Clone, Deserialize, ToSchema)]
pub struct Header {
    #[schema(example = "x-gateway-key", max_length = 100)]
    pub name: String,
    #[schema(example = "9f8e7d6c", max_length = 1000)]
    pub value: String,
}

/// The value is a secret.
impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// An endpoint to create.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NewCallbackEndpoint)]
pub struct NewEndpoint {
    /// Where to send callbacks: an https URL whose host has public addresses, unless the service's `CALLBACK_ALLOW` permits
    /// others.
    #[schema(
        example = "https://orders.example.com/hooks/payments",
        max_length = 2048
    )]
    pub url: String,
    /// The types of events to send. All if omitted, including types that are added later.
    #[schema(min_items = 1, max_items = 50)]
    pub types: Option<Vec<String>>,
    /// The accounts whose links' events to send. If omitted, all that the API key has access to.
    #[schema(min_items = 1, max_items = 100)]
    pub accounts: Option<Vec<String>>,
    /// For people.
    #[schema(max_length = 200)]
    pub description: Option<String>,
    pub header: Option<Header>,
}

/// Changes to an endpoint, as a JSON merge patch (RFC 7396): what is absent stays as it is, and `null` removes a value.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ChangedCallbackEndpoint)]
pub struct ChangedEndpoint {
    /// Where to send callbacks from now on, including those that wait.
    #[schema(max_length = 2048, nullable = false)]
    pub url: Option<String>,
    /// The types of events to send from now on. `null`: all.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 50)]
    pub types: Option<Option<Vec<String>>>,
    /// The accounts whose links' events to send from now on. `null`: all that the API key has access to.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 100)]
    pub accounts: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 200)]
    pub description: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Header>)]
    pub header: Option<Option<Header>>,
}

/// Distinguishes `null` from a member that is absent.
#[expect(clippy::option_option, reason = "absent, null, or a value")]
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// What the schemas don't check about the body of a request that creates or changes an endpoint.
#[must_use]
pub fn broken_rules(url: Option<&str>, header: Option<(&str, &str)>, allow: &Allow) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(url) = url {
        match Url::parse(url) {
            Ok(url) if url.port() == Some(0) => {
                faults.push(Fault::new("/url", "must not have the port 0"));
            }
            Ok(url) => {
                let found = check_url(&url, allow).err().unwrap_or_default();
                faults.extend(
                    found
                        .iter()
                        .map(|fault| Fault::new("/url", fault.to_string())),
                );
            }
            Err(_) => faults.push(Fault::new("/url", "must be an absolute URL")),
        }
    }
    if let Some((name, value)) = header {
        match name.parse::<HeaderName>() {
            Ok(name) if may_set(&name) => {}
            Ok(_) => faults.push(Fault::new(
                "/header/name",
                "must not be a header that the service sets itself, or that says how to read the request",
            )),
            Err(_) => faults.push(Fault::new("/header/name", "must be the name of a header")),
        }
        if value.is_empty() || !value.chars().all(|c| (' '..='~').contains(&c)) {
            faults.push(Fault::new(
                "/header/value",
                "must be visible ASCII characters and spaces",
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_take_about_three_days() {
        let waits: Vec<_> = (1..ATTEMPTS).map(|n| next_wait(n, None).unwrap()).collect();
        assert!(waits.is_sorted(), "{waits:?}");
        let total = waits.iter().sum::<Duration>();
        let days = Duration::from_hours(75)..Duration::from_hours(92);
        assert!(days.contains(&total), "{total:?}");
        assert_eq!(next_wait(ATTEMPTS, None), None);
        assert_eq!(next_wait(ATTEMPTS, Some(Duration::from_secs(1))), None);
    }

    #[test]
    fn an_endpoint_can_only_ask_for_a_longer_wait() {
        let hour = Duration::from_hours(1);
        assert_eq!(next_wait(1, Some(hour)), Some(hour));
        assert!(next_wait(4, Some(hour)).unwrap() > hour);
    }

    #[test]
    fn every_broken_rule_is_named() {
        let faults = broken_rules(
            Some("http://user@127.0.0.1/#a"),
            Some(("webhook-id", "a\nb")),
            &Allow::default(),
        );
        let at: Vec<_> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(
            at,
            [
                "/url",
                "/url",
                "/url",
                "/url",
                "/header/name",
                "/header/value"
            ]
        );
        let none = broken_rules(
            Some("https://example.com/hook?key=1"),
            Some(("x-key", "a b")),
            &Allow::default(),
        );
        assert_eq!(none, []);
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let patch: ChangedEndpoint = serde_json::from_str(r#"{"types": null}"#).unwrap();
        assert_eq!(patch.types, Some(None));
        assert_eq!(patch.accounts, None);
    }
}
