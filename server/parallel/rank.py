"""A rank that is not the first: a process that carries out what rank 0 says, and ends when it does.

It knows tokens, slots and heads' numbers. It has no port, no store and no scheduler, and takes no signal but those that cannot be refused:
rank 0 drains, and ends it when that is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyhead.heads.format.errors import DataLoss, PolyheadError
from polyhead.heads.format.kinds import SCORE_NAME, OutputKind
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import build_head, build_trunk, head_skeleton
from polyhead.heads.model.spec import ModelSpec, describe
from polyhead.server import logs
from polyhead.server.engine.blocks.cache import KvCache, TrunkCache
from polyhead.server.engine.build import EngineConfig
from polyhead.server.engine.layers.cuda.threads import use_device
from polyhead.server.engine.layers.fast import FastHead
from polyhead.server.engine.layers.heads import canary
from polyhead.server.host.commit import commit
from polyhead.server.host.memory import bound_malloc
from polyhead.server.host.threads import use_torch_threads
from polyhead.server.parallel import group
from polyhead.server.parallel.children import connect
from polyhead.server.parallel.group import Group
from polyhead.server.parallel.memory import held_bytes
from polyhead.server.parallel.passes import HeadPass, Order, Reader, TrunkPass
from polyhead.server.parallel.runners import ShareHeads, ShareTrunk, open_other
from polyhead.server.parallel.shares import Share, ShareOfCheckpoint, spec_of_share
from polyhead.server.parallel.wire import DTYPES, Announced, Gone, line, read_line, read_numbers
from polyhead.server.process.loading import free_memory

EXIT_FAILED, EXIT_ALONE = 1, 3  # a pass failed here; rank 0 has ended
_PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger("polyhead.server.parallel.rank")


class OtherRank:
    """One share of trunk and heads."""

    def __init__(self, settings: dict[str, Any], control: socket.socket, said: BinaryIO) -> None:
        """`said`: what rank 0 says on `control`."""
        self.rank, self.size = int(settings["rank"]), int(settings["size"])
        self.device = torch.device(f"cuda:{self.rank}" if settings["device"] == "cuda" else "cpu")
        self.group = Group(self.size)
        self.heads: dict[int, FastHead] = {}
        self._settings, self._control, self._said = settings, control, said
        self._telling = threading.Lock()
        self._share = Share(self.rank, self.size)
        self._spec: ModelSpec  # these are there once `open` has returned
        self.trunk: ShareTrunk
        self.runner: ShareHeads

    # ---- the start

    def open(self) -> None:
        """Load this rank's share, and make its caches."""
        settings = self._settings
        checkpoint = Checkpoint.open(Path(settings["model"]))
        spec = spec_of_share(describe(checkpoint, settings["split_layer"]), self.size)
        self._spec = spec
        own = ShareOfCheckpoint.of_whole(checkpoint, self._share)
        trunk = build_trunk(own, spec, DTYPES[settings["trunk_dtype"]], self.device)
        config = EngineConfig(cache_bytes=settings["cache_bytes"], max_context=settings["max_context"], tap_layer=settings["tap_layer"])
        self.trunk, self.runner = open_other(trunk, config, DTYPES[settings["head_dtype"]], self.group)
        log.info("rank %d: %d MiB of the trunk on %s", self.rank, self.trunk.num_bytes >> 20, self.device)

    def tell(self, **message: Any) -> None:
        with self._telling:
            self._control.sendall(line(message))

    def show_signs(self) -> None:
        """Of life, with the memory that is held. Ends with the process."""
        while True:
            self.tell(sign=held_bytes(str(self.device)))
            time.sleep(self._settings["sign_s"])

    # ---- heads, on a thread of their own

    def listen(self) -> None:
        """Make heads of what rank 0 hands over, beside passes, until rank 0 is gone."""
        use_torch_threads(1)
        use_device(self.device)
        with contextlib.suppress(Gone, OSError):
            while True:
                message = read_line(self._said)
                announced = [Announced.from_plain(each) for each in message["tensors"]]
                tensors = {each.name: each.read(self._said) for each in announced}
                self.tell(holds=message["hold"], problem=self._hold(message["hold"], tensors))

    def _hold(self, number: int, tensors: dict[str, Tensor]) -> str:
        """What keeps this rank from it; empty if nothing does."""
        try:
            self.heads[number] = self._built(tensors)
            return ""
        except (MemoryError, torch.OutOfMemoryError):
            return "no memory for another head"
        except Exception as error:
            log.exception("rank %d: a head could not be made", self.rank)
            return f"a head could not be made: {type(error).__name__}"

    def _built(self, tensors: dict[str, Tensor]) -> FastHead:
        """Its layers, and a scalar output that nobody reads: rank 0 has the head's own."""
        score = torch.zeros((1, self._spec.d_model), dtype=next(iter(tensors.values())).dtype)
        runner = self.runner
        with runner.uploads.beside():
            module = build_head(
                self._spec,
                {**tensors, SCORE_NAME: score},
                OutputKind.SCORE,
                None,
                runner.cache.shape.dtype,
                self.device,
                self._skeleton,
            )
            prepared = runner.prepare(module)
        assert isinstance(prepared, FastHead), "check_shares has let the model pass"
        runner.uploads.outlive(prepared)
        return prepared

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return head_skeleton(self._spec)

    # ---- passes

    def serve(self, said: BinaryIO) -> None:
        """Carry out passes until the end is said. Gone if rank 0 ends without a word."""
        while True:
            numbers = Reader(read_numbers(said))
            match Order(numbers.one()):
                case Order.TRUNK:
                    self._change_slots(numbers)
                    self.trunk.carry_out(TrunkPass.read(numbers))
                case Order.HEAD:
                    self._change_slots(numbers)
                    self._run_head(HeadPass.read(numbers))
                case Order.CANARY:
                    self._run_canary(numbers.one(), numbers.one())
                case Order.FORGET:
                    for number in numbers.many():
                        self.heads.pop(number, None)
                case Order.END:
                    return

    def _change_slots(self, numbers: Reader) -> None:
        caches: dict[Order, TrunkCache | KvCache] = {Order.TRUNK: self.trunk.cache, Order.HEAD: self.runner.cache}
        for _ in range(numbers.one()):
            cache, target, source, num_tokens = caches[Order(numbers.one())], numbers.one(), numbers.one(), numbers.one()
            if source < 0:
                cache.clear(target)
            else:
                cache.copy(source, target, num_tokens)

    @torch.inference_mode()
    def _run_head(self, work: HeadPass) -> None:
        """Its layers alone: what comes out is the same on every rank, and rank 0 reads it."""
        inputs = self.runner.inputs(work)
        rows = inputs.wanted if inputs.plan.asked is not None else None
        self.heads[work.head].stack.forward(inputs.states_1TD[0], inputs.positions_1T[0], inputs.plan, rows=rows)

    @torch.inference_mode()
    def _run_canary(self, number: int, num_tokens: int) -> None:
        shape = self.runner.cache.shape
        states = self.group.from_first(torch.empty((num_tokens, self._spec.d_model), dtype=shape.dtype, device=self.device))
        with contextlib.suppress(DataLoss):  # rank 0 says so
            canary(self.heads[number], states, self.runner.cache, self.runner.attention)

    def commit_caches(self) -> None:
        commit([*self.trunk.cache.tensors, *self.runner.cache.layers], lambda: True)


