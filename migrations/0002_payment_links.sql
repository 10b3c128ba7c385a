-- The links, the payment intents that belong to them, and their timelines.
CREATE TABLE payment_links (
    id uuid PRIMARY KEY,
    account text NOT NULL,
    environment text NOT NULL CHECK (environment IN ('sandbox', 'production')),
    status text NOT NULL CHECK (status IN (
        'Pending', 'Failed', 'Created', 'Authorized', 'Captured', 'Refunded', 'Reversed', 'Canceled'
    )),
    -- What the caller asked for, whole: it is answered again, and sent to Dojo again should the creation
    -- have to be repeated.
    request jsonb NOT NULL,
    reference text NOT NULL,
    -- Amounts are minor units of one currency.
    currency text NOT NULL CHECK (currency IN ('GBP', 'EUR')),
    amount bigint NOT NULL CHECK (amount > 0),
    tips_amount bigint CHECK (tips_amount >= 0),
    total_amount bigint,
    refunded_amount bigint NOT NULL DEFAULT 0,
    expire_at timestamptz,
    -- The intent that the customer pays. A link has at most one.
    payment_intent_id text UNIQUE,
    -- The page to pay it on, as it was handed out.
    url text,
    payment jsonb,
    attempts jsonb NOT NULL DEFAULT '[]',
    failure jsonb,
    -- When Dojo has to be asked again, because what it told cannot be settled here. NULL: no need.
    due_at timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    synced_at timestamptz,
    -- Never an address to pay at without an intent, never a living link without one.
    CHECK ((payment_intent_id IS NULL) = (status IN ('Pending', 'Failed')))
);

-- The lists: newest first, whole or by one filter. The id breaks ties, so that a page's end is a place.
CREATE INDEX payment_links_newest ON payment_links (created_at DESC, id DESC);
CREATE INDEX payment_links_by_status ON payment_links (status, created_at DESC, id DESC);
CREATE INDEX payment_links_by_reference ON payment_links (reference, created_at DESC, id DESC);
CREATE INDEX payment_links_due ON payment_links (due_at) WHERE due_at IS NOT NULL;

-- Each intent that was ever heard of, ours or not. A webhook may name an intent before our own call that
-- created it has returned: both then meet on this row, whichever comes first, and none overlooks the other.
CREATE TABLE payment_intents (
    id text PRIMARY KEY,
    account text NOT NULL,
    payment_link_id uuid REFERENCES payment_links,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE payment_link_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_link_id uuid NOT NULL REFERENCES payment_links,
    kind text NOT NULL,
    status_before text,
    status_after text NOT NULL,
    cause jsonb NOT NULL,
    detail jsonb,
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX payment_link_events_of_link ON payment_link_events (payment_link_id, id);
