//! The extractor of every request that creates or changes something at Dojo.

use std::time::{Duration, Instant};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    auth::Caller,
    body::Raw,
    error::Error,
    idempotency::{fingerprint, idempotency_key},
    observe::RequestId,
    scope::RequiredScope,
    state::AppState,
};
use crate::{payment_link::Fault, store::creation::IdempotencyKey};

/// A request that creates or changes something, from a caller with the scope `S`. `P` extracts what it needs from the path.
///
/// The caller is authenticated first, so that nobody else learns anything, not even which paths are valid.
pub(super) struct WriteRequest<S, P = ()> {
    pub(super) state: AppState,
    pub(super) caller: Caller<S>,
    pub(super) request_id: String,
    pub(super) path: P,
    /// How long the response may wait for an outcome that isn't known at once (`Prefer: wait`, RFC 7240).
    pub(super) prefer_wait: Option<Duration>,
    /// When the request arrived.
    pub(super) begun: Instant,
    /// The `Idempotency-Key`, or what is wrong with it.
    key: Result<Option<String>, Fault>,
    headers: HeaderMap,
    body: Bytes,
}

impl<S, P> FromRequest<AppState> for WriteRequest<S, P>
where
    S: RequiredScope + Send,
    P: FromRequestParts<AppState, Rejection: Into<Error>> + Send,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        let caller = Caller::from_request_parts(&mut parts, state).await?;
        let path = P::from_request_parts(&mut parts, state)
            .await
            .map_err(Into::into)?;
        let request = Request::from_parts(parts, body);
        Ok(Self {
            state: state.clone(),
            caller,
            request_id: RequestId::of(&request),
            path,
            prefer_wait: prefer_wait(request.headers()),
            begun: Instant::now(),
            key: idempotency_key(request.headers()),
            headers: request.headers().clone(),
            body: Raw::from_request(request, state).await?.0,
        })
    }
}

/// The longest wait that a request may prefer.
const MAX_WAIT: Duration = Duration::from_secs(25);

/// The header of [`WriteRequest::prefer_wait`], for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `prefer_wait` reads")]
pub(super) struct PreferWait {
    /// `wait=N`: if the outcome isn't known at once, because Dojo's response was lost, wait for it for up to N seconds, at most
    /// 25 (RFC 7240). Without it, the response is a 409 or 504 at once.
    #[param(rename = "Prefer", nullable = false, example = "wait=20")]
    prefer: Option<String>,
}

/// Reads `Prefer: wait=N`. A preference that isn't understood is ignored, as RFC 7240 demands.
fn prefer_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|preference| {
            let (name, seconds) = preference.split_once('=')?;
            let seconds = name
                .trim()
                .eq_ignore_ascii_case("wait")
                .then(|| seconds.trim().trim_matches('"').parse().ok())??;
            Some(Duration::from_secs(seconds).min(MAX_WAIT))
        })
}

/// The response, with the preference that it honors.
pub(super) fn applied(mut response: Response, prefer_wait: Option<Duration>) -> Response {
    let applied = prefer_wait.map(|wait| format!("wait={}", wait.as_secs()));
    if let Some(applied) = applied.and_then(|applied| HeaderValue::try_from(applied).ok()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("preference-applied"), applied);
    }
    response
}

/// Whether the `Idempotency-Key` may be missing.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Key {
    Optional,
    Required,
}

impl<S, P> WriteRequest<S, P> {
    /// The body and the faults that its schema can't find: those that `rules` finds, and those of the key. If the body
    /// doesn't match its schema, the error contains all faults.
    pub(super) fn parse<T: ToSchema + DeserializeOwned>(
        &self,
        key: Key,
        rules: impl FnOnce(&Value) -> Vec<Fault>,
    ) -> Result<(T, Vec<Fault>), Error> {
        let parse = |body: &Value| {
            let mut faults = rules(body);
            faults.extend(self.key_fault(key));
            faults
        };
        self.state.schemas.parse(&self.headers, &self.body, parse)
    }

    /// The body of a request without faults. Otherwise the error contains all of them.
    pub(super) fn body<T: ToSchema + DeserializeOwned>(
        &self,
        key: Key,
        rules: impl FnOnce(&Value) -> Vec<Fault>,
    ) -> Result<T, Error> {
        let (body, faults) = self.parse(key, rules)?;
        no_faults(faults)?;
        Ok(body)
    }

    /// As [`Self::parse`], for a request that doesn't need a body. An empty body is the default.
    pub(super) fn parse_optional<T: ToSchema + DeserializeOwned + Default>(
        &self,
        key: Key,
        rules: impl FnOnce(&Value) -> Vec<Fault>,
    ) -> Result<(T, Vec<Fault>), Error> {
        if self.body.trim_ascii().is_empty() {
            return Ok((T::default(), self.key_fault(key).into_iter().collect()));
        }
        self.parse(key, rules)
    }

    /// The body of a request that doesn't need one, without faults. An empty body is the default.
    pub(super) fn optional_body<T: ToSchema + DeserializeOwned + Default>(
        &self,
    ) -> Result<T, Error> {
        let (body, faults) = self.parse_optional(Key::Optional, |_| Vec::new())?;
        no_faults(faults)?;
        Ok(body)
    }

    /// Checks that the body is empty where none is needed. A body with any content means something else, such as a partial
    /// reversal.
    pub(super) fn no_body(&self) -> Result<(), Error> {
        let mut faults: Vec<_> = self.key_fault(Key::Optional).into_iter().collect();
        if !self.body.trim_ascii().is_empty() {
            let body: Value = serde_json::from_slice(&self.body)
                .map_err(|error| Error::MalformedJson(error.to_string()))?;
            match body {
                Value::Null => {}
                Value::Object(fields) => {
                    faults.extend(
                        fields
                            .keys()
                            .map(|name| Fault::new(Fault::below("", name), "is not a known field")),
                    );
                }
                _ => faults.push(Fault::new("", "must be empty")),
            }
        }
        no_faults(faults)
    }

    /// The client's key for this request, if it sent one. `path` and `content` are what a repetition must have in common.
    pub(super) fn idempotency_key(
        &self,
        path: &str,
        content: &impl Serialize,
    ) -> Result<Option<IdempotencyKey>, Error> {
        let key = self.key.as_ref();
        let key = key.map_err(|fault| Error::Invalid(vec![fault.clone()]))?;
        Ok(key.as_ref().map(|key| IdempotencyKey {
            client_id: self.caller.client_id,
            key: key.clone(),
            request_hash: fingerprint(path, content),
        }))
    }

    fn key_fault(&self, rule: Key) -> Option<Fault> {
        match &self.key {
            Err(fault) => Some(fault.clone()),
            Ok(None) if rule == Key::Required => Some(Fault::new(
                "Idempotency-Key",
                "is required: without it, a request whose response is lost cannot be retried safely",
            )),
            Ok(_) => None,
        }
    }
}

fn no_faults(faults: Vec<Fault>) -> Result<(), Error> {
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(faults))
    }
}
