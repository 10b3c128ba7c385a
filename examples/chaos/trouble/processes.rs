//! Trouble with our processes: killed, or stopped in the middle of something.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use super::{Damage, Trouble, pause, ready_again};
use crate::stage::{LEASE, Result, SETTLE, Stage};

/// Kills one replica after the other, and starts it again a little later.
pub async fn kills(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 1500..6000, until).await {
        let Some(replica) = stage.take_any(&mut rng) else {
            continue;
        };
        replica.kill().await?;
        damage.note(Trouble::Kills);
        pause(&mut rng, 100..3000, until).await;
        replica.start(&stage.http).await?;
    }
    Ok(())
}

/// Stops a replica for longer than a lease, as when a virtual machine is paused. Then it continues where it was, with
/// connections, transactions and leases that others have given up on.
///
/// Often it stops between saving what it is about to do and doing it: the database's responses are held back until then. Of
/// all calls to Dojo, a capture must be sent in time: Dojo can't recognize a second one.
pub async fn freezes(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    // Early enough for a short run.
    let mut next = 1000..3000;
    while pause(&mut rng, next, until).await {
        next = 4000..15_000;
        let Some(replica) = stage.take_any(&mut rng) else {
            continue;
        };
        if rng.random_bool(0.7) {
            replica.wire.hold_responses(true);
            a_capture_is_saved(stage).await;
        }
        let frozen = replica.freeze().await;
        replica.wire.hold_responses(false);
        frozen?;
        damage.note(Trouble::Freezes);
        // The run waits for the end of it: a stop that is shorter than a lease shows nothing. After the settlement window,
        // too, the other replicas have given up on a capture.
        let given_up = if rng.random_bool(0.5) {
            SETTLE
        } else {
            Duration::ZERO
        };
        sleep(given_up + LEASE.mul_f64(rng.random_range(1.1..1.6))).await;
        replica.thaw().await?;
        ready_again(stage, &replica, "it was frozen").await?;
    }
    Ok(())
}

/// Waits until a capture has been saved, but has made no progress for a while. Or not much longer, if there is none.
async fn a_capture_is_saved(stage: &Stage) {
    let saved =
        "SELECT EXISTS (SELECT FROM operations WHERE kind = 'capture' AND status = 'Pending'
                   AND created_at BETWEEN $1 AND now() - interval '200 milliseconds')";
    let began = OffsetDateTime::now_utc();
    let looks = async {
        loop {
            let saved = sqlx::query_scalar(saved).bind(began);
            // Other trouble may have taken the database away.
            if saved.fetch_one(&stage.database.pool).await.unwrap_or(false) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = timeout(Duration::from_millis(1500), looks).await;
}
