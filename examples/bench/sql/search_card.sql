\set rare random(1, :links / 1000)
SELECT * FROM payment_links
WHERE payment ->> 'last4' = lpad(:rare::text, 4, '0')
ORDER BY created_at DESC, id DESC LIMIT 51;
