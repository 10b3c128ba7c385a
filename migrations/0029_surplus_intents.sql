-- no-transaction
-- Surplus intents by their link: a link whose surplus intent can still be paid must not be renewed.
--
-- The index is built concurrently, so that webhooks don't wait for it (see `0013_unsettled_links.sql`).
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_intents_surplus ON payment_intents (surplus_of)
    WHERE surplus_of IS NOT NULL;
