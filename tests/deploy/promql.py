"""Reads the names out of a PromQL expression: metrics, labels, matchers, functions. Knows enough grammar to refuse what is no query.

It computes nothing. A full parser (promtool) is no Python package; what this one is for is that no expression names what is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

AGGREGATIONS = {"sum", "min", "max", "avg", "count", "topk", "bottomk", "stddev"}
OVER_RANGES = {"rate", "irate", "increase", "changes", "delta", "resets", "avg_over_time", "max_over_time", "min_over_time"}
FUNCTIONS = OVER_RANGES | {"histogram_quantile", "abs", "clamp_min", "clamp_max", "time", "absent", "sort", "sort_desc", "round"}
LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless"}

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<text>"[^"\\]*")|(?P<range>\[[^\]\[]+\])|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>={}(),])"""
)
_RANGE = re.compile(r"\[(?:\d+(?:ms|s|m|h|d|w|y)|\$__(?:rate_)?interval)\]")


class BadQuery(ValueError):
    """The text is no query, or more of one than this module reads."""


@dataclass(frozen=True, slots=True)
class Matcher:
    label: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    metric: str
    matchers: tuple[Matcher, ...]
    is_range: bool
    function: str  # whose argument it is; "" for none


@dataclass(slots=True)
class Query:
    selectors: list[Selector] = field(default_factory=list)
    grouped_by: set[str] = field(default_factory=set)  # labels of by, on, group_left and their like
    functions: set[str] = field(default_factory=set)


def tokens(text: str) -> list[tuple[str, str]]:
    """(sort, text) without spaces; BadQuery for a character that starts nothing."""
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadQuery(f"no token at {text[position : position + 20]!r}")
        position = match.end()
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match[0]))
    return found


def read(text: str) -> Query:
    """The names of an expression. BadQuery if brackets do not match, a function is unknown, or a range is where none may be."""
    return _Reader(tokens(text)).read()


class _Reader:
    def __init__(self, found: list[tuple[str, str]]) -> None:
        self._tokens = found
        self._next = 0
        self._query = Query()
        self._open: list[str] = []  # function of each open bracket

    def read(self) -> Query:
        expects_value = True  # an operator needs one, and two may not follow each other
        while self._next < len(self._tokens):
            sort, text = self._take()
            if sort == "name":
                expects_value = self._name(text, expects_value)
            elif sort == "number":
                expects_value = self._value(text, expects_value)
            elif text == "(":
                self._value(text, expects_value)
                self._open.append(self._called())
                expects_value = self._peek() != ")"
            elif text == ")":
                if not self._open or expects_value:
                    raise BadQuery(f"unexpected ) at token {self._next}")
                self._open.pop()
                expects_value = False
            elif sort == "sign" and text not in ("{", "}", "=", "=~", "!~"):
                if expects_value and text != "-":
                    raise BadQuery(f"unexpected {text}")
                expects_value = True
            else:
                raise BadQuery(f"unexpected {text}")
        if self._open or expects_value:
            raise BadQuery("the expression stops in the middle")
        return self._query

    def _name(self, text: str, expects_value: bool) -> bool:
        """Handle a name; whether a value has to follow it."""
        if text in OPERATORS:
            if expects_value:
                raise BadQuery(f"unexpected {text}")
            return True
        if text in LABEL_LISTS:
            self._query.grouped_by |= set(self._labels())
            return True
        if text in AGGREGATIONS and self._peek() in LABEL_LISTS:
            self._value(text, expects_value)
            self._query.functions.add(text)
            return True
        self._value(text, expects_value)
        if self._peek() == "(":
            if text not in FUNCTIONS | AGGREGATIONS:
                raise BadQuery(f"unknown function: {text}")
            self._query.functions.add(text)
            return True
        self._selector(text)
        return False

    def _value(self, text: str, expects_value: bool) -> bool:
        if not expects_value:
            raise BadQuery(f"an operator is missing before {text}")
        return False

    def _called(self) -> str:
        """The function whose bracket was just opened."""
        previous = self._tokens[self._next - 2][1] if self._next >= 2 else ""
        return previous if previous in FUNCTIONS else ""

    def _selector(self, metric: str) -> None:
        matchers = tuple(self._matchers()) if self._peek() == "{" else ()
        is_range = self._next < len(self._tokens) and self._tokens[self._next][0] == "range"
        if is_range and not _RANGE.fullmatch(self._take()[1]):
            raise BadQuery(f"no duration: {self._tokens[self._next - 1][1]}")
        function = self._open[-1] if self._open else ""
        if is_range != (function in OVER_RANGES):
            raise BadQuery(f"{metric} {'may not have' if is_range else 'needs'} a range in {function or 'the expression'}")
        self._query.selectors.append(Selector(metric, matchers, is_range, function))

    def _matchers(self) -> Iterator[Matcher]:
        self._expect("{")
        while self._peek() != "}":
            label, operator, value = (self._take() for _ in range(3))
            if (label[0], value[0]) != ("name", "text") or operator[1] not in ("=", "!=", "=~", "!~"):
                raise BadQuery(f"no matcher: {label[1]}{operator[1]}{value[1]}")
            yield Matcher(label[1], operator[1], value[1][1:-1])
            if self._peek() != "}":
                self._expect(",")
        self._expect("}")

    def _labels(self) -> Iterator[str]:
        self._expect("(")
        while self._peek() != ")":
            sort, label = self._take()
            if sort != "name":
                raise BadQuery(f"no label: {label}")
            yield label
            if self._peek() != ")":
                self._expect(",")
        self._expect(")")

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _take(self) -> tuple[str, str]:
        if self._next >= len(self._tokens):
            raise BadQuery("the expression stops in the middle")
        self._next += 1
        return self._tokens[self._next - 1]

    def _expect(self, text: str) -> None:
        if self._take()[1] != text:
            raise BadQuery(f"{text} expected, found {self._tokens[self._next - 1][1]}")
