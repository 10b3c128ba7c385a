use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use dojo_payment_links::{
    callbacks::{
        client::Outcome,
        endpoint::{
            ChangedEndpoint, DeliveryStatus, Endpoint, EndpointId, Header, LONGEST_OVERLAP,
            NewEndpoint, broken_rules,
        },
        signature::SigningSecret,
    },
    config::{CallbackSettings, DatabaseSettings, Expected, account_name, overlap, web_url},
    payment_link::{EventId, Fault},
    store::{
        self, PgPool,
        callback_endpoints::Refused,
        feed::{Cursor, Unusable},
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::{
    accounts,
    events::{cursor, event_type},
    outcome::{Result, on_database},
    stdout::{print, print_secret},
};

/// Create, list, change and delete callback endpoints, and send events to them again.
#[derive(Debug, Args)]
pub(super) struct CallbackEndpoints {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    #[command(flatten)]
    settings: CallbackSettings,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create an endpoint, and print its signing secret. Its id is printed on standard error.
    ///
    /// The endpoint gets the events that happen from now on. The secret is printed only once, now.
    Create {
        /// Where to send callbacks: an https URL, unless `CALLBACK_ALLOW` permits others.
        #[arg(long, value_parser = url)]
        url: String,
        #[command(flatten)]
        wishes: Wishes,
    },
    /// List all endpoints, one JSON object per line.
    List,
    /// Change an endpoint, and print it. What isn't given stays as it is.
    Change {
        /// The endpoint's id, `cbe_…`.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
        /// Where to send callbacks from now on.
        #[arg(long, value_parser = url)]
        url: Option<String>,
        #[command(flatten)]
        wishes: Wishes,
        /// Send events of every type.
        #[arg(long, conflicts_with = "types")]
        all_types: bool,
        /// Send events about links of every account.
        #[arg(long, conflicts_with = "accounts")]
        all_accounts: bool,
        /// Send no extra header.
        #[arg(long, conflicts_with = "header")]
        no_header: bool,
    },
    /// Delete an endpoint. Nothing more is sent to it, and its deliveries are removed. This can't be undone.
    Delete {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
    },
    /// Give an endpoint a new signing secret, and print it. For a while, callbacks are signed with both.
    RotateSecret {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
        /// How long callbacks are also signed with the current secret, up to 7d.
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = secret_overlap)]
        overlap: Duration,
    },
    /// Send a test event to an endpoint, and print how it responded. Exits with 1 if the event wasn't delivered.
    Ping {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
    },
    /// Pause an endpoint. Nothing is lost: callbacks continue where they stopped once it is resumed.
    Pause {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
    },
    /// Resume an endpoint. Deliveries that wait for another attempt are attempted at once, and get the full number of attempts
    /// again.
    Resume {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
    },
    /// Send events again: all that follow a place in the feed, or one event.
    #[command(group = ArgGroup::new("what").args(["after", "event"]).required(true))]
    Replay {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
        /// Send all events after this place in the feed that are of the endpoint's types and accounts. A place is the `after`
        /// of a response of the API.
        #[arg(long, value_name = "AFTER", value_parser = cursor)]
        after: Option<Cursor>,
        /// Send this event.
        #[arg(long, value_name = "ID", value_parser = event_id)]
        event: Option<EventId>,
    },
    /// List the deliveries to an endpoint, newest event first, one JSON object per line.
    Deliveries {
        /// The endpoint's id.
        #[arg(value_name = "ID", value_parser = endpoint_id)]
        id: EndpointId,
        /// Only deliveries with these statuses, separated by commas: Pending, Delivered, Failed.
        #[arg(long, value_delimiter = ',', value_parser = delivery_status)]
        status: Option<Vec<String>>,
    },
}

/// What an endpoint gets.
#[derive(Debug, Args)]
struct Wishes {
    /// The types of events to send, separated by commas. A new endpoint gets all types by default.
    #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = event_type)]
    types: Option<Vec<String>>,
    /// Send events about links of these accounts, separated by commas. A new endpoint gets those of all accounts by default.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = account_name)]
    accounts: Option<Vec<String>>,
    /// For people. Up to 200 characters.
    #[arg(long, value_name = "TEXT", value_parser = description)]
    description: Option<String>,
    /// An extra header for every callback, `Name: value`.
    #[arg(long, value_name = "HEADER")]
    header: Option<SecretString>,
}

