//! What a person must look at, each with what it means and what to do about it.

use std::time::Duration;

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use time::Date;

use super::{
    book_words::outcome,
    books::{comparison_path, today},
    page::{Layout, Part, Stop, When, day_text, out_of_order, page},
    person::Person,
    runbook::Entry,
    state::Console,
    words::{mismatch, operation_name},
};
use crate::{
    api_key::Scope,
    payment_link::{
        PaymentLink,
        operation::{Operation, OperationStatus},
    },
    store::{
        self,
        attention::{self, Counts, MOST_COUNTED, PATIENCE},
        callback_endpoints,
        daily_reconciliation::newest_differing,
        operations::oldest_open,
    },
};

/// How many items a section shows at most.
const MOST: i64 = 50;

/// How many business days back differences from Dojo's list are shown. The service compares these days by itself.
const DIFFERENCES: time::Duration = time::Duration::days(31);

/// Something to look at.
struct Item {
    /// What it is about.
    name: String,
    /// The path of a page about it.
    path: Option<String>,
    text: String,
    /// The path of the form that settles it.
    settle: Option<String>,
}

/// One kind of things to look at.
struct Section {
    id: &'static str,
    title: &'static str,
    /// What it means, and what to do.
    advice: &'static str,
    runbook: &'static [Entry],
    items: Vec<Item>,
    /// How many there are, up to [`MOST_COUNTED`].
    count: i64,
}

impl Section {
    /// How many there are besides those that are shown.
    fn more(&self) -> Option<String> {
        let shown = i64::try_from(self.items.len()).unwrap_or(MOST);
        // Something may have happened between counting and listing.
        let more = (shown >= MOST).then(|| self.count - shown)?;
        match more {
            ..=0 => None,
            _ if self.count >= MOST_COUNTED => Some(format!("And at least {more} more.")),
            _ => Some(format!("And {more} more.")),
        }
    }
}

#[derive(Template)]
#[template(path = "console/attention.html")]
struct AttentionPage {
    layout: Layout,
    /// Those with items.
    sections: Vec<Section>,
    /// The titles of those without.
    quiet: Vec<&'static str>,
    /// The scope without which failed callbacks aren't shown, if the person lacks it.
    hides_callbacks: Option<Scope>,
}

/// Whose things to look at, and how many there are.
struct Question<'a> {
    console: &'a Console,
    /// The accounts that the person is limited to, if there is a limit.
    open: Option<&'a [String]>,
    counts: Counts,
    may_settle: bool,
    /// The first business day whose differences are shown.
    since: Date,
}

fn operation_item(operation: &Operation, may_settle: bool) -> Item {
    let kind = operation.action.kind().as_str();
    Item {
        name: operation_name(kind, operation.action.amount()),
        path: Some(format!("/links/{}", operation.payment_link_id)),
        text: format!(
            "requested by {} on {}",
            operation.created_by,
            When(operation.created_at).text()
        ),
        settle: may_settle.then(|| format!("/operations/{}", operation.id)),
    }
}

fn link_item(link: &PaymentLink, text: String) -> Item {
    Item {
        name: link.terms.reference.clone(),
        path: Some(format!("/links/{}", link.id)),
        text,
        settle: None,
    }
}

