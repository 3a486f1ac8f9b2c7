"""Reward recipes: versioned files that say which scored parts make a reward, and with which constants.

A file is checked whole when the server starts. The formulas are in formulas.py; this file knows no engine and no messages.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from polyhead.heads.format.errors import InvalidArgument, PolyheadError
from polyhead.heads.format.kinds import HeadKind
from polyhead.heads.format.manifest import check_name
from polyhead.server.rewards.configurations import Configuration, ConfigurationFile, ConfigurationKind, add_once, find_newest, read_file
from polyhead.server.rewards.formulas import Aggregate, Estimator

FIELD = "recipes"
SHIPPED = Path(__file__).parent / "recipe_files"
MAX_CONSTANT = 1e9  # sums of what passes stay far inside a double
KL, KL_COEFFICIENT, ALPHA, AVERAGE = "kl", "kl_coefficient", "alpha", "average"  # names that no part may take

EnumT = TypeVar("EnumT", bound=enum.Enum)


class Form(enum.Enum):
    """How the parts become the reward."""

    SUM = "sum"  # sum of coefficient * part
    RERANK = "rerank"  # sigmoid(preference - average) * (product of f_i) ^ alpha


class Read(enum.Enum):
    """What a part is read from."""

    PREFERENCE = "preference"  # a preference head's centred value
    RULES = "rules"  # a rule head's f_i = 1 - p_violate, aggregated
    MEAN_LOGPROB = "mean_logprob"  # of the completion's tokens under a policy head
    TOKENS = "tokens"  # number of completion tokens
    NEWLINES = "newlines"  # number of line breaks in the reply
    INVALID = "invalid"  # 1 - valid

    @property
    def kind(self) -> HeadKind | None:
        """The kind of head that is read; None if no head is."""
        return {Read.PREFERENCE: HeadKind.PREFERENCE, Read.RULES: HeadKind.RULE, Read.MEAN_LOGPROB: HeadKind.POLICY}.get(self)


@dataclass(frozen=True, slots=True)
class Part:
    """One number that goes into a reward."""

    name: str
    read: Read
    head: str = ""  # a name without a version; "" if no head is read
    aggregate: Aggregate = Aggregate.PRODUCT  # of RULES
    rule_ids: tuple[str, ...] = ()  # of Aggregate.WEIGHTS: exactly these are asked


@dataclass(frozen=True, slots=True)
class KlTerm:
    """A penalty at every token for leaving the reference."""

    reference: str  # head
    policy: str  # head whose log-probs are read where the completion was given; a drawn sample brings its own
    estimator: Estimator


@dataclass(frozen=True, slots=True)
class Recipe:
    """One checked file. A constant is named after its part (`part.rule-id` for a rule's weight), or one of the four names above."""

    reference: str  # "sparrow@1"
    form: Form
    parts: tuple[Part, ...]
    constants: Mapping[str, float]
    file: ConfigurationFile = field(repr=False)
    kl: KlTerm | None = None

    @property
    def averages_samples(self) -> bool:
        """Whether a sample's reward depends on the prompt's other samples."""
        return self.form is Form.RERANK and AVERAGE not in self.constants

    @property
    def preference(self) -> str:
        """Name of the first part that reads a preference; the rerank form has one."""
        return next(part.name for part in self.parts if part.read is Read.PREFERENCE)


class RecipeBook:
    """All recipes that the server knows, shipped ones first."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self.recipes: dict[str, Recipe] = {}
        for path in [*sorted(SHIPPED.glob("*.yaml")), *files]:
            recipe = read_recipe(path)
            add_once(self.recipes, recipe.reference, recipe, FIELD)

    def find(self, reference: str, field: str) -> Recipe:
        """A recipe by "name@version", or the newest version by "name"."""
        return find_newest(self.recipes, reference, "recipe", field)

    def configurations(self) -> Iterator[Configuration]:
        """What the server lists of these files."""
        for recipe in self.recipes.values():
            yield recipe.file.listed(ConfigurationKind.RECIPE)


def read_recipe(path: Path) -> Recipe:
    """Parse and check one file. InvalidArgument names the file and the field."""
    file = read_file(path, FIELD)
    try:
        return _recipe(file)
    except PolyheadError as error:
        raise InvalidArgument(f"{path.name}: {error.message}", field=error.field) from None


def check_constant(name: str, value: float, field: str) -> float:
    """A constant from a file or a request."""
    if not abs(value) <= MAX_CONSTANT:  # NaN neither
        raise InvalidArgument(f"{name} must lie between -{MAX_CONSTANT:g} and {MAX_CONSTANT:g}: {str(value)[:40]}", field=field)
    if name == ALPHA and value < 0:
        raise InvalidArgument(f"{name} must not be negative: {value}", field=field)
    return float(value)


class _Section:
    """One mapping of a file. Each key is taken once; `end` refuses what is left."""

    def __init__(self, plain: object, field: str) -> None:
        if not isinstance(plain, Mapping) or not all(isinstance(key, str) for key in plain):
            raise InvalidArgument(f"{field} must be a mapping", field=field)
        self.field = field
        self._left: dict[str, Any] = dict(plain)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def field_of(self, key: str) -> str:
        return f"{self.field}.{key[:64]}"

    def take(self, key: str) -> Any:
        if key not in self._left:
            raise InvalidArgument(f"{self.field_of(key)} is missing", field=self.field_of(key))
        return self._left.pop(key)

    def takes(self, key: str, word: str) -> bool:
        """Whether the value is this very word, which is then taken."""
        is_word = bool(self._left.get(key) == word)
        if is_word:
            del self._left[key]
        return is_word

    def name(self, key: str) -> str:
        return check_name(str(self.take(key)), self.field_of(key))

    def number(self, key: str, name: str) -> float:
        """A constant called `name`."""
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):  # YAML reads 1e-3 as text
            raise InvalidArgument(f"{self.field_of(key)} must be a number such as 0.001: {str(value)[:40]!r}", field=self.field_of(key))
        return check_constant(name, value, self.field_of(key))

    def choice(self, key: str, enum_class: type[EnumT]) -> EnumT:
        value = self.take(key)
        found = next((member for member in enum_class if member.value == value), None)
        if found is None:
            known = ", ".join(str(member.value) for member in enum_class)
            raise InvalidArgument(f"{self.field_of(key)} must be one of {known}: {str(value)[:40]!r}", field=self.field_of(key))
        return found

    def sections(self, key: str) -> dict[str, _Section]:
        """A mapping of mappings that is not empty."""
        inner = self._inner(key)
        return {name: _Section(plain, inner.field_of(name)) for name, plain in inner._left.items()}

    def numbers(self, key: str, prefix: str) -> dict[str, float]:
        """A mapping of names to numbers that is not empty."""
        inner = self._inner(key)
        return {check_name(name, inner.field_of(name)): inner.number(name, f"{prefix}.{name}") for name in list(inner._left)}

    def _inner(self, key: str) -> _Section:
        inner = _Section(self.take(key), self.field_of(key))
        if not inner._left:
            raise InvalidArgument(f"{inner.field} is empty", field=inner.field)
        return inner

    def end(self) -> None:
        if self._left:
            unknown = self.field_of(min(self._left))
            raise InvalidArgument(f"unknown key: {unknown}", field=unknown)


def _recipe(file: ConfigurationFile) -> Recipe:
    plain = _Section(file.values, FIELD)
    form = plain.choice("form", Form)
    constants: dict[str, float] = {}
    parts = tuple(_part(part, section, form, constants) for part, section in plain.sections("parts").items())
    if form is Form.RERANK:
        _check_rerank(parts)
        constants[ALPHA] = plain.number("alpha", ALPHA)
        if not plain.takes("average", "samples"):
            constants[AVERAGE] = plain.number("average", AVERAGE)
    kl = _kl_term(_Section(plain.take("kl"), f"{FIELD}.kl"), constants) if "kl" in plain else None
    plain.end()
    return Recipe(file.reference, form, parts, constants, file, kl)


def _part(name: str, section: _Section, form: Form, constants: dict[str, float]) -> Part:
    check_name(name, section.field)
    if name in (KL, KL_COEFFICIENT, ALPHA, AVERAGE) or "." in name:
        raise InvalidArgument(f"a part cannot have this name: {name!r}", field=section.field)
    read = section.choice("read", Read)
    head = section.name("head") if read.kind else ""
    how, weights = Aggregate.PRODUCT, {}
    if form is Form.SUM:
        constants[name] = section.number("coefficient", name)
        if read is Read.RULES:
            how = section.choice("aggregate", Aggregate)
            weights = section.numbers("weights", name) if how is Aggregate.WEIGHTS else {}
    constants |= {f"{name}.{rule_id}": weight for rule_id, weight in weights.items()}
    section.end()
    return Part(name, read, head, how, tuple(weights))


def _check_rerank(parts: tuple[Part, ...]) -> None:
    if sorted(part.read.value for part in parts) != [Read.PREFERENCE.value, Read.RULES.value]:
        raise InvalidArgument("the rerank form takes one preference and one rules part", field="recipes.parts")


def _kl_term(section: _Section, constants: dict[str, float]) -> KlTerm:
    term = KlTerm(section.name("reference"), section.name("policy"), section.choice("estimator", Estimator))
    constants[KL_COEFFICIENT] = section.number("coefficient", KL_COEFFICIENT)
    section.end()
    return term
