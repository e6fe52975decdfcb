SELECT o.order_id::text AS id,
       json_build_object(
           'user_id', o.user_id,
           'lines', (
               SELECT json_agg(
                   json_build_array(i.product_id, i.name, i.unit_price, i.quantity, i.amount, i.limit_number) ORDER BY i.line_no
               ) FROM order_items AS i WHERE i.order_id = o.order_id
           ),
           'subtotal', o.subtotal, 'discount', o.discount, 'total', o.total, 'coupon_id', o.coupon_id,
           'wallet_amount', o.wallet_amount, 'ordered_at', (extract(epoch FROM o.ordered_at) * 1000)::bigint,
           'hold_expires_at', (extract(epoch FROM o.hold_expires_at) * 1000)::bigint, 'reference', o.reference) AS shown
FROM orders AS o
WHERE o.status = 'pending' AND o.order_id > coalesce(nullif($1, '')::uuid, '00000000-0000-0000-0000-000000000000')
ORDER BY o.order_id LIMIT $2
