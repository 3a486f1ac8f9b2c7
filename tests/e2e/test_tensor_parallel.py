"""Two ranks on gloo against one process: the same answers and swaps; and what happens when a rank is lost, or the server ends."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.errors import FailedPrecondition, PolyheadError
from polyhead.client.local import LocalServer, local_server
from polyhead.server.parallel.ranks import EXIT_RANK_LOST
from tests.e2e.support import FIRST_TOKEN, PROMPT, assert_blocks_returned, eventually, push_pair, serving

TOLERANCE = 3e-5  # two ranks add in another order; log-probs are near 5, and torch versions differ in the last bits
END_S = 60.0  # for a server to end, on a busy machine
RANKS = ("--tensor-parallel", "2")


def ranks_of(server: LocalServer) -> dict[int, int]:
    """Process ids, as the log says."""
    found = (re.search(r"rank (\d+) is process (\d+)$", line.strip()) for line in server.last_lines)
    return {int(each[1]): int(each[2]) for each in found if each}


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_two_ranks_answer_as_one_process(tiny_model: Path, tmp_path: Path) -> None:
    """Drawing, scoring, cached prompts, swaps, a swap that is followed, a rollback; what the server says of itself; a graceful end."""
    with serving(tiny_model, tmp_path / "one") as one, serving(tiny_model, tmp_path / "two", *RANKS, drain_grace=5) as two:
        (pid,) = ranks_of(two).values()  # the first lines of the log
        with Client(one.address) as single, Client(two.address) as shared:
            assert_equal(answered(shared), answered(single))
            for client in (single, shared):
                client.update({"policy": changed(client)})
            assert_equal(answered(shared), answered(single))
            assert shared.rollback().heads == single.rollback().heads
            assert_a_swap_is_followed(shared)
            assert_adapters_are_refused(shared)
            status = shared.status()
            assert [(row.rank, row.device) for row in status.ranks] == [(0, "cpu"), (1, "cpu")]
            assert all(row.num_bytes > 1 << 20 for row in status.ranks)
            assert (shared.trunk().tensor_parallel, single.trunk().tensor_parallel) == (2, 1)
            assert status.trunk_bytes < single.status().trunk_bytes
            assert_metrics_tell_of_the_ranks(two)
            assert_blocks_returned(shared)
        two.process.send_signal(signal.SIGTERM)
        assert two.process.wait(END_S) == 0
        assert has_ended(pid)


def changed(client: Client) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    tensors = {name: np.array(tensor) for name, tensor in client.pull_head("policy").items()}
    return {name: tensor + generator.normal(0, 0.05, tensor.shape).astype(tensor.dtype) for name, tensor in tensors.items()}


def answered(client: Client) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Twice, so that prompts are found in the cache, and texts that part inside a block."""
    prompts = [PROMPT * 3, [*PROMPT, *PROMPT, 60, 61]]
    for n in (2, 1):
        score: Any = ["reference", "value", "preference"]
        for sample in client.generate(prompts, n=n, seed=7, max_new_tokens=8, ignore_eos=True, score=score):
            yield sample.token_ids, [sample.logprobs, *numbers_of(sample.scores)]
            yield [sample.num_cached_tokens], []
    for item in client.score([(PROMPT, list(range(80, 92)))], heads=["policy", "value", "preference"]):
        yield [], numbers_of(item.scores)


def numbers_of(scores: Any) -> list[np.ndarray]:
    return [scores[name].logprobs for name in ("reference", "policy") if name in scores] + [
        scores["value"].values,
        np.array([scores["preference"].value]),
    ]


def assert_equal(found: Iterator[Any], wanted: Iterator[Any]) -> None:
    for (ids, numbers), (expected_ids, expected) in zip(found, wanted, strict=True):
        assert list(ids) == list(expected_ids)
        for one, other in zip(numbers, expected, strict=True):
            assert np.abs(one - other).max() < TOLERANCE


def assert_a_swap_is_followed(client: Client) -> None:
    """A text that is being drawn goes on with the new version, which all ranks hold by then."""
    client.activate(push_pair(client, 1))
    pushed, seen = push_pair(client, 2), []
    for piece in client.stream(PROMPT, max_new_tokens=2000, ignore_eos=True, on_swap="follow"):
        seen += piece.token_ids
        if len(seen) > 3 and pushed:
            client.activate(pushed)
            pushed = {}
        if FIRST_TOKEN + 2 in seen:
            break
    assert set(seen) == {FIRST_TOKEN + 1, FIRST_TOKEN + 2}


def assert_adapters_are_refused(client: Client) -> None:
    """By the push's header, before a byte is stored."""
    name = "model.layers.2.self_attn.q_proj"
    adapter = {f"{name}.lora_A.weight": np.zeros((2, 32), np.float32), f"{name}.lora_B.weight": np.zeros((32, 2), np.float32)}
    with pytest.raises(FailedPrecondition, match="LoRA heads are not served by several ranks: adapted\nhint: merge the adapter") as refused:
        client.push_head("adapted", adapter, lora={"r": 2, "lora_alpha": 2}, base="policy@1")
    assert refused.value.field == "header.manifest.lora"


@pytest.mark.long
def test_a_killed_server_leaves_no_rank(tiny_model: Path, tmp_path: Path) -> None:
    """Also one that is stopped, which reads no end of a socket: the kernel kills it with rank 0. A server as a person starts it."""
    flags = [str(tiny_model), "--store", str(tmp_path / "store"), "--split-layer", "2", "--threads", "1", *RANKS]
    with local_server(flags) as server:
        (pid,) = ranks_of(server).values()
        with Client(server.address) as client:
            assert client.generate([PROMPT], max_new_tokens=4)[0].token_ids
        os.kill(pid, signal.SIGSTOP)
        server.process.kill()
        server.process.wait(END_S)
        eventually(lambda: has_ended(pid), what="the end of the other rank")


def assert_metrics_tell_of_the_ranks(server: LocalServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    assert "polyhead_ranks 2.0" in lines
    sizes = [line for line in lines if line.startswith("polyhead_rank_memory_bytes{")]
    assert [re.search(r'rank="(\d)"', line)[1] for line in sizes] == ["0", "1"]  # type: ignore[index]
    assert all(float(line.split()[-1]) > 1 << 20 for line in sizes)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, r"rank 1 \(process \d+\) was ended by SIGKILL; the server ends with status 72"),
        (signal.SIGSTOP, r"rank 1 (\(process \d+\) has given no sign of life for 3 s.*|does not answer); the server ends with status 72"),
    ],
)
def test_a_lost_rank_ends_the_server(number: signal.Signals, reason: str, tiny_model: Path, tmp_path: Path) -> None:
    """While a reply is drawn. Nothing is left of either process, also of one that is stopped."""
    with serving(tiny_model, tmp_path / "store", *RANKS, rank_timeout_s=3) as server, Client(server.address) as client:
        (pid,) = ranks_of(server).values()
        pieces = client.stream(PROMPT, max_new_tokens=4000, ignore_eos=True)
        next(iter(pieces))
        os.kill(pid, number)
        with pytest.raises(PolyheadError):
            list(pieces)
        assert server.process.wait(END_S) == EXIT_RANK_LOST
        assert server.reader is not None
        server.reader.join(END_S)
        assert any(re.search(reason, line) for line in server.last_lines), list(server.last_lines)
        assert has_ended(pid)
