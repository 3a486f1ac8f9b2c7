"""Plots are well-formed SVG, and points lie where their numbers say."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from polyhead.client.bench.plot import HEIGHT, WIDTH, Line, Panel, label, nice_ticks, svg

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    ("most", "last", "count"),
    [(0.0, 1.0, 2), (1.0, 1.0, 6), (4.2, 5.0, 6), (12.0, 12.0, 7), (130.0, 140.0, 8), (0.031, 0.035, 8), (1e6, 1e6, 6)],
)
def test_ticks_are_even_and_reach_the_top(most: float, last: float, count: int) -> None:
    ticks = nice_ticks(most)
    assert ticks[0] == 0.0
    assert ticks[-1] >= most
    assert len(ticks) <= 8
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1
    assert (ticks[-1], len(ticks)) == (pytest.approx(last), count)


def test_points_are_in_order_and_to_scale() -> None:
    """On a logarithmic axis doublings are evenly spaced; y grows upwards from 0."""
    panel = Panel("Cache & <time>", "tokens", "s", [Line("a", [(1, 0.0), (2, 5.0), (4, 10.0)]), Line("b", [(1, 1.0)])], is_log_x=True)
    root = ElementTree.fromstring(svg([panel, panel]))
    dots = root.findall(".//svg:circle", NAMESPACE)
    assert len(dots) == 2 * 4
    (x1, y1), (x2, y2), (x4, y4) = ((float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots[:3])
    assert x2 - x1 == pytest.approx(x4 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y4, abs=0.2)
    assert y1 > y4
    texts = [text for each in root.findall(".//svg:text", NAMESPACE) for text in each.itertext()]
    assert {"Cache & <time>", "tokens", "s", "a", "b", "0", "10", "4"} <= set(texts)


def test_an_empty_panel_is_no_error() -> None:
    assert ElementTree.fromstring(svg([Panel("nothing", "x", "y", [])])) is not None


def test_labels_are_short() -> None:
    assert [label(each) for each in (0.0, 0.05, 12.0, 4096.0)] == ["0", "0.05", "12", "4 096"]


def test_panels_in_rows() -> None:
    drawn = svg([Panel(name, "x", "y", []) for name in "abc"], columns=2)
    assert f'viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}"' in drawn
    assert [f'translate({x} {y})"' in drawn for x, y in ((0, 0), (WIDTH, 0), (0, HEIGHT))] == [True] * 3


def test_labels_of_uneven_points_do_not_lie_on_each_other() -> None:
    """Points in seconds lie where they lie: the axis has round numbers then, and those of the points where they are far enough apart."""
    uneven = svg([Panel("a", "seconds", "y", [Line("one", [(0.2, 1.0), (19.2, 2.0), (20.1, 2.5), (82.3, 3.0), (160.4, 4.0)])])])
    assert [text for text in ("50", "100", "150") if f">{text}</text>" in uneven] == ["50", "100", "150"]
    assert not any(f">{text}</text>" in uneven for text in ("19.2", "20.1", "82.3"))
    even = svg([Panel("a", "round", "y", [Line("one", [(1.0, 1.0), (2.0, 2.0), (3.0, 2.5)])])])
    assert all(f">{text}</text>" in even for text in ("1", "2", "3"))
