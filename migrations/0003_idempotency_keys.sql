-- The Idempotency-Key header (IETF draft-ietf-httpapi-idempotency-key-header): the primary key decides which
-- of several requests with one key is the first, on however many replicas they arrive. A key is the API
-- key's own. Keys are kept: one that is forgotten could create twice.
CREATE TABLE idempotency_keys (
    api_key_id uuid NOT NULL REFERENCES api_keys,
    key text NOT NULL,
    -- SHA-256 of what was asked for, to tell a repetition from another request.
    request_hash bytea NOT NULL,
    -- The link that the key led to. NULL: the last try provably created nothing, so the next may try again.
    payment_link_id uuid REFERENCES payment_links,
    -- The answer, word for word, once the link is confirmed. NULL: it is not, and the link tells why.
    response_body text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (api_key_id, key)
);

CREATE INDEX idempotency_keys_of_link ON idempotency_keys (payment_link_id);
