//! Creating a link: save it, ask Dojo, keep what came of it.
//!
//! Dojo documents no idempotency key for creation, so the order is what protects: the link stands in the
//! database before Dojo is asked, its id travels in the intent's metadata, and only a failure that proves
//! that nothing was created makes the link `Failed`. No connection is held while Dojo works.

use tracing::{error, info, warn};

use super::{Context, adoption::adopt_intent};
use crate::{
    dojo::{self, CreatePaymentIntent, PaymentIntent},
    payment_link::{
        Failure, FailureKind, NewPaymentLink, PaymentLink, PaymentLinkId, timeline::Cause,
    },
    store::{
        self, PgPool,
        creation::{Begun, Draft, IdempotencyKey, Known, Retry},
        leases::Lease,
    },
    telemetry::causes,
};

/// A caller's request for a link.
#[derive(Debug)]
pub struct Request {
    /// The id of the link, if it comes to one.
    pub link_id: PaymentLinkId,
    /// What to create.
    pub new: NewPaymentLink,
    /// The name of the client that asks.
    pub client: String,
    /// The request's id.
    pub request_id: String,
    /// The key that makes repetitions of the request one.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// There is a link to send out.
    Created(Box<PaymentLink>),
    /// There was one already: the body that was answered then.
    Replayed {
        /// The link.
        link_id: PaymentLinkId,
        /// The body.
        body: String,
    },
    /// Nothing was created; now, or when the same request was made before.
    Failed {
        /// The link that came to nothing.
        link_id: PaymentLinkId,
        /// Why.
        failure: Failure,
        /// Dojo's wish before another try, where it has one.
        retry_after: Option<std::time::Duration>,
        /// Whether this is what an earlier request with the same key came to.
        replayed: bool,
    },
    /// Dojo's answer was lost, so nobody knows yet. The link stays pending.
    Unknown {
        /// The link.
        link_id: PaymentLinkId,
    },
    /// The same request is being worked on, or its outcome is not known yet.
    Running {
        /// Its link.
        link_id: PaymentLinkId,
    },
    /// The idempotency key belongs to another request.
    KeyReused,
}

/// Creates a link, at most once for each idempotency key: saves it, unless its key says that this is a repetition,
/// asks Dojo, and keeps what came of it. An `Err` means that Dojo was not asked.
pub async fn create(context: &Context, request: Request) -> Result<Outcome, store::Error> {
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
    };
    let begun = store::creation::begin(pool, &draft, request.idempotency_key.as_ref()).await?;
    match decided(begun) {
        Ok(outcome) => Ok(outcome),
        Err(lease) => {
            let asking = Asking {
                lease,
                request,
                cause,
            };
            Ok(Box::pin(asking.finish(context)).await)
        }
    }
}

/// What an earlier request with this key came to, if there was one.
pub async fn replay(pool: &PgPool, key: &IdempotencyKey) -> Result<Option<Outcome>, store::Error> {
    let known = store::creation::known(pool, key).await?;
    Ok(known.and_then(|begun| decided(begun).ok()))
}

/// The outcome that an earlier request has decided, or the lease to work under.
fn decided(begun: Begun) -> Result<Outcome, Lease> {
    match begun {
        Begun::New(lease) => Err(lease),
        Begun::Mismatch => Ok(Outcome::KeyReused),
        Begun::Known(Known {
            link_id,
            response_body,
            failure,
        }) => Ok(match (response_body, failure) {
            (Some(body), _) => Outcome::Replayed { link_id, body },
            (None, Some(failure)) => Outcome::Failed {
                link_id,
                failure,
                retry_after: None,
                replayed: true,
            },
            (None, None) => Outcome::Running { link_id },
        }),
    }
}

/// A link that is saved, and that Dojo is to be asked for.
#[derive(Debug)]
struct Asking {
    lease: Lease,
    request: Request,
    cause: Cause,
}

impl Asking {
    /// Asks Dojo and keeps what came of it.
    ///
    /// From here on there may be an intent, so there are no errors any more: what cannot be kept is *unknown*, the
    /// link stays pending, and recovery finds out.
    async fn finish(self, context: &Context) -> Outcome {
        let link_id = self.request.link_id;
        let answer = context
            .account
            .client
            .create_payment_intent(CreatePaymentIntent {
                link_id,
                new: &self.request.new,
                request_id: &self.request.request_id,
            })
            .await;
        let kept = match answer {
            Ok(intent) => self.keep(context, &intent).await,
            Err(error) => self.not_created(context, error).await,
        };
        kept.unwrap_or_else(|error| {
            error!(%link_id, error = %causes(&error), "what came of a creation could not be kept");
            count("unknown");
            Outcome::Unknown { link_id }
        })
    }

    async fn keep(
        self,
        context: &Context,
        intent: &PaymentIntent,
    ) -> Result<Outcome, store::Error> {
        let link_id = self.request.link_id;
        // Said before it is kept: should that fail, the log is where to find it.
        info!(%link_id, payment_intent_id = intent.id, "Dojo created a payment intent");
        let confirmed = match adopt_intent(context, link_id, intent, &self.cause).await {
            // This answer was not about our request, so whether that made an intent is not known.
            Err(error @ store::Error::IntentOfAnotherLink { .. }) => {
                count("unknown");
                let (lease, reason) = (self.lease, error.to_string());
                store::creation::unanswered(&context.pool, link_id, lease, &reason, &self.cause)
                    .await?;
                return Ok(Outcome::Unknown { link_id });
            }
            confirmed => confirmed?,
        };
        count("created");
        Ok(match confirmed.link.failure {
            Some(failure) => Outcome::Failed {
                link_id,
                failure,
                retry_after: None,
                replayed: false,
            },
            None => Outcome::Created(Box::new(confirmed.link)),
        })
    }

    async fn not_created(
        self,
        context: &Context,
        error: dojo::Error,
    ) -> Result<Outcome, store::Error> {
        let pool = &context.pool;
        let Self {
            lease,
            request,
            cause,
        } = self;
        let link_id = request.link_id;
        let Some(failure) = error.proves_nothing_was_created() else {
            warn!(%link_id, error = %causes(&error), "Dojo's answer to a creation was lost");
            count("unknown");
            store::creation::unanswered(pool, link_id, lease, &error.to_string(), &cause).await?;
            return Ok(Outcome::Unknown { link_id });
        };
        // Only a refusal of the request itself would be the same next time.
        let retry = if failure.reason == FailureKind::Refused {
            Retry::Final
        } else {
            Retry::Allowed
        };
        match failure.reason {
            FailureKind::KeyRefused | FailureKind::Misrouted => error!(
                %link_id, error = %causes(&error), detail = failure.detail,
                "no link can be created until the account's API key and DOJO_API_URL are right"
            ),
            FailureKind::NotReached => {
                warn!(%link_id, error = %causes(&error), "Dojo was not reached");
            }
            FailureKind::Refused | FailureKind::NotCreated | FailureKind::NotDone => {
                info!(%link_id, status = failure.status, "Dojo refused a payment link");
            }
        }
        count(error.name());
        if !store::creation::fail(pool, link_id, lease, &failure, retry, None, &cause).await? {
            // This call took so long that the link was taken for lost: it may well be alive.
            warn!(%link_id, "this failure came too late; somebody else sees to the link");
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
