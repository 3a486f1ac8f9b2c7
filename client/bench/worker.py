"""A process that holds a loaded model and answers questions, a JSON line each way. Knows neither engines nor what is asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAIN = Path(__file__).parent / "peers" / "main.py"
LOAD_TIMEOUT_S = 600.0
MOST_SAID = 400  # characters of somebody else's last line


class WorkerFailed(Exception):
    """A worker could not start, died, gave an error or took too long. The text says which, in one line."""


class WorkerRefused(WorkerFailed):
    """An answer that is an error: the worker itself is well."""


class Worker:
    """One engine in a process group of its own, so that whatever it starts ends with it."""

    def __init__(self, python: Path, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed with the worker
        self._buffer = b""
        command = [str(python), str(MAIN), module, json.dumps(settings)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def wait_loaded(self) -> dict[str, Any]:
        """What the engine says about itself (name, version). WorkerFailed if it cannot load."""
        return self._answer(LOAD_TIMEOUT_S)

    def ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One answer. WorkerRefused with the engine's own error, WorkerFailed with its last words if it is gone or hangs."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._last_words("it ended")) from None
        return self._answer(timeout_s)

    def close(self) -> None:
        """End it and all that it started. Idempotent."""
        if self._log.closed:
            return  # the process group's number may be somebody else's by now
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=3.0)  # closing its standard input asks it to end
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        if "error" in answer:
            raise WorkerRefused(answer["error"])
        return answer

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        file, end_at = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([file], [], [], max(0.0, end_at - time.monotonic()))
            if not ready:
                raise WorkerFailed(f"no answer within {timeout_s:g} s")
            part = os.read(file, 1 << 16)
            if not part:
                raise WorkerFailed(self._last_words(f"it ended with status {self._process.wait()}"))
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _last_words(self, what: str) -> str:
        self._log.seek(0)
        line = last_line(self._log.read().decode(errors="replace"))
        return f"{what}: {line}" if line else what


def last_line(text: str) -> str:
    """The last one that says something, "" if none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MOST_SAID] if lines else ""


def run_quietly(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> None:
    """Run a command to its end. WorkerFailed with its last line if it fails."""
    try:
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkerFailed(str(error)) from None
    if done.returncode:
        raise WorkerFailed(f"{Path(command[0]).name} ended with status {done.returncode}: {last_line(done.stderr or done.stdout)}")
