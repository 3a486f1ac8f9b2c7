"""The program of a worker: `main.py MODULE SETTINGS`. Loads the engine, then answers a JSON line for each line of standard input.

Run as a file by the engine's own Python, so it uses the standard library alone. Whatever a library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Until standard input ends. A module offers `load(settings)`; what that returns offers `about` and `answer(question)`."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print there; nobody else's text may get among the answers

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        engine = importlib.import_module(sys.argv[1]).load(json.loads(sys.argv[2]))
    except Exception as error:
        say({"error": described(error)})
        raise
    say(engine.about)
    for line in sys.stdin:
        try:
            say(engine.answer(json.loads(line)))
        except Exception as error:
            say({"error": described(error)})


def die_with_parent() -> None:
    """Nothing is left behind by a benchmark that was killed. Linux only; elsewhere the end of standard input has to do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def described(error: Exception) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main()
