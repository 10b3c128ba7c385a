\set link random(1, :links)
SELECT * FROM payment_links
WHERE lower(request #>> '{customer,emailAddress}') = 'customer-' || :link || '@example.com'
ORDER BY created_at DESC, id DESC LIMIT 51;
