"""The group of pods that share a model. Its own kind is checked against ``leader-worker-set.json``, which says what its
fields are, its pods and all else against the schemas of Kubernetes; no cluster has been asked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest

from tests.deploy.test_deploy import (
    KUBERNETES,
    KUBERNETES_VERSION,
    deployment,
    manifests,
    named,
    shown_settings,
)
from trioserve.server.serve import ABORT_S

FOLDER = "leader-worker-set"
SCHEMA = Path(__file__).with_name("leader-worker-set.json")
ROLES = ("leader", "worker")


def template(role: str) -> dict[str, Any]:
    found: dict[str, Any] = named("LeaderWorkerSet", FOLDER)["spec"]["leaderWorkerTemplate"][
        f"{role}Template"
    ]
    return found


def container(role: str) -> dict[str, Any]:
    (found,) = template(role)["spec"]["containers"]
    return dict(found)


def test_the_set_has_no_field_that_is_not_known() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema_rs.validate(schema, named("LeaderWorkerSet", FOLDER))
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, named("LeaderWorkerSet", FOLDER) | {"status": {}})


@pytest.mark.parametrize("role", ROLES)
def test_kubernetes_knows_every_field_of_its_pods(role: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **template(role)}
    pod["metadata"] = {**pod["metadata"], "name": role}
    kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize(
    "manifest",
    [one for one in manifests(KUBERNETES / FOLDER) if one["kind"] != "LeaderWorkerSet"],
    ids=lambda manifest: f"{manifest['kind']} {manifest['metadata']['name']}",
)
def test_kubernetes_knows_every_field_of_the_rest(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_there_are_as_many_ranks_as_pods_and_they_meet_at_one_port() -> None:
    ports = {port["name"]: port["containerPort"] for port in container("leader")["ports"]}
    shown = shown_settings(container("leader")["args"], TRIOSERVE_RANK_KEY="k" * 16)
    size = named("LeaderWorkerSet", FOLDER)["spec"]["leaderWorkerTemplate"]["size"]
    assert re.search(rf"^tensor_parallel_size = {size}\b", shown, re.MULTILINE)
    assert re.search(rf'^rank_listen = "0\.0\.0\.0:{ports["ranks"]}"', shown, re.MULTILINE)
    assert re.search(rf"^port = {ports['http']}\b", shown, re.MULTILINE)
    assert container("worker")["args"][:2] == ["join", f"$(LWS_LEADER_ADDRESS):{ports['ranks']}"]


def test_the_flags_of_a_worker_are_flags_of_join() -> None:
    """All are taken, so that what is missing is the key."""
    args = [word.replace("$(LWS_LEADER_ADDRESS)", "leader") for word in container("worker")["args"]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    ran = subprocess.run(
        [sys.executable, "-m", "trioserve.cli", *args],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 78
    assert ran.stderr.startswith("trioserve: ranks join by a key")


def test_both_have_the_key_and_only_the_leader_that_of_clients() -> None:
    variables = {role: {one["name"] for one in container(role)["env"]} for role in ROLES}
    assert "TRIOSERVE_RANK_KEY" in variables["leader"] & variables["worker"]
    assert "TRIOSERVE_API_KEY" in variables["leader"] - variables["worker"]


def test_workers_start_beside_a_leader_that_is_ready_only_with_them() -> None:
    spec = named("LeaderWorkerSet", FOLDER)["spec"]
    assert spec["startupPolicy"] == "LeaderCreated"
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "None"
    assert not any("Probe" in name for name in container("worker"))


def test_a_leader_is_probed_and_drained_as_a_server_alone_is() -> None:
    (alone,) = deployment()["spec"]["template"]["spec"]["containers"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        assert container("leader")[name] == alone[name]


def test_a_worker_serves_for_as_long_as_its_leader_may_drain() -> None:
    wait_s = container("leader")["lifecycle"]["preStop"]["sleep"]["seconds"]
    (leader_s,) = [
        int(word.rpartition("=")[2]) for word in container("leader")["args"] if "drain-timeout" in word
    ]
    (worker_s,) = [
        int(word.rpartition("=")[2]) for word in container("worker")["args"] if "drain-timeout" in word
    ]
    assert worker_s >= wait_s + leader_s + ABORT_S
    for role in ROLES:
        assert template(role)["spec"]["terminationGracePeriodSeconds"] > worker_s


def test_the_service_is_of_leaders_and_leaves_the_sets_name_alone() -> None:
    service = named("Service", FOLDER)
    assert service["metadata"]["name"] != named("LeaderWorkerSet", FOLDER)["metadata"]["name"]
    selector = service["spec"]["selector"].items()
    assert selector <= template("leader")["metadata"]["labels"].items()
    assert not selector <= template("worker")["metadata"]["labels"].items()
    assert all(template(role)["spec"]["enableServiceLinks"] is False for role in ROLES)
