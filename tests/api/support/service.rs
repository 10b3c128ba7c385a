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

/// The program, without this machine's environment.
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
    /// Starts the program on a free port, and returns once it listens. If the database server, which all tests share, doesn't
    /// respond in time, starts it again, as an orchestrator does.
    pub async fn start(database_url: &str, dojo_url: &str, settings: &[(&str, &str)]) -> Self {
        for _ in 0..5 {
            match Self::try_to_start(database_url, dojo_url, settings).await {
                Ok(service) => return service,
                Err(log) if log.contains("no response within") => {}
                Err(log) => panic!("the service did not start: {log}"),
            }
        }
        panic!("the service did not start, because the database does not respond");
    }

    /// On failure, returns the log.
    async fn try_to_start(
        database_url: &str,
        dojo_url: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self, String> {
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
            // Tests read far more often than any client should. Tests of the limit set their own.
            .env("CLIENT_RATE", "100000")
            // Tests of background jobs turn them on and make them quick.
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
            Duration::from_mins(1),
            "the service listens",
            address.recv(),
        )
        .await;
        let Some(address) = address else {
            return Err(log.lock().unwrap().clone());
        };
        Ok(Self {
            url: format!("http://{address}"),
            process,
            log,
        })
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGSTOP: it does nothing from now on, and keeps its connections and locks.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Sends SIGCONT, after [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.process.id().expect("it still runs").to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends SIGKILL, and returns once it is gone.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Waits until it has ended. Returns how it did.
    pub async fn ended(&mut self) -> ExitStatus {
        within(
            Duration::from_mins(1),
            "the service ends",
            self.process.wait(),
        )
        .await
        .unwrap()
    }
}
