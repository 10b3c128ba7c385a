//! The promises of the service.

use std::{error::Error, fmt};

use crate::stage::Result;

/// A promise that the run checks.
#[derive(Debug, Clone, Copy)]
pub enum Promise {
    OneIntent,
    OneOperation,
    Durable,
    Converges,
    Heals,
    Explained,
    InOrder,
    Called,
    SentOnce,
    Booked,
    NeverPaidBefore,
    Confirmed,
    NeverTooMuch,
    OnlyAuthorized,
    Recovers,
    JobsGoOn,
    Ready,
    Answers,
}

impl Promise {
    fn words(self) -> &'static str {
        match self {
            Self::OneIntent => "one key leads to one intent and one outcome",
            Self::OneOperation => {
                "one key leads to one capture, refund or other operation, and to one outcome"
            }
            Self::Durable => "a webhook that was acknowledged is in the database",
            Self::Converges => "every link ends in the state that Dojo reports, and confirmed",
            Self::Heals => "what was missed is found without a request",
            Self::Explained => "each change is in the timeline once, with its cause",
            Self::InOrder => "every reader gets each change once, in one order",
            Self::Called => "every endpoint gets every event, and each link's events in order",
            Self::Booked => "the books add up to what was captured and refunded",
            Self::SentOnce => "every message is sent once, and what became of it is known",
            Self::NeverPaidBefore => "no link is paid before Dojo says so",
            Self::Confirmed => "a confirmed link says what Dojo said",
            Self::NeverTooMuch => "Dojo never has to reject one of our refunds for lack of funds",
            Self::OnlyAuthorized => "the service accepts only API keys that are valid now",
            Self::Recovers => "a replica serves again within 30 s once it can reach its database",
            Self::JobsGoOn => "every job of every replica keeps running, whatever happens",
            Self::Ready => "/readyz tells the truth",
            Self::Answers => "the responses are those of the API's document",
        }
    }
}

#[derive(Debug)]
pub struct Broken {
    promise: Promise,
    about: String,
    what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BROKEN PROMISE: {}\n  {}: {}",
            self.promise.words(),
            self.about,
            self.what
        )
    }
}

impl Error for Broken {}

/// Ends the run: `promise` is broken, which shows at `about`.
pub fn broken<T>(promise: Promise, about: impl Into<String>, what: impl Into<String>) -> Result<T> {
    Err(Box::new(Broken {
        promise,
        about: about.into(),
        what: what.into(),
    }))
}
