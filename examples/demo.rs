//! The complete system on one machine: a private Postgres, the sandbox in place of Dojo, the service, and a payment link to
//! pay. Run it with `script/demo`, which installs and builds what it needs.

use std::{
    error::Error,
    io::Write,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use clap::Parser;
use dojo_sandbox::signature;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use test_postgres::{Postgres, free_port};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

const API_KEY: &str = "dpl_demo_0123456789abcdef0123456789abcdef";
const DOJO_API_KEY: &str = "sk_sandbox_demo";
const WEBHOOK_SECRET: &str = "whs_demo_0123456789";

const SERVICE_PORT: u16 = 8080;
const CONSOLE_PORT: u16 = 8082;
const SANDBOX_PORT: u16 = 9400;

/// Start everything, create a payment link, wait until you have paid it, and show how its state changes.
#[derive(Parser)]
struct Options {
    /// Pay with a test card instead of waiting for you, and stop.
    #[arg(long)]
    pay: bool,
}

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result {
    let options = Options::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let logs = std::env::temp_dir().join(format!("dojo-payment-links-demo-{}", std::process::id()));
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(async {
        let stopped = stop_signal()?;
        // Dropping the demo's future stops everything that it started.
        tokio::select! {
            result = demo(&options, &logs) => result,
            () = stopped => Ok(Outcome::Stopped),
        }
    });
    // If Postgres is still starting, this waits until it has started and then stops it.
    drop(runtime);
    let message = match outcome? {
        Outcome::Paid => "\nPaid. Everything is stopped.",
        Outcome::Stopped => "\n    Everything is stopped.",
    };
    // This fails if the terminal has been closed.
    let _ = writeln!(std::io::stdout(), "{message}");
    Ok(())
}

/// How the demo ended.
enum Outcome {
    Paid,
    Stopped,
}

/// Completes on SIGINT (Ctrl-C), SIGTERM (`kill`) or SIGHUP (the terminal is closed).
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

async fn demo(options: &Options, logs: &Path) -> Result<Outcome> {
    step("Starting a private Postgres");
    let postgres = tokio::task::spawn_blocking(Postgres::start).await?;
    println!("    {}", postgres.url("postgres"));
    let mut programs = Programs::new(logs);
    let result = show(options, &postgres, &mut programs).await;
    if result.is_err() {
        programs.keep_logs();
    }
    result.map_err(|error| format!("{error}; the logs are in {}", logs.display()).into())
}

async fn show(options: &Options, postgres: &Postgres, programs: &mut Programs) -> Result<Outcome> {
    let (service_port, sandbox_port) = (port(SERVICE_PORT), port(SANDBOX_PORT));
    let service_url = format!("http://localhost:{service_port}");
    // For webhooks. On a machine with IPv6, another program may have this port at `localhost`.
    let public_url = format!("http://127.0.0.1:{service_port}");
    let sandbox_url = format!("http://localhost:{sandbox_port}");

    step("Starting the sandbox, which takes Dojo's place");
    mention_other_port(SANDBOX_PORT, sandbox_port);
    programs.start(
        "dojo-sandbox",
        &[],
        &[
            ("SANDBOX_LISTEN_ADDR", &format!("127.0.0.1:{sandbox_port}")),
            ("SANDBOX_PUBLIC_URL", &sandbox_url),
            (
                "SANDBOX_WEBHOOK_URL",
                &format!("{public_url}/webhooks/dojo"),
            ),
            ("SANDBOX_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ],
    )?;
    ready(&format!("{sandbox_url}/_sandbox/health")).await?;
    println!("    {sandbox_url}");

    step("Starting the service");
    mention_other_port(SERVICE_PORT, service_port);
    let console_port = port(CONSOLE_PORT);
    mention_other_port(CONSOLE_PORT, console_port);
    programs.start(
        "dojo-payment-links",
        &["serve"],
        &[
            ("LISTEN_ADDR", &format!("127.0.0.1:{service_port}")),
            ("PUBLIC_URL", &public_url),
            ("SHORT_URL_BASE", &service_url),
            ("CONSOLE_LISTEN_ADDR", &format!("127.0.0.1:{console_port}")),
            ("DATABASE_URL", &postgres.url("postgres")),
            ("BOOTSTRAP_API_KEY", API_KEY),
            ("DOJO_API_URL", &sandbox_url),
            ("DOJO_CHECKOUT_URL", &format!("{sandbox_url}/checkout")),
            ("DOJO_API_KEY", DOJO_API_KEY),
            ("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET),
            // For the receiver below, and for those that you try out.
            ("CALLBACK_ALLOW", "127.0.0.1"),
        ],
    )?;
    ready(&format!("{service_url}/readyz")).await?;
    ready(&format!("http://localhost:{console_port}/sign-in")).await?;
    println!("    {service_url} (API documentation: {service_url}/docs)");
    println!("    http://localhost:{console_port} (console: sign in with {API_KEY})");

    step("Subscribing the orders service to payments");
    let (receiver_url, mut callbacks) = receiver().await?;
    let http = Client::builder()
        .timeout(Duration::from_secs(15))
        .no_proxy()
        .build()?;
    let endpoints = Api {
        http: http.clone(),
        url: format!("{service_url}/v1/callback-endpoints"),
    };
    let wanted = json!({"url": receiver_url, "types": ["payment_link.captured"]});
    println!(
        "    curl -X POST {} \\\n      \
           -H 'Authorization: Bearer {API_KEY}' \\\n      \
           -H 'Content-Type: application/json' \\\n      \
           -d '{wanted}'",
        endpoints.url
    );
    let endpoint = endpoints.call(Method::POST, "", Some(&wanted)).await?;
    println!("    {} calls it", text(&endpoint["id"]));

    step("Requesting a link for 24.50 GBP from the service");
    let request = json!({
        "amount": {"value": 2450, "currencyCode": "GBP"},
        "reference": "Order 236",
        "description": "Two theatre tickets",
        "config": {"details": {"showTotal": true, "showReference": true}},
    });
    println!(
        "    curl -X POST {service_url}/v1/payment-links \\\n      \
           -H 'Authorization: Bearer {API_KEY}' \\\n      \
           -H 'Content-Type: application/json' \\\n      \
           -H 'Idempotency-Key: order-236' \\\n      \
           -d '{request}'"
    );
    let api = Api {
        http,
        url: format!("{service_url}/v1/payment-links"),
    };
    let link = api.call(Method::POST, "", Some(&request)).await?;
    let id = text(&link["id"]);
    let intent = text(&link["paymentIntentId"]);
    println!("    {id} is {}", text(&link["status"]));
    println!("    {} is its short address", text(&link["shortUrl"]));

    if options.pay {
        step("Paying with a test card that succeeds");
        let pay = format!("{sandbox_url}/_sandbox/payment-intents/{intent}/pay");
        api.http
            .post(pay)
            .json(&json!({}))
            .send()
            .await?
            .error_for_status()?;
    } else {
        step("Open the link in a browser and pay");
        println!("    {}", text(&link["url"]));
        open_in_browser(text(&link["url"]));
        println!("    Card 5200 0000 0000 1005, expiry 12/29, CVV 020, any name");
        println!("    (Press Ctrl-C to stop everything)");
    }

    let webhook = webhook_of_payment(&postgres.url("postgres"), intent).await?;
    step("Dojo's webhook arrived");
    println!(
        "    dojo-signature: {}",
        signature::sign(WEBHOOK_SECRET, webhook.as_bytes())
    );
    println!("    {webhook}");

    step("The service reports the payment");
    let path = format!("/{id}");
    println!(
        "    curl {}{path} -H 'Authorization: Bearer {API_KEY}'",
        api.url
    );
    let paid = loop {
        let now = api.call(Method::GET, &path, None).await?;
        // The webhook changes the status at once. `confirmed` is set once Dojo's response to our API key agrees.
        if now["status"] != link["status"] && now["confirmed"] == true {
            break now;
        }
        pause().await;
    };
    println!(
        "    {id}: {} → {}",
        text(&link["status"]),
        text(&paid["status"])
    );
    println!(
        "    confirmed by Dojo: {:.2} GBP captured",
        paid["capturedAmount"]["value"].as_f64().unwrap_or_default() / 100.0
    );
    println!(
        "    curl {}{path}/events -H 'Authorization: Bearer {API_KEY}'",
        api.url
    );
    let events = api
        .call(Method::GET, &format!("{path}/events"), None)
        .await?;
    for event in events["data"].as_array().into_iter().flatten() {
        println!(
            "    {}  {:<10} {}",
            text(&event["occurredAt"]),
            text(&event["type"]),
            text(&event["statusAfter"])
        );
    }
    if paid["status"] != "Captured" {
        return Err(format!("the link is {}, not Captured", paid["status"]).into());
    }

    let patience = Duration::from_secs(20);
    let callback = tokio::time::timeout(patience, callback_about(id, &mut callbacks)).await;
    let callback = callback
        .ok()
        .flatten()
        .ok_or("the orders service was not called")?;
    step("The orders service was called, and the signature is valid");
    standardwebhooks::Webhook::new(text(&endpoint["secret"]))?
        .verify(callback.body.as_bytes(), &callback.headers)?;
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        println!("    {name}: {}", callback.headers[name].to_str()?);
    }
    println!("    {}", callback.body);

    if !options.pay {
        step("The console shows it to people");
        let page = format!("http://localhost:{console_port}/links/{id}");
        println!("    {page} (sign in with {API_KEY})");
        open_in_browser(&page);
        step("Everything keeps running for you to try. Press Ctrl-C to stop it");
        println!("    Logs: {}", programs.logs.display());
        std::future::pending::<()>().await;
    }
    Ok(Outcome::Paid)
}

/// Opens a page in the person's browser, if the machine has a screen. The address is printed in any case.
fn open_in_browser(url: &str) {
    let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else if has_screen {
        "xdg-open"
    } else {
        return;
    };
    let mut command = Command::new(opener);
    command
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Without the program, the person opens the page by hand.
    if let Ok(mut opened) = command.spawn() {
        std::thread::spawn(move || opened.wait());
    }
}

/// A callback, as the orders service gets it.
struct Callback {
    headers: HeaderMap,
    body: String,
}

/// Starts a receiver of callbacks, in the place of an orders service. Returns its URL, and what it gets.
async fn receiver() -> Result<(String, mpsc::Receiver<Callback>)> {
    let (sender, callbacks) = mpsc::channel(16);
    let receive = post(async move |headers: HeaderMap, body: String| {
        // Fails only once the demo is over.
        let _ = sender.try_send(Callback { headers, body });
        StatusCode::NO_CONTENT
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/payments", listener.local_addr()?);
    let router = Router::new().route("/payments", receive);
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok((url, callbacks))
}

/// Waits for the callback about this link. The person may have paid other links meanwhile. `None` if there will be no more.
async fn callback_about(id: &str, callbacks: &mut mpsc::Receiver<Callback>) -> Option<Callback> {
    loop {
        let callback = callbacks.recv().await?;
        let event: Value = serde_json::from_str(&callback.body).unwrap_or_default();
        if event["paymentLinkId"] == id {
            return Some(callback);
        }
    }
}

/// The service's API.
struct Api {
    http: Client,
    url: String,
}

impl Api {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(API_KEY);
        if let Some(body) = body {
            request = request.header("idempotency-key", "order-236").json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(body.to_string().into())
        }
    }
}

/// Waits until the service has stored the webhook about the payment. Returns its body.
async fn webhook_of_payment(database_url: &str, intent: &str) -> Result<String> {
    let mut database = PgConnection::connect(database_url).await?;
    loop {
        let body: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT body FROM webhook_events
             WHERE payment_intent_id = $1 AND event_type = 'payment_intent.status_updated'",
        )
        .bind(intent)
        .fetch_optional(&mut database)
        .await?;
        if let Some(body) = body {
            return Ok(String::from_utf8(body)?);
        }
        pause().await;
    }
}

/// The sandbox and the service. They stop when this is dropped, and also when the demo is killed.
struct Programs {
    logs: PathBuf,
    keepers: Vec<Child>,
}

/// Runs a program for as long as the keeper's own standard input is open. The demo has the other end of it, so the input
/// closes when the demo ends for any reason. Then the keeper stops the program and removes its log, unless told to keep it.
const KEEPER: &str = r#"
log=$1
shift
mkdir -p "${log%/*}"
"$@" </dev/null >"$log" 2>&1 &
read -r order
kill -KILL $!
wait
if [ "$order" != keep ]; then
    rm -f "$log"
    rmdir "${log%/*}" # the last one succeeds
fi
"#;

impl Programs {
    fn new(logs: &Path) -> Self {
        Self {
            logs: logs.to_owned(),
            keepers: Vec::new(),
        }
    }

    /// Starts one of our programs, which are in the parent of the demo's own folder.
    fn start(&mut self, name: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Result {
        let folder = std::env::current_exe()?;
        let folder = folder
            .ancestors()
            .nth(2)
            .ok_or("the demo must run from its build folder")?;
        let program = folder.join(name);
        if !program.exists() {
            return Err(format!("{name} is not built; run script/demo, which builds it").into());
        }
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(self.logs.join(format!("{name}.log")))
            .arg(program)
            .args(arguments)
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Only the demo itself reacts to a signal to its process group, such as Ctrl-C.
            .process_group(0)
            .spawn()?;
        self.keepers.push(keeper);
        Ok(())
    }

    /// Keeps the logs when the programs stop.
    fn keep_logs(&mut self) {
        for input in self.keepers.iter_mut().flat_map(|keeper| &mut keeper.stdin) {
            let _ = writeln!(input, "keep");
        }
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        for mut keeper in self.keepers.drain(..).rev() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

/// Waits up to 30 seconds for a successful response from this URL.
async fn ready(url: &str) -> Result {
    let http = Client::builder()
        .timeout(Duration::from_secs(2))
        .no_proxy()
        .build()?;
    let responds = async {
        while !http
            .get(url)
            .send()
            .await
            .is_ok_and(|response| response.status().is_success())
        {
            pause().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), responds)
        .await
        .map_err(|_| format!("{url} does not respond").into())
}

/// This port if it is free, otherwise another one.
fn port(wanted: u16) -> u16 {
    TcpListener::bind(("127.0.0.1", wanted)).map_or_else(|_| free_port(), |_| wanted)
}

/// Prints a note if a port is not the one in the documentation.
fn mention_other_port(wanted: u16, port: u16) {
    if port != wanted {
        println!("    Port {wanted} is in use. Using {port} instead.");
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn step(what: &str) {
    println!("\n▸ {what}");
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
