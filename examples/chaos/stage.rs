//! What the run needs: a private Postgres, the sandbox, three replicas of the service as real processes, each with a wire of
//! its own to the database, and a gate that spreads the webhooks over them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    error::Error,
    fs::{File, OpenOptions},
    ops::Deref,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dojo_sandbox::{Sandbox, Settings};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use test_postgres::{Postgres, free_port};
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep},
};

use crate::{mail, mail::MailServer, trouble::Trouble, wire::Wire};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The name of the callers' client.
const CLIENT: &str = "chaos";
const DOJO_API_KEY: &str = "sk_sandbox_chaos";
const WEBHOOK_SECRET: &str = "whs_chaos_0123456789";
const REPLICAS: usize = 3;

/// `RECOVERY_SETTLE` in this run. If search lags behind by more, a surplus intent may be created.
pub const SETTLE: Duration = Duration::from_secs(3);

/// The longest lease: three time limits of a call, and `LEASE_SLACK`.
pub const LEASE: Duration = Duration::from_secs(6);

/// The longest pause that a `Retry-After` from Dojo causes here (`MAX_RETRY_AFTER`). The service varies it by a quarter.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(8);

/// How long one of the run's own calls to the sandbox may take. The machine may be busy, and at the end the lists are long.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that runs. Dropping it ends all of it.
pub struct Stage {
    pub dojo: Dojo,
    pub replicas: Vec<Replica>,
    pub database: Database,
    pub mail: MailServer,
    pub http: Client,
    /// What goes wrong in this run.
    troubles: BTreeSet<Trouble>,
    /// The callers' API key.
    key: RefCell<String>,
}

impl Stage {
    pub async fn set(seed: u64, troubles: BTreeSet<Trouble>, logs: &Path) -> Result<Self> {
        let database = Database::start().await?;
        let http = Client::builder()
            .timeout(Duration::from_secs(5))
            .no_proxy()
            .build()?;
        let ports: Vec<u16> = (0..REPLICAS).map(|_| free_port()).collect();
        let doors: Vec<Arc<Door>> = ports
            .iter()
            .map(|port| {
                Arc::new(Door {
                    port: *port,
                    shut: watch::Sender::default(),
                })
            })
            .collect();
        let gate = gate(doors.clone(), seed).await?;
        let dojo = Dojo::start(&gate, seed, http.clone()).await?;
        let mail = MailServer::start(logs).await?;
        let mut replicas = Vec::new();
        for (n, door) in doors.into_iter().enumerate() {
            let wire = Wire::to(database.port()?).await?;
            let replica = Replica {
                name: format!("replica {}", n + 1),
                url: format!("http://127.0.0.1:{}", door.port),
                settings: settings(door.port, wire.port, mail.port, &dojo.url),
                log: logs.join(format!("replica-{}.log", n + 1)),
                wire,
                door,
                process: RefCell::default(),
                up: Cell::new(false),
                frozen: Cell::new(false),
                interruptions: Cell::new(0),
                taken: Cell::new(false),
            };
            replica.start(&http).await?;
            replicas.push(replica);
        }
        let stage = Self {
            dojo,
            replicas,
            database,
            mail,
            http,
            troubles,
            key: RefCell::default(),
        };
        let scopes = "links:read,links:write,links:send,payments:manage,events:read";
        let key = stage
            .command(&["api-keys", "create", "--name", CLIENT, "--scopes", scopes])
            .await?;
        stage.key.replace(key);
        Ok(stage)
    }

    /// This long, and longer if Dojo asks for absurdly long pauses.
    pub fn patience(&self, usual: Duration) -> Duration {
        if self.has(Trouble::Headers) {
            usual + MAX_RETRY_AFTER.mul_f64(1.25)
        } else {
            usual
        }
    }

    /// Whether this goes wrong in this run.
    pub fn has(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }

    /// The callers' API key at the moment.
    pub fn key(&self) -> String {
        self.key.borrow().clone()
    }

    /// Gives the callers a new key. The old one ends at once.
    pub async fn rotate_key(&self) -> Result {
        let key = self
            .command(&["api-keys", "rotate", "--name", CLIENT, "--overlap", "0s"])
            .await?;
        self.key.replace(key);
        Ok(())
    }

