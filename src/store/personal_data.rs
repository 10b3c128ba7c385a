//! Which columns contain personal data, for every table. The only list of it, and a test compares it with the schema.
//!
//! [`super::erasure`] erases them. A test finds each of them filled before an erasure, and finds nothing afterwards.

use Content::{Kept, Personal};

/// What a column contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing personal. It stays as it is.
    Kept,
    /// Personal data.
    Personal(Erasure),
}

/// How personal data is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erasure {
    /// The column becomes NULL.
    Null,
    /// The column becomes empty, because it can't be NULL.
    Empty,
    /// Members of the JSON are removed or replaced, as [`crate::payment_link::erasure`] says.
    Members,
    /// The text is replaced by a hash of it, so that it is still recognized.
    Hash,
}

/// Every column of every table.
///
/// What remains is needed: ids, amounts, statuses, times, the names of clients, and the card's masked number, which the books
/// need. `payment_links.reference` and other members of `payment_links.request`, such as the description, are for the books as
/// well: callers must not put personal data there. Callback endpoints and clients are the operator's own.
pub const TABLES: &[(&str, &[(&str, Content)])] = &[
    (
        "api_keys",
        &[
            ("id", Kept),
            ("name", Kept),
            ("key_hash", Kept),
            ("scopes", Kept),
            ("created_at", Kept),
            ("revoked_at", Kept),
            ("accounts", Kept),
            ("client_id", Kept),
        ],
    ),
    (
        "books",
        &[("singleton", Kept), ("feed_position", Kept), ("head", Kept)],
    ),
    (
        "callback_deliveries",
        &[
            ("endpoint_id", Kept),
            ("position", Kept),
            ("event_id", Kept),
            ("type", Kept),
            ("payment_link_id", Kept),
            ("generation", Kept),
            ("status", Kept),
            ("attempts", Kept),
            ("due_at", Kept),
            ("attempted_at", Kept),
            ("outcome", Kept),
            ("response_status", Kept),
            ("response_body", Personal(Erasure::Null)),
            ("milliseconds", Kept),
        ],
    ),
    (
        "callback_endpoints",
        &[
            ("id", Kept),
            ("url", Kept),
            ("types", Kept),
            ("accounts", Kept),
            ("description", Kept),
            ("header_name", Kept),
            ("header_value", Kept),
            ("secret", Kept),
            ("previous_secrets", Kept),
            ("previous_secrets_end_at", Kept),
            ("status", Kept),
            ("pause_reason", Kept),
            ("position", Kept),
            ("generation", Kept),
            ("failing_since", Kept),
            ("last_success_at", Kept),
            ("leased_until", Kept),
            ("created_at", Kept),
            ("updated_at", Kept),
            ("deleted_at", Kept),
        ],
    ),
    (
        "clients",
        &[
            ("id", Kept),
            ("name", Kept),
            ("retired", Kept),
            ("created_at", Kept),
        ],
    ),
    (
        "daily_reconciliations",
        &[
            ("account", Kept),
            ("business_day", Kept),
            ("state", Kept),
            ("reconciled_at", Kept),
            ("transactions", Kept),
            ("matched", Kept),
            ("difference_count", Kept),
            ("differences", Kept),
            ("due_at", Kept),
            ("leased_until", Kept),
        ],
    ),
    ("deployment", &[("singleton", Kept), ("environment", Kept)]),
    (
        "feed",
        &[
            ("singleton", Kept),
            ("id", Kept),
            ("head", Kept),
            ("pruned", Kept),
            ("pruned_id", Kept),
        ],
    ),
    (
        "feed_events",
        &[
            ("position", Kept),
            ("id", Kept),
            ("type", Kept),
            ("account", Kept),
            ("payment_link_id", Kept),
            ("occurred_at", Kept),
            ("event", Personal(Erasure::Members)),
        ],
    ),
    (
        "feed_outbox",
        &[("entry_id", Kept), ("link", Personal(Erasure::Members))],
    ),
    (
        "idempotency_keys",
        &[
            ("api_key_id", Kept),
            ("key", Personal(Erasure::Hash)),
            // It is a hash of the whole request. Whoever knows the rest could try out what is missing.
            ("request_hash", Personal(Erasure::Empty)),
            ("payment_link_id", Kept),
            ("response_body", Personal(Erasure::Null)),
            ("created_at", Kept),
            ("operation_id", Kept),
            ("message_id", Kept),
            ("freed_from", Kept),
        ],
    ),
    (
        "matched_transactions",
        &[
            ("account", Kept),
            ("transaction_id", Kept),
            ("transaction_at", Kept),
            ("movement_id", Kept),
            ("amount", Kept),
        ],
    ),
    (
        "messages",
        &[
            ("id", Kept),
            ("payment_link_id", Kept),
            ("account", Kept),
            ("channel", Kept),
            ("purpose", Kept),
            ("recipient", Personal(Erasure::Null)),
            ("note", Personal(Erasure::Null)),
            ("locale", Kept),
            ("status", Kept),
            ("failure", Kept),
            ("attempts", Kept),
            ("handed_over_at", Kept),
            ("created_by", Kept),
            ("created_at", Kept),
            ("completed_at", Kept),
            ("due_at", Kept),
            ("leased_until", Kept),
        ],
    ),
    (
        "movements",
        &[
            ("position", Kept),
            ("id", Kept),
            ("type", Kept),
            ("account", Kept),
            ("payment_link_id", Kept),
            ("event_id", Kept),
            ("currency", Kept),
            ("amount", Kept),
            ("net", Kept),
            ("occurred_at", Kept),
            ("dated_by", Kept),
            ("business_day", Kept),
            ("recorded_at", Kept),
            ("capture_id", Kept),
            ("operation_id", Kept),
            ("actor", Kept),
        ],
    ),
    (
        "operations",
        &[
            ("id", Kept),
            ("payment_link_id", Kept),
            ("account", Kept),
            ("kind", Kept),
            ("action", Personal(Erasure::Members)),
            ("amount", Kept),
            ("status", Kept),
            ("dojo_key", Kept),
            ("captures_before", Kept),
            ("dojo_id", Kept),
            ("failure", Personal(Erasure::Members)),
            ("response_body", Personal(Erasure::Null)),
            ("created_by", Kept),
            ("created_at", Kept),
            ("completed_at", Kept),
            ("leased_until", Kept),
            ("asked_until", Kept),
            ("due_at", Kept),
            ("read_back_at", Kept),
        ],
    ),
    (
        "payment_intents",
        &[
            ("id", Kept),
            ("account", Kept),
            ("payment_link_id", Kept),
            ("first_seen_at", Kept),
            ("last_seen_at", Kept),
            ("surplus_of", Kept),
            ("due_at", Kept),
            ("leased_until", Kept),
        ],
    ),
    (
        "payment_link_events",
        &[
            ("id", Kept),
            ("payment_link_id", Kept),
            ("kind", Kept),
            ("status_before", Kept),
            ("status_after", Kept),
            ("cause", Kept),
            ("detail", Personal(Erasure::Members)),
            ("occurred_at", Kept),
        ],
    ),
    (
        "payment_links",
        &[
            ("id", Kept),
            ("account", Kept),
            ("environment", Kept),
            ("status", Kept),
            ("request", Personal(Erasure::Members)),
            ("reference", Kept),
            ("currency", Kept),
            ("amount", Kept),
            ("tips_amount", Kept),
            ("total_amount", Kept),
            ("refunded_amount", Kept),
            ("expire_at", Kept),
            ("payment_intent_id", Kept),
            ("url", Kept),
            ("payment", Kept),
            ("attempts", Kept),
            ("failure", Personal(Erasure::Members)),
            ("due_at", Kept),
            ("created_by", Kept),
            ("created_at", Kept),
            ("updated_at", Kept),
            ("synced_at", Kept),
            ("leased_until", Kept),
            ("asked_until", Kept),
            ("revision", Kept),
            ("dojo_updated_at", Kept),
            ("dojo_status", Kept),
            ("disputed_since", Kept),
            ("mismatch", Kept),
            ("captures", Kept),
            ("unsettled_status", Kept),
            ("refunds_elsewhere", Kept),
            ("refunds_read_at", Kept),
            ("erased_at", Kept),
        ],
    ),
    (
        "pruning",
        &[("singleton", Kept), ("position", Kept), ("due_at", Kept)],
    ),
    (
        "reminders",
        &[
            ("id", Kept),
            ("payment_link_id", Kept),
            ("number", Kept),
            ("account", Kept),
            ("due_at", Kept),
            ("leased_until", Kept),
        ],
    ),
    ("renewals", &[("replaced_id", Kept), ("successor_id", Kept)]),
    (
        "retention",
        &[
            ("kind", Kept),
            ("position", Kept),
            ("at", Kept),
            ("id", Kept),
            ("due_at", Kept),
        ],
    ),
    (
        "short_addresses",
        &[
            ("code", Kept),
            ("base_url", Kept),
            ("payment_link_id", Kept),
        ],
    ),
    (
        "webhook_events",
        &[
            ("id", Kept),
            ("account", Kept),
            ("dedup_key", Kept),
            ("body", Personal(Erasure::Empty)),
            ("event_type", Kept),
            ("payment_intent_id", Kept),
            ("payment_status", Kept),
            ("dojo_created_at", Kept),
            ("problem", Kept),
            ("payment_link_id", Kept),
            ("deliveries", Kept),
            ("received_at", Kept),
            ("last_received_at", Kept),
        ],
    ),
];