impl Question<'_> {
    async fn unconfirmed_operations(&self) -> Result<Section, store::Error> {
        let (pool, status) = (&self.console.state.pool, OperationStatus::Unconfirmed);
        let found = oldest_open(pool, status, self.open, Duration::ZERO, MOST).await?;
        Ok(Section {
            id: "unconfirmed",
            title: "Operations with an unconfirmed outcome",
            advice: "Dojo’s response was lost, and nothing at Dojo shows whether the operation was done. Look at the payment in \
                     Dojo’s portal, and record what you find. Don’t request it again until then.",
            runbook: &[Entry::OperationUnconfirmed],
            items: found
                .iter()
                .map(|operation| operation_item(operation, self.may_settle))
                .collect(),
            count: self.counts.unconfirmed_operations,
        })
    }

    async fn pending_operations(&self) -> Result<Section, store::Error> {
        let (pool, status) = (&self.console.state.pool, OperationStatus::Pending);
        let found = oldest_open(pool, status, self.open, PATIENCE, MOST).await?;
        Ok(Section {
            id: "pending-operations",
            title: "Operations that are taking a long time",
            advice: "The service finds out what became of them, as soon as Dojo responds. If they stay here, see Health: at least \
                     one replica must run background jobs.",
            runbook: &[Entry::OperationStaysPending],
            items: found
                .iter()
                .map(|operation| operation_item(operation, false))
                .collect(),
            count: self.counts.pending_operations,
        })
    }

    async fn mismatches(&self) -> Result<Section, store::Error> {
        let links = attention::mismatches(&self.console.state.pool, self.open, MOST).await?;
        Ok(Section {
            id: "mismatches",
            title: "Links with another amount at Dojo",
            advice: "Dojo would charge a different amount from the one that was requested. Don’t send such a link out. Cancel \
                     it, or if it is paid, reverse or refund it. Then find out how it happened.",
            runbook: &[Entry::DifferentAmount],
            items: links
                .iter()
                .map(|link| link_item(link, mismatch(link).unwrap_or_default()))
                .collect(),
            count: self.counts.mismatches,
        })
    }

    async fn paid_surplus(&self) -> Result<Section, store::Error> {
        let found = attention::paid_surplus(&self.console.state.pool, self.open, MOST).await?;
        Ok(Section {
            id: "surplus",
            title: "Second payments for one link",
            advice: "Somebody paid a second payment before it could be cancelled. Refund it in Dojo’s portal: it belongs to no \
                     link, so it can’t be refunded here. It is shown for 90 days.",
            runbook: &[Entry::SurplusPaid],
            items: found
                .into_iter()
                .map(|surplus| Item {
                    name: surplus.reference,
                    path: Some(format!("/links/{}", surplus.link_id)),
                    text: format!(
                        "intent {} of account {}, found on {}",
                        surplus.payment_intent_id.unwrap_or_default(),
                        surplus.account,
                        When(surplus.found_at).text()
                    ),
                    settle: None,
                })
                .collect(),
            count: self.counts.paid_surplus,
        })
    }

    async fn pending_links(&self) -> Result<Section, store::Error> {
        let links = attention::pending(&self.console.state.pool, self.open, MOST).await?;
        Ok(Section {
            id: "pending",
            title: "Links that are not created yet",
            advice: "Dojo’s response was lost, and the service is finding out what happened. If they stay here although Dojo \
                     responds, see Health: a replica must run background jobs.",
            runbook: &[Entry::LinksStayPending],
            items: links
                .iter()
                .map(|link| {
                    let text = format!("requested on {}", When(link.created_at).text());
                    link_item(link, text)
                })
                .collect(),
            count: self.counts.pending_links,
        })
    }

    async fn unconfirmed_links(&self) -> Result<Section, store::Error> {
        let links = attention::unconfirmed(&self.console.state.pool, self.open, MOST).await?;
        Ok(Section {
            id: "unconfirmed-links",
            title: "Links that Dojo hasn’t confirmed",
            advice: "Something was reported about them, and Dojo’s own response doesn’t agree yet. Don’t rely on their status. \
                     Read them from Dojo now. If Dojo keeps contradicting itself, ask Dojo, quoting the intent’s id.",
            runbook: &[Entry::BehindWebhooks, Entry::ContradictsItself],
            items: links
                .iter()
                .map(|link| {
                    let at = When(link.updated_at).text();
                    link_item(link, format!("{} since {at}", link.status.as_str()))
                })
                .collect(),
            count: self.counts.unconfirmed_links,
        })
    }

    async fn differences(&self) -> Result<Section, store::Error> {
        let pool = &self.console.state.pool;
        let days = newest_differing(pool, self.open, self.since, MOST).await?;
        Ok(Section {
            id: "differences",
            title: "Differences between the books and Dojo",
            advice: "On these business days, the books and Dojo’s list of transactions don’t agree. Open a day to see each \
                     difference and what to do about it. A day is compared again for a week, because Dojo may list \
                     transactions late. It is shown until a comparison finds no difference, for 31 days at most.",
            runbook: &[Entry::BooksDiffer],
            items: days
                .iter()
                .map(|day| Item {
                    name: format!("{}, account {}", day_text(day.business_day), day.account),
                    path: Some(comparison_path(day)),
                    text: format!(
                        "{}; compared on {}",
                        outcome(day),
                        When(day.reconciled_at).text()
                    ),
                    settle: None,
                })
                .collect(),
            count: self.counts.differing_days,
        })
    }

    async fn failed_callbacks(&self) -> Result<Section, store::Error> {
        let found = attention::failed_callbacks(&self.console.state.pool, self.open, MOST).await?;
        Ok(Section {
            id: "callbacks",
            title: "Callbacks that failed",
            advice: "Another system didn’t accept an event in 10 attempts over about 3 days. Ask its owner. Once it is repaired, \
                     an operator sends the events again with callback-endpoints replay.",
            runbook: &[Entry::CallbackFailed],
            items: found
                .into_iter()
                .map(|failed| Item {
                    name: failed.kind,
                    path: Some(format!("/links/{}", failed.link_id)),
                    text: format!(
                        "not accepted by {} ({}){}",
                        failed.url,
                        failed.endpoint_id,
                        failed
                            .attempted_at
                            .map(|at| format!(", last on {}", When(at).text()))
                            .unwrap_or_default()
                    ),
                    settle: None,
                })
                .collect(),
            count: self.counts.failed_callbacks,
        })
    }

    async fn paused_endpoints(&self) -> Result<Section, store::Error> {
        let endpoints = callback_endpoints::list(&self.console.state.pool, self.open).await?;
        let items: Vec<_> = endpoints
            .into_iter()
            .filter_map(|endpoint| {
                let why = endpoint.pause_reason?;
                Some(Item {
                    name: endpoint.url,
                    path: None,
                    text: format!("{} is paused: {}", endpoint.id, why.as_str()),
                    settle: None,
                })
            })
            .collect();
        Ok(Section {
            id: "endpoints",
            title: "Callback endpoints that are paused",
            advice: "Nothing is sent to them, and nothing is lost. Ask their owners. Once an endpoint works again, an operator \
                     resumes it with callback-endpoints resume.",
            runbook: &[Entry::EndpointPaused],
            count: i64::try_from(items.len()).unwrap_or(MOST_COUNTED),
            items,
        })
    }

    async fn sections(&self, may_see_callbacks: bool) -> Result<Vec<Section>, store::Error> {
        let mut sections = vec![
            self.unconfirmed_operations().await?,
            self.paid_surplus().await?,
            self.mismatches().await?,
            self.unconfirmed_links().await?,
            self.pending_links().await?,
            self.pending_operations().await?,
            self.differences().await?,
        ];
        if may_see_callbacks {
            sections.push(self.failed_callbacks().await?);
            sections.push(self.paused_endpoints().await?);
        }
        Ok(sections)
    }
}

pub(super) async fn show_attention(
    State(console): State<Console>,
    person: Person,
) -> Result<Response, Stop> {
    let since = today(&console, &person).await?.saturating_sub(DIFFERENCES);
    let (pool, open) = (&console.state.pool, person.accounts());
    let may_see_callbacks = person.may(Scope::CallbacksManage);
    let found = async {
        let question = Question {
            console: &console,
            open,
            counts: attention::counts(pool, open, since).await?,
            may_settle: person.may(Scope::PaymentsManage),
            since,
        };
        question.sections(may_see_callbacks).await
    };
    let found = found.await.map_err(out_of_order(&console, &person))?;
    let (sections, quiet): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|section| !section.items.is_empty());
    let page_of = AttentionPage {
        layout: Layout::new(&console, &person, Part::Attention, "Needs attention"),
        sections,
        quiet: quiet.iter().map(|section| section.title).collect(),
        hides_callbacks: (!may_see_callbacks).then_some(Scope::CallbacksManage),
    };
    Ok(page(StatusCode::OK, &page_of))
}
