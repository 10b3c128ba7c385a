//! An email that gives a link to its customer.

use std::time::SystemTime;

use lettre::{
    Message,
    address::Envelope,
    message::{
        Attachment, Mailbox, MultiPart, SinglePart,
        header::{ContentType, HeaderName, HeaderValue},
    },
};

use super::templates::{self, Context, Templates};
use crate::{
    config::Merchant,
    payment_link::{Environment, MessageId, PaymentLink, Purpose},
    sharing::{invitation, qr_code},
};

/// The content id of the QR code in an email's HTML.
pub(super) const QR_CODE: &str = "qr";

/// The width of the QR code in pixels. It is shown at half of that, so that it is sharp on every screen.
const QR_WIDTH: u16 = 400;

/// A message to be composed.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    pub id: MessageId,
    pub purpose: Purpose,
    pub to: &'a str,
    pub locale: &'a str,
    pub note: Option<&'a str>,
    /// The same in every attempt.
    pub date: SystemTime,
}

/// Why an email can't be composed.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    #[error("the template failed")]
    Template(#[from] templates::Error),
    #[error("the QR code cannot be made")]
    QrCode(#[from] qr_code::Error),
    #[error("the address is not valid")]
    Address(#[from] lettre::address::AddressError),
    #[error("the message cannot be built")]
    Build(#[from] lettre::error::Error),
}

/// An email, ready to be sent.
pub struct Email(Message);

/// What is the same in all emails of the service, unless an account has its own.
pub(super) struct Sender {
    pub(super) from: Mailbox,
    pub(super) reply_to: Option<Mailbox>,
    /// The color of the button.
    pub(super) color: String,
}

impl Email {
    pub(super) fn envelope(&self) -> &Envelope {
        self.0.envelope()
    }

    /// The email as it is sent (RFC 5322).
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.0.formatted()
    }

    pub(super) fn compose(
        templates: &Templates,
        sender: &Sender,
        link: &PaymentLink,
        url: &str,
        merchant: &Merchant,
        outgoing: Outgoing<'_>,
    ) -> Result<Self, ComposeError> {
        let color = merchant.brand_color.as_deref().unwrap_or(&sender.color);
        let terms = &link.terms;
        let texts = templates.render(
            outgoing.locale,
            &Context {
                merchant: merchant.name.as_deref(),
                contact: merchant.contact.as_deref(),
                amount: invitation::price(link.total_amount.unwrap_or(link.amount)),
                reference: &terms.reference,
                description: terms.description.as_deref(),
                note: outgoing.note,
                url,
                reminder: outgoing.purpose == Purpose::Reminder,
                test: link.environment == Environment::Sandbox,
                expires: link.expire_at.map(templates::Day::of),
                color,
                on_color: readable_on(color),
                qr_code: &format!("cid:{QR_CODE}"),
            },
        )?;
        let from = merchant.mail_from.as_ref().unwrap_or(&sender.from);
        let reply_to = merchant.mail_reply_to.as_ref().or(sender.reply_to.as_ref());
        let message_id = format!("<{}@{}>", outgoing.id, from.email.domain());
        let mut builder = Message::builder()
            .from(from.clone())
            .to(Mailbox::new(None, outgoing.to.parse()?))
            .subject(texts.subject)
            .message_id(Some(message_id))
            .date(outgoing.date)
            // RFC 3834: no automatic reply, please.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ));
        if let Some(reply_to) = reply_to {
            builder = builder.reply_to(reply_to.clone());
        }
        let image = qr_code::Image::new(url, QR_WIDTH)?.png()?;
        let png = ContentType::parse("image/png").expect("it is a content type");
        let html = MultiPart::related()
            .singlepart(SinglePart::html(texts.html))
            .singlepart(
                Attachment::new_inline_with_name(QR_CODE.to_owned(), "qr-code.png".to_owned())
                    .body(image, png),
            );
        let parts = MultiPart::alternative()
            .singlepart(SinglePart::plain(texts.text))
            .multipart(html);
        Ok(Self(builder.multipart(parts)?))
    }
}

/// Black or white, whichever is easier to read on this color (WCAG 2.2, relative luminance).
fn readable_on(color: &str) -> &'static str {
    let channel = |at: usize| {
        let value = color
            .get(at..at + 2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let share = f64::from(value.unwrap_or(0)) / 255.0;
        if share <= 0.04045 {
            share / 12.92
        } else {
            ((share + 0.055) / 1.055).powf(2.4)
        }
    };
    let luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
    // Both have the same contrast at this luminance.
    if luminance > 0.179 {
        "#000000"
    } else {
        "#ffffff"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_readable_on_every_color() {
        for (color, text) in [
            ("#1f5fbf", "#ffffff"),
            ("#000000", "#ffffff"),
            ("#ffffff", "#000000"),
            ("#ffdd00", "#000000"),
            ("#aa0000", "#ffffff"),
        ] {
            assert_eq!(readable_on(color), text, "{color}");
        }
    }
}
