//! The types of problems: one table of everything that is fixed about each.
//!
//! The OpenAPI document, `docs/problems.md` and the page at `/docs/problems` are generated from it. To add a type, add a row
//! here, map an [`Error`](super::error::Error) to it in `error.rs`, and give it an example in `examples.rs`. The compiler
//! asks for the example.

/// What every problem's `type` starts with.
pub(super) const PREFIX: &str = "/docs/problems#";

/// What applies to all problems, for `docs/problems.md` and the page at `/docs/problems`. In Markdown.
pub(super) const INTRODUCTION: &str = "\
Every response of the API with a status of 400 or more is [`application/problem+json`](https://www.rfc-editor.org/rfc/rfc9457). Use
`type` in your program: it's `/docs/problems#` followed by one of the types below, which is also where the service documents it. `detail` and
`title` are for people, and their wording may change. New types may be added, so handle an unknown type by its status.

A request that isn't valid HTTP, or whose headers are too large, gets a 400 or 431 without a body.

In short: if you get no response, a 429, any 5xx, `body-incomplete`, or a 409 with `Retry-After`, send the same request again
with the same `Idempotency-Key` (*the key* below). Retrying any other 4xx won't help.
";

macro_rules! problem_types {
    ($($name:ident $slug:literal [$($status:literal),*] $title:literal $advice:literal;)*) => {
        /// The type of a problem, by which programs tell problems apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum ProblemType {
            $($name,)*
        }

        impl ProblemType {
            /// Every type, in the order of the documentation.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The end of the problem's `type`, after [`PREFIX`].
            pub(crate) const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// The statuses that it comes with, the usual one first. None if it can come with any other status.
            pub(crate) const fn statuses(self) -> &'static [u16] {
                match self { $(Self::$name => &[$($status),*],)* }
            }

            /// The type in a few words.
            pub(crate) const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What the caller should do about it. In Markdown.
            pub(crate) const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

problem_types! {
    MalformedJson "malformed-json" [400] "Malformed JSON"
        "The body is not valid JSON. Fix it and send it again.";
    BodyIncomplete "body-incomplete" [400] "Incomplete body"
        "The body was cut off on its way. Send the same request again.";
    Unauthenticated "unauthenticated" [401] "Not authenticated"
        "Send `Authorization: Bearer dpl_…` with an active API key.";
    BadSignature "bad-signature" [401] "Invalid signature"
        "For Dojo's webhooks: the signature in `dojo-signature` doesn't match this body with any of the account's configured secrets. For the \
         operator: run `dojo-payment-links check`, which checks whether the settings contain the secret that Dojo signs with. The secret must be \
         that of this account's subscription, and the subscription's URL must end with this account's path: `/webhooks/dojo`, or \
         `/webhooks/dojo/{account}` for an account other than `default`. A proxy must pass on the header, and every byte of the body as it is. \
         Clocks don't matter.";
    Forbidden "forbidden" [403] "Missing scope"
        "Use an API key that has the scope named in `detail`.";
    NotFound "not-found" [404] "Not found"
        "Check the path and the id. What belongs to accounts that the API key has no access to isn't found either.";
    MethodNotAllowed "method-not-allowed" [405] "Method not allowed"
        "Use one of the methods listed in the `Allow` header.";
    RequestInProgress "request-in-progress" [409] "Request in progress"
        "An earlier request with the same key is still in progress. Send the same request again after `Retry-After`.";
    OperationInProgress "operation-in-progress" [409] "Another operation in progress"
        "Nothing was done: the outcome of another operation on this payment is not known yet. Send the same request again \
         after `Retry-After`.";
    RefundableAmountUnclear "refundable-amount-unclear" [409] "Refundable amount unclear"
        "Nothing was done: until the outcome of other refunds is known, it's unclear whether enough is left to refund. Send the \
         same request again after `Retry-After`.";
    NotPossible "not-possible" [409] "Not possible in this state"
        "Nothing was done. `allowedActions` lists the operations that the payment allows now, and `remaining` says how much is left \
         to capture or to refund.";
    NotPayable "not-payable" [409] "Not payable"
        "Nobody can pay the link: `detail` says why. If there is a `Retry-After`, wait that long and send the same request \
         again.";
    NotRenewable "not-renewable" [409] "Not renewable"
        "Nothing was done: `detail` says why. If the link can still be paid, cancel it first. If another link has taken its place, \
         `paymentLinkId` is that link. If there is a `Retry-After`, wait that long and send the same request again.";
    NotErasable "not-erasable" [409] "Not erasable"
        "Nothing was erased: `detail` says what is still open about the link. If there is a `Retry-After`, wait that long and send \
         the same request again.";
    NotCreated "not-created" [409] "Link not created"
        "Nothing was created. If you still need the link, send the request with a new key.";
    NotDone "not-done" [409] "Operation not performed"
        "Nothing was done. If you still need the operation, send the request with a new key.";
    OutcomeUnconfirmed "outcome-unconfirmed" [409] "Outcome unconfirmed"
        "The outcome can't be determined automatically. Don't retry with a new key: an operator must check the payment in Dojo's \
         portal and record the outcome.";
    UrlTaken "url-taken" [409] "URL taken"
        "Nothing was done: another callback endpoint has this URL. Change that one, rotate its secret if you don't have it, or \
         delete it.";
    TooManyEndpoints "too-many-endpoints" [409] "Too many endpoints"
        "Nothing was done. Delete a callback endpoint that is no longer needed.";
    EventsRemoved "events-removed" [410] "Events removed"
        "For `GET /v1/events` and replays: events that followed this `after` have been removed, so it's not known which of them you missed. List the \
         links that changed since you last read the feed (`GET /v1/payment-links?updatedAfter=…&sort=updatedAt`), then read the feed \
         without `after`.";
    CursorUnknown "cursor-unknown" [410] "Cursor unknown"
        "For `GET /v1/events` and replays: this `after` is not a place in this feed. It comes from another database, or from before a backup \
         was restored. List the links that changed since then, as for `events-removed`, and read the feed without `after`. It \
         may repeat events that you have processed, which have the same ids.";
    Erased "erased" [410] "Erased"
        "Nothing was done. The key was used before, and the personal data of the link that it led to has been erased since. Read \
         the link or its operations to learn the outcome. For another link or operation, use a new key.";
    BodyTooLarge "body-too-large" [413] "Body too large"
        "Send at most 256 KiB.";
    UnsupportedMediaType "unsupported-media-type" [415] "Unsupported media type"
        "Send `Content-Type: application/json`.";
    InvalidRequest "invalid-request" [422] "Invalid request"
        "`errors` lists everything that is wrong. Fix it and send the request again.";
    IdempotencyKeyReused "idempotency-key-reused" [422] "Idempotency key reused"
        "The key was already used for a different request. Use a new key.";
    RejectedByDojo "rejected-by-dojo" [422, 409] "Rejected by Dojo"
        "Dojo rejected the request, and nothing was done. `detail` and `errors` contain Dojo's reasons: fix them and use a new key. \
         Status 409 means that the state of the payment doesn't allow the operation.";
    RateLimited "rate-limited" [429] "Rate limit exceeded"
        "Nothing was done. Send the same request again after `Retry-After`, and send fewer requests per second.";
    InternalError "internal-error" [500] "Internal error"
        "Send the same request again later. Report the problem with its `requestId`.";
    DojoKeyRejected "dojo-key-rejected" [502] "Dojo rejected the API key"
        "Nothing was done. For the operator: the account's Dojo API key is wrong or was revoked. Send the same request again \
         once that is fixed.";
    DojoMisrouted "dojo-misrouted" [502] "Not Dojo's API"
        "Nothing was done. For the operator: the server at `DOJO_API_URL` is not Dojo's API. Send the same request again once \
         that is fixed.";
    DojoNotReached "dojo-not-reached" [503] "Dojo not reached"
        "Nothing was done. Send the same request again after `Retry-After`.";
    DatabaseUnavailable "database-unavailable" [503] "Database unavailable"
        "Send the same request again after `Retry-After`.";
    NotStored "not-stored" [503] "Webhook not stored"
        "For Dojo's webhooks: the event could not be stored. Send it again.";
    Overloaded "overloaded" [503] "Overloaded"
        "Nothing was done. Send the same request again after `Retry-After`.";
    TimedOut "timed-out" [503] "Timed out"
        "The request took too long. Send it again with the same key to get its outcome.";
    AccountNotConfigured "account-not-configured" [503] "Account not configured"
        "For the operator: add the link's account to the settings again.";
    NotReady "not-ready" [503] "Not ready"
        "For operators, only from `/readyz`: `detail` says what is missing.";
    OutcomeUnknown "outcome-unknown" [504] "Outcome unknown"
        "The request may have taken effect. Send the same request again after `Retry-After`, with the same key. Never use a new \
         key.";
    Other "error" [] "Error"
        "The request was rejected before it reached the API. The status says why.";
}

impl ProblemType {
    /// The type with this slug.
    pub(super) fn from_slug(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.slug() == slug)
    }

    /// The statuses as they appear in the documentation.
    pub(super) fn statuses_text(self) -> String {
        let statuses: Vec<_> = self.statuses().iter().map(u16::to_string).collect();
        if statuses.is_empty() {
            "any other".to_owned()
        } else {
            statuses.join(", ")
        }
    }

    /// Every type as a table in Markdown.
    pub(super) fn table() -> String {
        let rows = Self::ALL.iter().map(|kind| {
            let (slug, statuses, advice) = (kind.slug(), kind.statuses_text(), kind.advice());
            format!("| `{slug}` | {statuses} | {advice} |\n")
        });
        let rows: String = rows.collect();
        format!("| type | status | what to do |\n| --- | --- | --- |\n{rows}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn slugs_are_unique() {
        let slugs: HashSet<_> = ProblemType::ALL.iter().map(|kind| kind.slug()).collect();
        assert_eq!(slugs.len(), ProblemType::ALL.len());
    }

    #[test]
    fn the_document_about_problems_contains_the_generated_table() {
        let page = include_str!("../../docs/problems.md");
        assert!(
            page.contains(INTRODUCTION),
            "docs/problems.md must start like the page at /docs/problems, with\n{INTRODUCTION}"
        );
        let table = ProblemType::table();
        assert!(
            page.contains(&table),
            "docs/problems.md is out of date; it must contain\n{table}"
        );
    }
}
