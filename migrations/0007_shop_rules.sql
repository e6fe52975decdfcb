-- Orders that are paid outside, sale windows and limits per user, terms of coupons that stay as issued. Only additions:
-- binaries that do not know them go on, until the log holds what they cannot apply (see the trigger).
-- oldest: 2

-- step: what the log needs of a binary. `log_format` is the highest format version that was applied; every version that knows
-- this column counts its steps.
ALTER TABLE cell_cursors
    ADD COLUMN log_format integer NOT NULL DEFAULT 1,
    ADD COLUMN format_steps bigint NOT NULL DEFAULT 0;
CREATE FUNCTION rushgate_guard_format() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'cell % holds orders or rules that this version does not know: upgrade Rushgate', OLD.cell
        USING ERRCODE = '55000';
END
$$;
CREATE TRIGGER guard_format BEFORE UPDATE ON cell_cursors FOR EACH ROW
    WHEN (OLD.log_format > 1 AND NEW.format_steps = OLD.format_steps AND (NEW.epoch, NEW.seq) <> (OLD.epoch, OLD.seq))
    EXECUTE FUNCTION rushgate_guard_format();

-- step: orders. `wallet_amount` is what was taken from the wallet; null: the total. `hold_expires_at` is set for orders that were
-- pending once, `paid_at` and `payment_reference` once they were confirmed.
ALTER TABLE orders
    ADD COLUMN external boolean NOT NULL DEFAULT false,
    ADD COLUMN wallet_amount bigint CHECK (wallet_amount BETWEEN 0 AND total),
    ADD COLUMN hold_expires_at timestamptz,
    ADD COLUMN expired_at timestamptz,
    ADD COLUMN paid_at timestamptz,
    ADD COLUMN payment_reference text,
    ADD COLUMN reference text,
    DROP CONSTRAINT orders_status_check,
    ADD CONSTRAINT orders_status_check CHECK (status IN ('paid', 'cancelled', 'pending', 'expired')) NOT VALID,
    ADD CONSTRAINT orders_external_check CHECK (
        external
            AND (status <> 'pending' OR hold_expires_at IS NOT NULL AND paid_at IS NULL)
            AND (status = 'expired') = (expired_at IS NOT NULL)
            AND (paid_at IS NULL) = (payment_reference IS NULL)
        OR NOT external AND status IN ('paid', 'cancelled') AND wallet_amount IS NULL AND hold_expires_at IS NULL
            AND expired_at IS NULL AND paid_at IS NULL AND payment_reference IS NULL
    ) NOT VALID;

-- step:
ALTER TABLE orders VALIDATE CONSTRAINT orders_status_check;

-- step:
ALTER TABLE orders VALIDATE CONSTRAINT orders_external_check;

-- step: orders by the shop's own number
CREATE INDEX CONCURRENTLY orders_by_reference ON orders (reference, order_id) WHERE reference IS NOT NULL;

-- step: the limit per user that a line counts for
ALTER TABLE order_items ADD COLUMN limit_number bigint;

-- step: rules of products. `limit_number` stays when the limit is removed, so that no number is used twice.
ALTER TABLE products
    ADD COLUMN sale_from timestamptz,
    ADD COLUMN sale_until timestamptz,
    ADD COLUMN per_user_limit bigint CHECK (per_user_limit BETWEEN 1 AND 1000),
    ADD COLUMN limit_number bigint,
    ADD COLUMN attributes text,
    ADD CONSTRAINT products_limit_check CHECK (per_user_limit IS NULL OR limit_number IS NOT NULL);

-- step: pieces that users have bought under a limit: of pending and paid orders
CREATE TABLE purchases (
    limit_number  bigint NOT NULL,
    user_id       text   COLLATE "C" NOT NULL,
    bought        bigint NOT NULL CHECK (bought >= 0),
    PRIMARY KEY (limit_number, user_id)
);

-- step: the terms that coupons were issued with. A template's first terms have its own number. `coupon_templates` has the present
-- ones, so a template whose terms never changed may have none here.
CREATE TABLE coupon_terms (
    number          bigint PRIMARY KEY,
    template_id     text   COLLATE "C" NOT NULL,
    discount_type   text   NOT NULL CHECK (discount_type IN ('amount', 'percent')),
    discount_value  bigint NOT NULL CHECK (discount_value > 0),
    discount_max    bigint CHECK (discount_max > 0),
    min_subtotal    bigint NOT NULL CHECK (min_subtotal >= 0),
    CHECK (discount_type = 'amount' OR discount_value <= 100)
);
CREATE INDEX coupon_terms_by_template ON coupon_terms (template_id, number);

-- step: null: the template's own number
ALTER TABLE coupon_templates ADD COLUMN terms_number bigint;

-- step:
ALTER TABLE coupons ADD COLUMN terms_number bigint;
