"""The reader of queries finds every name, and refuses what Prometheus would refuse."""

from __future__ import annotations

import pytest

from tests.deploy.promql import BadQuery, Matcher, Query, Selector, read

QUANTILE = 'histogram_quantile(0.95, sum by (le, head) (rate(wait_bucket{instance=~"$instance", code!="OK"}[$__rate_interval])))'


def names(query: Query) -> set[str]:
    return {selector.metric for selector in query.selectors}


def test_every_name_is_found() -> None:
    query = read(QUANTILE)
    matchers = (Matcher("instance", "=~", "$instance"), Matcher("code", "!=", "OK"))
    assert query.selectors == [Selector("wait_bucket", matchers, is_range=True, function="rate")]
    assert query.grouped_by == {"le", "head"}
    assert query.functions == {"histogram_quantile", "sum", "rate"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("up", {"up"}),
        ("a / b < 0.1", {"a", "b"}),
        ("time() - started{job='x'}".replace("'", '"'), {"started"}),
        ("(sum by (h) (rate(a[5m])) - sum by (h) (rate(b[5m]))) / (sum by (h) (c) > 0) and on (h) d", {"a", "b", "c", "d"}),
        ("-a * on (x) group_left (y) b", {"a", "b"}),
        ("sum(rate(a[1h])) / 1e6", {"a"}),
        ("changes(a[1m]) > 2", {"a"}),
    ],
)
def test_expressions(text: str, found: set[str]) -> None:
    assert names(read(text)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "a +",
        "(a",
        "a)",
        "sum(a",
        "rate(a)",  # no range
        "a[5m]",  # a range without a function over it
        "sum(a[5m])",
        "rate(a[five])",
        "ratee(a[5m])",
        "a{b}",
        "a{b=c}",
        'a{b="c"',
        'a{b=="c"}',
        "sum by le (a)",
        "and a",
        "a and",
        "a ? b",
        "a / / b",
    ],
)
def test_what_is_no_query(text: str) -> None:
    with pytest.raises(BadQuery):
        read(text)
