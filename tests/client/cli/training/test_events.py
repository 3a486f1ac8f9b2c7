"""Curves of `polyhead train --tensorboard`: every number of every step, by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from polyhead.client.cli.training import events

Written = list[tuple[str, float, int]]


class Writer:
    """What is used of torch's SummaryWriter, which needs the tensorboard package."""

    written: Written = []  # noqa: RUF012  of the one test

    def __init__(self, folder: str) -> None:
        assert folder == "curves"

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.written.append(("closed", 0.0, 0))

    def add_scalar(self, name: str, number: float, step: int) -> None:
        self.written.append((name, number, step))


def test_each_number_is_written_and_the_file_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(events, "find_spec", lambda name: object())
    with events.event_writer(Path("curves")) as write:
        write({"loss": 2.0, "seconds/push": 0.5}, 1)
        write({"loss": 1.0}, 2)
    assert Writer.written == [("loss", 2.0, 1), ("seconds/push", 0.5, 1), ("loss", 1.0, 2), ("closed", 0.0, 0)]


def test_without_the_package_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    with pytest.raises(typer.Exit), events.event_writer(Path("curves")):
        raise AssertionError("it ends before any work")
    assert "hint: pip install tensorboard" in capsys.readouterr().err
