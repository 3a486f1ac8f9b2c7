"""Our own layers for the llama-like families, beside transformers' modules and tested against them: a trunk, and heads on it.

`fast_trunk` and `fast_head` return None for families that they do not know; the plain modules serve these. Both take over the modules'
weights. A kit (kits.py) holds and runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model.adapted import Adapter, AdapterRows
from polyhead.heads.model.family import HeadModule, TrunkModule
from polyhead.server.engine.layers.kits import Kit, Rows
from polyhead.server.engine.layers.layer_calls import LayerCall
from polyhead.server.engine.layers.llama import NormWeight, is_known, norm_weight, rotations, take_layers
from polyhead.server.engine.layers.plan import StepPlan


class FastTrunk:
    """ids -> boundary states, called as the TrunkModule that it is made from."""

    def __init__(
        self, trunk: TrunkModule, layers: list[Any], rotations: Tensor, kit: Kit, tied_embedding: nn.Parameter | None = None
    ) -> None:
        """`layers` as the kit packed them; `rotations` (max_context, head_dim / 2), complex: each position's rotation.

        `tied_embedding`: the embedding on the heads' device; None: that is the trunk's.
        """
        self.spec = trunk.spec
        self.embedding = trunk.embedding
        at_heads = self.embedding if tied_embedding is None else tied_embedding
        self._copied_bytes = 0 if at_heads is self.embedding else at_heads.nbytes
        self.tied_output = kit.tied(at_heads.detach()) if self.spec.tied else None  # of tied heads, held once
        self._rotations = rotations
        self._rounded: dict[tuple[torch.dtype, torch.device], Tensor] = {}  # heads share them
        self.stack = kit.stack(layers, self.rotations_at(self.embedding.dtype, self.embedding.device))
        self.tap_layer = 0  # what enters it is kept; 0: nothing

    @property
    def num_bytes(self) -> int:
        """Of its weights as served."""
        held = self._copied_bytes + self.stack.num_bytes + (self.tied_output.num_bytes if self.tied_output else 0)
        return held + self.embedding.numel() * self.embedding.element_size()

    def rotations_at(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The rotations with sines and cosines rounded to `dtype`, as the families' own modules round them."""
        if (dtype, device) not in self._rounded:
            rounded = self._rotations
            if dtype != torch.float32:
                rounded = torch.view_as_complex(torch.view_as_real(self._rotations).to(dtype).float())
            self._rounded[dtype, device] = rounded.to(device)
        return self._rounded[dtype, device]

    def __call__(self, input_ids_1T: Tensor, position_ids_1T: Tensor, *, plan: StepPlan) -> Tensor:
        """(1, T, d_model)."""
        x_TD = embedding(input_ids_1T[0], self.embedding)
        return self.stack.forward(x_TD, position_ids_1T[0], plan, tap=self.tap_layer)[None]


class FastHead:
    """Boundary states -> logits or scalars, called as the HeadModule that it is made from."""

    def __init__(self, head: HeadModule, layers: list[Any], norm: NormWeight, trunk: FastTrunk, kit: Kit, device: torch.device) -> None:
        """`device`: the head's."""
        self.spec, self.output, self.dtype = head.spec, head.output, head.dtype
        self.stack = kit.stack(layers, trunk.rotations_at(head.dtype, device))
        self.norm = kit.norm(*norm)
        self._project, output_bytes = _projection(head, trunk, kit)
        self.num_bytes = self.stack.num_bytes + norm[0].nbytes + output_bytes  # of weights that are not shared

    def __call__(
        self,
        states_1TD: Tensor,
        position_ids_1T: Tensor,
        rows: Tensor,
        *,
        plan: StepPlan,
        parts: Sequence[AdapterRows] = (),
    ) -> Tensor:
        """(rows, vocab) logits or (rows,) scalars; `states` may be overwritten. `parts`: rows of T that adapters own."""
        asked = rows if parts or plan.asked is not None else None
        return self._project(self.norm(self.stack.forward(states_1TD[0], position_ids_1T[0], plan, rows=asked, parts=parts)))


class FastHeadGroup:
    """One base and any adapters on it, run together, called as the HeadGroup of a plain base."""

    def __init__(self, base: FastHead) -> None:
        self._base = base

    def __call__(self, parts: Sequence[AdapterRows], *inputs: Tensor, plan: StepPlan) -> Tensor:
        return self._base(*inputs, plan=plan, parts=parts)


class FastLoraHead:
    """The base with one adapter on every row, called as a head."""

    def __init__(self, base: FastHead, adapter: Adapter) -> None:
        self.spec, self.output, self.dtype = base.spec, base.output, base.dtype
        self._base = base
        self._parts = [AdapterRows(slice(None), adapter)]

    def __call__(self, *inputs: Tensor, plan: StepPlan) -> Tensor:
        return self._base(*inputs, plan=plan, parts=self._parts)


def fast_trunk(
    trunk: TrunkModule, calls: list[LayerCall], max_context: int, kit: Kit, tied_embedding: nn.Parameter | None = None
) -> FastTrunk | None:
    """The same trunk on fast layers, or None. The plain module's layers are emptied. `tied_embedding` as in FastTrunk.

    Layers that are not where the embedding is are moved there one by one: it holds what is packed so far, and one layer as it was.
    """
    if not is_known(trunk.decoder, trunk.spec, calls):
        return None
    device = trunk.embedding.device
    layers = take_layers(trunk.decoder, trunk.spec, calls, 0, kit.layer, device)
    return FastTrunk(trunk, layers, rotations(trunk.decoder, max_context).to(device), kit, tied_embedding)


def fast_head(head: HeadModule, trunk: FastTrunk, kit: Kit, calls: list[LayerCall], device: torch.device) -> FastHead | None:
    """The same head on fast layers, or None. The plain module's layers are emptied.

    `calls` of any head of this trunk: what differs between them is weights. `device`: the head's.
    """
    base = head.decoder if head.score is not None else getattr(head.decoder, head.spec.base)
    if not is_known(base, head.spec, calls):
        return None
    layers = take_layers(base, head.spec, calls, head.spec.split_layer, kit.layer)
    return FastHead(head, layers, norm_weight(getattr(base, head.spec.norm)), trunk, kit, device)


def _projection(head: HeadModule, trunk: FastTrunk, kit: Kit) -> tuple[Callable[[Tensor], Tensor], int]:
    """(rows, d_model) -> (rows, vocab) or (rows,), and the bytes it takes: a tied output is the trunk's own."""
    if head.score is not None:
        weight = head.score.weight.detach().clone()
        score: Rows = kit.score(weight)
        return lambda x_RD: score(x_RD)[:, 0], weight.nbytes
    if head.output is OutputKind.TIED:
        assert trunk.tied_output is not None
        return trunk.tied_output, 0
    own = kit.linear(head.decoder.get_output_embeddings().weight.detach())
    return own, own.num_bytes
