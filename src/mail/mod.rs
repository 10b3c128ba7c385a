//! Emails to customers: composed from templates, and sent to a mail server (SMTP, RFC 5321).

mod email;
mod server;
mod templates;

use std::time::Duration;

use lettre::message::Mailbox;

pub use email::{ComposeError, Email, Outgoing};
use server::Server;
pub use server::{Delivery, Refusal, Session};
use templates::Templates;

use crate::config::{ConfigError, MailSettings};

/// Composes emails and sends them.
pub struct Mailer {
    server: Server,
    templates: Templates,
    from: Mailbox,
    reply_to: Option<Mailbox>,
    color: String,
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
            from,
            reply_to: settings.mail_reply_to.clone(),
            color: settings.brand_color.clone(),
        }))
    }

    /// How long sending an email can take.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        self.server.timeout() * 2
    }

    /// Tells the mail server from whom and to whom the email is. Nothing is sent yet.
    pub async fn announce(&self, email: &Email) -> Result<Session, Refusal> {
        self.server.announce(email.envelope()).await
    }
}
