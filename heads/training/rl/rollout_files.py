"""A round's rollouts on disk, whole or not at all: a run that is killed after them goes on with the same bits.

One safetensors file a round; the newest `keep` stay. Texts and lengths are in its metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.heads.training.rl.rollout import Group, Reply, Rollout
from polyhead.heads.training.tensor_files import read_tensors, write_tensors

_ROWS = ("drawn_T", "logprobs_T", "reference_T", "values_T", "versions_T")


@dataclass(frozen=True)
class RolloutFolder:
    """Rollouts by round and attempt: a round that is drawn again after a rollback has a file of its own."""

    folder: Path
    keep: int = 2

    def path(self, round_number: int, attempt: int) -> Path:
        return self.folder / f"round-{round_number:06d}-attempt-{attempt}.safetensors"

    def save(self, rollout: Rollout, round_number: int, attempt: int) -> None:
        """Write them and delete the oldest. Raises OSError if the disk is full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path(round_number, attempt), _tensors(rollout), {"rollout": json.dumps(_facts(rollout))})
        for old in sorted(self.folder.glob("round-*.safetensors"), key=lambda each: each.stat().st_mtime_ns)[: -self.keep]:
            old.unlink()

    def load(self, round_number: int, attempt: int) -> Rollout | None:
        """None if they are not there, or damaged: then they are drawn again."""
        if (found := read_tensors(self.path(round_number, attempt), "np")) is None:
            return None
        tensors, metadata = found
        return _rollout(json.loads(metadata["rollout"]), tensors)


def _tensors(rollout: Rollout) -> dict[str, Tensor]:
    replies = rollout.replies
    rows = {name: np.concatenate([getattr(reply, name) for reply in replies]) for name in _ROWS}
    ids = np.concatenate([np.asarray([*group.prompt_ids, *_reply_ids(group)], np.int64) for group in rollout.groups])
    states = np.concatenate([rows for group in rollout.groups for rows in (group.states_PD, *(reply.states_TD for reply in group.replies))])
    return {name: torch.from_numpy(each) for name, each in {**rows, "ids": ids, "states": states}.items()}


def _reply_ids(group: Group) -> list[int]:
    return [token for reply in group.replies for token in reply.token_ids]


def _facts(rollout: Rollout) -> dict[str, Any]:
    groups = [
        {
            "prompt": group.prompt,
            "source": group.source,
            "num_prompt": len(group.prompt_ids),
            "replies": [
                {
                    "num_tokens": len(reply.token_ids),
                    "text": reply.text,
                    "parts": reply.parts,
                    "is_terminated": reply.is_terminated,
                    "is_valid": reply.is_valid,
                }
                for reply in group.replies
            ],
        }
        for group in rollout.groups
    ]
    return {"groups": groups, "num_failed": rollout.num_failed, "first_failure": rollout.first_failure}


def _rollout(facts: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Rollout:
    groups, at, row = [], 0, 0  # `at` counts tokens, `row` those of replies
    for each in facts["groups"]:
        prompt_end = at + each["num_prompt"]
        prompt_ids, states_PD = tensors["ids"][at:prompt_end].tolist(), tensors["states"][at:prompt_end]
        at, replies = prompt_end, []
        for reply in each["replies"]:
            end, last = at + reply["num_tokens"], row + reply["num_tokens"]
            fields: dict[str, Any] = {name: tensors[name][row:last] for name in _ROWS}
            fields |= {name: reply[name] for name in ("text", "parts", "is_terminated", "is_valid")}
            replies.append(Reply(token_ids=tensors["ids"][at:end].tolist(), states_TD=tensors["states"][at:end], **fields))
            at, row = end, last
        groups.append(Group(each["prompt"], each["source"], prompt_ids, states_PD, replies))
    return Rollout(groups, facts["num_failed"], facts["first_failure"])
