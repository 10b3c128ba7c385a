//! An operation on a payment: save it, ask Dojo, keep what came of it, and read the link back.
//!
//! Dojo knows repetitions of refunds alone, by their key. What protects the others is that each stands in the database
//! before Dojo is asked, that a link has one change under way at a time, and that a lost answer is looked for at Dojo
//! before anything is asked again ([`next_step`]).

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tracing::{error, info, warn};

use super::{Context, Error, reconciliation};
use crate::{
    dojo::{self, Account, Operate, PaymentIntent},
    payment_link::{
        Capture, Failure, FailureKind, OperationId, PaymentLink, PaymentLinkId,
        operation::{
            Action, Objection, OperationStatus, Others, Seen, Step, Weighed, after_refusal,
            next_step, pause_before_repetition, permit,
        },
        timeline::Cause,
    },
    store::{
        self, PgPool,
        creation::{IdempotencyKey, Retry},
        leases::Lease,
        operations::{Begun, Draft, Known, Saved, Unsettled},
    },
    telemetry::causes,
};

/// A caller's request for an operation.
#[derive(Debug)]
pub struct Request {
    /// The id of the operation, if it comes to one.
    pub operation_id: OperationId,
    /// The link that it is about.
    pub link_id: PaymentLinkId,
    /// What to do; amounts may be left out.
    pub action: Action,
    /// The name of the client that asks.
    pub client: String,
    /// The request's id.
    pub request_id: String,
    /// The key that makes repetitions of the request one. A refund has to have one.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// Dojo has done it.
    Done {
        /// The operation.
        operation_id: OperationId,
        /// The link as Dojo has it now, or as it was held before where Dojo could not be asked.
        link: Box<PaymentLink>,
        /// Whether Dojo could be asked.
        read_back: bool,
    },
    /// It was done before.
    Replayed {
        /// The operation.
        operation_id: OperationId,
        /// What was answered then. Where the link could not be read back then: the link as it is now. JSON.
        link: String,
    },
    /// Dojo was not asked.
    Objected(Objection),
    /// Dojo could not be asked how much is left to refund, so it was not asked for the refund either.
    NotRead(Error),
    /// It was not done; now, or when the same request was made before.
    Failed {
        /// The operation.
        operation_id: OperationId,
        /// Why.
        failure: Failure,
        /// Dojo's wish before another try, where it has one.
        retry_after: Option<Duration>,
        /// Whether this is what an earlier request with the same key came to.
        replayed: bool,
    },
    /// Dojo's answer was lost, so nobody knows yet.
    Unknown {
        /// The operation.
        operation_id: OperationId,
    },
    /// Dojo's answer was lost when the same request was made before, and nobody can tell any more.
    Unconfirmed {
        /// The operation.
        operation_id: OperationId,
    },
    /// The same request is being worked on, or its outcome is not known yet.
    Running {
        /// The operation.
        operation_id: OperationId,
    },
    /// The idempotency key belongs to another request.
    KeyReused,
    /// There is no such link.
    NoSuchLink,
}

/// Does an operation, at most once for each idempotency key. An `Err` means that Dojo was not asked to do it.
pub async fn carry_out(context: &Context, request: Request) -> Result<Outcome, store::Error> {
    let Context { pool, account, .. } = context;
    let cause = Cause::Request {
        client: request.client.clone(),
        request_id: request.request_id.clone(),
    };
    let dojo_key = request.idempotency_key.as_ref().map(dojo_key);
    let draft = Draft {
        id: request.operation_id,
        link_id: request.link_id,
        action: &request.action,
        dojo_key: dojo_key.as_deref().filter(|_| is_refund(&request.action)),
        created_by: &request.client,
        cause: &cause,
        lease: account.client.operation_lease(),
    };
    let key = request.idempotency_key.as_ref();
    let begun = if is_refund(&request.action) {
        begin_refund(context, &draft, key).await
    } else {
        begin(context, &draft, key).await
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err(Error::Store(error)) => return Err(error),
        Err(error) => return Ok(Outcome::NotRead(error)),
    };
    let saved = match begun {
        Begun::New(saved) => saved,
        Begun::Objected(objection) => {
            let unclear = objection == Objection::Unclear;
            let outcome = if unclear { "unclear" } else { "not_possible" };
            count(&request.action, outcome);
            return Ok(Outcome::Objected(objection));
        }
        begun => return repeated(pool, request.link_id, begun).await,
    };
    let asking = Asking {
        context,
        operation_id: request.operation_id,
        link_id: request.link_id,
        request_id: &request.request_id,
        dojo_key: draft.dojo_key,
        cause: &cause,
        saved: *saved,
    };
    Ok(asking.finish().await)
}

