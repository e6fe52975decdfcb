-- Roles with the least rights, for an installation in which not every instance may do everything.
-- Run this file after each `rushgate migrate`. Running it again changes nothing. It stops at the
-- first error, and changes nothing then.
--
-- The order of the steps, and who runs them:
--
--   createuser --pwprompt rushgate_owner; createdb --owner rushgate_owner rushgate
--       once, as a superuser
--   RUSHGATE_DATABASE_URL=postgres://rushgate_owner:…@host/rushgate rushgate migrate
--       as the owner of the tables
--   psql --file deploy/roles.sql rushgate
--       as a superuser, or as an owner who may create roles
--   \password rushgate_api …
--       once for each role
--
-- rushgate_api          RUSHGATE_ROLES=api: reads what the API shows, makes lists of popular
--                       products
-- rushgate_reconciler   RUSHGATE_ROLES=reconciler: writes what the log says; removes only old keys
-- rushgate_relay        RUSHGATE_ROLES=relay,scheduler: empties the outbox, makes and prunes lists
--                       of popular products
-- rushgate_audit        rushgate audit: reads everything
--
-- This needs three processes: an instance has one address of PostgreSQL, and each of these roles is
-- enough for its own part only. An instance checks its rights when it starts, and ends with a line
-- that names what is missing.

\set ON_ERROR_STOP on
BEGIN;

DO $$
BEGIN
    IF to_regclass('cell_cursors') IS NULL THEN
        RAISE EXCEPTION 'the tables are not here: run `rushgate migrate` first, as the owner of this database';
    END IF;
    IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
        RAISE EXCEPTION 'role "%" may not make roles: run this file as a superuser', current_user;
    END IF;
END
$$;

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['rushgate_api', 'rushgate_reconciler', 'rushgate_relay', 'rushgate_audit'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT', name);
        END IF;
    END LOOP;
END
$$;

-- Only the owner creates objects here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO rushgate_api, rushgate_reconciler, rushgate_relay, rushgate_audit;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM rushgate_api, rushgate_reconciler, rushgate_relay, rushgate_audit;

-- Every instance checks whether it can use the schema; those up to commit fb10183 read
-- _sqlx_migrations.
GRANT SELECT ON schema_migrations, _sqlx_migrations TO rushgate_api, rushgate_reconciler, rushgate_relay, rushgate_audit;

GRANT SELECT ON orders, order_items, order_templates, wallet_entries, popular_refreshes, popular_products, idempotency_records,
    coupons, stock_adjustments, cell_cursors, outbox, relay_progress, quarantined_facts TO rushgate_api;
-- POST /v1/products/popular/refresh
GRANT INSERT ON popular_refreshes, popular_products TO rushgate_api;
GRANT DELETE ON popular_refreshes TO rushgate_api;

GRANT SELECT, INSERT ON products, stock_adjustments, coupon_templates, coupons, wallets, wallet_entries, orders,
    order_items, purchases, coupon_terms, idempotency_records, cell_cursors, cell_epochs, outbox, log_quarantine,
    quarantined_facts TO rushgate_reconciler;
-- Every instance reads these for /metrics.
GRANT SELECT ON popular_refreshes, relay_progress TO rushgate_reconciler;
GRANT UPDATE ON products, coupon_templates, coupon_terms, coupons, wallets, orders, purchases, idempotency_records, cell_cursors, log_quarantine,
    quarantined_facts TO rushgate_reconciler;
GRANT DELETE ON idempotency_records TO rushgate_reconciler;

GRANT SELECT ON orders, order_items, outbox, relay_progress, cell_cursors, popular_refreshes, popular_products
    TO rushgate_relay;
GRANT DELETE ON outbox, popular_refreshes TO rushgate_relay;
GRANT INSERT ON popular_refreshes, popular_products TO rushgate_relay;
GRANT UPDATE ON relay_progress TO rushgate_relay;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO rushgate_audit;

COMMIT;
