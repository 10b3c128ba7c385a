-- A caller is a client: it has a name, and stays the same client when its API key changes. Idempotency keys belong to the
-- client, so a request that is repeated under a new API key is a retry and not a second refund or link.
--
-- The previous version must still run on this schema. It identifies a caller by the id of its API key, and accepts a key
-- only if `revoked_at` is null. So a client's current key, the only one that both versions accept, has the client's id as
-- its own: both versions then agree on what an idempotency key refers to, and on the key that is sent to Dojo with a
-- refund. The ids of keys that have been replaced mean nothing.

-- Both tables are locked before any row is rewritten, so that no statement of a running replica can deadlock with this
-- migration. Meanwhile, API keys can still be looked up. Requests with an idempotency key wait.
LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE idempotency_keys IN SHARE ROW EXCLUSIVE MODE;

CREATE TABLE clients (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    -- A retired client exists only for idempotency keys that its successor of the same name has used again.
    retired boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX clients_name ON clients (name) WHERE NOT retired;

-- The keys of one name become one client. Its id is that of the active key, or else of the newest.
INSERT INTO clients (id, name, created_at)
SELECT DISTINCT ON (name) id, name, min(created_at) OVER (PARTITION BY name)
FROM api_keys
ORDER BY name, revoked_at IS NULL DESC, created_at DESC, id DESC;

-- What was requested under a client's earlier API keys belongs to the client. If the same idempotency key came with several
-- of its API keys, the request with the newest one becomes the client's, ...
UPDATE idempotency_keys known SET api_key_id = client.id
FROM api_keys key JOIN clients client ON client.name = key.name
WHERE known.api_key_id = key.id AND key.id <> client.id AND NOT EXISTS (
    SELECT FROM api_keys newer JOIN idempotency_keys taken ON taken.api_key_id = newer.id
    WHERE newer.name = key.name AND taken.key = known.key
      AND (newer.id = client.id OR (newer.created_at, newer.id) > (key.created_at, key.id))
      AND newer.id <> key.id
);

-- ... and the others stay with a retired client of their own.
INSERT INTO clients (id, name, retired, created_at)
SELECT id, name, true, created_at FROM api_keys key
WHERE NOT EXISTS (SELECT FROM clients WHERE id = key.id)
  AND EXISTS (SELECT FROM idempotency_keys WHERE api_key_id = key.id);

ALTER TABLE api_keys ADD COLUMN client_id uuid REFERENCES clients;
UPDATE api_keys key SET client_id = client.id FROM clients client
WHERE client.name = key.name AND NOT client.retired;
ALTER TABLE api_keys ALTER COLUMN client_id SET NOT NULL;

COMMENT ON COLUMN api_keys.id IS 'of the client''s current key: the client''s id';
COMMENT ON COLUMN api_keys.revoked_at IS 'when the key stops working; may be in the future';

-- The column keeps its name for the previous version, and contains the client's id. Validating the existing rows would read
-- all of them under a lock, and isn't necessary: each referred to `api_keys` so far, and got its client above.
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_api_key_id_fkey,
    ADD CONSTRAINT idempotency_keys_client FOREIGN KEY (api_key_id) REFERENCES clients (id) NOT VALID;

COMMENT ON COLUMN idempotency_keys.api_key_id IS 'the client''s id';

-- The previous version creates keys without a client: by command, and at its start for BOOTSTRAP_API_KEY. Such a key becomes
-- the current key of the client of that name, unless the client has one. The previous version checks that itself.
CREATE FUNCTION api_keys_without_client() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO clients (id, name) VALUES (NEW.id, NEW.name)
    ON CONFLICT (name) WHERE NOT retired DO NOTHING;
    SELECT id INTO STRICT NEW.client_id FROM clients WHERE name = NEW.name AND NOT retired;
    IF NEW.id <> NEW.client_id THEN
        UPDATE api_keys SET id = gen_random_uuid() WHERE id = NEW.client_id AND revoked_at IS NOT NULL;
        IF FOUND THEN
            NEW.id := NEW.client_id;
        END IF;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER api_keys_without_client BEFORE INSERT ON api_keys
    FOR EACH ROW WHEN (NEW.client_id IS NULL) EXECUTE FUNCTION api_keys_without_client();
