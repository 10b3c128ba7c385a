use std::{
    future::Future,
    time::{Duration, Instant, SystemTime},
};

use backon::{ExponentialBuilder, Retryable};
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
    redirect, retry,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use time::{
    Duration as TimeSpan, OffsetDateTime,
    format_description::well_known::{Rfc2822, Rfc3339},
};
use url::Url;

use super::{Error, PaymentIntent};
use crate::{
    config::{ConfigError, DojoSettings},
    payment_link::{Money, NewPaymentLink, PaymentLinkId, operation::Action},
    retry_after::retry_after,
    telemetry::{
        self,
        trace::{Span, Trace},
    },
};

/// Calls Dojo's API with one account's key.
///
/// Every call has a time limit. A call is retried here only if Dojo has certainly not carried it out. Whether any other
/// call may be repeated is for the caller to decide.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    payment_source: Option<String>,
    timeout: Duration,
    lease_slack: Duration,
}

/// The time by which a call must have left, because others may work on the same thing after it.
///
/// A process can be stopped at any moment and continue much later, so this is checked immediately before each attempt. Both
/// clocks count: the monotonic one may stand still while a virtual machine is paused, and the other one can be set.
#[derive(Debug, Clone, Copy)]
pub struct SendBy {
    monotonic: Instant,
    wall: SystemTime,
}

impl SendBy {
    /// As long as this from now on.
    #[must_use]
    pub fn within(left: Duration) -> Self {
        Self {
            monotonic: Instant::now() + left,
            wall: SystemTime::now() + left,
        }
    }

    fn check(self) -> Result<(), Error> {
        if Instant::now() < self.monotonic && SystemTime::now() < self.wall {
            Ok(())
        } else {
            Err(Error::TooLate)
        }
    }
}

/// A payment intent to create.
#[derive(Debug, Clone, Copy)]
pub struct CreatePaymentIntent<'a> {
    /// The link that the intent is for. It is stored in the intent's metadata.
    pub link_id: PaymentLinkId,
    pub new: &'a NewPaymentLink,
    /// The id of the request that caused this call, sent as `x-request-id`.
    pub request_id: &'a str,
    /// When the lease on the link expires.
    pub send_by: SendBy,
}

/// An operation to perform on an intent.
#[derive(Debug, Clone, Copy)]
pub struct Operate<'a> {
    /// The link that the intent was created for.
    pub link_id: PaymentLinkId,
    pub payment_intent_id: &'a str,
    /// What to do, including amounts.
    pub action: &'a Action,
    /// The key by which Dojo recognizes retries. Dojo accepts one for refunds only.
    pub idempotency_key: Option<&'a str>,
    /// The id of the request that caused this call, sent as `x-request-id`.
    pub request_id: &'a str,
    /// When the lease on the operation expires.
    pub send_by: SendBy,
}

/// A period of time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub start: OffsetDateTime,
    pub end: OffsetDateTime,
}

impl Window {
    /// The shortest window that contains both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

/// One page of a search.
#[derive(Debug)]
pub struct Page {
    /// The intents on the page. Entries that can't be parsed are left out.
    pub intents: Vec<PaymentIntent>,
    /// The cursor of the next page. `None` on the last page.
    pub after: Option<String>,
}

/// One page of any search, not parsed yet.
pub(super) struct RawPage {
    pub(super) data: Vec<Value>,
    /// The cursor of the next page. `None` on the last page.
    pub(super) after: Option<String>,
}

/// Dojo's response to [`Client::probe`], with the time on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// When the request was sent, by our clock.
    pub sent_at: OffsetDateTime,
    /// When the response arrived, by our clock.
    pub received_at: OffsetDateTime,
    /// The response's `Date` header: Dojo's clock, in whole seconds.
    pub date: Option<OffsetDateTime>,
}

