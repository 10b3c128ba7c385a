-- no-transaction
-- Messages by their recipient, to erase what is known about an email address.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_recipient ON messages (lower(recipient)) WHERE recipient IS NOT NULL;
