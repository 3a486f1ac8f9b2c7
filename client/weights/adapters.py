"""A LoRA adapter as PEFT leaves it, turned into what a LoRA head's file and manifest hold. Knows no wire and sends nothing.

given                                                        becomes
base_model.model.model.layers.27.self_attn.q_proj.           model.layers.27.self_attn.q_proj.lora_A.weight
    lora_A.weight, or ...lora_A.default.weight
r, lora_alpha, use_rslora, rank_pattern, alpha_pattern       LoraAdapter; patterns are resolved to the modules that they name

Everything in adapter_config.json that would change the result otherwise is refused by its key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from polyhead.client.errors import FailedPrecondition, InvalidArgument
from polyhead.client.results.records import LoraAdapter, TrunkInfo
from polyhead.client.weights.folders import ADAPTER_CONFIG, read_json
from polyhead.client.weights.names import TensorNames
from polyhead.client.weights.tensors import ITEM_SIZE, Source
from polyhead.client.weights.weights import SortedWeights

__all__ = ["AdapterConfig", "sort_adapter"]

_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # as PEFT looks for it: the first number

_USED = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"})
_USED |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}
# of training, or of where the base comes from
_WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "runtime_config",
        "eva_config",
        "qalora_group_size",
    }
)
_REASONS = {
    "use_dora": "DoRA rescales whole weights, which cannot be added beside a shared base",
    "modules_to_save": "the adapter holds whole modules beside its low-rank matrices; push such a head merged (merge_and_unload())",
    "target_parameters": "adapters of bare parameters, as of mixture-of-experts layers, are not served",
    "layer_replication": "the adapter's model repeats layers of the base",
    "lora_bias": "the adapter has biases",
    "trainable_token_indices": "the adapter changes the embedding, which belongs to the trunk",
}
NumberT = TypeVar("NumberT", int, float)
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base's own weights


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of adapter_config.json that decides numbers; nothing in the rest does."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]  # regular expressions for the end of a module's name, in PEFT's order
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...] | None
    exclude_modules: str | tuple[str, ...] | None
    layers_to_transform: frozenset[int]  # empty: all
    layers_pattern: tuple[str, ...]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> AdapterConfig | None:
        """Of a PEFT folder; None for any other."""
        file = Path(folder) / ADAPTER_CONFIG
        if not file.is_file():
            return None
        return cls.of(read_json(file))

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        """FailedPrecondition names a key that cannot be honoured, InvalidArgument one of a wrong type or missing."""
        _refuse_what_is_not_served(plain)
        layers = plain.get("layers_to_transform")
        pattern = plain.get("layers_pattern") or ()
        return cls(
            rank=_rank(plain.get("r"), "r"),
            alpha=_number(plain.get("lora_alpha"), "lora_alpha"),
            use_rslora=bool(plain.get("use_rslora")),
            rank_pattern={key: _rank(value, "rank_pattern") for key, value in (plain.get("rank_pattern") or {}).items()},
            alpha_pattern={key: _number(value, "alpha_pattern") for key, value in (plain.get("alpha_pattern") or {}).items()},
            target_modules=_modules(plain.get("target_modules")),
            exclude_modules=_modules(plain.get("exclude_modules")),
            layers_to_transform=frozenset([layers] if isinstance(layers, int) else layers or ()),
            layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
        )

    @classmethod
    def of_head(cls, plain: Any) -> AdapterConfig:
        """Of `lora` in a pulled head's head.json, whose tensors and patterns have standard names."""
        if not isinstance(plain, dict) or plain.keys() != LoraAdapter.__dataclass_fields__.keys():
            raise InvalidArgument("lora in head.json has missing or unknown keys", field="weights")
        renamed = {"r": plain["rank"], "lora_alpha": plain["alpha"], "use_rslora": plain["use_rslora"]}
        patterns = {key: {re.escape(name): value for name, value in plain[key].items()} for key in ("rank_pattern", "alpha_pattern")}
        return cls.of({**renamed, **patterns})

    def targets(self, module: str) -> bool:
        """Whether PEFT would adapt this module, by the rules of its check_target_module_exists."""
        if self.exclude_modules and _names(self.exclude_modules, module):
            return False
        if self.target_modules is None or self.target_modules == "all-linear":
            return True
        if isinstance(self.target_modules, str):
            return _names(self.target_modules, module)
        if module in self.target_modules:
            return True
        return _names(self.target_modules, module) and (not self.layers_to_transform or self._is_in_layers(module))

    def _is_in_layers(self, module: str) -> bool:
        patterns = [re.compile(rf"(?:^|.*?\.){each}\.(\d+)\.") for each in self.layers_pattern] or [_LAYER]
        found = next((match for pattern in patterns if (match := pattern.match(module))), None)
        return found is not None and int(found[1]) in self.layers_to_transform

    def rank_of(self, module: str) -> int:
        return _matching(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        return _matching(self.alpha_pattern, module, self.alpha)

    def resolved(self, modules: Mapping[str, str]) -> LoraAdapter:
        """For these modules, {standard name: PEFT's name}: patterns name modules in full, and only where they differ."""
        ranks = {name: self.rank_of(theirs) for name, theirs in modules.items()}
        alphas = {name: self.alpha_of(theirs) for name, theirs in modules.items()}
        return LoraAdapter(
            rank=self.rank,
            alpha=self.alpha,
            use_rslora=self.use_rslora,
            rank_pattern={name: rank for name, rank in sorted(ranks.items()) if rank != self.rank},
            alpha_pattern={name: alpha for name, alpha in sorted(alphas.items()) if alpha != self.alpha},
        )


def sort_adapter(given: Mapping[str, Source], config: AdapterConfig, trunk: TrunkInfo) -> tuple[SortedWeights, LoraAdapter]:
    """Names, shapes and ranks, checked before anything is sent. FailedPrecondition names the tensor or the key at fault."""
    names, found = TensorNames(trunk), SortedWeights()
    modules: dict[str, str] = {}  # standard name -> PEFT's
    adapters: set[str] = set()
    for name, source in given.items():
        match = _MATRIX.fullmatch(name)
        if match is None:
            raise _not_a_matrix(name)
        theirs = match["module"].removeprefix(_PREFIX)
        module = names.standard(f"{theirs}.weight").removesuffix(".weight")
        _check_place(name, module, trunk)
        if not config.targets(theirs):
            raise FailedPrecondition(f"{ADAPTER_CONFIG} does not target a module that the file adapts: {name!r}", field=name)
        adapters.add(match["adapter"] or "default")
        target = f"{module}.lora_{match['letter']}.weight"
        if target in found.tensors:
            raise InvalidArgument(f"two of the weights have the name {target!r}", field="weights")
        modules[module], found.tensors[target] = theirs, source
        if name != target:
            found.converted[name] = target
    if len(adapters) > 1:
        raise InvalidArgument(f"the weights hold several adapters: {', '.join(sorted(adapters))}", field="weights")
    _check_layers(modules, config)
    for module, theirs in modules.items():
        _check_pair(module, config.rank_of(theirs), found.tensors, trunk)
    _check_complete(modules, config, trunk)
    return found, config.resolved(modules)


# ---- the config


def _refuse_what_is_not_served(plain: Mapping[str, Any]) -> None:
    kind = plain.get("peft_type", "LORA")
    if str(getattr(kind, "value", kind)).upper() != "LORA":
        raise _refusal("peft_type", kind, "only LoRA is served")
    if plain.get("bias", "none") != "none":
        raise _refusal("bias", plain["bias"], "the adapter has trained biases")
    if plain.get("fan_in_fan_out"):
        raise _refusal("fan_in_fan_out", True, "a model's linears hold (out, in), and PEFT itself sets it to false for them")
    init = plain.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        hint = "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        raise _refusal("init_lora_weights", init, f"this initialisation changes the base's own weights; {hint}")
    for key, value in plain.items():
        if key not in _USED | _WITHOUT_EFFECT and not _is_off(value):
            raise _refusal(key, value, _REASONS.get(key, "not supported"))


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, Mapping, list, tuple, set, frozenset)) and not value)


