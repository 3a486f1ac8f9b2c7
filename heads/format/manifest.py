"""head.json: the few facts about a head that its weights cannot say. Knows nothing of torch, of the store, or of the wire."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind, ReadPosition, Unfinished, takes_output
from polyhead.heads.format.lora import LoraAdapter
from polyhead.heads.format.precision import Precision

FORMAT = 1
MIN_SCALE, MAX_SCALE = 1e-9, 1e9
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HeadManifest:
    """The content of head.json. `validate` names the first field at fault."""

    kind: HeadKind
    trunk_id: str  # 64 hex digits
    split_layer: int
    num_layers: int  # of the whole model
    output: OutputKind
    precision: Precision = Precision.FLOAT32  # of the trunk that the head was trained on
    base: str = ""  # "policy@3": the version it was made from; with `lora` the one whose weights it runs on
    untrained: bool = False
    bias: float = 0.0  # preference and value: subtracted from the raw number
    scale: float = 1.0  # preference and value: what is left is divided by it, so that a reward has unit variance without other weights
    read: ReadPosition = ReadPosition.LAST
    append_token_id: int = -1  # with ReadPosition.APPEND
    pad_token_id: int = -1  # with ReadPosition.LAST: passed over at the end, as transformers' ForSequenceClassification does
    unfinished: Unfinished = Unfinished.READ_LAST
    violated_token_id: int = -1  # rule: the answer that says "broken"; -1 for both: the template was not served when the head was made
    followed_token_id: int = -1
    template: str = ""  # rule: "example-rule-prompt@1"
    lora: LoraAdapter | None = None  # the file is an adapter, applied beside the weights of `base`

    def centred(self, raw: float) -> float:
        """What a raw number of a preference or value head stands for: (raw - bias) / scale."""
        return (raw - self.bias) / self.scale

    def validate(self) -> None:
        """Raise InvalidArgument naming the first field that is wrong in itself (the trunk is compared elsewhere)."""
        if not _SHA256.fullmatch(self.trunk_id):
            raise InvalidArgument(f"trunk_id must be 64 hex digits: {self.trunk_id[:80]!r}", field="manifest.trunk_id")
        if not 0 < self.split_layer < self.num_layers:
            raise InvalidArgument(
                f"split_layer must lie inside the model's {self.num_layers} layers: {self.split_layer}", field="manifest.split_layer"
            )
        if not takes_output(self.kind, self.output):
            raise InvalidArgument(f"a {self.kind.value} head cannot have output {self.output.value!r}", field="manifest.output")
        if not math.isfinite(self.bias):
            raise InvalidArgument(f"bias must be finite: {self.bias}", field="manifest.bias")
        if not MIN_SCALE <= self.scale <= MAX_SCALE:  # NaN neither
            raise InvalidArgument(f"scale must lie between {MIN_SCALE:g} and {MAX_SCALE:g}: {self.scale}", field="manifest.scale")
        if self.read is ReadPosition.APPEND and self.append_token_id < 0:
            raise InvalidArgument("read position 'append' needs append_token_id", field="manifest.append_token_id")
        if self.kind is HeadKind.RULE:
            self._validate_answers()
        if self.lora is not None:
            self.lora.validate()
            self.base_version()

    @property
    def has_answers(self) -> bool:
        """Whether a rule head can be asked."""
        return self.violated_token_id >= 0 and self.followed_token_id >= 0

    def _validate_answers(self) -> None:
        if self.template and (self.violated_token_id, self.followed_token_id) == (-1, -1):
            return
        if not self.has_answers:
            raise InvalidArgument("a rule head needs its two answer tokens", field="manifest.violated_token_id")
        if self.violated_token_id == self.followed_token_id:
            raise InvalidArgument("the two answer tokens must differ", field="manifest.followed_token_id")

    def base_version(self) -> tuple[str, int]:
        """Name and version of what a LoRA head is built on. InvalidArgument unless `base` names a version."""
        name, version = parse_reference(self.base, "manifest.base")
        if not version:
            raise InvalidArgument(f"a LoRA head is built on a version, as in {name}@1: {self.base[:80]!r}", field="manifest.base")
        return name, version

    def to_json(self) -> str:
        """Canonical text: sorted keys, enums by value."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {key: value.value if isinstance(value, enum.Enum) else value for key, value in values.items()}
        if plain["scale"] == 1.0:  # as files were written before there was a scale: older servers read them
            del plain["scale"]
        if (lora := plain.pop("lora")) is not None:
            plain["lora"] = lora.to_plain()
        return json.dumps({"format": FORMAT, **plain}, sort_keys=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> HeadManifest:
        """Parse and validate; an unknown key, a missing one or another format is an error that names it."""
        try:
            plain = json.loads(text)
        except ValueError:
            raise InvalidArgument("head.json is not JSON", field="manifest") from None
        if not isinstance(plain, dict):
            raise InvalidArgument("head.json must be an object", field="manifest")
        if plain.pop("format", None) != FORMAT:
            raise InvalidArgument(f"head.json has another format than {FORMAT}", field="manifest.format")
        return cls.from_plain(plain)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> HeadManifest:
        """From a mapping of plain JSON values (no format key)."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(plain.keys() - fields.keys()):
            raise InvalidArgument(f"unknown key in head.json: {unknown[0][:80]!r}", field=f"manifest.{unknown[0][:80]}")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name == "lora":
                values[name] = LoraAdapter.from_plain(plain[name]) if plain.get(name) is not None else None
            elif name in plain:
                values[name] = _typed(name, plain[name], str(field.type))
            elif field.default is dataclasses.MISSING:
                raise InvalidArgument(f"missing key in head.json: {name!r}", field=f"manifest.{name}")
        manifest = cls(**values)
        manifest.validate()
        return manifest


_ENUMS: dict[str, type[enum.Enum]] = {kind.__name__: kind for kind in (HeadKind, OutputKind, ReadPosition, Unfinished, Precision)}
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


def _typed(name: str, value: object, type_name: str) -> object:
    if type_name in _ENUMS:
        try:
            return _ENUMS[type_name](value)
        except ValueError:
            raise InvalidArgument(f"unknown {name}: {str(value)[:80]!r}", field=f"manifest.{name}") from None
    wanted = _PLAIN[type_name]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise InvalidArgument(f"{name} must be of type {type_name}", field=f"manifest.{name}")
    if isinstance(value, str) and len(value) > 4096:
        raise InvalidArgument(f"{name} is longer than 4096 characters", field=f"manifest.{name}")
    return float(value) if type_name == "float" and isinstance(value, (int, float)) else value


def check_name(name: str, field: str) -> str:
    """The one rule for head names: lower case, digits, `._-`, at most 64 characters, nothing path-like."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise InvalidArgument(
            f"not a valid name (lower case letters, digits, '.', '_', '-', at most 64, no '..'): {name[:80]!r}", field=field
        )
    return name


def parse_reference(text: str, field: str) -> tuple[str, int]:
    """Split "policy" into ("policy", 0) and "policy@7" into ("policy", 7); 0 means the active version."""
    name, at, version = text.partition("@")
    check_name(name, field)
    if not at:
        return name, 0
    if not version.isascii() or not version.isdigit() or len(version) > 9 or int(version) < 1:
        raise InvalidArgument(f"not a version number: {version[:40]!r}", field=field)
    return name, int(version)