    /// Runs one of the program's commands, as an operator does. Returns its output.
    pub async fn command(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program()?)
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", &self.database.url)
            .env("CALLBACK_ALLOW", CALLBACK_ALLOW)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout)?.trim().to_owned())
        } else {
            let error = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} failed: {error}", arguments.join(" ")).into())
        }
    }

    /// Takes a replica that nothing else is being done to.
    pub fn take_any(&self, rng: &mut StdRng) -> Option<Taken<'_>> {
        let first = rng.random_range(0..self.replicas.len());
        let (before, after) = self.replicas.split_at(first);
        let free = after.iter().chain(before).find(|one| !one.taken.get())?;
        free.taken.set(true);
        Some(Taken(free))
    }

    pub fn any_replica(&self, rng: &mut StdRng) -> &Replica {
        &self.replicas[rng.random_range(0..self.replicas.len())]
    }
}

/// Where the receivers of callbacks are.
const CALLBACK_ALLOW: &str = "127.0.0.1";

/// How long they may take.
pub const CALLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// Shorter times than in production, so that a minute here covers what takes hours there.
fn settings(
    port: u16,
    database_port: u16,
    mail_port: u16,
    dojo_url: &str,
) -> Vec<(&'static str, String)> {
    vec![
        ("LISTEN_ADDR", format!("127.0.0.1:{port}")),
        ("DATABASE_URL", database_url(database_port)),
        ("DATABASE_ACQUIRE_TIMEOUT", "2s".to_owned()),
        ("DATABASE_STATEMENT_TIMEOUT", "4s".to_owned()),
        ("DOJO_API_URL", dojo_url.to_owned()),
        ("DOJO_API_KEY", DOJO_API_KEY.to_owned()),
        ("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET.to_owned()),
        ("DOJO_TIMEOUT", "1s".to_owned()),
        ("LEASE_SLACK", "3s".to_owned()),
        ("RECOVERY_SETTLE", format!("{}s", SETTLE.as_secs())),
        ("POLL_INTERVAL", "100ms".to_owned()),
        ("BACKGROUND_RATE", "200".to_owned()),
        ("MAX_RETRY_AFTER", format!("{}s", MAX_RETRY_AFTER.as_secs())),
        // All callers, readers and operators are one client.
        ("CLIENT_RATE", "100000".to_owned()),
        // Nothing here gets that old, except for what is made older on purpose.
        ("PRUNE_OLDER_THAN", "400d".to_owned()),
        ("CALLBACK_ALLOW", CALLBACK_ALLOW.to_owned()),
        (
            "CALLBACK_TIMEOUT",
            format!("{}s", CALLBACK_TIMEOUT.as_secs()),
        ),
        ("SMTP_URL", format!("smtp://127.0.0.1:{mail_port}?tls=none")),
        ("MAIL_FROM", "pay@example.com".to_owned()),
        ("SMTP_TIMEOUT", format!("{}s", mail::TIMEOUT.as_secs())),
        ("LOG_FORMAT", "json".to_owned()),
    ]
}

fn database_url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// A process of the service.
pub struct Replica {
    pub name: String,
    pub url: String,
    /// The wire to the database.
    pub wire: Wire,
    door: Arc<Door>,
    settings: Vec<(&'static str, String)>,
    log: PathBuf,
    process: RefCell<Option<Child>>,
    up: Cell<bool>,
    frozen: Cell<bool>,
    interruptions: Cell<u32>,
    taken: Cell<bool>,
}

/// A replica that only its taker kills, freezes or starts.
pub struct Taken<'a>(&'a Replica);

impl Deref for Taken<'_> {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        self.0
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
    }
}

impl Replica {
    /// Whether it has been serving since it was last started, and is not frozen.
    pub fn is_up(&self) -> bool {
        self.up.get() && !self.frozen.get()
    }

    /// How often it has been killed or frozen.
    pub fn interruptions(&self) -> u32 {
        self.interruptions.get()
    }

    fn interrupt(&self) {
        self.interruptions.set(self.interruptions.get() + 1);
    }

