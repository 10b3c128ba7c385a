//! What the run plays on: a private Postgres, the sandbox, three replicas of the service as the processes they
//! are, and a gate that spreads the webhooks over them.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dojo_sandbox::{Sandbox, Settings};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::postgres::{Postgres, free_port};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

pub const API_KEY: &str = "dpl_chaos_0123456789abcdef0123456789abcdef";
const DOJO_API_KEY: &str = "sk_sandbox_chaos";
const WEBHOOK_SECRET: &str = "whs_chaos_0123456789";
const REPLICAS: usize = 3;

/// What the service's `RECOVERY_SETTLE` is here: search has to lag behind by less, or a second intent may come.
pub const SETTLE: Duration = Duration::from_secs(3);

/// Everything that runs. Dropping it ends all of it.
pub struct Stage {
    pub dojo: Dojo,
    pub replicas: Vec<Replica>,
    pub database: Database,
    pub http: Client,
}

impl Stage {
    pub async fn set(seed: u64, logs: &Path) -> Result<Self> {
        let database = Database::start().await?;
        let http = Client::builder()
            .timeout(Duration::from_secs(5))
            .no_proxy()
            .build()?;
        let ports: Vec<u16> = (0..REPLICAS).map(|_| free_port()).collect();
        let gate = gate(ports.clone(), seed).await?;
        let dojo = Dojo::start(&gate, seed, http.clone()).await?;
        let replicas: Vec<Replica> = ports
            .into_iter()
            .enumerate()
            .map(|(n, port)| Replica {
                name: format!("replica {}", n + 1),
                url: format!("http://127.0.0.1:{port}"),
                settings: settings(port, &database.url, &dojo.url),
                log: logs.join(format!("replica-{}.log", n + 1)),
                process: RefCell::default(),
                up: Cell::new(false),
            })
            .collect();
        for replica in &replicas {
            replica.start(&http).await?;
        }
        Ok(Self {
            dojo,
            replicas,
            database,
            http,
        })
    }

    pub fn any_replica(&self, rng: &mut StdRng) -> &Replica {
        &self.replicas[rng.random_range(0..self.replicas.len())]
    }
}

/// Quick where production is patient, so that a minute here holds what takes hours there.
fn settings(port: u16, database_url: &str, dojo_url: &str) -> Vec<(&'static str, String)> {
    vec![
        ("LISTEN_ADDR", format!("127.0.0.1:{port}")),
        ("DATABASE_URL", database_url.to_owned()),
        ("DATABASE_ACQUIRE_TIMEOUT", "2s".to_owned()),
        ("BOOTSTRAP_API_KEY", API_KEY.to_owned()),
        ("DOJO_API_URL", dojo_url.to_owned()),
        ("DOJO_API_KEY", DOJO_API_KEY.to_owned()),
        ("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET.to_owned()),
        ("DOJO_TIMEOUT", "1s".to_owned()),
        ("RECOVERY_SETTLE", format!("{}s", SETTLE.as_secs())),
        ("POLL_INTERVAL", "100ms".to_owned()),
        ("BACKGROUND_RATE", "200".to_owned()),
        // All callers, readers and operators are one client.
        ("CLIENT_RATE", "100000".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
    ]
}

/// One process of the service.
pub struct Replica {
    pub name: String,
    pub url: String,
    settings: Vec<(&'static str, String)>,
    log: PathBuf,
    process: RefCell<Option<Child>>,
    up: Cell<bool>,
}

impl Replica {
    /// Whether it has been serving since it was last started.
    pub fn is_up(&self) -> bool {
        self.up.get()
    }

    /// Starts it, again and again as an orchestrator does: without its database it does not come up.
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

    /// SIGKILL: it gets no chance to finish anything.
    pub async fn kill(&self) -> Result {
        self.up.set(false);
        let process = self.process.take();
        if let Some(mut process) = process {
            process.kill().await?;
        }
        Ok(())
    }

    /// The status that this path answers; `None` if there is no answer.
    pub async fn answers(&self, http: &Client, path: &str) -> Option<StatusCode> {
        let answer = http.get(format!("{}{path}", self.url)).send().await;
        Some(answer.ok()?.status())
    }
}

/// Starts the service, which stands beside this program's folder.
fn start_program(settings: &[(&'static str, String)], log: &Path) -> Result<Child> {
    let own = std::env::current_exe()?;
    let folder = own
        .ancestors()
        .nth(2)
        .ok_or("the run starts from its build folder")?;
    let program = folder.join("dojo-payment-links");
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

/// Listens where Dojo sends its webhooks, and hands each connection to a replica that takes it, as a load balancer
/// does. A replica that dies cuts what it had.
async fn gate(ports: Vec<u16>, seed: u64) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/webhooks/dojo", listener.local_addr()?);
    let mut rng = StdRng::seed_from_u64(seed);
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let first = rng.random_range(0..ports.len());
            let order: Vec<u16> = (0..ports.len())
                .map(|n| ports[(first + n) % ports.len()])
                .collect();
            tokio::spawn(async move {
                for port in order {
                    if let Ok(mut replica) = TcpStream::connect(("127.0.0.1", port)).await {
                        // A cut is the callers' to notice.
                        let _ = tokio::io::copy_bidirectional(&mut caller, &mut replica).await;
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

    /// `POST /_sandbox/…`; whether it was allowed. What the intent's state forbids is answered 409.
    pub async fn control(&self, path: &str, body: Value) -> Result<bool> {
        let url = format!("{}/_sandbox/{path}", self.url);
        let answer = self.http.post(url).json(&body).send().await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            status => Err(format!("the sandbox answers {status} to {path} {body}").into()),
        }
    }

    /// `DELETE /_sandbox/…`
    pub async fn clear(&self, path: &str) -> Result {
        let url = format!("{}/_sandbox/{path}", self.url);
        self.http.delete(url).send().await?.error_for_status()?;
        Ok(())
    }

    /// `GET /_sandbox/…`: a list.
    pub async fn look(&self, path: &str) -> Result<Vec<Value>> {
        let url = format!("{}/_sandbox/{path}", self.url);
        // At the end the lists are long.
        let request = self.http.get(url).timeout(Duration::from_secs(30));
        let answer = request.send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    /// What the merchant does in Dojo's own portal. It may be refused, and its answer may be lost: the truth is what
    /// the sandbox tells at the end.
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

/// The private Postgres, and a pool to look into it.
pub struct Database {
    pub pool: PgPool,
    url: String,
    server: Arc<Mutex<Postgres>>,
}

impl Database {
    async fn start() -> Result<Self> {
        let server = tokio::task::spawn_blocking(Postgres::start).await?;
        let url = server.url("postgres");
        Ok(Self {
            pool: PgPoolOptions::new().max_connections(4).connect_lazy(&url)?,
            url,
            server: Arc::new(Mutex::new(server)),
        })
    }

    /// Stops it as a power cut does.
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
