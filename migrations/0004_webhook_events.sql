-- Each webhook with a valid signature, once, as it came. Dojo sends an event at least once, so a second copy
-- counts up `deliveries` and does nothing else.
CREATE TABLE webhook_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account text NOT NULL,
    -- The event's id; for a body that could not be understood, the SHA-256 of it.
    dedup_key text NOT NULL,
    body bytea NOT NULL,
    event_type text,
    payment_intent_id text,
    payment_status text,
    dojo_created_at timestamptz,
    -- Why the body could not be understood. NULL: it was.
    problem text,
    -- The link whose timeline tells of the event. NULL: no link of ours, or none yet.
    payment_link_id uuid REFERENCES payment_links,
    deliveries integer NOT NULL DEFAULT 1,
    received_at timestamptz NOT NULL DEFAULT now(),
    last_received_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account, dedup_key)
);

-- Events that came before their link knew its intent.
CREATE INDEX webhook_events_unclaimed ON webhook_events (payment_intent_id) WHERE payment_link_id IS NULL;