    /// Starts it, and again if it exits, as an orchestrator does: without its database it doesn't start.
    pub async fn start(&self, http: &Client) -> Result {
        let limit = Instant::now() + Duration::from_mins(1);
        while Instant::now() < limit {
            let mut process = start_program(&self.settings, &self.log)?;
            while process.try_wait()?.is_none() && Instant::now() < limit {
                if self.answers(http, "/healthz").await == Some(StatusCode::OK) {
                    self.process.replace(Some(process));
                    self.up.set(true);
                    return Ok(());
                }
                sleep(Duration::from_millis(50)).await;
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(format!("{} does not start", self.name).into())
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) -> Result {
        self.up.set(false);
        self.interrupt();
        let process = self.process.take();
        if let Some(mut process) = process {
            process.kill().await?;
        }
        Ok(())
    }

    /// Sends SIGSTOP: the process stops, and its connections stay open.
    pub async fn freeze(&self) -> Result {
        self.frozen.set(true);
        self.interrupt();
        self.signal("STOP").await
    }

    /// Sends SIGCONT.
    pub async fn thaw(&self) -> Result {
        self.signal("CONT").await?;
        self.frozen.set(false);
        Ok(())
    }

    async fn signal(&self, signal: &str) -> Result {
        // A process that has exited has no id. Whoever calls the replica notices.
        let id = self.process.borrow().as_ref().and_then(Child::id);
        if let Some(id) = id {
            Command::new("kill")
                .args(["-s", signal, &id.to_string()])
                .status()
                .await?;
        }
        Ok(())
    }

    /// Stops sending it webhooks and cuts those in progress, as a load balancer does with a dead server. Or starts again.
    pub fn shut_off(&self, shut: bool) {
        self.door.shut.send_replace(shut);
    }

    /// The status of a response to a caller; `None` if there is no response.
    pub async fn get(&self, stage: &Stage, path: &str) -> Option<StatusCode> {
        self.get_with(stage, path, &stage.key()).await
    }

    /// The same, with this key.
    pub async fn get_with(&self, stage: &Stage, path: &str, key: &str) -> Option<StatusCode> {
        let request = stage.http.get(format!("{}{path}", self.url));
        Some(request.bearer_auth(key).send().await.ok()?.status())
    }

    /// The status of a response without an API key; `None` if there is no response.
    pub async fn answers(&self, http: &Client, path: &str) -> Option<StatusCode> {
        let answer = http.get(format!("{}{path}", self.url)).send().await;
        Some(answer.ok()?.status())
    }
}

/// The service's program, which is beside this program's folder.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own
        .ancestors()
        .nth(2)
        .ok_or("the run starts from its build folder")?;
    Ok(folder.join("dojo-payment-links"))
}

fn start_program(settings: &[(&'static str, String)], log: &Path) -> Result<Child> {
    let program = program()?;
    let log: File = OpenOptions::new().create(true).append(true).open(log)?;
    Command::new(&program)
        .arg("serve")
        .env_clear()
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let program = program.display();
            format!("{program} does not start: {error}; run script/chaos, which builds it").into()
        })
}

/// Where a replica receives webhooks.
struct Door {
    port: u16,
    shut: watch::Sender<bool>,
}

/// Listens where Dojo sends its webhooks, and passes each connection on to a replica that accepts it, as a load balancer does.
/// A replica that dies cuts its connections.
async fn gate(doors: Vec<Arc<Door>>, seed: u64) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/webhooks/dojo", listener.local_addr()?);
    let mut rng = StdRng::seed_from_u64(seed);
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let first = rng.random_range(0..doors.len());
            let order: Vec<Arc<Door>> = (0..doors.len())
                .map(|n| Arc::clone(&doors[(first + n) % doors.len()]))
                .filter(|door| !*door.shut.borrow())
                .collect();
            tokio::spawn(async move {
                for door in order {
                    if let Ok(mut replica) = TcpStream::connect(("127.0.0.1", door.port)).await {
                        let mut shut = door.shut.subscribe();
                        // A cut is for the sender to notice.
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut caller, &mut replica) => {}
                            _ = shut.wait_for(|shut| *shut) => {}
                        }
                        return;
                    }
                }
            });
        }
    });
    Ok(url)
}

