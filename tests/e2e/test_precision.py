"""Servers that hold weights in int8 or compute deterministically, through the public client; what cannot be is refused at the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polyhead.client import Client
from polyhead.heads.training.remote import pull_module, weights_of
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.verify import verify
from tests.e2e.forked import COMMAND, finished
from tests.e2e.support import PROMPT, constant_policy, fresh_salt, serving

PROMPTS = [PROMPT, [1, 90, 91], [1, *range(20, 90)], [1, *range(40, 60)]]


def drawn(client: Client, prompts: list[list[int]], heads: list[str]) -> list[tuple[list[int], list[float], list[float]]]:
    samples = client.generate(prompts, max_new_tokens=12, seed=7, ignore_eos=True, score=heads, cache_salt=fresh_salt())
    return [(list(each.token_ids), list(each.logprobs), list(each.scores["reference"].logprobs)) for each in samples]


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("int8", "int8"), ("int8", "float32"), ("float32", "int8")])
def test_the_same_bits_through_grpc(dtypes: tuple[str, str], tied_model: Path, tmp_path: Path) -> None:
    """Together, in another order and alone; drawn, scored while drawing, and scored from nothing."""
    flags = ("--trunk-dtype", dtypes[0], "--head-dtype", dtypes[1], "--deterministic")
    with serving(tied_model, tmp_path / "store", *flags) as server, Client(server.address, timeout=60) as client:
        assert client.trunk().precision == dtypes[0]
        wanted = drawn(client, PROMPTS, ["reference"])
        assert wanted == drawn(client, PROMPTS, ["reference"])
        for _, logprobs, scored in wanted:
            assert scored == logprobs
        pairs = [(prompt, ids) for prompt, (ids, _, _) in zip(PROMPTS, wanted, strict=True)]
        for order in (pairs, pairs[::-1], pairs[:1]):
            items = client.score(order, heads=["reference"], cache_salt=fresh_salt())
            by_ids = {tuple(ids): logprobs for ids, logprobs, _ in wanted}
            assert [list(item.scores["reference"].logprobs) for item in items] == [by_ids[tuple(ids)] for _, ids in order]


@pytest.mark.parametrize("output", ["", "float32"])
def test_the_outputs_precision_is_told_and_kept_by_pushes(output: str, tied_model: Path, tmp_path: Path) -> None:
    """An int8 trunk with float32 heads and output: the trainer's own module and the server agree. Without, they are apart."""
    flags = ("--trunk-dtype", "int8", *(("--output-dtype", output) if output else ()))
    with serving(tied_model, tmp_path / "store", *flags) as server, Client(server.address, timeout=60) as client:
        trunk = client.trunk()
        assert (trunk.precision, trunk.head_precision, trunk.output_precision) == ("int8", "float32", output or "int8")
        head = pull_module(client, "policy")
        version = client.push_head("policy", weights_of(head), kind="policy")
        gap = verify(client, head, f"policy@{version}", [(PROMPT, [90, 91, 92, 93])], StateStore(client, tmp_path))
        assert gap < 1e-4 if output else gap > 1e-3


def test_a_head_is_pushed_and_swapped_in_int8(tiny_model: Path, tmp_path: Path) -> None:
    """What is stored is what was pushed, in float32: int8 is how it is held in memory."""
    flags = ("--trunk-dtype", "int8", "--head-dtype", "int8")
    with serving(tiny_model, tmp_path / "store", *flags) as server, Client(server.address, timeout=60) as client:
        before = client.generate([PROMPT], temperature=0.0, max_new_tokens=4)[0]
        tensors = constant_policy(client, 103)
        version = client.push_head("policy", tensors, kind="policy")
        client.activate({"policy": version})
        after = client.generate([PROMPT], temperature=0.0, max_new_tokens=4)[0]
        assert list(after.token_ids) == [103] * 4 != list(before.token_ids)
        pulled = client.pull_head(f"policy@{version}")
        assert {name: tensor.shape for name, tensor in pulled.items()} == {name: tensor.shape for name, tensor in tensors.items()}
        assert all((pulled[name] == tensor).all() for name, tensor in tensors.items())


@pytest.mark.parametrize("flags", [("--trunk-dtype", "int8"), ("--head-dtype", "int8"), ("--deterministic",)])
def test_plain_layers_refuse_what_they_cannot_do(flags: tuple[str, ...], tiny_model: Path, tmp_path: Path) -> None:
    done = refused(tiny_model, tmp_path, "--layers", "plain", *flags)
    assert "needs our own layers" in done.stderr
    assert flags[0].strip("-").replace("-", "_") in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--device", "cuda"), f"torch {torch.__version__} finds no CUDA device that it can use"),
        (("--trunk-dtype", "fp8", "--head-dtype", "fp8"), "trunk_dtype fp8 needs a GPU"),
        (("--head-dtype", "fp8"), "head_dtype fp8 needs a GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(flags: tuple[str, ...], said: str, tiny_model: Path, tmp_path: Path) -> None:
    done = refused(tiny_model, tmp_path, *flags)
    assert f"error: {said}" in done.stderr
    assert "Traceback" not in done.stderr


def refused(model: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A start that must not come about."""
    done = finished([sys.executable, "-m", COMMAND, "serve", str(model), "--store", str(folder / "s"), *flags])
    assert done.returncode == 2
    return done
