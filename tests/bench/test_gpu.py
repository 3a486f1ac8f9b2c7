"""`polyhead bench-gpu` where there is no GPU: the whole command on a tiny shape, and that it notices what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from polyhead.client.bench.gpu import command, large, models, run
from polyhead.client.bench.gpu.driver import Driver, Rollout
from polyhead.client.bench.gpu.measures import step_bytes
from polyhead.client.bench.gpu.models import LLAMA_8B, LLAMA_70B, TINY, RandomEngine, RandomWeights, num_served_bytes, random_engine
from polyhead.client.bench.gpu.work import PLANS, SEED, config_for
from polyhead.client.bench.report import block
from polyhead.server.engine import build
from polyhead.server.engine.build import KvSetup, kit_for
from polyhead.server.engine.layers.cuda.graphs import StepGraphs
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention
from polyhead.server.engine.layers.fast import FastTrunk
from polyhead.server.engine.layers.linears import Quantization
from polyhead.server.engine.layers.torch.attention import TorchAttention
from polyhead.server.engine.work.batch import HeadRun, TrunkRun
from polyhead.server.engine.work.sequence import TokenSequence
from tests.e2e.forked import finished

COMMAND = [sys.executable, "-m", "polyhead.client.cli.main", "bench-gpu"]
CPU = torch.device("cpu")
SIZES = PLANS["tiny"]
QUANTIZATIONS = get_args(Quantization)


def test_the_whole_command_on_a_tiny_shape(tmp_path: Path) -> None:
    """Every measure has numbers, in the table and in the JSON; exactness is among the checks, and met."""
    file = tmp_path / "gpu.json"
    arguments = ["--shape", "tiny", "--device", "cpu", "--runs", "1", "--json", str(file)]
    done = finished([*COMMAND, *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(file.read_text(encoding="utf-8")) == result
    assert result.keys() == {"shape", "device", "runs", "versions", "rows"}
    rows = {row["id"]: row for row in result["rows"]}
    assert list(rows) == [
        *("G1 float32", "G1 int8", "G1 fp8", "G1 bfloat16"),
        *(f"{measure} {streams}" for streams in (1, 3) for measure in ("G2", "G3")),
        *("G4", "G5"),
        *(f"{measure} {held} {streams}" for held in ("int8", "fp8") for streams in (1, 3) for measure in ("G2", "G3")),
        "G6",
    ]
    for name, row in rows.items():
        assert row["series"], name
        assert all(series["values"] for series in row["series"]), row
    assert [len(rows[name]["checks"]) for name in ("G1 float32", "G1 bfloat16")] == [3, 2]
    assert all(check["is_met"] for row in rows.values() for check in row["checks"])
    assert [series["name"] for series in rows["G2 1"]["series"]] == ["polyhead", "transformers generate", "transformers generate_batch"]
    assert {note.split(":")[0] for note in rows["G6"]["notes"]} >= {*models.ROLES, "trunk", "caches, beside these"}
    assert "| G1 float32 | log-probs against transformers" in done.stdout


def spoil_trunk(ours: RandomEngine) -> None:
    assert isinstance(ours.engine.trunk.module, FastTrunk)
    ours.engine.trunk.module.stack.layers[0].norm.weight.mul_(1.5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_weight_is_noticed(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One norm of ours is off: the log-probs differ beyond transformers' own rounding, and the command says so by its exit status."""

    def spoiled(shape: Any, weights: RandomWeights, config: Any) -> RandomEngine:
        ours = random_engine(shape, weights, config)
        if weights.dtype == dtype:
            spoil_trunk(ours)
        return ours

    monkeypatch.setattr(run, "random_engine", spoiled)
    monkeypatch.setattr(run, "large_split", lambda sizes, device: skipped("G6"))
    monkeypatch.setattr(run, "eight_bit_decoding", lambda *arguments: [])
    for name in ("decoding", "experience", "swaps"):
        monkeypatch.setattr(run, name, lambda *arguments: [] if len(arguments) == 2 else skipped("G"))
    shown: list[str] = []
    assert run.run(SIZES, "cpu", 1, None, lambda text: None, shown.append) == 1
    result = json.loads(shown[-1])
    rows = {row["id"]: row for row in result["rows"]}
    broken, sound = ("float32", "bfloat16") if dtype == torch.float32 else ("bfloat16", "float32")
    assert rows[f"G1 {broken}"]["checks"][0]["is_met"] is False
    assert all(check["is_met"] for check in rows[f"G1 {sound}"]["checks"])


