"""Cases of tests that have two dimensions: enough of them in `make test`, all in `make test-long`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def in_turn(many: Iterable[Any], few: Iterable[Any]) -> list[Any]:
    """Parameters for every pair. Those that are not `long` have each of `many` once, with the members of `few` in turn."""
    many, few = list(many), list(few)
    short = set(zip(many, itertools.cycle(few), strict=False))
    return [pytest.param(*pair, marks=() if pair in short else pytest.mark.long) for pair in itertools.product(many, few)]
