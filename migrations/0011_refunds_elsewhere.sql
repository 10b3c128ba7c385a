-- Dojo reports one total for what was refunded to the customer, whoever refunded it. To know how much is left, the service
-- must tell which of its own refunds that total includes, and how much was refunded elsewhere, such as in Dojo's portal.
--
-- Neither column rewrites the table, so the lock is held only briefly.
ALTER TABLE payment_links
    -- A lower bound of what was refunded elsewhere, in minor units.
    ADD COLUMN refunds_elsewhere bigint NOT NULL DEFAULT 0,
    -- When the request was sent whose response set `refunded_amount`. NULL: unknown, or it came from Dojo's search, which
    -- may lag behind.
    ADD COLUMN refunds_read_at timestamptz;
