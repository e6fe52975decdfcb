// The basket: pieces, a coupon, what it comes to, and the order.

import { serverNow } from "../common/clock.js";
import { html, useEffect, useState } from "../common/html.js";
import { duration, money } from "../common/i18n.js";
import { products } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Dialog, Icon } from "../common/ui.js";
import {
  api,
  balance,
  basket,
  coupons,
  discountOf,
  emptyBasket,
  explain,
  features,
  notify,
  post,
  refresh,
  RETRY,
  setPieces,
  user,
} from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("../common/live.js").Product} Product */
/** @typedef {{ product: Product, pieces: number }} Line */
/** @typedef {import("./state.js").Quote} Quote */

const QUOTE_PAUSE_MS = 250;

/**
 * The server's quote for what is in the basket; undefined while there is none, or where the server
 * gives none.
 * @param {object} order the body of the order
 */
function useQuote(order) {
  const { quote: known } = useStore(features);
  const body = JSON.stringify(order);
  const [quote, setQuote] = useState(/** @type {{ of: string, quote: Quote } | undefined} */ (undefined));
  useEffect(() => {
    if (!known) return;
    let over = false;
    const timer = setTimeout(async () => {
      const answer = await post("/v1/orders/quote", JSON.parse(body), true).catch(() => undefined);
      if (answer && !over) setQuote({ of: body, quote: answer });
    }, QUOTE_PAUSE_MS);
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [known, body]);
  return quote?.of === body ? quote.quote : undefined;
}

/** @param {{ open: boolean, onClose: () => void }} props */
export function Basket({ open, onClose }) {
  const chosen = useStore(basket);
  const all = useStore(products);
  /** @type {Line[]} */
  const lines = all.flatMap((product) => {
    const pieces = chosen[product.id] ?? 0;
    return pieces > 0 ? [{ product, pieces }] : [];
  });
  return html`<${Dialog} side open=${open} onClose=${onClose} title=${t("basket")} close=${t("basket.close")}>
    ${lines.length === 0
      ? html`<p class="empty">${t("basket.empty")}</p>`
      : html`<${Order} lines=${lines} onDone=${onClose} />`}
  <//>`;
}

/** @param {{ lines: Line[], onDone: () => void }} props */
function Order({ lines, onDone }) {
  const mine = useStore(coupons).filter((coupon) => coupon.status === "available");
  const won = useStore(balance);
  const [couponId, setCoupon] = useState("");
  const [paying, setPaying] = useState(false);
  // In the dialog itself: what is behind it is out of reach.
  const [trouble, setTrouble] = useState("");
  const subtotal = lines.reduce((sum, { product, pieces }) => sum + product.price * pieces, 0);
  const coupon = mine.find(({ coupon_id }) => coupon_id === couponId);
  const { external } = useStore(features);
  const order = {
    user_id: user.get(),
    items: lines.map(({ product, pieces }) => ({ product_id: product.id, quantity: pieces })),
    ...(coupon ? { coupon_id: coupon.coupon_id } : {}),
  };
  const quote = useQuote(order);
  const discount = quote?.discount ?? (coupon ? discountOf(coupon, subtotal) : 0);
  const total = quote?.total ?? subtotal - discount;
  const off = (/** @type {import("./state.js").Coupon} */ each) =>
    quote?.coupons.find(({ coupon_id }) => coupon_id === each.coupon_id)?.discount ?? discountOf(each, subtotal);

  // The best coupon is chosen once; the shopper may choose otherwise.
  useEffect(() => {
    const best = [...mine].sort((a, b) => discountOf(b, subtotal) - discountOf(a, subtotal))[0];
    if (best && discountOf(best, subtotal) > 0) setCoupon(best.coupon_id);
  }, []);

  /** @param {boolean} byCard */
  const onPay = async (byCard) => {
    setPaying(true);
    setTrouble("");
    try {
      const card = /** @type {const} */ ({ payment: "external" });
      const body = { ...order, expected_total: total, ...(byCard ? card : {}) };
      const { data } = await api().once("/v1/orders", { body, ...RETRY });
      const placed = /** @type {import("./state.js").Order | undefined} */ ("total" in data ? data : undefined);
      emptyBasket();
      onDone();
      if (placed?.status === "pending" && placed.hold_expires_at) {
        const time = duration(Date.parse(placed.hold_expires_at) - serverNow());
        notify("plain", t("order.held", { time }));
        location.hash = "#/mine";
      } else {
        notify("good", t("order.done", { money: money(placed?.total ?? total) }));
      }
    } catch (error) {
      setTrouble(explain(error));
    }
    setPaying(false);
    void refresh();
  };

  return html`<ul class="lines">
      ${lines.map((line) => html`<${LineRow} key=${line.product.id} ...${line} />`)}
    </ul>
    <label class="field">
      <span>${t("order.coupon")}</span>
      <select
        value=${couponId}
        onChange=${(/** @type {{ currentTarget: HTMLSelectElement }} */ event) => setCoupon(event.currentTarget.value)}
      >
        <option value="">${t("order.coupon.none")}</option>
        ${mine.map(
          (each) => html`<option key=${each.coupon_id} value=${each.coupon_id}>
            ${each.name} (−${money(off(each))})
          </option>`,
        )}
      </select>
    </label>
    <dl class="sums">
      <div><dt>${t("order.subtotal")}</dt><dd>${money(subtotal)}</dd></div>
      ${discount > 0 && html`<div><dt>${t("order.discount")}</dt><dd>${money(-discount)}</dd></div>`}
      <div class="sum"><dt>${t("order.total")}</dt><dd data-total>${money(total)}</dd></div>
      ${won !== undefined &&
      html`<div class="muted small"><dt>${t("order.after")}</dt><dd>${money(won - total)}</dd></div>`}
    </dl>
    <p class="muted small" data-quoted=${Boolean(quote)}>${t(quote ? "order.quote" : "order.estimate")}</p>
    ${quote && quote.problems.length > 0 &&
    html`<ul class="alert" data-problems>
      ${quote.problems.map((problem, n) => html`<li key=${n}>${explain(problem)}</li>`)}
    </ul>`}
    <div role="alert">${trouble && html`<p class="alert">${trouble}</p>`}</div>
    <button type="button" class="button button-wide" data-pay disabled=${paying} onClick=${() => onPay(false)}>
      ${paying ? t("order.paying") : t("order.pay", { money: money(total) })}
    </button>
    ${external &&
    html`<button
      type="button"
      class="button button-plain button-wide"
      data-pay-card
      disabled=${paying}
      onClick=${() => onPay(true)}
    >
      ${t("order.card", { money: money(total) })}
    </button>`}`;
}

/** @param {Line} props */
function LineRow({ product, pieces }) {
  // What is typed, which may not be a number yet.
  const [typed, type] = useState(/** @type {string | undefined} */ (undefined));
  const onInput = (/** @type {{ currentTarget: HTMLInputElement }} */ { currentTarget }) => {
    const wanted = Math.floor(Number(currentTarget.value));
    type(currentTarget.value);
    if (wanted >= 1 && wanted <= 1000) setPieces(product.id, wanted);
  };
  return html`<li class="line">
    <span class="line-name">${product.name}<span class="muted small">${money(product.price)}</span></span>
    <input
      class="line-pieces"
      type="number"
      inputmode="numeric"
      min="1"
      max="1000"
      aria-label=${t("order.pieces", { name: product.name })}
      value=${typed ?? pieces}
      onInput=${onInput}
      onBlur=${() => type(undefined)}
    />
    <b>${money(product.price * pieces)}</b>
    <button
      type="button"
      class="button-quiet button-icon"
      aria-label=${t("order.remove", { name: product.name })}
      onClick=${() => setPieces(product.id, 0)}
    >
      <${Icon} name="cross" />
    </button>
  </li>`;
}
