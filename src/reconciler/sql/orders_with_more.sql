COPY orders (
    order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after, ordered_at,
    external, wallet_amount, hold_expires_at, reference
)
FROM STDIN WITH (FORMAT binary)
