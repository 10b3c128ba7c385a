//! Traces: continues a caller's trace in calls to Dojo, by the header `traceparent` (W3C Trace Context).
//!
//! Nothing is recorded or exported here. Another system's trace contains this service's log lines by their trace id, and
//! Dojo's part by the header. `tracestate` is not passed on: it is for the caller's own tracing systems, and may say more
//! about them than Dojo needs to know.

use std::fmt::Write;

use rand::RngExt;

tokio::task_local! {
    /// The trace of the request that this task works for. A `tracing` span could hold it too, but only while the log's filter
    /// lets the span through.
    static CURRENT: Trace;
}

/// The bits of the flags that have a meaning: the trace is sampled, and its id is random. All others must be sent as 0.
const KNOWN_FLAGS: u8 = 0b11;

/// The trace that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    id: String,
    flags: u8,
}

impl Trace {
    /// The trace that a `traceparent` continues. `None` if it is invalid, and must be ignored.
    #[must_use]
    pub fn continued(traceparent: &str) -> Option<Self> {
        // Later versions may only append more parts.
        let mut parts = traceparent.splitn(5, '-');
        let version = hex(parts.next()?, 2)?;
        let id = hex(parts.next()?, 32)?;
        let parent = hex(parts.next()?, 16)?;
        let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()?;
        let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
        let is_wrong_version = match version {
            "00" => parts.next().is_some(),
            version => version == "ff",
        };
        if is_wrong_version || is_zero(id) || is_zero(parent) {
            return None;
        }
        Some(Self {
            id: id.to_owned(),
            flags: flags & KNOWN_FLAGS,
        })
    }

    /// A new trace, which nobody samples.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            id: random_id::<16>(),
            flags: 0,
        }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The `traceparent` of a call that is part of this trace. Each call is a span of its own.
    fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.id, random_id::<8>(), self.flags)
    }
}

/// Runs work as part of a trace.
pub async fn within<T>(trace: Trace, work: impl Future<Output = T>) -> T {
    CURRENT.scope(trace, work).await
}

/// Runs work as part of the trace in which this was called, even if the work then moves to a task of its own.
pub fn continuing<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let current = CURRENT.try_with(Clone::clone).ok();
    async move {
        match current {
            Some(trace) => within(trace, work).await,
            None => work.await,
        }
    }
}

/// The `traceparent` to send with a call. `None` if the work is part of no trace, such as that of background jobs.
#[must_use]
pub fn traceparent() -> Option<String> {
    CURRENT.try_with(Trace::traceparent).ok()
}

/// The text, if it is a lower-case hexadecimal number with so many digits.
fn hex(text: &str, digits: usize) -> Option<&str> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_digit)).then_some(text)
}

/// A random id that isn't 0, which would be invalid.
fn random_id<const BYTES: usize>() -> String {
    loop {
        let bytes: [u8; BYTES] = rand::rng().random();
        if bytes != [0; BYTES] {
            return bytes.iter().fold(String::new(), |mut id, byte| {
                let _ = write!(id, "{byte:02x}");
                id
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn continued(version: &str, id: &str, parent: &str, rest: &str) -> Option<Trace> {
        Trace::continued(&format!("{version}-{id}-{parent}-{rest}"))
    }

    #[test]
    fn a_valid_header_is_continued_with_another_span() {
        let trace = continued("00", ID, "00f067aa0ba902b7", "01").unwrap();
        assert_eq!(trace.id(), ID);
        let (first, second) = (trace.traceparent(), trace.traceparent());
        for header in [&first, &second] {
            assert!(header.starts_with(&format!("00-{ID}-")) && header.ends_with("-01"));
            assert!(!header.contains("00f067aa0ba902b7"));
            assert_eq!(Trace::continued(header).unwrap(), trace);
        }
        assert_ne!(first, second);
    }

    #[test]
    fn a_later_version_may_have_more_parts_and_unknown_flags_are_not_passed_on() {
        let trace = continued("cc", ID, "00f067aa0ba902b7", "ff-more-of-it").unwrap();
        assert!(trace.traceparent().ends_with("-03"));
    }

    #[test]
    fn an_invalid_header_is_ignored() {
        let parent = "00f067aa0ba902b7";
        for (version, id, parent, rest) in [
            ("ff", ID, parent, "01"),
            ("0", ID, parent, "01"),
            ("00", &"0".repeat(32), parent, "01"),
            ("00", &ID.to_uppercase(), parent, "01"),
            ("00", &ID[1..], parent, "01"),
            ("00", ID, "0000000000000000", "01"),
            ("00", ID, parent, "1"),
            ("00", ID, parent, "01-more"),
            ("00", ID, parent, "01-"),
            ("cc", ID, parent, "01x"),
        ] {
            let trace = continued(version, id, parent, rest);
            assert_eq!(trace, None, "{version}-{id}-{parent}-{rest}");
        }
    }

    #[test]
    fn a_new_trace_is_valid() {
        let header = Trace::begin().traceparent();
        assert_eq!(header.len(), 55);
        assert!(Trace::continued(&header).is_some());
    }

    #[tokio::test]
    async fn work_in_another_task_stays_in_the_trace() {
        let trace = Trace::begin();
        let id = trace.id().to_owned();
        let sent = within(trace, async {
            tokio::spawn(continuing(async { traceparent() })).await
        });
        assert!(sent.await.unwrap().unwrap().contains(&id));
        assert_eq!(traceparent(), None);
        assert_eq!(continuing(async { traceparent() }).await, None);
    }

    proptest! {
        #[test]
        fn no_header_causes_a_panic(header in "\\PC*|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-.*") {
            if let Some(trace) = Trace::continued(&header) {
                prop_assert_eq!(Trace::continued(&trace.traceparent()), Some(trace));
            }
        }
    }
}
