//! The forms that do something with a link. Each works without scripts: it is sent, and leads on to a page that says what became
//! of it.
//!
//! A form's address contains the idempotency key of its request from the beginning. So a double click, a reload and the back
//! button repeat the same request, and the person sees the outcome of the first one.

use askama::Template;
use axum::{
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::Response,
};
use serde_json::Value;
use time::OffsetDateTime;
use tracing::warn;
use uuid::Uuid;

use super::{
    amount::show,
    api_client::{Answer, slug},
    deed::{Deed, Requested},
    form::{Field, Form, FormKey, explain, fill},
    link::find,
    page::{
        Layout, Part, Stop, Trouble, forbidden, not_found, out_of_order, page, possible_now,
        redirect, status_of,
    },
    person::Person,
    session::Submission,
    state::Console,
    words::{card, state},
    work::Work,
};
use crate::{
    api::Problem,
    payment_link::{Fault, Money, PaymentLink, operation::ActionKind},
    store::{
        self,
        console_approvals::NewApproval,
        console_audit::{self, NewEntry},
        console_claims::{self, Claim, Verdict},
    },
    telemetry::causes,
};

/// How many approvals about a link are searched for a key.
const APPROVALS: i64 = 200;

/// Why an operation needs a second person.
const ABOVE: &str = "The amount is above the limit for one person.";
const ABOVE_TOGETHER: &str =
    "Together with what was done before, the amount is above the limit for one person.";

/// A form for a link.
#[derive(Template)]
#[template(path = "console/action.html")]
struct ActionPage {
    layout: Layout,
    /// Where the form is sent to.
    to: String,
    back: String,
    /// Where a new form is.
    anew: String,
    name: &'static str,
    meaning: &'static str,
    reference: String,
    id: String,
    sentence: String,
    fields: Vec<Field>,
    /// What is entered, to be looked at once more.
    review: Option<Review>,
    trouble: Option<Trouble>,
    form_token: String,
    key: FormKey,
    /// Whether it was sent before.
    is_sent: bool,
    /// Whether it can't be sent any more.
    is_closed: bool,
    /// What the button does: shows what was entered once more, or sends it.
    step: &'static str,
    button: String,
    is_dangerous: bool,
    /// Why a second person must approve it, if one must.
    approval: Option<&'static str>,
}

/// What was entered.
struct Review {
    amount: String,
    card: Option<String>,
}

/// Whether a person may do something without the approval of another.
enum Alone {
    /// The time at which its amount was claimed, if it is to be released.
    Yes(Option<OffsetDateTime>),
    No,
}

/// What a form is shown with.
struct Shown {
    status: StatusCode,
    fields: Vec<Field>,
    trouble: Option<Trouble>,
    key: FormKey,
    /// What is entered, if it is to be looked at once more.
    requested: Option<Requested>,
    is_closed: bool,
}

impl Shown {
    fn new(fields: Vec<Field>, key: FormKey) -> Self {
        Self {
            status: StatusCode::OK,
            fields,
            trouble: None,
            key,
            requested: None,
            is_closed: false,
        }
    }
}

/// Whether the request has ended without having done anything, so that another one needs a key of its own. In all other cases the
/// same key must be sent again: the request may have taken effect.
pub(super) fn is_over(problem: &Problem) -> bool {
    matches!(
        slug(problem),
        "rejected-by-dojo" | "not-done" | "not-created"
    )
}

/// What to say if an earlier request had the same key, so that this one, which is another, did nothing. The earlier one may have
/// taken effect.
pub(super) fn is_spent(problem: &Problem, request_id: &str) -> Option<Trouble> {
    match slug(problem) {
        "idempotency-key-reused" => Some(sent_otherwise(request_id)),
        "erased" => Some(Trouble::of(problem)),
        _ => None,
    }
}

fn sent_otherwise(request_id: &str) -> Trouble {
    let detail = "This form was sent before, with other values. Nothing was done this time.";
    Trouble::new("Already sent", detail, request_id)
}

/// Whether a request with this key was sent before, and sending it again does nothing new.
pub(super) async fn is_used(
    console: &Console,
    person: &Person,
    key: FormKey,
) -> Result<bool, Stop> {
    let pool = &console.state.pool;
    store::idempotency_keys::is_used(pool, person.who.client_id, &key.to_string())
        .await
        .map_err(out_of_order(console, person))
}

/// A form that somebody has opened.
struct Opened {
    console: Console,
    person: Person,
    deed: Deed,
    link: PaymentLink,
}

