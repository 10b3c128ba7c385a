use std::{
    future::Future,
    time::{Duration, Instant},
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
};

/// Calls Dojo's API with one account's key.
///
/// Every call has a time limit; none is repeated here: whoever calls knows what a repetition would mean.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    payment_source: Option<String>,
    timeout: Duration,
    lease_slack: Duration,
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

/// An operation on an intent.
#[derive(Debug, Clone, Copy)]
pub struct Operate<'a> {
    /// The link that the intent is for.
    pub link_id: PaymentLinkId,
    /// The intent.
    pub payment_intent_id: &'a str,
    /// What to do, with its amounts.
    pub action: &'a Action,
    /// The key by which Dojo knows repetitions. Only refunds have one there.
    pub idempotency_key: Option<&'a str>,
    /// The id of the request that this is done for.
    pub request_id: &'a str,
}

/// A stretch of time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Its beginning.
    pub start: OffsetDateTime,
    /// Its end.
    pub end: OffsetDateTime,
}

impl Window {
    /// The shortest stretch that holds both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

/// A page of a search.
#[derive(Debug)]
pub struct Page {
    /// The intents on it that can be read.
    pub intents: Vec<PaymentIntent>,
    /// The cursor that leads to the next page. `None`: this is the last one.
    pub after: Option<String>,
}

/// That Dojo answered, and by which clock.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// When it was asked, by our clock.
    pub asked: OffsetDateTime,
    /// When the answer was there, by our clock.
    pub answered: OffsetDateTime,
    /// The answer's `Date`: Dojo's clock, in whole seconds.
    pub date: Option<OffsetDateTime>,
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
            // Only the caller knows what a repetition would mean. What remains is the pool's: it hands a request that it
            // never began to write on a closed connection to another one, which Dojo cannot notice.
            .retry(retry::never())
            .build()
            .map_err(|error| ConfigError::with_source("DOJO_API_URL", "cannot be called", error))?;
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
    /// A failure that proves that Dojo has done nothing is tried again, with growing pauses, while there is
    /// time: half the time limit of a call, so that all of it takes one and a half at most.
    ///
    /// An answer about another link's intent is not the answer to this call, which is lost then.
    pub async fn create_payment_intent(
        &self,
        create: CreatePaymentIntent<'_>,
    ) -> Result<PaymentIntent, Error> {
        let body = self.create_body(create);
        self.persist(|| {
            let request = self
                .request(Method::POST, &["payment-intents"])
                .header("x-request-id", create.request_id)
                .json(&body);
            Self::call_for("create", request, |intent| {
                check_link(intent, Some(create.link_id))
            })
        })
        .await
    }

    /// Performs an operation on an intent: `DELETE`, `/captures`, `/refunds`, `/reversal`, `/amount`, `/tips-amount` or
    /// `/receipt`. Returns Dojo's id for what it did, where there is one.
    ///
    /// A failure that proves that Dojo did nothing is retried, as for a creation. All of it takes one and a half time limits
    /// at most. A refund is never retried here: it was weighed against what Dojo had left a moment ago, and the caller must
    /// read Dojo and weigh it again first.
    ///
    /// A response that is about another intent is not the response to this call, which is then lost.
    pub async fn operate(&self, operate: Operate<'_>) -> Result<Option<String>, Error> {
        let id = operate.payment_intent_id;
        let money = |money: Option<Money>| money.map(|money| money.value);
        // Amounts of captures and refunds go as plain integers; those of `/amount` and `/tips-amount` as money.
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
        let attempt = || {
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
            Self::call_for(name, request, |response: &Value| {
                check_subject(response, id, Some(operate.link_id))
            })
        };
        let response = match operate.action {
            Action::Refund(_) => attempt().await?,
            _ => self.persist(attempt).await?,
        };
        let id = match operate.action {
            Action::Capture(_) => &response["captureId"],
            Action::Refund(_) => &response["refundId"],
            Action::Reversal => &response["reversalId"],
            _ => &Value::Null,
        };
        Ok(id.as_str().map(str::to_owned))
    }

    /// How long an operation may take at most, from its saving until Dojo's answer is kept: a look at the intent, the
    /// operation with its repetitions, and the same slack as for a creation.
    #[must_use]
    pub fn operation_lease(&self) -> Duration {
        self.timeout * 3 + self.lease_slack
    }

    /// Repeats a call while its failures prove that Dojo has done nothing, with growing pauses, for half the time
    /// limit of a call.
    async fn persist<T, F: Future<Output = Result<T, Error>>>(
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
            // The pause before the next try: the builder's, or what Dojo asks for; none left ends it.
            .adjust(|error, pause| {
                let pause = pause?.max(error.retry_after().unwrap_or_default());
                (pause < deadline.saturating_duration_since(Instant::now())).then_some(pause)
            })
            .await
    }

    /// How long whoever creates an intent may need at most, with some slack for the database and for a machine
    /// that stalls.
    #[must_use]
    pub fn creation_lease(&self) -> Duration {
        self.timeout * 2 + self.lease_slack
    }

