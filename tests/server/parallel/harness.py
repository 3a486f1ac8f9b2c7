"""Several ranks of one engine in one process: each other rank is a thread, and sums are made in memory. All else is the server's own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Self, cast

import torch
from torch import Tensor

from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model.family import build_trunk, initial_head
from polyhead.server.engine.build import EngineConfig
from polyhead.server.engine.work.live import LiveHead
from polyhead.server.parallel.children import Child
from polyhead.server.parallel.lead import lead
from polyhead.server.parallel.loader import SharingLoader
from polyhead.server.parallel.passes import Order
from polyhead.server.parallel.rank import OtherRank
from polyhead.server.parallel.ranks import Ranks
from polyhead.server.parallel.shares import Share, ShareOfCheckpoint, check_shares, spec_of_share
from polyhead.server.versions.head_loader import to_file
from tests.server.engine.harness import Bench, described

WAIT_S = 60.0
SIZES: dict[str, Any] = {"cache_bytes": 64 << 20, "max_context": 256, "tap_layer": -1}


class InMemory:
    """What Group does, between threads."""

    def __init__(self, size: int) -> None:
        self.parts: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(size)
        self.num_sums = 0

    def of(self, rank: int) -> SimpleNamespace:
        return SimpleNamespace(sum=lambda x: self._joined(rank, x, is_sum=True), from_first=lambda x: self._joined(rank, x, is_sum=False))

    def _joined(self, rank: int, x: Tensor, *, is_sum: bool) -> Tensor:
        self.parts[rank] = x.clone()
        self.barrier.wait(WAIT_S)
        joined = sum(self.parts[each] for each in sorted(self.parts)) if is_sum else self.parts[0].clone()
        self.num_sums += is_sum and not rank
        self.barrier.wait(WAIT_S)
        assert isinstance(joined, Tensor)
        return x.copy_(joined)


class Threads(Ranks):
    """Ranks whose processes are threads of this one."""

    def __init__(self, size: int, memory: InMemory, settings: dict[str, Any]) -> None:
        self.problems: list[str] = []
        super().__init__(size, settings, WAIT_S, self.problems.append)
        self.memory_of_sums = memory
        self.others: list[OtherRank] = []
        self.threads: list[threading.Thread] = []
        self.ends: list[Any] = []  # of sockets, which are closed last

    def begin(self) -> None:
        for rank in range(1, self.size):
            (passes, theirs), (control, said) = socket.socketpair(), socket.socketpair()
            stream = said.makefile("rb")
            self.ends += [stream, said]
            other = OtherRank({**self._settings, "rank": rank}, said, cast(BinaryIO, stream))
            other.group = cast(Any, self.memory_of_sums.of(rank))
            other.open()
            self.others.append(other)
            process = SimpleNamespace(poll=lambda: None, kill=lambda: None, wait=lambda timeout: 0, pid=0)
            self._children.append(Child(rank, cast(Any, process), passes, control))
            self.threads += [
                threading.Thread(target=other.listen, daemon=True),
                threading.Thread(target=_serve, args=(other, theirs), daemon=True),
            ]
        self.threads.append(threading.Thread(target=self._listen, daemon=True))
        for thread in self.threads:
            thread.start()

    def finish(self) -> None:
        self.say([Order.END])
        self.close()
        for child in self._children:
            child.close()
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        for each in (*self.ends, self._woken):
            each.close()


def _serve(other: OtherRank, passes: socket.socket) -> None:
    torch.set_num_threads(1)
    with passes, passes.makefile("rb") as said:
        other.serve(cast(BinaryIO, said))


class SharedBench(Bench):
    """A Bench whose model is shared by ranks."""

    ranks: Threads
    loader: SharingLoader

    @classmethod
    @contextlib.contextmanager
    def shared(cls, folder: Path, split_layer: int, size: int = 2, dtype: torch.dtype = torch.float32) -> Iterator[Self]:
        checkpoint, spec = described(folder, split_layer)
        check_shares(spec, size)
        share, memory = spec_of_share(spec, size), InMemory(size)
        own = ShareOfCheckpoint.of_whole(checkpoint, Share(0, size))
        settings = {
            **SIZES,
            "size": size,
            "model": str(folder),
            "split_layer": split_layer,
            "device": "cpu",
            "trunk_dtype": str(dtype),
            "head_dtype": str(dtype),
        }
        ranks = Threads(size, memory, settings)
        ranks.begin()
        sums: Any = memory.of(0)
        trunk = build_trunk(own, share, dtype)
        engine = lead(trunk, EngineConfig(**SIZES), frozenset(), dtype, ranks, sums)
        bench = cls(checkpoint, spec, trunk, engine)
        bench.ranks, bench.loader = ranks, SharingLoader(spec, share, engine.heads, ranks, dtype, None)
        bench.activate(1, policy=bench.policy("a"), value=bench.scalar("b"))
        try:
            yield bench
        finally:
            ranks.finish()

    def _live(self, digest: str, output: OutputKind, change: Any) -> LiveHead:
        tensors = {name: tensor.clone() for name, tensor in initial_head(self.checkpoint, self.spec, output).items()}
        change(tensors)
        file = self.loader.open(bytearray(to_file(tensors)))
        manifest = HeadManifest(kind=cast(Any, None), trunk_id="", split_layer=0, num_layers=0, output=output)
        self.loader.check(file, manifest)
        return self.loader.build(digest, file, output)
