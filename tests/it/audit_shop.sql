-- A small consistent shop: one order paid with a coupon, one cancelled, one event not yet published.
TRUNCATE products, stock_adjustments, coupon_templates, coupons, wallets, wallet_entries, orders, order_items,
         idempotency_records, cell_cursors, outbox, relay_progress, log_quarantine RESTART IDENTITY;

INSERT INTO products VALUES ('cup', 'Cup "big"', 500, 'suspended', 5, now(), now()),
                            ('tea', 'Tea', 1000, 'on_sale', 8, now(), now());
INSERT INTO stock_adjustments (product_id, delta, stock_after, adjusted_at)
VALUES ('tea', 12, 12, now()), ('cup', 5, 5, now()), ('tea', -2, 10, now());

INSERT INTO coupon_templates
VALUES ('t1', 1, 'Welcome', 'percent', 25, 500, 0, 10, 2, to_timestamp(1700000000), to_timestamp(1900000000), now(), now());
INSERT INTO coupons VALUES
    ('00000000-0000-7000-8000-0000000000c1', 't1', 'u1', 1, to_timestamp(1700000001.5),
     to_timestamp(1700000001.5) + interval '8760 hours', '00000000-0000-7000-8000-000000000001', now()),
    ('00000000-0000-7000-8000-0000000000c2', 't1', 'u2', 2, to_timestamp(1700000002),
     to_timestamp(1700000002) + interval '8760 hours', NULL, NULL);

INSERT INTO wallets VALUES ('u1', 8500, now()), ('u2', 5000, now());
INSERT INTO wallet_entries (user_id, kind, amount, balance_after, ref_id, at) VALUES
    ('u1', 'charge', 10000, 10000, gen_random_uuid(), now()),
    ('u2', 'charge', 5000, 5000, gen_random_uuid(), now()),
    ('u1', 'payment', -1500, 8500, '00000000-0000-7000-8000-000000000001', now()),
    ('u2', 'payment', -500, 4500, '00000000-0000-7000-8000-000000000002', now()),
    ('u2', 'refund', 500, 5000, '00000000-0000-7000-8000-000000000002', now());

INSERT INTO orders VALUES
    ('00000000-0000-7000-8000-000000000001', 'u1', 'paid', 2000, 500, 1500,
     '00000000-0000-7000-8000-0000000000c1', false, 8500, now(), NULL),
    ('00000000-0000-7000-8000-000000000002', 'u2', 'cancelled', 500, 0, 500, NULL, false, 5000, now(), now());
INSERT INTO order_items VALUES
    ('00000000-0000-7000-8000-000000000001', 1, 'tea', 'Tea', 1000, 2, 2000),
    ('00000000-0000-7000-8000-000000000002', 1, 'cup', 'Cup', 500, 1, 500);

INSERT INTO idempotency_records VALUES ('u1 key', '\x000102030405060708090a0b0c0d0e0f', '\x93ff00', to_timestamp(1700000100.25));
INSERT INTO cell_cursors (cell, epoch, seq, tip, events_written) VALUES (0, 3, 7, 'tip7', 3);
INSERT INTO relay_progress (events_published) VALUES (2);
INSERT INTO outbox (event_id, routing_key, payload, created_at)
VALUES ('00000000-0000-7000-8000-000000000002.cancelled', 'order.cancelled', '{}', now());
