"""A preference head's bias and scale from reference completions: mean and deviation of their raw scores. Both clients drive it.

plan = CalibrationPlan(head, items)               # refuses what is wrong in itself
with plan.counting():                             # for each of plan.batches()
    plan.take(score(batch, heads=[plan.head.ref]))
copy_head(..., bias=plan.bias, scale=plan.scale); plan.result(...)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from polyhead.client.errors import FailedPrecondition, InvalidArgument, counted_from
from polyhead.client.jsonl import BATCH_ITEMS
from polyhead.client.results.records import Calibration, Generation, HeadVersion
from polyhead.client.results.results import HeadKind, PreferenceScore, ScoredItem

__all__ = ["CalibrationPlan"]

MIN_STD = 1e-9  # what a server takes as a scale at least


class CalibrationPlan:
    """One version's raw scores on the references, gathered batch by batch."""

    def __init__(self, head: HeadVersion, items: Sequence[Any], scale: bool = False) -> None:
        """FailedPrecondition for a head of another kind; InvalidArgument without items."""
        if head.kind is not HeadKind.PREFERENCE:
            raise FailedPrecondition(f"only a preference head has a bias: {head.ref} is a {head.kind.value} head", field="head")
        if isinstance(items, (str, tuple)) or not isinstance(items, Sequence):
            raise TypeError(f"items must be a list of (prompt, completion) pairs: {type(items).__name__}")
        if not items:
            raise InvalidArgument("there are no references to calibrate with", field="items")
        self.head = head
        self._scales = scale
        self._items = items
        self._raw: list[float] = []

    def batches(self) -> Iterator[Sequence[Any]]:
        """The items, so many at a time as one call answers."""
        for start in range(0, len(self._items), BATCH_ITEMS):
            yield self._items[start : start + BATCH_ITEMS]

    def counting(self) -> AbstractContextManager[None]:
        """The server counts a batch's items from 0: in errors they are counted from the start of all."""
        return counted_from(len(self._raw), "items")

    def take(self, scored: Sequence[ScoredItem]) -> None:
        """A batch's answers. FailedPrecondition, naming the item, for a score that is missing or not finite."""
        self._raw += [self._raw_of(item, f"items[{index}]") for index, item in enumerate(scored)]

    def _raw_of(self, item: ScoredItem, field: str) -> float:
        score = item.scores.get(self.head.ref)
        if not isinstance(score, PreferenceScore):
            why = item.error or (score.error if score else "") or "the server sent none"
            raise FailedPrecondition(f"a reference has no score of {self.head.ref}: {why}", field=field)
        if not score.present:
            hint = "the head leaves out completions that did not end by themselves"
            raise FailedPrecondition(f"a reference has no score of {self.head.ref}\nhint: {hint}", field=field)
        if not math.isfinite(score.raw):
            raise FailedPrecondition(f"a reference's score of {self.head.ref} is not finite: {score.raw}", field=field)
        return score.raw

    @property
    def bias(self) -> float:
        """The mean raw score, which centres these references on 0."""
        return float(np.mean(self._raw, dtype=np.float64))

    @property
    def std(self) -> float:
        """Standard deviation of the raw scores."""
        return float(np.std(self._raw, dtype=np.float64))

    @property
    def scale(self) -> float | None:
        """Of the new version; None: the source's. FailedPrecondition if the scores do not differ, and are to be scaled."""
        if not self._scales:
            return None
        if self.std < MIN_STD:
            raise FailedPrecondition(
                f"the {len(self._raw)} references have one raw score, which no scale gives a variance of 1: {self.bias:g}\n"
                "hint: leave scale out, or give references that differ",
                field="items",
            )
        return self.std

    def result(self, version: int, generation: Generation | None) -> Calibration:
        return Calibration(
            name=self.head.name,
            version=version,
            source=self.head.ref,
            old_bias=self.head.manifest.bias,
            bias=self.bias,
            num_items=len(self._raw),
            std=self.std,
            generation=generation,
            scale=self.scale or self.head.manifest.scale,
        )
