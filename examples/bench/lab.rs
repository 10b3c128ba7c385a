//! What the rows share: a private Postgres on disk, and programs that run beside it, each as a process of its own.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    rc::Rc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use test_postgres::{Postgres, free_port};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::{
    Result,
    database::{Database, Size},
    http::{Connection, request},
    scale::Scale,
};

/// The API key of the bench's client, which has all scopes.
pub const API_KEY: &str = "dpl_bench_0123456789abcdef0123456789abcdef";
pub const DOJO_API_KEY: &str = "sk_sandbox_bench";
pub const WEBHOOK_SECRET: &str = "whs_bench_0123456789";

/// How long a program may take to start or to stop.
const PATIENCE: Duration = Duration::from_mins(1);

/// Everything that runs. Dropping it ends all of it.
pub struct Lab {
    pub scale: Scale,
    pub http: reqwest::Client,
    /// The first database of the server, for orders to the server itself.
    pub admin: PgPool,
    /// Where the programs' logs are.
    pub folder: PathBuf,
    databases: BTreeMap<Size, Rc<Database>>,
    server: Postgres,
}

impl Lab {
    pub async fn set_up(scale: Scale, folder: &Path) -> Result<Self> {
        let server = tokio::task::spawn_blocking(Postgres::start_durable).await?;
        Ok(Self {
            scale,
            http: reqwest::Client::builder().no_proxy().build()?,
            admin: pool(&server.url("postgres"))?,
            folder: folder.to_owned(),
            databases: BTreeMap::new(),
            server,
        })
    }

    /// The database of this size. It is created when the first row needs it.
    pub async fn database(&mut self, size: Size) -> Result<Rc<Database>> {
        if let Some(database) = self.databases.get(&size) {
            return Ok(Rc::clone(database));
        }
        let name = size.name();
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&self.admin)
            .await?;
        let url = self.server.url(name);
        let database = Rc::new(Database::create(self, size, &url).await?);
        self.databases.insert(size, Rc::clone(&database));
        Ok(database)
    }

    /// Writes everything to disk, so that no round pays for the one before.
    pub async fn checkpoint(&self) -> Result {
        sqlx::query("CHECKPOINT").execute(&self.admin).await?;
        Ok(())
    }
}

pub fn pool(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(2).connect_lazy(url)?)
}

/// A running program. Dropping it kills it.
pub struct Program {
    name: &'static str,
    child: Child,
    pub address: SocketAddr,
}

