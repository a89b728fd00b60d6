"""What lies in deploy/ is what the programs it is for take, and fits the server's settings."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy import proxies
from trioserve.server.serve import ABORT_S
from trioserve.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSION = "1.34"


def manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """All that a kustomization is made of."""
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["resources"]:
        if (folder / name).is_dir():
            yield from manifests(folder / name)
        else:
            yield from yaml.safe_load_all((folder / name).read_text("utf-8"))


def named(kind: str, folder: str = "base") -> dict[str, Any]:
    """The one manifest of that kind."""
    (found,) = [one for one in manifests(KUBERNETES / folder) if one["kind"] == kind]
    return found


def deployment() -> dict[str, Any]:
    return named("Deployment")


def shown_settings(args: list[str], **variables: str) -> str:
    """What a server makes of its flags."""
    return subprocess.run(
        [sys.executable, "-m", "trioserve.cli", *args, "--show-settings"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    "manifest", list(manifests(KUBERNETES / "base")), ids=lambda manifest: manifest["kind"]
)
def test_kubernetes_knows_every_field(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("name", ["base", "keda", "leader-worker-set"])
def test_kustomize_builds_it(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    built = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / name)], capture_output=True, text=True, check=True
    )
    kinds = [one["kind"] for one in yaml.safe_load_all(built.stdout)]
    assert ("Deployment" in kinds) is (name != "leader-worker-set")
    assert ("LeaderWorkerSet" in kinds) is (name == "leader-worker-set")
    assert ("ScaledObject" in kinds) is (name == "keda")
    assert ("HorizontalPodAutoscaler" in kinds) is (name == "base")


def test_the_flags_of_the_pod_are_flags_of_the_server() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    shown = shown_settings(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert re.search(rf"^port = {ports['http']}\b", shown, re.MULTILINE)
    assert re.search(rf"^metrics_port = {ports['metrics']}\b", shown, re.MULTILINE)
    assert re.search(r"^drain_delay_s = 0\b", shown, re.MULTILINE)


def test_a_pod_has_time_to_drain() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    wait_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= wait_s + Settings().drain_timeout_s + ABORT_S


def test_systemd_takes_the_units_and_gives_the_server_time(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    service = (DEPLOY / "systemd" / "trioserve.service").read_text("utf-8")
    there = service.replace("/opt/trioserve/bin/trioserve", "/bin/true")
    (tmp_path / "trioserve.service").write_text(there, "utf-8")
    shutil.copy(DEPLOY / "systemd" / "trioserve.socket", tmp_path)
    checked = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    unit = RawConfigParser(strict=False, comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment]  # names have capitals
    unit.read_string(service)
    settings = Settings()
    end_s = settings.drain_delay_s + settings.drain_timeout_s + ABORT_S
    assert unit.getfloat("Service", "TimeoutStopSec") > end_s
    assert unit.get("Service", "NotifyAccess") == "all", "workers speak for their parent"
    assert unit.get("Service", "KillMode") == "mixed", "ranks end when the server says so"


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    nginx = proxies.program("nginx")
    if nginx is None:
        pytest.skip("no nginx")
    config = tmp_path / "nginx.conf"
    config.write_text(proxies.nginx_config(tmp_path, DEPLOY / "nginx" / "trioserve.conf"), "utf-8")
    checked = subprocess.run(
        [nginx, "-t", "-q", "-p", str(tmp_path), "-c", str(config)],
        env=proxies.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_haproxy_takes_its_configuration() -> None:
    haproxy = proxies.program("haproxy")
    if haproxy is None:
        pytest.skip("no HAProxy")
    checked = subprocess.run(
        [haproxy, "-c", "-q", "-f", str(DEPLOY / "haproxy" / "haproxy.cfg")],
        env=proxies.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_image_is_made_of_what_is_there_and_starts_the_server() -> None:
    lines = (DEPLOY / "docker" / "Dockerfile").read_text("utf-8").splitlines()
    copied = [
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    ]
    assert copied
    for name in copied:
        assert (DEPLOY.parent / name).exists(), name
    command = next(line for line in lines if line.startswith("CMD "))
    flags = yaml.safe_load(command.removeprefix("CMD "))
    subprocess.run(
        [sys.executable, "-m", "trioserve.cli", *flags, "--show-settings"], check=True, capture_output=True
    )
