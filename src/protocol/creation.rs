//! Creating a link: save it, call Dojo, store the outcome.
//!
//! Dojo documents no idempotency key for creation, so safety depends on the order of the steps: the link is saved before
//! Dojo is called, its id is in the intent's metadata, and only a failure that proves that nothing was created makes the link
//! `Failed`. No database connection is in use while waiting for Dojo.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{Context, adoption::adopt_intent};
use crate::{
    dojo::{self, CreatePaymentIntent, PaymentIntent, SendBy},
    payment_link::{
        Failure, FailureKind, NewPaymentLink, PaymentLink, PaymentLinkId, Progress, timeline::Cause,
    },
    store::{
        self, PgPool,
        creation::{
            Admission, CreationState, Draft, Earlier, EarlierRequest, IdempotencyKey, Successor,
        },
        leases::Lease,
    },
    telemetry::causes,
};

/// A caller's request for a link.
#[derive(Debug)]
pub struct Request {
    /// The id that the link gets, unless an earlier request with the same key already has one.
    pub link_id: PaymentLinkId,
    /// Gets the id that the link has, before Dojo is called.
    pub known_id: Arc<OnceLock<PaymentLinkId>>,
    pub new: NewPaymentLink,
    /// The name of the client that sent the request.
    pub client: String,
    pub request_id: String,
    /// Makes retries of the request safe.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The base URL of the link's short address, if it gets one.
    pub short_url_base: Option<Arc<str>>,
    /// The link whose place the new one takes. Nobody can pay it any more.
    pub replaces: Option<PaymentLinkId>,
}

#[derive(Debug)]
pub enum Outcome {
    /// The link was created, now or by an earlier request with the same key. The link is as it is now.
    Created {
        link: Box<PaymentLink>,
        /// Whether an earlier request created it.
        replayed: bool,
    },
    /// Nothing was created, either now or by an earlier request with the same key.
    Failed {
        link_id: PaymentLinkId,
        failure: Failure,
        /// How long Dojo asks to wait before another attempt, if it does.
        retry_after: Option<Duration>,
        /// Whether this is the outcome of an earlier request with the same key.
        replayed: bool,
    },
    /// Dojo's response was lost, so it is not known whether there is an intent. The link stays pending.
    Unknown { link_id: PaymentLinkId },
    /// An earlier request with the same key is in progress, or its outcome is not known yet.
    Running {
        link_id: PaymentLinkId,
        progress: Progress,
    },
    /// The idempotency key was used for a different request.
    KeyReused,
    /// An earlier request had the same key, and the personal data of its link was erased.
    Erased,
    /// Another link has taken the place already, and has not failed.
    Taken(Successor),
    /// The personal data of the link whose place the new one should take was erased.
    ReplacedErased,
}

/// Creates a link, at most once for each idempotency key. An `Err` means that Dojo was not called.
pub async fn create(context: &Context, mut request: Request) -> Result<Outcome, store::Error> {
    let Context { pool, account, .. } = context;
    let cause = Cause::Request {
        client: request.client.clone(),
        request_id: request.request_id.clone(),
    };
    let draft = Draft {
        id: request.link_id,
        environment: account.environment,
        new: &request.new,
        created_by: &request.client,
        cause: &cause,
        lease: account.client.creation_lease(),
        short_url_base: request.short_url_base.as_deref(),
        replaces: request.replaces,
    };
    match store::creation::begin(pool, &draft, request.idempotency_key.as_ref()).await? {
        Admission::Repeated(earlier) => outcome_of(pool, earlier).await,
        Admission::Taken(by) => Ok(Outcome::Taken(by)),
        Admission::ReplacedErased => Ok(Outcome::ReplacedErased),
        Admission::New(link_id, lease) => {
            request.link_id = link_id;
            let _ = request.known_id.set(link_id);
            let saved = SavedRequest {
                lease,
                request,
                cause,
            };
            Ok(Box::pin(saved.finish(context)).await)
        }
    }
}

/// The outcome of an earlier request with this key. `None` if there was none, or if it failed for a reason that may pass.
pub async fn replay(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Outcome>, store::Error> {
    let Some(earlier) = store::creation::earlier(pool, key).await? else {
        return Ok(None);
    };
    let outcome = outcome_of(pool, earlier).await?;
    let may_pass =
        matches!(&outcome, Outcome::Failed { failure, .. } if !failure.reason.is_final());
    Ok((!may_pass).then_some(outcome))
}

/// Waits until the outcome of a creation is known, but not longer than `limit`. Holds no database connection meanwhile.
pub async fn await_outcome(
    pool: &PgPool,
    outcome: Outcome,
    limit: Duration,
) -> Result<Outcome, store::Error> {
    let (Outcome::Unknown { link_id } | Outcome::Running { link_id, .. }) = outcome else {
        return Ok(outcome);
    };
    let replayed = matches!(outcome, Outcome::Running { .. });
    let mut latest = outcome;
    let deadline = Instant::now() + limit;
    let mut wait = Duration::from_millis(100);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(latest);
        }
        tokio::time::sleep(wait.min(left)).await;
        wait = (wait * 2).min(Duration::from_secs(1));
        match store::creation::state_of(pool, link_id).await? {
            Some(CreationState::Pending(progress)) => {
                latest = Outcome::Running { link_id, progress };
            }
            Some(state) => return outcome_in(pool, link_id, state, replayed).await,
            None => return Ok(latest),
        }
    }
}

