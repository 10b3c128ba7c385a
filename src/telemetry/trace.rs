//! Traces (W3C Trace Context): requests, calls to Dojo and the work on items of background jobs are *spans*. A span names
//! the span that caused it, its parent.
//!
//! A request continues its caller's trace, and a call to Dojo passes the trace on, by the header `traceparent`. Another
//! system's trace contains this service's log lines by their trace id. Spans are recorded only if they are exported
//! ([`super::export`]). Without that, a span is just an id.
//!
//! `tracestate` is not passed on: it is for the caller's own tracing systems, and may say more about them than Dojo needs to
//! know.

use std::fmt;

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
        TraceId, TraceState, Tracer,
    },
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use super::export;

tokio::task_local! {
    /// The span that this task works for. A span of `tracing` could hold it too, but only while the log's filter lets that
    /// span through.
    static CURRENT: Trace;
}

/// The bits of the flags that have a meaning: the trace is sampled, and its id is random. All others must be sent as 0.
const KNOWN_FLAGS: u8 = 0b11;

/// A place in a trace: the trace, and a span in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace(SpanContext);

impl Trace {
    /// The place that a `traceparent` names. `None` if it is invalid, and must be ignored.
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
        Some(Self::at(
            TraceId::from_hex(id).ok()?,
            SpanId::from_hex(parent).ok()?,
            TraceFlags::new(flags & KNOWN_FLAGS),
            true,
        ))
    }

    /// A new trace, which nobody samples.
    #[must_use]
    pub fn begin() -> Self {
        let ids = RandomIdGenerator::default();
        let (trace, span) = (ids.new_trace_id(), ids.new_span_id());
        Self::at(trace, span, TraceFlags::NOT_SAMPLED, false)
    }

    fn at(trace: TraceId, span: SpanId, flags: TraceFlags, is_remote: bool) -> Self {
        let state = TraceState::default();
        Self(SpanContext::new(trace, span, flags, is_remote, state))
    }

    /// Another span of the same trace.
    fn next(&self) -> Self {
        let span = RandomIdGenerator::default().new_span_id();
        Self::at(self.id(), span, self.0.trace_flags(), false)
    }

    /// The trace's id. It is displayed as in `traceparent`.
    #[must_use]
    pub fn id(&self) -> TraceId {
        self.0.trace_id()
    }

    /// The `traceparent` of a call that this span makes.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let (span, flags) = (self.0.span_id(), self.0.trace_flags());
        format!("00-{}-{span}-{flags:02x}", self.id())
    }
}

/// Something that takes time, as part of a trace. It ends when it is dropped.
///
/// Its name and attributes must have a limited number of values, and say nothing about customers or cards.
#[derive(Debug)]
pub struct Span {
    /// `None` if no spans are exported.
    recorded: Option<opentelemetry_sdk::trace::Span>,
    place: Option<Trace>,
}

impl Span {
    /// A request, whose `parent` is its caller's span. Without one it begins a trace.
    #[must_use]
    pub fn of_request(name: fmt::Arguments<'_>, parent: Option<&Trace>) -> Self {
        Self::start(SpanKind::Server, name, parent)
    }

    /// A request that is not recorded, because nothing ever goes wrong in it that somebody would look for.
    #[must_use]
    pub fn unrecorded() -> Self {
        Self {
            recorded: None,
            place: None,
        }
    }

    /// A call to another system, made by the current span.
    #[must_use]
    pub fn of_call(name: fmt::Arguments<'_>) -> Self {
        Self::start(SpanKind::Client, name, current().as_ref())
    }

    /// Work that no request has caused. If no spans are exported, it belongs to no trace.
    #[must_use]
    pub fn of_work(name: fmt::Arguments<'_>) -> Self {
        Self::start(SpanKind::Internal, name, None)
    }

    fn start(kind: SpanKind, name: fmt::Arguments<'_>, parent: Option<&Trace>) -> Self {
        let Some(tracer) = export::tracer() else {
            return Self {
                recorded: None,
                place: parent.map(Trace::next),
            };
        };
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent.0.clone()),
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name(name.to_string()).with_kind(kind);
        let span = tracer.build_with_context(builder, &context);
        let made = span.span_context();
        if !made.is_valid() {
            // The exporter has finished.
            return Self {
                recorded: None,
                place: parent.map(Trace::next),
            };
        }
        // OpenTelemetry forgets the caller's other flag if it doesn't sample the trace.
        let flags = parent.map_or(made.trace_flags(), |parent| parent.0.trace_flags());
        let flags = flags.with_sampled(made.is_sampled());
        let place = Trace::at(made.trace_id(), made.span_id(), flags, false);
        Self {
            recorded: Some(span),
            place: Some(place),
        }
    }

    /// Its place in a trace, for what it causes. `None` if it belongs to no trace.
    #[must_use]
    pub fn place(&self) -> Option<&Trace> {
        self.place.as_ref()
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: &str) {
        self.record(key, || Value::from(value.to_owned()));
    }

    /// Sets the status of the response.
    pub fn set_status(&mut self, status: u16) {
        self.record("http.response.status_code", || {
            Value::from(i64::from(status))
        });
    }

    /// Marks it as failed, with the kind of the error.
    pub fn failed(&mut self, kind: &str) {
        self.set("error.type", kind);
        if let Some(span) = &mut self.recorded {
            span.set_status(Status::error(""));
        }
    }

    fn record(&mut self, key: &'static str, value: impl FnOnce() -> Value) {
        if let Some(span) = self.recorded.as_mut().filter(|span| span.is_recording()) {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }
}

/// The span that this task works for.
fn current() -> Option<Trace> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs work for a span, if it belongs to a trace.
pub async fn within<T>(place: Option<Trace>, work: impl Future<Output = T>) -> T {
    match place {
        Some(place) => CURRENT.scope(place, work).await,
        None => work.await,
    }
}

/// Runs work as part of the trace in which this was called, even if the work then moves to a task of its own.
pub fn continuing<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    within(current(), work)
}

/// The text, if it is a lower-case hexadecimal number with so many digits.
fn hex(text: &str, digits: usize) -> Option<&str> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_digit)).then_some(text)
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
        assert_eq!(trace.id().to_string(), ID);
        let (first, second) = (trace.next().traceparent(), trace.next().traceparent());
        for header in [&first, &second] {
            assert!(header.starts_with(&format!("00-{ID}-")) && header.ends_with("-01"));
            assert!(!header.contains("00f067aa0ba902b7"));
            assert_eq!(Trace::continued(header).unwrap().id(), trace.id());
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
        let called = || Span::of_call(format_args!("call")).place().cloned();
        let sent = within(Some(trace.clone()), async {
            tokio::spawn(continuing(async move { called() })).await
        });
        let sent = sent.await.unwrap().unwrap();
        assert_eq!(sent.id(), trace.id());
        assert_ne!(sent, trace, "each call is a span of its own");
        assert_eq!(called(), None);
        assert_eq!(continuing(async { called() }).await, None);
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
