"""Numbers that are not finite never pass for a score, and never become part of a fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from polyhead.heads.format.errors import DataLoss
from polyhead.server.engine.work.live import Lease
from polyhead.server.engine.work.pooling import Pooling, PromptPooling
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rpc.messages import answers
from polyhead.server.rpc.services.ood import OodFitting
from polyhead.server.rpc.tag import Tag, tag_of
from polyhead.server.text.replies import ReplyCheck

POOL = PromptPooling(2, Pooling.MEAN)


class Fit:
    reference = "helpful@2"
    pooling = POOL

    def score(self, row: np.ndarray) -> float:
        return float(row.sum())


def scored(ood_score: float | None, error: str = "") -> Any:
    request = Request("r", lambda *_: None, head_kinds={}, pinned={}, pooling=POOL, tag=Tag(ood=Fit()))
    request.lease = Lease(1, {})
    sample = Sample(request, 0, 0, 0, [5], TokenSequence([5]), SamplingParams(), error=error)
    if ood_score is not None:
        tag_of(request).ood_scores[0] = ood_score
    return answers.scored_item(sample, ReplyCheck(True, (), 0), None)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error_of_its_item(score: float) -> None:
    item = scored(score)
    assert not item.HasField("ood")
    assert item.error == "the out-of-distribution score of helpful@2 is not finite"
    assert scored(score, error="before").error == "before"


def test_a_score_names_fit_and_layer() -> None:
    item = scored(1.5)
    assert (item.ood.fit, item.ood.layer, item.ood.score, item.error) == ("helpful@2", 2, 1.5, "")
    assert not scored(None).HasField("ood")


async def test_states_that_are_not_finite_end_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def encode(*_: object) -> np.ndarray:
        return np.array([[1.0, 2.0], [1.0, np.nan]])

    monkeypatch.setattr(OodFitting, "_encode", encode)
    fitting = OodFitting(cast(Any, SimpleNamespace(services=None)))
    with pytest.raises(DataLoss, match=r"not finite for prompts\[65\]"):
        await fitting._rows([([5], ""), ([6], "")], POOL, before=64)