impl Program {
    /// Starts a program that will listen on this port.
    fn start(
        name: &'static str,
        port: u16,
        folder: &Path,
        command: &mut Command,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join(format!("{name}.log")))?;
        let child = command
            .env_clear()
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{name} does not start: {error}"))?;
        Ok(Self {
            name,
            child,
            address: (Ipv4Addr::LOCALHOST, port).into(),
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until a request to this path succeeds.
    async fn ready(&mut self, path: &str) -> Result {
        let request = request("GET", path, &[], "");
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended with {status}; see its log", self.name).into());
            }
            if let Ok(mut connection) = Connection::open(self.address).await
                && let Ok(response) = connection.call(&request).await
                && response.is_success()
            {
                return Ok(());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Err(format!("{} is not ready after {PATIENCE:?}", self.name).into())
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn stop(mut self) -> Result {
        if let Some(id) = self.child.id() {
            Command::new("kill").arg(id.to_string()).status().await?;
        }
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .map_err(|_| format!("{} does not stop", self.name))??;
        Ok(())
    }

    /// The memory that the process has in RAM (RSS), in MiB.
    pub async fn memory(&self) -> Result<f64> {
        let id = self.child.id().ok_or("the process has ended")?;
        let output = Command::new("ps")
            .args(["-o", "rss=", "-p", &id.to_string()])
            .output()
            .await?;
        let kib: u32 = String::from_utf8(output.stdout)?.trim().parse()?;
        Ok(f64::from(kib) / 1024.0)
    }
}

/// The folder of the programs of this workspace, which is the parent of the bench's own.
pub fn build_folder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().nth(2);
    Ok(folder
        .ok_or("the bench starts from its build folder")?
        .to_owned())
}

/// The service with its default settings, except for these: where everything is, and `CLIENT_RATE`, because all requests come
/// from one client.
pub async fn start_service(
    lab: &Lab,
    database: &Database,
    port: u16,
    sandbox: &Sandbox,
    more: &[(&str, &str)],
) -> Result<Program> {
    let (listen, url) = (format!("127.0.0.1:{port}"), sandbox.program.url());
    let checkout = format!("{url}/checkout");
    let mut settings = vec![
        ("LISTEN_ADDR", listen.as_str()),
        ("DATABASE_URL", &database.url),
        ("BOOTSTRAP_API_KEY", API_KEY),
        ("DOJO_API_URL", &url),
        ("DOJO_CHECKOUT_URL", &checkout),
        ("DOJO_API_KEY", DOJO_API_KEY),
        ("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET),
        ("CLIENT_RATE", "1000000"),
    ];
    settings.extend_from_slice(more);
    let mut command = Command::new(build_folder()?.join("dojo-payment-links"));
    let command = command.arg("serve");
    let mut program = Program::start("dojo-payment-links", port, &lab.folder, command, &settings)?;
    program.ready("/readyz").await?;
    Ok(program)
}

/// The receiver in Node.js.
pub async fn start_fastify(lab: &Lab, database: &Database) -> Result<Program> {
    let port = free_port();
    let path = std::env::var("PATH")?;
    let mut command = Command::new("node");
    let command = command.arg("examples/bench/fastify/server.js");
    let settings = [
        ("PATH", path.as_str()),
        ("NODE_ENV", "production"),
        ("PORT", &port.to_string()),
        ("DATABASE_URL", &database.url),
        ("WEBHOOK_SECRET", WEBHOOK_SECRET),
    ];
    let mut program = Program::start("fastify", port, &lab.folder, command, &settings)?;
    program.ready("/readyz").await?;
    Ok(program)
}

/// The sandbox, in Dojo's place.
pub struct Sandbox {
    pub program: Program,
    http: reqwest::Client,
}

impl Sandbox {
    /// Starts one that sends its webhooks to the service on this port, or to nobody.
    pub async fn start(lab: &Lab, service_port: Option<u16>) -> Result<Self> {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let webhooks = service_port
            .map(|port| format!("http://127.0.0.1:{port}/webhooks/dojo"))
            .unwrap_or_default();
        let settings = [
            ("SANDBOX_LISTEN_ADDR", listen.as_str()),
            ("SANDBOX_API_KEY", DOJO_API_KEY),
            ("SANDBOX_WEBHOOK_URL", &webhooks),
            ("SANDBOX_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ];
        let mut command = Command::new(build_folder()?.join("dojo-sandbox"));
        let mut program =
            Program::start("dojo-sandbox", port, &lab.folder, &mut command, &settings)?;
        program.ready("/_sandbox/health").await?;
        Ok(Self {
            program,
            http: lab.http.clone(),
        })
    }

    /// Makes every creation take this long.
    pub async fn delay_creations(&self, milliseconds: u32) -> Result {
        let fault = json!({
            "operation": "create", "kind": "latency", "latencyMs": milliseconds, "share": 1.0,
        });
        self.control("faults", &fault).await
    }

    /// Creates intents that have been paid.
    pub async fn add_paid(&self, ids: &[String]) -> Result {
        // The sandbox reads bodies of up to 2 MB.
        for some in ids.chunks(20_000) {
            let intents = json!({"ids": some, "status": "Captured"});
            self.control("payment-intents", &intents).await?;
        }
        Ok(())
    }

    async fn control(&self, path: &str, body: &Value) -> Result {
        let url = format!("{}/_sandbox/{path}", self.program.url());
        let response = self.http.post(url).json(body).send().await?;
        response.error_for_status()?;
        Ok(())
    }
}
