"""What trainers hold, sorted into what a head file needs. Knows names, shapes and hashes; sends nothing.

given name                                   sent as
module._orig_mod.model.layers.24.mlp...      model.layers.24.mlp...       wrappers' names are dropped, anywhere
pretrained_model.model.layers.24...          model.layers.24...           TRL's value-head model
layers.24.mlp...                             model.layers.24.mlp...       with or without the base model's prefix
v_head.summary.weight, value_head.weight     score.weight                 for kinds preference and value
v_head.summary.bias, value_head.bias         (head.json's bias)           subtracted there, so with the other sign
embed_out.weight                             lm_head.weight               gpt_neox
model.embed_tokens.weight, model.layers.0... (compared by hash)           the trunk's: a changed one refuses the push
lm_head.weight of a tied model               (dropped)                    if it is the trunk's embedding
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from polyhead.client.errors import FailedPrecondition, InvalidArgument
from polyhead.client.results.records import TrunkInfo
from polyhead.client.results.results import HeadKind
from polyhead.client.weights.folders import read_folder
from polyhead.client.weights.model_class import is_module, tensors_of
from polyhead.client.weights.names import LM_HEAD, SCORE, SCORE_BIAS, TensorNames
from polyhead.client.weights.tensors import ITEM_SIZE, Source, as_source, to_float32
from polyhead.client.weights.trunk_check import compare_with_trunk, is_trunk_embedding

__all__ = ["Module", "SortedWeights", "Weights", "collect", "guess_kind", "sort_weights"]


class Module(Protocol):
    """A torch module, a PEFT model, or what wraps one."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Its tensors by name."""


Weights = Mapping[str, Any] | Iterable[tuple[str, Any]] | str | os.PathLike[str] | Module
_FORMS = "a folder, a torch module, a mapping of names to tensors or (name, tensor) pairs"


@dataclass(slots=True)
class SortedWeights:
    """Every given tensor ends in exactly one of `tensors`, `ignored`."""

    tensors: dict[str, Source] = field(default_factory=dict)  # what is sent, under its standard name
    converted: dict[str, str] = field(default_factory=dict)  # given name -> standard name, where they differ
    ignored: dict[str, str] = field(default_factory=dict)  # given name -> why
    missing: list[str] = field(default_factory=list)
    trunk_sha256: dict[str, str] = field(default_factory=dict)  # of trunk tensors that were given and are unchanged
    output_bias: float | None = None  # what the scalar output adds; None if it has no bias


def collect(weights: Weights) -> dict[str, Source]:
    """A mapping, an iterator of (name, tensor), a module, or a folder. Raises TypeError, or FailedPrecondition for a sharded tensor."""
    if isinstance(weights, (str, os.PathLike)):
        folder = Path(weights)
        if not folder.is_dir():
            raise InvalidArgument(f"no such folder: {folder}", field="weights")
        return read_folder(folder)
    found: dict[str, Source] = {}
    for name, value in _pairs(weights):
        if name in found:
            raise InvalidArgument(f"weights hold two tensors of one name: {name!r}", field="weights")
        found[name] = as_source(name, value)
    if not found:
        raise InvalidArgument("weights are empty", field="weights")
    return found


def _pairs(weights: Weights) -> Iterator[tuple[str, Any]]:
    if is_module(weights):
        weights = tensors_of(weights)
    if isinstance(weights, Mapping):
        weights = weights.items()
    if not isinstance(weights, Iterable):
        raise TypeError(f"weights must be {_FORMS}: {type(weights).__name__}")
    for pair in weights:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"weights must be {_FORMS}: an iterable of {type(pair).__name__}\nhint: model.named_parameters() has the names")
        yield pair


def guess_kind(given: Iterable[str]) -> HeadKind:
    """POLICY if nothing looks like a scalar output; otherwise InvalidArgument: preference and value look the same."""
    if any(TensorNames.is_score(name) for name in given):
        raise InvalidArgument('the weights have a scalar output: give kind="preference" or kind="value"', field="kind")
    return HeadKind.POLICY


def sort_weights(given: Mapping[str, Source], trunk: TrunkInfo, kind: HeadKind, *, may_miss: bool = False) -> SortedWeights:
    """Decide for each tensor whether it is sent, compared or left out.

    Raises FailedPrecondition for a changed trunk tensor, a wrong shape or dtype, an output of another kind or an adapter;
    InvalidArgument for a missing tensor (unless `may_miss`) and for two tensors that go by one name.
    """
    names = TensorNames(trunk)
    standard = {name: names.standard(name) for name in given}
    _refuse_adapters(given)
    _check_output(standard, kind)
    found = SortedWeights()
    compare_with_trunk(
        {name: given[name] for name in given if standard[name] in trunk.tensors},
        standard,
        trunk,
        found.trunk_sha256,
        found.ignored,
    )
    for name, source in given.items():
        if name not in found.ignored:
            _place(name, standard[name], source, given, trunk, kind, found)
    _check_tensors(found, trunk)
    found.missing = sorted(_expected(trunk, kind) - found.tensors.keys())
    if found.missing and not may_miss:
        raise InvalidArgument(_missing_message(found), field="weights")
    return found


