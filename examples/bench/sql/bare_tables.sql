CREATE TABLE bare_links (
    id bigint PRIMARY KEY,
    status text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE bare_events (
    id text PRIMARY KEY,
    body bytea NOT NULL,
    link_id bigint NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE bare_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link_id bigint NOT NULL,
    status_before text NOT NULL,
    status_after text NOT NULL,
    detail jsonb NOT NULL,
    occurred_at timestamptz NOT NULL DEFAULT now()
);
