"""The longest time between two steps: how long a step kept all running samples waiting. Knows times only."""

from __future__ import annotations

WINDOW_S = 30.0


class StepGaps:
    """The longest time between the ends of two steps, one right after the other, over the last one to two windows.

    Written by the engine's thread, read from any.
    """

    def __init__(self) -> None:
        self._ended_at: float | None = None  # end of the step before; None: it had nothing to do
        self._window_at = 0.0  # when the present window began
        self._longest = 0.0  # within it
        self._before = 0.0  # within the one before

    def note(self, now: float, *, has_worked: bool) -> None:
        """A step has ended, or had nothing to do."""
        if has_worked and self._ended_at is not None:
            self._turn(now)
            self._longest = max(self._longest, now - self._ended_at)
        self._ended_at = now if has_worked else None

    def longest_s(self, now: float) -> float:
        """0 if there were no two steps."""
        age = now - self._window_at
        return 0.0 if age > 2 * WINDOW_S else self._longest if age > WINDOW_S else max(self._longest, self._before)

    def _turn(self, now: float) -> None:
        age = now - self._window_at
        if age > WINDOW_S:
            self._before = self._longest if age <= 2 * WINDOW_S else 0.0
            self._longest, self._window_at = 0.0, now
