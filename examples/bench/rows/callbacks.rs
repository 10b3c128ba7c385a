//! Callbacks: how many a second one endpoint gets.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::post};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};

use super::feed;
use crate::{
    Result,
    database::Size,
    http::{Connection, request},
    lab::{API_KEY, Lab},
    report::{RowReport, Unit},
};

/// How long to wait at most for what must take seconds.
const PATIENCE: Duration = Duration::from_mins(2);

pub async fn rate(lab: &mut Lab, report: &mut RowReport<'_>) -> Result {
    let database = lab.database(Size::Usual).await?;
    database.reset(lab).await?;
    let settings = [("CALLBACK_ALLOW", "127.0.0.1")];
    let service = database
        .start_service_with(lab, &database.sandbox, &settings)
        .await?;
    let got = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&got);
    let accept = post(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
        StatusCode::NO_CONTENT
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let server =
        tokio::spawn(axum::serve(listener, Router::new().route("/", accept)).into_future());

    let mut connection = Connection::open(service.address).await?;
    let authorization = format!("Bearer {API_KEY}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({"url": url, "types": ["payment_link.attention_required"]}).to_string();
    let path = "/v1/callback-endpoints";
    let created = connection
        .call(&request("POST", path, &headers, &body))
        .await?;
    let endpoint: serde_json::Value = serde_json::from_slice(created.body)?;
    let id = endpoint["id"].as_str().ok_or("no endpoint was created")?;
    let path = format!("{path}/{id}");
    let action = |name: &str| request("POST", &format!("{path}/{name}"), &headers[..1], "");
    connection.call(&action("pause")).await?;
    let length = lab.scale.round + lab.scale.warm_up;
    let written = feed::write(&database, length, &RefCell::default()).await?;
    let begin = Instant::now();
    connection.call(&action("resume")).await?;
    while got.load(Ordering::Relaxed) < written {
        if begin.elapsed() > PATIENCE {
            let got = got.load(Ordering::Relaxed);
            return Err(format!("{got} of {written} callbacks arrived").into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    let elapsed = begin.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let rate = written as f64 / elapsed;
    report.figure(
        "callbacks to one endpoint, 8 in flight",
        rate,
        Unit::PerSecond,
    );
    server.abort();
    service.stop().await?;
    // Without endpoints, the other rows measure what they measured before.
    sqlx::raw_sql("DELETE FROM callback_deliveries; DELETE FROM callback_endpoints")
        .execute(&database.pool)
        .await?;
    Ok(())
}
