use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

struct Service {
    http: Client,
    url: String,
    api_key: String,
}

impl Service {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        request.bearer_auth(&self.api_key)
    }

    async fn until_paid(&self, id: &str) -> Result<Value, Box<dyn Error>> {
        let mut etag = String::new();
        loop {
            let request = self.request(Method::GET, &format!("/v1/payment-links/{id}"));
            let response = send(request.header("if-none-match", &etag)).await?;
            if response.status() == StatusCode::OK {
                etag = response.headers()["etag"].to_str()?.to_owned();
                let link: Value = response.json().await?;
                if link["status"] == "Captured" && link["confirmed"] == true {
                    return Ok(link);
                }
                if link["status"] == "Canceled" {
                    return Err("nobody can pay this link any more".into());
                }
            }
            sleep(Duration::from_secs(2)).await;
        }
    }

    /// The links that have changed since then, in the order of their changes.
    async fn changes(&self, updated_after: &str) -> Result<Vec<Value>, Box<dyn Error>> {
        let mut links = Vec::new();
        let mut after = None;
        loop {
            let request = self.request(Method::GET, "/v1/payment-links");
            let request = request
                .query(&[("sort", "updatedAt"), ("updatedAfter", updated_after)])
                .query(&[("limit", "20")])
                .query(&[("after", after)]);
            let page: Value = send(request).await?.json().await?;
            links.extend(page["data"].as_array().into_iter().flatten().cloned());
            after = page["after"].as_str().map(str::to_owned);
            if page["hasMore"] == false {
                return Ok(links);
            }
        }
    }
}

/// Sends a request until its outcome is known, or for 5 minutes. Fails if the outcome is a problem that retrying doesn't
/// solve.
async fn send(request: RequestBuilder) -> Result<Response, Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_mins(5);
    let mut pause = Duration::from_secs(1);
    loop {
        let mut wait = pause;
        let attempt = request.try_clone().ok_or("the body can't be sent again")?;
        // An error here means that there was no response.
        if let Ok(response) = attempt.send().await {
            let status = response.status();
            if status.as_u16() < 400 {
                return Ok(response);
            }
            let retry_after = response.headers().get("retry-after");
            let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
            if let Some(seconds) = retry_after {
                wait = Duration::from_secs(seconds);
            } else if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                let problem = response.text().await?;
                if !problem.contains("body-incomplete") {
                    return Err(problem.into());
                }
            }
        }
        if Instant::now() + wait > deadline {
            return Err("the outcome is not known yet: send the request again later".into());
        }
        sleep(wait).await;
        pause = (2 * pause).min(Duration::from_secs(30));
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Only for `reqwest` with the feature `rustls-no-provider`, as in this repository.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let service = Service {
        http: Client::builder().timeout(Duration::from_secs(35)).build()?,
        url: env::var("BASE_URL")?,
        api_key: env::var("API_KEY")?,
    };
    let order = env::args().nth(1).unwrap_or_else(|| "245".to_owned());

    let request = service.request(Method::POST, "/v1/payment-links");
    let request = request
        .header("idempotency-key", format!("order-{order}-link"))
        .json(&json!({
            "amount": {"value": 2450, "currencyCode": "GBP"},
            "reference": format!("Order {order}"),
        }));
    let link: Value = send(request).await?.json().await?;
    let (Some(id), Some(url), Some(begun)) = (
        link["id"].as_str(),
        link["url"].as_str(),
        link["createdAt"].as_str(),
    ) else {
        return Err(format!("unexpected response: {link}").into());
    };
    println!("Send {url} to the customer");

    let paid = service.until_paid(id).await?;
    println!(
        "Paid: {}. Hand over the goods",
        paid["capturedAmount"]["value"]
    );

    let request = service.request(Method::POST, &format!("/v1/payment-links/{id}/refunds"));
    let request = request
        .header("idempotency-key", format!("order-{order}-refund-1"))
        .json(&json!({
            "amount": {"value": 350, "currencyCode": "GBP"},
            "refundReason": "Returned goods",
        }));
    let refunded: Value = send(request).await?.json().await?;
    println!(
        "Refunded: {}. Left: {}",
        refunded["refundedAmount"]["value"], refunded["refundableAmount"]["value"]
    );

    for changed in service.changes(begun).await? {
        println!(
            "{} {} {}",
            changed["updatedAt"], changed["reference"], changed["status"]
        );
    }
    Ok(())
}
