"""The longest time between two steps: stalls show, idle times do not, and old ones are forgotten."""

from __future__ import annotations

from polyhead.server.engine.work.gaps import WINDOW_S, StepGaps


def steps(gaps: StepGaps, *ends: float) -> None:
    for end in ends:
        gaps.note(end, has_worked=True)


def test_the_longest_of_neighbours() -> None:
    gaps = StepGaps()
    assert gaps.longest_s(100.0) == 0.0
    steps(gaps, 100.0, 100.1, 100.4, 100.5)
    assert round(gaps.longest_s(101.0), 3) == 0.3


def test_an_idle_time_is_no_stall() -> None:
    gaps = StepGaps()
    steps(gaps, 100.0, 100.1)
    gaps.note(100.2, has_worked=False)
    steps(gaps, 110.0, 110.2)
    assert round(gaps.longest_s(111.0), 3) == 0.2


def test_what_is_older_than_two_windows_is_forgotten() -> None:
    gaps = StepGaps()
    steps(gaps, 1000.0, 1005.0, 1005.1)
    steps(gaps, *(1005.1 + 0.1 * index for index in range(1, int(WINDOW_S * 10) + 5)))
    assert gaps.longest_s(1005.0 + WINDOW_S) == 5.0, "still in the window before"
    steps(gaps, *(1006.0 + WINDOW_S + 0.1 * index for index in range(int(WINDOW_S * 10) + 5)))
    assert 0.0 < gaps.longest_s(1006.0 + 2 * WINDOW_S) < 1.0
    assert gaps.longest_s(2000.0) == 0.0
