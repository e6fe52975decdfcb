// A TCP proxy that cuts connections at random points, drawn from a seed.

import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";

/** Where a request is cut: before it reaches the service, before the answer, or in the answer. */
export const POINTS = ["request", "between", "answer"] as const;
type Point = (typeof POINTS)[number];

export class Cutter {
  readonly cuts: Record<Point, number> = { request: 0, between: 0, answer: 0 };
  private readonly open = new Set<Socket>();

  private constructor(
    private readonly server: Server,
    private readonly target: number,
    private readonly share: number,
    private readonly random: () => number,
  ) {
    server.on("connection", (client) => this.join(client));
  }

  /** Cuts a `share` of the requests to the port `target`. */
  static async start(target: number, share: number, seed: number): Promise<Cutter> {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    return new Cutter(server, target, share, mulberry32(seed));
  }

  get baseUrl(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** Cuts all connections. */
  cutAll(): void {
    for (const socket of this.open) socket.destroy();
  }

  async stop(): Promise<void> {
    this.cutAll();
    this.server.close();
    await once(this.server, "close");
  }

  private join(client: Socket): void {
    const service = connect(this.target, "127.0.0.1");
    const sockets = [client, service];
    const cut = () => sockets.forEach((socket) => socket.destroy());
    for (const socket of sockets) {
      this.open.add(socket);
      socket.setNoDelay();
      socket.on("error", cut);
      socket.on("close", () => (cut(), this.open.delete(socket)));
    }
    // HTTP/1.1 without pipelining: the first bytes after an answer begin the next request.
    let point: Point | undefined;
    let inRequest = false;
    client.on("data", (bytes) => {
      if (!inRequest) point = this.draw();
      inRequest = true;
      if (point === "request") {
        service.end(bytes.subarray(0, Math.floor(bytes.length * this.random())));
        client.destroy();
        return;
      }
      service.write(bytes);
      // The service may or may not notice the end of the connection before it decides.
      if (point === "between") setTimeout(cut, 10 * this.random());
    });
    service.on("data", (bytes) => {
      inRequest = false;
      if (point === "between") return;
      if (point !== "answer") return void client.write(bytes);
      client.end(bytes.subarray(0, Math.floor(bytes.length * this.random())), cut);
    });
  }

  private draw(): Point | undefined {
    if (this.random() >= this.share) return undefined;
    const point = POINTS[Math.floor(this.random() * POINTS.length)]!;
    this.cuts[point] += 1;
    return point;
  }
}

/** A small generator with a seed: https://github.com/bryc/code/blob/master/jshash/PRNGs.md */
function mulberry32(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
