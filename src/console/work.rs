//! Requests that change something: recorded in the audit list before and after, and carried through even if the person's browser
//! hangs up.

use serde_json::Value;
use tracing::{Instrument, error};

use super::{
    api_client::{Answer, post, slug},
    page::{Stop, broken, out_of_order},
    person::Person,
    state::Console,
};
use crate::{
    api::Problem,
    payment_link::PaymentLinkId,
    store::{
        self,
        console_audit::{self, NewEntry},
    },
    telemetry::causes,
};

/// A request to the API that changes something.
pub(super) struct Work {
    /// What it does, for the audit list.
    pub(super) what: String,
    /// The account that it is about. Without a link, it is what the person has sent, so it is recorded only if there is such an
    /// account and the person may see it.
    pub(super) account: Option<String>,
    pub(super) link_id: Option<PaymentLinkId>,
    /// What else identifies it. Nothing personal.
    pub(super) detail: Option<String>,
    pub(super) path: String,
    pub(super) key: String,
    pub(super) body: Option<Value>,
}

impl Work {
    async fn record(
        &self,
        console: &Console,
        person: &Person,
        link_id: Option<PaymentLinkId>,
        outcome: &str,
    ) -> Result<(), store::Error> {
        let entry = NewEntry {
            client: Some((person.who.client_id, &person.who.client)),
            what: &self.what,
            account: self.account.as_deref().filter(|name| {
                let is_own = self.link_id.is_some() || console.state.accounts.get(name).is_some();
                is_own && person.may_see(name)
            }),
            link_id: link_id.or(self.link_id),
            detail: self.detail.as_deref(),
            outcome,
            request_id: &person.request_id,
        };
        console_audit::record(&console.state.pool, &entry).await
    }

    /// Sends the request, as `caller`. Nothing is done without an entry in the audit list.
    pub(super) async fn run(
        self,
        console: &Console,
        person: &Person,
        caller: Person,
    ) -> Result<Result<Answer, Box<Problem>>, Stop> {
        self.record(console, person, None, "requested")
            .await
            .map_err(out_of_order(console, person))?;
        let (here, who) = (console.clone(), person.clone());
        let work = async move {
            let answer = post(
                &here,
                &caller,
                &self.path,
                Some(&self.key),
                self.body.as_ref(),
            )
            .await;
            let (outcome, link_id) = match &answer {
                Ok(answer) => ("done", created(&answer.json())),
                Err(problem) => (slug(problem), problem.payment_link_id),
            };
            // The timeline has it in any case.
            if let Err(error) = self.record(&here, &who, link_id, outcome).await {
                error!(
                    what = self.what,
                    outcome,
                    error = %causes(&error),
                    "an outcome is missing from the console's audit list"
                );
            }
            answer
        };
        let work = console.tasks.spawn(work.in_current_span());
        work.await.map_err(|_| {
            let error = store::Error::Unreadable("a task that has panicked".to_owned());
            broken(console, Some(person), &person.request_id, &error)
        })
    }
}

/// The id of the link that a response contains.
fn created(answer: &Value) -> Option<PaymentLinkId> {
    answer["id"].as_str()?.parse().ok()
}
