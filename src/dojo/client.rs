use std::time::{Duration, Instant};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::Url;

use super::{Error, PaymentIntent};
use crate::{
    config::{ConfigError, DojoSettings},
    payment_link::{NewPaymentLink, PaymentLinkId},
};

/// Calls Dojo's API with one account's key.
///
/// Every call has a time limit; none is repeated here: whoever calls knows what a repetition would mean.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    payment_source: Option<String>,
}

/// What Dojo is asked to create.
#[derive(Debug, Clone, Copy)]
pub struct CreatePaymentIntent<'a> {
    /// The link that the intent is for; it stands in the intent's metadata.
    pub link_id: PaymentLinkId,
    /// What the caller asked for.
    pub new: &'a NewPaymentLink,
    /// The id of the request that this is done for.
    pub request_id: &'a str,
}

impl Client {
    /// A client for the account that `key` belongs to.
    pub fn new(settings: &DojoSettings, key: &SecretString) -> Result<Self, ConfigError> {
        // Dojo wants the key as it is behind `Basic`, not encoded as RFC 7617 has it.
        let mut authorization = HeaderValue::try_from(format!("Basic {}", key.expose_secret()))
            .map_err(|_| {
                ConfigError::new("DOJO_API_KEY", "holds a character that no header may carry")
            })?;
        authorization.set_sensitive(true);
        let version = HeaderValue::try_from(&settings.api_version).map_err(|_| {
            ConfigError::new("DOJO_API_VERSION", "is not a date such as 2026-02-27")
        })?;
        let http = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter([
                (header::AUTHORIZATION, authorization),
                (header::HeaderName::from_static("version"), version),
            ]))
            .user_agent(concat!(
                env!("CARGO_PKG_NAME"),
                "/",
                env!("CARGO_PKG_VERSION")
            ))
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout.min(Duration::from_secs(5)))
            // An idle connection that Dojo closes just as it is used again loses an answer for nothing.
            .pool_idle_timeout(Duration::from_secs(20))
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| ConfigError::with_source("DOJO_API_URL", "cannot be called", error))?;
        Ok(Self {
            http,
            base: settings.api_url.clone(),
            payment_source: settings.payment_source(),
        })
    }

    /// `POST /payment-intents`.
    pub async fn create_payment_intent(
        &self,
        create: CreatePaymentIntent<'_>,
    ) -> Result<PaymentIntent, Error> {
        let request = self
            .request(Method::POST, &["payment-intents"])
            .header("x-request-id", create.request_id)
            .json(&self.create_body(create));
        Self::call("create", request).await
    }

    fn create_body(&self, create: CreatePaymentIntent<'_>) -> Value {
        let mut body = json!(create.new);
        let fields = body
            .as_object_mut()
            .expect("a struct serialises to an object");
        fields.remove("account");
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        metadata[NewPaymentLink::ID_METADATA_KEY] = json!(create.link_id.to_string());
        if let Some(source) = &self.payment_source {
            fields.insert("paymentSource".to_owned(), json!(source));
        }
        body
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("the settings admit only http and https, which have paths")
            .pop_if_empty()
            .extend(path);
        self.http.request(method, url)
    }

    /// Sends a request and reads its answer, and counts and times both under `operation`.
    async fn call<T: DeserializeOwned>(
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<T, Error> {
        let start = Instant::now();
        let result = Self::answer(request).await;
        let outcome = result.as_ref().map_or_else(Error::name, |_| "ok");
        metrics::counter!("dojo_requests_total", "operation" => operation, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("dojo_request_duration_seconds", "operation" => operation)
            .record(start.elapsed());
        result
    }

    async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, Error> {
        let response = request.send().await.map_err(Error::from_send)?;
        let status = response.status();
        match status {
            status if status.is_success() => response.json().await.map_err(|error| {
                Error::unanswered(
                    format!("status {status} with an unreadable body"),
                    Some(error),
                )
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::KeyRefused { status }),
            StatusCode::TOO_MANY_REQUESTS => Err(Error::Busy {
                retry_after: retry_after(&response),
            }),
            // A gateway that gave up waiting answers 408: the work may be done behind it.
            StatusCode::REQUEST_TIMEOUT => Err(Error::unanswered(format!("status {status}"), None)),
            status if status.is_client_error() => Err(Error::Refused {
                status,
                problem: response.json().await.unwrap_or_default(),
            }),
            status => Err(Error::unanswered(format!("status {status}"), None)),
        }
    }
}

/// `Retry-After` in seconds (RFC 9110). Its other form, a date, is not used by rate limits in practice.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}
