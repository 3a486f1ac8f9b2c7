"""A servicer's own data on a request (`Request.tag`), which the engine carries and does not read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from polyhead.server.engine.work.pooling import PromptPooling
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.text.replies import ReplyForm


class PromptScorer(Protocol):
    """Scores a prompt by its pooled row: an out-of-distribution fit (server/ood/fits.py)."""

    @property
    def reference(self) -> str:
        """The fit with its version: "helpful@2"."""

    @property
    def pooling(self) -> PromptPooling:
        """The row that it reads."""

    def score(self, row: np.ndarray) -> float:
        """How far a row, (d_model,) float64, lies from those of the fit."""


@dataclass(slots=True)
class Tag:
    """Of one request; by prompt index what its prompts share."""

    ood: PromptScorer | None = None
    shows_queue: bool = True  # its wait: not where other teams' work would show in it
    forms: dict[int, ReplyForm] = field(default_factory=dict)  # of those that are not the default
    ood_scores: dict[int, float] = field(default_factory=dict)  # of finished prompts, with `ood`

    def form(self, sample: Sample) -> ReplyForm:
        """What the sample's reply must look like."""
        return self.forms.get(sample.prompt_index, ReplyForm())


def tag_of(request: Request) -> Tag:
    """The request's tag; an empty one is made for a request that has none."""
    if request.tag is None:
        request.tag = Tag()
    assert isinstance(request.tag, Tag), "only servicers set the tag"
    return request.tag
