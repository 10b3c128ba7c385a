-- Erasing the personal data of a link, and retention by kind of data.
--
-- The previous version runs on this schema, too. It shows no `erased_at`, and it doesn't find an erased key. The trigger on
-- `idempotency_keys` keeps it from using such a key again.

ALTER TABLE payment_links
    -- When its personal data was erased. NULL: it wasn't.
    ADD COLUMN erased_at timestamptz;

ALTER TABLE idempotency_keys
    -- The link of the operation that left the key free again, because nothing was done. By it, the key is found.
    ADD COLUMN freed_from uuid;

-- What remains of an `Idempotency-Key` that was erased. Like the key that goes to Dojo with a refund, it is a hash of the
-- client's id and the key. A caller's key never contains a double quote, so none looks like this.
CREATE FUNCTION erased_key(client_id uuid, key text) RETURNS text LANGUAGE sql STABLE
    RETURN '"sha256:' || encode(sha256(uuid_send(client_id) || convert_to(key, 'UTF8')), 'hex');

-- A request that waits for the erasure of its key doesn't find the key afterwards, and would insert it as a new one. This
-- looks again, with a snapshot of its own, after the key is inserted.
CREATE FUNCTION idempotency_key_is_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM idempotency_keys
        WHERE api_key_id = NEW.api_key_id AND key = erased_key(NEW.api_key_id, NEW.key)
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'DPE01', MESSAGE = 'the idempotency key was erased';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER idempotency_key_is_erased AFTER INSERT ON idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION idempotency_key_is_erased();

-- A receiver may repeat in its response what it was sent before the link was erased. As above, this looks with a snapshot of
-- its own. An erasure locks every endpoint, so the response is stored either before it, or after it has committed.
CREATE FUNCTION callback_about_erased_link() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM payment_links WHERE id = NEW.payment_link_id AND erased_at IS NOT NULL) THEN
        NEW.response_body := NULL;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER callback_about_erased_link BEFORE INSERT OR UPDATE OF response_body ON callback_deliveries
    FOR EACH ROW WHEN (NEW.response_body IS NOT NULL) EXECUTE FUNCTION callback_about_erased_link();

-- Undoes a statement that has stored the body of a webhook while its link was being erased. The error makes the caller try
-- again, and by then the statement sees that the link is erased.
CREATE FUNCTION link_was_erased_meanwhile() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'the link was erased meanwhile';
END $$;

-- How far the removal of each kind of old data has got, shared by all replicas. As with `pruning`, a replica takes its turn by
-- locking the row.
CREATE TABLE retention (
    kind text PRIMARY KEY,
    -- The last row that was examined: by its number, by its id, or by a time and its id.
    position bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT 'epoch',
    id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    due_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO retention (kind)
VALUES ('events'), ('messages'), ('webhookBodies'), ('storedResponses'), ('links');
