"""Metrics: names, bounded labels, a page that can be scraped."""

from __future__ import annotations

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from polyhead.server.metrics.metrics import MAX_HEAD_LABELS, MAX_SCORE_SERIES, HeadInfo, Metrics, SampleFacts, Scalar, ServerFacts
from polyhead.server.metrics.metrics_http import serve_metrics
from tests.server.fakes import FakeEngine


def scrape(metrics: Metrics) -> dict[str, float]:
    server = serve_metrics(metrics.registry, "127.0.0.1", 0)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60).read().decode()
    finally:
        server.close()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(re.fullmatch(r"(polyhead|process)_[a-z0-9_]+", sample.name) for sample in samples)
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }


def test_page() -> None:
    metrics = Metrics()
    assert "polyhead_requests_running" not in scrape(metrics)
    facts = ServerFacts(500, 77, 100, 4, True, 3, 30, 40, "triton paged", "cuda:0", "cuda:1", {"cuda:0": 60, "cuda:1": 20})
    metrics.engine.connect(FakeEngine().snapshot, lambda: [HeadInfo("policy", 3, "policy", "ab" * 32, True)], lambda: facts)
    metrics.observe_call("/polyhead.v1.HeadService/GetHead", "OK", 0.1)
    metrics.observe_swap(["policy"], "ok", 0.2)
    page = scrape(metrics)
    assert page["polyhead_kv_cache_usage_ratio"] == 0.25
    assert page["polyhead_prompt_tokens_total"] == page["polyhead_prefix_cache_queries_total"] == 10
    assert page["polyhead_prefix_cache_hits_total"] == 4
    assert page["polyhead_resident_head_bytes"] == 77
    assert page["polyhead_trunk_bytes"] == 500
    assert page["polyhead_head_memory_budget_bytes"] == 100
    assert page["polyhead_active_generation"] == 4
    assert page["polyhead_active_set_damaged"] == 1
    assert (page["polyhead_disk_free_bytes"], page["polyhead_disk_size_bytes"]) == (30, 40)
    assert page["polyhead_attention_info{attention=triton paged}"] == 1
    assert page["polyhead_device_info{heads=cuda:1}{trunk=cuda:0}"] == 1
    assert (page["polyhead_cache_bytes{device=cuda:0}"], page["polyhead_cache_bytes{device=cuda:1}"]) == (60, 20)
    assert page["process_resident_memory_bytes"] > 1e6
    assert page["polyhead_serving"] == 0
    assert page["polyhead_head_info{head=policy}{kind=policy}{sha=abababababab}{version=3}"] == 1
    assert page["polyhead_head_precision_mismatch{head=policy}"] == 1
    assert page["polyhead_head_swaps_total{head=policy}{outcome=ok}"] == 1
    assert page["polyhead_head_swaps_total{head=policy}{outcome=failed}"] == 0  # or the first failure would be no increase
    assert page["polyhead_rule_answers_total{violated=true}"] == 0
    assert page["polyhead_request_duration_seconds_count{code=OK}{method=polyhead.v1.HeadService/GetHead}"] == 1


def test_ten_thousand_names_make_a_bounded_number_of_series() -> None:
    metrics = Metrics()
    for index in range(10_000):
        metrics.observe_swap([f"head-{index}"], "ok", 0.0)
    series = [name for name in scrape(metrics) if name.startswith("polyhead_head_swaps_total")]
    assert len(series) == 2 * MAX_HEAD_LABELS + 2  # two outcomes


def test_names_that_nobody_has_use_up_no_labels() -> None:
    """64 misspelt activations, and every later head was "other"."""
    metrics = Metrics()
    for index in range(MAX_HEAD_LABELS):
        metrics.observe_swap([f"misspelt-{index}"], "failed", 0.0)
    metrics.observe_swap(["policy"], "ok", 0.0)
    page = scrape(metrics)
    assert page["polyhead_head_swaps_total{head=other}{outcome=failed}"] == MAX_HEAD_LABELS
    assert page["polyhead_head_swaps_total{head=policy}{outcome=ok}"] == 1
    assert not any("misspelt" in name for name in page)


def drawn_by(policy: str, *scalars: Scalar) -> SampleFacts:
    return SampleFacts(first_token_s=-1.0, inter_token_s=-1.0, policy=policy, scalars=scalars, violations=())


def test_scores_are_told_apart_by_version_and_by_who_drew_the_sample() -> None:
    metrics = Metrics()
    metrics.observe_sample(drawn_by("policy@1", Scalar("preference", 2, 1.0), Scalar("value", 1, 9.0)))
    metrics.observe_sample(drawn_by("policy@1", Scalar("preference", 2, 3.0)))
    metrics.observe_sample(drawn_by("policy@1", Scalar("preference", 2, -0.5)))
    metrics.observe_sample(drawn_by("policy@2", Scalar("preference", 2, -5.0)))
    page = scrape(metrics)
    assert page["polyhead_score_count{head=preference}{policy=policy@1}{version=2}"] == 3
    magnitudes = {name: value for name, value in page.items() if name.startswith("polyhead_score_magnitude_total")}
    assert magnitudes == {
        "polyhead_score_magnitude_total{head=preference}{policy=policy@1}{sign=positive}{version=2}": 4,
        "polyhead_score_magnitude_total{head=preference}{policy=policy@1}{sign=negative}{version=2}": 0.5,
        "polyhead_score_magnitude_total{head=preference}{policy=policy@2}{sign=positive}{version=2}": 0,
        "polyhead_score_magnitude_total{head=preference}{policy=policy@2}{sign=negative}{version=2}": 5,
        "polyhead_score_magnitude_total{head=value}{policy=policy@1}{sign=positive}{version=1}": 9,
        "polyhead_score_magnitude_total{head=value}{policy=policy@1}{sign=negative}{version=1}": 0,
    }


def test_a_thousand_versions_make_a_bounded_number_of_score_series() -> None:
    """The latest ones stay."""
    metrics = Metrics()
    for version in range(1, 1001):
        metrics.observe_sample(drawn_by(f"policy@{version}", Scalar("preference", 1, 0.0)))
    page = scrape(metrics)
    series = [name for name in page if name.startswith("polyhead_score_count")]
    assert sum(name.startswith("polyhead_score_magnitude_total") for name in page) == 2 * MAX_SCORE_SERIES
    expected = [f"polyhead_score_count{{head=preference}}{{policy=policy@{1000 - back}}}{{version=1}}" for back in range(MAX_SCORE_SERIES)]
    assert sorted(series) == sorted(expected)
