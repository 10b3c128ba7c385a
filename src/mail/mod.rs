//! Emails to customers: composed from templates, and sent to a mail server (SMTP, RFC 5321).

mod email;
mod server;
mod templates;

use std::time::Duration;

use email::Sender;
pub use email::{ComposeError, Email, Outgoing};
use server::Server;
pub use server::{Delivery, Refusal, Session};
use templates::Templates;

use crate::{
    config::{ConfigError, MailSettings, Merchant},
    payment_link::PaymentLink,
};

/// Composes emails and sends them.
pub struct Mailer {
    server: Server,
    templates: Templates,
    sender: Sender,
}

impl Mailer {
    /// Validates the settings and the templates. `None` if no emails can be sent.
    pub fn from_settings(settings: &MailSettings) -> Result<Option<Self>, ConfigError> {
        let mut error = ConfigError::default();
        let server = error.keep(settings.server());
        let templates = error.keep(Templates::load(settings.templates().map(AsRef::as_ref)));
        let (Some(server), Some(templates)) = (server, templates) else {
            return Err(error);
        };
        let Some((server, from)) = server else {
            return Ok(None);
        };
        Ok(Some(Self {
            server: Server::new(server, settings.smtp_timeout)?,
            templates,
            sender: Sender {
                from,
                reply_to: settings.mail_reply_to.clone(),
                color: settings.brand_color.clone(),
            },
        }))
    }

    /// Composes the email that asks to pay `link` at `url`, in plain text and in HTML with a QR code.
    pub fn compose(
        &self,
        link: &PaymentLink,
        url: &str,
        merchant: &Merchant,
        outgoing: Outgoing<'_>,
    ) -> Result<Email, ComposeError> {
        Email::compose(&self.templates, &self.sender, link, url, merchant, outgoing)
    }

    /// How long it can take until an email is announced and sent, and its outcome is stored.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        self.server.timeout() + self.time_to_send()
    }

    /// The part of that which begins when the email is announced.
    #[must_use]
    pub fn time_to_send(&self) -> Duration {
        self.server.timeout() * 2 + Duration::from_secs(10)
    }

    /// Connects to the mail server and logs in, within `limit`, and sends nothing. Returns what the connection is like, or
    /// what failed.
    pub async fn probe(&self, limit: Duration) -> Result<String, String> {
        self.server.probe(limit).await
    }

    /// Tells the mail server from whom and to whom the email is. Nothing is sent yet.
    pub async fn announce(&self, email: &Email) -> Result<Session, Refusal> {
        self.server.announce(email.envelope()).await
    }
}
