-- The truth. Only the reconciler writes here (from the log), the relay deletes from `outbox`, and the scheduler
-- writes the popular lists. Constraints restate the shop's rules: they can only fail when the gate is wrong.
-- There are no foreign keys on the tables that the reconciler fills in bulk: the audit checks those relations.

CREATE TABLE products (
    product_id  text   COLLATE "C" PRIMARY KEY,
    name        text   NOT NULL,
    price       bigint NOT NULL CHECK (price > 0 AND price % 100 = 0),
    status      text   NOT NULL CHECK (status IN ('on_sale', 'suspended')),
    stock       bigint NOT NULL CHECK (stock >= 0),
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);

-- Append-only: what was put into a product's stock or taken out by staff; the first row is the stock at creation.
CREATE TABLE stock_adjustments (
    adjustment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id    text   COLLATE "C" NOT NULL,
    delta         bigint NOT NULL,
    stock_after   bigint NOT NULL CHECK (stock_after >= 0),
    reason        text,
    adjusted_at   timestamptz NOT NULL
);
CREATE INDEX stock_adjustments_by_product ON stock_adjustments (product_id);

CREATE TABLE coupon_templates (
    template_id     text   COLLATE "C" PRIMARY KEY,
    number          bigint NOT NULL UNIQUE CHECK (number > 0),
    name            text   NOT NULL,
    discount_type   text   NOT NULL CHECK (discount_type IN ('amount', 'percent')),
    discount_value  bigint NOT NULL CHECK (discount_value > 0),
    discount_max    bigint CHECK (discount_max > 0),
    min_subtotal    bigint NOT NULL CHECK (min_subtotal >= 0),
    max_issued      bigint NOT NULL CHECK (max_issued >= 0),
    issued          bigint NOT NULL CHECK (issued >= 0 AND issued <= max_issued),
    issue_from      timestamptz NOT NULL,
    issue_until     timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    CHECK (discount_type = 'amount' OR discount_value <= 100),
    CHECK (issue_from < issue_until)
);

-- `order_id` and `used_at` are set while an order uses the coupon.
CREATE TABLE coupons (
    coupon_id    uuid   PRIMARY KEY,
    template_id  text   COLLATE "C" NOT NULL,
    user_id      text   COLLATE "C" NOT NULL,
    serial       bigint NOT NULL CHECK (serial > 0),
    issued_at    timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    order_id     uuid,
    used_at      timestamptz,
    UNIQUE (template_id, user_id),
    UNIQUE (template_id, serial),
    CHECK ((order_id IS NULL) = (used_at IS NULL))
);

CREATE TABLE wallets (
    user_id     text   COLLATE "C" PRIMARY KEY,
    balance     bigint NOT NULL CHECK (balance BETWEEN 0 AND 1000000),
    updated_at  timestamptz NOT NULL
);

-- Append-only ledger. `amount` is signed: charges and refunds add, payments take. `ref_id` is the charge or the order.
CREATE TABLE wallet_entries (
    entry_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id        text   COLLATE "C" NOT NULL,
    kind           text   NOT NULL CHECK (kind IN ('charge', 'payment', 'refund')),
    amount         bigint NOT NULL,
    balance_after  bigint NOT NULL CHECK (balance_after BETWEEN 0 AND 1000000),
    ref_id         uuid   NOT NULL,
    at             timestamptz NOT NULL,
    CHECK (CASE kind WHEN 'payment' THEN amount <= 0 ELSE amount >= 0 END)
);
CREATE INDEX wallet_entries_by_user ON wallet_entries (user_id, entry_id DESC);

