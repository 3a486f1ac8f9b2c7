"""`polyhead train`: a head trained on the served trunk's boundary states. torch is imported when a run begins."""

from __future__ import annotations

import enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyhead.client.cli.history import activated
from polyhead.client.cli.session import Session, connected, fail

if TYPE_CHECKING:
    from polyhead.heads.training.fit import FitConfig, Step
    from polyhead.heads.training.runs import RunConfig, Trained

__all__ = ["train_command"]


class Task(enum.Enum):
    """What a head is trained on."""

    SFT = "sft"
    PREFERENCE = "preference"
    RULE = "rule"

    @property
    def kind(self) -> str:
        """Of the head, and the name that it has on a new server."""
        return "policy" if self is Task.SFT else self.value


@connected
def train_command(
    session: Session,
    task: Annotated[Task, typer.Argument(help="sft: replies to imitate; preference: ranked replies; rule: judgements of rules.")],
    data: Annotated[Path, typer.Option(help='JSON lines: {"prompt": ...} with "completion"; "chosen", "rejected"; or "rule", "label".')],
    held_out: Annotated[Path | None, typer.Option(help="JSON lines to measure on.", show_default="a share of --data")] = None,
    held_out_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of --data to hold out without --held-out.")] = 0.1,
    name: Annotated[str, typer.Option(help="Head name to push to.", show_default="policy, preference, rule")] = "",
    start_from: Annotated[str, typer.Option(help="Head or version to begin with.", show_default="the active one")] = "",
    activate: Annotated[bool, typer.Option("--activate", help="Activate the finished head.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.", show_default="sft 8, preference 3, rule 2")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of one optimiser step.", show_default="8")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's learning rate.", show_default="2e-4, 5e-5, 1e-4")] = None,
    broken_weight: Annotated[float, typer.Option(help="rule: weight of broken rows; other than 1 it shifts p_violate.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the row order and of the choice of held-out rows.")] = 0,
    states: Annotated[Path | None, typer.Option(help="Folder of boundary states.", show_default="in the user's cache folder")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder to save to; the same command resumes from it.")] = None,
) -> None:
    """Train a head on the served trunk and push it with its metrics; this process never holds the trunk."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        fail("training needs torch and transformers\nhint: pip install 'polyhead[cli,train]'")
    from polyhead.heads.training import runs

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    folders: dict[str, Any] = {} if states is None else {"states": states}
    run = runs.RunConfig(data, held_out, held_out_share, start_from, checkpoints=checkpoints, broken_weight=broken_weight, **folders)
    try:
        trained = _train(session, task, run, runs.settings(task.value, seed=seed, **given))
    except (ValueError, runs.TrainingFailed) as error:
        fail(str(error))
    except OSError as error:
        hint = "\nhint: what was trained is in --checkpoints; the same command resumes" if checkpoints else ""
        fail(f"{error.strerror}: {error.filename}{hint}")
    report = runs.push(session.client, name or task.kind, task.kind, trained)
    lines = [*trained.lines, f"pushed {report.head.ref}"]
    if activate:
        lines += activated(session.client.activate({report.head.name: report.version}, note="polyhead train"))
    session.show({"head": report.head.ref, "metrics": trained.metrics, "active": activate}, "\n".join(lines))


def _train(session: Session, task: Task, run: RunConfig, config: FitConfig) -> Trained:
    """Run it, with a progress bar on stderr."""
    from polyhead.heads.training import runs

    trainer = {Task.SFT: runs.sft, Task.PREFERENCE: runs.preferences, Task.RULE: runs.rules}[task]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading boundary states", total=None)

        def show(step: Step) -> None:
            progress.update(bar, description=f"loss {step.loss:.3f}", completed=step.number, total=step.num_steps)

        return trainer(session.client, run, config, show)