impl Client {
    /// Creates a client for the account that `key` belongs to.
    pub fn new(settings: &DojoSettings, key: &SecretString) -> Result<Self, ConfigError> {
        // Dojo expects the key itself after `Basic`, not encoded as in RFC 7617.
        let mut authorization = HeaderValue::try_from(format!("Basic {}", key.expose_secret()))
            .map_err(|_| {
                ConfigError::new(
                    "DOJO_API_KEY",
                    "contains a character that is not allowed in an HTTP header",
                )
            })?;
        authorization.set_sensitive(true);
        let version = HeaderValue::try_from(&settings.api_version).map_err(|_| {
            ConfigError::new("DOJO_API_VERSION", "must be a date such as 2026-02-27")
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
            // If Dojo closes an idle connection at the moment we use it again, a response is lost for no reason.
            .pool_idle_timeout(Duration::from_secs(20))
            .redirect(redirect::Policy::none())
            // Only the caller knows whether a request may be repeated. One kind of retry remains, in reqwest's pool: if a
            // connection turns out to be closed before anything was written, the request moves to another connection.
            // Dojo can't notice that.
            .retry(retry::never())
            .build()
            .map_err(|error| {
                let text = format!("cannot be called: {}", telemetry::causes(&error));
                ConfigError::new("DOJO_API_URL", text)
            })?;
        Ok(Self {
            http,
            base: settings.api_url.clone(),
            payment_source: settings.payment_source(),
            timeout: settings.timeout,
            lease_slack: settings.lease_slack,
        })
    }

    /// `POST /payment-intents`.
    ///
    /// Retries failures that prove that Dojo has done nothing, with growing pauses, for half the time limit of a call.
    /// So all attempts together take at most one and a half times the limit.
    ///
    /// A response about another link's intent isn't the response to this call. It counts as a lost response.
    pub async fn create_payment_intent(
        &self,
        create: CreatePaymentIntent<'_>,
    ) -> Result<PaymentIntent, Error> {
        let body = self.create_body(create);
        self.retrying(async || {
            let request = self
                .request(Method::POST, &["payment-intents"])
                .header("x-request-id", create.request_id)
                .json(&body);
            create.send_by.check()?;
            Self::call_for("create", request, |intent| {
                check_link(intent, Some(create.link_id))
            })
            .await
        })
        .await
    }

    /// Performs an operation on an intent: `DELETE`, `/captures`, `/refunds`, `/reversal`, `/amount`, `/tips-amount` or
    /// `/receipt`. Returns Dojo's id of the capture, refund or reversal.
    ///
    /// Retries as [`Self::create_payment_intent`] does, for at most one and a half times the limit of a call. A refund is
    /// never retried here: it was weighed against what Dojo had left a moment ago, so the caller must read Dojo and weigh the
    /// refund again first.
    ///
    /// A response that is about another intent isn't the response to this call, whose own is lost.
    pub async fn operate(&self, operate: Operate<'_>) -> Result<Option<String>, Error> {
        let id = operate.payment_intent_id;
        let money = |money: Option<Money>| money.map(|money| money.value);
        // Dojo expects plain integers for captures and refunds, and amounts with a currency for `/amount` and
        // `/tips-amount`.
        let (name, path, body) = match operate.action {
            Action::Cancel => ("cancel", None, None),
            Action::Capture(capture) => {
                let mut body = json!({"amount": money(capture.amount)});
                if let Some(tips) = money(capture.tips_amount) {
                    body["tipsAmount"] = json!(tips);
                }
                ("capture", Some("captures"), Some(body))
            }
            Action::Refund(refund) => {
                let mut body = json!(refund);
                body["amount"] = json!(money(refund.amount));
                ("refund", Some("refunds"), Some(body))
            }
            Action::Reversal => ("reversal", Some("reversal"), None),
            Action::Amount(new) => ("amount", Some("amount"), Some(json!(new))),
            Action::TipsAmount(new) => ("tips", Some("tips-amount"), Some(json!(new))),
            Action::Receipt(new) => ("receipt", Some("receipt"), Some(json!(new))),
        };
        let attempt = async || {
            let mut request = match path {
                Some(path) => self.request(Method::POST, &["payment-intents", id, path]),
                None => self.request(Method::DELETE, &["payment-intents", id]),
            };
            if let Some(body) = &body {
                request = request.json(body);
            }
            if let Some(key) = operate.idempotency_key {
                request = request.header("idempotencyKey", key);
            }
            request = request.header("x-request-id", operate.request_id);
            operate.send_by.check()?;
            Self::call_for(name, request, |response: &Value| {
                check_subject(response, id, Some(operate.link_id))?;
                match (operate.action, response["status"].as_str()) {
                    (Action::Cancel, Some(status)) if status != "Canceled" => Err(format!(
                        "the response to a cancellation says that {id} is {status}"
                    )),
                    _ => Ok(()),
                }
            })
            .await
        };
        let response = match operate.action {
            Action::Refund(_) => attempt().await?,
            _ => self.retrying(attempt).await?,
        };
        let id = match operate.action {
            Action::Capture(_) => &response["captureId"],
            Action::Refund(_) => &response["refundId"],
            Action::Reversal => &response["reversalId"],
            _ => &Value::Null,
        };
        Ok(id.as_str().map(str::to_owned))
    }

    /// How long an operation may take from being saved until Dojo's response is stored. This covers reading the intent,
    /// the operation with its retries, and `LEASE_SLACK`.
    #[must_use]
    pub fn operation_lease(&self) -> Duration {
        self.timeout * 3 + self.lease_slack
    }

    /// Retries a call while its failures prove that Dojo has done nothing, with growing pauses, for half the time limit
    /// of a call.
    async fn retrying<T, F: Future<Output = Result<T, Error>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout / 2;
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(1))
            .with_max_times(4)
            .with_jitter();
        attempt
            .retry(pauses)
            .when(Error::is_worth_a_retry)
            // Wait as long as Dojo asks, if that is longer. Stop if the wait would exceed the deadline.
            .adjust(|error, pause| {
                let pause = pause?.max(error.retry_after().unwrap_or_default());
                (pause < deadline.saturating_duration_since(Instant::now())).then_some(pause)
            })
            .await
    }

