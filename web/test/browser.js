// Chromium, and what is checked on every page: no errors, no requests to elsewhere, no violations of
// accessibility, no horizontal scrolling.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { chromium } from "playwright-core";

/** @typedef {import("playwright-core").Page} Page */
/** @typedef {import("playwright-core").BrowserContextOptions} Options */

const root = join(import.meta.dirname, "..", "..");
const target = join(root, "target", "browser");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** Chromium's own line about an answer that is no success: refusals are answers. */
const REFUSAL = /^Failed to load resource: the server responded with a status of 4(01|03|04|09|22)/;
/** While a connection is cut on purpose. */
const BROKEN = /^Failed to load resource: net::ERR_|^TypeError: network error/;
const MOST_IMAGE_BYTES = 150 * 1024;

export const DESKTOP = { viewport: { width: 1280, height: 800 }, locale: "en-GB" };
export const PHONE = { viewport: { width: 360, height: 720 }, isMobile: true, hasTouch: true, locale: "en-GB" };

export class Browser {
  /** @param {import("playwright-core").Browser} browser @param {string} origin */
  constructor(browser, origin) {
    this.browser = browser;
    this.origin = origin;
  }

  /** @param {string} origin where pages come from and may send to */
  static async start(origin) {
    const program = process.env["RUSHGATE_CHROMIUM"] ?? "/usr/bin/chromium";
    // As root, Chromium has no sandbox.
    const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
    return new Browser(await chromium.launch({ executablePath: program, args }), origin);
  }

  close() {
    return this.browser.close();
  }

  /**
   * Runs `visit` in a fresh profile. Fails on errors in the browser's console and on requests to
   * other origins.
   * @param {Options & { origin?: string, cut?: boolean }} options `cut`: connections break on purpose
   * @param {(page: Page, origin: string) => Promise<void>} visit
   */
  async visit({ origin = this.origin, cut = false, ...options }, visit) {
    const context = await this.browser.newContext(options);
    /** @type {string[]} */
    const wrong = [];
    const page = await context.newPage();
    if (process.env["RUSHGATE_PAGES_FROM_DISK"]) await serveFromDisk(page);
    page.on("console", (message) => {
      const text = message.text();
      const expected = REFUSAL.test(text) || (cut && BROKEN.test(text));
      if (message.type() === "error" && !expected) wrong.push(text);
    });
    page.on("pageerror", (error) => wrong.push(`${error}`));
    page.on("dialog", (dialog) => {
      wrong.push(`a dialog: ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on("request", (request) => {
      const url = new URL(request.url());
      if (url.origin !== origin && !["blob:", "data:"].includes(url.protocol)) wrong.push(`a request to ${url}`);
    });
    try {
      await visit(page, origin);
    } catch (error) {
      if (wrong.length > 0) console.error("the browser said:", wrong);
      mkdirSync(target, { recursive: true });
      await page.screenshot({ path: join(target, `failed-${Date.now()}.png`) }).catch(() => {});
      throw error;
    } finally {
      await context.close();
    }
    assert.deepEqual(wrong, []);
  }
}

/** The working tree's files instead of those built in, to try a change without a build. @param {Page} page */
async function serveFromDisk(page) {
  await page.route(/\/assets\//, async (route) => {
    const path = new URL(route.request().url()).pathname.replace("/assets/", "");
    await route.fulfill({ path: join(root, "web", "pages", path) });
  });
}

/** Fails on violations of accessibility rules, WCAG 2.2 AA and best practices. @param {Page} page */
export async function checkAccessible(page) {
  await page.evaluate(axe);
  const violations = await page.evaluate(async () => {
    // What fades in has its colours at the end.
    await Promise.all(document.getAnimations().map((animation) => animation.finished));
    const { violations } = await /** @type {any} */ (globalThis).axe.run(document);
    return violations.map((/** @type {any} */ each) => ({
      id: each.id,
      help: each.help,
      at: each.nodes.slice(0, 3).map((/** @type {any} */ node) => `${node.target}: ${node.failureSummary}`),
    }));
  });
  assert.deepEqual(violations, []);
}

/** @param {Page} page */
export async function checkNoSideways(page) {
  const beyond = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(beyond <= 0, `${page.url()} is ${beyond} px wider than the screen`);
}

/**
 * A picture for the documentation: into target/browser, and with RUSHGATE_SCREENSHOTS into
 * docs/images, too.
 * @param {Page} page @param {string} name
 */
export async function picture(page, name) {
  mkdirSync(target, { recursive: true });
  await page.screenshot({ path: join(target, `${name}.png`) });
  const session = await page.context().newCDPSession(page);
  const shot = await session.send("Page.captureScreenshot", { format: "webp", quality: 82 });
  const image = Buffer.from(shot.data, "base64");
  assert.ok(image.length < MOST_IMAGE_BYTES, `${name}.webp has ${image.length} bytes`);
  const kept = join(root, "docs", "images", `${name}.webp`);
  if (process.env["RUSHGATE_SCREENSHOTS"]) writeFileSync(kept, image);
  else assert.ok(existsSync(kept), `docs/images/${name}.webp is missing: ./dev browser --screenshots`);
}

/**
 * Waits until the check holds, and says the last failure otherwise.
 * @param {() => Promise<void>} check @param {number} [withinMs]
 */
export async function eventually(check, withinMs = 10_000) {
  const deadline = Date.now() + withinMs;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
