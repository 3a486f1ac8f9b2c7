"""Strict models for files that people write, and what pydantic refuses as a sentence of ours: the key, what it must be, and what it is.

Used for settings, configuration files and the tokens file; knows none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.manifest import check_name

_WORDS = {
    "own_text": "{text}",
    "unknown_key": "is unknown\nhint: known are {known}",
    "extra_forbidden": "is unknown",
    "missing": "is missing",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number such as 0.001",  # YAML reads 1e-3 as text
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_type": "must be a text in quotes",
    "string_too_long": "must have at most {max_length} characters",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}
_BY_LENGTH = ("string_too_long", "too_short", "too_long")
_WITHOUT_VALUE = ("unknown_key", "extra_forbidden", "missing")
MAX_SHOWN = 80  # characters of a value in an error

ModelT = TypeVar("ModelT", bound="FileModel")


class FileModel(BaseModel):
    """One mapping of a file. Values keep the type that the file gave them; a key that the model does not have is an error."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: object) -> object:
        """Before any value is looked at: a misspelt key is also a missing one, and its spelling is what helps."""
        known = ", ".join(cls.model_fields)
        if not isinstance(values, Mapping):
            raise own_error(f"must be a mapping with {known}")
        for key in values:
            if key not in cls.model_fields:
                raise PydanticCustomError("unknown_key", "unknown", {"key": str(key)[:MAX_SHOWN], "known": known})
        return values


def own_error(text: str) -> PydanticCustomError:
    """For validators: "must be ..." in our own words, to which the value is added."""
    return PydanticCustomError("own_text", "own", {"text": text})


def _is_name(value: str) -> str:
    try:
        return check_name(value, "")
    except InvalidArgument as error:
        raise own_error(f"is {error.message.partition(': ')[0]}") from None


Name = Annotated[str, AfterValidator(_is_name)]  # of heads, rules, files: check_name
Lax = Field(strict=False)  # for enums, which a file gives by value


def checked(model: type[ModelT], values: object, file: str, field: str, shows_values: bool = True) -> ModelT:
    """The values as a model. InvalidArgument names the file and the key; its field is the key's path below `field`.

    `shows_values` is false for a file of secrets.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = path_of(first)
        text = f"{path} {words_of(first, shows_values)}" if path else words_of(first, shows_value=False)
        raise InvalidArgument(f"{file}: {text}", field=f"{field}.{path}" if path else field) from None


def path_of(error: Mapping[str, Any]) -> str:
    """The key of one of pydantic's errors, as in `rules[0].text`."""
    steps = [step for step in error["loc"] if step != "[key]"]
    steps += [error["ctx"]["key"]] if error["type"] == "unknown_key" else []
    return "".join(f"[{step}]" if isinstance(step, int) else f".{str(step)[:MAX_SHOWN]}" for step in steps).removeprefix(".")


def has_words(error: Mapping[str, Any]) -> bool:
    """Whether `words_of` has a sentence for this kind of error."""
    return error["type"] in _WORDS


def words_of(error: Mapping[str, Any], shows_value: bool = True) -> str:
    """What one of pydantic's errors says of its key: "must be at most 3: 7"."""
    kind, facts, value = error["type"], error.get("ctx", {}), error["input"]
    text: str = _WORDS.get(kind, "cannot be used").format(**facts)
    if kind in _WITHOUT_VALUE or not shows_value:
        return text
    if kind in _BY_LENGTH and isinstance(value, Sized):
        return f"{text}: {len(value)}"
    return f"{text}: {repr(value)[:MAX_SHOWN]}"
