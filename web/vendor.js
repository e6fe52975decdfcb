// Writes web/pages/vendor (libraries, with their licences) and web/pages/client (the compiled
// @rushgate/client) anew from the packages of package-lock.json and from clients/typescript.
// `--check` compares instead of writing, and fails where something differs.
//
// Browsers do not resolve names such as "preact" without an import map, and an import map would be
// an inline script, which the pages' Content-Security-Policy forbids. So names become paths; nothing
// else of the libraries is changed.

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const here = import.meta.dirname;
const packages = join(here, "node_modules");
const typescript = join(here, "..", "clients", "typescript");

/** @type {[from: string, to: string][]} */
const libraries = [
  ["preact/dist/preact.mjs", "vendor/preact.js"],
  ["preact/hooks/dist/hooks.mjs", "vendor/preact-hooks.js"],
  ["preact/LICENSE", "vendor/preact.LICENSE"],
  ["htm/dist/htm.mjs", "vendor/htm.js"],
  ["htm/LICENSE", "vendor/htm.LICENSE"],
  ["openapi-fetch/dist/index.mjs", "vendor/openapi-fetch.js"],
  ["openapi-fetch/LICENSE", "vendor/openapi-fetch.LICENSE"],
];
/** @type {[name: string, path: string][]} */
const names = [
  ["preact", "./preact.js"],
  ["openapi-fetch", "../vendor/openapi-fetch.js"],
];

/** Names become paths, and links to source maps, which are not served, are left out. @param {string} text */
function rewritten(text) {
  for (const [name, path] of names) {
    text = text.replaceAll(new RegExp(`(from ?)"${name}"`, "g"), `$1"${path}"`);
  }
  return text.replace(/\n\/\/# sourceMappingURL=.*\n?$/, "\n");
}

/** The client's modules by name, compiled; those of types alone are left out. */
function compiledClient() {
  const folder = mkdtempSync(join(tmpdir(), "rushgate-pages-"));
  try {
    const tsc = join(packages, "typescript", "bin", "tsc");
    const options = ["-p", typescript, "--outDir", folder, "--declaration", "false"];
    const ran = spawnSync(process.execPath, [tsc, ...options], { encoding: "utf8" });
    if (ran.status !== 0) throw new Error(`clients/typescript: ${ran.stdout}${ran.stderr}`);
    const names = readdirSync(folder).filter((name) => name !== "schema.js");
    return names.map((name) => /** @type {const} */ ([name, readFileSync(join(folder, name), "utf8")]));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** @type {Map<string, string>} */
const wanted = new Map();
for (const [from, to] of libraries) {
  const text = readFileSync(join(packages, from), "utf8");
  wanted.set(to, to.endsWith(".js") ? rewritten(text) : text);
}
for (const [name, text] of compiledClient()) wanted.set(`client/${name}`, rewritten(text));

const check = process.argv.includes("--check");
let stale = 0;
for (const [name, text] of wanted) {
  const file = join(here, "pages", name);
  if (existsSync(file) && readFileSync(file, "utf8") === text) continue;
  stale += 1;
  if (check) {
    console.error(`web/pages/${name} is not what the packages contain: npm run vendor (in web/)`);
  } else {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`wrote web/pages/${name}`);
  }
}
process.exitCode = check && stale > 0 ? 1 : 0;
