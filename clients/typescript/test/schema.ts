// Generates src/schema.ts from a running instance. As a program, it writes the file.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { Instance } from "./instance.js";

export const root = fileURLToPath(new URL("..", import.meta.url));
export const schemaFile = join(root, "src", "schema.ts");

export async function generate(instance: Instance): Promise<string> {
  const description = await (await fetch(`${instance.baseUrl}/openapi.json`)).text();
  const folder = mkdtempSync(join(tmpdir(), "rushgate-schema-"));
  try {
    const [from, to] = [join(folder, "openapi.json"), join(folder, "schema.ts")];
    writeFileSync(from, description);
    const generator = join(root, "node_modules", "openapi-typescript", "bin", "cli.js");
    execFileSync(process.execPath, [generator, from, "--output", to], { stdio: "ignore" });
    return readFileSync(to, "utf8");
  } finally {
    rmSync(folder, { recursive: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const instance = await Instance.start();
  try {
    writeFileSync(schemaFile, await generate(instance));
  } finally {
    await instance.stop();
  }
}
