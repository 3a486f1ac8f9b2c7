"""What a preference head is shown of a row: its replies, and for the choice loss replies to other prompts."""

from __future__ import annotations

import pytest
import torch

from polyhead.heads.training.data import Comparison, DataError
from polyhead.heads.training.losses import choice_loss, ranking_loss
from polyhead.heads.training.preference import PreferenceLoss, _loss, _off_topic, _with_one_best

ROWS = [Comparison(f"Q{index}", (f"good {index}", f"bad {index}"), (1, 2)) for index in range(4)]


def test_off_topic_replies_are_of_other_prompts_and_drawn_by_the_seed() -> None:
    again = Comparison("Q0", ("other", "replies"), (1, 2))  # a row of the same prompt
    drawn = _off_topic([*ROWS, again], 3, seed=1)
    assert [len(set(each)) for each in drawn] == [3] * 5
    for row, others in zip([*ROWS, again], drawn, strict=True):
        own = {reply for other in (*ROWS, again) if other.prompt == row.prompt for reply in other.replies}
        assert not own & set(others)
    assert drawn == _off_topic([*ROWS, again], 3, seed=1)
    assert drawn != _off_topic([*ROWS, again], 3, seed=2)
    assert [len(each) for each in _off_topic(ROWS, 99, seed=1)] == [6] * 4  # no more are there
    with pytest.raises(DataError, match="all rows have the same prompt"):
        _off_topic(ROWS[:1] * 2, 1, seed=1)


def test_each_loss_reads_its_own_scores() -> None:
    scores = torch.tensor([0.5, -1.0, 2.0, 0.25, 3.0])  # three replies, two off-topic ones behind them
    ranks = (2, 3, 1)
    assert _loss(scores, ranks, PreferenceLoss.CHOICE) == choice_loss(scores[:3], 2, scores[3:])
    assert _loss(scores[:3], ranks, PreferenceLoss.CHOICE) == choice_loss(scores[:3], 2)
    assert _loss(scores[:3], ranks, PreferenceLoss.RANKING) == ranking_loss(scores[:3], [(0, 1), (2, 0), (2, 1)])


def test_a_row_without_one_best_reply_gives_no_choice() -> None:
    tied = Comparison("Q", ("a", "b", "c"), (1, 1, 2))
    assert _with_one_best([*ROWS, tied]) == ROWS
    with pytest.raises(DataError, match="every row has several best replies"):
        _with_one_best([tied])
