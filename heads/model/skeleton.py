"""A family's modules without its weights: parameters on the meta device, buffers real. A 70B model costs a few megabytes."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

_BUILDING = threading.Lock()


def build_skeleton(config: Any, kind: Any = None) -> PreTrainedModel:
    """A model of the family (its ForCausalLM unless `kind` is given) with meta parameters and real buffers (rope frequencies,
    embedding scales), on a config of its own."""
    config = copy.deepcopy(config)
    config._attn_implementation = None  # let the class choose its plain default: sdpa where it has it
    with _BUILDING, _parameters_on_meta():
        return cast(PreTrainedModel, (kind or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(config)).eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made by this thread go to the meta device when a module registers them; nothing is initialised.

    Memory of a parameter is reserved for a moment, never touched: a 70B-shaped model costs none. Other threads are unaffected.
    """
    owner = threading.get_ident()
    register, init_weights = nn.Module.register_parameter, PreTrainedModel.init_weights
    kinds: tuple[Any, ...] = (nn.Linear, nn.Embedding)  # torch draws their numbers when it makes one: a third of the time here
    resets = {kind: kind.reset_parameters for kind in kinds}

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == owner:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(module, name, param)

    def init_nothing(model: PreTrainedModel) -> None:
        if threading.get_ident() != owner:
            init_weights(model)

    def reset_nothing(module: nn.Module) -> None:
        if threading.get_ident() != owner:
            next(reset for kind, reset in resets.items() if isinstance(module, kind))(module)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment, method-assign]
    PreTrainedModel.init_weights = init_nothing
    for kind in kinds:
        kind.reset_parameters = reset_nothing
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        PreTrainedModel.init_weights = init_weights
        for kind, reset in resets.items():
            kind.reset_parameters = reset
