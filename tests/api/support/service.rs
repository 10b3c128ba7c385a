use std::{
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::mpsc,
};

use super::{API_KEY, DOJO_KEY, WEBHOOK_SECRET, within};

/// The program, with nothing of this machine's environment.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dojo-payment-links"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The real program, serving.
pub struct Service {
    pub url: String,
    process: Child,
    log: Arc<Mutex<String>>,
}

impl Service {
    /// Starts the program on a free port, and returns when it listens.
    pub async fn start(database_url: &str, dojo_url: &str, settings: &[(&str, &str)]) -> Self {
        let mut command = program();
        command
            .arg("serve")
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("DATABASE_URL", database_url)
            .env("BOOTSTRAP_API_KEY", API_KEY)
            .env("DOJO_API_URL", dojo_url)
            .env("DOJO_CHECKOUT_URL", format!("{dojo_url}/checkout"))
            .env("DOJO_API_KEY", DOJO_KEY)
            .env("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET)
            // A test reads far more often than any client should. The tests of the limit set their own.
            .env("CLIENT_RATE", "100000")
            // The tests of the background turn it on, and make it quick.
            .env("RUN_JOBS", "false")
            .envs(settings.iter().copied())
            .stderr(Stdio::piped());
        let mut process = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap();

        let log = Arc::new(Mutex::new(String::new()));
        let (found, mut address) = mpsc::channel(1);
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    let event: Value = serde_json::from_str(&line).unwrap_or_default();
                    if event["message"] == "listening" {
                        let _ = found
                            .send(event["address"].as_str().unwrap().to_owned())
                            .await;
                    }
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        let address = within(
            Duration::from_secs(30),
            "the service listens",
            address.recv(),
        )
        .await
        .unwrap_or_else(|| panic!("the service did not start: {}", log.lock().unwrap()));
        Self {
            url: format!("http://{address}"),
            process,
            log,
        }
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGSTOP: it does nothing from now on, and all that it holds it holds on to.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.process.id().expect("it still runs").to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends SIGKILL: it ends at once, whatever it was doing. Returns when it is gone.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// How it ended, once it has.
    pub async fn ended(&mut self) -> ExitStatus {
        within(
            Duration::from_secs(30),
            "the service ends",
            self.process.wait(),
        )
        .await
        .unwrap()
    }
}
