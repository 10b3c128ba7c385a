-- Several Dojo accounts, one for each site of a company. A link has always carried its account's name; what is new is
-- that an API key may be limited to some of them, and that each account has its own background.

-- The accounts, by name, that the key is open to. NULL: all of them, those that are still to come too.
ALTER TABLE api_keys ADD COLUMN accounts text[] CHECK (cardinality(accounts) > 0);

-- A page of one account's links, newest first.
CREATE INDEX payment_links_by_account ON payment_links (account, created_at DESC, id DESC);

-- What is due, account by account: the work of one whose key Dojo refuses piles up and stays, and nobody else's claim
-- may have to read past it.
CREATE INDEX payment_links_due_by_account ON payment_links (account, due_at) WHERE due_at IS NOT NULL;
DROP INDEX payment_links_due;
CREATE INDEX payment_intents_due_by_account ON payment_intents (account, due_at) WHERE due_at IS NOT NULL;
DROP INDEX payment_intents_due;