def _refusal(key: str, value: object, reason: str) -> FailedPrecondition:
    return FailedPrecondition(f"the adapter cannot be served with {key} = {str(value)[:80]}: {reason}", field=f"lora.{key}")


def _rank(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"the adapter's config needs a rank of at least 1 for {key}: {value!r}", field=f"lora.{key}")
    return value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(f"the adapter's config needs a number for {key}: {value!r}", field=f"lora.{key}")
    return float(value)


def _modules(value: Any) -> str | tuple[str, ...] | None:
    return value if value is None or isinstance(value, str) else tuple(value)


def _names(wanted: str | Iterable[str], module: str) -> bool:
    """A text is a regular expression for the whole name; a list holds names or the ends of names."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == each or module.endswith(f".{each}") for each in wanted)


def _matching(pattern: Mapping[str, NumberT], module: str, default: NumberT) -> NumberT:
    """The value of the first key that matches the end of a name, as PEFT's get_pattern_key has it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


# ---- the tensors


def _not_a_matrix(name: str) -> FailedPrecondition:
    reasons = {
        "lora_magnitude_vector": "DoRA rescales whole weights, which cannot be added beside a shared base",
        "lora_embedding_": "it adapts an embedding, which belongs to the trunk",
        "modules_to_save": "a whole module that was trained",
        ".bias": "a bias that was trained",
        "base_layer": "a weight of the base: give the adapter's tensors alone, as peft.get_peft_model_state_dict does",
    }
    reason = next((text for part, text in reasons.items() if part in name), "neither lora_A nor lora_B of a linear")
    return FailedPrecondition(f"the adapter holds a tensor that cannot be served: {name!r}\nhint: {reason}", field=name)


