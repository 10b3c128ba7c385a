-- Where the removal of old rows has got to, shared by all replicas: one row. A replica that locks the row may remove the next
-- batch once `due_at` has passed.
--
-- No index is needed. Webhooks are read in the order of their primary key, which is the order of their arrival.
CREATE TABLE pruning (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- The last webhook that this pass has examined: an id in `webhook_events`.
    position bigint NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO pruning DEFAULT VALUES;
