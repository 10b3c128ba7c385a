-- What callers do to a payment through this service: captures, refunds, cancellations and the rest. Each stands here
-- before Dojo is asked and its outcome after, so that a lost answer or a crash in between is found and seen through.
CREATE TABLE operations (
    -- A version 7 UUID: it sorts by time.
    id uuid PRIMARY KEY,
    payment_link_id uuid NOT NULL REFERENCES payment_links,
    account text NOT NULL,
    kind text NOT NULL CHECK (kind IN (
        'cancel', 'capture', 'refund', 'reversal', 'amount', 'tipsAmount', 'receipt'
    )),
    -- What is asked of Dojo, whole.
    action jsonb NOT NULL,
    -- Minor units that it captures, refunds or sets.
    amount bigint CHECK (amount >= 0),
    status text NOT NULL CHECK (status IN ('Pending', 'Succeeded', 'Failed', 'Unconfirmed')),
    -- The `idempotencyKey` that goes to Dojo with each try. Only refunds have one there.
    dojo_key text,
    -- The captures that Dojo had before it was asked for this one, by their ids. NULL: it was not asked.
    captures_before text[],
    -- Dojo's id for what was done.
    dojo_id text,
    failure jsonb,
    -- The answer, word for word, for repetitions of the request.
    response_body text,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    -- As on payment_links: who works on it, until when a request may have left, when to see to it.
    leased_until timestamptz,
    asked_until timestamptz,
    due_at timestamptz,
    CHECK (kind <> 'refund' OR (amount > 0 AND dojo_key IS NOT NULL))
);

CREATE INDEX operations_of_link ON operations (payment_link_id, id);
CREATE INDEX operations_due ON operations (account, due_at) WHERE due_at IS NOT NULL;
-- Two changes of one payment at once could not be told apart when an answer is lost. Refunds can: they have keys.
CREATE UNIQUE INDEX operations_one_at_a_time ON operations (payment_link_id)
    WHERE status = 'Pending' AND kind NOT IN ('refund', 'receipt');

-- A key leads to a link or to an operation; to neither, where the last try provably did nothing.
ALTER TABLE idempotency_keys
    ADD COLUMN operation_id uuid REFERENCES operations,
    ADD CHECK (payment_link_id IS NULL OR operation_id IS NULL);

CREATE INDEX idempotency_keys_of_operation ON idempotency_keys (operation_id) WHERE operation_id IS NOT NULL;

-- What was captured, part by part. Only `Manual` payments have parts; Dojo is asked about those of before this column,
-- over an hour, so that what is due meanwhile is not held up.
ALTER TABLE payment_links ADD COLUMN captures jsonb NOT NULL DEFAULT '[]';

UPDATE payment_links SET due_at = now() + random() * interval '1 hour'
WHERE status = 'Captured' AND request->>'captureMode' = 'Manual';
