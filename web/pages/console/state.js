// The staff's token, the client that sends it, and reads that are repeated.

import { createClient, RushgateProblem } from "../client/index.js";
import { observeDate } from "../common/clock.js";
import { html, useEffect, useState } from "../common/html.js";
import { language } from "../common/i18n.js";
import { createStore, useStore } from "../common/store.js";
import { t } from "./texts.js";

/** @typedef {import("../client/index.js").Schemas} Schemas */

const KEPT = "rushgate.staff";
const NOTICE_MS = 6000;

/** Of this tab only, and gone with it. */
export const token = createStore(sessionStorage.getItem(KEPT) ?? "");
/** Why the last token was refused. */
export const refused = createStore("");
export const notices = createStore(/** @type {{ tone: string, text: string, id: number }[]} */ ([]));

let noticed = 0;
/** @param {"good" | "bad"} tone @param {string} text */
export function notify(tone, text) {
  const id = ++noticed;
  notices.set((all) => [...all.slice(-2), { tone, text, id }]);
  setTimeout(() => notices.set((all) => all.filter((notice) => notice.id !== id)), NOTICE_MS);
}

/** @param {string} text */
export function signIn(text) {
  const jwt = text.trim().replace(/^(Authorization: *)?Bearer +/i, "");
  refused.set("");
  sessionStorage.setItem(KEPT, jwt);
  token.set(jwt);
}

/** @param {string} [why] */
export function signOut(why = "") {
  sessionStorage.removeItem(KEPT);
  refused.set(why);
  token.set("");
}

/** @param {Request} request */
async function fetchAsStaff(request) {
  const response = await fetch(request);
  observeDate(response);
  if (response.status === 401 && token.get()) signOut(t("sign.invalid"));
  if (response.status === 403 && token.get()) signOut(t("sign.forbidden"));
  return response;
}

export function api() {
  return createClient({
    baseUrl: location.origin,
    token: () => token.get(),
    fetch: fetchAsStaff,
    locale: language.get(),
  });
}

/** @param {any} error */
export function explain(error) {
  if (error instanceof RushgateProblem) return `${error.message} (${error.code})`;
  return t("unreachable");
}

export const RETRY = { attempts: 4, withinMs: 10_000 };

/**
 * What a route answered, and when.
 * @template T
 * @typedef {{ value: T | undefined, at: number, source: string, trouble: string }} Read
 */

/**
 * Reads now and every `everyMs`, while the component lives and the page is shown.
 * @template T
 * @param {string} source as people read it, such as `GET /v1/admin/status`
 * @param {() => Promise<T>} read
 * @param {number} everyMs
 * @param {readonly unknown[]} inputs another read begins when these change
 * @returns {Read<T> & { again: () => void }}
 */
export function useRead(source, read, everyMs, inputs = []) {
  const [state, setState] = useState(
    /** @type {Read<T>} */ ({ value: undefined, at: 0, source, trouble: "" }),
  );
  const [round, setRound] = useState(0);
  useEffect(() => {
    let over = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const once = async () => {
      try {
        if (!document.hidden) {
          const value = await read();
          if (!over) setState({ value, at: Date.now(), source, trouble: "" });
        }
      } catch (error) {
        // The last value stays, with its age.
        if (!over) setState((last) => ({ ...last, trouble: explain(error) }));
      }
      if (!over && everyMs > 0) timer = setTimeout(once, everyMs);
    };
    void once();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [round, ...inputs]);
  return { ...state, again: () => setRound((n) => n + 1) };
}

/** Where a number comes from, and how old it is. @param {{ of: Read<unknown> }} props */
export function Source({ of }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const age = of.at ? Math.max(0, Math.round((Date.now() - of.at) / 1000)) : undefined;
  return html`<p class="source ${of.trouble ? "source-bad" : ""}">
    <code>${of.source}</code> ·
    ${" "}${age === undefined ? (of.trouble ? t("source.never") : t("source.reading")) : t("source.age", { n: age })}
    ${of.trouble && html` · <b>${of.trouble}</b>`}
  </p>`;
}

/** @template T @param {import("../common/store.js").Store<T>} store */
export const useValue = (store) => useStore(store);