def main(path: str) -> None:
    """From start to end."""
    passes, control = connect(path, "passes"), connect(path, "control")
    said = cast(BinaryIO, control.makefile("rb"))
    settings = read_line(said)
    logs.configure(settings["log_format"], settings["log_level"])
    rank = OtherRank(settings, control, said)
    use_torch_threads(settings["num_threads"])
    use_device(rank.device)
    _beside(rank.show_signs)
    try:
        rank.open()
    except Exception as error:
        rank.tell(**_problem(error))
        raise
    rank.tell(ready=free_memory(str(rank.device)))
    _beside(partial(_listen_to_the_end, rank))
    rank.group.join(Path(settings["meeting"]), rank.rank, rank.device, settings["timeout_s"])
    if settings["commit_caches"] and rank.device.type == "cpu":
        _beside(rank.commit_caches)
    with passes.makefile("rb") as said_passes:
        rank.serve(cast(BinaryIO, said_passes))
    group.leave()


def _listen_to_the_end(rank: OtherRank) -> None:
    """Without rank 0 there is nothing left to do, whatever pass is under way."""
    rank.listen()
    os._exit(EXIT_ALONE)


def _problem(error: Exception) -> dict[str, Any]:
    is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    text = error.message if isinstance(error, PolyheadError) else f"{type(error).__name__}: {error}"
    return {"cannot": text, "is_memory": is_memory}


def _beside(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()


def _end_with_rank_0() -> None:
    """A signal to the whole group of processes is rank 0's affair; its end is the end of all, even of one that is stopped."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    _end_with_rank_0()
    bound_malloc()
    status = 0
    try:
        main(sys.argv[1])
    except (Gone, OSError):
        status = EXIT_ALONE
    except BaseException:
        log.critical("rank %s failed", sys.argv[2], exc_info=True)
        status = EXIT_FAILED
    logging.shutdown()
    os._exit(status)
