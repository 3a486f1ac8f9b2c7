"""An interrupt reaches work that asks and work that only waits for a process; either leaves its blocks, and no process is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from polyhead.server.bench.interrupt import Interrupt, Interrupted, run_interruptibly

BEGINNING = """
import subprocess, sys
from polyhead.server.bench.interrupt import Interrupted, run_interruptibly

def work(interrupt):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.PIPE)
    print(child.pid, flush=True)
    try:
        {wait}
    finally:
        print("left", flush=True)

try:
    run_interruptibly(work)
except Interrupted:
    sys.exit(130)
"""


def interrupted(wait: str, number: int) -> tuple[int, str, int]:
    """(exit status, what was said last, the child's process id) of a program whose work waits in this way."""
    program = [sys.executable, "-c", textwrap.dedent(BEGINNING).replace("{wait}", wait)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        said, _ = process.communicate(timeout=30.0)
    return process.returncode, said, child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", ["interrupt.sleep(600.0)", "assert not child.stdout.read()", "child.wait()"])
def test_an_interrupt_ends_the_work_and_its_processes(wait: str, number: int) -> None:
    status, said, child = interrupted(wait, number)
    assert (status, said) == (130, "left\n")
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_without_one_the_work_runs_to_its_end_or_its_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done: list[int] = []

    def fail(_: Interrupt) -> None:
        raise KeyError

    run_interruptibly(lambda interrupt: done.append(1))
    with pytest.raises(KeyError):
        run_interruptibly(fail)
    assert done == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_asks_is_told() -> None:
    interrupt = Interrupt()
    interrupt.check()
    interrupt.sleep(0.0)
    interrupt.is_asked = True
    with pytest.raises(Interrupted):
        interrupt.check()
    with pytest.raises(Interrupted):
        interrupt.sleep(600.0)
