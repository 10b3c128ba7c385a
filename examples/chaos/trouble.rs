//! What goes wrong: Dojo's answers, its webhooks, its search, our processes, our database.

use std::{cell::Cell, time::Duration};

use futures_util::future::try_join_all;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    promise::{Promise, broken},
    stage::{Replica, Result, SETTLE, Stage},
};

/// How long `/readyz` may take to tell of an outage, and of its end. It gives the database two seconds; the rest is
/// for a machine that has other things to do.
const READY_TELLS: Duration = Duration::from_secs(4);
const READY_AGAIN: Duration = Duration::from_secs(20);

/// What was done.
#[derive(Default)]
pub struct Damage {
    pub kills: Cell<u64>,
    pub outages: Cell<u64>,
}

async fn pause(rng: &mut StdRng, milliseconds: std::ops::Range<u64>, until: Instant) -> bool {
    let pause = Duration::from_millis(rng.random_range(milliseconds));
    sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
    Instant::now() < until
}

/// Calls to Dojo that fail before or after the work was done, or take too long.
pub async fn calls(stage: &Stage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 300..1500, until).await {
        let operations = [
            "create", "create", "create", "get", "search", "cancel", "capture", "refund", "refund",
            "reversal", "any",
        ];
        let operation = operations.choose(&mut rng).unwrap_or(&"any");
        let mut fault = fault(operation, &mut rng);
        if rng.random_bool(0.15) {
            // For a while it strikes often, until all are cleared.
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
        // Around the service's time limit of a second, and beyond.
        "latency" | "latencyAfter" => fault["latencyMs"] = json!(rng.random_range(50..2500)),
        // Dojo does not do the work and then say that the request was wrong.
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

/// Webhooks that never come, come twice, late, or in another order.
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

/// Search that lags behind: by less than the service waits for, as a rule, and now and then by more, so that second
/// intents come to be, and have to be found and canceled.
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

/// SIGKILL for one replica after the other, and a new start a little later.
pub async fn kills(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 1500..6000, until).await {
        let replica = stage.any_replica(&mut rng);
        replica.kill().await?;
        damage.kills.set(damage.kills.get() + 1);
        pause(&mut rng, 100..3000, until).await;
        replica.start(&stage.http).await?;
    }
    Ok(())
}

/// Stops Postgres, sees that every replica says so, and starts it again.
pub async fn outages(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Early enough that a short run has one.
    let mut next = 3000..8000;
    while pause(&mut rng, next, until).await {
        next = 8000..20_000;
        let length = Duration::from_millis(rng.random_range(500..5000));
        let up: Vec<&Replica> = stage.replicas.iter().filter(|one| one.is_up()).collect();
        stage.database.stop().await?;
        damage.outages.set(damage.outages.get() + 1);
        let told = try_join_all(up.iter().map(|replica| tells_of_outage(stage, replica)));
        let (told, ()) = tokio::join!(told, sleep(length));
        told?;
        stage.database.resume().await?;
        try_join_all(
            stage
                .replicas
                .iter()
                .map(|replica| ready_again(stage, replica)),
        )
        .await?;
    }
    Ok(())
}

async fn tells_of_outage(stage: &Stage, replica: &Replica) -> Result {
    let stopped = Instant::now();
    let answer = replica.answers(&stage.http, "/readyz").await;
    let took = stopped.elapsed();
    let alive = replica.answers(&stage.http, "/healthz").await;
    // A replica that was killed meanwhile owes no answer.
    if !replica.is_up() || alive.is_none() {
        return Ok(());
    }
    if answer != Some(StatusCode::SERVICE_UNAVAILABLE) || took > READY_TELLS {
        let what = format!("answered {answer:?} after {took:?} without a database");
        return broken(Promise::Ready, &replica.name, what);
    }
    if alive != Some(StatusCode::OK) {
        let what = format!("/healthz answered {alive:?} for want of a database");
        return broken(Promise::Ready, &replica.name, what);
    }
    Ok(())
}

async fn ready_again(stage: &Stage, replica: &Replica) -> Result {
    let limit = Instant::now() + READY_AGAIN;
    while replica.is_up() {
        let answer = replica.answers(&stage.http, "/readyz").await;
        if answer == Some(StatusCode::OK) || !replica.is_up() {
            break;
        }
        if Instant::now() > limit {
            let what = format!("answers {answer:?} {READY_AGAIN:?} after its database came back");
            return broken(Promise::Ready, &replica.name, what);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Ends all trouble.
pub async fn calm(stage: &Stage) -> Result {
    stage.dojo.clear("faults").await?;
    stage.dojo.clear("webhook-faults").await?;
    stage
        .dojo
        .control("search-lag", json!({"seconds": 0}))
        .await?;
    for replica in &stage.replicas {
        ready_again(stage, replica).await?;
    }
    Ok(())
}
