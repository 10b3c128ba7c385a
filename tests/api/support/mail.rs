//! A mail server of a test's own: `tests/mail/server.py`, a process that can be stopped like any other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::net::TcpStream;

use super::{eventually, eventually_within, postgres::free_port, text};

pub struct MailServer {
    pub port: u16,
    folder: PathBuf,
    certificate: Vec<PathBuf>,
    process: Option<Child>,
}

impl MailServer {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server that demands STARTTLS with this certificate and key, and a password.
    pub async fn with(certificate: &[PathBuf]) -> Self {
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("dojo-mail-{port}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut server = Self {
            port,
            folder,
            certificate: certificate.to_vec(),
            process: None,
        };
        server.resume().await;
        server
    }

    /// The settings of a service that sends its emails there.
    pub fn settings(&self) -> [(&'static str, String); 3] {
        [
            (
                "SMTP_URL",
                format!("smtp://127.0.0.1:{}?tls=none", self.port),
            ),
            ("MAIL_FROM", "The Theatre <pay@theatre.example>".to_owned()),
            ("SMTP_TIMEOUT", "2s".to_owned()),
        ]
    }

    /// What goes wrong for everybody from now on. Empty: nothing.
    pub fn set_mode(&self, mode: &str) {
        fs::write(self.folder.join("mode"), mode).unwrap();
    }

    /// Stops the server. What it has accepted remains.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts the server again.
    pub async fn resume(&mut self) {
        let python = std::env::var_os("MAIL_SERVER_PYTHON")
            .expect("MAIL_SERVER_PYTHON runs the mail server; script/test installs it");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mail/server.py");
        let process = Command::new(python)
            .arg(script)
            .arg(self.port.to_string())
            .arg(&self.folder)
            .args(&self.certificate)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        let limit = Duration::from_mins(2);
        eventually_within(limit, "the mail server listens", async || {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
    }

    /// The messages that it has accepted, oldest first.
    pub fn messages(&self) -> Vec<Value> {
        let files = fs::read_dir(&self.folder).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|end| end == "json"));
        files.sort();
        let read = |path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        files.into_iter().map(read).collect()
    }

    /// Waits until it has accepted this many messages.
    pub async fn received(&self, count: usize) -> Vec<Value> {
        eventually(
            &format!("the mail server has {count} messages"),
            async || {
                let messages = self.messages();
                (messages.len() >= count).then_some(messages)
            },
        )
        .await
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The value of a header of a message, which has it once.
#[track_caller]
pub fn header<'a>(message: &'a Value, name: &str) -> &'a str {
    let headers = message["headers"].as_array().unwrap();
    let mut found = headers
        .iter()
        .filter(|header| text(&header[0]).eq_ignore_ascii_case(name));
    let value = found
        .next()
        .unwrap_or_else(|| panic!("{name} in {message}"));
    assert!(found.next().is_none(), "{name} once");
    text(&value[1])
}
