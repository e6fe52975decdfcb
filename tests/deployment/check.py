"""Checks deploy/systemd and deploy/kubernetes without a cluster: `./dev deployment`.

Units are verified by systemd, and their exposure level must not exceed a limit. Manifests are rendered by
kustomize and validated against the schemas of the oldest and the newest supported Kubernetes and of the
Prometheus operator. Then checkov checks them; its exceptions and their reasons are in checkov.yaml.
Rushgate's own requirements are checked by tests/it/deployment.rs.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

HERE = pathlib.Path(__file__).resolve().parent
DEPLOY = HERE.parent.parent / "deploy"
PROGRAMS = pathlib.Path(sys.executable).parent
FOLDERS = ["base", "migrate", "monitoring"]
# `sleep` as a preStop action exists since 1.30.
VERSIONS = ["1.30.0", "1.37.0"]
# Out of 10. The rest is network access, read access to the host's file system, and priorities.
EXPOSURE_LIMIT = 1.5
CUSTOM = {"ServiceMonitor": operator.ServiceMonitor, "PrometheusRule": operator.PrometheusRule}


def run(*command, **more):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **more)


def check_units(folder):
    """Complaints about the units. They are verified in a copy that names an existing program."""
    shutil.copytree(DEPLOY / "systemd", folder, dirs_exist_ok=True)
    for unit in [*folder.glob("*.service"), *folder.glob("*.d/*.conf")]:
        unit.write_text(unit.read_text().replace("/usr/local/bin/rushgate", "/bin/true"))
    units = sorted([*folder.glob("*.service"), *folder.glob("*.timer"), *folder.glob("*.target")])
    environment = {"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    verified = run("systemd-analyze", "verify", "--man=no", *units, env=environment)
    # Complaints about other packages' units do not count.
    ours = [line for line in (verified.stdout + verified.stderr).splitlines() if "rushgate" in line]
    yield from ours
    if verified.returncode != 0 and not ours:
        yield f"systemd-analyze verify: exit code {verified.returncode}: {verified.stderr}"
    for unit in folder.glob("*.service"):
        said = run("systemd-analyze", "security", "--no-pager", "--offline=true", unit, env=environment)
        level = re.search(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)
        if not level:
            yield f"{unit.name}: no exposure level: {said.stdout}{said.stderr}"
        elif float(level.group(1)) > EXPOSURE_LIMIT:
            yield f"{unit.name}: exposure level {level.group(1)}, more than {EXPOSURE_LIMIT}"


def check_schema(manifest):
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    if manifest["kind"] in CUSTOM:
        try:
            model = CUSTOM[manifest["kind"]].model_validate(manifest)
        except ValueError as error:
            yield f"{name}: {error}"
            return
        # The models ignore unknown fields.
        known = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        yield from (f"{name}: {path} is unknown" for path in unknown(manifest, known))
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except Exception as error:  # each kind of error has its own class
            yield f"{name}, Kubernetes {version}: {error}"


def unknown(written, known, path=""):
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(known, dict) or key not in known:
                yield f"{path}.{key}"
            else:
                yield from unknown(value, known[key], f"{path}.{key}")
    elif isinstance(written, list):
        for number, value in enumerate(written):
            yield from unknown(value, known[number], f"{path}[{number}]")


def check_manifests(folder):
    rendered = []
    for name in FOLDERS:
        done = run(PROGRAMS / "kubectl", "kustomize", DEPLOY / "kubernetes" / name)
        if done.returncode != 0:
            yield f"kustomize {name}: {done.stderr}"
            continue
        file = folder / f"{name}.yaml"
        file.write_text(done.stdout)
        rendered.append(file)
        manifests = list(yaml.safe_load_all(done.stdout))
        print(f"{name}: {len(manifests)} manifests")
        for manifest in manifests:
            yield from check_schema(manifest)
    files = [part for file in rendered for part in ("--file", file)]
    done = run(PROGRAMS / "checkov", "--config-file", HERE / "checkov.yaml", *files)
    summary = re.search(r"Passed checks: (\d+), Failed checks: (\d+)", done.stdout)
    print(f"checkov: {summary.group(0)}" if summary else "checkov: nothing failed")
    if done.returncode != 0:
        yield f"checkov:\n{done.stdout}{done.stderr}"


def main():
    complaints = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if shutil.which("systemd-analyze"):
            complaints += check_units(folder / "units")
        else:
            print("SKIPPED units: no systemd-analyze here")
        complaints += check_manifests(folder)
    for complaint in complaints:
        print(f"FAILED {complaint}")
    print("deploy/: no complaint" if not complaints else f"deploy/: {len(complaints)} complaints")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
