"""A prompt, its replies and the questions after them in one row give each path the numbers that it has alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyhead.heads.training.tree import Run, by_tokens, pack_tree
from tests.heads.training.test_training import parts

PROMPT, REPLIES, QUESTION = [5, 6, 7], [[8, 9], [10, 11, 12]], [13, 14]


def test_a_tree_equals_its_paths_one_by_one(tmp_path: Path) -> None:
    trunk, head = parts(tmp_path)
    paths = [[PROMPT, reply, QUESTION] for reply in REPLIES]
    flat = [sum(path, []) for path in paths]  # noqa: RUF017  three short lists
    with torch.no_grad():
        states = [trunk(torch.tensor([ids]), torch.arange(len(ids))[None])[0] for ids in flat]
        alone = [head(each[None], torch.arange(len(each))[None]) for each in states]
        runs = [Run(PROMPT, states[0][:3])]
        for reply, each in zip(REPLIES, states, strict=True):
            middle = 3 + len(reply)
            runs += [Run(reply, each[3:middle], parent=0), Run(QUESTION, each[middle:], parent=len(runs))]
        tree = pack_tree(runs)
        together = head(tree.states_1TD, tree.positions_1T, attention_mask=tree.mask_11TT)
    assert len(together) == len(PROMPT) + sum(map(len, REPLIES)) + 2 * len(QUESTION)
    for path_index, (run, ids) in enumerate(zip((2, 4), flat, strict=True)):
        rows = [tree.starts[each] + offset for each in tree.paths[run] for offset in range(len(runs[each].token_ids))]
        assert [int(tree.positions_1T[0, row]) for row in rows] == list(range(len(ids)))
        torch.testing.assert_close(together[rows], alone[path_index], atol=1e-4, rtol=0)


def test_rows_that_predict_a_run_begin_with_what_is_before_it() -> None:
    states = torch.zeros(3, 2)
    tree = pack_tree([Run([1, 2, 3], states), Run([4, 5], states[:2], 0), Run([6, 7], states[:2], 0)])
    assert tree.predicting_rows(0) == [0, 1]
    assert tree.predicting_rows(1) == [2, 3]
    assert tree.predicting_rows(2) == [2, 5]
    assert tree.last_row(2) == 6


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run([], torch.zeros(0, 2)), "run 0 must have tokens"),
        (Run([1], torch.zeros(2, 2)), "run 0 must have tokens and a state for each: 1 and 2"),
        (Run([1], torch.zeros(1, 2), parent=0), "run 0 must come after its parent: 0"),
    ],
)
def test_bad_runs(run: Run, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_tree([run])


def test_micro_batches_hold_at_most_so_many_tokens() -> None:
    assert by_tokens([3, 3, 3, 9, 1], 6) == [[0, 1], [2], [3], [4]]
    assert by_tokens([], 6) == []
