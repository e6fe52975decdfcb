// Parts that both pages use.

import { html, useEffect, useRef } from "./html.js";
import { language, setLanguage, useLanguage } from "./i18n.js";

/** @typedef {import("./html.js").Children} Children */

/** @type {Record<string, string>} */
const PATHS = {
  basket: "M3 4h2l2.4 11.2a1 1 0 0 0 1 .8h8.900a1 1 0 0 0 1-.75L20.500 8H6M9 20h.01M17 20h.01",
  check: "m5 12.500 4.500 4.500L19 7.500",
  cross: "M6 6l12 12M18 6 6 18",
  clock: "M12 7v5l3 2M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  user: "M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8M5 20a7 7 0 0 1 14 0",
  wallet: "M4 7.500A2.500 2.500 0 0 1 6.500 5H17v3M4 7.500V17a2 2 0 0 0 2 2h14V8H6.500M16 13.500h.01",
  bolt: "M13 3 5 14h6l-1 7 8-11h-6z",
  minus: "M6 12h12",
  plus: "M12 6v12M6 12h12",
  download: "M12 4v11m0 0-4-4m4 4 4-4M5 20h14",
  refresh: "M20 12a8 8 0 1 1-2.300-5.600L20 8.500M20 4v4.500h-4.500",
  warning: "M12 4 3 19.500h18zM12 10v4M12 17h.01",
};

/** @param {{ name: string }} props */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** The brand's mark. */
export function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
    <rect width="32" height="32" rx="9" class="mark-ground" />
    <path d="M8.500 24V13a7.500 7.500 0 0 1 15 0v11" class="mark-gate" />
    <path d="m17.400 11-4.600 6.400h3.600l-1.200 5.600 4.800-7h-3.600z" class="mark-bolt" />
  </svg>`;
}

/** @param {{ label: string }} props */
export function LanguageChoice({ label }) {
  useLanguage();
  return html`<div class="segments" role="group" aria-label=${label}>
    ${/** @type {const} */ ([
      ["en", "EN"],
      ["ko", "한국어"],
    ]).map(
      ([code, name]) => html`<button
        key=${code}
        type="button"
        lang=${code}
        aria-pressed=${language.get() === code}
        onClick=${() => setLanguage(code)}
      >
        ${name}
      </button>`,
    )}
  </div>`;
}

/**
 * A modal dialog, closed by its button, Escape, or a click beside it.
 * @param {{ open: boolean, onClose: () => void, title: string, close: string, side?: boolean, children?: Children }} props
 */
export function Dialog({ open, onClose, title, close, side, children }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    if (open && !dialog.current?.open) dialog.current?.showModal();
    if (!open && dialog.current?.open) dialog.current.close();
  }, [open]);
  return html`<dialog
    ref=${dialog}
    class=${side ? "dialog dialog-side" : "dialog"}
    aria-label=${title}
    onClose=${onClose}
    onClick=${(/** @type {MouseEvent} */ event) => event.target === dialog.current && onClose()}
  >
    ${open &&
    html`<div class="dialog-inner">
      <header class="dialog-head">
        <h2>${title}</h2>
        <button type="button" class="button-quiet button-icon" aria-label=${close} onClick=${onClose}>
          <${Icon} name="cross" />
        </button>
      </header>
      ${children}
    </div>`}
  </dialog>`;
}

/**
 * What is told; screen readers say it, too.
 * @param {{ notices: { tone: string, text: string, id: number }[] }} props
 */
export function Notices({ notices }) {
  return html`<div class="notices" role="status" aria-live="polite">
    ${notices.map(({ tone, text, id }) => html`<p key=${id} class="notice notice-${tone}">${text}</p>`)}
  </div>`;
}

/** @param {{ value: number, of: number, label: string }} props */
export function Meter({ value, of, label }) {
  return html`<meter class="meter" min="0" max=${Math.max(of, 1)} value=${value} aria-label=${label}></meter>`;
}
