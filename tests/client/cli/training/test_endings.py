"""What `polyhead train` says when it is ended from outside: one sentence, what the server serves, and how to resume."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import typer

from polyhead.client.cli.session import readable_errors
from polyhead.client.cli.training.endings import sentences
from polyhead.client.errors import Unavailable
from polyhead.heads.training.processes import OtherProcessFailed

GOES_ON = "hint: the server keeps the heads that were activated last; the same command resumes from --checkpoints\n"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "kept/x"), 1, "error: Permission denied: kept/x"),
        (Unavailable("nobody listens at 127.0.0.1:1"), 1, "error: nobody listens at 127.0.0.1:1"),
    ],
)
def test_an_end_is_one_sentence(error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    @readable_errors
    def command() -> None:
        with sentences(Path("kept")):
            raise error

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"{sentence}\n{GOES_ON}"


def test_of_several_processes_the_one_that_failed_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, sentences(None):
        raise OtherProcessFailed("another process of the run failed")
    assert (ended.value.exit_code, capsys.readouterr().err) == (1, "")
