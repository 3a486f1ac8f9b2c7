"""The units of the freezing plan, each in a process of its own, so that the memory that it takes is its own."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from polyhead.client import Client
from polyhead.client.local import LocalServer, local_server
from polyhead.client.rlhf.evidence.freezing.data import Data
from polyhead.client.rlhf.evidence.freezing.models import TokenStates, Trainee, WholeModel, adapters_beside, whole_head
from polyhead.client.rlhf.evidence.freezing.plan import DATA, PREFERENCE, FreezingPlan, Unit, Variant
from polyhead.client.rlhf.evidence.freezing.sides import ServedSide, Side, WholeSide
from polyhead.client.rlhf.evidence.freezing.tasks import Say, config_of, learn_by_rl, learn_preference, reward_of
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.turns import in_turn
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.state_store import States, StateStore

CALL_S, READY_S = 1800.0, 600.0
DATA_LAYERS = 0  # the server's own default split, which the base's replies do not depend on
Serve = Callable[[int], contextlib.AbstractContextManager[LocalServer]]  # a server whose trunk has so many layers


class Freezing:
    """The work of one plan in one folder."""

    def __init__(self, plan: FreezingPlan, folder: Path, model: Path, serve: Serve, say: Say = print) -> None:
        self.plan, self.folder, self.model, self.serve, self.say = plan, folder, model, serve, say
        self.results = Results(folder, plan)

    def run(self, budget_minutes: float = math.inf, work: Callable[[Unit], None] | None = None) -> int:
        """All units that have no result yet, each by `work`; no unit begins after the budget is spent. Returns how many are left."""
        return in_turn(self.results, self.plan.units(), work or self.unit, budget_minutes, self.say)

    def unit(self, unit: Unit) -> None:
        """One unit, in this process."""
        if unit.task == DATA:
            self.results.keep(unit, {"base_rates": self._draw(unit.seed)})
            return
        data, variant = self._data(unit.seed), self.plan.variants[unit.variant]
        with self._opened(variant) as opened:
            if unit.task == PREFERENCE:
                trainee, states = self._scalar(variant, unit, opened)
                found = learn_preference(self.plan, unit, data, trainee, states, self.say)
            else:
                config, reward = config_of(self.plan, unit), reward_of(self.plan, data)
                side: Side = ServedSide(opened.client, variant, reward, config) if opened else WholeSide(self.model, reward, config)
                trainee, found = side.policy, learn_by_rl(self.plan, config, data, side, self.say)
            counts = {"num_layers": trainee.model.spec.num_layers, "num_trained": trainee.num_trained}
            found |= {**counts, "peak": peak_memory(), "server_peak": peak_memory(opened.pid) if opened else 0.0}
        self.results.keep(unit, found)

    def _scalar(self, variant: Variant, unit: Unit, opened: Opened | None) -> tuple[Trainee, States]:
        """What the preference task trains, and where its inputs come from."""
        if opened is None:
            return WholeModel.load(self.model, is_scalar=True).trainee(), TokenStates()
        head = pull_module(opened.client, "preference")
        trainee = adapters_beside(head, variant.rank, unit.seed) if variant.rank else whole_head(head)
        folder = self.folder / "states" / unit.name  # of this unit alone: what the trunk's pass costs is part of its time
        shutil.rmtree(folder, ignore_errors=True)
        return trainee, StateStore(opened.client, folder)

    def _data(self, seed: int) -> Data:
        if not self._data_file(seed).exists():  # its result is there, and this was deleted: the same seed draws the same
            self._draw(seed)
        return Data.read(self._data_file(seed))

    def _draw(self, seed: int) -> dict[str, Any]:
        with self.serve(DATA_LAYERS) as server, Client(server.address, timeout=CALL_S) as client:
            data, rates = Data.drawn(client, self.plan, seed)
        data.write(self._data_file(seed))
        return rates

    def _data_file(self, seed: int) -> Path:
        return self.folder / "data" / f"freezing-seed{seed}.json"

    @contextlib.contextmanager
    def _opened(self, variant: Variant) -> Iterator[Opened | None]:
        """A server with the variant's trunk; None where nothing is frozen."""
        if not variant.trunk_layers:
            yield None
            return
        with self.serve(variant.trunk_layers) as server, Client(server.address, timeout=CALL_S) as client:
            yield Opened(client, server.process.pid)


@dataclass(frozen=True)
class Opened:
    """A server that runs."""

    client: Client
    pid: int


def served(model: Path, folder: Path, flags: Sequence[str]) -> Serve:
    """`polyhead serve MODEL`, with a store for each split."""

    @contextlib.contextmanager
    def serve(layers: int) -> Iterator[LocalServer]:
        split = ["--split-layer", str(layers)] if layers else []
        with local_server([str(model), *split, "--store", str(folder / f"heads-{layers}"), "--keep-versions", "4", *flags]) as server:
            with Client(server.address, timeout=CALL_S) as client:
                client.wait_ready(READY_S)
            yield server

    return serve


def in_process_of_its_own(command: Sequence[str]) -> Callable[[Unit], None]:
    """Work on a unit by a command with its name at the end. What the peak of a process is belongs to one unit then."""

    def work(unit: Unit) -> None:
        before = signal.signal(signal.SIGTERM, _leave)  # or the unit's process would go on alone: `run` ends it where it is left
        try:
            done = subprocess.run([*command, unit.name], check=False)
        finally:
            signal.signal(signal.SIGTERM, before)
        if done.returncode:
            raise UnitFailed(f"the process of {unit.name} ended with status {done.returncode}")

    return work


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class UnitFailed(RuntimeError):
    """The process of a unit ended without a result; its own message stands above."""


def peak_memory(pid: int | None = None) -> float:
    """MiB that a process took at most so far; NaN where the system does not say it of another one."""
    if pid is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), math.nan)
