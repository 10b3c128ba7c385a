//! Trouble with Dojo's responses, its webhooks and its search.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Damage, Trouble, pause};
use crate::stage::{Result, SETTLE, Stage};

/// Calls to Dojo that fail before or after the work is done, or take too long.
pub async fn calls(stage: &Stage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 300..1500, until).await {
        let operations = [
            "create", "create", "create", "get", "search", "cancel", "capture", "refund", "refund",
            "reversal", "any",
        ];
        let operation = operations.choose(&mut rng).unwrap_or(&"any");
        let mut fault = fault(operation, &mut rng);
        if rng.random_bool(0.15) {
            // A fault that strikes often for a while, until all faults are cleared.
            fault["share"] = json!(rng.random_range(0.2..0.9));
            stage.dojo.control("faults", fault).await?;
            pause(&mut rng, 500..3000, until).await;
            stage.dojo.clear("faults").await?;
        } else {
            fault["count"] = json!(rng.random_range(1..=4));
            stage.dojo.control("faults", fault).await?;
        }
    }
    Ok(())
}

fn fault(operation: &str, rng: &mut StdRng) -> Value {
    let kinds = [
        "latency",
        "latencyAfter",
        "status",
        "statusAfter",
        "cutBefore",
        "cutAfter",
    ];
    let kind = *kinds.choose(rng).unwrap_or(&"cutAfter");
    let mut fault = json!({"operation": operation, "kind": kind});
    match kind {
        // Around the service's time limit of one second, and beyond.
        "latency" | "latencyAfter" => fault["latencyMs"] = json!(rng.random_range(50..2500)),
        // Dojo doesn't do the work and then respond that the request was wrong.
        "statusAfter" => {
            fault["status"] = json!([500, 502, 503, 504, 408].choose(rng));
        }
        "status" => {
            let status = *[500, 503, 504, 429, 429, 401].choose(rng).unwrap_or(&500);
            fault["status"] = json!(status);
            if status == 429 {
                fault["retryAfter"] = json!(1);
            }
        }
        _ => {}
    }
    fault
}

/// Connections to Dojo that stay open without a response, before or after the work is done.
pub async fn silent_calls(
    stage: &Stage,
    damage: &Damage,
    mut rng: StdRng,
    until: Instant,
) -> Result {
    while pause(&mut rng, 1000..4000, until).await {
        let operations = [
            "create", "create", "get", "search", "capture", "refund", "any",
        ];
        let kinds = ["silentBefore", "silentAfter"];
        let fault = json!({
            "operation": operations.choose(&mut rng),
            "kind": kinds.choose(&mut rng),
            "count": rng.random_range(1..=6),
        });
        stage.dojo.control("faults", fault).await?;
        damage.note(Trouble::SilentCalls);
    }
    Ok(())
}

/// Headers that no client should have to expect.
pub async fn headers(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Adding it to a time overflows.
    let most = "18446744073709551615";
    let values = [
        most,
        most,
        "18446744073709551616",
        "9223372036854775807",
        "-1",
        "1e9",
        "",
        "soon",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
    ];
    while pause(&mut rng, 500..2500, until).await {
        let operations = ["create", "get", "search", "refund", "any", "any"];
        let operation = operations.choose(&mut rng);
        let value = values.choose(&mut rng);
        let count = rng.random_range(1..=4);
        let fault = if rng.random_bool(0.7) {
            json!({
                "operation": operation, "kind": "status", "status": 429,
                "retryAfter": value, "count": count,
            })
        } else {
            json!({
                "operation": operation, "kind": "headers", "count": count,
                "headers": {"Date": value, "Retry-After": value, "X-Long": "x".repeat(16_000)},
            })
        };
        stage.dojo.control("faults", fault).await?;
        damage.note(Trouble::Headers);
    }
    Ok(())
}

