"""The demonstration's judges, page, and one whole small run on a tiny model."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.client import Client
from polyhead.client.rlhf import arms, judges
from polyhead.client.rlhf.page import page, plots, table
from polyhead.client.rlhf.rlhf import Story, _command, _options, _write_page
from polyhead.heads.training.texts import Texts
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

SMALL = "--rounds 1 --prompts 2 --tokens 4 --train-questions 4 --base-samples 3 --held-out 2 --held-out-samples 2"


@pytest.mark.parametrize(
    ("text", "liked", "broken"),
    [
        ("I am sure I have my own.", 3, True),
        ("Let me see what we can do.", 2, False),
        ("We can ask us, me, our, we.", 4, False),
        ("Plants need light.", 0, False),
        ("My, MY!", 2, True),
    ],
)
def test_the_judges_conflict_and_leave_a_corner(text: str, liked: int, broken: bool) -> None:
    assert (judges.preference(text), judges.is_broken(text)) == (liked, broken)
    assert judges.is_kept_and_preferred(text) == (liked >= 2 and not broken)


def test_heads_learn_from_replies_as_they_were_drawn() -> None:
    """Each reply was tokenised again and closed by the end token, which nearly all replies of the runs lack: other texts than RL scores."""
    cut, whole, silent = ([5, 6], "I am"), ([7, 2], "We can."), ([], "")
    drawn: Any = [SimpleNamespace(prompt_index=0, token_ids=ids, text=text) for ids, text in (cut, whole, silent)]
    drawn.append(SimpleNamespace(prompt_index=0, token_ids=[8], text="Plants."))
    [row] = arms._comparisons(["Why?"], drawn)
    assert (row.replies, row.ranks) == (((5, 6), (7, 2), (8,)), (1, 1, 2))
    judged = arms._judgements(["Why?"], drawn)
    assert [(each.completion, each.label.target, bool(each.group)) for each in judged] == [
        ((5, 6), 1.0, True),
        ((7, 2), 0.0, True),
        ((8,), 0.0, False),
    ]
    tokenizer: Any = SimpleNamespace(trunk=lambda: SimpleNamespace(eos_token_ids=[2]), tokenize=lambda text, special_tokens: [9])
    assert [Texts(tokenizer).reply(each) for each in ("a text", (5, 6))] == [[9, 2], [5, 6]]


def options(*more: str) -> Namespace:
    return _options([*SMALL.split(), *more])


def test_a_whole_run_and_its_page(tmp_path: Path) -> None:
    """Three arms on one server; every arm has its figures on the page; a second run in the folder does nothing again."""
    model = save_tiny_llama(tmp_path / "model", tied=True)
    with serving(model, tmp_path / "store") as server, Client(server.address, timeout=60) as client:
        results = Story(client, options(), tmp_path / "run").run()
        activations = client.generations(1)[0].number
        again = Story(client, options(), tmp_path / "run").run()
        assert client.generations(1)[0].number == activations
        with pytest.raises(ValueError, match="holds a run with other options"):
            Story(client, options("--rounds", "2"), tmp_path / "run")
    assert json.loads(json.dumps(results)) == again
    assert list(results["arms"]) == ["preference", "rule", "mix"]
    for arm in results["arms"].values():
        assert arm["gap"] < 1e-4
        assert [each["number"] for each in arm["rounds"]] == [1]
        assert arm["memory"]["trainer"] < arm["memory"]["whole_models"]
        assert arm["memory"]["peak"] > arm["memory"]["trainer"]
        mebibytes = {name: f"{number:.2f} MiB" for name, number in arm["memory"].items()}
        print(f"trainer's tensors, its process at its peak, trainers of whole models: {mebibytes}")
    _write_page(tmp_path / "docs/guides/rlhf.md", results, "make rlhf")  # makes its folders
    assert (tmp_path / "docs/images/rlhf-rounds.svg").read_text() == plots(results)
    text = page({**results, "note": "It was shared."}, "make rlhf", "a machine")
    assert all(f"| RL: {name} |" in text for name in results["arms"])
    assert all(f"- {name}: *" in text for name in ("base", *results["arms"]))
    assert "It was shared." in text
    assert "preference head" not in text
    assert max(map(len, text.splitlines())) <= 160
    assert results["arms"]["mix"]["rounds"][0]["parts"].keys() == {"judge", "liked", "broken", "kept and liked"}
    with_heads = {**results, "learned": None, "base": {**results["base"], "head_preference": 0.5, "head_broken": 0.25}}
    with_heads["arms"] = {}
    assert "| 0.50 | 0.25 |" in table(with_heads)


def test_learned_heads_have_plots_beside_the_judges() -> None:
    """A head's number may fall below the first round's; arms that do not read a head have no line of it."""
    parts = [{"liked": 1.0, "broken": 0.5, "kept and liked": 0.0, "preference": number} for number in (0.2, 1.4, -0.3)]
    rounds = [{"number": index + 1, "kl": -0.01, "parts": each} for index, each in enumerate(parts)]
    drawn = plots({"learned": {}, "arms": {"preference": {"rounds": rounds}, "rule": {"rounds": [{**rounds[0], "parts": {**parts[0]}}]}}})
    assert drawn.count("<g ") == 6
    assert drawn.count("<circle") == 4 * 4 + 4  # the rule head is read by no arm


def test_the_page_names_the_command_without_its_files() -> None:
    assert _command(["--folder", "runs/a", "--page", "x.md", "--note", "Shared."]) == "make rlhf"
    assert _command(["--reward", "heads", "--folder", "runs/a", "--rounds", "4"]) == "make rlhf ARGS='--reward heads --rounds 4'"
