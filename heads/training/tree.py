"""Texts that share beginnings, in one flat row of boundary states: a prompt, its replies, the rule questions after each reply.

A tree of runs of tokens. Each token sees what is before it on its own path and nothing else, so that a prompt is computed once for all of
its replies and a reply once for all of its questions. Beside packing.py, which puts whole texts end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """A run of n tokens of one path, after the run `parent`."""

    token_ids: list[int]
    states: Tensor  # (n, d_model): boundary states, computed with the whole path before the run
    parent: int | None = None  # index of an earlier run of the same sequence; None: the path begins here


@dataclass(frozen=True)
class PackedTree:
    """Runs in one row: T tokens in all."""

    states_1TD: Tensor
    positions_1T: Tensor  # place of each token on its path
    mask_11TT: Tensor  # True: sees
    starts: list[int]  # row of each run's first token
    paths: list[list[int]]  # indices of the runs on the way to each run, itself last
    runs: Sequence[Run]

    def last_row(self, run: int) -> int:
        """Row of the run's last token."""
        return self.starts[run] + len(self.runs[run].token_ids) - 1

    def predicting_rows(self, run: int) -> list[int]:
        """Rows whose logits predict the run's tokens: the last one before it on its path, then its own without the last."""
        parent = self.runs[run].parent
        first = [] if parent is None else [self.last_row(parent)]
        return [*first, *range(self.starts[run], self.last_row(run))]


def pack_tree(runs: Sequence[Run]) -> PackedTree:
    """Lay the runs out in their order. Raises ValueError for an empty run, states that do not fit, and a parent that is not before it."""
    starts: list[int] = []
    offsets: list[int] = []
    paths: list[list[int]] = []
    end = 0
    for index, run in enumerate(runs):
        _check(run, index)
        before = [] if run.parent is None else paths[run.parent]
        paths.append([*before, index])
        offsets.append(sum(len(runs[each].token_ids) for each in before))
        starts.append(end)
        end += len(run.token_ids)
    owner = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor([len(run.token_ids) for run in runs]))
    is_on_path = torch.zeros(len(runs), len(runs), dtype=torch.bool)
    for index, path in enumerate(paths):
        is_on_path[index, path] = True
    order = torch.arange(end)
    mask_TT = is_on_path[owner][:, owner] & (order[:, None] >= order[None, :])
    positions = [torch.arange(offset, offset + len(run.token_ids)) for offset, run in zip(offsets, runs, strict=True)]
    return PackedTree(
        states_1TD=torch.cat([run.states for run in runs])[None],
        positions_1T=torch.cat(positions)[None],
        mask_11TT=mask_TT[None, None],
        starts=starts,
        paths=paths,
        runs=runs,
    )


def by_tokens(sizes: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices of `sizes` in their order, cut into micro-batches of at most `most_tokens` each; a larger item gets one of its own."""
    batches: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not batches or size > room:
            batches.append([])
            room = most_tokens
        batches[-1].append(index)
        room -= size
    return batches


def _check(run: Run, index: int) -> None:
    if not run.token_ids or len(run.token_ids) != len(run.states):
        raise ValueError(f"run {index} must have tokens and a state for each: {len(run.token_ids)} and {len(run.states)}")
    if run.parent is not None and not 0 <= run.parent < index:
        raise ValueError(f"run {index} must come after its parent: {run.parent}")
