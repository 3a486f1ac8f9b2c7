"""kubernetes.yaml: settings, ports, probes and time to drain as the server has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyhead.server.config import ServeConfig
from polyhead.server.rpc.health import Health
from tests.deploy.conftest import DEPLOY
from tests.deploy.settings import load, longest_end_s, own, with_files
from tests.deploy.yamlfile import read_all

SERVICE, POLICY, SET = read_all(DEPLOY / "kubernetes.yaml")
POD = SET["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]


def variables() -> dict[str, str]:
    return {each["name"]: each["value"] for each in CONTAINER["env"]}


def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ServeConfig:
    return load(with_files(own(variables()) | {"POLYHEAD_HOST": "0.0.0.0"}, tmp_path), monkeypatch)


def test_its_settings_are_the_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = settings(monkeypatch, tmp_path)
    assert config.has_tokens
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
