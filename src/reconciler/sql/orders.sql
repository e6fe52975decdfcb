COPY orders (order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after, ordered_at)
FROM STDIN WITH (FORMAT binary)
