\set link random(1, :links)
SELECT * FROM payment_links
WHERE reference = 'Order ' || :link
ORDER BY created_at DESC, id DESC LIMIT 51;
