"""The demonstration's judges, page, and one whole small run on a tiny model."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from polyhead.client import Client
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.page import page, plots
from polyhead.client.rlhf.rlhf import Story, _options, _write_page
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
        print(f"trainer's tensors {arm['memory']['trainer']:.2f} MiB, whole models' {arm['memory']['whole_models']:.2f} MiB")
    _write_page(tmp_path / "docs/guides/rlhf.md", results, "make rlhf")  # makes its folders
    assert (tmp_path / "docs/images/rlhf-rounds.svg").read_text() == plots(results)
    text = page(results, "make rlhf", "a machine")
    assert all(f"| RL: {name} |" in text for name in results["arms"])
    assert plots(results).count("<svg") == 1