/// The sandbox, in Dojo's place.
pub struct Dojo {
    pub url: String,
    http: Client,
    _sandbox: Sandbox,
}

impl Dojo {
    async fn start(webhook_url: &str, seed: u64, http: Client) -> Result<Self> {
        let sandbox = Sandbox::start(Settings {
            api_key: Some(DOJO_API_KEY.to_owned()),
            webhook_url: Some(webhook_url.to_owned()),
            webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
            ..Settings::default()
        })
        .await?;
        sandbox.seed(seed);
        let dojo = Self {
            url: sandbox.url().to_owned(),
            http,
            _sandbox: sandbox,
        };
        dojo.control(
            "webhook-retries",
            json!({"attempts": 6, "baseDelayMs": 200}),
        )
        .await?;
        Ok(dojo)
    }

    /// `POST /_sandbox/…`. Returns whether it was allowed: the sandbox responds 409 if the intent's state rules it out.
    pub async fn control(&self, path: &str, body: Value) -> Result<bool> {
        let url = format!("{}/_sandbox/{path}", self.url);
        let request = self.http.post(url).json(&body).timeout(CONTROL_TIMEOUT);
        let answer = request.send().await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            status => Err(format!("the sandbox responded {status} to {path} {body}").into()),
        }
    }

    /// `DELETE /_sandbox/…`
    pub async fn clear(&self, path: &str) -> Result {
        let url = format!("{}/_sandbox/{path}", self.url);
        let request = self.http.delete(url).timeout(CONTROL_TIMEOUT);
        request.send().await?.error_for_status()?;
        Ok(())
    }

    /// `GET /_sandbox/…`, which returns a list.
    pub async fn look(&self, path: &str) -> Result<Vec<Value>> {
        let url = format!("{}/_sandbox/{path}", self.url);
        let request = self.http.get(url).timeout(CONTROL_TIMEOUT);
        let answer = request.send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    /// What the merchant does in Dojo's portal. It may be rejected, and the response may be lost. What really happened is read
    /// from the sandbox at the end.
    pub async fn by_hand(&self, method: Method, path: &str, body: Value) {
        let request = self
            .http
            .request(method, format!("{}/payment-intents/{path}", self.url))
            .header("authorization", format!("Basic {DOJO_API_KEY}"))
            .header("version", "2026-02-27")
            .header("idempotencyKey", path);
        let request = if body.is_null() {
            request
        } else {
            request.json(&body)
        };
        let _ = request.send().await;
    }
}

/// The private Postgres, and a pool for looking into it.
pub struct Database {
    pub pool: PgPool,
    /// Locked during each trouble with the database, so that its effect on the replicas can be judged.
    pub trouble: tokio::sync::Mutex<()>,
    url: String,
    server: Arc<Mutex<Postgres>>,
}

impl Database {
    async fn start() -> Result<Self> {
        let server = tokio::task::spawn_blocking(Postgres::start).await?;
        let url = server.url("postgres");
        Ok(Self {
            pool: PgPoolOptions::new().max_connections(4).connect_lazy(&url)?,
            trouble: tokio::sync::Mutex::default(),
            url,
            server: Arc::new(Mutex::new(server)),
        })
    }

    fn port(&self) -> Result<u16> {
        let url = reqwest::Url::parse(&self.url)?;
        Ok(url.port().ok_or("the database's address has a port")?)
    }

    /// From now on, new transactions may write nothing, or may again.
    pub async fn set_read_only(&self, read_only: bool) -> Result {
        let setting = if read_only { "on" } else { "off" };
        let statement = format!("ALTER SYSTEM SET default_transaction_read_only = {setting}");
        sqlx::query(AssertSqlSafe(statement))
            .execute(&self.pool)
            .await?;
        sqlx::query("SELECT pg_reload_conf()")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Stops the server as a power cut does.
    pub async fn stop(&self) -> Result {
        self.order(Postgres::stop).await
    }

    pub async fn resume(&self) -> Result {
        self.order(Postgres::resume).await
    }

    async fn order(&self, order: fn(&mut Postgres)) -> Result {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || {
            order(&mut server.lock().unwrap_or_else(PoisonError::into_inner));
        })
        .await?;
        Ok(())
    }
}
