"""The arithmetic of a calibration, and every answer that is no number to average."""

from __future__ import annotations

import pytest

from polyhead.client import errors
from polyhead.client.calibrating import BATCH_ITEMS, CalibrationPlan
from polyhead.client.results.records import HeadManifest, HeadVersion
from polyhead.client.results.results import HeadKind, HeadScore, PreferenceScore, ScoredItem, Served

REF = "preference@3"


def head(kind: HeadKind = HeadKind.PREFERENCE) -> HeadVersion:
    manifest = HeadManifest(kind, "ab" * 32, "float32", "score", "", False, 0.5, "last", -1, "read_last", -1, -1, "")
    return HeadVersion("preference", 3, "dd" * 32, 10, manifest, True, True, 0.0, ())


def score(raw: float, present: bool = True) -> PreferenceScore:
    return PreferenceScore(REF, HeadKind.PREFERENCE, 3, "dd" * 32, "", value=raw - 0.5, raw=raw, bias=0.5, present=present, position=1)


def item(given: HeadScore | None, error: str = "") -> ScoredItem:
    return ScoredItem([1], [2], True, {REF: given} if given else {}, error, 0, "r", Served())


def test_bias_and_spread_by_hand() -> None:
    plan = CalibrationPlan(head(), [("p", "c")] * 4)
    plan.take([item(score(1.0)), item(score(2.0))])
    plan.take([item(score(3.0)), item(score(6.0))])
    done = plan.result(4, None)
    assert (done.bias, done.old_bias, done.num_items) == (3.0, 0.5, 4)
    assert done.std == pytest.approx(3.5**0.5)
    assert (done.name, done.version, done.source) == ("preference", 4, REF)


def test_a_scale_gives_the_references_unit_variance() -> None:
    plan = CalibrationPlan(head(), [("p", "c")] * 2, scale=True)
    plan.take([item(score(1.0)), item(score(5.0))])
    assert (plan.bias, plan.scale, plan.result(4, None).scale) == (3.0, 2.0, 2.0)
    plain = CalibrationPlan(head(), [("p", "c")] * 2)
    plain.take([item(score(1.0)), item(score(5.0))])
    assert (plain.scale, plain.result(4, None).scale) == (None, 1.0)


def test_equal_scores_cannot_be_scaled() -> None:
    plan = CalibrationPlan(head(), [("p", "c")] * 2, scale=True)
    plan.take([item(score(1.0)), item(score(1.0))])
    with pytest.raises(errors.FailedPrecondition, match="one raw score"):
        _ = plan.scale


def test_batches_cover_every_item_once() -> None:
    items = [("p", str(index)) for index in range(2 * BATCH_ITEMS + 1)]
    batches = list(CalibrationPlan(head(), items).batches())
    assert [len(batch) for batch in batches] == [BATCH_ITEMS, BATCH_ITEMS, 1]
    assert [each for batch in batches for each in batch] == items


FAILED = HeadScore(REF, HeadKind.PREFERENCE, 3, "dd" * 32, "not finite")
BAD = {
    "failed": (item(FAILED), "no score of preference@3: not finite"),
    "the item failed": (item(None, "too long"), "no score of preference@3: too long"),
    "missing": (item(None), "the server sent none"),
    "left out": (item(score(0.0, present=False)), "no score of preference@3\nhint: the head leaves out"),
    "not a number": (item(score(float("nan"))), "not finite: nan"),
    "infinite": (item(score(float("-inf"))), "not finite: -inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_score_that_is_no_number_refuses_the_whole_naming_the_item(name: str) -> None:
    bad, message = BAD[name]
    plan = CalibrationPlan(head(), [("p", "c")] * 3)
    plan.take([item(score(1.0))])
    with pytest.raises(errors.FailedPrecondition, match=message) as caught, plan.counting():
        plan.take([item(score(1.0)), bad])
    assert caught.value.field == "items[2]"


def test_only_lists_of_references_and_preference_heads() -> None:
    with pytest.raises(errors.FailedPrecondition, match="preference@3 is a value head"):
        CalibrationPlan(head(HeadKind.VALUE), [("p", "c")])
    with pytest.raises(errors.InvalidArgument, match="no references"):
        CalibrationPlan(head(), [])
    for items in ("text", ("p", "c")):
        with pytest.raises(TypeError, match="items must be a list"):
            CalibrationPlan(head(), items)
