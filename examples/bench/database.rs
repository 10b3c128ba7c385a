//! A database of the service, filled with links in the shape in which the service stores them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use dojo_payment_links::payment_link::PaymentLinkId;
use dojo_sandbox::signature;
use rand::{RngExt, seq::index};
use sqlx::{AssertSqlSafe, PgPool};
use test_postgres::free_port;
use uuid::Uuid;

use crate::{
    Result,
    http::{Connection, Request, request},
    lab::{self, API_KEY, Lab, Program, Sandbox, WEBHOOK_SECRET},
    load::Deck,
};

/// How far apart links are in time, in milliseconds. The scripts of pgbench contain this number, too: a link's id follows from
/// its number.
const STEP: i64 = 2500;

/// One of so many links has been paid with a card of its own, and has an amount of its own. The scripts of pgbench contain this
/// number, too.
const RARE: usize = 1000;

/// How many links and stored events a database has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// For the list of few links.
    Small,
    Usual,
    /// With many links, and stored events for each.
    Large,
}

impl Size {
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Usual => "usual",
            Self::Large => "large",
        }
    }
}

pub struct Database {
    pub url: String,
    pub pool: PgPool,
    /// The number of links. They are numbered from 1.
    pub links: u32,
    /// The time of link 0, in milliseconds since 1970.
    pub epoch: i64,
    /// The port of its service.
    pub port: u16,
    /// Knows the intents of the links that receive webhooks.
    pub sandbox: Sandbox,
    /// The intents of links that receive webhooks: a random choice from all.
    from_all: Vec<String>,
    /// A random choice from the newest, of which every database has equally many.
    from_newest: Vec<String>,
}

/// Which links receive webhooks.
#[derive(Debug, Clone, Copy)]
pub enum Receivers {
    /// Any, however old.
    All,
    /// The newest, as many as a usual database has.
    Newest,
}

impl Database {
    /// Creates its tables and fills them.
    pub async fn create(lab: &Lab, size: Size, url: &str) -> Result<Self> {
        let scale = lab.scale;
        let (links, events) = match size {
            Size::Small => (scale.few_links, 0),
            Size::Usual => (scale.links, 0),
            Size::Large => (scale.many_links, scale.events_per_link),
        };
        println!("    creating a database with {links} links");
        let begin = Instant::now();
        let port = free_port();
        let pool = lab::pool(url)?;
        let epoch: i64 =
            sqlx::query_scalar("SELECT (extract(epoch FROM now()) * 1000)::bigint - ($1 + 1) * $2")
                .bind(i64::from(links))
                .bind(STEP)
                .fetch_one(&pool)
                .await?;
        let count = usize::try_from(links)?;
        let newest = count.min(usize::try_from(scale.links)?);
        let choose = |from: usize| {
            let chosen = index::sample(&mut rand::rng(), from, scale.events.min(from));
            // The newest have the highest numbers. Dojo knows nothing of the rare ones.
            let numbers = chosen.iter().map(|n| count - n);
            let numbers = numbers.filter(|n| !n.is_multiple_of(RARE));
            numbers.map(intent_id).collect::<Vec<_>>()
        };
        let database = Self {
            url: url.to_owned(),
            pool,
            links,
            epoch,
            port,
            sandbox: Sandbox::start(lab, Some(port)).await?,
            from_all: choose(count),
            from_newest: choose(newest),
        };
        database.seed(lab, events).await?;
        let chosen: BTreeSet<_> = [&database.from_all, &database.from_newest]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let chosen: Vec<_> = chosen.into_iter().collect();
        database.sandbox.add_paid(&chosen).await?;
        println!("    took {:.0} s", begin.elapsed().as_secs_f64());
        Ok(database)
    }

    /// Starts its service, which uses its sandbox.
    pub async fn start_service(&self, lab: &Lab) -> Result<Program> {
        self.start_service_with(lab, &self.sandbox, &[]).await
    }

    /// Starts its service with another sandbox and other settings.
    pub async fn start_service_with(
        &self,
        lab: &Lab,
        sandbox: &Sandbox,
        settings: &[(&str, &str)],
    ) -> Result<Program> {
        lab::start_service(lab, self, self.port, sandbox, settings).await
    }

