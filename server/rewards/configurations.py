"""Configuration files: versioned YAML, read at start or added while the server runs. What a file holds is checked by its kind's own book.

A book is one kind's files: rules.py has rule sets and templates, text/transcripts.py transcript formats.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import yaml
from pydantic import Field

from polyhead.heads.format.errors import InvalidArgument, NotFound
from polyhead.heads.format.manifest import parse_reference
from polyhead.server.validation import FileModel, ModelT, Name, checked

MAX_FILE_BYTES = 256 << 10
MAX_VERSION = 999_999_999  # what a reference can name

T = TypeVar("T")


class ConfigurationKind(enum.Enum):
    """What a file describes, in the order of listings."""

    RULE_SET = "rule_set"
    RULE_TEMPLATE = "rule_template"
    RECIPE = "recipe"
    TRANSCRIPT_FORMAT = "transcript_format"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One file, as callers see it."""

    kind: ConfigurationKind
    reference: str  # "example-rules@1"
    sha256: str  # of the file
    content: str  # the file, YAML
    rules: tuple[tuple[str, str], ...] = ()  # a rule set's (id, text), in order
    set_aside: str = ""  # why the model's tokenizer cannot serve it; "": it is in use
    is_added: bool = False  # while a server ran; else it came with the server or its start


class Listed(Protocol):
    """Whatever has configurations to show."""

    def configurations(self) -> Iterable[Configuration]: ...


class Book(Listed, Protocol):
    """The files of one kind, or of a few that belong together."""

    def add(self, file: ConfigurationFile, keep: Callable[[], None] | None) -> None:
        """Check it, `keep` it, and let requests find it; another thread sees the book before or after.

        InvalidArgument; FailedPrecondition if the model's tokenizer cannot serve it: where it is kept already (None), it is set aside.
        """

    def remove(self, kind: ConfigurationKind, reference: str) -> None:
        """New requests find it no more."""


class Header(FileModel):
    """What every file begins with."""

    id: Name
    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A file whose id and version are good, and nothing else is checked."""

    name: str  # "mine.yaml": what errors call it, never its path
    field: str  # what errors put before a key: "recipes"
    reference: str
    sha256: str
    content: str
    values: Mapping[str, Any]  # all keys but id and version

    def checked(self, model: type[ModelT]) -> ModelT:
        """The values as a model. InvalidArgument names the file and the key."""
        return checked(model, self.values, self.name, self.field)

    def error(self, path: str, text: str) -> InvalidArgument:
        """For what no model says of one key alone: `path` is the key, and the text follows it."""
        return InvalidArgument(f"{self.name}: {path} {text}", field=f"{self.field}.{path}")

    def listed(self, kind: ConfigurationKind, rules: tuple[tuple[str, str], ...] = (), set_aside: str = "") -> Configuration:
        """As callers see it."""
        return Configuration(kind, self.reference, self.sha256, self.content, rules, set_aside)


def read_file(path: Path, field: str) -> ConfigurationFile:
    """Read one file. InvalidArgument says what is wrong, under `field`, by the file's name and never by its path."""
    try:
        return parse_file(path.read_bytes(), path.name, field)
    except OSError as error:
        raise InvalidArgument(f"cannot read {path.name}: {error.strerror}", field=field) from None


def parse_file(data: bytes, name: str, field: str) -> ConfigurationFile:
    """Parse one file's bytes. InvalidArgument calls it `name` and says what is wrong, under `field`."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{name} has {len(data)} bytes, at most {MAX_FILE_BYTES}", field=field)
    try:
        content = data.decode("utf-8")
        values = _StrictLoader(content).get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: not UTF-8, a date or a number that Python cannot hold
        where = f" in line {error.problem_mark.line + 1}" if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else ""
        what = error.problem if isinstance(error, yaml.MarkedYAMLError) else "not UTF-8 text, or a value that cannot be held"
        raise InvalidArgument(f"{name} is not YAML{where}: {what}", field=field) from None
    is_mapping = isinstance(values, dict)
    header = checked(Header, {key: values.pop(key) for key in Header.model_fields if key in values} if is_mapping else values, name, field)
    return ConfigurationFile(name, field, f"{header.id}@{header.version}", hashlib.sha256(data).hexdigest(), content, values)


def add_once(known: dict[str, T], reference: str, entry: T, field: str) -> None:
    """A version is one file: two that call themselves the same would make an answer's reference mean two things."""
    if reference in known:
        raise InvalidArgument(f"{reference} stands in two files: a change needs a new version", field=f"{field}.version")
    known[reference] = entry


def without(known: Mapping[str, T], reference: str) -> dict[str, T]:
    """A copy that lacks one entry."""
    return {name: entry for name, entry in known.items() if name != reference}


def find_newest(known: Mapping[str, T], reference: str, what: str, field: str) -> T:
    """By "name@version", or the newest version by "name". InvalidArgument for what is no reference; NotFound."""
    name, version = parse_reference(reference, field)
    versions = [number for other, number in (parse_reference(key, field) for key in known) if other == name and version in (0, number)]
    if not versions:
        raise NotFound(f"no such {what}: {reference!r}", field=field)
    return known[f"{name}@{max(versions)}"]


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice; YAML's own loaders take the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