def skipped(name: str) -> run.Row:
    return run.Row(name, "left out", "", True, is_contest=False)


def test_a_measure_that_fails_is_a_row_that_says_so() -> None:
    def measure() -> list[run.Row]:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    [row] = run.guarded("G4", measure)
    assert "could not be measured" in block(row)
    assert "CUDA out of memory" in block(row)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "9b"], "no such shape: 9b"),
        (["--shape", "8b", "--device", "cpu"], "only --shape tiny runs without a GPU"),
        pytest.param([], "there is no CUDA here", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], said: str) -> None:
    done = finished([*COMMAND, *arguments])
    assert done.returncode == 2
    assert said in done.stderr


def test_old_versions_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "version", lambda package: {"torch": "2.12.0+cu128", "transformers": "5.9.1"}[package])
    assert command.obstacle("tiny", "cpu") == "transformers 5.17 or newer is needed: 5.9.1"


def test_a_large_split_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not begun where it does not fit; and the 70B-shaped one fits a card of 139 GiB, with its caches."""
    monkeypatch.setattr(large, "free_bytes", lambda device: 1000)
    row = large.large_split(SIZES, CPU)
    assert not row.series
    assert "are needed" in block(row)
    sizes = PLANS["8b"]
    few = replace(sizes, streams=(sizes.large_streams,), batch_prompts=8, prompt_tokens=32, num_tokens=32)
    config = replace(config_for(LLAMA_70B, few, torch.bfloat16), trunk_quantization="int8", head_quantization="int8")
    needed = large.large_bytes(LLAMA_70B, config, torch.bfloat16, CPU)
    assert 118 << 30 < needed < (139 << 30) * (1 - large.SPARE)


@pytest.mark.parametrize("held", QUANTIZATIONS)
def test_what_is_predicted_is_what_is_served(held: Quantization) -> None:
    config = replace(config_for(TINY, SIZES, torch.bfloat16), trunk_quantization=held, head_quantization=held)
    ours = random_engine(TINY, RandomWeights(SEED, 0.2, torch.bfloat16, CPU), config)
    kit = kit_for(held, config, KvSetup(ours.engine.trunk.cache.kv.shape, TorchAttention()))
    served = ours.engine.trunk.num_bytes + sum(head.live.num_bytes for head in ours.roles().values())
    assert num_served_bytes(ours.spec, kit, torch.bfloat16, 3, 2) == served


def test_no_float_copy_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a trunk and a head are made, one layer has numbers and the others are shapes."""
    filled: list[int] = []
    filler = models._filler

    def counted(layers: Any, *given: Any) -> Any:
        fill_next = filler(layers, *given)

        def count(num_received: int = 0) -> None:
            fill_next(num_received)
            filled.append(sum(not layer.mlp.up_proj.weight.is_meta for layer in layers))

        return count

    monkeypatch.setattr(models, "_filler", counted)
    config = replace(config_for(TINY, SIZES, torch.bfloat16), trunk_quantization="int8", head_quantization="int8")
    ours = random_engine(TINY, RandomWeights(SEED, 0.2, torch.bfloat16, CPU), config)
    ours.roles()
    assert filled[: TINY.split_layer] == [1, 1, 1, 0]
    assert max(filled) <= 1


