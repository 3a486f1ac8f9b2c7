"""The number formats: what weights are served in (`Precision`), and what a head's file holds (`FILE_DTYPES`). Standard library only."""

from __future__ import annotations

import enum

from polyhead.heads.format.errors import InvalidArgument


class Precision(enum.StrEnum):
    """How the weights of a trunk or of a head are held. Its value is what manifests, flags and messages say."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"  # of a trunk that a head was trained on; nothing is served in it
    INT8 = "int8"
    FP8 = "fp8"  # on a GPU

    @property
    def is_served(self) -> bool:
        """Whether a server can hold weights in it."""
        return self is not Precision.FLOAT16

    @classmethod
    def parse(cls, text: str, field: str) -> Precision:
        """InvalidArgument names the field."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidArgument(f"unknown precision: {text[:40]!r}", field=field) from None


SERVED_PRECISIONS = tuple(each for each in Precision if each.is_served)

# The dtypes that a head's tensors may have, as a safetensors header spells them, in the order in which the safetensors library writes
# them: large items first, so that all stay aligned. The value is the name that torch, numpy and the contract use.
FILE_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
