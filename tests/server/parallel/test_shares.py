"""A rank's part of a model: what is read of its files, and what is held of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.spec import describe
from polyhead.server.parallel import shares
from polyhead.server.parallel.shares import Share, ShareOfCheckpoint, spec_of_share
from tests.heads.models import save_tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_tiny("llama", tmp_path)
    return Checkpoint.open(tmp_path)


def test_ranks_read_their_own_parts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they have every number of the file, the embedding, norms and outputs each; and none reads more of a layer than its part,
    but for rows of which it takes some columns: those come in small pieces."""
    monkeypatch.setattr(shares, "READ_BYTES", 1000)
    spec, read = describe(checkpoint, 2), []
    rows = Checkpoint.read_rows

    def read_rows(self: Checkpoint, name: str, start: int, stop: int) -> Tensor:
        read.append((name, rows(self, name, start, stop)))
        return read[-1][1]

    monkeypatch.setattr(Checkpoint, "read_rows", read_rows)
    own = [ShareOfCheckpoint.of_whole(checkpoint, Share(rank, 2)) for rank in range(2)]
    share = spec_of_share(spec, 2)
    for name in checkpoint.names:
        whole, parts = checkpoint.read(name), [each.read(name) for each in own]
        assert all(tuple(part.shape) == share.shapes[name] == own[0].info(name).shape for part in parts)
        assert all(torch.equal(part, Share(rank, 2).of(name, whole)) for rank, part in enumerate(parts))
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            assert torch.equal(sum(parts), whole)  # type: ignore[arg-type]
            assert not parts[1].any()
        elif parts[0].shape == whole.shape:
            assert torch.equal(parts[0], whole)
        else:
            assert torch.equal(torch.cat(parts, dim=int(parts[0].shape[0] == whole.shape[0])), whole)
    assert all(part.nbytes <= max(1000, checkpoint.read(name).nbytes // 2) for name, part in read)
    assert len({name for name, _ in read}) == 4 * (7 + 5)  # a layer's weights, and biases of what is cut by outputs


def test_a_share_is_a_smaller_model(checkpoint: Checkpoint) -> None:
    share = spec_of_share(describe(checkpoint, 2), 2)
    assert (share.config.num_attention_heads, share.config.num_key_value_heads, share.config.intermediate_size) == (2, 1, 24)
    assert share.config.head_dim == 8
    assert (share.d_model, share.vocab_size, share.split_layer) == (32, 97, 2)
