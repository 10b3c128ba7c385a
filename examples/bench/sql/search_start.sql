\set link random(1, :links)
SELECT * FROM payment_links
WHERE payment_intent_id = 'Order ' || :link OR reference LIKE 'Order ' || :link || '%'
ORDER BY created_at DESC, id DESC LIMIT 51;
