-- Who may call the API. Only the SHA-256 of a key is kept: a key has 256 random bits, so no slower hash
-- adds anything, and a stolen table opens no door. Revoked keys stay, for the timelines that name them.
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    key_hash bytea NOT NULL UNIQUE,
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

-- A name means one key at a time; a revoked key frees its name for the next.
CREATE UNIQUE INDEX api_keys_active_name ON api_keys (name) WHERE revoked_at IS NULL;
