-- What a movement says about its link and the card is stored with the movement. The link may change afterwards: Dojo may report
-- another card, and an erasure removes metadata. What is booked stays as it was.
--
-- Older movements have none of it, and neither have those that the previous version books on this schema. The job `books` fills
-- it in, a few at a time. Until then, it is read from the link.

ALTER TABLE movements
    -- NULL: not filled in yet.
    ADD COLUMN reference text,
    -- All of the link's metadata. An erasure removes what is personal.
    ADD COLUMN metadata jsonb,
    -- NULL as well if Dojo hadn't reported it when the movement was booked.
    ADD COLUMN auth_code text,
    ADD COLUMN last4 text;

ALTER TABLE books
    -- All movements up to this position are filled in.
    ADD COLUMN filled_in bigint NOT NULL DEFAULT 0;

-- The books are append-only. Some things may become known later, once: when a movement occurred, by Dojo's list of transactions;
-- which operation requested it, if Dojo's response to that was lost; and what older movements say about their link. Besides,
-- metadata is removed when the link is erased.
CREATE OR REPLACE FUNCTION movement_stays() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed text[];
BEGIN
    IF TG_OP = 'UPDATE' THEN
        changed := ARRAY(
            SELECT key FROM jsonb_each(to_jsonb(NEW)) WHERE value IS DISTINCT FROM to_jsonb(OLD) -> key
        );
        IF OLD.dated_by <> 'transaction' AND NEW.dated_by = 'transaction'
           AND changed <@ ARRAY['occurred_at', 'business_day', 'dated_by'] THEN
            RETURN NEW;
        END IF;
        IF OLD.operation_id IS NULL AND NEW.operation_id IS NOT NULL AND changed <@ ARRAY['operation_id', 'actor'] THEN
            RETURN NEW;
        END IF;
        IF OLD.reference IS NULL AND NEW.reference IS NOT NULL
           AND changed <@ ARRAY['reference', 'metadata', 'auth_code', 'last4'] THEN
            RETURN NEW;
        END IF;
        IF changed = ARRAY['metadata'] AND NEW.metadata <@ OLD.metadata
           AND EXISTS (SELECT FROM payment_links WHERE id = NEW.payment_link_id AND erased_at IS NOT NULL) THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'movements are append-only';
END $$;
