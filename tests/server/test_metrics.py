"""Metrics: names, bounded labels, a page that can be scraped."""

from __future__ import annotations

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from polyhead.server.metrics import MAX_HEAD_LABELS, HeadInfo, Metrics, serve_metrics
from tests.server.fakes import FakeEngine


def scrape(metrics: Metrics) -> dict[str, float]:
    server = serve_metrics(metrics, "127.0.0.1", 0)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5).read().decode()
    finally:
        server.close()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(re.fullmatch(r"polyhead_[a-z0-9_]+", sample.name) for sample in samples)
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }


def test_page() -> None:
    metrics = Metrics()
    assert "polyhead_requests_running" not in scrape(metrics)
    metrics.engine.connect(FakeEngine().snapshot, lambda: [HeadInfo("policy", 3, "policy", "ab" * 32, True)], lambda: 77)
    metrics.observe_call("/polyhead.v1.HeadService/GetHead", "OK", 0.1)
    metrics.observe_swap(["policy"], "ok", 0.2)
    page = scrape(metrics)
    assert page["polyhead_kv_cache_usage_ratio"] == 0.25
    assert page["polyhead_prompt_tokens_total"] == page["polyhead_prefix_cache_queries_total"] == 10
    assert page["polyhead_prefix_cache_hits_total"] == 4
    assert page["polyhead_resident_head_bytes"] == 77
    assert page["polyhead_head_info{head=policy}{kind=policy}{sha=abababababab}{version=3}"] == 1
    assert page["polyhead_head_precision_mismatch{head=policy}"] == 1
    assert page["polyhead_head_swaps_total{head=policy}{outcome=ok}"] == 1
    assert page["polyhead_request_duration_seconds_count{code=OK}{method=polyhead.v1.HeadService/GetHead}"] == 1


def test_ten_thousand_names_make_a_bounded_number_of_series() -> None:
    metrics = Metrics()
    for index in range(10_000):
        metrics.observe_swap([f"head-{index}"], "failed", 0.0)
    series = [name for name in scrape(metrics) if name.startswith("polyhead_head_swaps_total")]
    assert len(series) == MAX_HEAD_LABELS + 1
