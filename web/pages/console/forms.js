// Fields of forms, and what they contain.

import { html } from "../common/html.js";
import { t } from "./texts.js";

/**
 * `value` is what the field begins with: with the attribute of that name, each rendering would undo
 * what was typed.
 * @param {{ name: string, label: string, type?: string, value?: string | number | undefined, optional?: boolean, hint?: string } & Record<string, unknown>} props
 */
export function Field({ name, label, type = "text", value, optional, hint, ...rest }) {
  return html`<label class="field">
    <span>${label}${optional ? html` <small class="muted">(${t("field.optional")})</small>` : ""}</span>
    <input
      name=${name}
      type=${type}
      required=${!optional}
      defaultValue=${value ?? ""}
      autocomplete="off"
      ...${rest}
    />
    ${hint && html`<small class="muted">${hint}</small>`}
  </label>`;
}

/** @param {{ name: string, label: string, value?: string, options: [value: string, text: string][] }} props */
export function Choice({ name, label, value, options }) {
  return html`<label class="field">
    <span>${label}</span>
    <select name=${name}>
      ${options.map(
        ([each, text]) => html`<option key=${each} value=${each} selected=${each === value}>${text}</option>`,
      )}
    </select>
  </label>`;
}

/** Accepted ids. */
export const ID = { pattern: "[A-Za-z0-9._\\-]{1,64}", maxlength: 64, spellcheck: false };

/** @param {SubmitEvent} event */
export function formOf(event) {
  event.preventDefault();
  const data = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
  const text = (/** @type {string} */ name) => String(data.get(name) ?? "").trim();
  return {
    text,
    /** Absent where the field is empty or not there. @param {string} name */
    optional: (name) => text(name) || undefined,
    /** @param {string} name */
    number: (name) => Number(text(name)),
    /** @param {string} name */
    optionalNumber: (name) => (text(name) === "" ? undefined : Number(text(name))),
    /** RFC 3339 from the local time of a field. @param {string} name */
    moment: (name) => (text(name) ? new Date(text(name)).toISOString() : undefined),
  };
}

/** The local time for a field. @param {string | number | null | undefined} moment */
export function localTime(moment) {
  if (moment === null || moment === undefined) return "";
  const date = new Date(moment);
  const local = new Date(date.getTime() - date.getTimezoneOffset() * 60_000);
  return local.toISOString().slice(0, 19);
}