async fn outcome_of(pool: &PgPool, earlier: Earlier) -> Result<Outcome, store::Error> {
    match earlier {
        Earlier::Same(EarlierRequest { link_id, state }) => {
            outcome_in(pool, link_id, state, true).await
        }
        Earlier::Other => Ok(Outcome::KeyReused),
        Earlier::Erased => Ok(Outcome::Erased),
    }
}

async fn outcome_in(
    pool: &PgPool,
    link_id: PaymentLinkId,
    state: CreationState,
    replayed: bool,
) -> Result<Outcome, store::Error> {
    Ok(match state {
        CreationState::Pending(progress) => Outcome::Running { link_id, progress },
        CreationState::Failed(failure) => Outcome::Failed {
            link_id,
            failure,
            retry_after: None,
            replayed,
        },
        CreationState::Created => match store::links::find(pool, link_id).await? {
            Some(link) => Outcome::Created {
                link: Box::new(link),
                replayed,
            },
            None => Outcome::Unknown { link_id },
        },
    })
}

/// A request whose link is saved, so that Dojo can be called.
#[derive(Debug)]
struct SavedRequest {
    lease: Lease,
    request: Request,
    cause: Cause,
}

impl SavedRequest {
    /// Calls Dojo and stores the outcome.
    ///
    /// From here on an intent may exist, so this returns no errors: an outcome that can't be stored is *unknown*, the link
    /// stays pending, and creation recovery determines the outcome.
    async fn finish(self, context: &Context) -> Outcome {
        let link_id = self.request.link_id;
        let response = context
            .account
            .client
            .create_payment_intent(CreatePaymentIntent {
                link_id,
                new: &self.request.new,
                request_id: &self.request.request_id,
                send_by: SendBy::within(self.lease.left()),
            })
            .await;
        let stored = match response {
            Ok(intent) => self.adopt(context, &intent).await,
            Err(error) => self.store_failure(context, error).await,
        };
        stored.unwrap_or_else(|error| {
            error!(%link_id, error = %causes(&error), "the outcome of a creation could not be stored");
            count("unknown");
            Outcome::Unknown { link_id }
        })
    }

    async fn adopt(
        self,
        context: &Context,
        intent: &PaymentIntent,
    ) -> Result<Outcome, store::Error> {
        let link_id = self.request.link_id;
        // Logged before it is stored: if storing fails, the log is the only record.
        info!(%link_id, payment_intent_id = intent.id, "Dojo created a payment intent");
        let adopted = match adopt_intent(context, link_id, intent, &self.cause).await {
            // The response was not about our request, so it is not known whether our request created an intent.
            Err(error @ store::Error::IntentOfAnotherLink { .. }) => {
                return self.store_lost_response(context, &error.to_string()).await;
            }
            adopted => adopted?,
        };
        count("created");
        Ok(match adopted.link.failure {
            Some(failure) => Outcome::Failed {
                link_id,
                failure,
                retry_after: None,
                replayed: false,
            },
            None => Outcome::Created {
                link: Box::new(adopted.link),
                replayed: false,
            },
        })
    }

    async fn store_lost_response(
        self,
        context: &Context,
        reason: &str,
    ) -> Result<Outcome, store::Error> {
        let link_id = self.request.link_id;
        count("unknown");
        let (pool, lease) = (&context.pool, self.lease);
        store::creation::record_lost_response(pool, link_id, lease, reason, &self.cause).await?;
        Ok(Outcome::Unknown { link_id })
    }

    async fn store_failure(
        self,
        context: &Context,
        error: dojo::Error,
    ) -> Result<Outcome, store::Error> {
        let link_id = self.request.link_id;
        let Some(failure) = error.proves_nothing_was_created() else {
            warn!(%link_id, error = %causes(&error), "Dojo's response to a creation was lost");
            return self.store_lost_response(context, &error.to_string()).await;
        };
        match failure.reason {
            FailureKind::KeyRejected | FailureKind::Misrouted => error!(
                %link_id, error = %causes(&error), detail = failure.detail,
                "no link can be created until the account's API key and DOJO_API_URL are correct"
            ),
            FailureKind::NotReached => {
                warn!(%link_id, error = %causes(&error), "Dojo could not be reached to create a link");
            }
            FailureKind::Rejected | FailureKind::NotCreated | FailureKind::NotDone => {
                info!(%link_id, status = failure.status, "Dojo rejected a payment link");
            }
        }
        count(error.name());
        let (pool, lease, cause) = (&context.pool, self.lease, &self.cause);
        if !store::creation::fail(pool, link_id, lease, &failure, None, cause).await? {
            // This call took so long that it was treated as lost, so an intent may exist after all.
            warn!(%link_id, "the failure arrived after the lease had expired; creation recovery has taken over the link");
            return Ok(Outcome::Unknown { link_id });
        }
        Ok(Outcome::Failed {
            link_id,
            failure,
            retry_after: error.retry_after(),
            replayed: false,
        })
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("payment_links_total", "outcome" => outcome).increment(1);
}
