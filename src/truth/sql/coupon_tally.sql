-- $1: template, $2: beginning of the ids of some users
SELECT
    count(*), count(DISTINCT user_id), count(DISTINCT serial), min(serial), max(serial),
    count(*) FILTER (WHERE starts_with(user_id, $2))
FROM coupons
WHERE template_id = $1
