// Products with their stock as it is now.

import { serverNow, useServerNow } from "../common/clock.js";
import { html } from "../common/html.js";
import { duration, money } from "../common/i18n.js";
import { products } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Art } from "./art.js";
import { addToBasket, basket } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("../common/live.js").Product} Product */
/** Members of servers that know windows of sale. @typedef {{ state?: string, sale_from?: string | null, sale_until?: string | null, per_user_limit?: number | null }} Windowed */

const FEW = 100;

/** @param {Product & Windowed} product */
export function stateOf(product) {
  if (product.status === "suspended") return "suspended";
  const now = serverNow();
  if (product.sale_from && now < Date.parse(product.sale_from)) return "scheduled";
  if (product.sale_until && now >= Date.parse(product.sale_until)) return "ended";
  return product.stock > 0 ? "open" : "soldout";
}

export function Products() {
  const all = useStore(products);
  const chosen = useStore(basket);
  return html`<section aria-labelledby="products">
    <div class="section-head"><h2 id="products">${t("products.title")}</h2></div>
    ${all.length === 0 && html`<p class="empty">${t("products.none")}</p>`}
    <ul class="products">
      ${all.map(
        (product) =>
          html`<li key=${product.id}><${Card} product=${product} pieces=${chosen[product.id] ?? 0} /></li>`,
      )}
    </ul>
  </section>`;
}

/** @param {{ product: Product & Windowed, pieces: number }} props */
function Card({ product, pieces }) {
  const state = stateOf(product);
  useServerNow(250, state === "scheduled");
  const few = state === "open" && product.stock <= FEW;
  const stock =
    state === "open"
      ? t(few ? "product.few" : "product.stock", { n: product.stock })
      : state === "scheduled"
        ? t("product.scheduled", { time: duration(Date.parse(product.sale_from ?? "") - serverNow()) })
        : t(`product.${state}`);
  const button = pieces > 0 ? t("product.in", { n: pieces }) : t("product.add");
  return html`<article class="product ${state === "open" ? "" : "product-off"}">
    <${Art} id=${product.id} name=${product.name} />
    <div class="product-body">
      <h3>${product.name}</h3>
      <p class="price">${money(product.price)}</p>
      <p class="small ${few ? "few" : "muted"}" data-stock=${product.id}>
        ${stock}${product.per_user_limit ? ` · ${t("product.limit", { n: product.per_user_limit })}` : ""}
      </p>
      <button
        type="button"
        class="button button-plain"
        data-add=${product.id}
        aria-label=${`${button}: ${product.name}`}
        disabled=${state !== "open"}
        onClick=${() => addToBasket(product.id)}
      >
        ${button}
      </button>
    </div>
  </article>`;
}