fn endpoint_id(text: &str) -> std::result::Result<EndpointId, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the id of a callback endpoint, cbe_…"))
}

/// Checks the form only. `CALLBACK_ALLOW` says which URLs are permitted.
fn url(text: &str) -> std::result::Result<String, Expected> {
    web_url(text).map(|_| text.to_owned())
}

fn event_id(text: &str) -> std::result::Result<EventId, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the id of an event, evt_…"))
}

fn description(text: &str) -> std::result::Result<String, Expected> {
    (text.chars().count() <= 200)
        .then(|| text.to_owned())
        .ok_or_else(|| Expected::new("at most 200 characters"))
}

fn secret_overlap(text: &str) -> std::result::Result<Duration, Expected> {
    overlap(text)
        .ok()
        .filter(|overlap| *overlap <= LONGEST_OVERLAP)
        .ok_or_else(|| Expected::new("a duration such as 1h, from 0s to 7d"))
}

fn delivery_status(text: &str) -> std::result::Result<String, Expected> {
    text.parse::<DeliveryStatus>()
        .map(|status| status.as_str().to_owned())
        .map_err(|_| Expected::new("Pending, Delivered or Failed"))
}

impl CallbackEndpoints {
    pub(super) async fn run(self) -> Result {
        let settings = &self.settings;
        on_database(&self.database, async |pool| match self.command {
            Command::Create { url, wishes } => create(pool, settings, url, wishes).await,
            Command::List => {
                let endpoints = store::callback_endpoints::list(pool, None).await?;
                if endpoints.is_empty() {
                    eprintln!("There is no callback endpoint.");
                }
                endpoints.iter().try_for_each(print_json)
            }
            Command::Change {
                id,
                url,
                wishes,
                all_types,
                all_accounts,
                no_header,
            } => {
                let header = wishes.header()?;
                check(settings, url.as_deref(), header.as_ref())?;
                accounts::warn_of_unknown(wishes.accounts.as_deref().unwrap_or_default());
                let changed = ChangedEndpoint {
                    url,
                    types: changed(wishes.types, all_types),
                    accounts: changed(wishes.accounts, all_accounts),
                    description: wishes.description.map(Some),
                    header: changed(header, no_header),
                };
                let changed = store::callback_endpoints::change(pool, id, None, &changed).await?;
                let endpoint = changed.ok_or(NO_SUCH_ENDPOINT)?.map_err(refused)?;
                print_json(&endpoint)
            }
            Command::Delete { id } => {
                if store::callback_endpoints::delete(pool, id, None).await? {
                    eprintln!("Endpoint {id} is deleted.");
                    Ok(())
                } else {
                    Err(NO_SUCH_ENDPOINT.into())
                }
            }
            Command::RotateSecret { id, overlap } => {
                let secret = SigningSecret::generate();
                store::callback_endpoints::rotate_secret(pool, id, None, &secret, overlap)
                    .await?
                    .ok_or(NO_SUCH_ENDPOINT)?;
                print_secret(&secret.expose(), ROTATE)
            }
            Command::Ping { id } => ping(pool, settings, id).await,
            Command::Pause { id } => shown(store::callback_endpoints::pause(pool, id, None).await?),
            Command::Resume { id } => {
                shown(store::callback_endpoints::resume(pool, id, None).await?)
            }
            Command::Replay { id, after, event } => replay(pool, id, after, event).await,
            Command::Deliveries { id, status } => deliveries(pool, id, status).await,
        })
        .await
    }
}

const NO_SUCH_ENDPOINT: &str = "there is no callback endpoint with this id";

/// How to get a secret in place of one that could not be printed.
const ROTATE: &str = "create another secret with callback-endpoints rotate-secret";

/// A value to set, `Some(None)` to remove it, or `None` to leave it.
#[expect(clippy::option_option, reason = "to leave, to remove, or a value")]
fn changed<T>(value: Option<T>, remove: bool) -> Option<Option<T>> {
    if remove { Some(None) } else { value.map(Some) }
}

impl Wishes {
    fn header(&self) -> Result<Option<Header>> {
        let Some(header) = &self.header else {
            return Ok(None);
        };
        // Parsed here, because an error of the arguments' parser would show the value.
        let (name, value) = header
            .expose_secret()
            .split_once(':')
            .ok_or("--header must be a name, a colon and a value")?;
        Ok(Some(Header {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
        }))
    }
}

