"""deploy/kubernetes: settings, ports, probes and time to drain as the server has them, on CPUs and on a GPU."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from polyhead.server.config import ServeConfig
from polyhead.server.rpc.health import Health
from tests.deploy.conftest import DEPLOY
from tests.deploy.kustomize import built, containers
from tests.deploy.settings import load, longest_end_s, own, with_files
from tests.deploy.yamlfile import read_one

KUBERNETES = DEPLOY / "kubernetes"
VERSION = version("polyhead")
SERVICE, POLICY, SET = built(KUBERNETES / "cpu")
POD = SET["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]


def container(folder: str) -> Any:
    [found] = [each for made in built(KUBERNETES / folder) for each in containers(made)]
    return found


def variables(folder: str = "cpu") -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(folder)["env"]}


def settings(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ServeConfig:
    return load(with_files(own(variables(folder)) | {"POLYHEAD_HOST": "0.0.0.0"}, tmp_path), monkeypatch)


@pytest.mark.parametrize("folder", ["cpu", "gpu"])
def test_its_settings_are_the_servers(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = settings(folder, monkeypatch, tmp_path)
    assert config.has_tokens
    assert config.device == {"cpu": "cpu", "gpu": "cuda"}[folder]
    assert ("nvidia.com/gpu" in container(folder)["resources"]["limits"]) is (folder == "gpu")
    assert POD["spec"]["terminationGracePeriodSeconds"] > longest_end_s(config)


def test_a_service_of_this_name_makes_no_settings() -> None:
    """Kubernetes would set POLYHEAD_PORT=tcp://10.0.0.1:50051 and more, for a Service called polyhead."""
    assert SERVICE["metadata"]["name"] == "polyhead"
    assert POD["spec"]["enableServiceLinks"] is False


def test_ports_and_selectors_meet() -> None:
    fields = ServeConfig.model_fields
    ports = {"grpc": fields["port"].default, "metrics": fields["metrics_port"].default}
    assert {each["name"]: each["containerPort"] for each in CONTAINER["ports"]} == ports
    assert {each["name"]: each["port"] for each in SERVICE["spec"]["ports"]} == ports
    assert {port["port"] for rule in POLICY["spec"]["ingress"] for port in rule["ports"]} == set(ports.values())
    labels = POD["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == SET["spec"]["selector"]["matchLabels"] == POLICY["spec"]["podSelector"]["matchLabels"] == labels
    assert SET["spec"]["serviceName"] == SERVICE["metadata"]["name"]


@pytest.mark.parametrize(("probe", "while_damaged"), [("startupProbe", True), ("livenessProbe", True), ("readinessProbe", False)])
def test_probes_ask_for_names_that_health_knows(probe: str, while_damaged: bool) -> None:
    """And a server whose active set is damaged, or that is still loading, is alive but not ready."""
    question: dict[str, Any] = CONTAINER[probe]["grpc"]
    assert question["port"] == ServeConfig.model_fields["port"].default
    health = Health()
    assert (health.status(question["service"]) == 1) is while_damaged
    health.set_ready(True)
    assert health.status(question["service"]) == 1


def test_what_is_mounted_is_declared_and_holds_what_is_written() -> None:
    mounts = {each["name"]: each["mountPath"] for each in CONTAINER["volumeMounts"]}
    claims = {each["metadata"]["name"] for each in SET["spec"]["volumeClaimTemplates"]}
    assert set(mounts) == claims | {volume["name"] for volume in POD["spec"]["volumes"]}
    [claim] = claims
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        assert Path(variables()[name]).parent.is_relative_to(mounts[claim])
        assert variables()[name] != mounts[claim], "the volume's root is open to its group, and the store refuses that"
    assert Path(variables()["POLYHEAD_TOKENS"]).parent == Path(mounts["tokens"])


def test_it_has_no_rights_it_does_not_need() -> None:
    user = POD["spec"]["securityContext"]
    assert user["runAsNonRoot"] is True
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_every_image_is_built_by_the_containerfile_as_its_comment_says() -> None:
    arguments = re.findall(r"^ARG (\w+)", (DEPLOY / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = re.findall(r"--build-arg (\w+)=", (KUBERNETES / "components" / "gpu" / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(asked) <= set(arguments)
    assert [container(folder)["image"] for folder in ("cpu", "gpu")] == [f"polyhead:{VERSION}", f"polyhead:{VERSION}-cuda"]


def test_a_prometheus_of_another_namespace_reaches_the_metrics() -> None:
    monitor, policy = built(KUBERNETES / "monitoring")
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    [labels] = monitor["spec"]["selector"]["matchExpressions"]
    ports = {}
    for folder in ("cpu", "annotate"):
        [pod] = [each["spec"]["template"] for each in built(KUBERNETES / folder) if containers(each)]
        assert pod["metadata"]["labels"][labels["key"]] in labels["values"]
        ports |= {each["containerPort"]: each["name"] for each in containers({"spec": {"template": pod}})[0]["ports"]}
    [scraped] = monitor["spec"]["podMetricsEndpoints"]
    [rule] = policy["spec"]["ingress"]
    assert {each["port"] for each in rule["ports"]} == {port for port, name in ports.items() if name == scraped["port"]}


def test_a_folder_lists_all_its_files() -> None:
    for folder in sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml")):
        told = read_one(folder / "kustomization.yaml")
        named = [*told.get("resources", []), *(patch["path"] for patch in told.get("patches", []))]
        there = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
        assert there == {name for name in named if not name.startswith("..")}, folder
