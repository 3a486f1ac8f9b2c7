"""Reward recipes: versioned files that say which scored parts make a reward, and with which constants.

A file is checked whole when the server starts. The formulas are in formulas.py; this file knows no engine and no messages.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.rewards.configurations import (
    Configuration,
    ConfigurationFile,
    ConfigurationKind,
    add_once,
    find_newest,
    read_file,
    without,
)
from polyhead.server.rewards.formulas import Aggregate, Estimator
from polyhead.server.validation import FileModel, Lax, Name, own_error

FIELD = "recipes"
SHIPPED = Path(__file__).parent / "recipe_files"
MAX_CONSTANT = 1e9  # sums of what passes stay far inside a double
KL, KL_COEFFICIENT, ALPHA, AVERAGE = "kl", "kl_coefficient", "alpha", "average"  # names that no part may take


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

    def add(self, file: ConfigurationFile, keep: Callable[[], None] | None) -> None:
        """See Book."""
        recipe = _recipe(file)
        if keep is not None:
            keep()
        self.recipes = {**self.recipes, recipe.reference: recipe}  # a new one: others may be reading the old one

    def remove(self, kind: ConfigurationKind, reference: str) -> None:
        """See Book."""
        self.recipes = without(self.recipes, reference)


def read_recipe(path: Path) -> Recipe:
    """Parse and check one file. InvalidArgument names the file and the field."""
    return _recipe(read_file(path, FIELD))


def check_constant(name: str, value: float, field: str) -> float:
    """A constant from a file or a request."""
    if not abs(value) <= MAX_CONSTANT:  # NaN neither
        raise InvalidArgument(f"{name} must lie between -{MAX_CONSTANT:g} and {MAX_CONSTANT:g}: {str(value)[:40]}", field=field)
    if name == ALPHA and value < 0:
        raise InvalidArgument(f"{name} must not be negative: {value}", field=field)
    return float(value)


def _recipe(file: ConfigurationFile) -> Recipe:
    given = file.checked(_RecipeFile)
    parts = tuple(_part(name, part, given.form, file) for name, part in given.parts.items())
    is_rerank = given.form is Form.RERANK
    if is_rerank and sorted(part.read.value for part in parts) != [Read.PREFERENCE.value, Read.RULES.value]:
        raise file.error("parts", f"must be one preference and one rules part in the form rerank: {', '.join(given.parts)[:80]}")
    _check_taken(given, {"alpha": is_rerank, "average": is_rerank}, f"the form {given.form.value}", "", file)
    kl = KlTerm(given.kl.reference, given.kl.policy, given.kl.estimator) if given.kl else None
    return Recipe(file.reference, given.form, parts, _constants(given), file, kl)


def _part(name: str, given: _PartOfFile, form: Form, file: ConfigurationFile) -> Part:
    if name in (KL, KL_COEFFICIENT, ALPHA, AVERAGE) or "." in name:
        raise file.error(f"parts.{name}", "is reserved or has a dot: give the part another name")
    is_sum = form is Form.SUM
    taken = {
        "head": given.read.kind is not None,
        "coefficient": is_sum,
        "aggregate": is_sum and given.read is Read.RULES,
        "weights": is_sum and given.read is Read.RULES and given.aggregate is Aggregate.WEIGHTS,
    }
    _check_taken(given, taken, f"a part that reads {given.read.value} in the form {form.value}", f"parts.{name}.", file)
    return Part(name, given.read, given.head, given.aggregate, tuple(given.weights))


def _check_taken(given: FileModel, taken: Mapping[str, bool], what: str, path: str, file: ConfigurationFile) -> None:
    """Each key of `taken` stands in the file if `what` takes it, and only then."""
    for key, is_taken in taken.items():
        if key in given.model_fields_set and not is_taken:
            raise file.error(f"{path}{key}", f"is not taken by {what}")
        if is_taken and key not in given.model_fields_set:
            raise file.error(f"{path}{key}", f"is missing: {what} takes it")


def _constants(given: _RecipeFile) -> dict[str, float]:
    constants: dict[str, float] = {}
    for name, part in given.parts.items():
        if given.form is Form.SUM:
            constants[name] = part.coefficient
        constants |= {f"{name}.{rule_id}": weight for rule_id, weight in part.weights.items()}
    if given.form is Form.RERANK:
        constants[ALPHA] = given.alpha
        if given.average is not None:
            constants[AVERAGE] = given.average
    if given.kl:
        constants[KL_COEFFICIENT] = given.kl.coefficient
    return constants


def _number_or_samples(value: object) -> object:
    if value is None or (isinstance(value, str) and value != "samples"):
        raise own_error("must be a number or the word samples")
    return None if value == "samples" else value


_Constant = Annotated[float, Field(ge=-MAX_CONSTANT, le=MAX_CONSTANT, allow_inf_nan=False)]


class _PartOfFile(FileModel):
    read: Annotated[Read, Lax]
    head: Name = ""
    coefficient: _Constant = 1.0
    aggregate: Annotated[Aggregate, Lax] = Aggregate.PRODUCT
    weights: Annotated[dict[Name, _Constant], Field(min_length=1, default_factory=dict)]


class _KlOfFile(FileModel):
    reference: Name
    policy: Name
    coefficient: _Constant
    estimator: Annotated[Estimator, Lax]


class _RecipeFile(FileModel):
    form: Annotated[Form, Lax]
    parts: Annotated[dict[Name, _PartOfFile], Field(min_length=1)]
    alpha: Annotated[_Constant, Field(ge=0)] = 1.0
    average: Annotated[_Constant | None, BeforeValidator(_number_or_samples)] = None  # None: of the prompt's samples
    kl: _KlOfFile | None = None