impl Opened {
    /// The form in a path, if there is one and the person may use it.
    async fn find(
        console: Console,
        person: Person,
        (id, slug): (String, String),
    ) -> Result<Self, Stop> {
        let deed = Deed::named(&slug).ok_or_else(|| not_found(&console, &person))?;
        if !person.may(deed.scope()) {
            return Err(forbidden(&console, &person, deed.scope()));
        }
        let link = find(&console, &person, &id).await?;
        Ok(Self {
            console,
            person,
            deed,
            link,
        })
    }

    fn path(&self) -> String {
        format!("/links/{}/{}", self.link.id, self.deed.slug())
    }

    async fn show(&self, shown: Shown) -> Result<Response, Stop> {
        let Self {
            console,
            person,
            deed,
            link,
        } = self;
        let is_fine = shown.trouble.is_none();
        let is_asked = is_fine && self.is_asked(shown.key).await?;
        let is_sent = is_asked || (is_fine && is_used(console, person, shown.key).await?);
        let requested = shown.requested.as_ref();
        let amount = requested.and_then(|requested| requested.amount);
        let is_review = requested.is_some() && deed.is_reviewed();
        let approval = if requested.is_some() && !is_sent {
            self.needs_approval(amount).await?
        } else {
            None
        };
        let is_last_step = is_review || !deed.is_reviewed();
        let button = if !is_last_step {
            "Continue".to_owned()
        } else if is_asked || approval.is_some() {
            "Request the approval".to_owned()
        } else {
            deed.button(amount)
        };
        let page_of = ActionPage {
            layout: Layout::new(console, person, Part::Links, deed.name()),
            to: shown.key.address(&self.path()),
            back: format!("/links/{}", link.id),
            anew: self.path(),
            name: deed.name(),
            meaning: deed.meaning(),
            reference: link.terms.reference.clone(),
            id: link.id.to_string(),
            sentence: state(link, OffsetDateTime::now_utc()),
            review: is_review.then(|| Review {
                amount: amount.map(show).unwrap_or_default(),
                card: card(link),
            }),
            fields: shown.fields,
            trouble: shown.trouble,
            form_token: person.token.form_token(),
            key: shown.key,
            is_sent,
            is_closed: shown.is_closed,
            step: if is_last_step { "do" } else { "review" },
            button,
            is_dangerous: deed.is_dangerous() && is_last_step,
            approval,
        };
        Ok(page(shown.status, &page_of))
    }

    /// A form with values that are wrong.
    async fn wrong(
        &self,
        mut fields: Vec<Field>,
        faults: Vec<Fault>,
        key: FormKey,
    ) -> Result<Response, Stop> {
        let rest = explain(&mut fields, faults, |pointer| self.deed.field_of(pointer));
        let trouble = (!rest.is_empty()).then(|| Trouble {
            errors: rest,
            ..Trouble::new(
                "Not sent",
                "The form has these errors:",
                &self.person.request_id,
            )
        });
        self.show(Shown {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            trouble,
            ..Shown::new(fields, key)
        })
        .await
    }

    /// A form whose request has failed.
    async fn failed(
        &self,
        mut fields: Vec<Field>,
        problem: &Problem,
        key: FormKey,
    ) -> Result<Response, Stop> {
        let rest = explain(&mut fields, problem.errors.clone(), |pointer| {
            self.deed.field_of(pointer)
        });
        let mut trouble = Trouble {
            errors: rest,
            ..Trouble::of(problem)
        };
        if is_over(problem) || trouble.instead.is_some() {
            trouble.instead = self.possible().await.or(trouble.instead);
        }
        let key = if is_over(problem) {
            key.successor()
        } else {
            key
        };
        self.show(Shown {
            status: status_of(problem),
            trouble: Some(trouble),
            ..Shown::new(fields, key)
        })
        .await
    }

    /// What the person can do with the link as it is now, if that is known.
    async fn possible(&self) -> Option<String> {
        let id = self.link.id.to_string();
        let link = find(&self.console, &self.person, &id).await.ok()?;
        let window = self.console.state.limits.window;
        let ways = Deed::possible(&link, window, OffsetDateTime::now_utc());
        let ways = ways.iter().filter(|deed| self.person.may(deed.scope()));
        Some(possible_now(ways.map(|deed| deed.name())))
    }

    /// A form that can't be sent any more.
    async fn closed(
        &self,
        status: StatusCode,
        trouble: Trouble,
        key: FormKey,
    ) -> Result<Response, Stop> {
        self.show(Shown {
            status,
            trouble: Some(trouble),
            is_closed: true,
            ..Shown::new(Vec::new(), key)
        })
        .await
    }

