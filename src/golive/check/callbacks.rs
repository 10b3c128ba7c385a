use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::report::{Checks, LIMIT, Name};
use crate::{
    callbacks::{
        client::{CallbackClient, Outcome},
        endpoint::Endpoint,
    },
    config::CallbackSettings,
    store::{self, PgPool},
};

/// How many endpoints are pinged at once.
const CONCURRENCY: usize = 10;

/// Pings every callback endpoint.
pub(super) async fn check(pool: &PgPool, settings: &CallbackSettings) -> Checks {
    let mut checks = Checks::new();
    let listed = timeout(LIMIT, store::callback_endpoints::list(pool, None)).await;
    let endpoints = match listed {
        Ok(Ok(endpoints)) => endpoints,
        Ok(Err(error)) => {
            let diagnosis = pool.diagnose(&error);
            checks.fail(Name::Callbacks, diagnosis.problem, diagnosis.remedy);
            return checks;
        }
        Err(_) => {
            checks.out_of_time(
                &[Name::Callbacks],
                "the database takes too long",
                "find out what keeps it busy, or what slows down the connection to it",
            );
            return checks;
        }
    };
    if endpoints.is_empty() {
        checks.pass(Name::Callbacks, "there are no callback endpoints");
        return checks;
    }
    let client = settings.client();
    let client = match client.get().await {
        Ok(client) => client,
        Err(error) => {
            checks.fail(
                Name::Callbacks,
                format!("no callbacks can be sent: {error}"),
                "install the system's certificate authorities (ca-certificates)",
            );
            return checks;
        }
    };
    let pings: Vec<_> = stream::iter(&endpoints)
        .map(|endpoint| ping(pool, client, endpoint))
        .buffered(CONCURRENCY)
        .collect()
        .await;
    for (endpoint, response) in endpoints.iter().zip(pings) {
        match response {
            Ok(response) => checks.pass(Name::Callbacks, format!("{}: {response}", endpoint.id)),
            Err(response) => checks.fail(
                Name::Callbacks,
                format!("{}: {response}", endpoint.id),
                "see \"Callbacks fall behind\" in docs/operations.md",
            ),
        }
    }
    checks
}

/// How an endpoint responds to a ping.
async fn ping(
    pool: &PgPool,
    client: &CallbackClient,
    endpoint: &Endpoint,
) -> Result<String, String> {
    let target = store::callback_deliveries::target(pool, endpoint.id, None)
        .await
        .map_err(|error| pool.diagnose(&error).problem)?
        .ok_or("it was deleted meanwhile")?;
    let attempt = target.ping(client).await;
    if attempt.outcome == Outcome::Delivered {
        Ok(attempt.to_string())
    } else {
        Err(attempt.to_string())
    }
}
