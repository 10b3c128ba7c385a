-- Dojo reports one figure for what went back to the customer, whoever refunded it. To know how much is left, the service
-- has to tell which of its own refunds that figure includes, and how much was refunded elsewhere, such as in Dojo's portal.
--
-- Both columns can be added without rewriting the table, so the lock is short; it must not wait behind a long transaction
-- and hold up webhooks meanwhile.
SET LOCAL lock_timeout = '5s';

ALTER TABLE payment_links
    -- A lower bound of what was refunded elsewhere, in minor units.
    ADD COLUMN refunds_elsewhere bigint NOT NULL DEFAULT 0,
    -- When the request to Dojo was sent that `refunded_amount` comes from. NULL: not known, or it came from search, which
    -- may lag behind.
    ADD COLUMN refunds_read_at timestamptz;
