// The basket: pieces, a coupon, what it comes to, and the order.

import { html, useEffect, useState } from "../common/html.js";
import { money } from "../common/i18n.js";
import { products } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Dialog, Icon } from "../common/ui.js";
import { api, balance, basket, coupons, discountOf, emptyBasket, explain, notify, refresh, RETRY, setPieces, user } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("../common/live.js").Product} Product */
/** @typedef {{ product: Product, pieces: number }} Line */

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
  const discount = coupon ? discountOf(coupon, subtotal) : 0;
  const total = subtotal - discount;

  // The best coupon is chosen once; the shopper may choose otherwise.
  useEffect(() => {
    const best = [...mine].sort((a, b) => discountOf(b, subtotal) - discountOf(a, subtotal))[0];
    if (best && discountOf(best, subtotal) > 0) setCoupon(best.coupon_id);
  }, []);

  const onPay = async () => {
    setPaying(true);
    setTrouble("");
    try {
      const { data } = await api().once("/v1/orders", {
        body: {
          user_id: user.get(),
          items: lines.map(({ product, pieces }) => ({ product_id: product.id, quantity: pieces })),
          ...(coupon ? { coupon_id: coupon.coupon_id } : {}),
          expected_total: total,
        },
        ...RETRY,
      });
      emptyBasket();
      notify("good", t("order.done", { money: money("total" in data ? data.total : total) }));
      onDone();
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
            ${each.name} (−${money(discountOf(each, subtotal))})
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
    <p class="muted small">${t("order.estimate")}</p>
    <div role="alert">${trouble && html`<p class="alert">${trouble}</p>`}</div>
    <button type="button" class="button button-wide" data-pay disabled=${paying} onClick=${onPay}>
      ${paying ? t("order.paying") : t("order.pay", { money: money(total) })}
    </button>`;
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
