"""Every name in the dashboard and in the alert rules is one that a real server exports, and Grafana finds both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from polyhead.server.config import ServeConfig
from polyhead.server.rpc.auth import ALLOWED
from tests.deploy.conftest import DEPLOY, Exported
from tests.deploy.promql import Query, Selector, read
from tests.deploy.yamlfile import read_one

ADDED_BY_PROMETHEUS = {"job", "instance"}
COUNTING = {"rate", "irate", "increase", "resets"}  # meaningless over a gauge
# Values that one run need not show, because the contract fixes them
FIXED = {"code": {code.name for code in grpc.StatusCode}, "method": {method.removeprefix("/") for method in ALLOWED}}


def strict_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), keys
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


DASHBOARD = strict_json((DEPLOY / "grafana" / "polyhead.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in read_one(DEPLOY / "alerts.yml")["groups"] for rule in group["rules"]]


def problems(expression: str, exported: Exported) -> Iterator[str]:
    """What of an expression no server exports."""
    query = read(expression)
    for selector in query.selectors:
        if selector.metric == "up":
            labels: dict[str, set[str]] = {}
        elif selector.metric in exported.labels:
            labels = exported.labels[selector.metric]
        else:
            yield f"no such metric: {selector.metric}"
            continue
        yield from _label_problems(selector, labels)
        if selector.function in COUNTING and not _is_counting(selector.metric, exported):
            yield f"{selector.function} over a gauge: {selector.metric}"
    known = {label for selector in query.selectors for label in exported.labels.get(selector.metric, {})}
    yield from (f"no series has the label: {label}" for label in sorted(query.grouped_by - known - ADDED_BY_PROMETHEUS))


def _label_problems(selector: Selector, labels: dict[str, set[str]]) -> Iterator[str]:
    for matcher in selector.matchers:
        if matcher.label in ADDED_BY_PROMETHEUS:
            continue
        if matcher.label not in labels:
            yield f"{selector.metric} has no label {matcher.label}"
            continue
        seen = labels[matcher.label] | FIXED.get(matcher.label, set())
        wanted = set(matcher.value.split("|")) if "~" in matcher.operator else {matcher.value}
        yield from (f"{selector.metric} has no {matcher.label}={value}" for value in sorted(wanted - seen))


def _is_counting(metric: str, exported: Exported) -> bool:
    family = re.sub(r"_(total|bucket|count|sum)$", "", metric)
    return exported.families.get(family, ("", ""))[0] in ("counter", "histogram") and family != metric


def dashboard_expressions() -> list[str]:
    annotations = [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    return annotations + [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("expression", [*dict.fromkeys(dashboard_expressions())])
def test_the_dashboard_asks_for_what_is_there(expression: str, exported: Exported) -> None:
    assert not list(problems(expression, exported))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_there(rule: dict[str, Any], exported: Exported) -> None:
    assert not list(problems(rule["expr"], exported))


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("polyhead_servin == 0", "no such metric: polyhead_servin"),
        ("rate(polyhead_engine_rejected_requests[5m])", "no such metric: polyhead_engine_rejected_requests"),  # without _total
        ("polyhead_score_sum", "no such metric: polyhead_score_sum"),  # negative buckets: the histogram has no sum
        ('polyhead_head_swaps_total{result="ok"}', "polyhead_head_swaps_total has no label result"),
        ('polyhead_head_swaps_total{outcome="fail"}', "polyhead_head_swaps_total has no outcome=fail"),
        ('polyhead_request_duration_seconds_count{code=~"INTERNAL|LOST"}', "polyhead_request_duration_seconds_count has no code=LOST"),
        ("sum by (kind) (polyhead_serving)", "no series has the label: kind"),
        ("rate(polyhead_trunk_bytes[5m])", "rate over a gauge: polyhead_trunk_bytes"),
    ],
)
def test_a_wrong_name_is_caught(expression: str, problem: str, exported: Exported) -> None:
    assert list(problems(expression, exported)) == [problem]


def test_keys_that_stand_twice_are_caught(tmp_path: Path) -> None:
    """Both formats' own readers keep the last one in silence."""
    (tmp_path / "twice.yml").write_text("a: {b: 1, b: 2}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="twice in one mapping"):
        read_one(tmp_path / "twice.yml")
    with pytest.raises(AssertionError):
        strict_json('{"b": 1, "b": 2}')


def test_the_numbers_mean_what_the_panels_say(exported: Exported) -> None:
    assert exported.value("polyhead_serving") == 1
    assert exported.value("polyhead_active_set_damaged") == 0
    assert exported.value("polyhead_active_generation") == 3
    assert exported.value("polyhead_head_swaps_total", head="policy", outcome="failed") == 1
    assert exported.value("polyhead_head_swaps_total", head="rule", outcome="failed") == 0
    assert 0 < exported.value("polyhead_disk_free_bytes") < exported.value("polyhead_disk_size_bytes")
    assert 0 < exported.value("polyhead_resident_head_bytes") < exported.value("polyhead_head_memory_budget_bytes")
    assert exported.value("process_resident_memory_bytes") > exported.value("polyhead_trunk_bytes") > 0
    assert exported.value("polyhead_score_count", head="preference", version="1", policy="policy@1") == 2
    assert exported.value("polyhead_score_count", head="preference", version="1", policy="") == 1  # a completion that was given


def test_a_preference_that_was_left_out_is_in_no_mean(exported: Exported) -> None:
    """`omitting` leaves unfinished samples out; its 0 would have pulled the mean."""
    assert "omitting" not in exported.labels["polyhead_score_count"]["head"]


def labels_of(query: Query, exported: Exported) -> set[str]:
    found = {label for selector in query.selectors for label in exported.labels.get(selector.metric, {})}
    return found | ADDED_BY_PROMETHEUS


def test_legends_and_summaries_name_labels_of_their_expression(exported: Exported) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            assert named <= labels_of(read(target["expr"]), exported), panel["title"]
    for rule in ALERTS:
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert named <= labels_of(read(rule["expr"]), exported), rule["alert"]


def test_the_dashboard_covers_what_operators_ask() -> None:
    titles = " ".join(panel["title"].lower() for panel in PANELS)
    for topic in ("calls per second", "first token", "queue", "cache hits", "tokens computed", "swaps", "preference", "rules broken"):
        assert topic in titles
    assert {"memory", "disk"} <= {panel["title"].lower() for panel in PANELS}


def test_panels_do_not_overlap_and_have_one_id_each() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in own) < 24
        assert not cells & own, panel["title"]
        cells |= own


def test_every_panel_uses_the_provisioned_datasource_and_says_what_it_shows() -> None:
    [source] = read_one(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    for panel in PANELS:
        assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {source["uid"]}
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"instance"}


def test_alerts_are_whole() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(names) == len(set(names))
    for rule in ALERTS:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_prometheus_reads_the_rules_and_the_servers_port() -> None:
    config = read_one(DEPLOY / "prometheus.yml")
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    assert all((DEPLOY / name).is_file() for name in config["rule_files"])
    [job] = config["scrape_configs"]
    assert job["job_name"] == "polyhead"  # the rules say job="polyhead"
    assert job["static_configs"] == [{"targets": [f"polyhead:{ServeConfig.model_fields['metrics_port'].default}"]}]
    source = read_one(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"][0]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
