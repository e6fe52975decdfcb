-- What GET /v1/orders searches orders by: template, product, status. Only additions: binaries that do not know them go on.
-- oldest: 2

-- step: the orders that used a coupon, by its template. A trigger fills it, so that it is complete whichever version applies
-- the log, and with the rights of the table's owner, so that the reconciler needs no new ones.
CREATE TABLE order_templates (
    template_id  text COLLATE "C" NOT NULL,
    order_id     uuid NOT NULL,
    PRIMARY KEY (template_id, order_id)
);
CREATE FUNCTION rushgate_note_order_templates() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO order_templates (template_id, order_id)
    SELECT coupons.template_id, placed.order_id FROM placed JOIN coupons ON coupons.coupon_id = placed.coupon_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_order_templates AFTER INSERT ON orders REFERENCING NEW TABLE AS placed
    FOR EACH STATEMENT EXECUTE FUNCTION rushgate_note_order_templates();

-- step: of the orders before
INSERT INTO order_templates (template_id, order_id)
SELECT coupons.template_id, orders.order_id FROM orders JOIN coupons ON coupons.coupon_id = orders.coupon_id
ON CONFLICT DO NOTHING;

-- step: the orders of a product
CREATE INDEX CONCURRENTLY order_items_by_product ON order_items (product_id, order_id);

-- step: the orders that are not paid. Those that are need no entry: nearly all are, so a search for them meets them anyway.
CREATE INDEX CONCURRENTLY orders_not_paid ON orders (status, order_id) WHERE status <> 'paid';
