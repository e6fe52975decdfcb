// The storefront's head: pages, who is shopping, the wallet, the language, the basket.

import { html, useState } from "../common/html.js";
import { money } from "../common/i18n.js";
import { connection, gateOpen } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Dialog, Icon, LanguageChoice, Mark } from "../common/ui.js";
import { balance, basket, becomeUser, user } from "./state.js";
import { t } from "./texts.js";

/** @param {{ view: string, onBasket: () => void }} props */
export function Header({ view, onBasket }) {
  const shopper = useStore(user);
  const won = useStore(balance);
  const pieces = Object.values(useStore(basket)).reduce((sum, n) => sum + n, 0);
  const [choosing, choose] = useState(false);
  return html`<header class="head">
    <a class="skip" href="#content">${t("skip")}</a>
    <div class="head-inner">
      <a class="brand" href="#/"><${Mark} /><span>${t("brand")} <small>${t("brand.sub")}</small></span></a>
      <nav aria-label=${t("nav.label")}>
        ${[
          ["", "nav.shop"],
          ["mine", "nav.mine"],
        ].map(
          ([name, key]) => html`<a
            key=${name}
            href="#/${name}"
            aria-current=${view === name ? "page" : undefined}
            >${t(key ?? "")}</a
          >`,
        )}
      </nav>
      <div class="head-tools">
        <${LanguageChoice} label=${t("language")} />
        <button
          type="button"
          class="button-quiet head-user"
          title=${t("user.switch")}
          onClick=${() => choose(true)}
        >
          <${Icon} name="user" /><span class="unseen">${t("user.as")} </span><span class="head-name">${shopper}</span> ${" "}
          <span class="head-money">${won === undefined ? "…" : money(won)}</span>
        </button>
        <button
          type="button"
          class="button-quiet head-basket"
          aria-label=${t("basket.open", { n: pieces })}
          onClick=${onBasket}
        >
          <${Icon} name="basket" />${pieces > 0 && html`<b class="badge-count">${pieces}</b>`}
        </button>
      </div>
    </div>
    <${ConnectionBar} />
    <${UserDialog} open=${choosing} onClose=${() => choose(false)} />
  </header>`;
}

/** Told only when something is wrong. */
function ConnectionBar() {
  const state = useStore(connection);
  const open = useStore(gateOpen);
  const text = state === "lost" ? t("connection.lost") : open ? "" : t("connection.closed");
  return html`<div role="status" aria-live="polite">
    ${text && html`<p class="banner"><${Icon} name="warning" />${text}</p>`}
  </div>`;
}

/** @param {{ open: boolean, onClose: () => void }} props */
function UserDialog({ open, onClose }) {
  /** @param {SubmitEvent} event */
  const onSubmit = (event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const number = Number(new FormData(form).get("number"));
    void becomeUser(`user-${number}`);
    onClose();
  };
  return html`<${Dialog} open=${open} onClose=${onClose} title=${t("user.title")} close=${t("basket.close")}>
    <form class="stack" onSubmit=${onSubmit}>
      <p class="muted">${t("user.about")}</p>
      <label class="field">
        <span>${t("user.number")}</span>
        <input
          name="number"
          type="number"
          inputmode="numeric"
          min="1"
          max="1000"
          step="1"
          required
          defaultValue=${user.get().slice("user-".length)}
        />
      </label>
      <button class="button">${t("user.apply")}</button>
    </form>
  <//>`;
}
