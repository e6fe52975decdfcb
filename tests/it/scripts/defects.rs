//! Mistakes planted in the scripts, one at a time: the comparison must find each.

use rushgate::gate::script::Script;

use super::kind::Scripts;
use super::{Checker, SHRINKING_TRIES, base_seed};

/// Requests within which each mistake is found. Half need no more than 200, the hardest some 20,000
/// on average; the limit leaves a seed without luck enough of them.
const OPERATIONS: u64 = 400_000;

/// A mistake: its name, the file in `lua/` (without the ending), a text that stands there once,
/// what it becomes.
type Defect = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const DEFECTS: &[Defect] = &[
    // what all deciding scripts share
    ("a foreign epoch is served", "shared/cell", "if epoch ~= EPOCH then return 'epoch' end", ""),
    ("a closed cell decides", "shared/cell", "if meta[6] ~= OPEN and meta[6] ~= OPEN_LATEST then return 'closed' end", ""),
    ("another day's caller is served", "shared/gate", "if math.floor(now / DAY_MS) ~= TODAY then return 'day' end", ""),
    ("one entry over the log limit", "shared/gate", "seq - applied >= LOG_LIMIT", "seq - applied > LOG_LIMIT"),
    ("the last entry's tip is not compared", "shared/still_holds", "return seq == seen_seq and tip == seen_tip", "return seq == seen_seq"),
    ("an earlier entry's tip is not compared", "shared/still_holds", "return entry[2][4] == seen_tip", "return true"),
    ("the clock runs backwards", "shared/cell", "local now = math.max(clock, time)", "local now = time"),
    ("late requests are decided", "shared/gate", "if deadline < time then return LATE end", ""),
    ("late at the deadline", "shared/gate", "if deadline < time then", "if deadline <= time then"),
    ("late by the gate's clock", "shared/gate", "if deadline < time then", "if deadline < now then"),
    ("no record is stored", "shared/gate", "    put(RECORDS, flat)\n", ""),
    ("a key twice in one batch", "shared/gate", "records[key[1]] or stored[key[1]]", "stored[key[1]]"),
    ("yesterday's records are not read", "shared/gate", "{ RECORDS_BEFORE, RECORDS }", "{ RECORDS }"),
    ("today's records are not read", "shared/gate", "{ RECORDS_BEFORE, RECORDS }", "{ RECORDS_BEFORE }"),
    ("yesterday's record before today's", "shared/gate", "{ RECORDS_BEFORE, RECORDS }", "{ RECORDS, RECORDS_BEFORE }"),
    ("a record answers at 24 hours", "shared/gate", "record[2] + DAY_MS <= now", "record[2] + DAY_MS < now"),
    ("another request's answer", "shared/gate", "if record[1] ~= key[2] then return KEY_REUSED end", ""),
    ("a record of another time", "shared/gate", "records[key[1]] = { key[2], now, fact }", "records[key[1]] = { key[2], now - 1, fact }"),
    ("one record more than a user may make", "shared/gate", "< KEYS_PER_DAY", "<= KEYS_PER_DAY"),
    ("the last record that a user may make is refused", "shared/gate", "< KEYS_PER_DAY", "< KEYS_PER_DAY - 1"),
    ("records are not counted", "shared/gate", "made_today[user] + 1, true", "made_today[user], true"),
    ("counts are not stored", "shared/gate", "for user in pairs(makers) do", "for user in pairs({}) do"),
    ("only the last fact is logged", "shared/gate", "payload_pieces[2 * accepted], payload_pieces[2 * accepted + 1] = mark, fact", "payload_pieces[2], payload_pieces[3] = mark, fact"),
    ("a batch of refusals is logged", "shared/gate", "if accepted > 0 then", "if true then"),
    ("a tip without the one before", "shared/gate", "redis.sha1hex(tip .. payload)", "redis.sha1hex(payload)"),
    ("a tip that meta does not have", "shared/gate", "'seq', seq, 'tip', tip, 'clock', now)", "'seq', seq, 'clock', now)"),
    ("a clock that meta does not have", "shared/gate", "'seq', seq, 'tip', tip, 'clock', now)", "'seq', seq, 'tip', tip)"),
    ("a boundary is not remembered", "shared/gate", "elseif passed_at > clock then", "elseif false then"),
    ("a later format is not marked in its entry", "shared/gate", "  format_version = LATEST_FORMAT_VERSION\n", ""),
    ("a later format does not keep older versions out", "shared/gate", "if format_version > FORMAT_VERSION then redis.call('HSET', META, 'state', OPEN_LATEST) end", ""),
    // charges
    ("the limit itself is refused", "charge_wallet", "if balance + held + amount > MAX_BALANCE", "if balance + held + amount >= MAX_BALANCE"),
    ("one won over the limit", "charge_wallet", "if balance + held + amount > MAX_BALANCE", "if balance + held + amount > MAX_BALANCE + 1"),
    ("what pending orders took leaves room for a charge", "charge_wallet", "if balance + held + amount > MAX_BALANCE", "if balance + amount > MAX_BALANCE"),
    ("a charge before in the batch is forgotten", "charge_wallet", "= balance + amount, true", "= amount, true"),
    ("a charge of nothing is logged", "charge_wallet", "amount == 0 and not key", "false"),
    ("a charge of nothing makes a wallet", "charge_wallet", "if amount > 0 then wallets", "if amount >= 0 then wallets"),
    ("the balance is not written", "charge_wallet", "function() store(wallets) end", "function() end"),
    // coupons
    ("a second coupon for the same user", "issue_coupon", "if holds then return { already_issued = string.sub(coupons, holds + 4, holds + 19) } end", ""),
    ("a second coupon in the same batch", "issue_coupon", "coupons and coupon_of(coupons, template)", "coupons and not held.changed[held_at] and coupon_of(coupons, template)"),
    ("only the first coupon held is seen", "issue_coupon", "coupon_at(coupons, template.mark, 0)", "coupon_at(string.sub(coupons, 1, COUPON_BYTES), template.mark, 0)"),
    ("a second coupon after the terms have changed", "issue_coupon", "if at or not earlier then return at end", "if true then return at end"),
    ("a coupon is issued with the first terms", "issue_coupon", "struct.pack('>I4', t[10] or t[1])", "struct.pack('>I4', t[1])"),
    ("another number that looks like a template's", "shared/coupons", "(found - 1 - offset) % COUPON_BYTES ~= 0", "false"),
    ("held is not written", "issue_coupon", "  store(held)\n", ""),
    ("a serial of another template", "issue_coupon", "coupon_id .. packed_serial .. REST", "coupon_id .. struct.pack('>I4', 1) .. REST"),
    ("the serial is not increased", "issue_coupon", "(tonumber(issued_of[template_at]) or 0) + 1", "(issued.changed[template_at] and issued_of[template_at] or tonumber(issued_of[template_at]) or 0) + (issued.changed[template_at] and 0 or 1)"),
    ("the serial is not written", "issue_coupon", "  store(issued)\n", ""),
    ("one coupon over the limit", "issue_coupon", "if serial > template.max_issued", "if serial > template.max_issued + 1"),
    ("the last coupon is kept", "issue_coupon", "if serial > template.max_issued", "if serial >= template.max_issued"),
    ("closed at the window's beginning", "issue_coupon", "if now < template.from", "if now <= template.from"),
    ("open at the window's end", "issue_coupon", "if now >= template.till", "if now > template.till"),
    ("one more is said to be left", "issue_coupon", "template.max_issued - serial)", "template.max_issued - serial + 1)"),
    ("a coupon expires a day early", "issue_coupon", "packed_number(now + COUPON_USABLE_MS)", "packed_number(now + COUPON_USABLE_MS - DAY_MS)"),
    // orders
    ("the stock is taken twice", "place_order", "stocks.changed[at] = left[i], true", "stocks.changed[at] = left[i] - lines[i + 1], true"),
    ("stock taken before in the batch is forgotten", "place_order", "= products[at], tonumber(stocks.value[at])", "= products[at], tonumber(stocks.changed[at] and 1000 or stocks.value[at])"),
    ("the last piece is kept", "place_order", "if stock < quantity", "if stock <= quantity"),
    ("one piece more than there is", "place_order", "if stock < quantity", "if stock + 1 < quantity"),
    ("a suspended product is sold", "place_order", "if not product.on_sale then return { not_on_sale = id } end", ""),
    ("the coupon is not marked used", "place_order", "  store(held)\n", ""),
    ("a coupon twice in one batch", "place_order", "~= UNUSED then return 'coupon_used' end", "~= UNUSED and not held.changed[1] then return 'coupon_used' end"),
    ("a used coupon is taken", "place_order", "if coupon_order(coupons, at) ~= UNUSED then return 'coupon_used' end", ""),
    ("another coupon of the user is taken", "place_order", "  local at = coupon_at(coupons, coupon_id, 4)\n  if not at", "  local at = coupon_at(coupons, coupon_id, 4) and 1\n  if not at"),
    ("only the first coupon is used", "shared/coupons", "string.sub(coupons, 1, at + 29) .. order_id", "string.sub(coupons, 1, 30) .. order_id"),
    ("a coupon lives a millisecond longer", "place_order", "if now >= expires_at then", "if now > expires_at then"),
    ("the least subtotal is too low", "place_order", "if subtotal < template.min_subtotal", "if subtotal <= template.min_subtotal"),
    ("a percentage is rounded up", "place_order", "math.floor(subtotal", "math.ceil(subtotal"),
    ("a percentage without its maximum", "place_order", "if template.max then discount = math.min(discount, template.max) end", ""),
    ("more off than the subtotal", "place_order", "return nil, math.min(discount, subtotal)", "return nil, discount"),
    ("a changed price is paid", "place_order", "if expected_total and expected_total ~= total then return { price_changed = total } end", ""),
    ("the whole balance cannot be spent", "place_order", "if balance < won", "if balance <= won"),
    ("one won of credit", "place_order", "if balance < won", "if balance + 1 < won"),
    ("a payment before in the batch is forgotten", "place_order", "tonumber(wallets.value[wallet_at])", "tonumber(wallets.changed[wallet_at] and MAX_BALANCE or wallets.value[wallet_at])"),
    ("an order for nothing makes no wallet", "place_order", "= balance - won, true", "= balance - won, won > 0"),
    ("the payment is not written", "place_order", "  store(wallets)\n", ""),
    ("a later version's terms for an earlier coupon", "place_order", "if t and struct.pack('>I4', t[10] or t[1]) == mark then", "if t then"),
    ("sold a millisecond before the sale", "place_order", "now < product.from", "now + 1 < product.from"),
    ("not sold at the beginning of the sale", "place_order", "now < product.from", "now <= product.from"),
    ("sold at the end of the sale", "place_order", "now >= product.till", "now > product.till"),
    ("the end of a sale is not remembered", "place_order", "    passed(product.till)\n", ""),
    ("the last piece of a limit is kept", "place_order", "bought + quantity > product.limit", "bought + quantity >= product.limit"),
    ("one piece over a limit", "place_order", "bought + quantity > product.limit", "bought + quantity > product.limit + 1"),
    ("pieces before in the batch do not count", "place_order", "local bought = bought_of(purchases, purchase_field(product.limit_number, user))", "local bought = purchases.changed[purchases.place[purchase_field(product.limit_number, user)]] and 0 or bought_of(purchases, purchase_field(product.limit_number, user))"),
    ("what was bought is not written", "place_order", "  store(purchases)\n", ""),
    ("a limit of everybody together", "shared/purchases", "struct.pack('>I4', limit_number) .. user", "struct.pack('>I4', limit_number)"),
    ("more from the wallet than the total", "place_order", "if won > total then return nil, { wallet_amount_above = total } end", ""),
    ("an order with nothing due is held", "place_order", "if won == total then return won end", ""),
    ("no limit of pending orders", "place_order", "if pending_of(pending_users, user) >= most then return nil, { too_many_pending = most } end", ""),
    ("one pending order too many", "place_order", "if pending_of(pending_users, user) >= most then", "if pending_of(pending_users, user) > most then"),
    ("pending orders before in the batch do not count", "place_order", "  add_pending(pending_users, user, won)\n", ""),
    ("a hold a millisecond too long", "place_order", "return won, now + hold_ms", "return won, now + hold_ms + 1"),
    ("a payment outside makes a wallet", "place_order", "if won > 0 or not outside then", "if true then"),
    ("pending orders are not written", "place_order", "  put(PENDING, new_pending)\n", ""),
    ("pending orders never end", "place_order", "if #new_due > 0 then", "if false then"),
    ("a pending order forgets its limits", "place_order", "(product.limit_number and packed_number(product.limit_number) or NIL)", "NIL"),
    ("an order forgets the shop's number", "place_order", "return '\\147' .. (reference and", "return '\\147' .. (reference and outside and"),
    // confirmations
    ("an ended hold is confirmed", "confirm_order", "if now >= ends_at then", "if false then"),
    ("confirmed at the end of the hold", "confirm_order", "if now >= ends_at then", "if now > ends_at then"),
    ("the end of a hold is not remembered", "confirm_order", "    passed(ends_at)\n", ""),
    ("confirmed twice in one batch", "confirm_order", "  orders[at] = nil\n", ""),
    ("confirmed twice", "confirm_order", "  remove_pending(PENDING, PENDING_DUE, not_pending)\n", ""),
    ("a confirmed order still counts as pending", "confirm_order", "  take_pending(pending_users, user, won)\n", ""),
    ("a confirmation that older versions read", "confirm_order", "  needs_latest_format()\n", ""),
    // ends of holds
    ("an ended hold is given back twice in one batch", "expire_order", "  pending[order_at] = false\n", ""),
    ("an ended hold is given back twice", "expire_order", "  remove_pending(PENDING, PENDING_DUE, not_pending)\n", ""),
    ("a hold ends early", "expire_order", "if now < ends_at then return { not_due = ends_at } end", ""),
    ("a hold ends a millisecond late", "expire_order", "if now < ends_at then", "if now <= ends_at then"),
    ("the wallet part of an ended hold is lost", "expire_order", "if won > 0 then balance = return_balance(user, won) end", ""),
    ("an ended hold makes a wallet", "expire_order", "if won > 0 then balance", "if won >= 0 then balance"),
    ("the coupon of an ended hold is lost", "expire_order", "= return_coupon(user, coupon_id, order_id)", "= false"),
    ("the stock of an ended hold is lost", "expire_order", "= return_stock(lines)", "= {}"),
    ("the pieces of an ended hold count for ever", "expire_order", "= return_counts(user, lines, limits)", "= {}"),
    ("an ended hold still counts as pending", "expire_order", "  take_pending(pending_users, user, won)\n", ""),
    // cancellations
    ("the refund is lost", "shared/give_back", "(tonumber(wallets.value[at]) or 0) + won", "(tonumber(wallets.value[at]) or 0)"),
    ("the refund is not written", "shared/give_back", "  store(wallets)\n", ""),
    ("a refund before in the batch is forgotten", "shared/give_back", "(tonumber(wallets.value[at]) or 0) + won", "(tonumber(wallets.changed[at] and '0' or wallets.value[at]) or 0) + won"),
    ("a refund up to the limit is refused", "cancel_order", "balance + held_won + won > MAX_BALANCE", "balance + held_won + won >= MAX_BALANCE"),
    ("a refund over the limit", "cancel_order", "if not was_pending and balance + held_won + won > MAX_BALANCE then", "if false then"),
    ("what pending orders took leaves room for a refund", "cancel_order", "balance + held_won + won > MAX_BALANCE", "balance + won > MAX_BALANCE"),
    ("a pending order at the limit cannot be cancelled", "cancel_order", "if not was_pending and balance", "if balance"),
    ("a cancelled order stays pending", "cancel_order", "  remove_pending(PENDING, PENDING_DUE, not_pending)\n", ""),
    ("a cancelled order still counts as pending", "cancel_order", "    take_pending(pending_users, user, won)\n", ""),
    ("a pending order is cancelled as what it was", "cancel_order", "if was_pending ~= (pending[order_at] and true or false) then return 'not_pending' end", ""),
    ("a cancellation makes a wallet", "cancel_order", "if won > 0 or not paid_outside then", "if true then"),
    ("cancelled pieces count for ever", "cancel_order", "= return_counts(user, lines, limits)", "= {}"),
    ("pieces given back are not written", "shared/give_back", "  store(purchases)\n", ""),
    ("pieces of another line are given back", "shared/give_back", "lines[2 * line], 0)", "lines[2], 0)"),
    ("users without pending orders are kept", "shared/pending", "if string.sub(value, 1, 2) == '0:' then", "if false then"),
    ("what pending orders took is forgotten", "shared/pending", "set_pending(users, user, orders + 1, before + won)", "set_pending(users, user, orders + 1, before)"),
    ("the stock is not given back", "shared/give_back", "  store(stocks)\n", ""),
    ("stock given back in the batch is forgotten", "shared/give_back", "tonumber(stocks.value[at]) + lines[i + 1]", "tonumber(stocks.changed[at] and '1' or stocks.value[at]) + lines[i + 1]"),
    ("cancelled twice in one batch", "cancel_order", "  cancelled[order_at] = 1\n", ""),
    ("cancelled twice", "cancel_order", "  redis.call('SADD', CANCELLED, unpack(new_cancelled))\n", ""),
    ("an order read in another epoch", "cancel_order", "if read_in ~= epoch then return 'stale_read' end", ""),
    ("the coupon is not given back", "shared/give_back", "  store(held)\n", ""),
    ("an expired coupon is given back", "shared/give_back", "if now >= expires_at then", "if now > expires_at then"),
    // what staff change
    ("a stock is given twice", "put_product", "if stock and not created then return 'stock_given' end", ""),
    ("a product is not listed", "put_product", "for _, id in ipairs(new_ids) do redis.call('ZADD', PRODUCT_IDS, 0, id) end", ""),
    ("a change sells out", "put_product", "  if created then\n", "  stocks.value[at], stocks.changed[at] = stock or 0, true\n  if created then\n"),
    ("a change of a limit counts anew", "put_product", "if not limit or before then return limit and before end", "if not limit then return nil end"),
    ("the number of a limit twice", "put_product", "if new_limits > limits then redis.call('HSET', META, 'limits', new_limits) end", ""),
    ("attributes that were removed stay", "put_product", "if #no_attributes > 0 then redis.call('HDEL', ATTRIBUTES, unpack(no_attributes)) end", ""),
    ("the end of a sale is lost", "put_product", "till or NULL, limit or NULL, number or NULL\n", "NULL, limit or NULL, number or NULL\n"),
    ("the last piece cannot be taken away", "adjust_stock", "if stock + delta < 0", "if stock + delta <= 0"),
    ("a stock below zero", "adjust_stock", "if stock + delta < 0", "if stock + delta < -1"),
    ("one piece over the highest stock", "adjust_stock", "stock + delta > highest", "stock + delta > highest + 1"),
    ("a stock over the highest cannot be lowered", "adjust_stock", "if delta > 0 and stock", "if stock"),
    ("an adjustment before in the batch is forgotten", "adjust_stock", "local stock = tonumber(stocks.value[at])", "local stock = tonumber(stocks.changed[at] and '1' or stocks.value[at])"),
    ("a limit below what is issued", "put_template", "if t[6] < taken then", "if t[6] < taken - 1 then"),
    ("a limit of what is issued is refused", "put_template", "if t[6] < taken then", "if t[6] <= taken then"),
    ("a number is not known", "put_template", "  put(TEMPLATE_NUMBERS, new_numbers)\n", ""),
    ("a number twice", "put_template", "  redis.call('HSET', META, 'templates', count)\n", ""),
    ("a change forgets what is issued", "put_template", "  if created then\n", "  issued.value[at], issued.changed[at] = 0, true\n  if created then\n"),
    ("a maximum is lost", "put_template", "local record = { before[1], t[1], t[2], t[3], t[4] or NULL", "local record = { before[1], t[1], t[2], t[3], NULL"),
    ("new terms for coupons that were issued", "put_template", "if not same and taken > issued_before then", "if false then"),
    ("new terms for every change", "put_template", "if not same and taken > issued_before then", "if taken > issued_before then"),
    ("a new number without a coupon", "put_template", "if not same and taken > issued_before then", "if not same and taken > 0 then"),
    ("a smaller least subtotal is the same terms", "put_template", " and before[6] == t[5]\n", "\n"),
    ("only the last terms are known", "put_template", "earlier .. mark", "mark"),
    ("earlier terms are not written", "put_template", "  put(TERMS, old_terms)\n", ""),
    // reads
    ("earlier coupons are shown with the present terms", "read", "return redis.call('HGET', TERMS, mark) or NULL\n", "return NULL\n"),
    ("the first terms for every coupon", "read", "local wanted = present(number) or t[1]", "local wanted = t[1]"),
    ("a sale is shown as running a millisecond early", "read", "if p[4] and now < p[4]", "if p[4] and now + 1 < p[4]"),
    ("a sale is shown as ended a millisecond late", "read", "if p[5] and now >= p[5]", "if p[5] and now > p[5]"),
    ("attributes are not shown", "read", "if redis.call('HLEN', ATTRIBUTES) == 0 then return rows end", "if true then return rows end"),
    ("a hold is due a millisecond late", "read", "string.format('%d', now), 'BYSCORE'", "string.format('(%d', now), 'BYSCORE'"),
    ("one hold too many", "read", "'LIMIT', 0, most)", "'LIMIT', 0, most + 1)"),
    ("a page too long", "read", "'LIMIT', 0, limit)", "'LIMIT', 0, limit + 1)"),
    ("a page begins with the last one's end", "read", "'(' .. after", "'[' .. after"),
    ("counts are not read", "read", "tonumber(counts[i]) or 0", "0"),
    ("the newest coupon is not shown", "read", "#coupons - COUPON_BYTES + 1, nil", "#coupons - 2 * COUPON_BYTES + 1, nil"),
    ("the first coupon is not shown", "read", "while at > 0 and #found < most", "while at > 1 and #found < most"),
    ("a page of coupons begins with the last one's end", "read", "id < after)", "id <= after)"),
    ("a page of coupons begins after the last one's millisecond", "read", "or id < after)", ")"),
    ("a page of coupons that is too long", "read", "if #found < most and (", "if #found <= most and ("),
    ("coupons of one millisecond in any order", "read", "if #group > 1 then table.sort(group, by_id) end", ""),
    ("another status is shown", "read", "if has_status(element, status) then", "if true then"),
    ("a used coupon is shown as available", "read", "if status == 'used' or used then", "if status == 'used' then"),
    ("a coupon is shown as expired a millisecond late", "read", "+ COUPON_USABLE_MS <= now", "+ COUPON_USABLE_MS < now"),
    ("a page after somebody else's coupon", "read", "if not after_at then return NULL end", "after_at = after_at or 1"),
];

