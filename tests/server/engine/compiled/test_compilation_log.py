"""A first start compiles for up to a minute: it says so before, and only then."""

from __future__ import annotations

import logging
from pathlib import Path

import numba
import pytest
from numba import types

from polyhead.server.engine.compiled.region import announcing_compilation


def doubled(x: float) -> float:
    return 2.0 * x


def test_only_a_start_that_compiles_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The first start was silent for up to a minute, and looked hung."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("polyhead"), "propagate", True)
    caplog.set_level(logging.INFO)

    def said_while_compiling() -> list[str]:
        caplog.clear()
        with announcing_compilation():
            assert numba.cfunc(types.float64(types.float64), cache=True)(doubled).ctypes(1.5) == 3.0
        return [record.message for record in caplog.records if record.name.startswith("polyhead")]

    (line,) = said_while_compiling()
    assert line.startswith("compiling the layers for this machine: up to a minute, once")
    assert said_while_compiling() == [], "the second time it was read from the disk"
