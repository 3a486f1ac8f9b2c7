"""What ends a training command, in a sentence: bad data, an interrupt, a full disk, a server that went away. And how the run is resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import typer

from polyhead.client.cli.session import fail, reason_of
from polyhead.client.errors import PolyheadError
from polyhead.client.interrupt import repeated_interrupt

__all__ = ["sentences"]


@contextlib.contextmanager
def sentences(checkpoints: Path | None) -> Iterator[None]:
    """Print what ended the run and how to resume it, in place of a traceback. Of several processes the one that failed speaks."""
    from polyhead.heads.training.fit import TrainingFailed
    from polyhead.heads.training.processes import OtherProcessFailed, ProcessLost
    from polyhead.heads.training.rl.rollout import RolloutFailed
    from polyhead.heads.training.rl.served import OtherTrainer

    resumes = "the same command resumes from --checkpoints" if checkpoints else "with --checkpoints FOLDER the same command would resume"
    hint = f"hint: the server keeps the heads that were activated last; {resumes}"
    try:
        with repeated_interrupt():
            yield
    except KeyboardInterrupt:
        typer.secho(f"interrupted\n{hint}", err=True)
        raise typer.Exit(130) from None
    except ProcessLost as error:
        fail(f"{error}\n{hint}")
    except OtherProcessFailed:
        raise typer.Exit(1) from None
    except (ValueError, TrainingFailed, RolloutFailed, OtherTrainer) as error:
        fail(str(error))
    except PolyheadError as error:
        error.args = (f"{error}\n{hint}",)
        raise
    except OSError as error:
        fail(f"{reason_of(error)}\n{hint}")