    /// Whether the form was sent before and a second person was asked.
    async fn is_asked(&self, key: FormKey) -> Result<bool, Stop> {
        if !self.deed.is_limited() {
            return Ok(false);
        }
        let pool = &self.console.state.pool;
        let approvals = store::console_approvals::of_link(pool, self.link.id, APPROVALS)
            .await
            .map_err(out_of_order(&self.console, &self.person))?;
        let (client_id, key) = (self.person.who.client_id, key.to_string());
        Ok(approvals.iter().any(|approval| {
            approval.requested_by.0 == client_id && approval.idempotency_key == key
        }))
    }

    /// The limit for one person, if it applies.
    fn limit(&self) -> Option<i64> {
        self.console
            .approval_limit
            .filter(|_| self.deed.is_limited())
    }

    /// The kind of operation, if several of them count together.
    fn adds_up(&self) -> Option<ActionKind> {
        self.deed.operation().filter(|_| self.deed.adds_up())
    }

    /// Why a second person must approve an operation that moves or sets this amount, if one must, as far as is known now.
    async fn needs_approval(&self, amount: Option<Money>) -> Result<Option<&'static str>, Stop> {
        let Some(limit) = self.limit() else {
            return Ok(None);
        };
        let Some(amount) = amount.filter(|amount| amount.value <= limit) else {
            return Ok(Some(ABOVE));
        };
        let Some(kind) = self.adds_up() else {
            return Ok(None);
        };
        let pool = &self.console.state.pool;
        let moved = console_claims::moved(pool, self.link.id, kind)
            .await
            .map_err(out_of_order(&self.console, &self.person))?;
        Ok((moved.saturating_add(amount.value) > limit).then_some(ABOVE_TOGETHER))
    }

    /// Whether the person may do it alone. Its amount then counts, even before its operation is saved.
    async fn may_do_alone(&self, key: FormKey, amount: Option<Money>) -> Result<Alone, Stop> {
        let Some(limit) = self.limit() else {
            return Ok(Alone::Yes(None));
        };
        let Some(amount) = amount.filter(|amount| amount.value <= limit) else {
            return Ok(Alone::No);
        };
        let Some(kind) = self.adds_up() else {
            return Ok(Alone::Yes(None));
        };
        let claim = Claim {
            client_id: self.person.who.client_id,
            idempotency_key: &key.to_string(),
            link_id: self.link.id,
            kind,
            amount: amount.value,
        };
        let verdict = console_claims::claim(&self.console.state.pool, &claim, limit)
            .await
            .map_err(out_of_order(&self.console, &self.person))?;
        Ok(match verdict {
            Verdict::Refused => Alone::No,
            Verdict::Claimed(at) => Alone::Yes(Some(at)),
            Verdict::Repeated => Alone::Yes(None),
        })
    }

    /// Ends what was claimed at this time, once the request has ended. Otherwise it ends by itself.
    async fn release(&self, key: FormKey, claimed_at: OffsetDateTime) {
        let pool = &self.console.state.pool;
        let client_id = self.person.who.client_id;
        let key = key.to_string();
        let released = console_claims::release(pool, client_id, &key, claimed_at);
        if let Err(error) = released.await {
            warn!(error = %causes(&error), "what was claimed for an operation counts for some minutes more");
        }
    }

    async fn carry_out(
        &self,
        fields: Vec<Field>,
        requested: Requested,
        key: FormKey,
    ) -> Result<Response, Stop> {
        // A repetition comes first: what it repeats counts by now, and must not count twice.
        if self.is_asked(key).await? {
            return self.ask_for_approval(requested, key).await;
        }
        let was_sent = is_used(&self.console, &self.person, key).await?;
        let mut claimed_at = None;
        if !was_sent {
            match self.may_do_alone(key, requested.amount).await? {
                Alone::Yes(at) => claimed_at = at,
                Alone::No => return self.ask_for_approval(requested, key).await,
            }
        }
        let work = Work {
            what: self.deed.slug().to_owned(),
            account: Some(self.link.account.clone()),
            link_id: Some(self.link.id),
            detail: requested.amount.map(show),
            path: format!(
                "/v1/payment-links/{}/{}",
                self.link.id,
                self.deed.api_name()
            ),
            key: key.to_string(),
            body: requested.body,
        };
        let answer = work
            .run(&self.console, &self.person, self.person.clone())
            .await?;
        // After a 5xx, the request may still be under way.
        let has_ended = answer
            .as_ref()
            .err()
            .is_none_or(|problem| problem.status < 500);
        if has_ended && let Some(claimed_at) = claimed_at {
            self.release(key, claimed_at).await;
        }
        match answer {
            Ok(answer) => Ok(redirect(&self.outcome(&answer, was_sent))),
            Err(problem) => match is_spent(&problem, &self.person.request_id) {
                Some(trouble) => self.closed(status_of(&problem), trouble, key).await,
                None => self.failed(fields, &problem, key).await,
            },
        }
    }

    /// The page that says what became of it.
    fn outcome(&self, answer: &Answer, was_sent: bool) -> String {
        let (id, json) = (self.link.id, answer.json());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = match self.deed {
            Deed::Send => format!("/links/{id}?message={}", text(&json["id"])),
            Deed::Renew if was_sent => return format!("/links/{}?again=yes", text(&json["id"])),
            Deed::Renew => format!("/links/{}?created=yes", text(&json["id"])),
            _ => format!("/links/{id}?operation={}", text(&json["operation"]["id"])),
        };
        if was_sent {
            format!("{path}&again={}", self.deed.slug())
        } else {
            path
        }
    }

    /// Has the operation wait for a second person.
    async fn ask_for_approval(&self, requested: Requested, key: FormKey) -> Result<Response, Stop> {
        let Self {
            console,
            person,
            deed,
            link,
        } = self;
        let (Some(kind), Some(amount)) = (deed.operation(), requested.amount) else {
            return Err(not_found(console, person));
        };
        let mut body = requested.body;
        if link.erased_at.is_some() {
            // Nothing would erase the reason if nobody approved the operation.
            body.as_mut()
                .and_then(Value::as_object_mut)
                .and_then(|body| body.remove("refundReason"));
        }
        let pool = &console.state.pool;
        let new = NewApproval {
            id: Uuid::now_v7(),
            link_id: link.id,
            account: &link.account,
            kind: kind.as_str(),
            amount,
            body: body.as_ref(),
            idempotency_key: &key.to_string(),
            requested_by: person.who.client_id,
            expires_in: console.approval_expiry,
        };
        let detail = show(amount);
        let saved = async {
            let entry = NewEntry {
                client: Some((person.who.client_id, &person.who.client)),
                what: deed.slug(),
                account: Some(&link.account),
                link_id: Some(link.id),
                detail: Some(&detail),
                outcome: "approval requested",
                request_id: &person.request_id,
            };
            console_audit::record(pool, &entry).await?;
            store::console_approvals::request(pool, &new).await
        };
        match saved.await.map_err(out_of_order(console, person))? {
            Some(id) if id == new.id => Ok(redirect(&format!("/approvals/{id}"))),
            Some(id) => Ok(redirect(&format!("/approvals/{id}?again=yes"))),
            None => {
                let trouble = sent_otherwise(&person.request_id);
                self.closed(StatusCode::CONFLICT, trouble, key).await
            }
        }
    }
}

