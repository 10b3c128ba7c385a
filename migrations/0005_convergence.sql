-- What keeps links in step with Dojo when answers and webhooks get lost: who is to be looked at when, by whom,
-- and how new what is held here is.

ALTER TABLE payment_links
    -- Who works on the link now gives it back, or dies and loses it at this time.
    ADD COLUMN leased_until timestamptz,
    -- Until when a request to create the intent may have left. What it made may come to light later still.
    ADD COLUMN asked_until timestamptz,
    -- Counts every change of the link's state, so that an answer of Dojo's that was overtaken on its way by a
    -- webhook is told from one that was not.
    ADD COLUMN revision bigint NOT NULL DEFAULT 0,
    -- `updatedAt` of the newest state that Dojo answered. An older answer never overwrites it.
    ADD COLUMN dojo_updated_at timestamptz,
    -- Dojo's own word for the status, which may be one that we do not know.
    ADD COLUMN dojo_status text,
    -- Since when Dojo's answers have been behind what a webhook told.
    ADD COLUMN disputed_since timestamptz,
    -- An amount that Dojo reports in place of the one asked for: minor units and currency.
    ADD COLUMN mismatch jsonb;

-- `due_at` was for contradictions only. From here on each link that can still change has one.
UPDATE payment_links SET due_at = now() WHERE status NOT IN ('Failed', 'Refunded', 'Reversed', 'Canceled');

ALTER TABLE payment_intents
    -- A second intent for a link that has one: to be canceled, so that nobody can pay it.
    ADD COLUMN surplus_of uuid REFERENCES payment_links,
    -- When to ask Dojo whose the intent is, or to cancel it. NULL: settled.
    ADD COLUMN due_at timestamptz,
    ADD COLUMN leased_until timestamptz;

CREATE INDEX payment_intents_due ON payment_intents (due_at) WHERE due_at IS NOT NULL;
