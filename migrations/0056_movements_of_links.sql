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

-- An erasure removes personal metadata from the link. Here and not in the service, so that it is removed from the books as well
-- if a replica of the previous version erases.
CREATE FUNCTION movements_keep_what_the_link_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    kept jsonb := CASE jsonb_typeof(NEW.request -> 'metadata') WHEN 'object' THEN NEW.request -> 'metadata' ELSE '{}' END;
BEGIN
    UPDATE movements
    SET metadata = metadata - ARRAY(SELECT key FROM jsonb_object_keys(metadata) key WHERE NOT kept ? key)
    WHERE payment_link_id = NEW.id
      AND EXISTS (SELECT FROM jsonb_object_keys(metadata) key WHERE NOT kept ? key);
    RETURN NULL;
END $$;

CREATE TRIGGER movements_keep_what_the_link_keeps
    AFTER UPDATE OF request ON payment_links FOR EACH ROW
    WHEN (NEW.erased_at IS NOT NULL AND OLD.request IS DISTINCT FROM NEW.request)
    EXECUTE FUNCTION movements_keep_what_the_link_keeps();
