"""`polyhead bench` with its servers, and its workers in our own Python, forked: 1 second of CPU each in place of 10.

One test of the command starts them all as a person does: the one that interrupts it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from polyhead.client import local
from polyhead.client.bench import worker
from polyhead.client.cli.main import main
from tests.e2e.forked import FORKED, start

THREADS = "OMP_NUM_THREADS"  # of a worker: each sets those of torch itself


def start_worker(command: Sequence[str], *, env: dict[str, str], **options: Any) -> Any:
    ours = {name: os.environ[name] for name in (THREADS, "HF_HUB_OFFLINE") if name in os.environ}
    own = {name: value for name, value in env.items() if name not in (THREADS, "HF_HUB_OFFLINE")}
    return start(command, env=own | ours, **options)


if __name__ == "__main__":
    sys.argv[0] = "polyhead"
    workers = SimpleNamespace(**{**vars(FORKED), "Popen": start_worker})
    with mock.patch.object(local, "subprocess", FORKED), mock.patch.object(worker, "subprocess", workers):
        main()
