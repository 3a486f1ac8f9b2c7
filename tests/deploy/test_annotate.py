"""The frontend's files: flags that exist, ports that meet, alerts about what is exported and with something to do, systemd's own check."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from prometheus_client import CollectorRegistry, generate_latest

from polyhead.client.annotate.commands import DEFAULT_PORT, annotate_app, is_loopback
from polyhead.client.annotate.web.metrics import watch
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, choice, running
from tests.deploy.conftest import DEPLOY, DOCS, Exported, read_page
from tests.deploy.kustomize import built
from tests.deploy.test_monitoring import problems
from tests.deploy.yamlfile import read_one

COMPOSE = read_one(DEPLOY / "compose.annotate.yaml")
SERVICE, POLICY, SET = built(DEPLOY / "kubernetes" / "annotate")
UNIT = (DEPLOY / "polyhead-annotate.service").read_text(encoding="utf-8")
ALERTS = [rule for group in read_one(DEPLOY / "alerts.annotate.yml")["groups"] for rule in group["rules"]]
GUIDE = (DOCS / "guides" / "annotate.md").read_text(encoding="utf-8")
METRICS_PORT = 9465


def serve_flags(words: Sequence[str]) -> dict[str, Any]:
    """What `polyhead annotate serve` makes of its arguments; it names a flag that it does not have."""
    command: Any = typer.main.get_command(annotate_app)
    serve = command.commands["serve"]
    return dict(serve.make_context("serve", list(words)).params)


def of_compose() -> dict[str, Any]:
    program, *words = COMPOSE["services"]["annotate"]["command"]
    assert [*COMPOSE["services"]["annotate"]["entrypoint"], program] == ["polyhead", "annotate", "serve"]
    return serve_flags(words)


def of_kubernetes() -> dict[str, Any]:
    [container] = SET["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["polyhead", "annotate", "serve"]
    return serve_flags(container["command"][3:])


def of_systemd() -> dict[str, Any]:
    [line] = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    program, *words = line.split()
    assert [program, *words[:2]] == ["/opt/polyhead/bin/polyhead", "annotate", "serve"]
    return serve_flags(words[2:])


@pytest.mark.parametrize("read", [of_compose, of_kubernetes, of_systemd])
def test_it_is_started_with_flags_that_exist_and_tls_before_others(read: Any) -> None:
    flags = read()
    assert flags["port"] == DEFAULT_PORT
    assert flags["metrics_port"] == METRICS_PORT
    assert flags["token_file"] is not None
    assert flags["backup_dir"] is not None
    assert is_loopback(flags["host"]) or (flags["tls_cert"] and flags["tls_key"])
    assert flags["backup_dir"].parent == flags["db"].parent


def test_compose_mounts_what_its_flags_name() -> None:
    service, flags = COMPOSE["services"]["annotate"], of_compose()
    named = {f"/run/secrets/{name}" for name in service["secrets"]}
    assert {str(flags[name]) for name in ("token_file", "tls_cert", "tls_key")} == named
    assert set(service["secrets"]) == set(COMPOSE["secrets"])
    [mount] = service["volumes"]
    assert flags["db"].is_relative_to(mount.partition(":")[2])
    assert service["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]  # metrics have no port outside
    assert service["expose"] == [str(METRICS_PORT)]
    for each in COMPOSE["services"]["prometheus"]["volumes"]:
        assert (DEPLOY / each.split(":")[0]).is_file()


def test_the_image_has_what_the_pages_need() -> None:
    assert '".[server,annotate]"' in (DEPLOY / "Containerfile").read_text(encoding="utf-8")


def test_prometheus_reads_both_jobs_and_all_rules() -> None:
    config, plain = read_one(DEPLOY / "prometheus.annotate.yml"), read_one(DEPLOY / "prometheus.yml")
    assert config["scrape_configs"][:1] == plain["scrape_configs"]
    assert config["rule_files"] == [*plain["rule_files"], "alerts.annotate.yml"]
    assert config["scrape_configs"][1] == {
        "job_name": "polyhead-annotate",
        "static_configs": [{"targets": [f"annotate:{METRICS_PORT}"]}],
    }


def test_kubernetes_ports_selectors_and_mounts_meet() -> None:
    [container] = SET["spec"]["template"]["spec"]["containers"]
    flags = of_kubernetes()
    assert {each["name"]: each["containerPort"] for each in container["ports"]} == {
        "https": flags["port"],
        "metrics": flags["metrics_port"],
    }
    assert {port["port"] for rule in POLICY["spec"]["ingress"] for port in rule["ports"]} == {flags["port"], flags["metrics_port"]}
    labels = SET["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == SET["spec"]["selector"]["matchLabels"] == POLICY["spec"]["podSelector"]["matchLabels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert labels["polyhead-client"] == "true"  # whom the server's policy lets in
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert flags["db"].is_relative_to(mounts["data"])
    assert flags["token_file"].parent == flags["tls_cert"].parent == Path(mounts["secret"])
    assert SET["spec"]["replicas"] == 1  # one process a database


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_unit_and_finds_little_to_attack(tmp_path: Path) -> None:
    path = tmp_path / "polyhead-annotate.service"
    path.write_text(UNIT.replace("/opt/polyhead/bin/polyhead", str(Path(sys.executable).parent / "polyhead")), encoding="utf-8")
    for words in (["verify", "--man=no", "--recursive-errors=no"], ["security", "--offline=true", "--threshold=20", "--no-pager"]):
        done = subprocess.run(["systemd-analyze", *words, str(path)], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.fixture
async def exported(tmp_path: Path) -> Exported:
    """A site with an answer, a failed turn and a backup, and what a scrape of it reads."""
    registry = CollectorRegistry()
    (tmp_path / "annotate-20260101-000000.db").touch()
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE) as site, site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Hello there")
        await person.answer(assignment, turn, choice((await person.state())["turns"][0]["view"]))
        site.model.failures.append(RuntimeError("a mistake of ours"))
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "More"}, 202)
        await person.events(begun["turn_id"])
        counted = watch(registry, site.db, lambda: True, tmp_path).around(site.app)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(counted), base_url="http://annotate.test") as http:
            for path in ("/healthz", "/healthz", "/none", "/api/state"):
                await http.get(path)
        return read_page(generate_latest(registry).decode())


async def test_metrics_count_what_happened_and_name_nobody(exported: Exported) -> None:
    assert exported.value("polyhead_annotate_answers_total", project="helpful") == 1
    assert exported.value("polyhead_annotate_turns_failed_total", reason="MODEL_FAILED") == 1
    assert exported.value("polyhead_annotate_requests_total", code="200") == 2
    assert exported.value("polyhead_annotate_requests_total", code="404") == 1
    assert exported.value("polyhead_annotate_request_seconds_count") == 4
    assert exported.value("polyhead_annotate_leases") == 1
    assert exported.value("polyhead_annotate_rounds_ended_by_trunk") == 0
    assert exported.value("polyhead_annotate_model_up") == 1
    assert exported.value("polyhead_annotate_backup_timestamp_seconds") > 0
    labels = {label for name, found in exported.labels.items() if name.startswith("polyhead_annotate") for label in found}
    assert labels == {"project", "reason", "code", "state", "le"}


async def test_every_alert_asks_for_what_is_there(exported: Exported) -> None:
    exported.labels["polyhead_annotate_requests_total"]["code"] |= {"500", "503"}
    for rule in ALERTS:
        assert not list(problems(rule["expr"], exported)), rule["alert"]


def sections() -> Iterator[tuple[str, str]]:
    yield from re.findall(r"^### (Annotate\w+)\n(.*?)(?=^##)", GUIDE + "\n##", re.MULTILINE | re.DOTALL)


def test_every_alert_has_its_section_with_something_to_do() -> None:
    found = dict(sections())
    assert list(found) == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/guides/annotate.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(found[rule["alert"]].split()) > 15, rule["alert"]