def _check_place(name: str, module: str, trunk: TrunkInfo) -> None:
    weight = f"{module}.weight"
    if weight in trunk.tensors:
        hint = f"train with layers_to_transform=list(range({trunk.split_layer}, {trunk.num_layers}))"
        raise FailedPrecondition(f"the adapter touches the trunk, which is frozen: {name!r}\nhint: {hint}", field=name)
    if len(trunk.head_tensors.get(weight, ())) != 2 or ".experts." in module:
        raise FailedPrecondition(f"the adapter targets a module that is no linear layer of a head: {name!r}", field=name)


def _check_layers(modules: Mapping[str, str], config: AdapterConfig) -> None:
    """A listed layer without a tensor: the list or the file is another one's."""
    if isinstance(config.target_modules, str) or not config.layers_to_transform:
        return
    found = {int(match[1]) for theirs in modules.values() if (match := re.search(r"\.(\d+)\.", theirs))}
    if missing := sorted(config.layers_to_transform - found):
        raise FailedPrecondition(
            f"layers_to_transform lists a layer that the file does not adapt: {missing[0]}", field="lora.layers_to_transform"
        )


def _check_pair(module: str, rank: int, tensors: Mapping[str, Source], trunk: TrunkInfo) -> None:
    out_size, in_size = trunk.head_tensors[f"{module}.weight"]
    for letter, shape in (("A", (rank, in_size)), ("B", (out_size, rank))):
        name = f"{module}.lora_{letter}.weight"
        if name not in tensors:
            raise FailedPrecondition(f"the adapter lacks the other half of a pair: {name!r}", field=name)
        if tensors[name].shape != shape:
            hint = "r and rank_pattern must say what the file holds; gather first, if this is one shard"
            raise FailedPrecondition(f"{name} must have shape {shape}, not {tensors[name].shape}\nhint: {hint}", field=name)
        if tensors[name].dtype not in ITEM_SIZE:
            raise FailedPrecondition(f"{name} is neither float32, bfloat16 nor float16: {tensors[name].dtype}", field=name)


def _check_complete(modules: Mapping[str, str], config: AdapterConfig, trunk: TrunkInfo) -> None:
    """What the config lists by name and the file lacks, in the layers that it adapts: a part of an adapter computes something else."""
    if not isinstance(config.target_modules, tuple):
        return
    for weight, shape in trunk.head_tensors.items():
        module = weight.removesuffix(".weight")
        if len(shape) == 2 and module not in modules and config.targets(module):
            raise FailedPrecondition(f"target_modules names a module that the file does not adapt: {module!r}", field="lora.target_modules")