    /// How long a creation may take from being saved until Dojo's response is stored. This covers the call with its
    /// retries, and `LEASE_SLACK`.
    #[must_use]
    pub fn creation_lease(&self) -> Duration {
        self.timeout * 2 + self.lease_slack
    }

    /// `GET /payment-intents/{id}`, including canceled intents. Returns `None` if Dojo doesn't have the intent.
    ///
    /// `link_id` is the intent's link, if known. A response about another intent, or about an intent of another link,
    /// counts as a lost response. A broken cache might send one.
    pub async fn payment_intent(
        &self,
        id: &str,
        link_id: Option<PaymentLinkId>,
    ) -> Result<Option<PaymentIntent>, Error> {
        let request = self
            .request(Method::GET, &["payment-intents", id])
            .query(&[("returnCanceled", "true")]);
        let check = |intent: &PaymentIntent| {
            if intent.id == id {
                check_link(intent, link_id)
            } else {
                Err(format!("the response is about {}, not {id}", intent.id))
            }
        };
        match Self::call_for("get", request, check).await {
            Ok(intent) => Ok(Some(intent)),
            Err(Error::Rejected {
                status: StatusCode::NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `DELETE /payment-intents/{id}`: cancels the intent, so that nobody can pay it.
    ///
    /// `link_id`: the link that the intent was created for, where that is known. A response that is about another intent
    /// proves nothing about this one: the response to this call is lost.
    pub async fn cancel_payment_intent(
        &self,
        id: &str,
        link_id: Option<PaymentLinkId>,
    ) -> Result<(), Error> {
        let request = self.request(Method::DELETE, &["payment-intents", id]);
        Self::call_for("cancel", request, |response: &Value| {
            check_subject(response, id, link_id)
        })
        .await
        .map(drop)
    }

    /// `POST /payment-intents/search`: passes every intent that was created in the window to `visit`, newest first.
    /// Reads at most `pages` pages of 100 intents. Returns `false` if there were more.
    pub async fn search(
        &self,
        window: Window,
        pages: usize,
        mut visit: impl FnMut(PaymentIntent),
    ) -> Result<bool, Error> {
        let mut after = None;
        for _ in 0..pages {
            let page = self.search_page(window, after.as_deref()).await?;
            page.intents.into_iter().for_each(&mut visit);
            if page.after.is_none() {
                return Ok(true);
            }
            after = page.after;
        }
        Ok(false)
    }

    /// One page of `POST /payment-intents/search`: up to 100 intents that were created in the window, starting after
    /// the cursor `after`.
    pub async fn search_page(&self, window: Window, after: Option<&str>) -> Result<Page, Error> {
        let request = self.request(Method::POST, &["payment-intents", "search"]);
        let page = Self::page("search", request, window, after).await?;
        Ok(Page {
            // An intent without an id could be neither adopted nor read.
            intents: page
                .data
                .into_iter()
                .filter_map(|intent| serde_json::from_value(intent).ok())
                .collect(),
            after: page.after,
        })
    }

    /// Sends a search for up to 100 entries of the window, starting after the cursor `after`.
    pub(super) async fn page(
        operation: &'static str,
        request: RequestBuilder,
        window: Window,
        after: Option<&str>,
    ) -> Result<RawPage, Error> {
        #[derive(Deserialize)]
        struct Body {
            data: Option<Vec<Value>>,
            after: Option<String>,
        }

        let mut body = json!({
            "startDate": rfc3339(window.start),
            "endDate": rfc3339(window.end),
            "cursor": {"limit": 100},
        });
        if let Some(after) = after {
            body["cursor"]["after"] = json!(after);
        }
        let response: Body = Self::call(operation, request.json(&body)).await?;
        let data = response.data.unwrap_or_default();
        // Following a cursor that doesn't advance would never end.
        let ended = data.is_empty() || response.after.as_deref() == after;
        Ok(RawPage {
            data,
            after: response.after.filter(|_| !ended),
        })
    }

    /// Finds out whether Dojo accepts the key, with a search over one second, which changes nothing.
    pub async fn probe(&self) -> Result<Probe, Error> {
        let sent_at = OffsetDateTime::now_utc();
        let body = json!({
            "startDate": rfc3339(sent_at - TimeSpan::SECOND),
            "endDate": rfc3339(sent_at),
            "cursor": {"limit": 1},
        });
        let request = self
            .request(Method::POST, &["payment-intents", "search"])
            .json(&body);
        let mut call = Call::begin("probe");
        let result = Self::accepted(request, &mut call.span).await;
        let response = call.end(result)?;
        let date = response
            .headers()
            .get(header::DATE)
            .and_then(|date| OffsetDateTime::parse(date.to_str().ok()?, &Rfc2822).ok());
        Ok(Probe {
            sent_at,
            received_at: OffsetDateTime::now_utc(),
            date,
        })
    }

    fn create_body(&self, create: CreatePaymentIntent<'_>) -> Value {
        let mut body = json!(create.new);
        let fields = body
            .as_object_mut()
            .expect("a struct serialises to an object");
        for ours in ["account", "send", "reminders"] {
            fields.remove(ours);
        }
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        metadata[NewPaymentLink::ID_METADATA_KEY] = json!(create.link_id.to_string());
        if let Some(source) = &self.payment_source {
            fields.insert("paymentSource".to_owned(), json!(source));
        }
        body
    }

    pub(super) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("the settings admit only http and https, which have paths")
            .pop_if_empty()
            .extend(path);
        self.http.request(method, url)
    }

    /// Sends a request and reads the response. Counts and times it as `operation`.
    pub(super) async fn call<T: DeserializeOwned>(
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<T, Error> {
        Self::call_for(operation, request, |_| Ok(())).await
    }

    /// As [`Self::call`]. If `check` returns an error, the response doesn't belong to this call, whose own response is
    /// therefore lost.
    async fn call_for<T: DeserializeOwned>(
        operation: &'static str,
        request: RequestBuilder,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> Result<T, Error> {
        let mut call = Call::begin(operation);
        let result =
            Self::response(request, &mut call.span)
                .await
                .and_then(|response| match check(&response) {
                    Ok(()) => Ok(response),
                    Err(reason) => Err(Error::response_lost(reason, None)),
                });
        call.end(result)
    }

    async fn response<T: DeserializeOwned>(
        request: RequestBuilder,
        span: &mut Span,
    ) -> Result<T, Error> {
        let response = Self::accepted(request, span).await?;
        let status = response.status();
        if status == StatusCode::NO_CONTENT {
            // A 204 has no body, which is fine for calls that expect none.
            return serde_json::from_value(Value::Null).map_err(|_| {
                Error::response_lost(format!("status {status} without a body"), None)
            });
        }
        let body = body(response, LARGEST_BODY).await?;
        serde_json::from_slice(&body).map_err(|error| {
            Error::response_lost(
                format!("status {status} with an unreadable body: {error}"),
                None,
            )
        })
    }

    /// Sends a request as part of the span's trace. Any status other than 2xx is an error.
    async fn accepted(request: RequestBuilder, span: &mut Span) -> Result<Response, Error> {
        let (http, request) = request.build_split();
        let mut request = request.map_err(Error::from_send)?;
        span.set("http.request.method", request.method().as_str());
        // Not the whole URL: whoever knows an intent's id can open its checkout page.
        span.set("server.address", request.url().host_str().unwrap_or(""));
        let traceparent = span.place().map(Trace::traceparent);
        if let Some(Ok(traceparent)) = traceparent.map(HeaderValue::try_from) {
            request.headers_mut().insert("traceparent", traceparent);
        }
        let response = http.execute(request).await.map_err(Error::from_send)?;
        let status = response.status();
        span.set_status(status.as_u16());
        match status {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::KeyRejected { status }),
            StatusCode::TOO_MANY_REQUESTS => Err(Error::Busy {
                retry_after: retry_after(&response, LONGEST_WAIT),
            }),
            // A gateway that gave up waiting sends 408. Dojo may have done the work nevertheless.
            StatusCode::REQUEST_TIMEOUT => {
                Err(Error::response_lost(format!("status {status}"), None))
            }
            status if status.is_client_error() => Err(Error::Rejected {
                status,
                problem: body(response, LARGEST_PROBLEM)
                    .await
                    .ok()
                    .and_then(|body| serde_json::from_slice(&body).ok())
                    .unwrap_or_default(),
            }),
            status => Err(Error::response_lost(format!("status {status}"), None)),
        }
    }
}

/// A call in progress, which is a span of its own, and is counted and timed.
struct Call {
    operation: &'static str,
    start: Instant,
    span: Span,
}

impl Call {
    fn begin(operation: &'static str) -> Self {
        let mut span = Span::of_call(format_args!("dojo {operation}"));
        span.set("dojo.operation", operation);
        Self {
            operation,
            start: Instant::now(),
            span,
        }
    }

    fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        let operation = self.operation;
        let outcome = result.as_ref().err().map_or("ok", Error::name);
        if result.is_err() {
            self.span.failed(outcome);
        }
        metrics::counter!("dojo_requests_total", "operation" => operation, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("dojo_request_duration_seconds", "operation" => operation)
            .record(self.start.elapsed());
        result
    }
}

/// The largest body that is read, in bytes. A page of a search has 100 intents of a few kilobytes each.
const LARGEST_BODY: usize = 8 << 20;

/// The largest body of an error that is read, in bytes.
const LARGEST_PROBLEM: usize = 64 << 10;

/// Reads a body. One that is larger than `limit`, or is cut off, counts as a lost response.
async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    loop {
        let chunk = response
            .chunk()
            .await
            .map_err(|error| Error::response_lost("the body was cut off", Some(error)))?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > limit {
            return Err(Error::response_lost(
                format!("the body is larger than {limit} bytes"),
                None,
            ));
        }
        body.extend_from_slice(&chunk);
    }
}

/// Returns an error if the intent belongs to another link.
fn check_link(intent: &PaymentIntent, link_id: Option<PaymentLinkId>) -> Result<(), String> {
    match link_id {
        Some(link_id) if intent.is_of_another_link(link_id) => Err(format!(
            "the response is about {}, the intent of another link",
            intent.id
        )),
        _ => Ok(()),
    }
}

/// Checks that the response to an operation isn't about another intent than `id`, or another link than `link_id`.
///
/// A response to a cancellation or to another amount is the intent itself, and one to a refund names it. The others need not
/// say what they are about.
fn check_subject(response: &Value, id: &str, link_id: Option<PaymentLinkId>) -> Result<(), String> {
    for named in [&response["id"], &response["paymentIntentId"]] {
        if let Some(named) = named.as_str()
            && named != id
        {
            return Err(format!("the response is about {named} and not about {id}"));
        }
    }
    let named = response["metadata"][NewPaymentLink::ID_METADATA_KEY].as_str();
    let named: Option<PaymentLinkId> = named.and_then(|named| named.parse().ok());
    if link_id.is_some() && named.is_some() && named != link_id {
        return Err(format!(
            "the response is about the intent of another link, not about {id}"
        ));
    }
    Ok(())
}

fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.format(&Rfc3339).ok()
}

/// The longest wait that we accept from a `Retry-After`.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_sent_after_the_lease() {
        assert!(SendBy::within(Duration::from_mins(1)).check().is_ok());
        let too_late = SendBy::within(Duration::ZERO).check();
        assert!(matches!(too_late, Err(Error::TooLate)));
        // The monotonic clock of a paused virtual machine may stand still.
        let paused = SendBy {
            wall: SystemTime::now() - Duration::from_secs(1),
            ..SendBy::within(Duration::from_mins(1))
        };
        assert!(matches!(paused.check(), Err(Error::TooLate)));
    }

