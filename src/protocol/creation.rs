//! Creating a link: save it, ask Dojo, keep what came of it.
//!
//! Dojo documents no idempotency key for creation, so the order is what protects: the link stands in the
//! database before Dojo is asked, its id travels in the intent's metadata, and only a failure that proves
//! that nothing was created makes the link `Failed`. No connection is held while Dojo works.

use sqlx::PgPool;
use tracing::{error, info, warn};

use crate::{
    dojo::{self, Account, CreatePaymentIntent},
    payment_link::{
        Failure, FailureKind, NewPaymentLink, PaymentLink, PaymentLinkId, timeline::Cause,
    },
    store::{
        self,
        creation::{Begun, Draft, IdempotencyKey, Retry},
    },
};

/// A caller's request for a link.
#[derive(Debug)]
pub struct Request {
    /// What to create.
    pub new: NewPaymentLink,
    /// The name of the API key that asks.
    pub api_key: String,
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

/// Creates a link at Dojo, at most once for each idempotency key.
///
/// An `Err` after Dojo was asked leaves the link pending, as a lost answer does: it says nothing about
/// whether there is an intent.
pub async fn create(
    pool: &PgPool,
    account: &Account,
    request: Request,
) -> Result<Outcome, store::Error> {
    let link_id = PaymentLinkId::new();
    let cause = Cause::Request {
        api_key: request.api_key.clone(),
        request_id: request.request_id.clone(),
    };
    let draft = Draft {
        id: link_id,
        environment: account.environment,
        new: &request.new,
        created_by: &request.api_key,
        cause: &cause,
        lease: account.client.creation_lease(),
    };
    match store::creation::begin(pool, &draft, request.idempotency_key.as_ref()).await? {
        Begun::New => {}
        Begun::Mismatch => return Ok(Outcome::KeyReused),
        Begun::Known(known) => {
            return Ok(match (known.response_body, known.failure) {
                (Some(body), _) => Outcome::Replayed {
                    link_id: known.link_id,
                    body,
                },
                (None, Some(failure)) => Outcome::Failed {
                    link_id: known.link_id,
                    failure,
                    retry_after: None,
                    replayed: true,
                },
                (None, None) => Outcome::Running {
                    link_id: known.link_id,
                },
            });
        }
    }

    let answer = account
        .client
        .create_payment_intent(CreatePaymentIntent {
            link_id,
            new: &request.new,
            request_id: &request.request_id,
        })
        .await;
    match answer {
        Ok(intent) => {
            let url = account.checkout_page(&intent.id);
            let confirmed = store::creation::confirm(pool, link_id, &intent, &url, &cause).await?;
            if confirmed.surplus {
                warn!(%link_id, payment_intent_id = intent.id, "this answer came too late; its intent is to be canceled");
            } else {
                info!(%link_id, payment_intent_id = intent.id, "payment link created");
            }
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
        Err(error) => not_created(pool, link_id, error, &cause).await,
    }
}

async fn not_created(
    pool: &PgPool,
    link_id: PaymentLinkId,
    error: dojo::Error,
    cause: &Cause,
) -> Result<Outcome, store::Error> {
    let Some(failure) = error.proves_nothing_was_created() else {
        warn!(%link_id, error = &error as &dyn std::error::Error, "Dojo's answer to a creation was lost");
        count("unknown");
        store::creation::unanswered(pool, link_id, &error.to_string(), cause).await?;
        return Ok(Outcome::Unknown { link_id });
    };
    // Only a refusal of the request itself would be the same next time.
    let retry = match failure.reason {
        FailureKind::Refused | FailureKind::NotCreated => Retry::Final,
        FailureKind::KeyRefused | FailureKind::NotReached => Retry::Allowed,
    };
    match failure.reason {
        FailureKind::KeyRefused => error!(
            %link_id, error = &error as &dyn std::error::Error,
            "Dojo refuses the API key: no link can be created until DOJO_API_KEY is right"
        ),
        FailureKind::NotReached => {
            warn!(%link_id, error = &error as &dyn std::error::Error, "Dojo was not reached");
        }
        FailureKind::Refused | FailureKind::NotCreated => {
            info!(%link_id, status = failure.status, "Dojo refused a payment link");
        }
    }
    count(error.name());
    if !store::creation::fail(pool, link_id, &failure, retry, cause).await? {
        // This call took so long that the link was taken for lost, and settled: it may well be alive.
        warn!(%link_id, "this failure came too late; the link is settled already");
        return Ok(Outcome::Unknown { link_id });
    }
    Ok(Outcome::Failed {
        link_id,
        failure,
        retry_after: error.retry_after(),
        replayed: false,
    })
}

fn count(outcome: &'static str) {
    metrics::counter!("payment_links_total", "outcome" => outcome).increment(1);
}
