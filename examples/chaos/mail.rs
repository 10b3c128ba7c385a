//! The mail server, and whether each customer got each message once.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use test_postgres::free_port;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{
    people::text,
    promise::{Promise, broken},
    stage::{Result, Stage},
    trouble::{Damage, Trouble, pause},
};

/// How long the mail server may take in this run (`SMTP_TIMEOUT`).
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// `tests/mail/server.py`, as a process of its own.
pub struct MailServer {
    pub port: u16,
    folder: PathBuf,
    process: RefCell<Option<Child>>,
}

impl MailServer {
    pub async fn start(logs: &Path) -> Result<Self> {
        let server = Self {
            port: free_port(),
            folder: logs.join("mail"),
            process: RefCell::default(),
        };
        fs::create_dir_all(&server.folder)?;
        server.resume().await?;
        Ok(server)
    }

    /// Starts it, unless it runs.
    async fn resume(&self) -> Result {
        if self.process.borrow().is_none() {
            let python = std::env::var_os("MAIL_SERVER_PYTHON")
                .ok_or("MAIL_SERVER_PYTHON runs the mail server; script/chaos installs it")?;
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mail/server.py");
            let process = Command::new(python)
                .arg(script)
                .arg(self.port.to_string())
                .arg(&self.folder)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            self.process.replace(Some(process));
        }
        let limit = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if Instant::now() > limit {
                return Err("the mail server does not start".into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn kill(&self) -> Result {
        let process = self.process.take();
        if let Some(mut process) = process {
            process.kill().await?;
        }
        Ok(())
    }

    fn set_mode(&self, mode: &str) -> Result {
        Ok(fs::write(self.folder.join("mode"), mode)?)
    }

    /// How often it has accepted each message, by the message's id.
    fn accepted(&self) -> Result<HashMap<String, usize>> {
        let mut accepted = HashMap::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let message: Value = serde_json::from_slice(&fs::read(path)?)?;
            let headers = message["headers"].as_array().cloned().unwrap_or_default();
            let id = headers
                .iter()
                .find(|header| header[0] == "Message-ID")
                .and_then(|header| text(&header[1]).strip_prefix('<')?.split('@').next());
            let id = id.ok_or("a message without an id")?.to_owned();
            *accepted.entry(id).or_default() += 1;
        }
        Ok(accepted)
    }
}

/// The mail server refuses messages, loses its responses, and is killed.
pub async fn trouble(stage: &Stage, damage: &Damage, mut rng: StdRng, until: Instant) -> Result {
    while pause(&mut rng, 500..3000, until).await {
        let mail = &stage.mail;
        match ["busy", "later", "stall", "cut", "garbled", "killed"].choose(&mut rng) {
            Some(&"killed") => mail.kill().await?,
            Some(mode) => mail.set_mode(mode)?,
            None => {}
        }
        damage.note(Trouble::MailServer);
        pause(&mut rng, 300..2500, until).await;
        if rng.random_bool(0.3) {
            mail.kill().await?;
        }
        mail.set_mode("")?;
        mail.resume().await?;
    }
    Ok(())
}

/// Ends the mail server's trouble.
pub async fn calm(stage: &Stage) -> Result {
    stage.mail.set_mode("")?;
    stage.mail.resume().await
}

/// What became of the messages.
pub struct Sent {
    pub accepted: usize,
    pub unknown: usize,
    pub canceled: usize,
}

/// Checks that the mail server has each message that is `Sent` once, each one that is `Unknown` at most once, and no other.
pub async fn judge(stage: &Stage) -> Result<Sent> {
    let accepted = stage.mail.accepted()?;
    let messages: Vec<(uuid::Uuid, String)> = sqlx::query_as("SELECT id, status FROM messages")
        .fetch_all(&stage.database.pool)
        .await?;
    let mut sent = Sent {
        accepted: accepted.values().sum(),
        unknown: 0,
        canceled: 0,
    };
    let mut known = 0;
    for (id, status) in messages {
        let id = dojo_payment_links::payment_link::MessageId::from_uuid(id).to_string();
        let times = accepted.get(&id).copied().unwrap_or_default();
        known += times;
        let is_right = match status.as_str() {
            "Sent" => times == 1,
            "Unknown" => times <= 1,
            _ => times == 0,
        };
        if !is_right {
            let what = format!("is {status}, and the mail server has it {times} times");
            return broken(Promise::SentOnce, id, what);
        }
        sent.unknown += usize::from(status == "Unknown");
        sent.canceled += usize::from(status == "Canceled");
    }
    if known != sent.accepted {
        let what = format!(
            "the mail server has {} messages, {known} of which are known",
            sent.accepted
        );
        return broken(Promise::SentOnce, "messages", what);
    }
    Ok(sent)
}
