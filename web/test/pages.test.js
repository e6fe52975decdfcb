// The pages in Chromium, against a real demo. `./dev browser` runs this.

import { after, before, describe } from "node:test";

import { Browser } from "./browser.js";
import { consoleTests } from "./console.js";
import { Demo } from "./demo.js";
import { fileTests } from "./files.js";
import { shopTests } from "./shop.js";

/** @type {import("./suite.js").Setting} */
let setting;

describe("the pages", { concurrency: 1, timeout: 8 * 60_000 }, () => {
  before(async () => {
    const demo = await Demo.start();
    setting = { demo, browser: await Browser.start(demo.url) };
  });
  after(async () => {
    await setting?.browser.close();
    await setting?.demo.stop();
  });
  describe("files", () => fileTests(() => setting));
  describe("/shop/", () => shopTests(() => setting));
  describe("/console/", () => consoleTests(() => setting));
});