/// Responses that never end.
pub async fn endless_responses(
    stage: &Stage,
    damage: &Damage,
    mut rng: StdRng,
    until: Instant,
) -> Result {
    while pause(&mut rng, 2000..8000, until).await {
        let operations = ["create", "get", "search", "refund", "any"];
        let fault = json!({"operation": operations.choose(&mut rng), "kind": "endless"});
        stage.dojo.control("faults", fault).await?;
        damage.note(Trouble::EndlessResponses);
    }
    Ok(())
}

/// Responses from a node whose clock runs ahead, by more or by less than the settlement window.
pub async fn clock_ahead(
    stage: &Stage,
    damage: &Damage,
    mut rng: StdRng,
    until: Instant,
) -> Result {
    while pause(&mut rng, 1500..5000, until).await {
        let operations = ["get", "get", "search", "create", "any"];
        let ahead = [1_500, 3_000, 10_000, 3_600_000, 86_400_000];
        let fault = json!({
            "operation": operations.choose(&mut rng), "kind": "clockSkew",
            "skewMs": ahead.choose(&mut rng), "count": rng.random_range(1..=5),
        });
        stage.dojo.control("faults", fault).await?;
        damage.note(Trouble::ClockAhead);
    }
    Ok(())
}

/// Responses about another intent, whether Dojo did what was requested or not.
pub async fn other_intents(
    stage: &Stage,
    damage: &Damage,
    mut rng: StdRng,
    until: Instant,
) -> Result {
    while pause(&mut rng, 1500..5000, until).await {
        let (kind, operations) = if rng.random_bool(0.5) {
            ("otherIntent", ["get", "get", "create", "cancel"])
        } else {
            ("misrouted", ["cancel", "capture", "refund", "reversal"])
        };
        let fault = json!({
            "operation": operations.choose(&mut rng), "kind": kind,
            "count": rng.random_range(1..=4),
        });
        stage.dojo.control("faults", fault).await?;
        damage.note(Trouble::OtherIntents);
    }
    Ok(())
}

/// Webhooks that are lost, duplicated, delayed or reordered.
pub async fn webhooks(stage: &Stage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 200..1200, until).await {
        let kind = *["drop", "double", "delay", "reorder"]
            .choose(&mut rng)
            .unwrap_or(&"drop");
        let mut fault = json!({"kind": kind, "count": rng.random_range(1..=5)});
        if matches!(kind, "delay" | "reorder") {
            fault["delayMs"] = json!(rng.random_range(50..4000));
        }
        stage.dojo.control("webhook-faults", fault).await?;
    }
    Ok(())
}

/// Webhooks signed with a stolen secret, which say that unpaid links are paid. A link may show that, unconfirmed, until it is
/// reconciled.
pub async fn forgeries(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 200..900, until).await {
        let intents = stage.dojo.look("payment-intents").await?;
        let unpaid: Vec<_> = intents
            .iter()
            .rev()
            .filter(|intent| intent["status"] == "Created")
            .take(20)
            .collect();
        let Some(intent) = unpaid.choose(&mut rng) else {
            continue;
        };
        let words = ["Captured", "Captured", "Authorized", "Refunded", "Reversed"];
        let lie = json!({"paymentIntentId": intent["id"], "status": words.choose(&mut rng)});
        stage.dojo.control("webhooks/deliver", lie).await?;
        damage.note(Trouble::Forgeries);
    }
    Ok(())
}

/// Search that lags behind: usually by less than the settlement window, and now and then by more, so that surplus intents are
/// created and must be found and canceled.
pub async fn search(stage: &Stage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 1000..6000, until).await {
        let seconds = if rng.random_bool(0.2) {
            SETTLE.as_secs_f64() + rng.random_range(2.0..6.0)
        } else {
            rng.random_range(0.0..SETTLE.as_secs_f64() * 0.6)
        };
        stage
            .dojo
            .control("search-lag", json!({"seconds": seconds}))
            .await?;
    }
    Ok(())
}

/// Ends all trouble with Dojo.
pub async fn calm(stage: &Stage) -> Result {
    stage.dojo.clear("faults").await?;
    stage.dojo.clear("webhook-faults").await?;
    stage
        .dojo
        .control("search-lag", json!({"seconds": 0}))
        .await?;
    Ok(())
}