    /// `GET /payment-intents/{id}`, the canceled ones too. `None` if Dojo does not know it.
    ///
    /// `link_id`: the link whose intent it is, where that is known. An answer about another intent, or about one that
    /// names another link, as a bad cache might give, is as good as none.
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
                Err(format!("the answer is about {} and not {id}", intent.id))
            }
        };
        match Self::call_for("get", request, check).await {
            Ok(intent) => Ok(Some(intent)),
            Err(Error::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `DELETE /payment-intents/{id}`: cancels it, so that it can't be paid.
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

    /// `POST /payment-intents/search`, page by page: hands every intent that was created in the window to
    /// `visit`, newest first. Reads at most `pages` pages of 100; `false` if there would have been more.
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

    /// One page of `POST /payment-intents/search`: up to 100 intents that were created in the window, behind the
    /// cursor `after`.
    pub async fn search_page(&self, window: Window, after: Option<&str>) -> Result<Page, Error> {
        #[derive(Deserialize)]
        struct Answer {
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
        let request = self
            .request(Method::POST, &["payment-intents", "search"])
            .json(&body);
        let answer: Answer = Self::call("search", request).await?;
        let data = answer.data.unwrap_or_default();
        // A cursor that leads nowhere new would be followed for ever.
        let ended = data.is_empty() || answer.after.as_deref() == after;
        Ok(Page {
            // One without an id could not be adopted or looked at either.
            intents: data
                .into_iter()
                .filter_map(|intent| serde_json::from_value(intent).ok())
                .collect(),
            after: answer.after.filter(|_| !ended),
        })
    }

    /// Whether Dojo takes the key: a search over one second, which changes nothing.
    pub async fn probe(&self) -> Result<Probe, Error> {
        let asked = OffsetDateTime::now_utc();
        let body = json!({
            "startDate": rfc3339(asked - TimeSpan::SECOND),
            "endDate": rfc3339(asked),
            "cursor": {"limit": 1},
        });
        let request = self
            .request(Method::POST, &["payment-intents", "search"])
            .json(&body);
        let response = Self::accepted(request).await?;
        let date = response
            .headers()
            .get(header::DATE)
            .and_then(|date| OffsetDateTime::parse(date.to_str().ok()?, &Rfc2822).ok());
        Ok(Probe {
            asked,
            answered: OffsetDateTime::now_utc(),
            date,
        })
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

    pub(super) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("the settings admit only http and https, which have paths")
            .pop_if_empty()
            .extend(path);
        self.http.request(method, url)
    }

    /// Sends a request and reads its answer, and counts and times both under `operation`.
    pub(super) async fn call<T: DeserializeOwned>(
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<T, Error> {
        Self::call_for(operation, request, |_| Ok(())).await
    }

    /// The same. `check` tells why an answer is not the one to this call; the right one is lost then.
    async fn call_for<T: DeserializeOwned>(
        operation: &'static str,
        request: RequestBuilder,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        let result = Self::answer(request)
            .await
            .and_then(|answer| match check(&answer) {
                Ok(()) => Ok(answer),
                Err(reason) => Err(Error::unanswered(reason, None)),
            });
        let outcome = result.as_ref().map_or_else(Error::name, |_| "ok");
        metrics::counter!("dojo_requests_total", "operation" => operation, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("dojo_request_duration_seconds", "operation" => operation)
            .record(start.elapsed());
        result
    }

    async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, Error> {
        let response = Self::accepted(request).await?;
        let status = response.status();
        if status == StatusCode::NO_CONTENT {
            // It has no body by definition, and nothing more to say.
            return serde_json::from_value(Value::Null).map_err(|_| {
                Error::unanswered(format!("status {status} where a body has to be"), None)
            });
        }
        response.json().await.map_err(|error| {
            Error::unanswered(
                format!("status {status} with an unreadable body"),
                Some(error),
            )
        })
    }

    /// Sends a request. Whatever is no success is an error.
    async fn accepted(request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(Error::from_send)?;
        let status = response.status();
        match status {
            status if status.is_success() => Ok(response),
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

/// Whether an intent may be that of the link.
fn check_link(intent: &PaymentIntent, link_id: Option<PaymentLinkId>) -> Result<(), String> {
    match link_id {
        Some(link_id) if intent.is_of_another_link(link_id) => Err(format!(
            "the answer is about {}, which is the intent of another link",
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

/// Longer than this nobody is made to wait by a `Retry-After`, whatever it says.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// `Retry-After` in either form of RFC 9110: seconds, or a date.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    wait_until(text.trim(), OffsetDateTime::now_utc())
}

fn wait_until(text: &str, now: OffsetDateTime) -> Option<Duration> {
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that fit no number are too many.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let at = OffsetDateTime::parse(text, &Rfc2822).ok()?;
        // A date in the past asks for no wait.
        Duration::try_from(at - now).unwrap_or_default()
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

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

    #[test]
    fn a_retry_after_is_read_in_both_forms_and_never_asks_for_too_much() {
        let now = datetime!(2026-11-24 12:00 UTC);
        let wait = |text| wait_until(text, now).map(|wait| wait.as_secs());
        assert_eq!(wait("0"), Some(0));
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Tue, 24 Nov 2026 12:02:00 GMT"), Some(120));
        assert_eq!(wait("Tue, 24 Nov 2026 11:00:00 GMT"), Some(0), "past");
        for absurd in [
            "18446744073709551615",
            "99999999999999999999999999",
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ] {
            assert_eq!(wait(absurd), Some(3600), "{absurd}");
        }
        for nonsense in [
            "",
            "-5",
            "+5",
            "1.5",
            "1e3",
            "soon",
            "Fri, 31 Dec 99999 23:59:59 GMT",
        ] {
            assert_eq!(wait(nonsense), None, "{nonsense}");
        }
    }
}
