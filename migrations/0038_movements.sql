-- The books: a row for each capture, refund and reversal.
--
-- One job at a time, the one that has locked the row in `books`, reads the feed in its order and books what it reports. So the
-- books show the same numbers as the feed, whichever version wrote the events, and begin with the oldest event that there is.
--
-- The previous version runs on this schema, too. It may remove old events of the feed that aren't booked yet, and it doesn't
-- report that an amount has decreased. Such amounts are booked with the link's next event about money.

-- One row.
CREATE TABLE books (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- The position of the last event of the feed that was booked.
    feed_position bigint NOT NULL,
    -- The position of the newest movement. 0: there has been none.
    head bigint NOT NULL DEFAULT 0
);

INSERT INTO books (feed_position) SELECT pruned FROM feed;

CREATE TABLE movements (
    -- In the order in which they were booked, without gaps.
    position bigint PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    type text NOT NULL CHECK (type IN ('capture', 'refund', 'reversal', 'captureCorrection', 'refundCorrection')),
    account text NOT NULL,
    payment_link_id uuid NOT NULL REFERENCES payment_links,
    -- The event that reported it.
    event_id uuid NOT NULL,
    currency text NOT NULL,
    -- Minor units.
    amount bigint NOT NULL CHECK (amount >= 0),
    -- What it adds to the merchant's money, in minor units. All of a link's together are what was captured less what was
    -- refunded.
    net bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    -- Who says when it occurred.
    dated_by text NOT NULL CHECK (dated_by IN ('dojo', 'operation', 'noticed', 'transaction')),
    business_day date NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    -- The capture's id at Dojo, if Dojo lists it.
    capture_id text,
    -- The operation that requested it. NULL: the customer's payment, or somebody else's doing.
    operation_id uuid REFERENCES operations,
    -- The client that requested it.
    actor text
);

CREATE INDEX movements_of_link ON movements (payment_link_id, position);
CREATE INDEX movements_of_day ON movements (business_day, position);
CREATE INDEX movements_of_type ON movements (type, business_day, position);
CREATE INDEX movements_of_account ON movements (account, business_day, position);
-- Nothing is booked twice.
CREATE UNIQUE INDEX movements_once_per_capture ON movements (payment_link_id, capture_id) WHERE capture_id IS NOT NULL;
CREATE UNIQUE INDEX movements_once_per_operation ON movements (operation_id) WHERE operation_id IS NOT NULL;

-- The books are append-only. Two things may become known later, once: when a movement occurred, by Dojo's list of transactions,
-- and which operation requested it, if Dojo's response to that was lost.
CREATE FUNCTION movement_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.dated_by <> 'transaction' AND NEW.dated_by = 'transaction'
           AND to_jsonb(NEW) - ARRAY['occurred_at', 'business_day', 'dated_by']
             = to_jsonb(OLD) - ARRAY['occurred_at', 'business_day', 'dated_by'] THEN
            RETURN NEW;
        END IF;
        IF OLD.operation_id IS NULL AND NEW.operation_id IS NOT NULL
           AND to_jsonb(NEW) - ARRAY['operation_id', 'actor'] = to_jsonb(OLD) - ARRAY['operation_id', 'actor'] THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'movements are append-only';
END $$;

CREATE TRIGGER movement_stays BEFORE UPDATE OR DELETE ON movements
    FOR EACH ROW EXECUTE FUNCTION movement_stays();
CREATE TRIGGER movements_stay BEFORE TRUNCATE ON movements
    FOR EACH STATEMENT EXECUTE FUNCTION movement_stays();

-- The local day to which a time belongs, for the books. A day ends at the cut-off: with 03:00, the first hours of a night belong
-- to the day before; with 22:00, the last hours of an evening belong to the next day.
CREATE FUNCTION business_day(at timestamptz, zone text, cutoff time) RETURNS date LANGUAGE sql STABLE
    RETURN (at AT TIME ZONE zone - cutoff
            + CASE WHEN cutoff >= '12:00' THEN interval '1 day' ELSE interval '0' END)::date;
