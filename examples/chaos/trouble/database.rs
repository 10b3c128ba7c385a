//! Trouble with our database: gone, silent, or read-only. One at a time, so that each can be judged.

use std::time::Duration;

use futures_util::future::try_join_all;
use rand::{RngExt, rngs::StdRng};
use reqwest::StatusCode;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use super::{Damage, Trouble, pause, ready_again};
use crate::{
    promise::{Promise, broken},
    stage::{Replica, Result, Stage},
};

/// How long `/readyz` may take to report an outage. It waits two seconds for the database; the rest is for a busy machine.
const READY_TELLS: Duration = Duration::from_secs(4);

/// How long a replica may take to serve again after its connections went silent.
const SERVES_AGAIN: Duration = Duration::from_secs(30);

/// Stops Postgres, checks that every replica reports it, and starts it again.
pub async fn outages(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Early enough for a short run.
    let mut next = 3000..8000;
    while pause(&mut rng, next, until).await {
        next = 8000..20_000;
        let length = Duration::from_millis(rng.random_range(500..5000));
        let _alone = stage.database.trouble.lock().await;
        let up: Vec<&Replica> = stage.replicas.iter().filter(|one| one.is_up()).collect();
        stage.database.stop().await?;
        damage.note(Trouble::Outages);
        let told = try_join_all(up.iter().map(|replica| tells_of_outage(stage, replica)));
        let (told, ()) = tokio::join!(told, sleep(length));
        told?;
        stage.database.resume().await?;
        all_ready_again(stage, "its database came back").await?;
    }
    Ok(())
}

async fn tells_of_outage(stage: &Stage, replica: &Replica) -> Result {
    let interruptions = replica.interruptions();
    if !replica.is_up() {
        return Ok(());
    }
    let stopped = Instant::now();
    let answer = replica.answers(&stage.http, "/readyz").await;
    let took = stopped.elapsed();
    let alive = replica.answers(&stage.http, "/healthz").await;
    // A replica that was killed or frozen meanwhile need not respond, even if it continues by now.
    if !replica.is_up() || replica.interruptions() > interruptions || alive.is_none() {
        return Ok(());
    }
    if answer != Some(StatusCode::SERVICE_UNAVAILABLE) || took > READY_TELLS {
        let what = format!("responded {answer:?} after {took:?} without a database");
        return broken(Promise::Ready, &replica.name, what);
    }
    if alive != Some(StatusCode::OK) {
        let what = format!("/healthz responded {alive:?} because the database is away");
        return broken(Promise::Ready, &replica.name, what);
    }
    Ok(())
}

async fn all_ready_again(stage: &Stage, after: &str) -> Result {
    let all = stage.replicas.iter();
    try_join_all(all.map(|replica| ready_again(stage, replica, after))).await?;
    Ok(())
}

/// Drops whatever one replica, or each of them, sends and receives on its open connections to the database. Checks that they
/// serve again in time, on new ones.
pub async fn silence(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Early enough for a short run.
    let mut next = 2000..6000;
    while pause(&mut rng, next, until).await {
        next = 8000..20_000;
        let _alone = stage.database.trouble.lock().await;
        let struck: Vec<&Replica> = if rng.random_bool(0.3) {
            stage.replicas.iter().collect()
        } else {
            vec![stage.any_replica(&mut rng)]
        };
        for replica in &struck {
            replica.wire.go_silent();
        }
        damage.note(Trouble::SilentDatabase);
        try_join_all(
            struck
                .into_iter()
                .map(|replica| serves_again(stage, replica)),
        )
        .await?;
    }
    Ok(())
}

/// Waits until a replica has read from its database more times in a row than it can have dead connections.
async fn serves_again(stage: &Stage, replica: &Replica) -> Result {
    const IN_A_ROW: usize = 24;
    // Single links are read in another way than lists. There is no such link.
    const PATHS: [&str; 2] = [
        "/v1/payment-links?limit=1",
        "/v1/payment-links/plink_00000000000000000000000000",
    ];
    let struck = Instant::now();
    let mut served = 0;
    let mut last = None;
    while served < IN_A_ROW {
        if !replica.is_up() {
            return Ok(());
        }
        let answer = replica.get(stage, PATHS[served % PATHS.len()]).await;
        served = match answer {
            Some(StatusCode::OK | StatusCode::NOT_FOUND) => served + 1,
            // The key and the rate limit are up to the callers. Either way the database was used.
            Some(StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS) => served,
            _ => 0,
        };
        if !matches!(answer, Some(StatusCode::OK | StatusCode::NOT_FOUND)) {
            last = answer;
            sleep(Duration::from_millis(100)).await;
        }
        if replica.is_up() && struck.elapsed() > SERVES_AGAIN {
            let what = format!(
                "responded {last:?} {SERVES_AGAIN:?} after its connections to the database went silent"
            );
            return broken(Promise::Recovers, &replica.name, what);
        }
    }
    Ok(())
}

/// Makes the database read-only for a while, as one that was demoted is, and checks that every replica reports it.
pub async fn read_only(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Early enough for a short run.
    let mut next = 4000..9000;
    while pause(&mut rng, next, until).await {
        next = 10_000..25_000;
        let length = Duration::from_millis(rng.random_range(1000..5000));
        let _alone = stage.database.trouble.lock().await;
        stage.database.set_read_only(true).await?;
        damage.note(Trouble::ReadOnlyDatabase);
        let up = stage.replicas.iter().filter(|one| one.is_up());
        let told = try_join_all(up.map(|replica| tells_of_read_only(stage, replica)));
        let (told, ()) = tokio::join!(told, sleep(length));
        let ended = stage.database.set_read_only(false).await;
        told?;
        ended?;
        all_ready_again(stage, "its database accepted writes again").await?;
    }
    Ok(())
}

async fn tells_of_read_only(stage: &Stage, replica: &Replica) -> Result {
    let limit = Instant::now() + READY_TELLS;
    while replica.is_up() {
        let answer = replica.answers(&stage.http, "/readyz").await;
        if answer == Some(StatusCode::SERVICE_UNAVAILABLE) || !replica.is_up() {
            break;
        }
        if Instant::now() > limit {
            let what = format!("responds {answer:?} although its database is read-only");
            return broken(Promise::Ready, &replica.name, what);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Locks some of the newest links, which are about to receive webhooks, as another program's transaction does.
pub async fn locks(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 1000..4000, until).await {
        let (links, length) = (rng.random_range(1..=4), rng.random_range(200..2500));
        // An outage ends the session, and the locks with it.
        if lock(&stage.database.pool, links, Duration::from_millis(length))
            .await
            .is_ok()
        {
            damage.note(Trouble::LockedLinks);
        }
    }
    Ok(())
}

async fn lock(pool: &PgPool, links: i64, length: Duration) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT FROM payment_links ORDER BY created_at DESC, id DESC LIMIT $1 FOR UPDATE SKIP LOCKED")
        .bind(links)
        .execute(&mut *transaction)
        .await?;
    sleep(length).await;
    transaction.rollback().await
}
