"""Runs docker-compose.yml: `./dev containers`.

Builds the Dockerfile and starts the services with podman, on stand-ins for the official images (see
Containerfile; Grafana is left out, because Debian has no package of it). Then it checks what the file
promises: services become healthy in order, no process is root, only volumes can be written, there are no
capabilities, and one port is published, on loopback. It places an order over HTTP and finds its message
in RabbitMQ. Finally it checks that all services stop within the grace period, and that the data is still
there after a restart.
"""

import argparse
import fcntl
import json
import os
import pathlib
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

import yaml

import engine
from engine import Failed, podman, run, say

PROJECT = "rushgate-test"
SERVICES = ["redis", "postgres", "rabbitmq", "rushgate", "prometheus"]
USER = "user-1"
MAXMEMORY_MIB = 256
# Seconds for building Rushgate's dependencies, which later builds find in the cache.
FIRST_BUILD_LIMIT = 900


def container(service):
    return f"{PROJECT}_{service}_1"


def inspect(service):
    return json.loads(podman("inspect", container(service)).stdout)[0]


def inside(service, *command, **more):
    return podman("exec", container(service), *command, **more)


class Shop:
    """The services under compose, with passwords for this run only."""

    def __init__(self, compose):
        self.passwords = {name: secrets.token_hex(24) for name in
                          ("RUSHGATE_JWT_SECRET", "REDIS_PASSWORD", "POSTGRES_PASSWORD", "RABBITMQ_PASSWORD",
                           "GRAFANA_PASSWORD")}
        self.port = free_port()
        settings = self.passwords | {"BIND": "127.0.0.1", "API_PORTS": str(self.port),
                                     "REDIS_MAXMEMORY": f"{MAXMEMORY_MIB}mb"}
        self.env_file = engine.STORE / "test.env"
        self.env_file.touch(mode=0o600)
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self.command = [compose, "--project-name", PROJECT, "--env-file", self.env_file,
                        "--file", engine.ROOT / "docker-compose.yml", "--file", engine.HERE / "override.yml"]

    def compose(self, *arguments, timeout=120):
        return run(*self.command, *arguments, timeout=timeout, cwd=engine.ROOT)

    def create(self):
        self.compose("up", "--no-start", "--no-build", *SERVICES)

    def start(self):
        """Starts each service when those in its `depends_on` are healthy, like `docker compose up`.

        Debian's podman cannot wait for health, and without systemd it does not run health checks itself.
        """
        for services in start_order():
            self.compose("start", *services)
            for service in services:
                wait_for(f"{service} healthy", lambda: is_healthy(service), 120)

    def stop(self):
        """Stops dependents first, like `docker compose stop`. podman-compose would stop all at once."""
        for services in reversed(start_order()):
            self.compose("stop", *services, timeout=120)

    def token(self, subject, scope):
        return inside("rushgate", "rushgate", "token", "--sub", subject, "--scope", scope).stdout.strip()

    def call(self, path, token=None, body=None, key=None):
        """Sends a request. Returns status, headers and JSON of the answer."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Idempotency-Key": key} if key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers,
                                         data=None if body is None else json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, json.load(answer)
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.headers, json.load(refusal)

    def messages(self, requeue):
        """The events in the data platform's queue, by order id."""
        mode = "ack_requeue_true" if requeue else "ack_requeue_false"
        read = inside("rabbitmq", "rabbitmqadmin", "--username", "rushgate", "--password",
                      self.passwords["RABBITMQ_PASSWORD"], "--format", "raw_json", "get",
                      "queue=data-platform.orders", f"ackmode={mode}", "count=100")
        return {event["subject"]: event for event in (json.loads(row["payload"]) for row in json.loads(read.stdout))}


def start_order():
    """Groups of services that may start together, each after those in their `depends_on`."""
    services = yaml.safe_load((engine.ROOT / "docker-compose.yml").read_text())["services"]
    steps, started = [], set()
    while len(started) < len(SERVICES):
        due = [name for name in SERVICES
               if name not in started and set(services[name].get("depends_on", {})) <= started]
        expect(due, f"after {started}, the others wait for each other")
        steps.append(due)
        started |= set(due)
    return steps


def is_healthy(service):
    """Runs the health check of the image or of docker-compose.yml."""
    return podman("healthcheck", "run", container(service), check=False).returncode == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def expect(holds, otherwise):
    if not holds:
        raise Failed(otherwise)


