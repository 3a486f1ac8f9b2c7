"""An interrupt reaches work that asks and work that only waits for a process; either leaves its blocks, and no process is left."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from polyhead.client.bench.interrupt import Interrupt, Interrupted, run_interruptibly
from tests.bench.test_worker import is_running

BEGINNING = """
import subprocess, sys, time
from polyhead.client.bench.interrupt import Interrupted, run_interruptibly

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

def work(interrupt):
    child = subprocess.Popen(SLEEP, stdout=subprocess.PIPE)
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


def interrupted(wait: str, *signals: int) -> tuple[int, str, bool]:
    """(exit status, what was said last, whether its child still runs) of a program whose work waits in this way."""
    program = [sys.executable, "-c", BEGINNING.replace("{wait}", wait)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        try:
            for number in signals:
                process.send_signal(number)
                time.sleep(0.5)
            said, _ = process.communicate(timeout=30.0)
            return process.returncode, said, is_running(child.pid)
        finally:
            process.kill()
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "wait",
    [
        "interrupt.sleep(600.0)",  # leaves its child behind
        "assert not child.stdout.read()",
        "child.wait(); subprocess.run(SLEEP)",  # starts another one after the signal
    ],
)
def test_an_interrupt_ends_the_work_and_its_processes(wait: str, number: int) -> None:
    assert interrupted(wait, number) == (130, "left\n", False)


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)])
def test_a_second_signal_is_not_waited_for(first: int, second: int) -> None:
    """By work that does not end."""
    status, said, _ = interrupted("while True: time.sleep(1.0)", first, second)
    assert (status, said) == (-second, "")


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
