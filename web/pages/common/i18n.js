// Texts, money and dates in English and Korean.

import { createStore, useStore } from "./store.js";

/** @typedef {"en" | "ko"} Language */
/** @typedef {Record<string, string | number>} Params */
/** @typedef {(key: string, params?: Params) => string} Translate */

const KEPT = "rushgate.language";

/** @returns {Language} */
function firstLanguage() {
  const kept = localStorage.getItem(KEPT);
  if (kept === "en" || kept === "ko") return kept;
  return navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en";
}

export const language = createStore(firstLanguage());

/** @param {Language} chosen */
export function setLanguage(chosen) {
  localStorage.setItem(KEPT, chosen);
  language.set(chosen);
}

/**
 * @param {Record<Language, Record<string, string>>} texts
 * @returns {{ t: Translate, has: (key: string) => boolean }}
 */
export function createTexts(texts) {
  /** @type {Translate} */
  const t = (key, params = {}) => {
    const text = texts[language.get()][key] ?? texts.en[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => {
      const value = params[name];
      if (value === undefined) return whole;
      return typeof value === "number" ? count(value) : value;
    });
  };
  return { t, has: (key) => key in texts.en };
}

/** Renders again when the language changes. @returns {Language} */
export function useLanguage() {
  return useStore(language);
}

const locale = () => (language.get() === "ko" ? "ko-KR" : "en-GB");

/** @param {number} value */
export function count(value) {
  return new Intl.NumberFormat(locale()).format(value);
}

/** Whole won: `₩4,500`, `4,500원`. @param {number} won */
export function money(won) {
  const sign = won < 0 ? "−" : "";
  const digits = count(Math.abs(won));
  return language.get() === "ko" ? `${sign}${digits}원` : `${sign}₩${digits}`;
}

/** @param {string | number} moment RFC 3339, or milliseconds */
export function dateTime(moment) {
  const format = new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "short" });
  return format.format(new Date(moment));
}

/** With seconds, for what happens soon. @param {string | number} moment */
export function clockTime(moment) {
  const format = new Intl.DateTimeFormat(locale(), { timeStyle: "medium" });
  return format.format(new Date(moment));
}

/** `0:09`, `12:30`, `2:05:00`; whole seconds, rounded up, so that it ends at the very moment. @param {number} ms */
export function duration(ms) {
  const secs = Math.max(0, Math.ceil(ms / 1000));
  const parts = [Math.floor(secs / 60) % 60, secs % 60];
  const hours = Math.floor(secs / 3600);
  if (hours >= 48) {
    const days = Math.floor(hours / 24);
    return language.get() === "ko" ? `${days}일` : `${days} days`;
  }
  if (hours > 0) parts.unshift(hours);
  return parts.map((part, at) => (at === 0 ? `${part}` : `${part}`.padStart(2, "0"))).join(":");
}
