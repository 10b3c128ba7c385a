-- Short addresses, to give to customers. Each leads to a page of this service, which leads on to Dojo's while the link can be
-- paid. They are in a table of their own because no change of a link concerns them.

CREATE TABLE short_addresses (
    -- 80 random bits. Whoever knows it can pay the link.
    code text PRIMARY KEY,
    -- The base URL when the address was handed out. Later addresses may have another one.
    base_url text NOT NULL,
    payment_link_id uuid NOT NULL UNIQUE REFERENCES payment_links (id)
);
