"""docs/reference/client.md: every name that polyhead.client offers, from signatures, docstrings and the comments beside fields."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import re
import textwrap
from collections.abc import Iterator

import polyhead.client
from polyhead.client import Client
from tests.docs.markdown import code, plain, prose, table

INTRODUCTION = """# Client

`polyhead.client` is a light install: grpcio, protobuf, googleapis-common-protos, numpy and safetensors; no torch and no transformers.
`Client` is for ordinary code. `AsyncClient` has the same methods, to be awaited; `stream`, `samples`, `events` and `watch` are used with
`async for`. Errors are in [their own table](errors.md). This page is made from the code by `python -m tests.docs.reference`.
"""
OPTIONS = {"generate": "generate, samples and events", "score": "score", "push": "push, push_head and update", "copy_head": "copy_head"}


def page() -> str:
    functions = [name for name in polyhead.client.__all__ if inspect.isfunction(getattr(polyhead.client, name))]
    classes = [name for name in polyhead.client.__all__ if _is_result(getattr(polyhead.client, name))]
    parts = [INTRODUCTION, _client(), *(_options(method, title) for method, title in OPTIONS.items())]
    parts += ["## Functions\n", _functions(functions), "## Results and arguments\n"]
    parts += [_class(name) for name in classes]
    return "\n".join(parts)


def _is_result(value: object) -> bool:
    return inspect.isclass(value) and value.__name__ not in ("Client", "AsyncClient", "PolyheadError")


def _client() -> str:
    found = [item for part in Client.__mro__[:-1] for item in vars(part).items()]  # generation and scoring, then heads, then the trunk
    methods = [(name, value) for name, value in found if not name.startswith("_") and inspect.isfunction(value)]
    rows = [(code(name + _parameters(value)), plain(_summary(value))) for name, value in methods]
    opening = f"## Client\n\n{code('Client' + _parameters(Client.__init__))}\n\n{prose(plain(_first_part(Client.__doc__)))}\n"
    return f"{opening}\n{table(('method', 'what it does'), rows)}"


def _parameters(function: object) -> str:
    """Names and defaults; the documented options of the larger calls stay `**options`."""
    signature = inspect.signature(inspect.unwrap(function))  # type: ignore[arg-type]
    documented = {name for name, _ in _documented_options(inspect.getdoc(function) or "")}
    shown = [_parameter(each) for each in signature.parameters.values() if each.name not in {"self", *documented}]
    if "*" not in "".join(shown):
        keyword = [index for index, each in enumerate(_kept(signature, documented)) if each.kind is inspect.Parameter.KEYWORD_ONLY]
        shown = [*shown[: keyword[0]], "*", *shown[keyword[0] :]] if keyword else shown
    shown += ["**options"] if documented else []
    return f"({', '.join(shown)})"


def _kept(signature: inspect.Signature, documented: set[str]) -> list[inspect.Parameter]:
    return [each for each in signature.parameters.values() if each.name not in {"self", *documented}]


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
    return f"{stars}{parameter.name}{default}"


def _first_part(docstring: str | None) -> str:
    """Without the lists of errors and options."""
    return inspect.cleandoc(docstring or "").split("\n\nRaises\n")[0]


def _summary(value: object) -> str:
    return " ".join(_first_part(value.__doc__).split())


def _documented_options(docstring: str) -> Iterator[tuple[str, str]]:
    _, found, options = docstring.partition("\nOptions\n")
    if found:
        yield from re.findall(r"^    (\w+): (.*)$", options, re.MULTILINE)


def _options(method: str, title: str) -> str:
    rows = [(code(name), plain(text)) for name, text in _documented_options(inspect.getdoc(getattr(Client, method)) or "")]
    return f"## Options of {title}\n\n{table(('option', 'meaning'), rows)}"


def _functions(names: list[str]) -> str:
    functions = [(name, getattr(polyhead.client, name)) for name in names]
    return table(("function", "what it does"), [(code(name + _parameters(value)), plain(_summary(value))) for name, value in functions])


def _class(name: str) -> str:
    value = getattr(polyhead.client, name)
    heading = f"### {name}\n\n{prose(plain(_first_part(value.__doc__)))}\n"
    if issubclass(value, enum.Enum):
        members = ", ".join(code(member.value) for member in value if member.value)
        return f"{heading}\nValues: {members}.\n"
    rows = [*_fields(value), *_properties(value)] if dataclasses.is_dataclass(value) else _properties(value)
    return f"{heading}\n{table(('name', 'type', 'meaning'), rows)}" if rows else heading


def _fields(value: type) -> list[tuple[str, str, str]]:
    """Of the class itself and of those that it inherits from, each with the comment that stands beside it."""
    rows: dict[str, tuple[str, str, str]] = {}
    for base in reversed(value.__mro__):
        if dataclasses.is_dataclass(base):
            rows |= {row[0]: row for row in _own_fields(base)}
    return list(rows.values())


def _own_fields(value: type) -> Iterator[tuple[str, str, str]]:
    source = textwrap.dedent(inspect.getsource(value))
    lines = source.splitlines()
    [tree] = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            comment = re.search(r"  # (.*)$", lines[(node.end_lineno or node.lineno) - 1])
            yield code(node.target.id), code(ast.unparse(node.annotation)), plain(comment[1]) if comment else ""


def _properties(value: type) -> list[tuple[str, str, str]]:
    rows = []
    for name, member in vars(value).items():
        if isinstance(member, property) and not name.startswith("_"):
            rows.append((code(name), "property", plain(_summary(member))))
        elif inspect.isfunction(member) and not name.startswith("_"):
            rows.append((code(name + _parameters(member)), "method", plain(_summary(member))))
    return rows