/// The service's scripts with one mistake.
fn with_defect((name, file, text, instead): Defect) -> Scripts {
    let changed = |script: &'static Script| -> &'static Script {
        if !script.files.contains(&file) {
            return script;
        }
        let found = script.source().matches(text).count();
        assert_eq!(found, 1, "{name}: {text:?} in {}", script.name);
        // as long as the tests: scripts live as long as the program
        let source = script.source().replace(text, instead).leak();
        Box::leak(Box::new(script.with_source(source)))
    };
    let Scripts { deciding, read, most_versions } = Scripts::of_the_service();
    Scripts { deciding: deciding.map(changed), read: changed(read), most_versions }
}

#[test]
fn every_planted_defect_is_found() {
    let (checker, seed) = (Checker::start(), base_seed());
    let mut missed = Vec::new();
    for defect in DEFECTS {
        match checker.check(with_defect(*defect), seed, OPERATIONS, 0) {
            Ok(_) => missed.push(defect.0),
            Err(f) => {
                let why: String = f.why.chars().take(160).collect();
                println!(
                    "{} ({}): found after {} operations: {why}",
                    defect.0, defect.1, f.operations
                );
            }
        }
    }
    assert!(missed.is_empty(), "{OPERATIONS} operations did not find: {missed:#?}");
}

/// Requests that are left of a failing case of some hundred; 2 to 9 were seen.
const MOST_REQUESTS_LEFT: usize = 20;

/// For mistakes that show in stocks, with a coupon and time, and with a key and time.
#[test]
fn a_failing_case_shrinks_to_its_cause() {
    let (checker, seed) = (Checker::start(), base_seed());
    for name in [
        "the stock is taken twice",
        "a coupon lives a millisecond longer",
        "a record answers at 24 hours",
    ] {
        let defect = DEFECTS.iter().find(|defect| defect.0 == name).unwrap();
        let failure =
            checker.check(with_defect(*defect), seed, OPERATIONS, SHRINKING_TRIES).unwrap_err();
        println!("{name}: {failure}");
        assert!(failure.case.requests() <= MOST_REQUESTS_LEFT, "{name}");
    }
}