def wait_for(what, probe, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(1)
    raise Failed(f"{what}: not within {seconds} s")


# ---- the tests, in this order -------------------------------------------------------------------


def healthy_in_order(shop):
    shop.create()
    shop.start()
    for service in SERVICES:
        state = inspect(service)
        expect(state["RestartCount"] == 0, f"{service} was restarted: what it needs was not there")
        expect(state["State"]["Running"] and is_healthy(service), f"{service} is not healthy any more")


def status_of(process):
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.split() for name, value in (line.split(":", 1) for line in lines)}


def nobody_is_root(shop):
    for service in SERVICES:
        listed = podman("top", container(service), "hpid").stdout.split()[1:]
        expect(listed, f"{service} has no process")
        for process in listed:
            try:
                users = status_of(process)["Uid"]
            except FileNotFoundError:
                continue
            expect("0" not in users, f"{service}: a process is root: Uid {users}")


def no_capabilities(shop):
    for service in SERVICES:
        status = status_of(inspect(service)["State"]["Pid"])
        for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            expect(int(status[kind][0], 16) == 0, f"{service} has capabilities: {kind} {status[kind][0]}")
        expect(status["NoNewPrivs"] == ["1"], f"{service} may gain privileges")


def read_only(shop):
    for service in SERVICES:
        mounts = pathlib.Path(f"/proc/{inspect(service)['State']['Pid']}/mountinfo").read_text().splitlines()
        root = [mount.split()[5].split(",") for mount in mounts if mount.split()[4] == "/"]
        expect(root and all("ro" in options for options in root), f"{service}: its file system can be written: {root}")
    tried = inside("rushgate", "touch", "/usr/local/bin/x", check=False)
    expect(tried.returncode != 0 and "Read-only" in tried.stderr, f"rushgate wrote a file: {tried.stderr}")


def one_port_on_loopback(shop):
    bindings = {service: inspect(service)["HostConfig"]["PortBindings"] or {} for service in SERVICES}
    published = {(service, port): [binding["HostIp"] for binding in at]
                 for service, ports in bindings.items() for port, at in ports.items() if at}
    expect(published == {("rushgate", "8080/tcp"): ["127.0.0.1"]}, f"published: {published}")


def redis_as_operations_advise(shop):
    wanted = {"maxmemory": str(MAXMEMORY_MIB << 20), "maxmemory-policy": "noeviction", "save": "", "appendonly": "yes",
              "appendfsync": "always", "aof-load-truncated": "no"}
    for setting, value in wanted.items():
        found = inside("redis", "redis-cli", "config", "get", setting).stdout.split("\n")[1]
        expect(found == value, f"redis: {setting} is {found!r}, not {value!r}")


def patiently(*command):
    """Runs a Rushgate command in its container.

    The command waits 5 s for servers, which may be too short on a busy machine; then it is repeated.
    """
    def done():
        ended = inside("rushgate", "rushgate", *command, check=False, timeout=180)
        return None if "does not answer" in ended.stdout + ended.stderr or "no answer in" in ended.stderr else ended
    return wait_for(f"rushgate {command[0]}", done, 180)


def seeded(shop):
    ended = patiently("seed")
    expect(ended.returncode == 0, f"seed: {ended.stdout}{ended.stderr}")
    status, _, products = shop.call("/v1/products")
    expect(status == 200 and len(products["data"]) == 6, f"{status} {products}")
    token = shop.token(USER, "shop")
    status, _, wallet = shop.call(f"/v1/users/{USER}/wallet", token)
    expect(status == 200 and wallet["balance"] > 0, f"{status} {wallet}")


def an_order_and_its_message(shop):
    token = shop.token(USER, "shop")
    status, _, coupon = shop.call("/v1/coupon-templates/welcome/coupons", token, {"user_id": USER})
    expect(status == 201, f"coupon: {status} {coupon}")
    shop.order_body = {"user_id": USER, "items": [{"product_id": "americano", "quantity": 2}],
                       "coupon_id": coupon["coupon_id"]}
    status, _, shop.order = shop.call("/v1/orders", token, shop.order_body, key="containers-1")
    expect(status == 201 and shop.order["status"] == "paid", f"order: {status} {shop.order}")
    event = wait_for("the order's message", lambda: shop.messages(requeue=True).get(shop.order["order_id"]))
    expect(event["type"] == "rushgate.order.completed.v1" and event["data"]["total"] == shop.order["total"], f"{event}")


