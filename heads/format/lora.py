"""What a LoRA head says about itself, and what its file may hold. Knows no torch and no PEFT folder: the store imports it.

y = base(x) + scaling * B(A x), with scaling = alpha / rank, or alpha / sqrt(rank) with rslora (Hu et al. 2021; Kalajdzievski 2023).
The file holds `<module>.lora_A.weight`, (rank, in), and `<module>.lora_B.weight`, (out, rank), under the base's own module names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument

MAX_RANK = 65_536
MAX_PATTERNS = 4096
_MATRIX = re.compile(r"(.+)\.lora_([AB])\.weight")
_MODULE = re.compile(r"[A-Za-z0-9_.]{1,240}")
_FIELD = "manifest.lora"


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """How a LoRA head's file is applied to its base: base(x) + scaling * B(A x).

    Patterns are by full module name, `model.layers.27.self_attn.q_proj`.
    """

    rank: int
    alpha: float  # scaling is alpha / rank, or alpha / sqrt(rank) with use_rslora
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)

    def rank_of(self, module: str) -> int:
        """By its pattern, or `rank`."""
        return self.rank_pattern.get(module, self.rank)

    def scaling_of(self, module: str) -> float:
        """What the low-rank product of this module is multiplied with."""
        rank = self.rank_of(module)
        return self.alpha_pattern.get(module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def validate(self) -> None:
        """InvalidArgument names the field."""
        for key, rank in [("rank", self.rank), *_named("rank_pattern", self.rank_pattern)]:
            if not 1 <= rank <= MAX_RANK:
                raise InvalidArgument(f"a rank is a number from 1 to {MAX_RANK}: {rank}", field=f"{_FIELD}.{key}")
        for key, alpha in [("alpha", self.alpha), *_named("alpha_pattern", self.alpha_pattern)]:
            if not math.isfinite(alpha):
                raise InvalidArgument(f"alpha must be finite: {alpha}", field=f"{_FIELD}.{key}")
        for key, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            if len(pattern) > MAX_PATTERNS:
                raise InvalidArgument(f"at most {MAX_PATTERNS} modules: {len(pattern)}", field=f"{_FIELD}.{key}")
            for module in pattern:
                if not _MODULE.fullmatch(module):
                    raise InvalidArgument(f"not the name of a module: {module[:80]!r}", field=f"{_FIELD}.{key}")

    def to_plain(self) -> dict[str, Any]:
        """As head.json holds it."""
        return {
            "rank": self.rank,
            "alpha": float(self.alpha),
            "use_rslora": self.use_rslora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": {module: float(alpha) for module, alpha in self.alpha_pattern.items()},
        }

    @classmethod
    def from_plain(cls, plain: object) -> LoraAdapter:
        """From plain JSON; InvalidArgument names an unknown key or a value of another type."""
        if not isinstance(plain, dict):
            raise InvalidArgument("lora must be an object", field=_FIELD)
        if unknown := sorted(str(key) for key in plain.keys() - cls.__dataclass_fields__.keys()):
            raise InvalidArgument(f"unknown key in lora: {unknown[0][:80]!r}", field=f"{_FIELD}.{unknown[0][:80]}")
        return cls(
            rank=_integer(plain.get("rank"), "rank"),
            alpha=_number(plain.get("alpha"), "alpha"),
            use_rslora=_flag(plain.get("use_rslora", False), "use_rslora"),
            rank_pattern={name: _integer(value, "rank_pattern") for name, value in _entries(plain, "rank_pattern")},
            alpha_pattern={name: _number(value, "alpha_pattern") for name, value in _entries(plain, "alpha_pattern")},
        )


def adapted_digest(file_sha256: str, base_digest: str, lora: LoraAdapter) -> str:
    """The digest of a LoRA head: of its file, of what it is built on, and of how the two are joined."""
    facts = {"base": base_digest, "file": file_sha256, "lora": lora.to_plain()}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"polyhead lora 1\n{text}".encode()).hexdigest()


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules that an adapter's tensors belong to, sorted."""
    return sorted({match[1] for name in names if (match := _MATRIX.fullmatch(name))})


def check_adapter(
    shapes: Mapping[str, tuple[int, ...]], lora: LoraAdapter, linears: Mapping[str, tuple[int, int]], trunk_names: Collection[str]
) -> None:
    """Exact names and shapes of a file's tensors, before any byte is used. `linears`: (out, in) of each linear of the head's layers.

    FailedPrecondition names the tensor; InvalidArgument a pattern for a module that the file does not adapt.
    """
    for name in shapes:
        _check_name(name, linears, trunk_names)
    modules = modules_of(shapes)
    for module in modules:
        out_size, in_size = linears[module]
        rank = lora.rank_of(module)
        _check_matrix(shapes, f"{module}.lora_A.weight", (rank, in_size))
        _check_matrix(shapes, f"{module}.lora_B.weight", (out_size, rank))
    for key, pattern in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        if unused := sorted(pattern.keys() - set(modules)):
            raise InvalidArgument(f"the file does not adapt this module: {unused[0]!r}", field=f"{_FIELD}.{key}")


def _check_name(name: str, linears: Mapping[str, tuple[int, int]], trunk_names: Collection[str]) -> None:
    match = _MATRIX.fullmatch(name)
    if match is None:
        hint = "only lora_A and lora_B of linears are served: no DoRA, bias, embedding or modules_to_save"
        raise FailedPrecondition(f"not a matrix of a LoRA adapter: {name!r}\nhint: {hint}", field="data")
    module = match[1]
    if f"{module}.weight" in trunk_names:
        hint = "train with layers_to_transform from the split layer on"
        raise FailedPrecondition(f"the adapter touches the trunk, which is frozen: {name!r}\nhint: {hint}", field="data")
    if module not in linears:
        raise FailedPrecondition(f"not a linear of a head's layers: {module!r}", field="data")


def _check_matrix(shapes: Mapping[str, tuple[int, ...]], name: str, shape: tuple[int, int]) -> None:
    if name not in shapes:
        raise FailedPrecondition(f"the adapter lacks the other half of a pair: {name!r}", field="data")
    if shapes[name] != shape:
        found = list(shapes[name])
        raise FailedPrecondition(f"{name} must have shape {list(shape)}, by its rank and its base, not {found}", field="data")


# ---- plain JSON values


def _named(key: str, pattern: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{key}[{module[:120]}]", value) for module, value in pattern.items()]


def _entries(plain: dict[str, Any], key: str) -> Iterable[tuple[str, object]]:
    value = plain.get(key, {})
    if not isinstance(value, dict):
        raise InvalidArgument(f"{key} must be an object", field=f"{_FIELD}.{key}")
    return value.items()


def _integer(value: object, key: str) -> int:
    if type(value) is not int:
        raise InvalidArgument(f"{key} must be a whole number", field=f"{_FIELD}.{key}")
    return value


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(f"{key} must be a number", field=f"{_FIELD}.{key}")
    return float(value)


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{key} must be true or false", field=f"{_FIELD}.{key}")
    return value
