-- What the reconciler writes in bulk, with fewer and cheaper index entries. Every rule of 0001 stays.
-- oldest: 1

-- step: rows that are changed later keep their new version on the same page, so that no index is written
-- (Pages that exist stay as full as they are.)
ALTER TABLE coupons SET (fillfactor = 50);
ALTER TABLE wallets SET (fillfactor = 50);

-- step: the same rule, compared sooner: users differ where templates do not
CREATE UNIQUE INDEX CONCURRENTLY coupons_user_id_template_id_key ON coupons (user_id, template_id);

-- step:
ALTER TABLE coupons
    ADD CONSTRAINT coupons_user_id_template_id_key UNIQUE USING INDEX coupons_user_id_template_id_key,
    DROP CONSTRAINT coupons_template_id_user_id_key;

-- step: one index instead of two, since entries are only searched by user
CREATE UNIQUE INDEX CONCURRENTLY wallet_entries_new_pkey ON wallet_entries (user_id, entry_id);

-- step:
DROP INDEX wallet_entries_by_user;
ALTER TABLE wallet_entries
    DROP CONSTRAINT wallet_entries_pkey,
    ADD CONSTRAINT wallet_entries_pkey PRIMARY KEY USING INDEX wallet_entries_new_pkey;

-- step: orders are written in the order of time, so a summary per range of pages finds those of some days as well
CREATE INDEX CONCURRENTLY orders_by_time_brin ON orders USING brin (ordered_at);

-- step:
DROP INDEX orders_by_time;
ALTER INDEX orders_by_time_brin RENAME TO orders_by_time;