def test_the_bytes_of_a_step() -> None:
    """8B: every layer of trunk and policy, the output, and 128 KiB of keys and values for each token before."""
    assert 2 * LLAMA_8B.num_layers * LLAMA_8B.num_kv_heads * LLAMA_8B.head_dim * 2 == 128 << 10
    config = config_for(TINY, SIZES, torch.float32)
    ours = random_engine(TINY, RandomWeights(SEED, 0.2, torch.float32, CPU), config)
    with Driver(ours.engine, ours.roles()):
        shapes = [shape for name, shape in ours.spec.shapes.items() if name != ours.spec.embedding_name]
        weights = 4 * sum(torch.Size(shape).numel() for shape in shapes)
        assert step_bytes(ours, 3, 10) == weights + 3 * 10 * TINY.num_layers * 2 * TINY.num_kv_heads * TINY.head_dim * 4


def test_gaps_are_those_of_full_steps() -> None:
    """A step that drew for some streams only, beside a prefill or an end, is no decode step of all."""
    rollout = Rollout(drawn=[(0.0, 1), (1.0, 2), (3.0, 2), (4.0, 2), (9.0, 1), (10.0, 2)])
    assert rollout.gaps(2) == [2.0, 1.0]
    assert rollout.step_seconds(2) == 1.5


def empty_kernel(queries: Tensor, *others: Any, **named: Any) -> Tensor:
    return torch.empty_like(queries)


class Again:
    """Stands for a CUDA graph."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self.output = compute()

    def replay(self) -> None:
        self.output.copy_(self._compute())


@pytest.mark.parametrize("held", QUANTIZATIONS)
@pytest.mark.parametrize(
    "kernel", [None, VarlenAttention(empty_kernel), VarlenAttention(empty_kernel, is_paged=True)], ids=["own", "gathered", "paged"]
)
def test_a_step_reads_nothing_back_from_the_device(
    kernel: VarlenAttention | None, held: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without numbers: reading one there, which a GPU would be waited for and no graph can hold, raises. So do most
    operations on tensors of two devices."""
    device = torch.device("meta")
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(RandomWeights, "tensor", lambda made, name, shape: torch.empty(shape, dtype=made.dtype, device=made.device))
    monkeypatch.setattr(build, "working_varlen", lambda *_: kernel)
    if kernel is not None and kernel.is_paged:
        monkeypatch.setattr(build, "step_graphs", lambda cache, attention, max_tokens: StepGraphs(cache, attention, max_tokens, Again))
    config = replace(config_for(TINY, SIZES, torch.bfloat16), trunk_quantization=held, head_quantization=held)
    ours = random_engine(TINY, RandomWeights(SEED, 0.2, torch.bfloat16, device), config)
    roles, engine = ours.roles(), ours.engine
    for spans in ([(0, 5), (0, 20), (3, 4)], [(4, 5), (16, 17), (3, 4)]):
        texts = [TokenSequence(list(range(40))) for _ in spans]
        for number, text in enumerate(texts):
            text.blocks = [SimpleNamespace(slot=2 * number + each) for each in (1, 2)]  # type: ignore[misc]
        engine.trunk.forward([TrunkRun(text, start, end) for text, (start, end) in zip(texts, spans, strict=True)])
        for name in ("policy", "value"):
            live = roles[name].live
            head: Any = SimpleNamespace(live=live)
            pairs = zip(texts, spans, strict=True)
            readings: Any = [SimpleNamespace(sequence=text, head=head, head_blocks=text.blocks, first=end - 1) for text, (_, end) in pairs]
            runs = [HeadRun(reading, start, end, start) for reading, (start, end) in zip(readings, spans, strict=True)]
            rows = engine.heads.forward(live, runs)
            assert (rows.device, rows.dtype, len(rows)) == (device, torch.float32, 3)
    graphs = engine.heads.graphs
    assert (graphs.num_replayed if graphs else 0) == (2 if kernel is not None and kernel.is_paged else 0)
