"""What one run holds open: our servers and the peers' workers, each started when first needed and ended with the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.client import PolyheadError
from polyhead.client.bench.environments import Cache, own_python
from polyhead.client.bench.interrupt import Interrupt
from polyhead.client.bench.ours import Ours, our_server
from polyhead.client.bench.plan import BadPlan, Plan, flags_of
from polyhead.client.bench.results import Series
from polyhead.client.bench.work import Work
from polyhead.client.bench.worker import Worker, WorkerFailed, WorkerRefused
from polyhead.client.errors import Unavailable
from polyhead.heads.model import embedded

ANSWER_TIMEOUT_S = 900.0
SETTLE_S = 0.3  # OpenMP threads of the one who was measured before spin for up to 0.2 s
VLLM_CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class System:
    """One way to decode: a worker and what is said to it."""

    name: str
    peer: str
    worker: str
    extra: dict[str, str] = field(default_factory=dict)


SYSTEMS = (
    System("transformers generate f32", "transformers", "transformers"),
    System("transformers generate_batch f32", "transformers", "transformers", {"do": "generate_batch"}),
    System("vLLM f32", "vllm", "vllm"),
    System("llama.cpp F32", "llamacpp", "llamacpp F32"),
    System("llama.cpp Q8_0", "llamacpp", "llamacpp Q8_0"),
    System("OpenVINO Q8_0", "openvino", "openvino Q8_0"),
)
TRANSFORMERS, VLLM = SYSTEMS[0], SYSTEMS[2]


@dataclass(slots=True)
class Contender:
    """One side of a measure: `measure` does the work once and returns its number."""

    name: str
    measure: Callable[[], float]
    values: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def series(self) -> Series:
        return Series(self.name, tuple(self.values), self.error)


class Session:
    """Use as a context manager: leaving it ends every process that it started."""

    def __init__(self, plan: Plan, interrupt: Interrupt, progress: Callable[[str], None]) -> None:
        self.plan = plan
        self.interrupt = interrupt
        self.progress = progress
        self.cache = Cache(plan.environments, plan.num_threads, progress)
        self.versions: dict[str, dict[str, Any]] = {}  # what each worker says about itself
        self.idle_loads: list[float] = []  # share of the machine that was busy while none of us worked
        self._started_at = _ticks()
        self._servers: dict[str, Ours] = {}
        self._workers: dict[str, Worker] = {}
        self._failures: dict[str, str] = {}
        self._stack = contextlib.ExitStack()
        self._work: Work | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def ours(self) -> Ours:
        """The main server."""
        return self.server(self.plan.servers[0])

    def server(self, variant: str) -> Ours:
        """The server with these flags. BadPlan, with the end of its log, if it does not start."""
        self.interrupt.check()
        if variant not in self._servers:
            self.progress(f"starting our server {variant}")
            try:
                self._servers[variant] = self._stack.enter_context(our_server(self.plan, variant))
            except Unavailable as error:
                raise BadPlan(f"our server does not start: {error.message}") from None
            self._servers[variant].make_roles_differ()
        return self._servers[variant]

    @property
    def stolen(self) -> float:
        """Share of the machine's busy time since the start that other machines on the same host had."""
        busy, _, stolen = _ticks() - self._started_at
        return float(stolen / busy) if busy else 0.0

    @property
    def work(self) -> Work:
        if self._work is None:
            self._work = Work(self.ours.client.tokenize)
        return self._work

    @property
    def systems(self) -> list[System]:
        """Of the peers that were asked for."""
        return [system for system in SYSTEMS if system.peer in self.plan.peers]

    def ask(self, system: System, question: dict[str, Any]) -> dict[str, Any]:
        """A peer's answer, or WorkerFailed."""
        return self.ask_worker(system.worker, {**question, **system.extra})

    def ask_worker(self, key: str, question: dict[str, Any]) -> dict[str, Any]:
        """An answer of the worker of this name, started if need be. One that died or hangs is ended; the next measure starts another."""
        worker = self._worker(key)
        try:
            return worker.ask(question, ANSWER_TIMEOUT_S)
        except WorkerRefused:
            raise
        except WorkerFailed as error:
            self.progress(f"{key} failed: {error}")
            self._workers.pop(key).close()
            raise

    def interleave(self, contenders: Sequence[Contender], has_warm_up: bool = True) -> list[Series]:
        """Each in turn, as often as the plan says, after one round that does not count. One that fails stays failed."""
        for run in range(-1 if has_warm_up else 0, self.plan.runs):
            for contender in contenders:
                if contender.error:
                    continue
                self._settle()
                try:
                    value = contender.measure()
                except (WorkerFailed, PolyheadError) as error:
                    contender.error, contender.values = str(error).splitlines()[0], []
                else:
                    if run >= 0:
                        contender.values.append(value)
        return [contender.series for contender in contenders]

    def _settle(self) -> None:
        before = _ticks()
        self.interrupt.sleep(0.0 if self.plan.is_quick else SETTLE_S)
        busy, total, _ = _ticks() - before
        if total:
            self.idle_loads.append(float(busy / total))

    def _worker(self, key: str) -> Worker:
        """WorkerFailed, at once where it could not be started before."""
        self.interrupt.check()
        if key in self._failures:
            raise WorkerFailed(self._failures[key])
        if key not in self._workers:
            self.progress(f"starting {key}")
            try:
                self._workers[key] = self._started(key)
            except WorkerFailed as error:
                self._failures[key] = str(error)
                self.progress(f"{key} cannot be started: {error}")
                raise
        return self._workers[key]

    def _started(self, key: str) -> Worker:
        python, module, settings, variables = self._start_of(key)
        worker = Worker(python, module, settings, {**self.cache.variables, **variables})
        self._stack.callback(worker.close)
        self.versions[key] = worker.wait_loaded()
        return worker

    def _start_of(self, key: str) -> tuple[Path, str, dict[str, Any], dict[str, str]]:
        """(interpreter, module, settings, environment) of a worker."""
        peer, _, precision = key.partition(" ")
        threads: dict[str, Any] = {"num_threads": self.plan.num_threads}
        if peer == "engine":
            return own_python(), "on_engine", {"flags": flags_of(self.plan.server_flags(self.plan.servers[0]))}, {}
        if peer == "trainer":
            return own_python(), "on_trainer", {"address": self.ours.server.address}, {}
        if peer == "transformers":
            return own_python(), "on_transformers", {"model": self._model_folder(), **threads}, {}
        if peer == "vllm":
            settings = {"model": self._model_folder(), "max_context": VLLM_CONTEXT}
            return self.cache.python(peer), "on_vllm", settings, {"VLLM_CPU_KVCACHE_SPACE": "2"}
        if self.plan.model:
            raise WorkerFailed("it reads GGUF, and there is a GGUF file of the embedded model only")
        python = self.cache.python(peer)
        return python, f"on_{peer}", {"file": str(self.cache.gguf(precision)), "precision": precision, **threads}, {}

    def _model_folder(self) -> str:
        return self.plan.model or str(embedded.prepare(self.progress))


def _ticks() -> np.ndarray:
    """(3,): all cores' ticks since the machine started: busy, all, and of the busy ones stolen; zeros where the system does not say."""
    try:
        numbers = [float(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return np.zeros(3)
    return np.array([sum(numbers) - numbers[3] - numbers[4], sum(numbers), numbers[7]])