pub(super) async fn show_action(
    State(console): State<Console>,
    person: Person,
    Path(path): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Stop> {
    let opened = Opened::find(console, person, path).await?;
    let Some(key) = FormKey::in_query(query.as_deref()) else {
        return Ok(redirect(&FormKey::generate().address(&opened.path())));
    };
    let fields = opened.deed.fields(&opened.link);
    // Without fields there is nothing to enter, so the button says what it does.
    let requested = if fields.is_empty() {
        opened.deed.read(&Form::parse(b""), &opened.link).ok()
    } else {
        None
    };
    let shown = Shown {
        requested,
        ..Shown::new(fields, key)
    };
    opened.show(shown).await
}

pub(super) async fn submit_action(
    State(console): State<Console>,
    Path(path): Path<(String, String)>,
    Submission { person, form }: Submission,
) -> Result<Response, Stop> {
    let opened = Opened::find(console, person, path).await?;
    // No page of the console sends another key. With a new one, a repetition would be another request.
    let Some(key) = FormKey::of(&form) else {
        return Ok(redirect(&opened.path()));
    };
    let mut fields = opened.deed.fields(&opened.link);
    fill(&mut fields, &form);
    let requested = match opened.deed.read(&form, &opened.link) {
        Ok(requested) => requested,
        Err(faults) => return opened.wrong(fields, faults, key).await,
    };
    let step = form.text("step");
    if step == "do" {
        return opened.carry_out(fields, requested, key).await;
    }
    let shown = Shown {
        requested: (step == "review").then_some(requested),
        ..Shown::new(fields, key)
    };
    opened.show(shown).await
}
