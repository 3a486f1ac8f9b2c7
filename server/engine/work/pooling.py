"""Pooling: one row of trunk output for a whole prompt, for embeddings and out-of-distribution scores."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Pooling(enum.Enum):
    """How the states of a prompt's tokens become one row."""

    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class PromptPooling:
    """At which layer a prompt's states are pooled, and how."""

    layer: int  # number of layers below it: the split layer or the tap layer
    method: Pooling
