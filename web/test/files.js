// The files that are served: how large, with which headers, and only where they belong.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

const MOST_BYTES = 250 * 1024;
const pages = join(import.meta.dirname, "..", "pages");

/** @returns {string[]} paths of the files that browsers load */
function files() {
  const all = readdirSync(pages, { recursive: true, withFileTypes: true });
  const named = all.filter((it) => it.isFile()).map((it) => join(it.parentPath, it.name).slice(pages.length + 1));
  return named.filter((path) => !path.endsWith(".d.ts") && !path.endsWith(".LICENSE"));
}

/** @param {() => import("./suite.js").Setting} setting */
export function fileTests(setting) {
  test("both pages together are under 250 KB, compressed", () => {
    const sizes = files().map((path) => gzipSync(readFileSync(join(pages, path))).length);
    const sum = sizes.reduce((all, size) => all + size, 0);
    console.log(`      ${sizes.length} files, ${(sum / 1024).toFixed(1)} KB compressed`);
    assert.ok(sum < MOST_BYTES, `${sum} bytes`);
  });

  test("files have types, tags and a policy without inline code", async () => {
    const { demo } = setting();
    for (const path of ["/shop/", "/console/", ...files().map((path) => `/assets/${path}`)]) {
      const response = await fetch(demo.url + path);
      assert.equal(response.status, 200, path);
      const policy = response.headers.get("content-security-policy") ?? "";
      assert.ok(policy.startsWith("default-src 'self';") && !policy.includes("unsafe"), path);
      assert.equal(response.headers.get("x-content-type-options"), "nosniff");
      const tag = response.headers.get("etag") ?? "";
      await response.arrayBuffer();
      const again = await fetch(demo.url + path, { headers: { "if-none-match": tag } });
      assert.equal(again.status, 304, path);
      if (path.endsWith(".js")) assert.match(response.headers.get("content-type") ?? "", /^text\/javascript/);
    }
    for (const path of ["/assets/", "/assets/../Cargo.toml", "/assets/shop/none.js", "/shop/index.html", "/assets/vendor/preact.d.ts"]) {
      assert.equal((await fetch(demo.url + path)).status, 404, path);
    }
  });

  test("the pages contain no inline code or style, and no address elsewhere", () => {
    for (const path of files().filter((path) => !path.startsWith("vendor/"))) {
      const text = readFileSync(join(pages, path), "utf8");
      const elsewhere = [...text.matchAll(/https?:\/\/[^\s"'`)<]+/g)].map(([url]) => url);
      assert.deepEqual(elsewhere.filter((url) => url !== "http://www.w3.org/2000/svg"), [], path);
      assert.doesNotMatch(text, /innerHTML|dangerouslySetInnerHTML|\beval\(|new Function/, path);
      if (path.endsWith(".html")) assert.doesNotMatch(text, /<style|\sstyle=|\son\w+=|<script(?![^>]* src=)/, path);
    }
  });
}
