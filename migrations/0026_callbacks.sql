-- Callbacks: events of the feed that are sent to the endpoints of other services.

-- A durable subscription to the feed.
CREATE TABLE callback_endpoints (
    id uuid PRIMARY KEY,
    url text NOT NULL,
    -- NULL: events of every type.
    types text[] CHECK (cardinality(types) > 0),
    -- NULL: events about links of every account.
    accounts text[] CHECK (cardinality(accounts) > 0),
    description text,
    -- A header that the endpoint's owner wants in every callback.
    header_name text,
    header_value text,
    secret text NOT NULL,
    -- After a rotation, these sign as well until then.
    previous_secrets text[] NOT NULL DEFAULT '{}',
    previous_secrets_end_at timestamptz,
    status text NOT NULL DEFAULT 'Active' CHECK (status IN ('Active', 'Paused')),
    pause_reason text CHECK (pause_reason IN ('Requested', 'Gone', 'NoSuccess')),
    -- Every event up to this position has a row in `callback_deliveries`, unless the endpoint doesn't want it.
    position bigint NOT NULL,
    -- Counts the replays. A delivery of an earlier generation doesn't count as one.
    generation integer NOT NULL DEFAULT 0,
    -- When the first attempt failed after the last one that succeeded.
    failing_since timestamptz,
    last_success_at timestamptz,
    -- One replica at a time serves an endpoint.
    leased_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Its deliveries are removed in batches, and then the row.
    deleted_at timestamptz,
    CHECK ((status = 'Paused') = (pause_reason IS NOT NULL)),
    CHECK ((header_name IS NULL) = (header_value IS NULL)),
    CHECK (previous_secrets = '{}' OR previous_secrets_end_at IS NOT NULL)
);

-- A creation that is repeated because its response was lost must not make every callback arrive twice.
CREATE UNIQUE INDEX callback_endpoints_url ON callback_endpoints (url) WHERE deleted_at IS NULL;

-- A few rows that are updated all the time.
ALTER TABLE callback_endpoints SET (
    fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000
);

-- Events that were sent to an endpoint, or that wait because an attempt failed.
CREATE TABLE callback_deliveries (
    endpoint_id uuid NOT NULL REFERENCES callback_endpoints,
    -- The event's position in the feed.
    position bigint NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    payment_link_id uuid NOT NULL,
    generation integer NOT NULL,
    -- Pending: to be attempted, not before `due_at` and not before the link's earlier pending deliveries.
    status text NOT NULL CHECK (status IN ('Pending', 'Delivered', 'Failed')),
    attempts smallint NOT NULL,
    due_at timestamptz NOT NULL,
    -- The last attempt. NULL: there was none.
    attempted_at timestamptz,
    outcome text,
    response_status smallint,
    response_body text,
    milliseconds integer,
    PRIMARY KEY (endpoint_id, position)
);

CREATE INDEX callback_deliveries_pending ON callback_deliveries (endpoint_id, payment_link_id, position)
    WHERE status = 'Pending';

CREATE INDEX callback_deliveries_due ON callback_deliveries (endpoint_id, due_at) WHERE status = 'Pending';

CREATE INDEX callback_deliveries_oldest ON callback_deliveries (endpoint_id, position) WHERE status = 'Pending';

CREATE INDEX callback_deliveries_undelivered ON callback_deliveries (endpoint_id, position) INCLUDE (status)
    WHERE status <> 'Delivered';

-- Retries leave dead entries at the beginning of indexes that are read all the time.
ALTER TABLE callback_deliveries SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);