-- `balance_after` is the orderer's balance after the order's last change: its payment, or its refund.
CREATE TABLE orders (
    order_id         uuid   PRIMARY KEY,
    user_id          text   COLLATE "C" NOT NULL,
    status           text   NOT NULL CHECK (status IN ('paid', 'cancelled')),
    subtotal         bigint NOT NULL CHECK (subtotal > 0),
    discount         bigint NOT NULL CHECK (discount >= 0),
    total            bigint NOT NULL CHECK (total >= 0),
    coupon_id        uuid,
    coupon_returned  boolean NOT NULL DEFAULT false,
    balance_after    bigint NOT NULL CHECK (balance_after BETWEEN 0 AND 1000000),
    ordered_at       timestamptz NOT NULL,
    cancelled_at     timestamptz,
    CHECK (total = subtotal - discount),
    CHECK ((status = 'cancelled') = (cancelled_at IS NOT NULL))
);
CREATE INDEX orders_by_user ON orders (user_id, order_id DESC);
CREATE INDEX orders_by_time ON orders (ordered_at);

CREATE TABLE order_items (
    order_id    uuid   NOT NULL,
    line_no     smallint NOT NULL,
    product_id  text   COLLATE "C" NOT NULL,
    name        text   NOT NULL,
    unit_price  bigint NOT NULL CHECK (unit_price > 0),
    quantity    bigint NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
    amount      bigint NOT NULL,
    PRIMARY KEY (order_id, line_no),
    CHECK (amount = unit_price * quantity)
);

-- The list that GET /v1/products/popular shows: one refresh, up to five ranks. `list_day` is the shop's local day
-- whose 00:00 the list stands for (null: made at start-up or by hand).
CREATE TABLE popular_refreshes (
    refresh_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    list_day      date UNIQUE,
    window_from   timestamptz NOT NULL,
    window_to     timestamptz NOT NULL,
    refreshed_at  timestamptz NOT NULL
);
CREATE TABLE popular_products (
    refresh_id  bigint   NOT NULL REFERENCES popular_refreshes ON DELETE CASCADE,
    rank        smallint NOT NULL CHECK (rank BETWEEN 1 AND 5),
    product_id  text     COLLATE "C" NOT NULL,
    sold        bigint   NOT NULL CHECK (sold > 0),
    PRIMARY KEY (refresh_id, rank)
);

-- Answers that a repeated Idempotency-Key gets again. `reply` is the accepted request as it stands in the log.
CREATE TABLE idempotency_records (
    scope         text   COLLATE "C" NOT NULL,
    request_hash  bytea  NOT NULL CHECK (octet_length(request_hash) = 16),
    reply         bytea  NOT NULL,
    decided_at    timestamptz NOT NULL,
    PRIMARY KEY (scope)
);
CREATE INDEX idempotency_records_by_time ON idempotency_records (decided_at);

-- How far each cell's log is applied. The reconciler moves it by compare-and-set in the transaction that applies.
-- `clock_ms` is the gate's clock at the cursor; `events_written` counts the outbox rows ever written.
CREATE TABLE cell_cursors (
    cell            integer PRIMARY KEY CHECK (cell >= 0),
    epoch           bigint  NOT NULL CHECK (epoch >= 0),
    seq             bigint  NOT NULL CHECK (seq >= 0),
    tip             text    NOT NULL,
    clock_ms        bigint  NOT NULL DEFAULT 0,
    events_written  bigint  NOT NULL DEFAULT 0,
    halted_reason   text,
    updated_at      timestamptz NOT NULL DEFAULT now()
);

-- Events on their way to RabbitMQ, in order; the relay deletes a row once the broker has confirmed it.
CREATE TABLE outbox (
    outbox_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id     text   NOT NULL UNIQUE,
    routing_key  text   NOT NULL,
    payload      text   NOT NULL,
    created_at   timestamptz NOT NULL
);

-- One row: how many events the broker has ever confirmed (written − published = what is in the outbox).
CREATE TABLE relay_progress (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    events_published  bigint  NOT NULL DEFAULT 0
);
INSERT INTO relay_progress DEFAULT VALUES;

-- Entries that PostgreSQL refused and that an operator took out of the way with `rushgate log skip`.
CREATE TABLE log_quarantine (
    cell            integer NOT NULL,
    epoch           bigint  NOT NULL,
    seq             bigint  NOT NULL,
    payload         bytea   NOT NULL,
    tip             text    NOT NULL,
    reason          text    NOT NULL,
    quarantined_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (cell, epoch, seq)
);
