"""head.json: the scale of a scalar head, which files of older servers do not have."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest

PLAIN = HeadManifest(HeadKind.PREFERENCE, "ab" * 32, 2, 4, OutputKind.SCORE, bias=0.5)


def test_a_file_without_a_scale_is_read_as_one() -> None:
    """And a head that has none is written as it was, so that an older server reads it."""
    text = PLAIN.to_json()
    assert "scale" not in json.loads(text)
    assert HeadManifest.from_json(text) == PLAIN
    assert PLAIN.centred(2.0) == 1.5


def test_a_scale_is_kept_and_divides() -> None:
    scaled = dataclasses.replace(PLAIN, scale=4.0)
    assert HeadManifest.from_json(scaled.to_json()) == scaled
    assert scaled.centred(2.5) == 0.5


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-12])
def test_a_scale_that_cannot_divide_is_refused_by_name(scale: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        dataclasses.replace(PLAIN, scale=scale).validate()
    assert caught.value.field == "manifest.scale"
