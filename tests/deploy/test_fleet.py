"""kubernetes/fleet and compose.fleet.yaml: followers have the primary's settings and find it; what scales them is a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyhead.server.config import ServeConfig
from tests.deploy.conftest import DEPLOY, Exported
from tests.deploy.kustomize import built, containers, identity
from tests.deploy.settings import load, longest_end_s, own, with_files
from tests.deploy.yamlfile import read_one

MADE = {identity(each): each for each in built(DEPLOY / "kubernetes" / "fleet")}
FOLLOWERS, PRIMARY = MADE["Deployment", "polyhead-follower"], MADE["StatefulSet", "polyhead"]
COMPOSE = read_one(DEPLOY / "compose.fleet.yaml")["services"]
OF_FOLLOWERS = {"POLYHEAD_FOLLOW", "POLYHEAD_FOLLOW_TOKEN", "POLYHEAD_ADVERTISE"}
PORT = ServeConfig.model_fields["port"].default


def pod(made: Any) -> Any:
    return made["spec"]["template"]["spec"]


def of_kubernetes(made: Any) -> dict[str, str]:
    """The settings of its one container; what the cluster fills in has a value that stands for it."""
    [container] = containers(made)
    given = {each["name"]: each.get("value", f"from {each['name']}") for each in container["env"]}
    return {name: value.replace("$(POD_IP)", "10.0.0.7") for name, value in given.items() if name.startswith("POLYHEAD_")}


def of_compose(name: str) -> dict[str, str]:
    base = read_one(DEPLOY / "compose.yaml")["services"]["polyhead"]["environment"] if name == "polyhead" else {}
    return {key: str(value) for key, value in {**base, **COMPOSE[name]["environment"]}.items()}


@pytest.mark.parametrize(
    ("primary", "followers"),
    [
        (of_kubernetes(PRIMARY), [of_kubernetes(FOLLOWERS)]),
        (of_compose("polyhead"), [of_compose("follower-1"), of_compose("follower-2")]),
    ],
    ids=["kubernetes", "compose"],
)
def test_followers_have_the_primarys_settings_and_follow_its_address(
    primary: dict[str, str], followers: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert primary["POLYHEAD_ADVERTISE"] == f"polyhead:{PORT}"
    known = {each["POLYHEAD_ADVERTISE"] for each in followers}
    assert len(known) == len(followers)
    for settings in followers:
        assert settings["POLYHEAD_FOLLOW"] == primary["POLYHEAD_ADVERTISE"]
        assert settings.keys() - primary.keys() == OF_FOLLOWERS - {"POLYHEAD_ADVERTISE"}
        shared = settings.keys() - OF_FOLLOWERS
        assert {name: settings[name] for name in shared} == {name: primary[name] for name in shared}
        with monkeypatch.context() as patch:
            config = load(with_files(own(settings) | {"POLYHEAD_HOST": "0.0.0.0"}, tmp_path), patch)
            assert all((config.follow, config.follow_token, config.follows_plainly))


def test_on_gpus_every_server_has_a_card_and_the_image_for_it() -> None:
    of_gpu = {identity(each): each for each in built(DEPLOY / "kubernetes" / "gpu")}["StatefulSet", "polyhead"]
    made = [found for each in built(DEPLOY / "kubernetes" / "fleet-gpu") for found in containers(each)]
    [alone] = containers(of_gpu)
    assert len(made) == 2
    for found in made:
        assert (found["image"], found["resources"]) == (alone["image"], alone["resources"])
        assert {each["name"]: each.get("value") for each in found["env"]}["POLYHEAD_DEVICE"] == "cuda"


def test_a_pod_of_followers_is_a_pod_of_the_primary_without_its_volume() -> None:
    ours, theirs = dict(pod(FOLLOWERS)), dict(pod(PRIMARY))
    for each in (ours, theirs):
        [container] = each.pop("containers")
        each["container"] = {name: value for name, value in container.items() if name != "env"}
    volumes = ours.pop("volumes")
    assert [each for each in volumes if each["name"] == "data"] == [{"name": "data", "emptyDir": {}}]
    assert [each for each in volumes if each["name"] != "data"] == theirs.pop("volumes")
    ours.pop("topologySpreadConstraints")
    assert ours == theirs
    config = ServeConfig()
    assert ours["terminationGracePeriodSeconds"] > longest_end_s(config)


def test_labels_meet_and_the_primary_lets_followers_in() -> None:
    labels = FOLLOWERS["spec"]["template"]["metadata"]["labels"]
    budget, scaler = MADE["PodDisruptionBudget", "polyhead-follower"], MADE["HorizontalPodAutoscaler", "polyhead-follower"]
    [spread] = pod(FOLLOWERS)["topologySpreadConstraints"]
    for selector in (FOLLOWERS["spec"]["selector"], budget["spec"]["selector"], spread["labelSelector"]):
        assert selector == {"matchLabels": labels}
    assert MADE["NetworkPolicy", "polyhead-follower"]["spec"]["podSelector"] == {"matchLabels": labels}
    [calls, metrics] = MADE["NetworkPolicy", "polyhead"]["spec"]["ingress"]
    assert {"podSelector": {"matchLabels": labels}} in calls["from"]
    assert calls["ports"] == [{"port": PORT}]
    assert metrics == MADE["NetworkPolicy", "polyhead-follower"]["spec"]["ingress"][1]
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": FOLLOWERS["metadata"]["name"]}
    assert "replicas" not in FOLLOWERS["spec"], "an `apply` would set the scaler's number back"


def test_followers_are_scaled_by_a_gauge_that_a_server_exports(exported: Exported) -> None:
    [metric] = MADE["HorizontalPodAutoscaler", "polyhead-follower"]["spec"]["metrics"]
    assert exported.families[metric["pods"]["metric"]["name"]][0] == "gauge"


def test_every_server_of_the_composition_is_scraped() -> None:
    [job] = read_one(DEPLOY / "prometheus.fleet.yml")["scrape_configs"]
    [targets] = job["static_configs"]
    port = ServeConfig.model_fields["metrics_port"].default
    assert set(targets["targets"]) == {f"{name}:{port}" for name in COMPOSE if name != "prometheus"}
