"""Tiles, which are where processors differ: on this one, and in processes that believe to run on less."""

from __future__ import annotations

import pytest

from tests.server.engine.compiled.processors import OTHER_PROCESSORS, pretending, run_python
from tests.server.engine.compiled.tiles import check_float32, check_int8


def test_tiles_of_float32() -> None:
    check_float32()


def test_tiles_of_int8() -> None:
    check_int8()


@pytest.mark.parametrize("name", OTHER_PROCESSORS)
def test_tiles_of_other_processors(name: str) -> None:
    """Whole layers on them are in the long tests: they take a minute to compile."""
    run_python(pretending(name) + "import runpy\nrunpy.run_module('tests.server.engine.compiled.tiles', run_name='__main__')\n")