    /// Fills the tables with copies of one link that was created through the API, and of its webhook.
    async fn seed(&self, lab: &Lab, events: u32) -> Result {
        let service = self.start_service(lab).await?;
        let mut connection = Connection::open(service.address).await?;
        let created = connection.call(&creation("template")).await?;
        if created.status != 201 {
            let body = String::from_utf8_lossy(created.body);
            return Err(format!("no link was created: {body}").into());
        }
        self.until_stored(1).await?;
        service.stop().await?;

        // Building an index once is faster than adding rows to it one by one.
        let indexes = self.indexes().await?;
        for index in &indexes {
            let drop = format!("DROP INDEX {}", index.name);
            sqlx::query(AssertSqlSafe(drop)).execute(&self.pool).await?;
        }
        let links = async {
            self.fill("payment_links", "true", LINK, 1).await?;
            self.fill("payment_intents", "true", INTENT, 1).await?;
            self.fill("payment_link_events", "kind <> 'webhook'", FIRST_ENTRY, 1)
                .await
        };
        let events = async {
            self.fill("webhook_events", "true", EVENT, events).await?;
            self.fill("payment_link_events", "kind = 'webhook'", ENTRY, events)
                .await
        };
        tokio::try_join!(links, events)?;
        // Two at a time: while one waits for the disk, the other has the processor.
        let (some, others) = indexes.split_at(indexes.len() / 2);
        tokio::try_join!(self.build(some), self.build(others))?;
        self.tidy(lab).await
    }

    async fn build(&self, indexes: &[Index]) -> Result {
        for index in indexes {
            sqlx::query(AssertSqlSafe(index.definition.clone()))
                .execute(&self.pool)
                .await?;
        }
        Ok(())
    }

