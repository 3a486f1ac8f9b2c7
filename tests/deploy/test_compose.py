"""compose.yaml: files that exist, settings and ports that the server has, and no way to the metrics from outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from polyhead.server.config import ServeConfig
from tests.deploy.conftest import DEPLOY
from tests.deploy.settings import flags, load, longest_end_s, own, with_files
from tests.deploy.test_container import PINNED
from tests.deploy.yamlfile import read_one

COMPOSE = read_one(DEPLOY / "compose.yaml")
TLS = read_one(DEPLOY / "compose.tls.yaml")
SERVICES = COMPOSE["services"]
POLYHEAD = SERVICES["polyhead"]
PORT = ServeConfig.model_fields["port"].default
METRICS_PORT = ServeConfig.model_fields["metrics_port"].default
KNOWN_KEYS = {
    "build", "image", "command", "environment", "secrets", "volumes", "ports", "expose", "init", "stop_grace_period", "restart",
    "read_only", "tmpfs", "cap_drop", "security_opt", "depends_on",
}  # fmt: skip


def test_services_and_their_keys() -> None:
    assert set(COMPOSE) == {"name", "services", "secrets", "volumes"}
    assert set(SERVICES) == {"polyhead", "prometheus", "grafana"}
    for name, service in SERVICES.items():
        assert set(service) <= KNOWN_KEYS, name
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert set(TLS) == {"services", "secrets"}
    assert set(TLS["services"]) == {"polyhead"}


def test_images_are_pinned_and_ours_is_built_from_the_container_file() -> None:
    assert (DEPLOY / POLYHEAD["build"]["context"] / POLYHEAD["build"]["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    for name in ("prometheus", "grafana"):
        assert PINNED.fullmatch(SERVICES[name]["image"])


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "tls"])
def test_every_variable_is_a_setting_with_a_value_that_it_takes(overlay: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables = own(POLYHEAD["environment"]) | {"POLYHEAD_HOST": "0.0.0.0"}  # the image sets it
    if overlay:
        variables |= own(TLS["services"]["polyhead"]["environment"])
    config = load(with_files(variables, tmp_path), monkeypatch)
    assert config.has_tokens
    assert config.insecure is not overlay
    assert (config.tls_cert is not None) is overlay
    assert config.metrics_host == "0.0.0.0"
    assert not [flag for flag in POLYHEAD["command"] if flag.startswith("--") and flag not in flags()]


def test_metrics_stay_inside() -> None:
    """Their port is open to the network of the composition alone; the others are published on loopback."""
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    for port in published:
        host, outside, inside = port.split(":")
        assert host == "127.0.0.1"
        assert str(METRICS_PORT) not in (outside, inside)
    assert POLYHEAD["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert POLYHEAD["expose"] == [str(METRICS_PORT)]


def test_what_is_mounted_exists() -> None:
    """A file or folder of ours, or a declared volume; in the places where the image or the program looks."""
    targets: dict[str, str] = {}
    for service in SERVICES.values():
        for mount in service["volumes"]:
            source, target, *mode = mount.split(":")
            targets[target] = source
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert mode == ["ro"]
            else:
                assert source in COMPOSE["volumes"]
    assert set(COMPOSE["volumes"]) == {source for source in targets.values() if not source.startswith(".")}
    image = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    for mount in POLYHEAD["volumes"]:
        assert f'"{mount.split(":")[1]}"' in image  # a VOLUME of the image, so it belongs to the image's user
    [config_flag] = [flag for flag in SERVICES["prometheus"]["command"] if flag.startswith("--config.file=")]
    assert targets[config_flag.split("=")[1]] == "./prometheus.yml"
    assert targets["/etc/prometheus/alerts.yml"] == "./alerts.yml"  # beside it, where rule_files looks
    [provider] = read_one(DEPLOY / "grafana" / "provisioning" / "dashboards" / "polyhead.yaml")["providers"]
    assert f"{provider['options']['path']}/polyhead.json" in targets
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in targets
    assert targets["/etc/grafana/provisioning"] == "./grafana/provisioning"


def test_addresses_inside_are_services_and_their_ports() -> None:
    [source] = read_one(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    found = re.fullmatch(r"http://(\w+):(\d+)", source["url"])
    assert found
    assert found[2] in SERVICES[found[1]]["expose"]
    name, _, port = TLS["services"]["polyhead"]["environment"]["POLYHEAD_SERVER"].partition(":")
    assert (name, port) == ("polyhead", str(PORT))


@pytest.mark.parametrize("document", [COMPOSE, {**TLS, "secrets": COMPOSE["secrets"] | TLS["secrets"]}], ids=["plain", "tls"])
def test_secrets_are_declared_used_and_made_by_the_readme(document: dict[str, Any]) -> None:
    """They are not in the repository: git ignores their folder, and the commands of docs/operations.md make each of them."""
    readme = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    for service in document["services"].values():
        used = set(service.get("secrets", ()))
        assert used <= document["secrets"].keys()
        values = [str(value) for value in service.get("environment", {}).values()]
        assert {value.removeprefix("/run/secrets/") for value in values if value.startswith("/run/secrets/")} <= used
    for secret in document["secrets"].values():
        assert secret["file"].startswith("./secrets/")
        assert secret["file"].removeprefix("./") in readme, secret["file"]
    assert "deploy/secrets/" in (DEPLOY.parent / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_it_has_the_time_to_drain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load(with_files(own(POLYHEAD["environment"]), tmp_path), monkeypatch)
    assert int(POLYHEAD["stop_grace_period"].removesuffix("s")) > longest_end_s(config)
    assert POLYHEAD["init"] is True


def test_containers_have_no_rights_they_do_not_need() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert POLYHEAD["read_only"] is True
