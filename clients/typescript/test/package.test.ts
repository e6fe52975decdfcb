// What `npm publish` would send.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { root } from "./schema.js";

const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

test("the package holds dist, README, LICENSE and package.json", () => {
  const args = ["pack", "--dry-run", "--json", "--ignore-scripts"];
  const [pack] = JSON.parse(execFileSync("npm", args, { cwd: root }).toString());
  const files: string[] = pack.files.map((file: { path: string }) => file.path);
  const modules = ["client", "index", "live", "problem", "repeat", "schema"];
  const dist = modules.flatMap((name) => [`dist/${name}.d.ts`, `dist/${name}.js`]);
  assert.deepEqual(files.sort(), ["LICENSE", "README.md", ...dist, "package.json"]);
});

test("the package can be published, and depends on openapi-fetch alone", () => {
  assert.equal(manifest.private, undefined);
  assert.equal(manifest.license, "Apache-2.0");
  assert.deepEqual(Object.keys(manifest.dependencies), ["openapi-fetch"]);
  const licence = (folder: string) => readFileSync(join(root, folder, "LICENSE"), "utf8");
  assert.equal(licence("."), licence("../.."));
});

test("the lock file names no registry", () => {
  assert.doesNotMatch(readFileSync(join(root, "package-lock.json"), "utf8"), /"resolved"/);
});
