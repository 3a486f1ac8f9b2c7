"""Trunk and head as modules: outputs of each kind, tensors by name, what they share and what they leave alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model import family, skeleton
from polyhead.heads.model import spec as spec_module
from polyhead.heads.model.checkpoint import Checkpoint
from tests.heads.model.splits import F32, LENGTH, Split, assert_composes, policy_head, positions, split_tiny
from tests.heads.models import FAMILIES, VOCAB, random_ids, save_tiny, tiny_config


def test_rows_ask_for_few_logits(tmp_path: Path) -> None:
    split = split_tiny("gemma2", tmp_path)
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions())
        everything = split.head(states, positions())
        some = split.head(states, positions(), rows=torch.tensor([39, 0, 7]))
        none = split.head(states, positions(), rows=torch.tensor([], dtype=torch.long))
    torch.testing.assert_close(some, everything[[39, 0, 7]], rtol=0, atol=1e-6)
    assert none.shape == (0, VOCAB)


@pytest.mark.parametrize("name", ["llama", "granite", "gpt_neox", "gemma3_text"])
def test_score_head(name: str, tmp_path: Path) -> None:
    """A scalar head reads `score` off the normed state, one scalar per asked row."""
    split = split_tiny(name, tmp_path)
    tensors = family.initial_head(split.checkpoint, split.spec, OutputKind.SCORE)
    assert not tensors["score.weight"].any()
    tensors["score.weight"] = torch.randn(1, split.spec.d_model, generator=torch.Generator().manual_seed(3))
    head = family.build_head(split.spec, tensors, OutputKind.SCORE, None, F32)
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions())
        scalars = head(states, positions())
        hidden = getattr(split.whole, split.spec.base)(random_ids(LENGTH), use_cache=False).last_hidden_state[0]
        assert torch.equal(scalars, nn.functional.linear(hidden, tensors["score.weight"])[:, 0])
        torch.testing.assert_close(head(states, positions(), rows=torch.tensor([5])), scalars[5:6], rtol=1e-5, atol=1e-5)
    assert set(family.state_of(head)) == set(tensors)


def test_tied_head_shares_the_embedding_and_stores_nothing(tmp_path: Path) -> None:
    """Training a tied head must never move the trunk."""
    split = split_tiny("llama", tmp_path, tie_word_embeddings=True)
    assert split.spec.tied
    assert split.head.decoder.lm_head.weight is split.trunk.embedding
    own = family.trainable_parameters(split.head)
    assert all(parameter is not split.trunk.embedding for parameter in own.values())
    assert set(own) == set(split.spec.head_schema(OutputKind.TIED)) == set(family.state_of(split.head))
    before = split.trunk.embedding.detach().clone()
    for parameter in own.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions())
    split.head(states, positions()).logsumexp(-1).sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in own.values())
    assert split.trunk.embedding.grad is None
    assert torch.equal(split.trunk.embedding, before)


def test_own_output_for_a_tied_model(tmp_path: Path) -> None:
    split = split_tiny("gemma", tmp_path)
    tensors = family.initial_head(split.checkpoint, split.spec, OutputKind.OWN)
    head = family.build_head(split.spec, tensors, OutputKind.OWN, None, F32)
    assert head.decoder.lm_head.weight is not split.trunk.embedding
    assert_composes(Split(split.whole, split.checkpoint, split.spec, split.trunk, head))


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_one_skeleton_share_nothing(name: str, tmp_path: Path) -> None:
    """Two heads from one skeleton, the first one damaged: the second composes bit for bit, and the skeleton has no weights still."""
    split = split_tiny(name, tmp_path)
    output, embedding = (OutputKind.TIED, split.trunk.embedding) if split.spec.tied else (OutputKind.OWN, None)
    tensors, skeleton = family.initial_head(split.checkpoint, split.spec, output), family.head_skeleton(split.spec)
    first = family.build_head(split.spec, tensors, output, embedding, F32, skeleton=skeleton)
    first.decoder.config.num_hidden_layers = 1
    first.to_empty(device="meta")
    head = family.build_head(split.spec, tensors, output, embedding, F32, skeleton=skeleton)
    assert_composes(Split(split.whole, split.checkpoint, split.spec, split.trunk, head))
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_an_untied_model_has_no_tied_heads(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    with pytest.raises(FailedPrecondition, match="output is not its embedding"):
        split.spec.head_schema(OutputKind.TIED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks 1 tensors, the first is 'model.norm.weight'"),
        (lambda tensors: tensors.update({"model.layers.0.x": torch.zeros(1)}), "not a tensor of a head.*model.layers.0.x"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
            r"norm.weight must have shape \(32,\), not \(3,\)",
        ),
    ],
)
def test_wrong_tensors_are_named(change: Callable[[dict[str, torch.Tensor]], object], message: str, tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    tensors = family.initial_head(split.checkpoint, split.spec, OutputKind.OWN)
    change(tensors)
    with pytest.raises(InvalidArgument, match=message):
        family.build_head(split.spec, tensors, OutputKind.OWN, None, F32)


def test_head_names_are_global(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path, 3)
    layers = {int(name.split(".")[2]) for name in family.state_of(split.head) if ".layers." in name}
    assert layers == {3}
    assert set(family.state_of(split.head)) <= set(split.whole.state_dict())


def test_nothing_is_left_of_what_a_part_does_not_need(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    total = sum(parameter.numel() for parameter in split.whole.parameters())
    parts = [*split.trunk.parameters(), *split.head.parameters()]
    assert sum(parameter.numel() for parameter in parts) == total
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in parts)
    assert not any(buffer.is_meta for part in (split.trunk, split.head) for buffer in part.buffers())


def test_a_skeleton_of_a_big_model_allocates_next_to_nothing() -> None:
    import psutil

    config = tiny_config(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=4, num_attention_heads=64, vocab_size=128256
    )
    before = psutil.Process().memory_info().rss
    model = skeleton.build_skeleton(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 5e9
    assert psutil.Process().memory_info().rss - before < 100e6


def test_other_threads_make_real_parameters_while_a_skeleton_is_built() -> None:
    """The patch that sends parameters to the meta device is global; it must only act in the thread that builds."""
    stop, devices, are_drawn = threading.Event(), set(), set()

    def make_modules() -> None:
        while not stop.is_set():
            weight = nn.Linear(4, 64).weight
            devices.add(weight.device.type)
            are_drawn.add(bool(0.0 < weight.abs().max() <= 0.5))

    thread = threading.Thread(target=make_modules)
    thread.start()
    for _ in range(5):
        skeleton.build_skeleton(tiny_config("llama"))
    stop.set()
    thread.join()
    assert devices == {"cpu"}
    assert are_drawn == {True}


def test_the_part_does_not_write_to_the_checkpoints_config(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    before = copy.deepcopy(checkpoint.config.to_dict())
    spec = spec_module.describe(checkpoint, 2)
    trunk = family.build_trunk(checkpoint, spec, F32)
    policy_head(checkpoint, spec, trunk)
    assert checkpoint.config.to_dict() == before
