"""A worker that answers, one that refuses, one that dies, one that hangs; and nothing is left of any of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from polyhead.client.bench.worker import MAIN, Worker, WorkerFailed, run_quietly

ENGINE = """
import os, subprocess, sys, time

class Engine:
    about = {"engine": "fake", "version": "1"}

    def __init__(self):
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def answer(self, question):
        print("a library's own words")
        if question["do"] == "refuse":
            raise ValueError("too long")
        if question["do"] == "die":
            sys.stderr.write("out of memory\\n")
            sys.stderr.flush()
            os._exit(3)
        if question["do"] == "hang":
            time.sleep(600)
        return {"child": self.child.pid, "said": question["text"]}

def load(settings):
    if settings.get("is_broken"):
        raise ImportError("no module named vllm")
    return Engine()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fake_engine.py").write_text(ENGINE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def worker(folder: Path) -> Iterator[Worker]:
    started = Worker(Path(sys.executable), "fake_engine", {}, {"PYTHONPATH": str(folder)})
    yield started
    started.close()


def test_it_answers_and_everything_it_started_ends_with_it(worker: Worker) -> None:
    """What it prints gets among no answers; its own child is gone after `close`."""
    assert worker.wait_loaded() == {"engine": "fake", "version": "1"}
    first, second = (worker.ask({"do": "echo", "text": text}, 30.0) for text in ("a", "b" * 100_000))
    assert (first["said"], second["said"]) == ("a", "b" * 100_000)
    worker.close()
    assert not is_running(first["child"])


def test_an_error_is_one_question_s_own(worker: Worker) -> None:
    worker.wait_loaded()
    with pytest.raises(WorkerFailed, match="ValueError: too long"):
        worker.ask({"do": "refuse"}, 30.0)
    assert worker.ask({"do": "echo", "text": "still there"}, 30.0)["said"] == "still there"


def test_its_last_words_are_told(worker: Worker) -> None:
    worker.wait_loaded()
    with pytest.raises(WorkerFailed, match="it ended with status 3: out of memory"):
        worker.ask({"do": "die"}, 30.0)
    with pytest.raises(WorkerFailed):
        worker.ask({"do": "echo", "text": ""}, 30.0)


def test_it_may_not_hang(worker: Worker) -> None:
    worker.wait_loaded()
    with pytest.raises(WorkerFailed, match=r"no answer within 0\.3 s"):
        worker.ask({"do": "hang"}, 0.3)


def test_an_engine_that_cannot_load_says_why(folder: Path) -> None:
    broken = Worker(Path(sys.executable), "fake_engine", {"is_broken": True}, {"PYTHONPATH": str(folder)})
    try:
        with pytest.raises(WorkerFailed, match="ImportError: no module named vllm"):
            broken.wait_loaded()
    finally:
        broken.close()


def is_running(pid: int) -> bool:
    end_at = time.monotonic() + 60.0
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end_at:
                return True
            time.sleep(0.02)
    return False


def test_our_engine_is_told_how_long_to_spin_before_torch_is_there() -> None:
    """OpenMP reads the environment once, when torch loads it; the server's process is prepared in the same order."""
    script = "import sys, on_engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=MAIN.parent, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_a_command_that_fails_is_told_by_its_last_words() -> None:
    """As pip does that finds no package."""
    with pytest.raises(WorkerFailed, match="sh ended with status 3: No matching distribution"):
        run_quietly(["sh", "-c", "echo looking; echo 'No matching distribution' >&2; exit 3"], {}, 60.0)
