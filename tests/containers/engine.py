"""The container engine and the images: podman with a separate store, stand-ins for the official
images, and Rushgate's image.

The store is kept after the test in ~/.cache (or XDG_CACHE_HOME), so that base images and the cache of
Cargo's target folder are made only once. It is separate from podman's other stores on this machine, so
a stand-in may have an official image's name.
"""

import hashlib
import os
import pathlib
import re
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STORE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache").resolve() / "rushgate-containers"
CLEAN_ATTEMPTS, CLEAN_PAUSE_S = 4, 3
# Low enough for a sandbox in which limits cannot be raised.
ULIMITS = ["nofile=4096:4096", "nproc=4096:4096"]
# Stand-ins (targets of Containerfile) by image name without tag. Debian has no package of Grafana.
STAND_INS = {"rust": "rust", "debian": "debian", "redis": "redis", "postgres": "postgres",
             "rabbitmq": "rabbitmq", "prom/prometheus": "prometheus"}


class Failed(Exception):
    """A step failed; the message has all the details."""


def say(text):
    print(text, flush=True)


def environment():
    """Writes the engine's settings into the store and returns the environment that uses them.

    The machine's own configuration is not changed.
    """
    for folder in ("tmp", "networks"):
        (STORE / folder).mkdir(parents=True, exist_ok=True)
    (STORE / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE}/storage"\nrunroot = "{STORE}/run"\n')
    limits = ", ".join(f'"{limit}"' for limit in ULIMITS)
    (STORE / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = [{limits}]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{STORE}/networks"\n')
    return os.environ | {
        "CONTAINERS_STORAGE_CONF": str(STORE / "storage.conf"),
        "CONTAINERS_CONF": str(STORE / "containers.conf"),
        # Location of the caches of `RUN --mount=type=cache`.
        "TMPDIR": str(STORE / "tmp"),
        # The test runs health checks itself, because there is no systemd with timers.
        "DISABLE_HC_SYSTEMD": "true",
    }


def run(*command, timeout=60, check=True, **more):
    """Runs a command, which must succeed within the timeout, and returns its result."""
    try:
        done = subprocess.run([str(part) for part in command], env=environment(), timeout=timeout, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, **more)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{command[0]} {command[1]}: no end within {timeout} s") from late
    if check and done.returncode != 0:
        shown = " ".join(str(part) for part in command)
        raise Failed(f"{shown}\nexit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def podman(*arguments, **more):
    return run("podman", *arguments, **more)


def full_name(image):
    """Podman's full name of an image from Docker's own registry."""
    return f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}"


def named_images():
    """The images that Dockerfile and docker-compose.yml use, with their tags."""
    dockerfile = re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    compose = re.findall(r"^\s+image: (\S+)", (ROOT / "docker-compose.yml").read_text(), re.M)
    return sorted({image for image in dockerfile + compose if image.split(":")[0] in STAND_INS})


def build_base():
    """Builds a minimal system of the distribution from the machine's own apt sources."""
    release = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release["VERSION_CODENAME"].strip('"')
    sources = [path for path in [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt/sources.list.d").glob("*")]
               if path.is_file() and path.suffix in (".list", ".sources") and path.stat().st_size]
    made_of = hashlib.sha256(b"".join([suite.encode(), *(path.read_bytes() for path in sorted(sources))]))
    base = f"localhost/rushgate-base:{made_of.hexdigest()[:12]}"
    if podman("image", "exists", base, check=False).returncode == 0:
        return base
    say(f"making a base image of {suite} (once; some minutes)")
    archive = STORE / "tmp" / "base.tar"
    options = [f'--aptopt={line.rstrip(";")}' for line in run("apt-config", "dump").stdout.splitlines()
               if line.startswith("Acquire::Check-")]
    run("mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--include=ca-certificates", *options,
        suite, archive, *sources, timeout=900)
    podman("import", "--quiet", archive, base, timeout=300)
    archive.unlink()
    return base


def build_stand_ins():
    """Builds all stand-ins. Returns the base image."""
    base = build_base()
    for image in named_images():
        target = STAND_INS[image.split(":")[0]]
        podman("build", "--quiet", "--network", "host", "--build-arg", f"BASE={base}", "--target", target,
               "--tag", full_name(image), "--file", HERE / "Containerfile", HERE, timeout=600)
        say(f"{image}: stand-in `{target}`")
    return base


def build_rushgate(profile):
    """Builds the real Dockerfile.

    Toolchain and crates are mounted from the machine, because the stand-in for `rust` has no rustup.
    """
    run("cargo", "fetch", "--quiet", "--locked", "--manifest-path", ROOT / "Cargo.toml", timeout=300)
    sysroot = run("rustc", "--print", "sysroot").stdout.strip()
    cargo_home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
    with open(STORE / "build.log", "w") as log:
        build = subprocess.Popen(
            # Images in OCI format have no health check.
            ["nice", "-n", "10", "podman", "build", "--format", "docker", "--network", "host",
             "--volume", f"{sysroot}:/usr/local/toolchain:ro",
             "--volume", f"{cargo_home}/registry:/machine/cargo/registry:ro",
             "--build-arg", f"PROFILE={profile}", "--target", "rushgate", "--tag", "rushgate:local", str(ROOT)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            build.wait()
        except BaseException:
            # The build's container ends only if podman is asked to terminate.
            build.terminate()
            build.wait(timeout=30)
            raise
    if build.returncode != 0:
        raise Failed("podman build .\n" + "".join((STORE / "build.log").read_text().splitlines(True)[-40:]))


def clean(project):
    """Stops and removes the project's containers, networks and volumes.

    One attempt was seen to leave everything in place and the next to remove it, so there are several.
    """
    for _ in range(CLEAN_ATTEMPTS):
        errors = clean_once(project)
        if not left_over(project):
            return
        say(f"not all of {project} was removed: {errors.strip()}")
        time.sleep(CLEAN_PAUSE_S)


def clean_once(project):
    """Returns what podman said against it."""
    names = podman("ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{project}_", check=False).stdout.split()
    errors = ""
    if names:
        removing = podman("rm", "--force", "--depend", "--time", "0", "--volumes", *names, check=False, timeout=120)
        errors += removing.stderr
    for kind in ("network", "volume"):
        names = podman(kind, "ls", "--format", "{{.Name}}", check=False).stdout.split()
        ours = [name for name in names if name.startswith(f"{project}_")]
        if ours:
            errors += podman(kind, "rm", "--force", *ours, check=False, timeout=60).stderr
    return errors


def left_over(project):
    """What remains of the project's containers, networks and volumes."""
    left = podman("ps", "--all", "--format", "{{.Names}}").stdout.split()
    for kind in ("network", "volume"):
        left += podman(kind, "ls", "--format", "{{.Name}}").stdout.split()
    return [name for name in left if name.startswith(f"{project}_")]
