// A private instance of the service: the demo of the program that RUSHGATE_BINARY names, on free
// ports.

import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const binary = process.env["RUSHGATE_BINARY"];
const START_LIMIT_MS = 120_000;

export class Instance {
  private constructor(
    readonly baseUrl: string,
    private readonly folder: string,
    private readonly child: ChildProcess,
  ) {}

  static async start(...options: string[]): Promise<Instance> {
    if (!binary)
      throw new Error("RUSHGATE_BINARY does not name the service's program: ./dev client");
    const folder = mkdtempSync(join(tmpdir(), "rushgate-client-"));
    // Run as root, the demo starts PostgreSQL as the user postgres, who must reach its folder.
    chmodSync(folder, 0o755);
    const [api, ops] = await freePorts(2);
    const listen = ["--listen", `127.0.0.1:${api}`, "--ops-listen", `127.0.0.1:${ops}`];
    const child = spawn(binary, ["demo", "--data", join(folder, "demo"), ...listen, ...options], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const told: string[] = [];
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (text: Buffer) => told.push(text.toString()));
    }
    const instance = new Instance(`http://127.0.0.1:${api}`, folder, child);
    const deadline = Date.now() + START_LIMIT_MS;
    while (
      !(await answers(`http://127.0.0.1:${ops}/readyz`)) ||
      !told.join("").includes("is open")
    ) {
      if (child.exitCode !== null || Date.now() > deadline) {
        await instance.stop();
        throw new Error(`the demo did not start:\n${told.join("")}`);
      }
      await sleep(200);
    }
    return instance;
  }

  async stop(): Promise<void> {
    if (this.child.exitCode === null) {
      const exit = once(this.child, "exit");
      this.child.kill("SIGINT");
      await exit;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }

  token(user: string, scope: "shop" | "service" | "admin"): string {
    const env = { RUSHGATE_JWT_SECRET_FILE: join(this.folder, "demo", "jwt-secret") };
    const jwt = execFileSync(binary!, ["token", "--sub", user, "--scope", scope], { env });
    return jwt.toString().trim();
  }

  /** Stops all processes of PostgreSQL by SIGSTOP. The function returned continues them. */
  freezePostgres(): () => void {
    const file = join(this.folder, "demo", "postgres", "data", "postmaster.pid");
    const postgres = Number(readFileSync(file, "utf8").split("\n")[0]);
    const pids = [postgres];
    // The postmaster first: it could start further processes.
    process.kill(postgres, "SIGSTOP");
    for (const pid of children(postgres)) {
      process.kill(pid, "SIGSTOP");
      pids.push(pid);
    }
    return () => pids.forEach((pid) => process.kill(pid, "SIGCONT"));
  }
}

function children(pid: number): number[] {
  const pids = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
  return pids.split(" ").filter(Boolean).map(Number);
}

async function answers(url: string): Promise<boolean> {
  const answer = await fetch(url).catch(() => undefined);
  return answer?.ok ?? false;
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"));
  await Promise.all(servers.map((server) => once(server, "listening")));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => server.close() && once(server, "close")));
  return ports;
}
