-- The feed: what happened to every link, in one order for all readers.
--
-- An identity column, a timestamp or a transaction's id is assigned while a row is written, so a row with a smaller one may
-- become visible after a row with a greater one, and a reader that goes by it misses the first. A counter that every writer
-- increments has no such gaps, but each writer waits until the one before it has committed. So changes are committed without
-- a position, into `feed_outbox`. One replica at a time, the one that has locked the row in `feed`, moves what is visible
-- there to `feed_events` and numbers it without gaps. Its transactions follow one another, so positions become visible in
-- order.

-- One row.
CREATE TABLE feed (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- Distinguishes this feed from that of another database.
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- The position of the newest event. 0: there has been none.
    head bigint NOT NULL DEFAULT 0,
    -- The position of the newest event that was removed, and its id. NULL: none was removed.
    pruned bigint NOT NULL DEFAULT 0,
    pruned_id uuid,
    CHECK (pruned <= head)
);

INSERT INTO feed DEFAULT VALUES;

-- Changes that have no position yet.
CREATE TABLE feed_outbox (
    -- The timeline entry that records the change. A link's entries are numbered in the order in which they happened, because
    -- each is inserted while its link is locked.
    entry_id bigint PRIMARY KEY,
    -- The link's row as the change left it, without what an event doesn't need.
    link jsonb NOT NULL
);

-- Many rows pass through it, and it is nearly empty at any time.
ALTER TABLE feed_outbox SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 2000000000
);

-- A change may be several events: one response of Dojo's can report a declined attempt, a capture and a refund.
CREATE TABLE feed_events (
    position bigint PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    type text NOT NULL,
    account text NOT NULL,
    payment_link_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    -- What readers get, including the above. It stays as it is, whatever later versions would write.
    event json NOT NULL
);

CREATE INDEX feed_events_of_link ON feed_events (payment_link_id, position);

-- A trigger, so that no entry is left out, not even one that an earlier version writes during an upgrade. Its condition
-- passes over the entries of webhooks: nothing is published because of a webhook alone.
CREATE FUNCTION feed_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO feed_outbox (entry_id, link)
    SELECT NEW.id,
           to_jsonb(link) || jsonb_build_object(
               'request', link.request - ARRAY['customer', 'billingAddress', 'shippingDetails'],
               'payment', NULL)
    FROM payment_links link WHERE link.id = NEW.payment_link_id;
    RETURN NULL;
END $$;

CREATE TRIGGER feed_change AFTER INSERT ON payment_link_events FOR EACH ROW
    WHEN (NEW.kind IN (
        'created', 'failed', 'reconciled', 'amountMismatch', 'unknownAtDojo', 'surplusPaid',
        'operationSucceeded', 'operationFailed', 'operationUnconfirmed'
    ))
    EXECUTE FUNCTION feed_change();
