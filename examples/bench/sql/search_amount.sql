\set rare random(1, :links / 1000)
SELECT * FROM payment_links
WHERE amount = 1000 + :rare
ORDER BY created_at DESC, id DESC LIMIT 51;
