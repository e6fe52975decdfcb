// The console: signing in, then sections by the address's hash.

import { html, render, useEffect, useState } from "../common/html.js";
import { useLanguage } from "../common/i18n.js";
import { connection, follow } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Icon, LanguageChoice, Mark, Notices } from "../common/ui.js";
import { Audits } from "./audit.js";
import { Catalogue } from "./catalogue.js";
import { Find } from "./find.js";
import { Overview } from "./overview.js";
import { remember, RushBoard } from "./rush.js";
import { notices, refused, signIn, signOut, token } from "./state.js";
import { t } from "./texts.js";

const SECTIONS = ["overview", "rush", "catalogue", "find", "audit"];

const currentPath = () => location.hash.replace(/^#\/?/, "").split("/");

function Console() {
  const lang = useLanguage();
  const jwt = useStore(token);
  const told = useStore(notices);
  const [path, setPath] = useState(currentPath());
  useEffect(() => {
    // The link that skips the head is no section.
    const onHash = () => location.hash !== "#content" && setPath(currentPath());
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  useEffect(() => {
    document.documentElement.lang = lang;
    document.title = t("title");
  }, [lang]);
  const section = SECTIONS.includes(path[0] ?? "") ? path[0] : "overview";
  return html`<header class="head">
      <a class="skip" href="#content">${t("skip")}</a>
      <div class="head-inner">
        <a class="brand" href="#/overview"><${Mark} /><span>${t("brand")} <small>${t("brand.sub")}</small></span></a>
        ${jwt &&
        html`<nav aria-label=${t("nav")}>
          ${SECTIONS.map(
            (each) => html`<a key=${each} href="#/${each}" aria-current=${section === each ? "page" : undefined}>
              ${t(`nav.${each}`)}
            </a>`,
          )}
        </nav>`}
        <div class="head-tools">
          <${LanguageChoice} label=${t("language")} />
          ${jwt &&
          html`<button type="button" class="button-quiet" data-sign-out onClick=${() => signOut()}>
            ${t("sign.out")}
          </button>`}
        </div>
      </div>
      <${ConnectionBar} />
    </header>
    <main id="content" tabindex="-1">
      ${!jwt && html`<${SignIn} />`}
      ${jwt && section === "overview" && html`<${Overview} />`}
      ${jwt && section === "rush" && html`<${RushBoard} />`}
      ${jwt && section === "catalogue" && html`<${Catalogue} />`}
      ${jwt && section === "find" && html`<${Find} path=${path.slice(1)} />`}
      ${jwt && section === "audit" && html`<${Audits} />`}
    </main>
    <${Notices} notices=${told} />`;
}

function ConnectionBar() {
  const lost = useStore(connection) === "lost";
  return html`<div role="status" aria-live="polite">
    ${lost && html`<p class="banner"><${Icon} name="warning" />${t("lost")}</p>`}
  </div>`;
}

function SignIn() {
  const why = useStore(refused);
  const onSubmit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    signIn(String(new FormData(form).get("token")));
  };
  return html`<form class="card stack sign" onSubmit=${onSubmit}>
    <h1>${t("sign.title")}</h1>
    <p class="muted">${t("sign.about")}</p>
    <label class="field">
      <span>${t("sign.token")}</span>
      <textarea name="token" rows="4" required autocomplete="off" spellcheck=${false} data-token></textarea>
    </label>
    <div role="alert">${why && html`<p class="alert">${why}</p>`}</div>
    <button class="button button-wide">${t("sign.in")}</button>
    <p class="muted small">${t("sign.demo")}<br /><code>${t("sign.how")}</code></p>
  </form>`;
}

render(html`<${Console} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
remember();
void follow();
