-- The console, a page for people: who is signed in, what they did, and what waits for a second person.

-- A person who is signed in. Only the SHA-256 of the session's token is kept: the token has 256 random bits, so a stolen table
-- opens no session.
CREATE TABLE console_sessions (
    token_hash bytea PRIMARY KEY,
    client_id uuid NOT NULL REFERENCES clients (id),
    -- The API key that the person signed in with. A key that is revoked ends the session. NULL: a proxy vouches for the person
    -- with each request.
    key_hash bytea REFERENCES api_keys (key_hash),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now()
);

-- What people did at the console. It contains no personal data of customers.
CREATE TABLE console_audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    -- NULL: somebody who could not sign in.
    client_id uuid REFERENCES clients (id),
    client text,
    what text NOT NULL,
    account text,
    payment_link_id uuid,
    -- What else identifies it: an operation, an amount, an address that signed in.
    detail text,
    outcome text NOT NULL,
    request_id text NOT NULL
);

CREATE INDEX console_audit_of_account ON console_audit (account, id);

-- Entries are added, and nothing else.
CREATE FUNCTION console_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'console_audit is append-only';
END $$;

CREATE TRIGGER console_audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON console_audit
    FOR EACH STATEMENT EXECUTE FUNCTION console_audit_is_append_only();

-- Operations that a second person must approve, with the request as it will be sent to this service's own API.
CREATE TABLE console_approvals (
    -- A version 7 UUID: it sorts by time.
    id uuid PRIMARY KEY,
    payment_link_id uuid NOT NULL REFERENCES payment_links (id),
    account text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('refund', 'capture', 'reversal', 'amount')),
    -- Minor units, in the link's currency.
    amount bigint NOT NULL,
    currency text NOT NULL CHECK (currency IN ('GBP', 'EUR')),
    -- The body of the request. NULL: it has none, or it was erased.
    body jsonb,
    -- It belongs to the client of the person who requested it, so whoever approves it, and however often, it is one operation.
    idempotency_key text NOT NULL,
    requested_by uuid NOT NULL REFERENCES clients (id),
    requested_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'Pending' CHECK (status IN ('Pending', 'Approved', 'Rejected', 'Erased')),
    decided_by uuid REFERENCES clients (id),
    decided_at timestamptz,
    -- What became of the approved operation. NULL: it isn't known yet, and the request may be sent again.
    outcome text,
    operation_id uuid,
    UNIQUE (requested_by, idempotency_key),
    CHECK (status NOT IN ('Approved', 'Rejected') OR decided_by IS NOT NULL),
    CHECK (status <> 'Approved' OR decided_by <> requested_by),
    CHECK (status = 'Approved' OR outcome IS NULL)
);

CREATE INDEX console_approvals_of_link ON console_approvals (payment_link_id, id);
CREATE INDEX console_approvals_open ON console_approvals (id)
    WHERE status = 'Pending' OR (status = 'Approved' AND outcome IS NULL);