def prometheus_scrapes(shop):
    def up():
        read = inside("prometheus", "wget", "-qO-", "http://127.0.0.1:9090/api/v1/query?query=up%7Bjob%3D%22rushgate%22%7D")
        return [series["value"][1] for series in json.loads(read.stdout)["data"]["result"]] == ["1"]
    wait_for("Prometheus reads Rushgate's metrics", up)


def stops_within_the_grace_period(shop):
    begin = time.monotonic()
    shop.stop()
    took = time.monotonic() - begin
    codes = {service: inspect(service)["State"]["ExitCode"] for service in SERVICES}
    # 137 would mean SIGKILL after the grace period.
    expect(set(codes.values()) == {0}, f"exit codes {codes}")
    say(f"     compose stop took {took:.1f} s")


def data_after_a_restart(shop):
    shop.start()
    token = shop.token(USER, "shop")
    status, _, order = shop.call(f"/v1/orders/{shop.order['order_id']}", token)
    expect(status == 200 and order["total"] == shop.order["total"], f"{status} {order}")
    status, headers, again = shop.call("/v1/orders", token, shop.order_body, key="containers-1")
    expect((status, again["order_id"]) == (201, order["order_id"]) and headers["Idempotent-Replayed"] == "true",
           f"the repeat was not recognised: {status} {again}")
    status, _, wallet = shop.call(f"/v1/users/{USER}/wallet", token)
    expect((status, wallet["balance"]) == (200, shop.order["balance"]), f"{status} {wallet}")
    expect(shop.order["order_id"] in shop.messages(requeue=False), "RabbitMQ lost the order's message")
    audit = patiently("audit", "--wait", "60s")
    expect(audit.returncode == 0, f"audit: {audit.stdout}{audit.stderr}")


TESTS = [healthy_in_order, nobody_is_root, no_capabilities, read_only, one_port_on_loopback, redis_as_operations_advise,
         seeded, an_order_and_its_message, prometheus_scrapes, stops_within_the_grace_period, data_after_a_restart]


def logs():
    for service in SERVICES:
        shown = podman("logs", "--tail", "25", container(service), check=False)
        say(f"---- {service}\n{shown.stdout}{shown.stderr}")


def check(shop):
    """Numbers of passed and failed tests. A failure ends the run: each test needs those before it."""
    passed = 0
    for test in TESTS:
        begin = time.monotonic()
        try:
            test(shop)
        except Exception as failure:  # an answer of another form is a failure too
            say(f"FAILED {test.__name__}: {failure!r}" if not isinstance(failure, Failed) else
                f"FAILED {test.__name__}: {failure}")
            logs()
            return passed, 1
        passed += 1
        say(f"ok   {test.__name__} ({time.monotonic() - begin:.1f} s)")
    return passed, 0


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--compose", required=True, help="podman-compose")
    options.add_argument("--profile", default="dev", help="Cargo profile of the image")
    options.add_argument("--limit", type=int, default=480,
                         help="seconds for building and checking; base images and the first build have time of their own")
    options = options.parse_args()

    def too_long(*_):
        raise Failed("building and checking took longer than the limit")
    signal.signal(signal.SIGALRM, too_long)
    # The caller's time limit sends SIGTERM; clean up then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("containers: ended by SIGTERM"))
    engine.environment()
    with open(engine.STORE / "lock", "w") as lock:
        # The lock is held as long as the file is open.
        fcntl.flock(lock, fcntl.LOCK_EX)
        shop = None
        try:
            # Remains of a run that was killed.
            engine.clean(PROJECT)
            engine.build_stand_ins()
            begin = time.monotonic()
            first = podman("image", "exists", "rushgate:local", check=False).returncode != 0
            signal.alarm(options.limit + (FIRST_BUILD_LIMIT if first else 0))
            engine.build_rushgate(options.profile)
            say(f"rushgate:local built by the Dockerfile, profile {options.profile}, in {time.monotonic() - begin:.0f} s")
            shop = Shop(options.compose)
            passed, failed = check(shop)
        except Failed as failure:
            say(f"FAILED {failure}")
            passed, failed = 0, 1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            engine.clean(PROJECT)
            if shop:
                os.unlink(shop.env_file)
        left = engine.left_over(PROJECT)
        if left:
            say(f"FAILED to clean up: {left}")
            failed += 1
    say("left out: Grafana, the profiles `cluster` and `load`; the versions are the distribution's, not those of the tags")
    say(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