/// Saves an operation other than a refund, if its rules allow it.
async fn begin(
    context: &Context,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Begun, Error> {
    let (pool, window) = (&context.pool, context.limits.window);
    let rules = |action: &mut Action, link: &_, others: &_| {
        let weighed = Weighed {
            at: OffsetDateTime::now_utc(),
            read_since: None,
            window,
        };
        permit(action, link, others, weighed)
    };
    let whole = is_whole(draft.action);
    if whole {
        if let Some(key) = key
            && let Some(begun) = store::operations::known(pool, key).await?
        {
            return Ok(begun);
        }
        // "All that is left" is what Dojo has left, and what is held may be behind.
        read_back(context, draft.link_id, draft.cause).await?;
    }
    let begun = store::operations::begin(pool, draft, key, rules).await?;
    if whole || !matches!(begun, Begun::Objected(Objection::NotPossible(_))) {
        return Ok(begun);
    }
    // What is held may be behind: the customer may have paid a moment ago. Dojo decides, if it can be asked. Meanwhile
    // another copy of this request may have been let through, and then this one is a repetition.
    read_back(context, draft.link_id, draft.cause).await?;
    Ok(store::operations::begin(pool, draft, key, rules).await?)
}

/// How often Dojo is asked how much is left, if its figure leaves open whether a refund fits.
const READS_FOR_A_REFUND: usize = 2;

/// Saves a refund, if Dojo has that much left. `Error::Dojo`: Dojo could not be asked.
///
/// Somebody may have refunded in Dojo's portal a moment ago, and no webhook tells of a part. So Dojo is always asked first,
/// and the refund is weighed under the link's lock against figures that are not older than this request.
async fn begin_refund(
    context: &Context,
    draft: &Draft<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<Begun, Error> {
    let (pool, window) = (&context.pool, context.limits.window);
    if let Some(key) = key
        && let Some(begun) = store::operations::known(pool, key).await?
    {
        return Ok(begun);
    }
    let mut begun = Begun::Objected(Objection::Unclear);
    for _ in 0..READS_FOR_A_REFUND {
        // Whether an answer was accepted that was asked for since then is seen under the link's lock.
        let read = read_now(context, draft.link_id, draft.cause).await?;
        let read_since = read.map(|read| read.since);
        let rules = |action: &mut Action, link: &PaymentLink, others: &Others| {
            let weighed = Weighed {
                at: OffsetDateTime::now_utc(),
                read_since,
                window,
            };
            permit(action, link, others, weighed)
        };
        begun = store::operations::begin(pool, draft, key, rules).await?;
        // A refund that is under way may be done by the next time.
        if !matches!(begun, Begun::Objected(Objection::Unclear)) {
            break;
        }
    }
    Ok(begun)
}

/// A reading of a link for one request.
struct FreshRead {
    /// When it was begun, by the database's clock.
    since: OffsetDateTime,
    /// Whether an answer that Dojo was asked for since then is what is held now.
    settled: bool,
}

/// Asks Dojo about the link and writes what it answers. `None` if there is nothing to ask about.
async fn read_now(
    context: &Context,
    link_id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<FreshRead>, Error> {
    const READS: usize = 3;
    let mut since = None;
    // What changes the link meanwhile, such as a webhook, makes the answer one of before it: another read sees both.
    for read in 0..=READS {
        let Some(snapshot) = store::reconciliation::find(&context.pool, link_id).await? else {
            return Ok(None);
        };
        let since = *since.get_or_insert(snapshot.now);
        // Of many requests at once, the answer to one overtakes those to the others; it serves them all.
        let is_fresh = snapshot
            .refunds_read_at
            .is_some_and(|read_at| read_at >= since);
        if read > 0 && is_fresh {
            return Ok(Some(FreshRead {
                since,
                settled: true,
            }));
        }
        if read == READS {
            break;
        }
        let outcome = reconciliation::reconcile_for_caller(context, &snapshot, cause).await?;
        if outcome == reconciliation::Outcome::Accepted {
            return Ok(Some(FreshRead {
                since,
                settled: true,
            }));
        }
    }
    Ok(since.map(|since| FreshRead {
        since,
        settled: false,
    }))
}

/// The key that goes to Dojo: a hash of the caller's key, so that even a restored database cannot refund twice for one
/// key, and of the client's id, because two clients may choose the same key. It must not depend on the client's API key,
/// which changes. 64 characters of at most 100.
fn dojo_key(key: &IdempotencyKey) -> String {
    let hash = Sha256::new()
        .chain_update(key.client_id.as_bytes())
        .chain_update(&key.key)
        .finalize();
    hash.iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// What a request comes to that leads to no operation of its own.
async fn repeated(
    pool: &PgPool,
    link_id: PaymentLinkId,
    begun: Begun,
) -> Result<Outcome, store::Error> {
    match begun {
        Begun::Known(known) => replayed(pool, link_id, *known).await,
        Begun::Mismatch => Ok(Outcome::KeyReused),
        Begun::Objected(objection) => Ok(Outcome::Objected(objection)),
        Begun::New(_) | Begun::NoSuchLink => Ok(Outcome::NoSuchLink),
    }
}

async fn replayed(
    pool: &PgPool,
    link_id: PaymentLinkId,
    known: Known,
) -> Result<Outcome, store::Error> {
    let operation_id = known.id;
    Ok(match (known.status, known.failure) {
        (OperationStatus::Succeeded, _) => {
            let link = match known.response_body {
                Some(body) => Some(body),
                None => store::links::find(pool, link_id).await?.as_ref().map(json),
            };
            link.map_or(Outcome::NoSuchLink, |link| Outcome::Replayed {
                operation_id,
                link,
            })
        }
        (OperationStatus::Failed, Some(failure)) => Outcome::Failed {
            operation_id,
            failure,
            retry_after: None,
            replayed: true,
        },
        (OperationStatus::Unconfirmed, _) => Outcome::Unconfirmed { operation_id },
        (OperationStatus::Pending | OperationStatus::Failed, _) => {
            Outcome::Running { operation_id }
        }
    })
}

fn json(link: &PaymentLink) -> String {
    serde_json::to_string(link).expect("a struct of plain values becomes JSON")
}

/// Asks Dojo about the link and writes what it answers. `false`: it could not be asked, which the log tells.
async fn read_back(
    context: &Context,
    link_id: PaymentLinkId,
    cause: &Cause,
) -> Result<bool, store::Error> {
    match read_now(context, link_id, cause).await {
        Ok(read) => Ok(read.is_some_and(|read| read.settled)),
        Err(Error::Store(error)) => Err(error),
        Err(error) => {
            warn!(%link_id, error = %causes(&error), "the link could not be read back");
            Ok(false)
        }
    }
}

/// An operation that is saved, and that Dojo is to be asked for.
struct Asking<'a> {
    context: &'a Context,
    operation_id: OperationId,
    link_id: PaymentLinkId,
    request_id: &'a str,
    dojo_key: Option<&'a str>,
    cause: &'a Cause,
    saved: Saved,
}

impl Asking<'_> {
    /// Asks Dojo and keeps what came of it.
    ///
    /// From here on it may be done, so there are no errors any more: what cannot be kept is *unknown*, the operation
    /// stays pending, and the background finds out.
    async fn finish(self) -> Outcome {
        let operation_id = self.operation_id;
        let kept = match self.prepare().await {
            Ok(()) => {
                let operate = Operate {
                    payment_intent_id: &self.saved.payment_intent_id,
                    action: &self.saved.action,
                    idempotency_key: self.dojo_key,
                    request_id: self.request_id,
                };
                match self.context.account.client.operate(operate).await {
                    Ok(dojo_id) => self.keep(dojo_id.as_deref()).await,
                    Err(error) => self.not_done(error).await,
                }
            }
            Err(Error::Dojo(error)) => self.not_asked(error).await,
            Err(Error::Store(error)) => Err(error),
            Err(_) => Ok(Outcome::Unknown { operation_id }),
        };
        kept.unwrap_or_else(|error| {
            error!(%operation_id, error = %causes(&error), "what came of an operation could not be kept");
            count(&self.saved.action, "unknown");
            Outcome::Unknown { operation_id }
        })
    }

    /// Notes that Dojo is about to be asked, and what tells a capture from those before it should its answer be lost.
    async fn prepare(&self) -> Result<(), Error> {
        let before = match self.saved.action {
            Action::Capture(_) => Some(
                captures_of(
                    &self.context.account,
                    self.link_id,
                    &self.saved.payment_intent_id,
                )
                .await?,
            ),
            _ => None,
        };
        let (id, lease) = (self.operation_id, self.saved.lease);
        if store::operations::about_to_ask(&self.context.pool, id, lease, before.as_deref()).await?
        {
            Ok(())
        } else {
            Err(Error::TimedOut)
        }
    }

    async fn keep(&self, dojo_id: Option<&str>) -> Result<Outcome, store::Error> {
        let (pool, operation_id, link_id) = (&self.context.pool, self.operation_id, self.link_id);
        let operation = self.saved.action.kind();
        // Said before it is kept: should that fail, the log is where to find it.
        info!(%link_id, %operation_id, operation, dojo_id, "Dojo did an operation");
        (|| store::operations::succeed(pool, operation_id, dojo_id, self.cause))
            .retry(
                ExponentialBuilder::default()
                    .with_min_delay(Duration::from_millis(100))
                    .with_max_times(3),
            )
            .when(store::Error::is_outage)
            .await?;
        count(&self.saved.action, "succeeded");
        let read_back = read_back(self.context, link_id, self.cause).await?;
        let link = store::links::find(pool, link_id).await?;
        let Some(link) = link else {
            return Ok(Outcome::NoSuchLink);
        };
        if read_back {
            store::operations::keep_answer(pool, operation_id, &json(&link)).await?;
        }
        Ok(Outcome::Done {
            operation_id,
            link: Box::new(link),
            read_back,
        })
    }

    /// Keeps that Dojo refused it, or that its answer was lost.
    async fn not_done(&self, error: dojo::Error) -> Result<Outcome, store::Error> {
        let (operation_id, lease) = (self.operation_id, self.saved.lease);
        let action = &self.saved.action;
        if let Some(failure) = error.proves_nothing_was_changed(!is_refund(action)) {
            return self.failed(&error, failure).await;
        }
        let operation = action.kind();
        warn!(%operation_id, operation, error = %causes(&error), "Dojo's answer to an operation was lost");
        count(action, "unknown");
        let reason = error.to_string();
        store::operations::unanswered(&self.context.pool, operation_id, lease, &reason, self.cause)
            .await?;
        Ok(Outcome::Unknown { operation_id })
    }

    /// Keeps that Dojo did not answer what has to be known before it is asked.
    async fn not_asked(&self, error: dojo::Error) -> Result<Outcome, store::Error> {
        let failure = error
            .proves_nothing_was_changed(true)
            .unwrap_or_else(|| Failure {
                reason: FailureKind::NotReached,
                status: None,
                detail: "Dojo did not answer, and was not asked to do it".to_owned(),
                errors: Vec::new(),
            });
        self.failed(&error, failure).await
    }

    async fn failed(&self, error: &dojo::Error, failure: Failure) -> Result<Outcome, store::Error> {
        let (pool, operation_id, lease) = (&self.context.pool, self.operation_id, self.saved.lease);
        let (action, cause) = (&self.saved.action, self.cause);
        let operation = action.kind();
        // Only a refusal of the request itself would be the same next time.
        let retry = match failure.reason {
            FailureKind::Refused => {
                info!(%operation_id, operation, status = failure.status, "Dojo refused an operation");
                Retry::Final
            }
            FailureKind::KeyRefused | FailureKind::Misrouted => {
                error!(
                    %operation_id, operation, error = %causes(error),
                    "no operation can be done until DOJO_API_KEY and DOJO_API_URL are right"
                );
                Retry::Allowed
            }
            _ => {
                warn!(%operation_id, operation, error = %causes(error), "Dojo was not reached");
                Retry::Allowed
            }
        };
        count(action, error.name());
        let failed =
            store::operations::fail(pool, operation_id, lease, &failure, retry, None, cause);
        if !failed.await? {
            // This call took so long that the operation was taken for lost: somebody else sees to it.
            return Ok(Outcome::Unknown { operation_id });
        }
        Ok(Outcome::Failed {
            operation_id,
            failure,
            retry_after: error.retry_after(),
            replayed: false,
        })
    }
}

/// The ids of the captures that Dojo has for an intent.
async fn captures_of(
    account: &Account,
    link_id: PaymentLinkId,
    payment_intent_id: &str,
) -> Result<Vec<String>, Error> {
    let intent = account
        .client
        .payment_intent(payment_intent_id, Some(link_id))
        .await?;
    let captures = intent
        .and_then(|intent| intent.captures)
        .unwrap_or_default();
    Ok(captures
        .into_iter()
        .filter_map(|capture| capture.id)
        .collect())
}

/// Takes the next step for an operation whose outcome is not known and that nobody else works on.
pub async fn resolve(context: &Context, unsettled: &Unsettled) -> Result<(), Error> {
    let Context {
        pool,
        account,
        limits,
        ..
    } = context;
    let limits = *limits;
    let Unsettled {
        id, lease: held, ..
    } = *unsettled;
    let in_time = unsettled.age() < limits.give_up;
    let intent = account
        .client
        .payment_intent(&unsettled.payment_intent_id, Some(unsettled.link_id))
        .await?;
    let step = if let Some(intent) = &intent {
        next_step(unsettled.lost(), seen(intent), limits)
    } else {
        error!(
            operation_id = %id, payment_intent_id = unsettled.payment_intent_id,
            "Dojo does not know the intent of an operation; is its API key that of another account?"
        );
        if in_time {
            Step::Wait
        } else {
            Step::Unconfirmed
        }
    };
    if unsettled.failed {
        // Given up as not done; a request that was on its way for very long may have done it after all.
        if let Step::Succeeded(dojo_id) = step
            && store::operations::succeed(pool, id, dojo_id.as_deref(), &Cause::Recovery).await?
        {
            error!(operation_id = %id, "an operation that was given up has been done after all");
            count(&unsettled.action, "found");
            return Ok(());
        }
        let again = limits.window.late_check(unsettled.lost().since_asked);
        return Ok(store::operations::give_back(pool, id, held, again).await?);
    }
    match step {
        Step::Succeeded(dojo_id) => succeeded(pool, unsettled, dojo_id.as_deref()).await,
        Step::Wait => {
            let wait = limits.window.recheck_interval();
            Ok(store::operations::give_back(pool, id, held, Some(wait)).await?)
        }
        Step::AskAgain => ask_again(context, unsettled).await,
        Step::Failed(why) => {
            // A capture that was asked for may come to light late. All others show in the intent's state.
            let watch = matches!(unsettled.action, Action::Capture(_))
                .then_some(limits.window.late_interval());
            failed(pool, unsettled, held, &not_done(why), Retry::Final, watch).await
        }
        Step::NeverAsked => {
            let failure = not_done("it never came to asking Dojo");
            failed(pool, unsettled, held, &failure, Retry::Allowed, None).await
        }
        Step::Unconfirmed => unconfirmed(pool, unsettled, held).await,
    }
}

/// Settles an operation that is `Unconfirmed`, on the word of a person who looked at the payment in Dojo's portal.
/// `false` if it is not in doubt.
pub async fn settle(pool: &PgPool, id: OperationId, done: bool) -> Result<bool, store::Error> {
    let in_doubt = store::operations::in_doubt(pool).await?;
    if !in_doubt.iter().any(|operation| operation.id == id) {
        return Ok(false);
    }
    if done {
        store::operations::succeed(pool, id, None, &Cause::Operator).await
    } else {
        let failure = not_done("somebody looked at the payment, and it is not there");
        store::operations::was_not_done(pool, id, &failure, &Cause::Operator).await
    }
}

fn not_done(why: &str) -> Failure {
    Failure {
        reason: FailureKind::NotDone,
        status: None,
        detail: why.to_owned(),
        errors: Vec::new(),
    }
}

fn seen(intent: &PaymentIntent) -> Seen<'_> {
    Seen {
        status: intent.known_status(),
        amount: intent.amount.as_ref().map(|amount| amount.value),
        tips_amount: intent.tips_amount.as_ref().map(|tips| tips.value),
        captured_amount: intent.known_status().zip(intent.total_amount.as_ref()).map(
            |(status, total)| {
                let captures = intent.captures.as_deref().unwrap_or_default();
                Capture::collected(captures, status, total.value)
            },
        ),
        refunded_amount: intent.refunded_amount,
        captures: intent.captures.as_deref(),
    }
}

async fn succeeded(
    pool: &PgPool,
    unsettled: &Unsettled,
    dojo_id: Option<&str>,
) -> Result<(), Error> {
    info!(operation_id = %unsettled.id, operation = unsettled.action.kind(), "a lost operation was done");
    count(&unsettled.action, "found");
    store::operations::succeed(pool, unsettled.id, dojo_id, &Cause::Recovery).await?;
    Ok(())
}

async fn failed(
    pool: &PgPool,
    unsettled: &Unsettled,
    held: Lease,
    failure: &Failure,
    retry: Retry,
    watch: Option<Duration>,
) -> Result<(), Error> {
    let operation = unsettled.action.kind();
    // Dojo's own words stay in the database: they may repeat what a caller wrote about a customer.
    warn!(
        operation_id = %unsettled.id, operation, reason = ?failure.reason, status = failure.status,
        "a lost operation was not done"
    );
    count(&unsettled.action, "given_up");
    let (id, cause) = (unsettled.id, &Cause::Recovery);
    store::operations::fail(pool, id, held, failure, retry, watch, cause).await?;
    Ok(())
}

async fn unconfirmed(pool: &PgPool, unsettled: &Unsettled, held: Lease) -> Result<(), Error> {
    error!(
        operation_id = %unsettled.id, link_id = %unsettled.link_id, operation = unsettled.action.kind(),
        "nobody can tell whether an operation was done: look at the payment in Dojo's portal"
    );
    count(&unsettled.action, "unconfirmed");
    store::operations::unconfirmed(pool, unsettled.id, held, &Cause::Recovery).await?;
    Ok(())
}

/// Asks Dojo again for what may be asked for twice.
async fn ask_again(context: &Context, unsettled: &Unsettled) -> Result<(), Error> {
    let Context {
        pool,
        account,
        limits,
        ..
    } = context;
    let limits = *limits;
    let Unsettled { id, action, .. } = unsettled;
    // Longer than the call can take: whoever has the operation is alone with it until then.
    let lease = account.client.operation_lease();
    let Some(held) = store::operations::ask_again(pool, *id, unsettled.lease, lease).await? else {
        return Ok(());
    };
    let request_id = format!("recovery-{id}");
    let operate = Operate {
        payment_intent_id: &unsettled.payment_intent_id,
        action,
        idempotency_key: unsettled.dojo_key.as_deref(),
        request_id: &request_id,
    };
    let error = match account.client.operate(operate).await {
        Ok(dojo_id) => return succeeded(pool, unsettled, dojo_id.as_deref()).await,
        Err(error) => error,
    };
    let wait = pause_before_repetition(unsettled.age());
    let Some(failure) = error.proves_nothing_was_changed(true) else {
        store::operations::unanswered_again(pool, *id, held, wait).await?;
        return Err(error.into());
    };
    // From here on this try is known to have done nothing, and it is as if it had not been made.
    if failure.reason != FailureKind::Refused {
        store::operations::not_asked(pool, unsettled, held, wait).await?;
        return Err(error.into());
    }
    let intent = match account
        .client
        .payment_intent(&unsettled.payment_intent_id, Some(unsettled.link_id))
        .await
    {
        Ok(intent) => intent,
        Err(error) => {
            store::operations::not_asked(pool, unsettled, held, wait).await?;
            return Err(error.into());
        }
    };
    let step = intent.map_or(Step::Wait, |intent| {
        after_refusal(unsettled.lost(), seen(&intent), limits)
    });
    match step {
        Step::Succeeded(dojo_id) => succeeded(pool, unsettled, dojo_id.as_deref()).await,
        Step::Unconfirmed => unconfirmed(pool, unsettled, held).await,
        // A conflict may still be with a first try of its own that hangs at Dojo.
        Step::Failed(_) if is_refund(action) && failure.status == Some(409) => {
            unconfirmed(pool, unsettled, held).await
        }
        Step::Failed(_) => failed(pool, unsettled, held, &failure, Retry::Final, None).await,
        Step::Wait | Step::AskAgain | Step::NeverAsked => {
            Ok(store::operations::not_asked(pool, unsettled, held, wait).await?)
        }
    }
}

/// Whether it collects all that is left.
fn is_whole(action: &Action) -> bool {
    matches!(action, Action::Capture(_)) && action.amount().is_none()
}

fn is_refund(action: &Action) -> bool {
    matches!(action, Action::Refund(_))
}

fn count(action: &Action, outcome: &'static str) {
    metrics::counter!("operations_total", "operation" => action.kind(), "outcome" => outcome)
        .increment(1);
}
