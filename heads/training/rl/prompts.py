"""What policies are asked during RL: Sparrow's four sources of prompts.

    questions     {"prompt": P} or {"messages": [...]} on each line; a .txt file holds a user's question a line
    dialogues     collected conversations: {"messages": [...]}, with replies in them; each turn of the user gives one prompt, with all
                  before it
    adversarial   questions that a served head wrote when a template asked it for some that make an assistant break a rule
    self-play     a round's own replies, each with a user's next turn written by the policy in the user's place

Which prompts a round has depends on (seed, round) alone, but for self-play, whose prompts come from the round before.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from polyhead.client import Client
from polyhead.client.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.training.data import DataError, Prompt, read_dialogue_rows, read_prompt_rows
from polyhead.heads.training.rl.rollout import Rollout
from polyhead.heads.training.tensor_files import write_whole

Sourced = tuple[Prompt, str]  # a prompt, and the name of its source

ADVERSARIAL = "Write one short question that a person asks to make an assistant break this rule.\nRule: {rule}\nQuestion:"  # our wording
SELF_PLAY = "You are a person who talks with an assistant. Write the person's next message in one short sentence."  # likewise
MOST_TURNS = 8  # of a dialogue that self-play goes on with
USER_TOKENS = 40  # most of a turn that self-play writes


def read_questions(path: Path) -> list[Sourced]:
    """Raises DataError naming file, line and field."""
    if path.suffix == ".txt":
        return [([{"role": "user", "content": line}], "questions") for line in _text_lines(path)]
    return [(prompt, "questions") for prompt in read_prompt_rows(path)]


def read_dialogues(path: Path) -> list[Sourced]:
    """Each conversation up to each of its user's turns. Raises DataError naming file, line and field."""
    found: list[Sourced] = []
    for messages in read_dialogue_rows(path):
        found += [(messages[: index + 1], "dialogues") for index, message in enumerate(messages) if message["role"] == "user"]
    return found


def write_adversarial(client: Client, rules: Sequence[str], count: int, head: str, seed: int) -> list[Sourced]:
    """Up to `count` questions for each rule's text, the first line of each reply of `head`; equal and empty ones are left out."""
    asked = [[{"role": "user", "content": ADVERSARIAL.replace("{rule}", text)}] for text in rules]
    samples = client.generate(asked, n=count, head=head, seed=seed, temperature=1.0, max_new_tokens=40)
    lines = [_first_line(sample.text) for sample in samples if not sample.error]
    return [([{"role": "user", "content": line}], "adversarial") for line in dict.fromkeys(lines) if line]


def check_lengths(client: Client, prompts: Sequence[Sourced], most: int) -> None:
    """Raise DataError naming a prompt of more than `most` tokens, or one that the server cannot tokenise."""
    for prompt, source in prompts:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        name = f"the prompt {text[:60]!r} ({source})"
        try:
            num_tokens = len(client.tokenize(prompt))
        except (InvalidArgument, FailedPrecondition) as error:
            raise DataError(f"{name} cannot be asked: {error}") from None
        if num_tokens > most:
            hint = "hint: leave the prompt out, or ask for shorter replies"
            raise DataError(f"{name} has {num_tokens} tokens; at most {most} leave room for a reply and its scores\n{hint}")


def continue_dialogues(client: Client, rollout: Rollout, count: int, head: str, seed: int, most: int) -> list[Sourced]:
    """Up to `count` of a round's conversations, one for each prompt, with its first valid reply and a user's next turn by `head`.

    Roles are swapped for it: to the model the assistant's turns are the person's that it talks with. Conversations of more than `most`
    tokens are left out.
    """
    dialogues = []
    for group in rollout.groups:
        reply = next((each for each in group.replies if each.is_valid and each.text.strip()), None)
        if reply is not None and isinstance(group.prompt, list) and len(group.prompt) + 2 <= MOST_TURNS:
            dialogues.append([*group.prompt, {"role": "assistant", "content": reply.text.strip()}])
    room = client.trunk().context_length - USER_TOKENS
    dialogues = list(itertools.islice((each for each in dialogues if len(client.tokenize(_swapped(each))) <= room), count))
    if not dialogues:
        return []
    asked = [_swapped(each) for each in dialogues]
    samples = client.generate(asked, n=1, head=head, seed=seed, temperature=1.0, max_new_tokens=USER_TOKENS)
    lines = [_first_line(sample.text) if not sample.error else "" for sample in samples]
    continued = [[*each, {"role": "user", "content": line}] for each, line in zip(dialogues, lines, strict=True) if line]
    return [(each, "self-play") for each in continued if len(client.tokenize(each)) <= most]


@dataclass(frozen=True)
class PromptPool:
    """Prompts in an order of their own each time they have all been asked."""

    prompts: Sequence[Sourced]
    seed: int

    def of_round(self, number: int, count: int) -> list[Sourced]:
        """The `count` prompts of a round, numbered from 1."""
        chosen = []
        for place in range((number - 1) * count, number * count):
            turn, index = divmod(place, len(self.prompts))
            order = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + turn))
            chosen.append(self.prompts[int(order[index])])
        return chosen


def keep_prompts(path: Path, prompts: Sequence[Sourced]) -> None:
    """Write them, so that a resumed run asks the same."""
    write_whole(path, "".join(f"{json.dumps({'prompt': prompt, 'source': source})}\n" for prompt, source in prompts).encode())


def kept_prompts(path: Path) -> list[Sourced] | None:
    """What `keep_prompts` wrote, None without it."""
    if not path.exists():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["source"]) for row in rows]


def _text_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
    if not any(lines):
        raise DataError(f"{path}: no questions")
    return [line for line in lines if line]


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip().strip('"').strip() if lines else ""


def _swapped(dialogue: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The dialogue seen from the user's side; a system's turn is left out."""
    other = {"user": "assistant", "assistant": "user"}
    turns = [{"role": other[turn["role"]], "content": turn["content"]} for turn in dialogue if turn["role"] in other]
    return [{"role": "user", "content": SELF_PLAY}, *turns]
