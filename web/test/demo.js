// A private instance of the service: the demo of the program that RUSHGATE_BINARY names, on free
// ports.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const START_LIMIT_MS = 120_000;

export class Demo {
  /**
   * @param {string} url @param {string} folder @param {string} binary
   * @param {import("node:child_process").ChildProcess | undefined} child
   */
  constructor(url, folder, binary, child) {
    this.url = url;
    this.folder = folder;
    this.binary = binary;
    this.child = child;
    this.admin = "";
  }

  static async start() {
    const running = process.env["RUSHGATE_DEMO"];
    if (running) return Demo.running(running);
    const binary = process.env["RUSHGATE_BINARY"];
    if (!binary) throw new Error("RUSHGATE_BINARY does not name the service's program: ./dev browser");
    const folder = mkdtempSync(join(tmpdir(), "rushgate-browser-"));
    // Run as root, the demo starts PostgreSQL as the user postgres, who must reach its folder.
    chmodSync(folder, 0o755);
    const [api, ops] = await freePorts(2);
    const listen = ["--listen", `127.0.0.1:${api}`, "--ops-listen", `127.0.0.1:${ops}`];
    const child = spawn(binary, ["demo", "--data", join(folder, "demo"), ...listen], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let told = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (told += text));
    const demo = new Demo(`http://127.0.0.1:${api}`, folder, binary, child);
    const deadline = Date.now() + START_LIMIT_MS;
    while (!told.includes("Ctrl-C stops everything")) {
      if (child.exitCode !== null || Date.now() > deadline) {
        await demo.stop();
        throw new Error(`the demo did not start:\n${told}`);
      }
      await sleep(100);
    }
    demo.introduction = told;
    demo.admin = demo.token("shop-staff", "admin");
    return demo;
  }

  /** A demo that runs already, `URL FOLDER`, for trying out tests. @param {string} named */
  static running(named) {
    const [url = "", folder = ""] = named.split(" ");
    const demo = new Demo(url, folder, process.env["RUSHGATE_BINARY"] ?? "", undefined);
    demo.admin = demo.token("shop-staff", "admin");
    return demo;
  }

  /** What the demo has printed. */
  introduction = "";

  async stop() {
    if (!this.child) return;
    if (this.child.exitCode === null) {
      const exit = once(this.child, "exit");
      this.child.kill("SIGINT");
      await exit;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** @param {string} user @param {"shop" | "service" | "admin"} scope */
  token(user, scope) {
    const env = { RUSHGATE_JWT_SECRET_FILE: join(this.folder, "demo", "jwt-secret") };
    return execFileSync(this.binary, ["token", "--sub", user, "--scope", scope], { env }).toString().trim();
  }

  /** The token that the demo has printed for staff. */
  printedAdminToken() {
    return readFileSync(join(this.folder, "demo", "admin.header"), "utf8").trim();
  }

  /**
   * A call as staff; the answer's body.
   * @param {string} method @param {string} path @param {object} [body] @returns {Promise<any>}
   */
  async staff(method, path, body) {
    const response = await fetch(this.url + path, {
      method,
      headers: {
        authorization: `Bearer ${this.admin}`,
        ...(body ? { "content-type": "application/json" } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`);
    return answer;
  }

  /** Whether the description has a route. @param {string} path */
  async hasRoute(path) {
    return path in (await (await fetch(`${this.url}/openapi.json`)).json()).paths;
  }

  /** All elements of a list. @param {string} path @returns {Promise<any[]>} */
  async all(path) {
    const found = [];
    for (let after = ""; ; ) {
      const page = await this.staff("GET", `${path}?limit=100${after && `&after=${after}`}`);
      found.push(...page.data);
      if (!page.next) return found;
      after = page.next;
    }
  }
}

/** A way to the demo that can be cut and mended. */
export class Cable {
  /** @param {string} url */
  constructor(url) {
    this.target = new URL(url);
    /** @type {Set<import("node:net").Socket>} */
    this.sockets = new Set();
    this.cut = false;
    this.server = createServer((socket) => {
      if (this.cut) return void socket.destroy();
      const onward = connect(Number(this.target.port), this.target.hostname);
      for (const end of [socket, onward]) {
        this.sockets.add(end);
        end.on("error", () => {});
        end.on("close", () => {
          this.sockets.delete(end);
          socket.destroy();
          onward.destroy();
        });
      }
      socket.pipe(onward).pipe(socket);
    });
  }

  /** @param {string} url */
  static async to(url) {
    const cable = new Cable(url);
    await once(cable.server.listen(0, "127.0.0.1"), "listening");
    return cable;
  }

  get url() {
    const address = /** @type {import("node:net").AddressInfo} */ (this.server.address());
    return `http://127.0.0.1:${address.port}`;
  }

  breakNow() {
    this.cut = true;
    for (const socket of this.sockets) socket.destroy();
  }

  mend() {
    this.cut = false;
  }

  async close() {
    this.breakNow();
    this.server.close();
    await once(this.server, "close");
  }
}

/** @param {number} count */
async function freePorts(count) {
  const servers = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"));
  await Promise.all(servers.map((server) => once(server, "listening")));
  const ports = servers.map(
    (server) => /** @type {import("node:net").AddressInfo} */ (server.address()).port,
  );
  await Promise.all(servers.map((server) => once(server.close(), "close")));
  return ports;
}