    /// Adds copies of a template, so many for each link.
    async fn fill(
        &self,
        table: &str,
        template: &str,
        changed: &[(&str, &str)],
        times: u32,
    ) -> Result {
        let copies = self.copies(table, template, changed).await?;
        let mut connection = self.pool.acquire().await?;
        // The copies keep every rule that the foreign keys check, and checking them row by row takes most of the time.
        sqlx::query("SET session_replication_role = replica")
            .execute(&mut *connection)
            .await?;
        sqlx::query(AssertSqlSafe(copies))
            .bind(i32::try_from(self.links)?)
            .bind(self.epoch)
            .bind(i32::try_from(times)?)
            .execute(&mut *connection)
            .await?;
        sqlx::query("SET session_replication_role = DEFAULT")
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// The indexes of the filled tables, without those of constraints.
    async fn indexes(&self) -> Result<Vec<Index>> {
        Ok(sqlx::query_as(
            "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
             FROM pg_index
             WHERE NOT indisunique AND indrelid = ANY($1::regclass[])",
        )
        .bind([
            "payment_links",
            "payment_intents",
            "payment_link_events",
            "webhook_events",
        ])
        .fetch_all(&self.pool)
        .await?)
    }

    /// A statement that copies the rows of a table that are about the first link, `$3` times for each new link, with some
    /// columns changed. It takes the columns from the table, so that one that is added later needs no change here.
    async fn copies(
        &self,
        table: &str,
        template: &str,
        changed: &[(&str, &str)],
    ) -> Result<String> {
        let columns: Vec<String> = sqlx::query_scalar(
            "SELECT column_name::text FROM information_schema.columns
             WHERE table_schema = 'public' AND table_name = $1 AND is_identity = 'NO' ORDER BY ordinal_position",
        )
        .bind(table)
        .fetch_all(&self.pool)
        .await?;
        let value = |column: &String| {
            let change = changed.iter().find(|(name, _)| name == column);
            change.map_or_else(
                || format!("template.{column}"),
                |(_, sql)| (*sql).to_owned(),
            )
        };
        let values: Vec<_> = columns.iter().map(value).collect();
        Ok(format!(
            "INSERT INTO {table} ({columns}) SELECT {values}
             FROM generate_series(1, $1::int) n, generate_series(1, $3::int) m,
                  (SELECT * FROM {table} WHERE {template}) template
             WHERE $2::bigint > 0",
            columns = columns.join(", "),
            values = values.join(", ")
        ))
    }

    /// Vacuums all tables and writes everything to disk, so that all rounds start alike.
    pub async fn tidy(&self, lab: &Lab) -> Result {
        sqlx::query("VACUUM (ANALYZE)").execute(&self.pool).await?;
        lab.checkpoint().await
    }

    /// Makes all links unpaid and not due again, then tidies.
    pub async fn reset(&self, lab: &Lab) -> Result {
        self.make_unpaid().await?;
        self.tidy(lab).await
    }

    /// Makes all links unpaid and not due again, with a new version of each row.
    pub async fn make_unpaid(&self) -> Result {
        sqlx::query(
            "UPDATE payment_links
             SET status = 'Created', dojo_status = 'Created', unsettled_status = NULL, disputed_since = NULL,
                 leased_until = NULL, due_at = now() + interval '6 hours'
             WHERE status <> 'Created' OR due_at < now() + interval '1 hour'",
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Signed webhooks, each with an id of its own: every chosen link is paid.
    pub fn payments(&self, receivers: Receivers) -> Deck {
        let chosen = match receivers {
            Receivers::All => &self.from_all,
            Receivers::Newest => &self.from_newest,
        };
        let requests = chosen.iter().map(|intent| payment(intent));
        Deck::once(requests.collect())
    }

    /// The number of stored events.
    pub async fn stored_events(&self) -> Result<u64> {
        self.count("SELECT count(*) FROM webhook_events").await
    }

    /// Waits until so many events are stored.
    pub async fn until_stored(&self, events: u64) -> Result {
        let wait = async {
            while self.stored_events().await? < events {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_mins(1), wait)
            .await
            .map_err(|_| format!("there were never {events} events"))?
    }

    /// The result of a query that counts.
    pub async fn count(&self, query: &'static str) -> Result<u64> {
        let count: i64 = sqlx::query_scalar(query).fetch_one(&self.pool).await?;
        Ok(u64::try_from(count)?)
    }

    /// The ids in the API of some random links.
    pub fn random_links(&self, count: usize) -> impl Iterator<Item = String> + use<'_> {
        self.random_numbers(count).map(|n| self.link_id(n))
    }

    /// The numbers of some random links.
    pub fn random_numbers(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let all = usize::try_from(self.links).unwrap_or(usize::MAX);
        let chosen = index::sample(&mut rand::rng(), all, count.min(all));
        chosen.into_iter().map(|n| n + 1)
    }

    fn link_id(&self, number: usize) -> String {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        let time = u128::try_from(self.epoch + STEP * number).unwrap_or_default();
        let uuid = (time << 80) | 0x7000_8000_0000_0000_0000;
        PaymentLinkId::from_uuid(Uuid::from_u128(uuid)).to_string()
    }
}

#[derive(sqlx::FromRow)]
struct Index {
    name: String,
    /// The statement that creates it.
    definition: String,
}

/// In what the copies of a link differ. `n` is the number of the link, and `$2` the epoch.
const LINK: &[(&str, &str)] = &[
    (
        "id",
        "(lpad(to_hex($2 + n::bigint * 2500), 12, '0') || '70008000000000000000')::uuid",
    ),
    ("reference", "'Order ' || n"),
    (
        "request",
        "template.request || jsonb_build_object(
             'reference', 'Order ' || n,
             'customer', jsonb_build_object('emailAddress', 'customer-' || n || '@example.com'),
             'metadata', jsonb_build_object('order', n::text))",
    ),
    (
        "amount",
        "CASE WHEN n % 1000 = 0 THEN 1000 + n / 1000 ELSE template.amount END",
    ),
    (
        "payment",
        "CASE WHEN n % 1000 = 0 THEN jsonb_build_object('last4', lpad((n / 1000)::text, 4, '0')) END",
    ),
    (
        "payment_intent_id",
        "'pi_sandbox_bench_' || lpad(n::text, 16, '0')",
    ),
    (
        "url",
        "replace(template.url, template.payment_intent_id, 'pi_sandbox_bench_' || lpad(n::text, 16, '0'))",
    ),
    (
        "created_at",
        "to_timestamp(($2 + n::bigint * 2500) / 1000.0)",
    ),
    (
        "updated_at",
        "to_timestamp(($2 + n::bigint * 2500) / 1000.0)",
    ),
    ("due_at", "now() + interval '6 hours'"),
];

const INTENT: &[(&str, &str)] = &[
    ("id", "'pi_sandbox_bench_' || lpad(n::text, 16, '0')"),
    (
        "payment_link_id",
        "(lpad(to_hex($2 + n::bigint * 2500), 12, '0') || '70008000000000000000')::uuid",
    ),
];

const FIRST_ENTRY: &[(&str, &str)] = &[(
    "payment_link_id",
    "(lpad(to_hex($2 + n::bigint * 2500), 12, '0') || '70008000000000000000')::uuid",
)];

/// `m` is the number of the link's event.
const EVENT: &[(&str, &str)] = &[
    ("dedup_key", "'evt_' || left(md5(n || '-' || m), 22)"),
    (
        "body",
        "convert_to(
             replace(replace(convert_from(template.body, 'UTF8'), template.dedup_key, 'evt_' || left(md5(n || '-' || m), 22)),
                     template.payment_intent_id, 'pi_sandbox_bench_' || lpad(n::text, 16, '0')),
             'UTF8')",
    ),
    ("payment_intent_id", "'pi_sandbox_bench_' || lpad(n::text, 16, '0')"),
    (
        "payment_link_id",
        "(lpad(to_hex($2 + n::bigint * 2500), 12, '0') || '70008000000000000000')::uuid",
    ),
];

const ENTRY: &[(&str, &str)] = &[
    (
        "payment_link_id",
        "(lpad(to_hex($2 + n::bigint * 2500), 12, '0') || '70008000000000000000')::uuid",
    ),
    (
        "cause",
        "jsonb_build_object('type', 'webhook', 'eventId', 'evt_' || left(md5(n || '-' || m), 22))",
    ),
];

/// The number of a link near this one that has a card and an amount of its own.
pub fn rare(number: usize) -> usize {
    (number / RARE).max(1) * RARE
}

/// The last four digits of the card with which the rare link with this number was paid.
pub fn rare_card(number: usize) -> String {
    format!("{:04}", number / RARE)
}

/// The amount of the rare link with this number, in minor units.
pub fn rare_amount(number: usize) -> usize {
    1000 + number / RARE
}

fn intent_id(number: usize) -> String {
    format!("pi_sandbox_bench_{number:016}")
}

/// A request to create a link, under a new key.
pub fn creation(reference: &str) -> Request {
    let key = random_id();
    let body = format!(
        r#"{{"amount":{{"value":100,"currencyCode":"GBP"}},"reference":"{reference}","metadata":{{"order":"{key}"}}}}"#
    );
    let headers = [
        ("authorization", &*format!("Bearer {API_KEY}")),
        ("idempotency-key", &key),
    ];
    request("POST", "/v1/payment-links", &headers, &body)
}

/// A signed webhook that says that an intent has been paid.
fn payment(intent: &str) -> Request {
    let id = random_id();
    let body = format!(
        r#"{{"id":"evt_{id}","event":"payment_intent.status_updated","accountId":"acc_sandbox_0123456789abcdef","createdAt":"2026-01-31T10:46:46.3202622Z","data":{{"paymentIntentId":"{intent}","paymentStatus":"Captured","captureMode":"Auto"}}}}"#
    );
    let signature = signature::sign(WEBHOOK_SECRET, body.as_bytes());
    let headers = [("dojo-signature", &*signature)];
    request("POST", "/webhooks/dojo", &headers, &body)
}

/// As long and as random as Dojo's ids.
fn random_id() -> String {
    format!("{:022x}", rand::rng().random::<u128>() >> 40)
}
