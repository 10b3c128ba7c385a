//! What the service promises, and what it is to break that.

use std::{error::Error, fmt};

use crate::stage::Result;

/// A promise that the run holds the service to.
#[derive(Debug, Clone, Copy)]
pub enum Promise {
    OneIntent,
    OneOperation,
    Durable,
    Converges,
    Heals,
    Explained,
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
            Self::Converges => "every link ends in the state that Dojo itself reports",
            Self::Heals => "what was missed is found without anyone asking",
            Self::Explained => "each change stands once in the timeline, with its cause",
            Self::NeverPaidBefore => "no link says paid before Dojo does",
            Self::Confirmed => "a link that is confirmed says what Dojo said",
            Self::NeverTooMuch => "Dojo never has to reject one of our refunds for lack of funds",
            Self::OnlyAuthorized => "only an API key that is valid now gets in",
            Self::Recovers => "a replica serves again within 30 s when its database can be reached",
            Self::JobsGoOn => "every job of every replica goes on, whatever happened to it",
            Self::Ready => "/readyz tells the truth",
            Self::Answers => "a caller is answered as the API's document says",
        }
    }
}

/// A broken promise.
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

/// Ends the run: `promise` is broken, as is seen at `about`.
pub fn broken<T>(promise: Promise, about: impl Into<String>, what: impl Into<String>) -> Result<T> {
    Err(Box::new(Broken {
        promise,
        about: about.into(),
        what: what.into(),
    }))
}