fn check(settings: &CallbackSettings, url: Option<&str>, header: Option<&Header>) -> Result {
    let header = header.map(|header| (header.name.as_str(), header.value.as_str()));
    let faults = broken_rules(url, header, settings.client().allow());
    if faults.is_empty() {
        return Ok(());
    }
    let faults: Vec<_> = faults
        .iter()
        .map(|Fault { pointer, detail }| {
            format!(
                "--{} {detail}",
                pointer.trim_start_matches('/').replace('/', " ")
            )
        })
        .collect();
    Err(faults.join("; ").into())
}

fn refused(refused: Refused) -> &'static str {
    match refused {
        Refused::UrlTaken => "another callback endpoint has this URL",
        Refused::TooMany => "there are too many callback endpoints: delete one",
    }
}

async fn create(pool: &PgPool, settings: &CallbackSettings, url: String, wishes: Wishes) -> Result {
    let header = wishes.header()?;
    check(settings, Some(&url), header.as_ref())?;
    let new = NewEndpoint {
        url,
        types: wishes.types,
        accounts: wishes.accounts,
        description: wishes.description,
        header,
    };
    let secret = SigningSecret::generate();
    let created = store::callback_endpoints::create(pool, &new, &secret).await?;
    let endpoint = created.map_err(refused)?;
    accounts::warn_of_unknown(new.accounts.as_deref().unwrap_or_default());
    eprintln!("The endpoint is {}.", endpoint.id);
    print_secret(&secret.expose(), ROTATE)
}

async fn ping(pool: &PgPool, settings: &CallbackSettings, id: EndpointId) -> Result {
    let target = store::callback_deliveries::target(pool, id, None)
        .await?
        .ok_or(NO_SUCH_ENDPOINT)?;
    let client = settings.client();
    let client = client
        .get()
        .await
        .map_err(|error| format!("callbacks can't be sent: {error}"))?;
    let attempt = target.ping(client).await;
    let outcome = format!("{attempt} in {} ms", attempt.duration.as_millis());
    if attempt.outcome == Outcome::Delivered {
        print(format_args!("{outcome}\n"))?;
        Ok(())
    } else {
        Err(format!("the ping was not delivered: {outcome}").into())
    }
}

async fn replay(
    pool: &PgPool,
    id: EndpointId,
    after: Option<Cursor>,
    event: Option<EventId>,
) -> Result {
    if let Some(after) = after {
        let replayed = store::callback_endpoints::replay_after(pool, id, None, after).await?;
        replayed.ok_or(NO_SUCH_ENDPOINT)?.map_err(|unusable| match unusable {
            Unusable::Pruned => "--after is too old: events after it have been removed",
            Unusable::Foreign => {
                "--after is not a place in this feed: it comes from another database, or from before a backup was restored"
            }
        })?;
        eprintln!("Endpoint {id} will be sent its events after that place again.");
    }
    if let Some(event) = event {
        store::callback_deliveries::target(pool, id, None)
            .await?
            .ok_or(NO_SUCH_ENDPOINT)?;
        if !store::callback_endpoints::replay_event(pool, id, event, None).await? {
            return Err("there is no such event in the feed".into());
        }
        eprintln!("Endpoint {id} will be sent event {event} again.");
    }
    Ok(())
}

async fn deliveries(pool: &PgPool, id: EndpointId, status: Option<Vec<String>>) -> Result {
    const PAGE: i64 = 500;

    if store::callback_endpoints::find(pool, id, None)
        .await?
        .is_none()
    {
        return Err(NO_SUCH_ENDPOINT.into());
    }
    let mut before = None;
    loop {
        let page =
            store::callback_deliveries::list(pool, id, status.as_deref(), None, before, PAGE)
                .await?;
        page.iter().try_for_each(print_json)?;
        let Some(last) = page.last() else {
            if before.is_none() {
                eprintln!("There is no delivery to list.");
            }
            return Ok(());
        };
        before = Some(last.position);
    }
}

fn shown(endpoint: Option<Endpoint>) -> Result {
    print_json(&endpoint.ok_or(NO_SUCH_ENDPOINT)?)
}

fn print_json(value: &impl Serialize) -> Result {
    print(format_args!("{}\n", serde_json::to_string(value)?))?;
    Ok(())
}
