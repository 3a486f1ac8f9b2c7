"""`polyhead train`: a head trained on the served trunk's boundary states. torch is imported when a run begins."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyhead.client.cli.heads.history import activated
from polyhead.client.cli.session import Session, connected, fail, require_torch
from polyhead.client.cli.training.endings import sentences
from polyhead.client.cli.training.events import event_writer
from polyhead.client.cli.training.train_rl import train_rl_command

if TYPE_CHECKING:
    from polyhead.heads.training.fit import FitConfig, Step
    from polyhead.heads.training.runs import RunConfig, Trained

__all__ = ["build_train_app"]


class Task(enum.Enum):
    """What a head is trained on."""

    SFT = "sft"
    PREFERENCE = "preference"
    RULE = "rule"
    VALUE = "value"

    @property
    def kind(self) -> str:
        """Of the head, and the name that it has on a new server."""
        return "policy" if self is Task.SFT else self.value


class Loss(enum.Enum):
    """What a preference head learns from a row."""

    RANKING = "ranking"
    CHOICE = "choice"


_ROWS = {
    Task.SFT: '{"prompt": ..., "completion": ...}',
    Task.PREFERENCE: '{"prompt": ..., "chosen": ..., "rejected": ...}, or "replies" with "ranks"',
    Task.RULE: '{"prompt": ..., "completion": ..., "rule": ..., "label": ...}',
    Task.VALUE: '{"prompt": ..., "completion": ..., "reward": 0.5}',
}
_HELP = {
    Task.SFT: "Train a policy head to imitate replies",
    Task.PREFERENCE: "Train a preference head on ranked replies",
    Task.RULE: "Train a rule head on judgements of rules",
    Task.VALUE: "Train a value head on replies with rewards",
}


def build_train_app() -> typer.Typer:
    """`polyhead train`, with a command for each task."""
    app = typer.Typer(help="Train a head on the served trunk; this process never holds the trunk.", no_args_is_help=True)
    for task in Task:
        app.command(task.value, help=f"{_HELP[task]} and push it with its metrics. Rows of --data: {_ROWS[task]}")(_command_of(task))
    app.command("rl")(train_rl_command)
    return app


def _command_of(task: Task) -> Any:
    """The command of one task, without options of other tasks."""

    def command(session: Session, **options: Any) -> None:
        train_command(session, task, **options)

    signature = inspect.signature(train_command, eval_str=True)
    own = {Task.RULE: {"broken_weight"}, Task.PREFERENCE: {"loss", "off_topic", "references"}}
    excluded = {"task"}.union(*(names for other, names in own.items() if other is not task))
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what `connected` reads
        parameters=[parameter for name, parameter in signature.parameters.items() if name not in excluded]
    )
    return connected(command)


def train_command(
    session: Session,
    task: Task,
    data: Annotated[Path, typer.Option(help="JSON lines.")],
    held_out: Annotated[Path | None, typer.Option(help="JSON lines to measure on.", show_default="a share of --data")] = None,
    held_out_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of --data to hold out without --held-out.")] = 0.1,
    name: Annotated[str, typer.Option(help="Name to push the head under.", show_default="policy, preference, rule, value")] = "",
    start_from: Annotated[str, typer.Option(help="Head or version that training starts from.", show_default="the active one")] = "",
    activate: Annotated[bool, typer.Option("--activate", help="Activate the finished head.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.", show_default="sft 8, preference 3, else 2")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows for each optimiser step.", show_default="8")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="sft 2e-4, preference 5e-5, else 1e-4")] = None,
    broken_weight: Annotated[float, typer.Option(help="Weight of broken rows; other than 1 it shifts p_violate.")] = 1.0,
    loss: Annotated[Loss, typer.Option(help="ranking: all pairs of a row; choice: its best reply among all.")] = Loss.RANKING,
    off_topic: Annotated[int | None, typer.Option(min=0, help="With choice: off-topic replies for each row.", show_default="2")] = None,
    references: Annotated[
        Path | None,
        typer.Option(help='Replies whose mean score is to be 0: {"prompt": ..., "completion": ...}.', show_default="best held-out ones"),
    ] = None,
    average: Annotated[float | None, typer.Option(help="Push the weights' moving average of this decay.", show_default="none")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward passes in bfloat16.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of rows and of the choice of held-out rows.")] = 0,
    states: Annotated[Path | None, typer.Option(help="Folder for boundary states.", show_default="in the user's cache folder")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder to save to; the same command resumes from it.")] = None,
) -> None:
    """Read, train, measure, push."""
    require_torch("training", "cli,train")
    _check_rows(task, [file for file in (data, held_out) if file is not None], references)
    from polyhead.heads.training import runs

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "average_decay": average}
    given["autocast"] = bf16 or None
    optional: dict[str, Any] = {} if states is None else {"states": states}
    if off_topic is not None and loss is not Loss.CHOICE:
        fail("--off-topic applies to --loss choice only")
    optional |= {"loss": runs.PreferenceLoss(loss.value), "references": references}
    if off_topic is not None:
        optional["num_off_topic"] = off_topic
    with sentences(checkpoints):
        run = runs.RunConfig(data, held_out, held_out_share, start_from, checkpoints=checkpoints, broken_weight=broken_weight, **optional)
        trained = _train(session, task, run, runs.settings(task.value, seed=seed, **given), tensorboard)
        if not runs.Processes.launched().is_main:
            return  # another process of the run pushes
        report = runs.push(session.client, name or task.kind, task.kind, trained)
        lines = [*trained.lines, f"pushed {report.head.ref}"]
        if activate:
            lines += activated(session.client.activate({report.head.name: report.version}, note="polyhead train"))
    session.show({"head": report.head.ref, "metrics": trained.metrics, "active": activate}, "\n".join(lines))


def _check_rows(task: Task, files: Sequence[Path], references: Path | None) -> None:
    """End the command for a bad row, before torch is imported, which takes seconds."""
    from polyhead.heads.training import data

    read: dict[Task, Callable[[Path], object]] = {
        Task.SFT: data.read_demonstrations,
        Task.PREFERENCE: data.read_comparisons,
        Task.RULE: data.read_judgements,
        Task.VALUE: data.read_rewarded,
    }
    try:
        for file in files:
            read[task](file)
        if references is not None:
            data.read_demonstrations(references)
    except ValueError as error:
        fail(str(error))


def _train(session: Session, task: Task, run: RunConfig, config: FitConfig, tensorboard: Path | None) -> Trained:
    """Run the task, with a progress bar on stderr."""
    from polyhead.heads.training import runs

    trainer = {Task.SFT: runs.sft, Task.PREFERENCE: runs.preferences, Task.RULE: runs.rules, Task.VALUE: runs.values}[task]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_main, console = runs.Processes.launched().is_main, Console(stderr=True)
    shown = Progress(*columns, console=console, transient=True, disable=not (is_main and console.is_terminal))
    with event_writer(tensorboard if is_main else None) as write, shown as progress:
        bar = progress.add_task("reading boundary states", total=None)

        def show(step: Step) -> None:
            write({"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}, step.number)
            progress.update(bar, description=f"loss {step.loss:.3f}", completed=step.number, total=step.num_steps)
            if is_main and not console.is_terminal and step.ends_epoch:  # a log file has no bar
                typer.echo(f"epoch {step.epoch + 1}/{config.epochs}, step {step.number}/{step.num_steps}: loss {step.loss:.3f}", err=True)

        return trainer(session.client, run, config, show)