def _place(
    name: str,
    standard: str,
    source: Source,
    given: Mapping[str, Source],
    trunk: TrunkInfo,
    kind: HeadKind,
    found: SortedWeights,
) -> None:
    if standard in (SCORE, SCORE_BIAS) and kind.has_logits:
        found.ignored[name] = f"a {kind.value} head has no scalar output"
    elif standard == SCORE_BIAS:
        found.output_bias = _bias(name, source)
        found.ignored[name] = f"kept beside the file: bias {0.0 - found.output_bias:g}"
    elif standard == LM_HEAD and not kind.has_logits:
        found.ignored[name] = f"a {kind.value} head has no vocabulary output"
    elif standard == LM_HEAD and trunk.tied and is_trunk_embedding(source, given, trunk):
        found.ignored[name] = "tied: it is the trunk's embedding"
    elif standard in trunk.head_tensors or standard in (LM_HEAD, SCORE):
        _use(name, standard, source, found)
    else:
        found.ignored[name] = "not a tensor of a head"


def _use(name: str, standard: str, source: Source, found: SortedWeights) -> None:
    if standard in found.tensors:
        other = next((given for given, used in found.converted.items() if used == standard), standard)
        raise InvalidArgument(f"two of the weights have the name {standard!r}: {other!r} and {name!r}", field="weights")
    found.tensors[standard] = source
    if name != standard:
        found.converted[name] = standard


def _expected(trunk: TrunkInfo, kind: HeadKind) -> set[str]:
    output = {SCORE} if not kind.has_logits else set() if trunk.tied else {LM_HEAD}
    return set(trunk.head_tensors) | output


def _check_tensors(found: SortedWeights, trunk: TrunkInfo) -> None:
    for name, source in found.tensors.items():
        if source.dtype not in ITEM_SIZE:
            raise FailedPrecondition(
                f"{name} has a dtype that heads cannot be stored in: {source.dtype}\n"
                "hint: convert to float32, bfloat16 or float16",
                field=name,
            )
        expected = (1, trunk.d_model) if name == SCORE else trunk.head_tensors.get(name, (*source.shape[:1], trunk.d_model))
        if source.shape != expected:
            if name == SCORE and source.shape[1:] == (trunk.d_model,):
                problem = f"the scalar output gives {source.shape[0]} numbers and not one: {name} has shape {source.shape}"
                raise FailedPrecondition(f"{problem}\nhint: train with num_labels=1", field=name)
            hint = "gather first, if this is one shard" if len(source.shape) == len(expected) else "is it a head of this trunk?"
            raise FailedPrecondition(
                f"{name} has another shape than this trunk's heads: {source.shape}, not {expected}\nhint: {hint}", field=name
            )


def _bias(name: str, source: Source) -> float:
    """What the scalar output adds to its product, as TRL's value head does."""
    if math.prod(source.shape) != 1 or source.dtype not in ITEM_SIZE:
        raise FailedPrecondition(f"the bias of a scalar output is one number: {name!r} has shape {source.shape}", field=name)
    bias = float(to_float32(source.dtype, source.shape, bytes(source.read())).ravel()[0])
    if not math.isfinite(bias):
        raise FailedPrecondition(f"the bias of the scalar output is not finite: {name!r}", field=name)
    return bias


def _check_output(standard: Mapping[str, str], kind: HeadKind) -> None:
    """A model of the other kind of output, told before its tensors are compared one by one."""
    outputs = {name: known for name, known in standard.items() if known in (SCORE, LM_HEAD)}
    scores = [name for name, known in outputs.items() if known == SCORE]
    if kind.has_logits and scores and LM_HEAD not in outputs.values() and "v_head" not in scores[0]:
        raise InvalidArgument(
            f"these are a scalar model's weights, with {scores[0]!r} and no vocabulary output, and the head is a {kind.value} head\n"
            'hint: push a reward model to "preference" and a critic to "value", or to a new name with kind="preference"',
            field="weights",
        )


def _refuse_adapters(given: Mapping[str, Source]) -> None:
    for name in given:
        if "lora_" in name:
            hint = "say how it is applied with lora=peft_config.to_dict(), push its folder, or merge_and_unload() first"
            raise FailedPrecondition(f"the weights hold an adapter: {name!r}\nhint: {hint}", field=name)


def _missing_message(found: SortedWeights) -> str:
    more = f" and {len(found.missing) - 1} more" if len(found.missing) > 1 else ""
    hint = "names are those that save_pretrained writes; for a family that fuses tensors in memory, push the saved folder"
    if found.missing == [SCORE]:
        hint = 'a language model has no scalar output: push it to "policy", or train one with num_labels=1'
    return f"the weights lack a tensor that every such head has: {found.missing[0]!r}{more}\nhint: {hint}"
