"""The check at load: head(trunk(ids)) equals the unsplit model, on the CPU bit for bit, or the model is refused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model.family import HeadModule, TrunkModule, build_head, named_parameters, set_attention, state_of
from polyhead.heads.model.skeleton import build_skeleton
from polyhead.heads.model.spec import ModelSpec, refusal

_CHECK_TOKENS = 48
# On a GPU, of the norm of the logits: its libraries may choose another kernel for the same product, whose sums round elsewhere. A split
# that is wrong (a layer left out, a multiplier applied twice) is off by a tenth and more.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}

logger = logging.getLogger(__name__)


def check_composition(trunk: TrunkModule, head: HeadModule) -> None:
    """Raise FailedPrecondition unless head(trunk(ids)) equals the unsplit model's logits bit for bit, with plain attention; on a GPU within
    TOLERANCES.

    `head` is a policy head. The unsplit model is assembled from the very same parameters, so nothing is held twice (a head of
    another dtype than the trunk's is copied for the check). Call it before the trunk is quantised and before other threads use
    the parts: their attention is switched for the check. Also checks that keyword arguments of the call reach the attention
    function of every layer, and that no mask does.
    """
    if head.output is OutputKind.SCORE:
        raise InvalidArgument("the composition is checked with a policy head, not a scalar one", field="head")
    spec, device = trunk.spec, trunk.embedding.device
    head = _at_dtype(head, trunk)
    num_tokens = min(_CHECK_TOKENS, spec.context_length)
    ids = torch.randint(0, spec.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.arange(num_tokens, device=device)[None]
    whole = _whole_model(trunk, head)
    with torch.no_grad(), _attention_of(whole.config._attn_implementation, trunk, head):
        composed = head(trunk(ids, positions), positions)
        unsplit = whole(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    if not torch.equal(composed, unsplit):
        _check_difference(spec, composed, unsplit, tolerance(device, unsplit.dtype))
    _check_arguments(trunk, head, ids, positions)


def tolerance(device: torch.device, dtype: torch.dtype) -> float:
    """How far the logits may be apart, as a share of their norm."""
    return 0.0 if device.type == "cpu" else TOLERANCES[dtype]


def _check_difference(spec: ModelSpec, composed: torch.Tensor, unsplit: torch.Tensor, allowed: float) -> None:
    """Of logits that are not the same to the last bit."""
    share = float((composed.float() - unsplit.float()).norm() / unsplit.float().norm())
    if not share < allowed:  # NaN is not, either
        difference = (composed - unsplit).abs().max().item()
        raise refusal(spec.config, f"head(trunk(ids)) differs from the unsplit model, by up to {difference:.3g} in the logits")
    logger.info("head(trunk(ids)) is %.2g of its norm away from the unsplit model: within %.2g, which rounding explains", share, allowed)


def _at_dtype(head: HeadModule, trunk: TrunkModule) -> HeadModule:
    """The head itself, or a copy of it at the trunk's dtype."""
    dtype, device = trunk.embedding.dtype, trunk.embedding.device
    if head.dtype == dtype:
        return head
    return build_head(head.spec, state_of(head), head.output, trunk.embedding, dtype, device)


def _whole_model(trunk: TrunkModule, head: HeadModule) -> PreTrainedModel:
    """The unsplit ForCausalLM whose parameters are those of the parts."""
    spec = trunk.spec
    model = build_skeleton(spec.config)
    lower = {f"{spec.base}.{name}": parameter for name, parameter in trunk.decoder.named_parameters()}
    model.load_state_dict(lower | named_parameters(head), strict=True, assign=True)
    return cast(PreTrainedModel, model.to(trunk.embedding.device))


@contextlib.contextmanager
def _attention_of(name: str, *parts: TrunkModule | HeadModule) -> Iterator[None]:
    before = [part.decoder.config._attn_implementation for part in parts]
    for part in parts:
        set_attention(part, name)
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            set_attention(part, old)


@dataclass
class _Probe:
    """What the attention function saw in one call."""

    layers: list[int] = field(default_factory=list)  # layer_idx in call order
    has_mask: bool = False
    arguments: set[str] = field(default_factory=set)


def _check_arguments(trunk: TrunkModule, head: HeadModule, ids: torch.Tensor, positions: torch.Tensor) -> None:
    probes = _Probe(), _Probe()
    with torch.no_grad(), _attention_of("polyhead_probe", trunk, head):
        states = trunk(ids, positions, probe=probes[0])
        head(states, positions, rows=positions[0, -1:], probe=probes[1])
    for probe, count in zip(probes, (trunk.spec.split_layer, trunk.spec.num_head_layers), strict=True):
        if probe.layers != list(range(count)):
            raise refusal(trunk.spec.config, "the family does not pass attention arguments on to its attention function")
        if probe.has_mask:
            raise refusal(trunk.spec.config, "the family builds an attention mask that was not asked for")


def _probe_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that answers zeros and notes what it was given."""
    probe = arguments.pop("probe", None)
    if isinstance(probe, _Probe):
        probe.layers.append(cast(int, module.layer_idx))
        probe.has_mask |= attention_mask is not None
        probe.arguments |= {name for name, argument in arguments.items() if argument is not None}
    batch, num_heads, num_tokens, _ = query.shape
    return query.new_zeros(batch, num_tokens, num_heads, value.shape[-1]), None


AttentionInterface.register("polyhead_probe", _probe_attention)
