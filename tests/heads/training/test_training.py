"""Training on boundary states: texts packed end to end give each text its own numbers, and a step moves the head alone."""

from __future__ import annotations

from pathlib import Path

import torch

from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import HeadModule, TrunkModule, build_head, build_trunk, initial_head, trainable_parameters
from polyhead.heads.model.spec import describe, describe_config
from polyhead.heads.training.packing import Text, pack
from polyhead.heads.training.policy import reply_loss
from tests.heads.models import save_tiny


def parts(folder: Path) -> tuple[TrunkModule, HeadModule]:
    save_tiny("llama", folder, tie_word_embeddings=True)
    checkpoint = Checkpoint.open(folder)
    spec = describe(checkpoint, 2)
    trunk = build_trunk(checkpoint, spec, torch.float32)
    return trunk, build_head(spec, initial_head(checkpoint, spec, OutputKind.TIED), OutputKind.TIED, trunk.embedding, torch.float32)


def texts(trunk: TrunkModule) -> list[Text]:
    rows = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26]]
    with torch.no_grad():
        return [Text(row, trunk(torch.tensor([row]), torch.arange(len(row))[None])[0], num_prompt=2) for row in rows]


def test_packed_texts_do_not_see_each_other(tmp_path: Path) -> None:
    trunk, head = parts(tmp_path)
    alone = torch.cat([head(text.states_TD[None], torch.arange(len(text.token_ids))[None]) for text in texts(trunk)])
    packed = pack(texts(trunk))
    together = head(packed.states_1TD, packed.positions_1T, attention_mask=packed.mask_11TT)
    assert torch.allclose(together, alone, atol=1e-4)
    assert packed.next_tokens.tolist() == [7, 8, 9, 12, 22, 23, 24, 25, 26]
    assert packed.next_token_rows.tolist() == [1, 2, 3, 6, 9, 10, 11, 12, 13]
    assert packed.last_rows.tolist() == [4, 7, 14]


def test_a_step_moves_the_head_and_never_the_tied_embedding(tmp_path: Path) -> None:
    """trlx had this bug for a year: training a tied output moved the shared embedding."""
    trunk, head = parts(tmp_path)
    before = trunk.embedding.clone()
    for parameter in trainable_parameters(head).values():
        parameter.requires_grad_(True)
    packed = pack(texts(trunk))
    optimizer = torch.optim.SGD(trainable_parameters(head).values(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = reply_loss(head, packed)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(trunk.embedding, before)
    assert trunk.embedding.grad is None


def test_a_spec_from_the_config_alone_equals_the_checkpoints(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, tie_word_embeddings=True)
    checkpoint = Checkpoint.open(tmp_path)
    known, remote = describe(checkpoint, 2), describe_config(checkpoint.config, 2, tied=True)
    assert remote.head_schema(OutputKind.TIED) == known.head_schema(OutputKind.TIED)
    assert remote.head_schema(OutputKind.SCORE) == known.head_schema(OutputKind.SCORE)
