"""The formula against numbers worked out by hand, and what a fit refuses."""

from __future__ import annotations

import numpy as np
import pytest

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.ood import scores as scores_module
from polyhead.server.ood.scores import Moments, OodModel, fit

# 16 rows: (2, 1), (-2, -1), (1, 2), (-1, -2), each four times. Mean 0; sums of squares 40 and 40, of products 32.
ROWS = np.array([[2, 1], [-2, -1], [1, 2], [-1, -2]] * 4, dtype=np.float64)


def moments_of(*parts: np.ndarray) -> Moments:
    moments = Moments(parts[0].shape[1])
    for part in parts:
        moments.add(part)
    return moments


def fitted(rows: np.ndarray, shrinkage: float) -> OodModel:
    return fit(moments_of(rows), shrinkage, "prompts")[0]


def test_by_hand_without_shrinkage() -> None:
    """S = [[a, b], [b, a]] with a = 40/15 = 8/3 and b = 32/15. S^-1 = [[a, -b], [-b, a]] / (a^2 - b^2), a^2 - b^2 = 64/25.

    v = (1, 1): 2 (a - b) / (64/25) = 2 / (a + b) = 5/12; diagonal: 2 / a = 3/4. Together 5/12 - 3/4 = -1/3.
    v = (1, -1): 2 / (a - b) = 15/4; diagonal 3/4; together 3: against the correlation, so it is strange.
    """
    model = fitted(ROWS, 0.0)
    assert model.score(np.array([1.0, 1.0])) == pytest.approx(-1 / 3)
    assert model.score(np.array([1.0, -1.0])) == pytest.approx(3.0)
    assert model.score(np.array([0.0, 0.0])) == 0.0


def test_by_hand_with_shrinkage() -> None:
    """Half of the mean variance, 4/3, onto the diagonal: a = 4, b = 32/15, both in S and in its diagonal.

    v = (1, -1): 2 / (a - b) - 2 / a = 15/14 - 1/2 = 4/7.
    """
    assert fitted(ROWS, 0.5).score(np.array([1.0, -1.0])) == pytest.approx(4 / 7)


def test_the_mean_counts() -> None:
    """Rows and row moved by the same offset: the same score."""
    offset = np.array([100.0, -7.0])
    assert fitted(ROWS + offset, 0.5).score(offset + np.array([1.0, -1.0])) == pytest.approx(4 / 7)


def test_uncorrelated_features_score_nothing() -> None:
    rows = np.array([[1, 0], [-1, 0], [0, 5], [0, -5]] * 4, dtype=np.float64)
    for row in ([3.0, 4.0], [100.0, 0.0]):
        assert fitted(rows, 0.01).score(np.array(row)) == pytest.approx(0.0, abs=1e-9)


def test_spread_of_the_fitted_rows_by_hand() -> None:
    """Rows (2, 1): with c = 25/64, S^-1 gives c (a 5 - b 4) = c 72/15 = 15/8, the diagonal 5 * 3/8 = 15/8. So each row scores 0."""
    spread = fit(moments_of(ROWS), 0.0, "prompts")[1]
    assert (spread.mean, spread.std) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_spread_is_that_of_the_scores() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 6)) @ np.random.default_rng(2).normal(size=(6, 6))
    model, spread = fit(moments_of(rows), 0.1, "prompts")
    scores = [model.score(row) for row in rows]
    assert (spread.mean, spread.std) == pytest.approx((np.mean(scores), np.std(scores)))


def test_parts_of_any_size_make_the_moments_of_the_whole() -> None:
    """Far from the origin, where sums of squares would cancel."""
    rows = np.random.default_rng(0).normal(size=(97, 5)) + 1e6
    for cuts in ([1, 2, 50], [96], [], [0, 40, 40]):
        moments = moments_of(*np.split(rows, cuts))
        assert moments.num_rows == 97
        assert np.allclose(moments.mean, rows.mean(axis=0), rtol=0, atol=1e-8)
        assert np.allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=0, atol=1e-8)


def test_rows_that_are_kept_are_bounded_and_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "MAX_SPREAD_ROWS", 100)
    moments = moments_of(*(np.full((1, 1), float(number)) for number in range(2000)))
    kept = moments.sampled_rows[:, 0]
    assert len(set(kept)) == 100
    assert 800 < kept.mean() < 1200
    assert moments.mean == pytest.approx([999.5])


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    rows = np.random.default_rng(3).normal(size=(64, 32))
    model = fitted(rows, 0.01)
    assert [model.score(row) for row in rows] == [model.score(row.copy()) for row in rows]


REFUSED = {
    "none": (np.zeros((0, 2)), 0.1, "at least 16 prompts: 0"),
    "15": (ROWS[:15], 0.1, "at least 16 prompts: 15"),
    "as many as dimensions": (np.random.default_rng(0).normal(size=(20, 20)), 0.0, "at least 21 prompts: 20"),
    "all alike": (np.full((40, 3), 1 / 3) * np.array([1.0, 1 + 1e-8, 1.0]), 0.1, "all alike"),
    "all zero": (np.zeros((40, 3)), 0.1, "all alike"),
    "a direction without variance": (np.hstack([ROWS, np.zeros((16, 1))]), 0.0, "do not vary in all directions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_fit_can_be_made_of(name: str) -> None:
    rows, shrinkage, message = REFUSED[name]
    with pytest.raises(InvalidArgument, match=message) as caught:
        fit(moments_of(rows), shrinkage, "prompts")
    assert caught.value.field == "prompts"


@pytest.mark.parametrize("shrinkage", [-0.01, 1.01, float("nan"), float("inf")])
def test_shrinkage_has_bounds(shrinkage: float) -> None:
    with pytest.raises(InvalidArgument, match="between 0 and 1"):
        scores_module.check_shrinkage(shrinkage, "header.shrinkage")
