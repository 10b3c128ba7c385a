-- no-transaction
-- Links by the last four digits of the card that paid.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_card_last4
    ON payment_links ((payment ->> 'last4'), created_at DESC, id DESC) WHERE payment ->> 'last4' IS NOT NULL;
