"""What a trainer's model says about itself beside its tensors: its class, its padding, its adapter. Imports neither torch nor transformers.

transformers' ForSequenceClassification reads its score at the last token that is not the padding token. Where that is the EOS token, as
trainers often set it, the score stands before the EOS: a head that came from such a class is read there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.client.errors import InvalidArgument
from polyhead.client.weights.folders import ADAPTER_CONFIG, read_json

__all__ = ["ModelClass", "as_adapter", "is_module", "tensors_of", "unwrapped"]

_WRAPPED = ("module", "_orig_mod")  # DistributedDataParallel, DeepSpeed; torch.compile
_CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True, slots=True)
class ModelClass:
    """The class that a checkpoint was saved from, as far as it decides where a score is read."""

    name: str  # "LlamaForSequenceClassification"
    pad_token_id: int | None

    @classmethod
    def of_folder(cls, folder: Path) -> ModelClass | None:
        """From config.json; None where there is none, or where head.json or an adapter says more."""
        if not (folder / "config.json").is_file() or (folder / "head.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
            return None
        config = read_json(folder / "config.json")
        named = config.get("architectures") or [""]
        return cls(str(named[0]), _token_id(config.get("pad_token_id")))

    @classmethod
    def of_module(cls, module: Any) -> ModelClass:
        module = unwrapped(module)
        return cls(type(module).__name__, _token_id(getattr(getattr(module, "config", None), "pad_token_id", None)))

    def reading(self, vocab_size: int) -> dict[str, Any]:
        """What head.json says of such a class: where it reads. Empty for a class of another kind."""
        if not self.name.endswith(_CLASSIFIER):
            return {}
        pad = self.pad_token_id
        return {"read": "last", "pad_token_id": pad if pad is not None and 0 <= pad < vocab_size else -1}


def is_module(weights: Any) -> bool:
    """A torch module, or what wraps one: it has tensors by name and is no mapping itself."""
    return not isinstance(weights, (str, Mapping)) and callable(getattr(weights, "state_dict", None))


def tensors_of(module: Any) -> dict[str, Any]:
    """Its tensors by name. Of a PEFT model those of the adapter alone: the base is on the server."""
    tensors: dict[str, Any] = dict(module.state_dict())
    if not as_adapter(module):
        return tensors
    active = _active_adapter(unwrapped(module))
    return {_without_wrappers(name): tensor for name, tensor in tensors.items() if _is_adapters(name, active)}


def as_adapter(module: Any) -> Mapping[str, Any] | None:
    """What the active adapter's adapter_config.json would say; None for a module without one."""
    module = unwrapped(module)
    configs = getattr(module, "peft_config", None)
    if not isinstance(configs, Mapping) or not configs:
        return None
    plain: Mapping[str, Any] = configs[_active_adapter(module)].to_dict()
    return plain


def unwrapped(module: Any) -> Any:
    """The model itself, without the wrappers of parallel or compiled training."""
    inner = next((getattr(module, name) for name in _WRAPPED if is_module(getattr(module, name, None))), None)
    return module if inner is None else unwrapped(inner)


def _active_adapter(module: Any) -> str:
    active = getattr(module, "active_adapters", None)
    names = [str(name) for name in (active() if callable(active) else active or module.peft_config)]
    if len(names) != 1:
        raise InvalidArgument(f"one adapter is pushed at a time, and the model has several active: {', '.join(names)}", field="weights")
    return names[0]


def _is_adapters(name: str, adapter: str) -> bool:
    """LoRA matrices, and whole modules that were trained beside them (refused by name later on)."""
    return f".{adapter}." in name and ("lora_" in name or "modules_to_save" in name)


def _without_wrappers(name: str) -> str:
    first, _, rest = name.partition(".")
    return _without_wrappers(rest) if first in _WRAPPED else name


def _token_id(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