    #[test]
    fn a_response_that_names_another_intent_or_link_is_not_ours() {
        let link_id: PaymentLinkId = "plink_01kaz8v4wce7q8m6s5gq9nq2fd".parse().unwrap();
        let other = "plink_01kaz8v4wce7q8m6s5gq9nq2fe";
        let is_ours = |response: Value| check_subject(&response, "pi_1", Some(link_id)).is_ok();
        for response in [
            json!({"id": "pi_1", "metadata": {"paymentLinkId": link_id}}),
            json!({"paymentIntentId": "pi_1", "refundId": "rfnd_1"}),
            json!({"captureId": "c_1", "message": "done"}),
            json!({"metadata": {"paymentLinkId": "not one of our links"}}),
            json!({"id": null, "metadata": null}),
            Value::Null,
        ] {
            assert!(is_ours(response.clone()), "{response}");
        }
        for response in [
            json!({"id": "pi_2"}),
            json!({"paymentIntentId": "pi_2", "refundId": "rfnd_1"}),
            json!({"id": "pi_1", "metadata": {"paymentLinkId": other}}),
        ] {
            assert!(!is_ours(response.clone()), "{response}");
        }
        let of_other = json!({"id": "pi_1", "metadata": {"paymentLinkId": other}});
        assert_eq!(check_subject(&of_other, "pi_1", None), Ok(()));
    }
}
