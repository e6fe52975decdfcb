// The storefront: views by the address's hash.

import { html, render, useEffect, useState } from "../common/html.js";
import { useLanguage } from "../common/i18n.js";
import { follow } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Notices } from "../common/ui.js";
import { Basket } from "./basket.js";
import { Coupons } from "./coupons.js";
import { Header } from "./header.js";
import { Mine } from "./mine.js";
import { Products } from "./products.js";
import { Rush, useCurrentRun } from "./rush.js";
import { notices, readFeatures, refresh } from "./state.js";
import { t } from "./texts.js";

const currentView = () => location.hash.replace(/^#\/?/, "");

function Shop() {
  const lang = useLanguage();
  const told = useStore(notices);
  const [view, setView] = useState(currentView());
  const [open, setOpen] = useState(false);
  useCurrentRun();
  useEffect(() => {
    const onHash = () => {
      // The link that skips the head is no view.
      if (location.hash === "#content") return;
      setView(currentView());
      scrollTo(0, 0);
    };
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  useEffect(() => {
    document.documentElement.lang = lang;
    document.title = t("title");
  }, [lang]);
  return html`<${Header} view=${view} onBasket=${() => setOpen(true)} />
    <main id="content" tabindex="-1">
      ${view === "mine" ? html`<${Mine} />` : html`<${Rush} /><${Coupons} /><${Products} />`}
    </main>
    <footer class="foot">
      <p>${t("footer")}</p>
      <p><a href="/console/">${t("footer.console")}</a> · <a href="/docs/">${t("footer.docs")}</a></p>
    </footer>
    <${Basket} open=${open} onClose=${() => setOpen(false)} />
    <${Notices} notices=${told} />`;
}

render(html`<${Shop} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
void follow();
void refresh();
void readFeatures().catch(() => {});
