"""A trunk that becomes 8 bits on a device is never there whole in 16: bytes are counted, on the meta device, which holds none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyhead.heads.model.family import build_trunk
from polyhead.server.engine import build
from polyhead.server.engine.layers.fast import FastTrunk, fast_trunk
from polyhead.server.engine.layers.layer_calls import layer_calls
from polyhead.server.versions.head_loader import QUANTIZING_BYTES
from tests.heads.models import save_tiny
from tests.server.engine.harness import described

META = torch.device("meta")
NUM_LAYERS, WIDTH, INNER = 8, 64, 192


class Peak(TorchDispatchMode):
    """The most bytes that were on the meta device at once."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            is_emptied = func._schema.name == "aten::empty_like"  # a layer's parameters, once it is packed: on a GPU nothing
            if isinstance(made, Tensor) and made.device == META and not is_emptied:
                storage = made.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        self.num_bytes = max(self.num_bytes, sum(num_bytes for _, num_bytes in self._alive.values()))
        return result


def test_the_peak_is_what_is_packed_and_one_layer(tmp_path: Path) -> None:
    """A 70B trunk of 112 GB in bfloat16 had to be on the card before its 56 GB of int8 were."""
    save_tiny("mistral", tmp_path, num_hidden_layers=NUM_LAYERS + 1, hidden_size=WIDTH, intermediate_size=INNER)
    trunk = build_trunk(*described(tmp_path, NUM_LAYERS), torch.bfloat16)
    calls = layer_calls(trunk, WIDTH)
    with Peak() as peak:
        trunk.decoder.get_input_embeddings().to(META)
        kit = build.torch_kit("int8", META, torch.bfloat16)
        packed = fast_trunk(trunk, calls, 16, kit)
    assert isinstance(packed, FastTrunk)
    assert all(parameter.device == META for parameter in trunk.decoder.layers.parameters()), "what was packed is nowhere else"
    layer_numbers = sum(parameter.numel() for parameter in trunk.decoder.layers[0].parameters())
    allowed = packed.num_bytes + 2 * layer_numbers + QUANTIZING_BYTES * 2 * WIDTH * INNER
    assert peak.num_bytes <= allowed < 2 * NUM_LAYERS * layer_numbers, "less than the trunk whole in bfloat16"
