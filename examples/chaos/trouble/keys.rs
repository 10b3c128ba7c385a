//! The callers' API key: rotated while they work, without an overlap.

use std::time::Duration;

use rand::rngs::StdRng;
use reqwest::StatusCode;
use tokio::time::{Instant, sleep};

use super::{Damage, Trouble, pause};
use crate::{
    promise::{Promise, broken},
    stage::{Result, Stage},
};

/// How long a replica may go on accepting a key that has ended.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Gives the callers a new key. Their earlier idempotency keys must mean the same under it.
pub async fn rotations(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Early enough for a short run.
    let mut next = 2000..6000;
    while pause(&mut rng, next, until).await {
        next = 6000..20_000;
        // The command needs the database. It must not be interrupted half-way, because then nobody knows the new key.
        let _alone = stage.database.trouble.lock().await;
        let old = stage.key();
        stage.rotate_key().await?;
        damage.note(Trouble::RotatedKeys);
        let limit = Instant::now() + ENDS_WITHIN;
        for replica in &stage.replicas {
            loop {
                let answer = replica
                    .get_with(stage, "/v1/payment-links?limit=1", &old)
                    .await;
                if answer != Some(StatusCode::OK) {
                    break;
                }
                if Instant::now() > limit {
                    let what = "accepts a key that was rotated without an overlap";
                    return broken(Promise::OnlyAuthorized, &replica.name, what);
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    Ok(())
}
